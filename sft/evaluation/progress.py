"""Progress messages of a long evaluation."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)


def told_now_and_then(what: str, unit: str = "", every: float = 20.0) -> Callable[[int, int], None]:
    """A progress function, called with how many are done and how many there are, that logs a line now and then.

    Args:
        what: is made ("verdicts").
        unit: what is counted, where that is something else ("rows").
        every: seconds between two lines.
    """
    last = [time.monotonic()]

    def progress(done: int, total: int) -> None:
        if time.monotonic() - last[0] > every and done < total:
            last[0] = time.monotonic()
            log.info("%s: %d of %d%s", what, done, total, f" {unit}" if unit else "")

    return progress
