"""The captions to choose from for a batch of pictures: generated, decoded to text, scored and sorted.

Shapes: B pictures, C CLIP width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from clipcap.decoding.options import Decoding
from clipcap.errors import UserError
from clipcap.model.batches import collate
from clipcap.model.clipcap import ClipCap
from clipcap.model.gpt2 import end_of_text

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
    """

    def __init__(
        self,
        model: ClipCap,
        tokenizer: Tokenizer,
        encode_texts: Callable[[list[str]], Tensor],
        clip_embedding: Tensor,
        prompts: Sequence[Sequence[int]] | None,
        rank: str,
    ) -> None:
        self.model, self.tokenizer, self.encode_texts = model, tokenizer, encode_texts
        self.clip_embedding, self.prompts, self.rank = clip_embedding, prompts, rank
        self.end = end_of_text(tokenizer)

    def __len__(self) -> int:
        return len(self.clip_embedding)

    def room(self, row: int) -> int:
        """How many tokens GPT-2 has room for behind a picture's prompt."""
        return self.model.room - (len(self.prompts[row]) if self.prompts else 0)

    def generate(
        self, rows: Sequence[int], decoding: Decoding, extra: Sequence[Sequence[int]] | None = None
    ) -> list[list[list[int]]]:
        """Captions of some of the pictures, as token ids, several for each.

        Args:
            rows: which pictures, by their number in the batch; a number may occur several times.
            decoding: how to search.
            extra: for each row, tokens that follow its prompt as the beginning of the caption. The result does not
                repeat them.

        Returns:
            For each row its captions, best first.
        """
        prompts = [
            [*(self.prompts[row] if self.prompts else ()), *more]
            for row, more in zip(rows, extra or [()] * len(rows), strict=True)
        ]
        batch = self.clip_embedding[list(rows)]
        return self.model.generate_all(batch, decoding, prompts if any(prompts) else None)

    def text(self, ids: Sequence[int]) -> str:
        """Token ids -> the caption, without end-of-text."""
        ids = ids[:-1] if ids and ids[-1] == self.end else ids
        return self.tokenizer.decode(list(ids), skip_special_tokens=False).strip()

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
        prompts = [self.prompts[row] if self.prompts else () for row in rows]
        return likelihoods(self.model, embeddings, prompts, [ids for _, ids in captions])


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
    for start in range(0, len(captions), batch_size):
        rows = range(start, min(start + batch_size, len(captions)))
        batch = collate([(embeddings[row], prompts[row], captions[row]) for row in rows]).to(model.device)
        losses = model.token_losses(batch).split([len(captions[row]) for row in rows])
        scores += [-float(loss.mean()) if len(loss) else float("-inf") for loss in losses]
    return scores
