"""Load a saved adapter in the ordinary way, and compare it with the trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sft.model.adapters.existing import load_adapter
from sft.model.load import load_model
from sft.model.spec import Model


def load_adapted(spec: Model, directory: str | Path, quant: Any = None, **options: Any) -> Any:
    """The base of a spec with a saved adapter over it, in eval mode.

    Args:
        spec: the model the adapter was trained on.
        directory: the adapter.
        quant: as in training, because a quantized base differs from the plain one.
        **options: further arguments of `load_model`.
    """
    return load_adapter(load_model(spec, quant, **options), directory).eval()


@torch.no_grad()
def logits_of(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """fp32 logits [batch, length, vocabulary] in eval mode; the model's mode is restored afterwards."""
    training = model.training
    model.eval()
    try:
        return model(input_ids=input_ids.to(next(model.parameters()).device)).logits.float()
    finally:
        model.train(training)


def verify_reload(
    trained: Any, directory: str | Path, spec: Model, input_ids: torch.Tensor, quant: Any = None
) -> float:
    """The largest difference between the logits of a trained model and of its saved adapter over a fresh base.

    Args:
        trained: the PeftModel (or fully trained model) that was saved into `directory`.
        directory: the adapter, or the whole model after full fine-tuning.
        spec: the model it was trained on.
        input_ids: token ids [batch, length] to compare on.
        quant: the quantization it was trained with.

    Returns:
        0.0 where the reload is exact; rounding for adapters that were converted (PiSSA, OLoRA).
    """
    device = str(next(trained.parameters()).device)
    if (Path(directory) / "adapter_config.json").is_file():
        again = load_adapted(spec, directory, quant, device=device)
    else:
        from dataclasses import replace

        again = load_model(replace(spec, name=str(directory), adapter=None), device=device)
    return float((logits_of(trained, input_ids) - logits_of(again, input_ids)).abs().max())
