"""Where the Hugging Face hub is out of reach, its files are taken from the cache, without waiting for it first."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

PATIENCE = 5  # seconds for the connection, and again for the answer
ASKED = "openai-community/gpt2/resolve/main/config.json"  # any answer will do, also that there is no such file


def offline_if_unreachable() -> None:
    """Tell the hub's client to stay offline, for the rest of this process, if the hub does not answer or answers 5xx.

    Otherwise the client tries for minutes, or for ever, for every file, even for files that are in its cache. Call this
    where something is about to be asked of the hub; it asks once. A hub that falls silent later has the same effect.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return
    if _answers(constants.ENDPOINT):
        _limit_answers()
    else:
        _stay_offline()


def _stay_offline() -> None:
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE:
        print(f"note: {constants.ENDPOINT} is out of reach; what it has sent before is used", file=sys.stderr)
    constants.HF_HUB_OFFLINE = True


def _limit_answers() -> None:
    """Give the hub's client the time limit that it lacks for what it reads; stay offline once that has passed."""
    from huggingface_hub import get_session

    session = get_session()
    if "send" in vars(session):
        return
    send = session.send

    def send_for_a_while(request: Any, **options: Any) -> Any:
        limits = request.extensions.get("timeout", {})
        if request.method in ("GET", "HEAD"):  # the hub may take longer to store what is written
            limits = {kind: 2 * PATIENCE if limit is None else limit for kind, limit in limits.items()}
            request.extensions = {**request.extensions, "timeout": limits}
        try:
            return send(request, **options)
        except Exception as error:
            if type(error).__name__ in ("ConnectTimeout", "ReadTimeout"):  # of httpx, or of what has its place
                _stay_offline()
            raise

    vars(session)["send"] = send_for_a_while


@cache
def _answers(endpoint: str) -> bool:
    from huggingface_hub import get_session

    try:
        answer = get_session().head(f"{endpoint}/{ASKED}", timeout=PATIENCE, follow_redirects=False)
    except Exception:  # no name service, no route, a proxy that refuses: each layer has exceptions of its own
        return False
    return answer.status_code < 500
