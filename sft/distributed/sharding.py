"""Weights in shares, one for each process: FSDP2 and DeepSpeed's ZeRO stage 3. What that needs, checked before a start."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from sft.config.checks.conflicts import spreads
from sft.config.errors import UserError, not_installed
from sft.config.rank import world_size


def refuse_unspreadable(config: Mapping[str, Any]) -> None:
    """Refuse a way of spreading that this start or this machine does not offer.

    Args:
        config: resolved, plain.

    Raises:
        UserError: DeepSpeed is not installed, one process was started, there is no GPU, or `accelerate launch` asks for
            another way than the config.
    """
    trainer = config["trainer"]
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)  # trainer.bf16 says it, and config.resolved.yaml has it
    for name, key in (("FSDP", "fsdp"), ("DEEPSPEED", "deepspeed")):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true" and not trainer.get(key):
            raise UserError(
                f"accelerate launch was told to use {name}, and the run's config says nothing of it",
                where=f"trainer.{key}",
                remedy=f"trainer={'fsdp' if key == 'fsdp' else 'deepspeed_zero3'}, and accelerate launch without it",
            )
    if trainer.get("deepspeed") and importlib.util.find_spec("deepspeed") is None:
        raise not_installed("DeepSpeed", "deepspeed", "trainer.deepspeed")
    key = "trainer.fsdp" if trainer.get("fsdp") else "trainer.deepspeed"
    if not (trainer.get("fsdp") or trainer.get("deepspeed")):
        return
    if world_size() == 1:
        raise UserError(
            "it is for several processes, and one was started",
            where=key,
            remedy="torchrun --nproc-per-node=GPUS -m sft.train ..., or trainer=default",
        )
    if not has_gpu() or trainer.get("use_cpu"):
        raise UserError(
            "it is for GPUs: accelerate leaves the weights of processes on the CPU whole",
            where=key,
            remedy="trainer=default, which trains on several processes too, each with all weights",
        )


def has_gpu() -> bool:
    """Whether this process has one."""
    import torch

    return torch.cuda.is_available()


def with_own_checkpointing(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Trainer settings in which FSDP itself drops activations where `gradient_checkpointing` asks for it.

    Each layer would otherwise be gathered once more for what is computed twice.
    """
    found = dict(settings)
    if found.get("fsdp") and found.get("gradient_checkpointing"):
        found["gradient_checkpointing"] = False
        found["fsdp_config"] = {**(found.get("fsdp_config") or {}), "activation_checkpointing": True}
    return found


def whole_weights(trainer: Any) -> dict[str, Any] | None:
    """All weights of a trained model on rank 0; None where every process has them whole. Every rank calls it."""
    if not spreads({"trainer": {"fsdp": trainer.is_fsdp_enabled, "deepspeed": trainer.args.deepspeed}}):
        return None
    model = trainer.model_wrapped if trainer.is_deepspeed_enabled else trainer.model
    found: dict[str, Any] = trainer.accelerator.get_state_dict(model)
    return found
