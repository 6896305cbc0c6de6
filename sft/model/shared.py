"""A base model shared by the jobs of a sweep: loaded and quantized once, borrowed by each job, released unchanged.

A base with a changed parameter or buffer is discarded and not shared again. Changes are detected without a pass over
the data, because every tensor counts the writes to it (`_version`).
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

TensorVersions = dict[str, tuple[int, int, int]]


@dataclass
class _SharedBase:
    """The shared base: its key, the model, and the versions of its tensors."""

    key: str
    model: Any
    state: TensorVersions


_shared: _SharedBase | None = None


def acquire_base(key: str, load: Callable[[], Any]) -> Any:
    """The shared base if it was loaded with the same `key`; otherwise discard it, and load and keep another.

    Args:
        key: everything that the base depends on (model, revision, precision, quantization, device).
        load: loads it.
    """
    global _shared
    if _shared is not None and _shared.key == key:
        log.info("the base model of the previous job is reused")
        return _shared.model
    discard_base()
    model = load()
    _shared = _SharedBase(key, model, tensor_versions(model))
    return model


def discard_base() -> None:
    """Free the shared base, so that a job which loads its own does not have two in memory."""
    global _shared
    if _shared is not None:
        _shared = None
        gc.collect()


@contextmanager
def borrowed_base(model: Any) -> Iterator[None]:
    """Context of a job's training: afterwards a borrowed base is released.

    A failed job may have left it in any state, so its base is discarded.
    """
    try:
        yield
    except Pruned:
        release_base(model)
        raise
    except BaseException:
        # of a view others go on with the base
        if _shared is not None and original_of(base_of(model)) is base_of(model):
            discard_base()
        raise
    release_base(model)


def release_base(model: Any) -> None:
    """Remove the adapter from a borrowed base, for the next job; discard a changed base. Other models are not
    touched."""
    base = base_of(model)
    if _shared is None or base is not _shared.model:
        return
    detach(model)
    if tensor_versions(base) != _shared.state:
        log.info("the job changed its base model's weights; the next job loads its own")
        discard_base()


def tensor_versions(model: Any) -> TensorVersions:
    """{name: (object, address, writes)} of every parameter and buffer: unchanged as long as nothing is written."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: (id(tensor), tensor.data_ptr(), tensor._version) for name, tensor in tensors}
