"""Whether the hub can be reached, checked once before anything is loaded from it.

huggingface_hub retries each request of each file five times with growing pauses: half a minute and more without a
network. One request of a few seconds shows the same, and cached files are then found without further requests.
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

TIMEOUT = 5.0  # seconds for the request, including name lookup and connection
TRUSTED = 60.0  # seconds for which the result is reused: config, tokenizer and weights are loaded one after another

_asked: dict[str, tuple[float, str | None]] = {}


@contextmanager
def cached_files_if_unreachable(name: str) -> Iterator[None]:
    """Within the block, load only from the local cache if `name` is a hub id and the hub is unreachable.

    It ends with the block: a push hours later tries the network again.

    Args:
        name: hub id, or a local directory, for which no request is made.
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
    """Why `endpoint` does not answer, or None if it does, with any status.

    The answer is kept for `TRUSTED` seconds; the first failure is logged.
    """
    when, reason = _asked.get(endpoint, (float("-inf"), None))
    if time.monotonic() - when > TRUSTED:
        reason = _ask(endpoint)
        _asked[endpoint] = (time.monotonic(), reason)
        if reason is not None:
            logger.warning("%s cannot be reached (%s): only locally cached files are used", endpoint, reason)
    return reason


def _ask(endpoint: str) -> str | None:
    """One request with huggingface_hub's own session, so that its proxies and certificates apply.

    In a separate thread, because request timeouts do not cover the name lookup.
    """
    found: list[str | None] = []

    def request() -> None:
        """Make the request and record why there is no answer; None where there is one."""
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
