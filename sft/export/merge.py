"""Merge an adapter into full-precision base weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sft.config.errors import UserError
from sft.export.reload import logits_of
from sft.model.adapters.existing import check_adapter, layers_without_bias, load_adapter, no_bias
from sft.model.dtype import resolve_dtype
from sft.model.embeddings import is_tied
from sft.model.load import load_model
from sft.model.save import save_model
from sft.model.spec import Model

log = logging.getLogger(__name__)

SHARE = 1e-2  # share of the adapter's effect on the logits by which the merge may differ, in fp32
FLOOR = 1e-4  # share of the largest logit: the smallest effect that is assumed, for adapters with (almost) none


@dataclass(frozen=True)
class MergeDeviation:
    """The largest difference in logits between a merged model and the adapter over its base, in fp32.

    Attributes:
        difference: as a share of the adapter's effect (its largest change of a logit), before the weights are rounded.
        rounding: the same with the weights rounded as they are written.
    """

    difference: float
    rounding: float


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
) -> MergeDeviation:
    """Write base and adapter as one plain model, after comparing it with the unmerged pair.

    The base is loaded in full precision even if training was quantized: merging into 4-bit weights would round the
    adapter away. Merge and comparison are in fp32; the weights are rounded to `spec.dtype` when they are written.

    Args:
        spec: the model the adapter was trained on.
        adapter: its directory.
        output: where the merged model goes.
        tokenizer: saved with it, with `chat_template` where given.
        prompts: token ids of each prompt to compare on; ids from all over the vocabulary where not given.
        device: where to compute, as in `load_model`; the CPU where an accelerator has too little memory for fp32.
        complete: called with the merged model and its temporary directory before it is written, to add further files.

    Raises:
        UserError: the adapter does not belong to the base, cannot be merged, or the merged model differs from it.
    """
    path = check_adapter(str(adapter))
    try:
        merged, found = _merged(replace(spec, adapter=None), path, prompts, device)
    except torch.OutOfMemoryError:
        log.warning("too little memory for the model in fp32 on the accelerator: merging on the CPU")
        merged, found = _merged(replace(spec, adapter=None), path, prompts, "cpu")
    _check(found, spec, path)
    save_model(merged, output, tokenizer, chat_template, complete)
    return found


def _check(found: MergeDeviation, spec: Model, adapter: Path) -> None:
    """Refuse a merge that changes what the adapter does, and warn of weights whose rounding changes it."""
    if not found.difference <= SHARE:
        raise UserError(
            f"the merged model's logits differ from the adapter's by {found.difference:.2g} of the adapter's effect, "
            "more than rounding",
            where=str(adapter),
            remedy="use the adapter over its base as it is",
        )
    if found.rounding > 0.1:
        log.warning(
            "rounding the merged weights to %s changes the logits by %.0f%% of the adapter's effect; "
            "model.dtype=float32 keeps it",
            str(resolve_dtype(spec.dtype)).removeprefix("torch."),
            100 * found.rounding,
        )


def _merged(spec: Model, path: Path, prompts: Any, device: str | None) -> tuple[Any, MergeDeviation]:
    base = load_model(spec, device=device)
    dtypes = {name: weight.dtype for name, weight in base.named_parameters()}
    adapted = load_adapter(base.float(), path).float().eval()
    probes = [torch.as_tensor(ids)[None] for ids in (_probe(adapted) if prompts is None else prompts)]
    wanted = [logits_of(adapted, ids).cpu() for ids in probes]
    with adapted.disable_adapter():
        plain = [logits_of(adapted, ids).cpu() for ids in probes]
    largest = max(float(each.abs().max()) for each in wanted)
    effect = max(_largest(wanted, plain), FLOOR * largest, 1e-6)
    merged = unload_merged(adapted)
    difference = _largest(wanted, [logits_of(merged, ids).cpu() for ids in probes]) / effect
    default = next(iter(dtypes.values()))
    rounded = {name: dtypes.get(name, default) for name, _ in merged.named_parameters()}
    if set(rounded.values()) == {torch.float32}:
        return merged, MergeDeviation(difference, difference)
    for name, weight in merged.named_parameters():
        weight.data = weight.data.to(rounded[name]).float()
    rounding = _largest(wanted, [logits_of(merged, ids).cpu() for ids in probes]) / effect
    for name, weight in merged.named_parameters():
        weight.data = weight.data.to(rounded[name])
    return merged, MergeDeviation(difference, rounding)


def _largest(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> float:
    """The largest difference; infinite where a logit is NaN."""
    found = max(float((one - other).abs().max()) for one, other in zip(first, second, strict=True))
    return found if found == found else float("inf")


def unload_merged(adapted: Any) -> Any:
    """The base of a PeftModel with the adapter merged into its weights, in place.

    An adapter on the input embedding or on the output layer of a model that ties the two gives the output layer
    weights of its own first, or it would change the other one too.

    Raises:
        UserError: the adapter's layers have a bias of their own, and the base's have none to add it to.
    """
    base = adapted.base_model.model
    output, inputs = base.get_output_embeddings(), base.get_input_embeddings()
    layer = getattr(output, "base_layer", output)
    adapts = any(hasattr(each, "lora_A") or hasattr(each, "lora_embedding_A") for each in (output, inputs))
    if output is not None and adapts and layer.weight is _input_weight(base):
        layer.weight = torch.nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
        for config in {id(c): c for c in (base.config, base.config.get_text_config())}.values():
            config.tie_word_embeddings = False
    if lacking := layers_without_bias(adapted):
        raise no_bias(lacking)
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
