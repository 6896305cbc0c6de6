"""Signals, for the time of a block."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def taken(numbers: Iterable[int], handler: Callable[[int, Any], object]) -> Iterator[None]:
    """Have these signals handled by `handler(number, frame)` while the block runs, and as before when it has ended.

    Outside the main thread, where Python delivers none, nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
