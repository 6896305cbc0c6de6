"""Precisions by name, and the fastest one on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sft.config.errors import UserError

NAMES = {
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
    "half": "float16",
    "float32": "float32",
    "fp32": "float32",
    "float": "float32",
}


def resolve_dtype(name: str, *, trained: bool = False) -> Any:
    """The torch.dtype for a name.

    Args:
        name: "bf16", "float32", ... or "auto": bf16 where the hardware supports it, else fp16 on CUDA, else fp32.
        trained: the weights themselves are trained; auto is then fp32, because bf16 rounds small updates away.

    Raises:
        UserError: no such precision.
    """
    import torch

    if name == "auto":
        if trained:
            return torch.float32
        if native_bf16():
            return torch.bfloat16
        return torch.float16 if torch.cuda.is_available() else torch.float32
    if name not in NAMES:
        raise UserError(f"{name} is not a precision", where="model.dtype", remedy="one of auto, bf16, fp16, fp32")
    return getattr(torch, NAMES[name])


def autocast_dtype(trainer: Mapping[str, Any], dtype: str) -> Any:
    """The torch.dtype of autocast in training, None for no autocast.

    Args:
        trainer: the config node `trainer`; `bf16=auto` follows the weights' precision.
        dtype: `model.dtype` as configured.
    """
    import torch

    bf16 = trainer.get("bf16")
    if bf16 == "auto":
        bf16 = not trainer.get("fp16") and dtype in ("auto", "bfloat16", "bf16") and native_bf16()
    return torch.bfloat16 if bf16 else torch.float16 if trainer.get("fp16") else None


def native_bf16() -> bool:
    """Whether the device a run would use has bf16 arithmetic, rather than emulating it at a fraction of fp32's speed."""
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check() for check in checks if check)
