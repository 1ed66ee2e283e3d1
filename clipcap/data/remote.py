"""Files of a data set of the Hugging Face hub, read over the network, range by range; none is downloaded whole."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial
from pathlib import PurePosixPath
from typing import TypeVar

from huggingface_hub import HfApi, HfFileSystem, constants
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError
from huggingface_hub.hf_file_system import HfFileSystemFile
from huggingface_hub.utils import logging

from clipcap.data.examples import split_name
from clipcap.data.patterns import expand_braces
from clipcap.data.reading import short
from clipcap.errors import UserError, first_line
from clipcap.offline import offline_if_unreachable
from clipcap.weights.hub import spoken

NAME = re.compile(
    r"hf:(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>refs/(?:convert|pr)/\w+|\w[\w.-]*))?(?:/(?P<files>.+))?",
    re.ASCII,
)
CONVERTED = "refs/convert/parquet"  # where the hub keeps what it made of other formats
WAITS = (5, 30, 120)  # seconds between attempts, each of which is several of the hub's client
PASSING = (408, 429)  # request timeout, too many requests

T = TypeVar("T")


def find_files(place: str, ending: str) -> tuple[str, dict[str, Callable[[], HfFileSystemFile]]]:
    """The files of `hf:owner/name`, of `hf:owner/name@REVISION`, or those of `hf:owner/name/data/train-*`.

    Of a repository without any, those that the hub made of it. HF_TOKEN opens private ones.

    Returns:
        The place with its commit, whose files never change, and for each file, by its name, what opens it.

    Raises:
        UserError: it is no such name, the hub is out of reach or does not give this repository, it has no such files,
            or those of several configurations. Opening a file and reading it raise UserError where the hub no longer
            answers.
    """
    match = NAME.fullmatch(place)
    if not match:
        raise UserError(f"{short(place)} is no data set of the hub; write hf:owner/name, or hf:owner/name/data/train-*")
    repository, revision, pattern = match.group("repository", "revision", "files")
    logging.set_verbosity_error()  # its warnings about each attempt: `_patiently` tells of them
    offline_if_unreachable()
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{constants.ENDPOINT} is out of reach, and {place} is read from there: go online")
    with spoken(repository, revision):
        commit, names = _list(repository, revision, ending)
        if not names and revision is None:
            try:
                commit, names = _list(repository, CONVERTED, ending)
            except RevisionNotFoundError:
                names = []
    if not names:
        raise UserError(f"{place} has no {ending} files; --source hub reads other formats")
    if pattern:
        wanted = [*expand_braces(pattern)]
        names = [name for name in names if any(fnmatchcase(name, one) for one in wanted)]
    if not names:
        raise UserError(f"{place} matches none of the {ending} files of {repository}; look at their names on its page")
    folders = {PurePosixPath(name).parts[0] for name in names if "/" in name}
    if not pattern and len(folders := {folder for folder in folders if not split_name(folder, "")}) > 1:
        told = ", ".join(short(folder)[1:-1] for folder in sorted(folders)[:10])
        raise UserError(
            f"{repository} holds several data sets ({told}): give one of them, such as "
            f"hf:{repository}{f'@{revision}' if revision else ''}/{min(folders)}/*"
        )
    root = f"datasets/{repository}@{commit}"
    files: dict[str, Callable[[], HfFileSystemFile]] = {
        name: partial(_open, f"{root}/{name}") for name in sorted(names)
    }
    return f"hf:{repository}@{commit}" + (f"/{pattern}" if pattern else ""), files


def _list(repository: str, revision: str | None, ending: str) -> tuple[str, list[str]]:
    """The commit that a revision stands for, and its files with this ending."""
    info = HfApi().dataset_info(repository, revision=revision)
    names = [file.rfilename for file in info.siblings or ()]
    return info.sha or "", [name for name in names if name.endswith(ending) and ".." not in name.split("/")]


def _open(path: str) -> HfFileSystemFile:
    return _patiently(lambda: _Ranges(HfFileSystem(), path, cache_type="none"), path)  # no more than is asked for


class _Ranges(HfFileSystemFile):
    """A file of the hub that outlives an interrupted connection."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        def fetch() -> bytes:
            content = super(_Ranges, self)._fetch_range(start, end)
            if len(content) > end - start:
                raise UserError(
                    f"{self.path} comes whole, not by ranges, from the hub or a proxy before it: download the data "
                    "set, and give its files to --source parquet"
                )
            if len(content) < end - start:
                raise OSError(f"{len(content)} bytes came, not {end - start}")
            return content

        return _patiently(fetch, self.path)


def _patiently(ask: Callable[[], T], path: str) -> T:
    """What `ask` returns, which is tried again for some minutes. Raises UserError."""
    for wait in (*WAITS, None):
        try:
            return ask()
        except UserError:
            raise
        except Exception as error:  # of the hub's client and of its HTTP client
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
            reason = f"status {status}" if status else first_line(error)[:200]
            if wait is None or ((status or 500) < 500 and status not in PASSING):
                raise UserError(
                    f"{path} could not be read from the hub ({reason}); run the same command again to go on"
                ) from None
            print(f"note: the hub broke off ({reason}); trying again in {wait} s", file=sys.stderr)
            time.sleep(wait)
            constants.HF_HUB_OFFLINE = False  # as `offline` makes it after a silence: it did answer when this began
    raise AssertionError
