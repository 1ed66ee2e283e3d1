"""Where a file of weights may point: to models by their published names, and into its own folder. Nowhere else.

Weights come from strangers. A path in them is followed only if it leads into the folder that the file itself lies in;
every other place is for the user to name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from clipcap.clip.names import is_place, model_and_weights
from clipcap.errors import UserError
from clipcap.model.config import ClipCapConfig
from clipcap.text import visible
from clipcap.weights.folder import CONFIG, TENSORS, TOKENIZER
from clipcap.weights.format import read, sha256
from clipcap.weights.hub import PREFIX, with_commit
from clipcap.weights.published import names, resolve_weights

GIVE_CLIP = "give that CLIP with --clip (clip= in Python)"
# "ViT-L/14@336px", "laion2b_s34b_b79k", "openai-community/gpt2", "hf-hub:owner/name"
PUBLISHED = re.compile(r"(hf-hub:)?\w[\w.-]*(/\w[\w.-]*)?(@\w+)?", re.ASCII)
LONGEST = 256  # characters of a published name, and more than a file's name has


@dataclass(frozen=True)
class Base:
    """The weights that adapters were trained on: a published name or a path, and the SHA-256 of the file.

    A name on the hub has its commit, since what its owner puts there later is another file.
    """

    weights: str
    sha256: str

    @classmethod
    def of(cls, weights: str) -> Base:
        """The base of this name or path, with the SHA-256 of its file as it is now. Raises UserError."""
        file = resolve_weights(weights)
        return cls(with_commit(weights, file), sha256(file))


def is_inside(place: str | Path, file: Path) -> bool:
    """Whether a place lies in the folder that a file lies in, links followed."""
    try:
        inside = Path(place).resolve().is_relative_to(file.parent.resolve())
        Path(place).exists()  # raises for a name that no file can have
    except (OSError, ValueError):
        return False
    return inside


def may_follow(place: str | None, file: Path, exists: Callable[[str], bool] = is_place) -> bool:
    """Whether what a file of weights names may be opened: a published name, or a place in the file's own folder.

    `exists` says whether a name means a place on this machine; by default, a place to load CLIP from.
    """
    # "demo" is the world that ships with the project, also where there is a folder of this name, as in the repository.
    if place in (None, "demo") or (PUBLISHED.fullmatch(place) and len(place) < LONGEST and not exists(place)):
        return True
    return is_inside(place, file)


def check_clip_place(config: ClipCapConfig, file: Path, how: str = GIVE_CLIP) -> None:
    """Raise a UserError, saying `how` to give it, if weights name a CLIP neither published nor in their folder."""
    named = model_and_weights(config.clip_model, "openai") if config.clip_model else ()  # NAME:WEIGHTS are two places
    for place in filter(None, (*named, config.clip_pretrained)):
        _check(place, file, "CLIP", how)


def check_language_model_place(config: ClipCapConfig, file: Path) -> None:
    """Raise a UserError if the tokenizer would be looked for elsewhere than on the hub or in the file's own folder."""
    if not config.tokenizer:  # otherwise it is in the file, and the language model's name leads nowhere
        how = "give it with language_model= to load_checkpoint"
        _check(config.language_model, file, "the language model", how, os.path.exists)


def _check(place: str | None, file: Path, what: str, how: str, exists: Callable[[str], bool] = is_place) -> None:
    if not may_follow(place, file, exists):
        raise UserError(
            f"{file} names {what} {str(place)[:200]!r}, which is no published name and lies outside the file's own "
            f"folder, so it is not opened: {how}"
        )


def find_base(content: Mapping[str, Any], file: Path, given: str | None) -> Path:
    """The file of the base: the one given, a published one that the LoRA file names, or one in the LoRA file's folder.

    Args:
        content: of the LoRA file.
        file: the LoRA file itself.
        given: a file or published name that the user gives instead; None for none.

    Raises:
        UserError: none of these files has the SHA-256 of the weights that the adapters were trained on.
    """
    recorded = content["base"]
    if not isinstance(recorded, Mapping) or {type(recorded.get(name)) for name in ("weights", "sha256")} != {str}:
        raise UserError("it does not say which weights its adapters were trained on")
    base = Base(recorded["weights"], recorded["sha256"])
    shown = f"{base.weights[:200]!r} with SHA-256 {base.sha256[:12]!r}..."
    refusal = f"its base {shown} was not found beside it: put that file there, or give it with --base (base= in Python)"
    if given:
        path = resolve_weights(given)
        if (found := sha256(path)) == base.sha256:
            return path
        refusal = f"the base {given} has SHA-256 {found[:12]}..., and its adapters belong to {shown}: give that file"
    elif base.weights.startswith(PREFIX):
        refusal = f"its base {shown} is fetched only if you name it: give it with --base (base= in Python)"
    for place in _followed(base.weights, file):  # of several files with adapters, the given base may be another's
        try:
            path = resolve_weights(place)
        except UserError:
            if base.weights in names() and not given:  # the error already says what to do
                raise
            continue
        if sha256(path) == base.sha256:
            return path
    raise UserError(refusal)


def _followed(weights: str, file: Path) -> list[str | Path]:
    """Where the base that a file names is looked for: a published name, or a path that leads into its own folder."""
    if weights in names():
        return [weights]
    name = PureWindowsPath(weights).name  # of a path that either system wrote
    beside = () if weights.startswith(PREFIX) else (weights, file.parent / weights, file.parent / name)
    return [place for place in beside if is_inside(place, file)]


def files_behind(weights: str, base: str | None) -> list[Path]:
    """The files of these weights and, of adapters, those of their base and of what that was trained on in turn."""
    files = [resolve_weights(weights)]
    while "base" in (content := read(files[-1])):
        files.append(find_base(content, files[-1], base))
    beside = [file.with_name(name) for file in files if file.name == TENSORS for name in (CONFIG, TOKENIZER)]
    return [*files, *(file for file in beside if file.exists())]


def written_over(weights: str, base: str | None, outputs: Iterable[Path]) -> Path | None:
    """The file behind these weights that would be lost if the outputs were written; None if there is none."""
    there = [output for output in outputs if output.exists()]
    behind = files_behind(weights, base) if there else []
    return next((file for file in behind if any(file.samefile(output) for output in there)), None)


def check_base(weights: Iterable[str | None], base: str | None) -> None:
    """Raise a UserError if a base was given and none of these weights holds adapters."""
    here_first = sorted(filter(None, weights), key=lambda name: not os.path.exists(name))  # others would be fetched
    if base and not any(_may_need(name, base) for name in here_first):
        raise UserError(f"--base {base} is for LoRA weights, and none are named here: leave it out")


def _may_need(weights: str, base: str) -> bool:
    try:
        return base_among(weights, base) is not None
    except UserError:  # it cannot be read, as whoever loads it says
        return True


def base_among(weights: str | Path, base: str | None) -> str | None:
    """The base that was given for several weights, if these hold adapters: most weights have no base."""
    return base if base and "base" in read(resolve_weights(weights)) else None


def short_names(models: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(Short name, weights) per model: "base" for runs/base/base_weights.pt, "voice" for hf:jane/voice.

    Where two would have the same name, both are called what they were given as; what is given twice comes once. What is
    not UTF-8 in a name, or what a terminal would obey, is escaped, so that every page, plot and file can hold it.
    """
    models = list(dict.fromkeys(models))
    short = [
        Path(weights).name if weights.startswith(PREFIX) else Path(weights).stem.removesuffix("_weights")
        for weights in models
    ]
    for name, weights in zip(short, models, strict=True):
        name = name if short.count(name) == 1 else weights
        yield visible(name.encode("utf-8", "backslashreplace").decode()), weights
