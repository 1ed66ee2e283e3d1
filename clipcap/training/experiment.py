"""What the four fine-tuning scripts share: the model they start from and the data they train on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from clipcap.cli.processes import ALONE, Processes
from clipcap.data.store import EmbeddingStore, check_clip
from clipcap.errors import UserError, at_least
from clipcap.files import make_folder
from clipcap.model.batches import encode_captions, fit_captions
from clipcap.model.clipcap import ClipCap
from clipcap.model.controls import controls_of
from clipcap.model.language_model import end_of_text, tokenizer_of
from clipcap.training.arguments import DataArguments, LoopArguments, StartArguments, settings
from clipcap.training.loader import CaptionDataset
from clipcap.training.start import content_of, meet_on, start_model
from clipcap.weights.checkpoint import save_checkpoint
from clipcap.weights.format import read, sha256
from clipcap.weights.places import Base, written_over
from clipcap.weights.published import resolve_weights

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILES = {"init", "literal_weights"}  # options that name weights, which are known by their content when a run is resumed
SAMPLES = 8  # validation images whose captions are shown at each evaluation
# Name of a split, and how many of its rows -> token ids of their prompts.
Prompts = Callable[[str, int], list[list[int]] | None]
Save = Callable[[ClipCap, Path], None]  # writes the model's weights to a file


@dataclass
class Experiment:
    """A model and the data to fine-tune it on; `prepare` makes one from the arguments of a script."""

    model: ClipCap
    tokenizer: Tokenizer
    store: EmbeddingStore
    data_args: DataArguments
    start_args: StartArguments
    loop_args: LoopArguments
    strategy_args: Any = None
    language_model: str | None = None  # without --init: SHA-256 of the language model that it starts from
    base: Base | None = None  # with --init: the weights that the model starts from
    processes: Processes = ALONE

    @classmethod
    def prepare(
        cls,
        folder: str,
        data_args: DataArguments,
        start_args: StartArguments,
        loop_args: LoopArguments,
        strategy_args: Any = None,
    ) -> Experiment:
        """Open the data, load or build the model, and make sure that the output can be written.

        Where a launcher started several processes they meet here, and one of each machine downloads for the others.

        Args:
            folder: where the strategy writes below runs/, unless `--output-dir` says otherwise.
            data_args: which captions to learn.
            start_args: which model to start from.
            loop_args: how to train.
            strategy_args: the strategy's own options, a dataclass; None if it has none.

        Raises:
            UserError: arguments, data and weights that cannot be used or do not fit together.
        """
        loop_args.check()
        if data_args.data is None:
            raise UserError("no data given: give --data FOLDER, a dataset written by load_data.py, or --demo")
        at_least(1, option=True, limit_train=data_args.limit_train)
        at_least(2, option=True, max_tokens=data_args.max_tokens)
        output = loop_args.output_dir or f"runs/{'demo/' if data_args.demo else ''}{folder}"
        loop_args = replace(loop_args, output_dir=output)
        processes = meet_on(loop_args.device)
        make_folder(output)
        store = EmbeddingStore.open(data_args.data)
        torch.manual_seed(loop_args.seed)  # so that a fresh mapping network and adapters start alike when resumed
        model, base = processes.load(lambda: start_model(start_args, store, strategy_args))
        check_clip(store, model.config)
        tokenizer = tokenizer_of(model.config)
        model.config.tokenizer = tokenizer.to_str()
        model.config.stop_token = end_of_text(tokenizer, model.config.end_of_text)
        if data_args.max_tokens > model.room:
            raise UserError(
                f"--max-tokens {data_args.max_tokens} does not fit behind the prefix: there is room for {model.room}"
            )
        groups = (data_args, start_args, loop_args, strategy_args)
        return cls(model, tokenizer, store, *groups, None if base else content_of(model), base, processes)

    def datasets(self, prompts: Prompts | None = None) -> tuple[CaptionDataset, CaptionDataset]:
        """The training data and the validation data; `prompts` gives the prompts of the first rows of a split."""
        train = self._dataset("train", prompts, self.data_args.limit_train)
        train.rows = [*train.rows] * self.loop_args.repeats(len(train))
        return train, self._dataset("validation", prompts)

    def _dataset(self, split: str, prompts: Prompts | None, limit: int | None = None) -> CaptionDataset:
        texts = self.store.captions(split)[:limit]
        config = self.model.config
        captions = encode_captions(self.tokenizer, texts, self.data_args.max_tokens, config.end_of_text, config.blank)
        if all(caption == [config.stop_token] for caption in captions):
            raise UserError(
                f"no caption of the split {split!r} in {str(self.data_args.data)!r} has a token: check the captions, "
                "and the tokenizer of the weights"
            )
        prompted = (prompts(split, len(captions)) if prompts else None) or [[]] * len(captions)
        # Validation states no controls, as predict.py does unless asked: its loss compares with other strategies'.
        controls = controls_of(self.tokenizer, config.controls if split == "train" else {}, texts)
        longest = [[*prompt, *chain(*stated)] for prompt, stated in zip(prompted, controls, strict=True)]
        captions = fit_captions(captions, longest, self.model.room)
        embeddings = self.store.embeddings(split)
        if (row := embeddings.unfit(len(captions))) is not None:
            raise UserError(
                f"row {row + 1} of the split {split!r} in {str(self.data_args.data)!r}, image "
                f"{self.store.column(split, 'image_id')[row]!r}, has NaN or infinity in its embedding: "
                "make the dataset again"
            )
        return CaptionDataset(embeddings, captions, prompted, controls=controls, seed=self.loop_args.seed)

    def train(
        self,
        strategy: str,
        weights: str,
        prompts: Prompts | None = None,
        save: Save = save_checkpoint,
        folders: Sequence[Path] = (),
        save_again: bool = False,
        files: Sequence[Path] = (),
    ) -> Path:
        """Train the parameters that the strategy has chosen, and print what they are and where the weights are.

        Args:
            strategy: its name, for messages, plots and the record.
            weights: file name of the weights in the output folder.
            prompts: gives the prompts of the first rows of a split; None for no prompts.
            save: writes the weights.
            folders: what `save` writes into besides the output folder.
            save_again: whether `save` writes other files than the weights. Then a resumed run ends with a `save` of the
                best weights: the run before may not have been asked for these files.
            files: other weights that the command writes, in this run or a later one; it must start from none of them.

        Returns:
            The file of the weights with the best validation loss.
        """
        from clipcap.training.setup import only_run  # here, since accelerate takes seconds to import
        from clipcap.training.trainer import Trainer

        options = self._options([Path(self.loop_args.output_dir or "", weights), *files])
        for folder in folders:
            make_folder(folder)
        for name, value in {"data": self.store.identity, **options}.items():
            self.processes.agree(value, name)
        train, validation = self.datasets(prompts)
        shown = zip(self.store.column("validation", "image_id"), self.store.captions("validation"), strict=True)
        best = deepcopy(self.model) if self.loop_args.resume and save_again else None  # before anything shards it
        with self.processes.watched():
            trainer = Trainer(
                self.model,
                train,
                validation,
                self.loop_args,
                strategy=strategy,
                weights=weights,
                record=self._record(train),
                save=save,
                references=[{"image": image, "reference": caption} for image, caption in islice(shown, SAMPLES)],
                options=options,
                folders=folders,
                processes=self.processes,
            )
            if self.processes.main:
                print(describe(self.model), file=sys.stderr)
            path = trainer.run()
            if best is not None:
                with only_run(trainer.folders, self.processes):
                    if self.processes.main:
                        _restore(best, path)
                        save(best, path)
        if self.processes.main:
            print(path)
        return path

    @property
    def _groups(self) -> list[Any]:
        """The arguments of the run, in groups."""
        return [self.data_args, self.start_args, *filter(None, [self.strategy_args]), self.loop_args]

    def _options(self, written: Sequence[Path]) -> dict[str, Any]:
        """The options that stay the same when a run is resumed. Raises UserError if it would write over its start."""
        options = settings(*self._groups) | {"language_model": self.language_model}
        for name in sorted(FILES & options.keys()):
            if given := options[name]:
                self._check_stays(name, given, written)
                options[name] = self.base.sha256 if name == "init" and self.base else sha256(resolve_weights(given))
        return options

    def _record(self, train: CaptionDataset) -> dict[str, Any]:
        """What the weights remember of the data and of the arguments."""
        rows = len(train.captions)
        data = {"path": str(self.data_args.data), "identity": self.store.identity}
        record = {
            "data": data | {"rows": rows, "repeats": len(train) // rows},  # in each epoch
            "arguments": {name: value for group in self._groups for name, value in asdict(group).items()},
        }
        # A file's name need not be UTF-8, and whoever reads the weights refuses a record that is not.
        return json.loads(json.dumps(record, ensure_ascii=False).encode("utf-8", "replace"))

    def _check_stays(self, option: str, given: str, places: Sequence[Path]) -> None:
        """Raise a UserError if weights that this run starts from need a file that would be written over."""
        if file := written_over(given, self.start_args.base, places):
            raise UserError(
                f"--{option.replace('_', '-')} {given} needs {file}, and this run would write its own weights over "
                "it: choose another --output-dir"
            )


def _restore(model: ClipCap, weights: Path) -> None:
    """Give a model the tensors and the record of a file that its run wrote, which may hold only those that trained."""
    content = read(weights)
    model.load_state_dict(content["tensors"], strict=False)
    model.record = content["record"]


def describe(model: ClipCap) -> str:
    """One line: how many parameters train, how many there are, and which parts of the model they belong to."""
    parts: dict[str, int] = {}
    total = trained = 0
    for name, parameter in model.own_parameters():
        total += parameter.numel()
        if parameter.requires_grad:
            trained += parameter.numel()
            words = name.split(".")
            numbers = [place for place, word in enumerate(words) if word.isdecimal()]
            part = f"{words[numbers[0] + 1]} of the blocks" if numbers else words[-2]
            part = "LoRA adapters" if ".lora_" in name else "mapping network" if "clip_project" in name else part
            parts[part] = parts.get(part, 0) + parameter.numel()
    shown = ", ".join(f"{part} {count:,}" for part, count in parts.items())
    return f"training {trained:,} of {total:,} parameters ({trained / total:.1%}): {shown}"
