"""A pause in training, for evaluation: afterwards everything is as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sft.model.base import base_of

# Attention that knows padding and a cache; anything else registered for training is set aside meanwhile.
_GENERAL_ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention")


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; then every module's mode and all random states are as before."""
    import torch

    modes = [(module, module.training) for module in model.modules()]
    try:
        with same_draws(), torch.no_grad():
            model.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def same_draws() -> Iterator[None]:
    """Whatever is drawn or seeded in the block, all random states are as before afterwards."""
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
    """Give the model whose `generate` to call, free of sampling defaults of its own; then all settings are as before.

    The adapter of a PEFT model works inside its base model, so the base model is what generates. A model's own
    `generation_config` may ask for sampling or penalties, which would silently change a greedy evaluation.
    """
    from transformers import GenerationConfig

    inner = base_of(model)
    config, own = inner.config, inner.generation_config
    use_cache, attention = getattr(config, "use_cache", None), getattr(config, "_attn_implementation", None)
    special = bool(attention) and not str(attention).startswith(_GENERAL_ATTENTION)
    head = inner.get_output_embeddings()
    # the last positions of padded prompts are a view of all, for which PyTorch multiplies by a copy of the whole output
    # layer a prompt: a third of the time of short answers
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
