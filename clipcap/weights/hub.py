"""Weights on the Hugging Face hub: `hf:owner/name`, with `@revision` for a branch, a tag or a commit.

A repository holds a model as `clipcap.weights.folder` writes one, or else one published file `.pt`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from clipcap.errors import UserError, first_line, shown
from clipcap.files import read_json
from clipcap.offline import offline_if_unreachable
from clipcap.weights.folder import CONFIG, TENSORS, TOKENIZER

PREFIX = "hf:"
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
ADVICE = {
    401: f"the token is wrong or has expired: {LOG_IN} anew",
    403: f"this needs a right that your token has not: {LOG_IN}",
}
NAME = re.compile(r"hf:([\w-][\w.-]*/[\w-][\w.-]*)(?:@(\w[\w./-]*))?", re.ASCII)
COMMIT = re.compile(r"/models--[^/]+/snapshots/([0-9a-f]{40})/")  # in a path of the hub's cache


class _Silent(tqdm):
    """No bar: a config is small."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **(kwargs | {"disable": True}))


def find_on_hub(name: str) -> Path:
    """The local file of `hf:owner/name` or `hf:owner/name@revision`, downloaded into the hub's cache.

    Where the hub is out of reach, it is what was downloaded before.

    Raises:
        UserError: it is no such name, the hub does not give this repository, or it holds no weights of this project.
    """
    match = NAME.fullmatch(name)
    if not match:
        raise UserError(f"{name!r} is no name on the hub; write hf:owner/name, or hf:owner/name@revision")
    repository, revision = match.groups()
    from huggingface_hub import constants, hf_hub_download, snapshot_download

    with spoken(repository, revision):
        silent: Any = _Silent  # the declared type is another of tqdm's classes
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=[CONFIG], tqdm_class=silent))
        commit = folder.name
        if _describes(folder / CONFIG):
            if not all((folder / name).is_file() for name in (TENSORS, TOKENIZER)):
                snapshot_download(repository, revision=commit, allow_patterns=[CONFIG, TENSORS, TOKENIZER])
            if not (folder / TENSORS).is_file():
                if constants.HF_HUB_OFFLINE:
                    raise UserError(
                        f"the download of {repository} broke off: go online once, or give an earlier commit that was "
                        f"downloaded, as {PREFIX}{repository}@COMMIT"
                    )
                raise UserError(f"{repository} holds no {TENSORS}: publish it again with clipcap.weights.publish")
            return folder / TENSORS
        return Path(hf_hub_download(repository, _only(repository, commit, folder), revision=commit))


def with_commit(name: str, file: Path) -> str:
    """`hf:owner/name@COMMIT` for a name on the hub and the file that `find_on_hub` gave; any other name as it is."""
    match, commit = NAME.fullmatch(name), COMMIT.search(file.as_posix())
    return f"{PREFIX}{match[1]}@{commit[1]}" if match and commit else name


def download(repository: str, file: str, folder: Path) -> Path:
    """Download one file of a repository into a folder, past the hub's cache. Raises UserError."""
    from huggingface_hub import constants, hf_hub_download

    with spoken(repository, None):
        if constants.HF_HUB_OFFLINE:
            raise UserError("the hub is out of reach")
        return Path(hf_hub_download(repository, file, local_dir=folder))


def _describes(file: Path) -> bool:
    """Whether this is the config of a model of this project."""
    try:
        described = read_json(file)
    except UserError:
        return False
    return isinstance(described, dict) and described.get("format") == "clipcap"


def _only(repository: str, revision: str, cached: Path) -> str:
    """The name of the only `.pt` that a repository holds, or that its folder in the cache does. Raises UserError."""
    from huggingface_hub import HfApi, constants, errors

    names = [path.relative_to(cached).as_posix() for path in cached.rglob("*") if path.is_file()]
    if not constants.HF_HUB_OFFLINE:
        try:
            names = HfApi().list_repo_files(repository, revision=revision)
        except errors.HfHubHTTPError:  # the hub has a fault, or is asked too often
            if not any(name.endswith(".pt") for name in names):
                raise
    weights = [name for name in names if name.endswith(".pt")]
    if len(weights) == 1:
        return weights[0]
    listed = ", ".join(map(shown, sorted(weights or names)[:10])) or "nothing"
    found = f"several: {listed}" if weights else f"none, but {listed}"
    raise UserError(
        f"{repository} holds neither a {CONFIG} of this project nor a single file .pt ({found}): give another "
        "repository, or download the file and give its path"
    )


@contextmanager
def spoken(repository: str, revision: str | None) -> Iterator[None]:
    """Turn what the hub's client raises inside into one sentence, a UserError."""
    from huggingface_hub import constants, errors

    offline_if_unreachable()
    try:
        yield
    except UserError:
        raise
    except errors.HFValidationError as error:
        raise UserError(f"{repository[:100]} is no name on the hub ({first_line(error)[:200]})") from None
    except errors.GatedRepoError:
        raise UserError(f"{repository} is gated: accept its terms on its page on the hub, and {LOG_IN}") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"the hub has no repository {repository}, or it is private: check its spelling; for a private one {LOG_IN}"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{repository} has no revision {revision!r}: give a branch, a tag or a commit of it") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            raise _refusal(repository, error.__cause__) from None
        raise UserError(
            f"{constants.ENDPOINT} is out of reach, and {repository} is not in its cache {constants.HF_HUB_CACHE}: "
            "go online once"
        ) from None
    except errors.EntryNotFoundError:
        raise UserError(f"{repository} does not hold that file") from None
    except errors.HfHubHTTPError as error:
        raise _refusal(repository, error) from None
    except Exception as error:  # of the HTTP client
        if isinstance(error, OSError) and error.errno:  # a full disk, a folder that cannot be written
            raise
        raise UserError(f"the hub could not be asked for {repository} ({first_line(error)[:200]}); try again") from None


def _refusal(repository: str, error: Any) -> UserError:
    """The sentence for an answer of the hub that is an error of its own."""
    reason = first_line(error.server_message or error)[:200]
    advice = ADVICE.get(error.response.status_code, "try again later")
    return UserError(f"the hub refused {repository} ({reason}); {advice}")
