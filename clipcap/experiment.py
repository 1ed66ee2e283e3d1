"""What the four fine-tuning scripts share: the model they start from and the data they train on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from clipcap.arguments import DataArguments, LoopArguments, ModelArguments
from clipcap.errors import UserError
from clipcap.language_model import load_language_model, plain_gpt2_config
from clipcap.training import Trainer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from clipcap.embeddings import EmbeddingStore
    from clipcap.model import ClipCap

SAMPLES = 8  # validation images whose captions are shown at each evaluation


@dataclass
class Experiment:
    """A model and the data to fine-tune it on."""

    model: ClipCap
    tokenizer: Tokenizer
    store: EmbeddingStore
    data_args: DataArguments
    model_args: ModelArguments
    loop_args: LoopArguments

    @classmethod
    def prepare(
        cls, strategy: str, data_args: DataArguments, model_args: ModelArguments, loop_args: LoopArguments
    ) -> Experiment:
        """Open the data, load or build the model, and make sure that the output can be written."""
        import torch

        from clipcap.embeddings import EmbeddingStore, check_clip
        from clipcap.tokenizer import end_of_text, tokenizer_of

        loop_args.check()
        if data_args.data is None:
            raise UserError("no data given: say --data FOLDER, a dataset written by load_data.py, or --demo")
        if data_args.limit_train is not None and data_args.limit_train < 1:
            raise UserError(f"--limit-train must be at least 1, not {data_args.limit_train}")
        if data_args.max_tokens < 2:
            raise UserError(f"--max-tokens must be at least 2, not {data_args.max_tokens}")
        loop_args.output_dir = loop_args.output_dir or f"runs/{'demo/' if data_args.demo else ''}{strategy}"
        make_folder(loop_args.output_dir)
        store = EmbeddingStore.open(data_args.data)
        torch.manual_seed(loop_args.seed)  # a fresh mapping network, and adapters, start the same when resumed
        model = start_model(model_args, store)
        check_clip(store, model.config)
        tokenizer = tokenizer_of(model.config)
        model.config.tokenizer = tokenizer.to_str()
        model.config.stop_token = end_of_text(tokenizer)
        if data_args.max_tokens > model.room:
            raise UserError(
                f"--max-tokens {data_args.max_tokens} does not fit behind the prefix: GPT-2 has room for {model.room}"
            )
        return cls(model, tokenizer, store, data_args, model_args, loop_args)

    def datasets(self, prompts: Callable[[str], list[list[int]]] | None = None) -> tuple:
        """The training and validation data; `prompts` gives the prompt of every row of a split."""
        from clipcap.data import CaptionDataset, encode_captions, fit_captions

        data = []
        for split, limit in (("train", self.data_args.limit_train), ("validation", None)):
            captions = encode_captions(self.tokenizer, self.store.captions(split), self.data_args.max_tokens)
            prompted = prompts and prompts(split)
            if prompted:
                captions = fit_captions(captions, prompted, self.model.room)
            rows = range(min(len(captions), limit or len(captions)))
            data.append(CaptionDataset(self.store.embeddings(split), captions, prompted, rows))
        return tuple(data)

    def train(self, strategy: str, weights: str, prompts: Callable | None = None, **options) -> Path:
        """Print what trains, train it, and return the file of the best weights."""
        train, validation = self.datasets(prompts)
        arguments = asdict(self.data_args) | asdict(self.model_args) | asdict(self.loop_args)
        record = {
            "data": {"path": str(self.data_args.data), "identity": self.store.identity, "rows": len(train)},
            "arguments": arguments,
        }
        shown = zip(self.store.column("validation", "image_id"), self.store.captions("validation"), strict=True)
        references = [{"image": image, "reference": caption} for image, caption in islice(shown, SAMPLES)]
        trainer = Trainer(
            self.model, train, validation, self.loop_args, strategy, weights, record, references=references, **options
        )
        if trainer.accelerator.is_main_process:
            print(describe(self.model), file=sys.stderr)
        path = trainer.run()
        if trainer.accelerator.is_main_process:
            print(path)
        return path


def make_folder(folder: str) -> None:
    """Create the output folder and make sure that files can be written there, before hours of work."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        probe = Path(folder) / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"the output folder {folder} cannot be written ({error.strerror}): choose another") from None


def start_model(args: ModelArguments, store: EmbeddingStore) -> ClipCap:
    """The weights of `--init`, or plain GPT-2 with a fresh mapping network for the CLIP that the data was made with."""
    from clipcap.checkpoint import load_checkpoint
    from clipcap.model import ClipCap, ClipCapConfig

    fresh = ("language_model", "mapping", "prefix_length", "clip_length")
    if args.init:
        clashing = [name for name in fresh if getattr(args, name) is not None] + ["normalize"] * args.normalize
        if clashing:
            raise UserError(
                f"--{clashing[0].replace('_', '-')} is for a fresh mapping network, and --init {args.init} brings its "
                "own: leave one of the two out"
            )
        model = load_checkpoint(args.init)
        model.literal_captioner = model.config.prompt = None
        return model
    language_model = args.language_model or "gpt2"
    gpt = load_language_model(language_model)
    chosen = {name: getattr(args, name) for name in fresh[1:] if getattr(args, name) is not None}
    config = ClipCapConfig(
        clip_model=store.clip["model"],
        clip_pretrained=store.clip["pretrained"],
        clip_dim=store.clip["dim"],
        normalize=args.normalize,
        language_model=language_model,
        gpt2=plain_gpt2_config(gpt.config),
        **chosen,
    )
    model = ClipCap(config)
    model.gpt.load_state_dict(gpt.state_dict())
    return model


def describe(model: ClipCap) -> str:
    """Trained and total parameters, and which parts of the model they are."""
    parts: dict[str, int] = {}
    total = trained = 0
    for name, parameter in model.named_parameters():
        if name.startswith("literal_captioner."):
            continue
        total += parameter.numel()
        if parameter.requires_grad:
            trained += parameter.numel()
            words = name.removeprefix("gpt.transformer.").removeprefix("gpt.").split(".")
            part = f"{words[2]} of the blocks" if words[0] == "h" else words[0]
            part = "LoRA adapters" if ".lora_" in name else "mapping network" if "clip_project" in name else part
            parts[part] = parts.get(part, 0) + parameter.numel()
    shown = ", ".join(f"{part} {count:,}" for part, count in parts.items())
    return f"training {trained:,} of {total:,} parameters ({trained / total:.1%}): {shown}"
