"""Put a model on the Hugging Face hub, where `--weights hf:owner/name` finds it.

python -m clipcap.weights.publish runs/base/base_weights.pt owner/name
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from clipcap.cli.options import arg, parse
from clipcap.cli.status import run
from clipcap.errors import UserError, check_text
from clipcap.files import temporary_room
from clipcap.model.clipcap import ClipCap
from clipcap.weights.card import model_card, without_folders
from clipcap.weights.checkpoint import load_checkpoint, model_payload
from clipcap.weights.folder import TENSORS, write_folder
from clipcap.weights.format import sha256
from clipcap.weights.hub import NAME, PREFIX, spoken
from clipcap.weights.places import check_clip_place
from clipcap.weights.published import resolve_weights

PLACES = ("language_model", "clip_model", "clip_pretrained")  # fields of a config that may hold a path
LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclass
class PublishArguments:
    """What the repository is like, and what its card says."""

    _argument_group_name = "repository"

    private: bool = arg(False, "create a private repository; one that is there already stays as it is")
    revision: str | None = arg(None, "branch to write to, created where it is missing (default: main)")
    base: str | None = arg(None, "what LoRA weights were trained on, if it has moved", metavar="FILE")
    report: str | None = arg(None, "report.json of evaluate.py with scores of these weights", metavar="FILE")
    data: str | None = arg(None, "what the weights were trained on, and its licence", metavar="TEXT")
    license: str | None = arg(None, "licence of the weights as the hub spells it: mit, cc-by-nc-4.0, ...")


def main(argv: Sequence[str] | None = None) -> None:
    """Publish the weights that the command line names."""
    args, given = parse(
        argv,
        PublishArguments,
        description="Put weights on the Hugging Face hub, with a model card. LoRA weights are merged into their base.",
        example="python -m clipcap.weights.publish runs/base/base_weights.pt owner/name",
        positional=("what", {"nargs": "*", "help": "a file or name of weights, then owner/name on the hub"}),
        program="python -m clipcap.weights.publish",
    )
    if len(given.what) != 2:
        raise UserError(
            "give weights and owner/name, like: python -m clipcap.weights.publish base_weights.pt owner/name"
        )
    weights, repository = given.what
    if args.license and not LICENCE.fullmatch(args.license):
        raise UserError(f"--license {args.license!r} is no licence of the hub; it spells them like cc-by-nc-4.0")
    scores = _scores(Path(args.report), sha256(resolve_weights(weights)), weights) if args.report else None
    check_text(**{"--data": args.data or ""})
    _check_name(repository, args.revision)
    model = load_checkpoint(weights, base=args.base)
    card = model_card(model, repository, args.license, args.data, scores)
    print(push_to_hub(model, repository, args.revision, args.private, card))


def push_to_hub(
    model: ClipCap, repository: str, revision: str | None = None, private: bool = False, card: str | None = None
) -> str:
    """Put a model on the hub, in one commit; `load_checkpoint` gives it back bit by bit.

    Args:
        model: without adapters; `load_checkpoint` merges those of a LoRA file.
        repository: owner/name; it is created where it is missing.
        revision: a branch, likewise; None for main.
        private: of a repository that is created.
        card: the text of its README.md; None writes one.

    Returns:
        `hf:owner/name@COMMIT`, which `load_checkpoint` and `--weights` take.

    Raises:
        UserError: the name cannot be used, there is no token, no room for temporary files, or the hub refuses.
    """
    _check_name(repository, revision)
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if not get_token():
        raise UserError("publishing needs a token that may write: log in with `hf auth login`, or set HF_TOKEN")
    with TemporaryDirectory() as name:
        folder = Path(name)
        _note_places(model, folder)
        payload = model_payload(model)
        for part in filter(None, [payload, payload.get("literal_captioner")]):
            part["config"] |= {name: without_folders(part["config"][name]) for name in PLACES}
        with temporary_room(name, "the files of the repository"):
            write_folder({**payload, "record": without_folders(model.record)}, folder)
            text = card or model_card(model, repository)
            (folder / "README.md").write_text(text, encoding="utf-8", errors="backslashreplace")
        files = [CommitOperationAdd(file.name, file) for file in sorted(folder.iterdir())]
        with spoken(repository, revision):
            api = HfApi()
            api.create_repo(repository, private=private or None, exist_ok=True)
            if revision:
                api.create_branch(repository, branch=revision, exist_ok=True)
            commit = api.create_commit(repository, files, commit_message="Add the model", revision=revision)
    return f"{PREFIX}{repository}@{commit.oid}"


def _check_name(repository: str, revision: str | None) -> None:
    if not NAME.fullmatch(f"{PREFIX}{repository}" + (f"@{revision}" if revision else "")):
        raise UserError(f"{repository!r} is no repository's name, or {revision!r} no branch; write owner/name")


def _note_places(model: ClipCap, folder: Path) -> None:
    """Say so if the weights name a CLIP that only this machine has."""
    try:
        check_clip_place(model.config, folder / TENSORS)
    except UserError:
        print(
            f"note: the weights name CLIP {model.config.clip_model!r}, which others do not have: they need --clip",
            file=sys.stderr,
        )


def _scores(report: Path, content: str, weights: str) -> dict[str, Any]:
    """The scores that a report has of the weights with this SHA-256. Raises UserError if there are none."""
    try:
        models = json.loads(report.read_text(encoding="utf-8"))["models"]
        scores = [model["scores"].items() for model in models if model["sha256"] == content]
    except OSError as error:
        raise UserError(f"{str(report)!r} cannot be read ({error.strerror}); give report.json of evaluate.py") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{str(report)!r} is no report.json of evaluate.py") from None
    if not scores:
        raise UserError(f"{str(report)!r} has no scores of {weights}: evaluate these weights first")
    return {name: value for name, value in scores[0] if isinstance(value, int | float)}


if __name__ == "__main__":
    run(main)
