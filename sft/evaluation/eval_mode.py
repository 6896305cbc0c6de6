"""Evaluation during training without side effects: modes, random states and settings are restored."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sft.model.base import base_of

# Attention that supports padding and a cache; any other one registered for training is replaced meanwhile.
_GENERAL_ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention")


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module's mode and all random states are restored."""
    import torch

    modes = [(module, module.training) for module in model.modules()]
    try:
        with preserve_rng_state(), torch.no_grad():
            model.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Restore all random states after the block, whatever it draws or seeds."""
    import numpy
    import torch

    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        numpy.random.set_state(numpy_state)


@contextmanager
def ready_to_generate(model: Any) -> Iterator[Any]:
    """Yield the model whose `generate` to call, without its own sampling defaults; afterwards all settings are
    restored.

    The base model is used, because the adapter of a PEFT model is inside it. A model's own `generation_config` may ask
    for sampling or penalties, which would silently change a greedy evaluation.
    """
    from transformers import GenerationConfig

    inner = base_of(model)
    config, own = inner.config, inner.generation_config
    use_cache, attention = getattr(config, "use_cache", None), getattr(config, "_attn_implementation", None)
    special = bool(attention) and not str(attention).startswith(_GENERAL_ATTENTION)
    head = inner.get_output_embeddings()
    # the last positions of padded prompts are a view, for which PyTorch would copy the whole output layer per prompt:
    # a third of the time of short answers
    hook = head.register_forward_pre_hook(lambda layer, given: (given[0].contiguous(),)) if head is not None else None
    try:
        inner.generation_config = GenerationConfig()
        if use_cache is not None:
            config.use_cache = True
        if special:
            inner.set_attn_implementation("sdpa")
        yield inner
    finally:
        if hook is not None:
            hook.remove()
        if special:
            inner.set_attn_implementation(attention)
        if use_cache is not None:
            config.use_cache = use_cache
        inner.generation_config = own
