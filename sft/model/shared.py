"""One base model for the jobs of a sweep: loaded and quantized once, lent to each job, taken back as it was.

A job that leaves a parameter or buffer changed has the base to itself: it is not lent again. Changes are seen without
a pass over the data, for every tensor counts the writes to it (`_version`).
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sft.config.errors import Pruned
from sft.model.adapters.attach import detach
from sft.model.base import base_of
from sft.model.view import original_of

log = logging.getLogger(__name__)

State = dict[str, tuple[int, int, int]]


@dataclass
class _Kept:
    """The base that is kept: what it was loaded from, itself, and the state of its tensors."""

    key: str
    model: Any
    state: State


_kept: _Kept | None = None


def lend(key: str, load: Callable[[], Any]) -> Any:
    """The kept base if it was loaded from the same `key`; else it is given up, and `load` called for another to keep.

    Args:
        key: everything that the base depends on (model, revision, precision, quantization, device).
        load: loads it.
    """
    global _kept
    if _kept is not None and _kept.key == key:
        log.info("the base model of the job before is used again")
        return _kept.model
    give_up()
    model = load()
    _kept = _Kept(key, model, state_of(model))
    return model


def give_up() -> None:
    """Free the kept base; before a job loads its own, or two would lie in memory."""
    global _kept
    if _kept is not None:
        _kept = None
        gc.collect()


@contextmanager
def lent(model: Any) -> Iterator[None]:
    """For the time of a job's training: afterwards the adapter is taken off a lent base, and a changed one given up.

    A job that failed may have left anything, so its base is not lent again.
    """
    try:
        yield
    except Pruned:
        take_back(model)
        raise
    except BaseException:
        if _kept is not None and original_of(base_of(model)) is base_of(model):  # of a view others go on with the base
            give_up()
        raise
    take_back(model)


def take_back(model: Any) -> None:
    """Take the adapter off a lent base, for the next one; a base that was changed is given up. Others are left alone."""
    base = base_of(model)
    if _kept is None or base is not _kept.model:
        return
    detach(model)
    if state_of(base) != _kept.state:
        log.info("the job changed its base model's weights; the next one loads its own")
        give_up()


def state_of(model: Any) -> State:
    """{name: (object, address, writes)} of every parameter and buffer: equal exactly while nothing was written."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: (id(tensor), tensor.data_ptr(), tensor._version) for name, tensor in tensors}
