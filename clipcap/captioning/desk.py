"""What the page of app.py does for its visitors: caption an upload, accept a caption, forget a session."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from threading import Lock
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from clipcap.captioning.accepted import LONGEST_SIDE, Accepted, keep, zipped
from clipcap.captioning.options import CaptionArguments, DecodingArguments, chosen
from clipcap.clip.images import UnreadableImage, open_image
from clipcap.devices import in_own_thread, single_threaded
from clipcap.errors import UserError, shown
from clipcap.files import write_whole
from clipcap.page import small_jpeg

if TYPE_CHECKING:
    from clipcap.captioning.captioner import Captioner

CHOICES = 3  # captions to choose from
MOST_SESSIONS = 100  # whose accepted pictures are in memory
MOST_ACCEPTED = 500  # by one of them
LINGER = 1800  # seconds without use after which a session goes whose page is closed, or has lost its connection
IDLE = 86400  # seconds without use after which any session goes
CONTROLS = {  # options of predict.py, and what the page says about them
    "method": "how captions are searched for: samples, or the likeliest",
    "temperature": "of nucleus: below 1 is safer, above 1 bolder",
    "seed": "of nucleus: another number gives other captions",
    "hashtags": "#hashtags in captions",
    "emoji": "emoji in captions",
    "max_hashtags": "most hashtags in a caption",
    "max_chars": "most characters of a caption",
    "start_with": "captions go on from it",
    "ban": "words that no caption holds, with commas between them",
    "require": "words of which one of the captions holds each, with commas between them",
    "length": "for weights that were trained with this control",
    "emoji_count": "for weights that were trained with this control",
    "hashtag_count": "for weights that were trained with this control",
}

OPTIONS = {field.name: field for field in (*fields(DecodingArguments), *fields(CaptionArguments))}


def loader(
    weights: Mapping[str, str],
    clip: str | None,
    device: str,
    precision: str,
    base: str | None,
    normalize: bool | None,
) -> Callable[[str], Captioner]:
    """What loads the weights of a name, and remembers two of them.

    Args:
        weights: name -> a file, or the name of published weights.
        clip: as `Captioner.load` takes it; device, precision and normalize likewise.
        base: what the LoRA weights among them were trained on, if it has moved.
    """
    loading = Lock()  # else two visitors' loads, side by side, would need memory for both, and leave one thread

    @lru_cache(2)
    def load(name: str) -> Captioner:
        from clipcap.captioning.captioner import Captioner
        from clipcap.weights.places import base_among

        of_adapters = base_among(weights[name], base)
        with loading, single_threaded():
            return Captioner.load(weights[name], clip, device, precision, base=of_adapters, normalize=normalize)

    return load


def value_of(name: str, given: str) -> Any:
    """What a visitor has typed or chosen -> the value of an option. Raises UserError for what is no number."""
    kind = str(OPTIONS[name].type)
    if name in ("ban", "require"):
        return given.split(",")
    try:
        return int(given) if "int" in kind else float(given) if "float" in kind else given
    except ValueError:
        raise UserError(f"{name} must be a {'whole ' * ('int' in kind)}number, not {shown(given)}") from None


@dataclass
class Session:
    """What one visitor has uploaded, what was captioned last and by which weights, and what was accepted.

    Attributes:
        used: when it was used last, as `time.monotonic` has it.
        left: whether its page was closed, or has lost its connection, at least once.
    """

    upload: Path | None = None
    picture: bytes = b""
    weights: str = ""
    accepted: list[Accepted] = field(default_factory=list)
    download: Path | None = None
    used: float = 0.0
    left: bool = False

    def check(self, photo: str) -> None:
        """Raise a UserError if this is not the upload any more: Gradio takes another while captions are written."""
        if self.upload != Path(photo):
            raise UserError(
                "the picture was changed while its captions were written: write them again, or if that does not help, "
                "upload it again"  # where a full queue has refused to tell of the upload
            )


class Desk:
    """Answers the visitors. What belongs to a session goes some time after its visitor has left.

    Args:
        load: name of weights -> their captioner.
        folder: where uploads and downloads are, and nothing else: `sweep` deletes what is old.
        kept: a folder for what is accepted; None to keep nothing.
    """

    def __init__(self, load: Callable[[str], Captioner], folder: Path, kept: Path | None) -> None:
        self.load, self.folder, self.kept = load, folder, kept
        self.sessions: dict[str, Session] = {}

    def captions(
        self, key: str, photo: str | None, weights: str, asked: dict[str, str | None]
    ) -> tuple[list[str], str]:
        """Captions of an upload to choose from, and what there is to say about them. Raises UserError."""
        session = self._session(key)
        if photo:
            self._hold(session, session.upload or Path(photo))
            session.check(photo)
        if not photo or not Path(photo).is_file():
            raise UserError("there is no picture: upload one")
        options = {name: value_of(name, given) for name, given in asked.items() if given}
        of_search = {field.name for field in fields(DecodingArguments)}
        decoding, rules = chosen(
            DecodingArguments(**{name: options[name] for name in options.keys() & of_search}),
            CaptionArguments(num_captions=CHOICES, **{name: options[name] for name in options.keys() - of_search}),
        )
        if rules.has_fields:
            raise UserError("an upload has neither folder nor date: leave {folder} and {date} out")
        try:
            picture = small_jpeg(open_image(photo, min_side=LONGEST_SIDE), LONGEST_SIDE)
        except UnreadableImage as error:
            raise UserError(f"this picture cannot be used: {error.reason}") from None
        try:
            captioner = self.load(weights)
        except UserError as error:  # it may name places on this computer
            print(f"weights {weights}: {error}", file=sys.stderr)
            raise UserError(f"the weights {weights} cannot be loaded here: choose others") from None
        [row] = in_own_thread(lambda: [*captioner.rows([photo], decoding, rules, workers=0)])
        session.check(photo)  # first, since a picture that was replaced is deleted
        if row.error is not None:
            raise UserError(f"this picture gets no caption: {row.error}")
        session.picture, session.weights = picture, weights
        few = f"only {len(row.captions)} different captions were found" if len(row.captions) < CHOICES else ""
        return row.captions, "; ".join(filter(None, [few, row.note]))

    def accept(self, key: str, caption: str, written: str | None, rating: int | None) -> tuple[Path, int]:
        """Accept a caption for the picture that was captioned last -> the ZIP of all accepted, and their number.

        Raises:
            UserError: there is no picture, the caption or the rating is none, or the disk is full.
        """
        session = self._session(key)
        if not session.picture:
            raise UserError("there is no picture with captions yet: upload one, and write captions")
        if len(session.accepted) >= MOST_ACCEPTED:
            raise UserError(f"{MOST_ACCEPTED} captions are accepted: download them, and load the page again for more")
        accepted = Accepted(session.picture, caption, written or "", session.weights, rating)
        try:
            session.download = session.download or Path(tempfile.mkdtemp(dir=self.folder)) / "accepted.zip"
            write_whole(session.download, zipped([*session.accepted, accepted]))
            if self.kept:
                keep(accepted, self.kept)
        except OSError as error:
            raise UserError(f"the caption could not be stored ({error.strerror}): try again later") from None
        session.accepted.append(accepted)
        return session.download, len(session.accepted)

    def change(self, key: str, photo: str | None) -> None:
        """Take the picture away that was captioned last, when its visitor chooses another, or none."""
        session = self._session(key)
        session.picture = b""
        self._hold(session, Path(photo) if photo else None)

    def leave(self, key: str) -> None:
        """The page of a session is closed, or its connection has ended: which of the two, nobody knows."""
        if session := self.sessions.get(key):
            session.left, session.used = True, monotonic()

    def sweep(self) -> None:
        """Forget the sessions that were not used for so long that nobody will come back to them.

        Old files that belong to none go too: pictures that came only in part, or whose visitor left at once.
        """
        for key, session in [*self.sessions.items()]:
            if monotonic() - session.used > (LINGER if session.left else IDLE):
                self.forget(key)
        held = {file for session in [*self.sessions.values()] for file in (session.upload, session.download)}
        for file in {*self.folder.rglob("*")} - held:
            with suppress(OSError):
                if file.is_file() and time() - file.stat().st_mtime > LINGER:
                    file.unlink()

    def forget(self, key: str) -> None:
        """Delete all that belongs to a session."""
        session = self.sessions.pop(key, Session())
        self._hold(session, None)
        if session.download:
            with suppress(OSError):  # Windows deletes no file that is being sent: `sweep` tries again
                session.download.unlink(missing_ok=True)

    def _hold(self, session: Session, photo: Path | None) -> None:
        """Make this the upload of a session, and delete the one before, if nobody else has it.

        The page names uploads by their content: two visitors with the same picture have one file.
        """
        before, session.upload = session.upload, photo
        if before and before not in [other.upload for other in [session, *self.sessions.values()]]:
            with suppress(OSError):  # it is gone, or a folder, or being sent
                before.unlink()

    def _session(self, key: str) -> Session:
        """The session of a visitor, which is used now.

        Where there are too many, one goes whose visitor has left, or else the one unused for the longest time.
        """
        if key not in self.sessions and len(self.sessions) >= MOST_SESSIONS:
            self.forget(min([*self.sessions.items()], key=lambda item: not item[1].left)[0])
        session = self.sessions.pop(key, Session())
        session.used = monotonic()
        self.sessions[key] = session
        return session
