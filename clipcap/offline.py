"""Without a network, files of the Hugging Face hub come from its cache, at once or not at all."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


def offline_if_unreachable() -> None:
    """Tell the hub's client to stay offline where the hub's name cannot be looked up.

    It would otherwise try for half a minute, for every file, and also for files that its cache holds.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or any(os.environ.get(proxy) for proxy in PROXIES):
        return
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        constants.HF_HUB_OFFLINE = True
