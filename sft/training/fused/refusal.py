"""Reasons why a run trains by itself in a fused sweep: from its config before it starts, and from its model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sft.config.run_config import RunConfig
from sft.model.spec import MUTATING

OWN = "sft.training.arguments.Arguments"
_SPECIAL = {
    "use_dora": "DoRA scales whole layers",
    "modules_to_save": "lora.modules_to_save trains weights of the base",
    "trainable_token_indices": "rows of the embeddings are trained",
    "target_parameters": "lora.target_parameters adapts what is not a linear layer",
    "layer_replication": "lora.layer_replication changes the base",
}


def why_config_alone(config: Mapping[str, Any]) -> str | None:
    """Why a resolved config cannot be fused; None if it can.

    Args:
        config: resolved, plain, without Hydra's node.
    """
    config = RunConfig.of(config)
    lora, trainer, model = config.lora, config.trainer, config.model
    if lora is None:
        return "all weights are trained"
    if model.get("adapter"):
        return "it starts from an adapter (model.adapter)"
    for key, why in _SPECIAL.items():
        if lora.get(key):
            return why
    start = str(lora.get("init_lora_weights", True))
    if start.startswith((*MUTATING, "loftq", "corda", "eva")):
        return f"lora.init_lora_weights={start} changes the base or reads it"
    if str(lora.get("bias", "none")) != "none":
        return "biases are trained"
    if trainer.get("torch_compile"):
        return "it is compiled"
    if trainer.get("fp16"):
        return "fp16 scales each job's loss by itself"
    if trainer.get("_target_", OWN) != OWN:
        return f"{trainer['_target_']} computes its steps"
    if config.profile:
        return "it is profiled"
    return None


def why_alone(trainer: Any) -> str | None:
    """Why a run that is about to train cannot be fused; None if it can."""
    from peft.tuners.lora.layer import Linear, LoraLayer

    from sft.data.batches.collate import FlatCollator
    from sft.kernels.lowrank import is_linear, only_adapter
    from sft.model.base import base_of
    from sft.model.view import original_of
    from sft.training.layout.reentrant import has_dynamic_rope

    base = base_of(trainer.model)
    if original_of(base) is base:
        return "its base model is its own"
    if not isinstance(trainer.data_collator, FlatCollator):
        return "its batches are padded"
    if has_dynamic_rope(base):
        return "the longest document of a batch decides how positions are rotated"
    config = base.config.get_text_config()
    if any(getattr(config, name, None) for name in ("attention_dropout", "dropout", "activation_dropout")):
        return "the base model has dropout of its own"
    layers: list[Any] = [module for module in base.modules() if isinstance(module, LoraLayer)]
    plain = [layer for layer in layers if is_linear(layer, Linear) and only_adapter(layer)]
    own = {id(parameter) for layer in plain for parameter in layer.parameters() if parameter.requires_grad}
    trained = {id(parameter) for parameter in trainer.model.parameters() if parameter.requires_grad}
    if len(plain) < len(layers) or trained != own:
        return "not all that it trains are plain adapters of linear layers"
    if base.get_output_embeddings() in layers:
        return "the output layer is adapted"
    return None
