"""Without a network, files of the Hugging Face hub are taken from its cache, without waiting for the network first."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


def offline_if_unreachable() -> None:
    """Tell the hub's client to stay offline if the hub's name cannot be looked up.

    Otherwise it would try for half a minute for every file, even for files that are in its cache.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or any(os.environ.get(proxy) for proxy in PROXIES):
        return
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        constants.HF_HUB_OFFLINE = True
