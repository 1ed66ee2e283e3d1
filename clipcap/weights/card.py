"""The model card: what a repository on the hub says about the weights that it holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from clipcap.model.clipcap import ClipCap
from clipcap.text import in_markdown

PAGE = """---
{header}
---

# {title}

Captions photos as people do under their own: a [ClipCap](https://arxiv.org/abs/2111.09734) model, which turns the
embedding of CLIP {clip} into a prefix from which {writer} writes the caption.

## How to load

```bash
clipcap photos/ --weights {name}
```

```python
from clipcap import Captioner

print(Captioner.load("{name}")(["photo.jpg"])[0])
```

`{name}@COMMIT` is this very version, also after the repository has changed.

## Training

{training}

## Scores

{scores}

## Licence

{licence}

## Limits

It says what looks likely, not what is so: subjects, places and names in captions may be invented. What CLIP and
{writer} have learned of prejudice is in it. A model may repeat words of its training captions, also private ones;
`evaluate.py` measures how much. Do not use it to tell who somebody is, or what they are like.
"""
STRATEGIES = {
    "full": "the mapping network and all of GPT-2 were trained",
    "mapping": "the mapping network was trained",
    "prompted": "the mapping network and all of GPT-2 were trained",
    "LoRA": "the mapping network and low-rank adapters in GPT-2 were trained; these are merged into its weights here, "
    "so that no base is needed",
    "head-only": "GPT-2's head and final norm were trained",
}


def model_card(
    model: ClipCap,
    repository: str,
    licence: str | None = None,
    data: str | None = None,
    scores: Mapping[str, Any] | None = None,
) -> str:
    """The text of a README.md.

    Args:
        model: with the record of its training.
        repository: owner/name.
        licence: of the weights, as the hub spells it; None says that there is none.
        data: what the weights were trained on, and with which licence; None takes what the record says.
        scores: of `evaluate.py`, by name.
    """
    header = ["library_name: clipcap", "pipeline_tag: image-to-text", "tags:", "- clipcap", "- image-captioning"]
    clip = ":".join(map(without_folders, filter(None, (model.config.clip_model, model.config.clip_pretrained))))
    writer = _writer(model)
    its = "OpenAI's modified MIT licence" if writer == "GPT-2" else "a licence of its own"
    given = f"The weights have the licence `{licence}`." if licence else "No licence was given for these weights."
    return PAGE.format(
        header="\n".join([*([f"license: {licence}"] if licence else []), *header]),
        title=repository.partition("/")[2],
        clip=_code(clip) if clip else "(it does not say which)",
        name=f"hf:{repository}",
        training=_table(_training(model, data)),
        scores=_table({name: _figure(value) for name, value in (scores or {}).items()})
        or "None were published with it.",
        writer=writer,
        licence=f"{given} {writer} has {its}, which holds beside it, as does that of the training data.",
    )


def _training(model: ClipCap, data: str | None) -> dict[str, Any]:
    record, strategy = model.record, str(model.record.get("strategy") or "")
    parts = map(record.get, ("data", "losses", "arguments"))
    source, losses, arguments = (part if isinstance(part, dict) else {} for part in parts)
    name = "LoRA" if strategy.startswith("LoRA ") else strategy  # without its rank
    kind = STRATEGIES.get(name, "").replace("GPT-2", _writer(model))
    if arguments.get("freeze_mapping"):
        kind = kind.replace("the mapping network and ", "")
    # Before they recorded how often an epoch repeats them, weights counted each repetition as a caption.
    repeats: Any = source.get("repeats", None if arguments.get("min_steps") else 1)
    epochs = record.get("epochs")
    counted = type(repeats) is int and 0 < repeats < 10**9
    rows = {
        "data": data or PureWindowsPath(str(source.get("path", ""))).name or "not recorded",
        "training captions": source.get("rows") if counted else None,
        "trained parameters": record.get("trained_parameters"),
        "passes over the training captions": epochs * repeats if counted and isinstance(epochs, int | float) else None,
        "validation loss, in nats per token": losses.get("validation"),
        "prompt between picture and caption": model.config.prompt,
    }
    told = {"strategy": _escaped(strategy) + (f": {kind}" if kind else "")} if strategy else {}
    return told | {name: _figure(value) for name, value in rows.items() if value not in (None, "")}


def _writer(model: ClipCap) -> str:
    """The language model by name, that of its folder where it is not on the hub; OpenAI's and the demo's are GPT-2."""
    name = model.config.language_model
    plain = not model.config.network and re.fullmatch(r"demo|(openai-community/)?gpt2(-medium|-large|-xl)?", name)
    return "GPT-2" if plain else _code(without_folders(name))


def without_folders(value: Any) -> Any:
    """A value in which whole paths, of whatever system, are the names of their files: they tell of their owner."""
    if isinstance(value, dict):
        return {name: without_folders(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(part) for part in value]
    if isinstance(value, str) and (PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()):
        return PureWindowsPath(value).name
    return value


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else _escaped(value)


def _escaped(value: Any) -> str:
    return in_markdown(_one_line(value))


def _code(value: Any) -> str:
    """Text as code, in which Markdown takes a backtick and, in a table, a bar for signs."""
    text = _one_line(value).replace("`", "'").replace("|", "\\|")
    return f"`{text}`"


def _one_line(value: Any) -> str:
    return " ".join(str(value).split())[:300]


def _table(rows: Mapping[str, str]) -> str:
    lines = [f"| {_escaped(name)} | {value} |" for name, value in rows.items() if value != "None"]
    return "\n".join(["| | |", "|---|---|", *lines]) if lines else ""
