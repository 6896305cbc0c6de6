"""Adapters that are initialized from the base weights (PiSSA, OLoRA, ...) or for a quantized base (LoftQ).

PiSSA (https://arxiv.org/abs/2404.02948) and OLoRA (https://arxiv.org/abs/2406.01775) factor part of a weight W into
the adapter and leave the rest in the base: W = W' + s B0 A0. What training changes, s (B A - B0 A0), is an adapter of
twice the rank over the plain W, and is saved as one. LoftQ (https://arxiv.org/abs/2310.08659) fits the adapter to what
quantization lost and leaves the quantized base alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from sft.model.spec import MUTATING, Model
from sft.run.disk.atomic import replacing


def keep_initial(adapted: Any, config: Any) -> None:
    """Keep the initial values of an adapter that was taken out of the base; does nothing for others."""
    if str(config.init_lora_weights).startswith(MUTATING):
        state = peft_state(adapted)
        adapted._sft_initial = {k: v.detach().clone() for k, v in state.items() if ".lora_A." in k or ".lora_B." in k}


def peft_state(adapted: Any) -> dict[str, torch.Tensor]:
    """The adapter's tensors under the names they are saved by."""
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(adapted, save_embedding_layers=False)


def convert_saved(adapted: Any, directory: Path) -> None:
    """Rewrite a saved adapter so that it loads on the plain base: B A - B0 A0 as one adapter of twice the rank."""
    initial = getattr(adapted, "_sft_initial", None)
    if not initial:
        return
    from safetensors.torch import load_file, save_file

    path = directory / "adapter_model.safetensors"
    state = load_file(path)
    for name, start in initial.items():
        start = start.to(state[name])
        joined = (
            torch.cat([state[name], start], dim=0) if ".lora_A." in name else torch.cat([state[name], -start], dim=1)
        )
        state[name] = joined.contiguous()
    with replacing(path) as beside:  # load_file returned the old file itself, mapped into memory
        save_file(state, beside, metadata={"format": "pt"})
    path = directory / "adapter_config.json"
    config = json.loads(path.read_text())
    # scaling is alpha / r, or alpha / sqrt(r) with rank-stabilized LoRA, and has to stay the same
    factor = 2**0.5 if config.get("use_rslora") else 2
    config.update(init_lora_weights=True, r=2 * config["r"], lora_alpha=factor * config["lora_alpha"])
    config["rank_pattern"] = {k: 2 * v for k, v in (config.get("rank_pattern") or {}).items()}
    config["alpha_pattern"] = {k: factor * v for k, v in (config.get("alpha_pattern") or {}).items()}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


@torch.no_grad()
def loftq_start(adapted: Any, spec: Model) -> None:
    """Set A and B of each adapted layer to the best rank-r fit of W minus its quantized self (LoftQ, one step).

    Loads the full-precision base once more, on the CPU, and frees it afterwards.
    """
    from transformers import AutoModelForCausalLM

    name = spec.locate()
    full = AutoModelForCausalLM.from_pretrained(
        name, revision=spec.revision or "main", trust_remote_code=spec.trust_remote_code
    )
    for path, module in adapted.base_model.model.named_modules():
        if not hasattr(module, "lora_A") or "default" not in module.lora_A:
            continue
        source: Any = full.get_submodule(path)
        weight = source.weight.T if type(source).__name__ == "Conv1D" else source.weight
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        residual = weight.to(a.device, torch.float32) - dequantize(module.get_base_layer()).to(a.device)
        rank = a.shape[0]
        u, s, v = torch.svd_lowrank(
            residual, q=min(2 * rank, *residual.shape), niter=8
        )  # takes a tenth of the time of the exact SVD
        root = (s[:rank] / module.scaling["default"]).sqrt()
        a.copy_(root[:, None] * v.T[:rank])
        b.copy_(u[:, :rank] * root)


def dequantize(layer: Any) -> torch.Tensor:
    """The fp32 weight [out, in] that a quantized linear layer computes with."""
    from peft.utils.integrations import dequantize_module_weight

    return dequantize_module_weight(layer).detach().float()
