"""Merge an adapter into full-precision base weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sft.config.errors import UserError
from sft.model.dtype import resolve_dtype
from sft.model.embeddings import is_tied
from sft.model.existing import check_adapter, load_adapter
from sft.model.load import load_model
from sft.model.reload import logits_of
from sft.model.save import save_model
from sft.model.spec import Model

# Largest difference of logits, as a share of the largest logit, that rounding the merged weights explains.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def merge(
    spec: Model,
    adapter: str | Path,
    output: str | Path,
    *,
    tokenizer: Any = None,
    chat_template: str | None = None,
    prompts: Sequence[Sequence[int]] | torch.Tensor | None = None,
    device: str | None = None,
    complete: Callable[[Any, Path], object] | None = None,
) -> float:
    """Write base and adapter as one plain model, after comparing it with the two of them.

    The base is loaded in full precision also when training was quantized: merging into 4-bit weights would round the
    adapter away.

    Args:
        spec: the model the adapter was trained on.
        adapter: its directory.
        output: where the merged model goes.
        tokenizer: saved with it, with `chat_template` where given.
        prompts: token ids of each prompt to compare on; some of the vocabulary's where not given.
        device: where to compute, as in `load_model`.
        complete: called with the merged model before it is written and the directory it is written into, which
            appears under its name afterwards: what else belongs into it.

    Returns:
        The largest difference between the logits of adapter and merged model, as a share of the largest logit.

    Raises:
        UserError: the adapter does not belong to the base, or the merged model differs by more than rounding.
    """
    path = check_adapter(str(adapter))
    whole = replace(spec, adapter=None)
    adapted = load_adapter(load_model(whole, device=device), path).eval()
    probes = [torch.as_tensor(ids)[None] for ids in (_probe(adapted) if prompts is None else prompts)]
    before = [logits_of(adapted, ids).cpu() for ids in probes]
    merged = unload_merged(adapted)
    difference = max(_difference(old, logits_of(merged, ids).cpu()) for old, ids in zip(before, probes, strict=True))
    if not difference <= TOLERANCE.get(resolve_dtype(spec.dtype), 1e-1):
        raise UserError(
            f"the merged model's logits differ from the adapter's by {difference:.2g} of the largest, more than rounding",
            where=str(path),
            remedy="model.dtype=float32",
        )
    save_model(merged, output, tokenizer, chat_template, complete)
    return difference


def _difference(before: torch.Tensor, after: torch.Tensor) -> float:
    """The largest difference as a share of the largest logit; infinite where a logit is no number."""
    difference = float((before - after).abs().max() / before.abs().max().clamp_min(1e-6))
    return difference if difference == difference else float("inf")


def unload_merged(adapted: Any) -> Any:
    """The base of a PeftModel with the adapter merged into its weights, in place.

    An adapter on the output layer of a model with tied embeddings gives that layer weights of its own first, or it
    would change the input embedding too.
    """
    base = adapted.base_model.model
    output = base.get_output_embeddings()
    layer = getattr(output, "base_layer", None)
    if hasattr(output, "lora_A") and layer is not None and layer.weight is _input_weight(base):
        layer.weight = torch.nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
        for config in {id(c): c for c in (base.config, base.config.get_text_config())}.values():
            config.tie_word_embeddings = False
    merged = adapted.merge_and_unload()
    if merged.config.get_text_config().tie_word_embeddings and not is_tied(merged):
        merged.tie_weights()
    return merged


def _input_weight(base: Any) -> torch.Tensor:
    embedding = base.get_input_embeddings()
    return getattr(embedding, "base_layer", embedding).weight


def _probe(model: Any) -> torch.Tensor:
    """Token ids from all over the vocabulary, [2, 32]."""
    rows = model.get_input_embeddings().weight.shape[0]
    return torch.linspace(0, rows - 1, 64).long().reshape(2, 32)
