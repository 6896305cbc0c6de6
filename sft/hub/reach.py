"""Whether the hub can be reached, asked once before anything is loaded from it.

huggingface_hub retries each request of each file five times with growing pauses: half a minute and more without a
network. One request of a few seconds tells the same, and files that are cached are then found without asking again.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)

TIMEOUT = 5.0  # seconds of the one request; name lookup and connection included
TRUSTED = 60.0  # seconds for which its answer holds: config, tokenizer and weights are loaded one after another

_asked: dict[str, tuple[float, str | None]] = {}


@contextmanager
def cached_files_if_unreachable(name: str) -> Iterator[None]:
    """For the time of the block, load from the local cache alone if `name` is of the hub and the hub is unreachable.

    It ends with the block: a push hours later asks the network again.

    Args:
        name: hub id, or a local directory, for which nothing is asked.
    """
    from huggingface_hub import constants

    if os.path.exists(name) or constants.is_offline_mode() or unreachable(constants.ENDPOINT) is None:
        yield
        return
    modules: list[Any] = [constants, *(module for module in [sys.modules.get("datasets.config")] if module is not None)]
    before = [module.HF_HUB_OFFLINE for module in modules]
    try:
        for module in modules:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


def unreachable(endpoint: str) -> str | None:
    """Why no answer comes from `endpoint`, or None where one does, whatever its status.

    The answer is kept for `TRUSTED` seconds; the first failure is logged.
    """
    when, reason = _asked.get(endpoint, (float("-inf"), None))
    if time.monotonic() - when > TRUSTED:
        reason = _ask(endpoint)
        _asked[endpoint] = (time.monotonic(), reason)
        if reason is not None:
            logger.warning("%s cannot be reached (%s): only files that are cached here are used", endpoint, reason)
    return reason


def _ask(endpoint: str) -> str | None:
    """One request with huggingface_hub's own session, so that its proxies and certificates count.

    In a thread of its own, for no timeout of a request covers the lookup of the name.
    """
    found: list[str | None] = []

    def request() -> None:
        """Ask once, and note why there is no answer; None where there is one."""
        from huggingface_hub.utils import get_session

        try:
            get_session().head(endpoint, timeout=TIMEOUT, follow_redirects=False)
        except Exception as error:  # httpx's or httpx2's, by the version of huggingface_hub
            found.append(" ".join(str(error).split()) or type(error).__name__)
        else:
            found.append(None)

    thread = threading.Thread(target=request, name="hub", daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    return found[0] if found else f"no answer within {TIMEOUT:g} s"
