"""Sharded weights: FSDP2 and DeepSpeed's ZeRO stage 3, and checks of what they need."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from sft.config.checks.conflicts import shards_weights
from sft.config.errors import UserError, not_installed
from sft.config.rank import world_size
from sft.config.run_config import RunConfig


def check_sharding_supported(config: RunConfig) -> None:
    """Refuse a sharding method that this launch or this machine does not support.

    Args:
        config: resolved, plain.

    Raises:
        UserError: DeepSpeed is not installed, there is only one process, there is no GPU, or `accelerate launch` asks
            for another method than the config.
    """
    trainer = config.trainer
    # the precision is set by trainer.bf16 and recorded in config.resolved.yaml
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    for name, key in (("FSDP", "fsdp"), ("DEEPSPEED", "deepspeed")):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true" and not trainer.get(key):
            raise UserError(
                f"accelerate launch is configured to use {name}, but the run's config is not",
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
            "it needs several processes, and only one was started",
            where=key,
            remedy="torchrun --nproc-per-node=GPUS -m sft.train ..., or trainer=default",
        )
    if not has_gpu() or trainer.get("use_cpu"):
        raise UserError(
            "it needs GPUs: accelerate does not shard weights on the CPU",
            where=key,
            remedy="trainer=default, which trains in several processes too, each with all weights",
        )


def has_gpu() -> bool:
    """Whether this process has a GPU."""
    import torch

    return torch.cuda.is_available()


def with_fsdp_checkpointing(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Trainer settings that use FSDP's own activation checkpointing in place of `gradient_checkpointing`.

    Otherwise each layer would be gathered once more for the recomputation.
    """
    found = dict(settings)
    if found.get("fsdp") and found.get("gradient_checkpointing"):
        found["gradient_checkpointing"] = False
        found["fsdp_config"] = {**(found.get("fsdp_config") or {}), "activation_checkpointing": True}
    return found


def gather_full_weights(trainer: Any) -> dict[str, Any] | None:
    """All weights of a trained model on rank 0; None where they are not sharded. Every rank must call it."""
    if not shards_weights({"trainer": {"fsdp": trainer.is_fsdp_enabled, "deepspeed": trainer.args.deepspeed}}):
        return None
    model = trainer.model_wrapped if trainer.is_deepspeed_enabled else trainer.model
    found: dict[str, Any] = trainer.accelerator.get_state_dict(model)
    return found
