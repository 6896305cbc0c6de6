"""transformers settings that need a GPU, another library, or a limit here; what cannot work is refused by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from sft.config.errors import UserError, not_installed

# Liger's losses would replace ours; its kernels for norms, rotary embeddings and gated layers are used.
LIGER_LOSSES = {"cross_entropy": False, "fused_linear_cross_entropy": False}


def supported(settings: Mapping[str, Any], cuda: bool) -> dict[str, Any]:
    """The trainer's settings with those limits, after checking that everything they need is available.

    Args:
        settings: arguments of TrainingArguments.
        cuda: whether training is on CUDA.

    Raises:
        UserError: a setting needs something that is not available.
    """
    found = dict(settings)
    limit = found.get("max_tokens_per_batch")
    if limit is not None and limit < 1:
        raise UserError(
            f"{limit} is not a number of tokens", where="trainer.max_tokens_per_batch", remedy="null, or 4096"
        )
    if found.get("use_liger_kernel"):
        _liger(found, cuda)
    if found.get("tf32") and not cuda:
        raise UserError("TF32 needs an NVIDIA GPU, and none is used", where="trainer.tf32", remedy="trainer.tf32=null")
    if found.get("fp16") and not cuda:
        raise UserError("fp16 needs a GPU, and none is used", where="trainer.fp16", remedy="trainer.bf16=auto")
    return found


def _liger(found: dict[str, Any], cuda: bool) -> None:
    if not cuda:
        raise UserError(
            "Liger's kernels run on GPUs, and none is used",
            where="trainer.use_liger_kernel",
            remedy="trainer.use_liger_kernel=false",
        )
    if importlib.util.find_spec("liger_kernel") is None:
        raise not_installed("liger-kernel", "liger", "trainer.use_liger_kernel")
    asked = dict(found.get("liger_kernel_config") or {})
    wrong = next((name for name in LIGER_LOSSES if asked.get(name)), None)
    if wrong:
        raise UserError(
            "the loss is computed by chunks, at trained positions only; Liger's would replace it",
            where=f"trainer.liger_kernel_config.{wrong}",
            remedy="leave it out",
        )
    found["liger_kernel_config"] = {**asked, **LIGER_LOSSES}
