"""Where the Hugging Face hub is out of reach, its files are taken from the cache, without waiting for it first."""

from __future__ import annotations

import sys
from functools import cache

PATIENCE = 5  # seconds for the connection, and again for the answer
ASKED = "openai-community/gpt2/resolve/main/config.json"  # any answer will do, also that there is no such file


def offline_if_unreachable() -> None:
    """Tell the hub's client to stay offline, for the rest of this process, if the hub does not answer or answers 5xx.

    Otherwise the client tries for minutes, or for ever, for every file, even for files that are in its cache. Call this
    where something is about to be asked of the hub; it asks once.
    """
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and not _answers(constants.ENDPOINT):
        print(f"note: {constants.ENDPOINT} is out of reach; what it has sent before is used", file=sys.stderr)
        constants.HF_HUB_OFFLINE = True


@cache
def _answers(endpoint: str) -> bool:
    from huggingface_hub import get_session

    try:
        answer = get_session().head(f"{endpoint}/{ASKED}", timeout=PATIENCE, follow_redirects=False)
    except Exception:  # no name service, no route, a proxy that refuses: each layer has exceptions of its own
        return False
    return answer.status_code < 500
