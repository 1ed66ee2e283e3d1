"""The captions to choose from for a batch of pictures: generated, decoded to text, scored and sorted.

Shapes: B pictures, C CLIP width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from clipcap.captioning.vocabulary import unfinished
from clipcap.decoding.options import Decoding
from clipcap.decoding.search import NoCaption
from clipcap.errors import UserError
from clipcap.model.batches import collate
from clipcap.model.clipcap import ClipCap
from clipcap.model.language_model import end_of_text, up_to_end

UNKNOWN = ("<unk>", "[UNK]")  # what stands for characters without a token, such as emoji in a BERT vocabulary
Caption = tuple[str, list[int]]  # text, and the token ids it was decoded from


class Candidates:
    """Generates and ranks captions for one batch of pictures.

    Args:
        model: the captioner.
        tokenizer: its tokenizer.
        encode_texts: texts -> their embeddings (texts, C), by the CLIP that made `clip_embedding`; used only with
            `rank="clip"`.
        clip_embedding: (B, C).
        prompts: B lists of token ids between picture and caption, or None.
        rank: "likelihood" or "clip", see `clipcap.captioning.rules.Rules`.
        starts: B texts, or "", that the captions go on from.
    """

    def __init__(
        self,
        model: ClipCap,
        tokenizer: Tokenizer,
        encode_texts: Callable[[list[str]], Tensor],
        clip_embedding: Tensor,
        prompts: Sequence[Sequence[int]] | None,
        rank: str,
        starts: Sequence[str],
    ) -> None:
        self.model, self.tokenizer, self.encode_texts = model, tokenizer, encode_texts
        self.clip_embedding, self.rank, self.starts = clip_embedding, rank, starts
        begun = [tokens_of(tokenizer, start, model.config.blank) for start in starts]
        self.begun = [len(tokens) for tokens in begun]
        before = prompts or [()] * len(clip_embedding)
        self.prompts = [[*prompt, *tokens] for prompt, tokens in zip(before, begun, strict=True)]
        self.end = end_of_text(tokenizer, model.config.end_of_text)

    def __len__(self) -> int:
        return len(self.clip_embedding)

    def room(self, row: int, max_tokens: int) -> int:
        """How many tokens the caption of a picture may have behind its start."""
        return min(max_tokens - self.begun[row], self.model.room - len(self.prompts[row]))

    def check_room(self, max_tokens: int) -> None:
        """Raise NoCaption for the first start that leaves no room for a caption."""
        for row, start in enumerate(self.starts):
            if start:
                check_start(start, self.begun[row], self.begun[row] + self.room(row, max_tokens))

    def generate(
        self, rows: Sequence[int], decoding: Decoding, extra: Sequence[Sequence[int]] | None = None
    ) -> list[list[list[int]]]:
        """Captions of some of the pictures, as token ids, several for each.

        Args:
            rows: which pictures, by their number in the batch; a number may occur several times.
            decoding: how to search.
            extra: for each row, tokens that follow its start as the beginning of the caption. The result repeats
                neither.

        Returns:
            For each row its captions, best first.
        """
        extra = extra or [()] * len(rows)
        prompts = [[*self.prompts[row], *more] for row, more in zip(rows, extra, strict=True)]
        begun = [self.begun[row] + len(more) for row, more in zip(rows, extra, strict=True)]
        batch = self.clip_embedding[list(rows)]
        return self.model.generate_all(batch, decoding, prompts if any(prompts) else None, begun)

    def text(self, row: int, ids: Sequence[int]) -> str:
        """A picture's start and token ids -> the caption, up to end-of-text, and without what is no word."""
        unknown = [self.tokenizer.token_to_id(name) for name in UNKNOWN]
        ids = [token for token in up_to_end(ids, self.end) if token not in unknown]
        ids = ids[: len(ids) - unfinished(self.tokenizer, ids)]
        begun = self.prompts[row][len(self.prompts[row]) - self.begun[row] :]
        # Behind a start, since some tokenizers leave out the blank in front of a text.
        before, whole = (self.tokenizer.decode(tokens, skip_special_tokens=False) for tokens in (begun, [*begun, *ids]))
        return (self.starts[row] + whole.removeprefix(before)).strip()

    def sort(self, captions: Mapping[int, list[Caption]]) -> dict[int, list[Caption]]:
        """Row -> its captions in any order -> the same, best first. Equal scores keep the order given."""
        flat = [(row, caption) for row, several in captions.items() if len(several) > 1 for caption in several]
        scores = iter(self._scores([row for row, _ in flat], [caption for _, caption in flat]))
        ordered = {}
        for row, several in captions.items():
            # A lone caption needs no score: computing one would cost a forward pass.
            ranks = [(-next(scores) if len(several) > 1 else 0.0, index) for index in range(len(several))]
            ordered[row] = [several[index] for _, index in sorted(ranks)]
        return ordered

    def _scores(self, rows: Sequence[int], captions: Sequence[Caption]) -> list[float]:
        """How good each caption is for the picture of its row; higher is better."""
        embeddings = self.clip_embedding[list(rows)]
        if self.rank == "clip":
            texts = self.encode_texts([text for text, _ in captions])
            similar = torch.cosine_similarity(texts, embeddings.to(texts))
            if not similar.isfinite().all():
                raise UserError("CLIP's embeddings of captions are not finite: rank captions by likelihood instead")
            return similar.tolist()
        return likelihoods(self.model, embeddings, [self.prompts[row] for row in rows], [ids for _, ids in captions])


def tokens_of(tokenizer: Tokenizer, start: str, blank: str) -> list[int]:
    """The token ids of a text that captions go on from, behind what stands between prompt and caption."""
    return tokenizer.encode(blank + start).ids if start else []


def check_start(start: str, tokens: int, room: int) -> None:
    """Raise NoCaption unless a start of some tokens leaves room in a caption that may have `room` of them."""
    if tokens >= room:
        raise NoCaption(
            f"the start text {start!r:.60} takes {tokens} tokens, and a caption may have {room}: shorten it"
        )


@torch.inference_mode()
def likelihoods(
    model: ClipCap,
    clip_embedding: Tensor,
    prompts: Sequence[Sequence[int]],
    captions: Sequence[Sequence[int]],
    batch_size: int = 32,
) -> list[float]:
    """Mean log-probability per token, in nats, of B captions (token ids, with the stop token) of embeddings (B, C)."""
    embeddings = clip_embedding.float().cpu().numpy()
    scores: list[float] = []
    head = model.decoder().head  # whose logits lose less in half precision than those of the model's own
    for start in range(0, len(captions), batch_size):
        rows = range(start, min(start + batch_size, len(captions)))
        batch = collate([(embeddings[row], prompts[row], captions[row]) for row in rows]).to(model.device)
        logits = head(model.caption_states(batch))  # (tokens of all captions, V)
        losses = F.cross_entropy(logits.float(), batch.targets, reduction="none")
        lengths = [len(captions[row]) for row in rows]
        scores += [-float(loss.mean()) if len(loss) else float("-inf") for loss in losses.split(lengths)]
    return scores
