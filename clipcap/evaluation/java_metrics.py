"""METEOR and SPICE, computed by the Java programs in pycocoevalcap, which is an optional extra."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from clipcap.errors import UserError
from clipcap.evaluation.metrics import References, Tokens


def java_scorer(name: str) -> Callable[[Sequence[Tokens], References], float]:
    """Start the Java program of "meteor" or "spice". Both know English words only.

    Returns:
        A function from candidates and references to the score of the corpus.

    Raises:
        UserError: there is no Java that works or no pycocoevalcap, or, when SPICE runs for the first time, its models
            cannot be downloaded.
    """
    if not shutil.which("java"):
        raise UserError(f"{name} runs on Java and there is no `java` on the PATH: install one or leave {name} out")
    try:
        from pycocoevalcap.meteor.meteor import Meteor
        from pycocoevalcap.spice.spice import Spice
    except ImportError:
        raise UserError(f"{name} needs pycocoevalcap (and Java): pip install pycocoevalcap, or leave it out") from None
    failures = (OSError, ValueError, subprocess.SubprocessError)
    failed = f"{name} failed ({{}}): see the messages above, or leave it out"
    try:
        scorer = {"meteor": Meteor, "spice": Spice}[name]()
        scorer.lock = threading.RLock()  # METEOR's own stays locked after an error: the next call would wait for ever
    except failures as error:
        raise UserError(failed.format(error)) from None

    def score(candidates: Sequence[Tokens], references: References) -> float:
        captions = {i: [" ".join(tokens)] for i, tokens in enumerate(candidates)}
        truths = {i: [" ".join(tokens) for tokens in texts] for i, texts in enumerate(references)}
        try:
            return float(scorer.compute_score(truths, captions)[0])
        except failures as error:
            _end(getattr(scorer, "meteor_p", None))
            raise UserError(failed.format(error)) from None

    score([["a", "cat"]], [[["a", "cat"]]])  # a Java that is not there, or has no memory, shows before any captioning
    return score


def _end(process: Any) -> None:
    """End METEOR's Java after an error, and show what it said, which pycocoevalcap leaves in a pipe."""
    if process is None or process.stdin.closed:
        return
    process.kill()
    process.wait()
    with suppress(OSError):  # there is nobody to read what is still to be written
        process.stdin.close()
    os.set_blocking(process.stderr.fileno(), False)  # Java may have started others, who hold the pipe open
    print((process.stderr.read() or b"").decode(errors="replace"), end="", file=sys.stderr)
