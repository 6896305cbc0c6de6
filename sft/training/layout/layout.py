"""The batch layout and the loss computation: the cheapest that reproduce the model's own losses.

Padding-free batches (`varlen`) if the model then keeps documents isolated, else padded ones; the output layer by chunks
if the model does nothing else to its logits, else at once. What works for a model is measured before the first step on
a few of the run's rows (see `isolation`), and a run whose packed documents would attend to each other does not start.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from sft.config.errors import UserError
from sft.data.batches.collate import FlatCollator, PaddedCollator
from sft.data.batches.prefix import SharedPrefixCollator
from sft.data.documents import Rows
from sft.evaluation.eval_mode import eval_mode
from sft.kernels.attention import VARLEN, register
from sft.model.base import base_of
from sft.model.head import output_layer
from sft.model.view import original_of
from sft.training.layout.isolation import (
    TOKENS,
    Isolation,
    compare,
    compare_shared_prefix,
    losses_after_prefix,
    losses_alone,
    sample_documents,
    with_common_prefix,
)
from sft.training.layout.reentrant import ModuleState, changed_attribute, has_dynamic_rope, module_state

log = logging.getLogger(__name__)

Computing = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Layout:
    """How batches are built and how their loss is computed.

    Attributes:
        attention: the model's attention implementation.
        chunked: whether the output layer is applied by chunks.
        shared: whether the shared prefix of a batch's documents is computed once.
        parallel: whether documents may be computed concurrently, by several calls of the model.
    """

    attention: str
    chunked: bool
    shared: bool = False
    parallel: bool = False

    def apply(self, model: Any) -> None:
        """Set the model's attention implementation accordingly."""
        base_of(model).set_attn_implementation(self.attention)

    def collator(self, pad_token_id: int) -> PaddedCollator | FlatCollator:
        """The collator for this layout."""
        if self.shared:
            return SharedPrefixCollator()
        return FlatCollator() if self.attention == VARLEN else PaddedCollator(pad_token_id, padding_side="right")


# cached per base model for the jobs of a sweep that share it: (what it depends on, the layout)
_layouts: weakref.WeakKeyDictionary[Any, tuple[Any, Layout]] = weakref.WeakKeyDictionary()


def choose_layout(
    model: Any, parts: list[Rows], asked: str | None, computing: Computing = nullcontext, noisy: bool = False
) -> Layout:
    """Choose a run's layout and set the model's attention accordingly.

    Args:
        model: with its adapter, on its device.
        parts: the rows of training and of each evaluation source.
        asked: `model.attn_implementation`; None tries varlen and falls back to the model's own.
        computing: the context of training's forward passes (autocast).
        noisy: whether each document's embeddings get noise of their own, so that no prefix can be shared.

    Raises:
        UserError: varlen was requested and the model does not support it, or packed documents are not isolated.
    """
    base = base_of(model)
    register()
    own = _own_attention(base)
    packed = [rows for rows in parts if rows.packs is not None]
    longest = _sliding_window(base)
    samples = (sample_documents(rows, longest and longest + TOKENS // 2) for rows in packed or parts)
    documents = next(filter(None, samples), None)
    if documents is None:
        base.set_attn_implementation(own)
        return Layout(own, chunked=False)
    deterministic, heads = not noisy and _is_deterministic(model), output_layer(model) is not None
    key = (documents, asked, own, bool(packed), deterministic, heads)  # the last two depend on each job's adapter
    shared = original_of(base)
    if shared not in _layouts or _layouts[shared][0] != key:
        _layouts[shared] = key, _choose(model, documents, asked, own, bool(packed), computing, deterministic)
    layout = _layouts[shared][1]
    base.set_attn_implementation(layout.attention)
    return layout


def _choose(
    model: Any,
    documents: list[list[int]],
    asked: str | None,
    own: str,
    packed: bool,
    computing: Computing,
    deterministic: bool,
) -> Layout:
    """The first candidate whose losses equal those of each document alone with the model's own attention."""
    base, reasons = base_of(model), {}
    with_prefix = with_common_prefix(documents) if deterministic else []
    with eval_mode(model), computing():
        base.set_attn_implementation(own)
        separate = losses_alone(model, documents)
        separate_with_prefix = losses_after_prefix(model, with_prefix) if with_prefix else []
        state = module_state(base)
        for layout in _candidates(model, asked, own):
            try:
                base.set_attn_implementation(layout.attention)
                _refuse_undetectable(base, layout.attention)
                found = compare(model, documents, separate, output_layer(model) if layout.chunked else None)
            except (ValueError, TypeError, RuntimeError, NotImplementedError, ImportError) as error:
                reasons[layout] = str(error).split("\n")[0]
                continue
            if found.holds or not (packed or layout.attention == VARLEN or layout.chunked):
                if with_prefix and layout.attention == VARLEN:
                    layout = _with_shared_prefix(model, layout, with_prefix, separate_with_prefix)
                    layout = replace(layout, parallel=_is_reentrant(base, state))
                _log_layout(base, layout, found, len(documents), reasons)
                return layout
            reasons[layout] = str(found)
        base.set_attn_implementation(own)
    if asked == VARLEN:
        raise UserError(
            f"varlen attention does not reproduce {type(base).__name__}'s own losses: {next(iter(reasons.values()))}",
            where="model.attn_implementation",
            remedy=f"model.attn_implementation={own}",
        )
    what = f"the documents of a pack are not isolated in {type(base).__name__} with attention {own}"
    offered = getattr(base, "_supports_sdpa", False) and own != "sdpa"
    remedy = "model.attn_implementation=sdpa, or " * offered + "dataset.packing=false"
    raise UserError(f"{what}: {list(reasons.values())[-1]}", where="dataset.packing", remedy=remedy)


def _refuse_undetectable(base: Any, attention: str) -> None:
    """Refuse varlen where the comparison could not detect that the model does something else.

    Raises:
        ValueError: the model does not support it, or scales queries by their position in the batch.
    """
    config = base.config.get_text_config()
    if attention == VARLEN and base.config._attn_implementation != VARLEN:
        raise ValueError(f"{type(base).__name__} computes its attention itself")
    if attention == VARLEN and getattr(config, "attn_temperature_tuning", False):
        raise ValueError("queries are scaled by their position in the batch")


def _with_shared_prefix(
    model: Any, layout: Layout, with_prefix: list[list[int]], separate: list[torch.Tensor]
) -> Layout:
    """The layout, with shared prefixes computed once if that reproduces the documents' losses."""
    found = compare_shared_prefix(model, with_prefix, separate, output_layer(model) if layout.chunked else None)
    if not found.holds:
        log.info("the shared prefix is computed for each document: shared, %s", found)
    return replace(layout, shared=found.holds)


def _is_deterministic(model: Any) -> bool:
    """Whether a document's hidden states depend on its tokens only: on the CPU, without dropout."""
    if any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules()):
        return False
    config = base_of(model).config.get_text_config()
    # some models apply these without one of torch's modules
    dropped = any(getattr(config, name, None) for name in ("attention_dropout", "dropout", "activation_dropout"))
    return not dropped and model.get_input_embeddings().weight.device.type == "cpu"


def _is_reentrant(base: Any, state: ModuleState) -> bool:
    """Whether the model may be called concurrently: it is transformers' own, and its module state is as in `state`."""
    wrote = changed_attribute(state, module_state(base))
    if wrote is not None or has_dynamic_rope(base):
        log.info(
            "batches are computed whole: %s changes module state in its forward pass (%s)",
            type(base).__name__,
            wrote or "rope",
        )
        return False
    return type(base).__module__.startswith("transformers.")


def _candidates(model: Any, asked: str | None, own: str) -> Iterator[Layout]:
    """The candidates, cheapest first."""
    heads = [True, False] if output_layer(model) is not None else [False]
    attentions = {None: [VARLEN, own], VARLEN: [VARLEN]}.get(asked, [own])
    for attention in attentions:
        for chunked in heads:
            yield Layout(attention, chunked)


def _log_layout(base: Any, layout: Layout, found: Isolation, count: int, reasons: dict[Layout, str]) -> None:
    """Log what was chosen, and what was rejected and why."""
    tried = {each.attention: reason for each, reason in reasons.items() if each.attention != layout.attention}
    for attention, reason in tried.items():
        log.info("batches are padded: %s attention is not for %s (%s)", attention, type(base).__name__, reason)
    how = "padding-free" if layout.attention == VARLEN else "padded"
    log.info(
        "batches are %s (attention %s); packed and separate losses agree on %d of them (difference %.1e)",
        how,
        layout.attention,
        count,
        found.difference,
    )
    if layout.shared:
        log.info("the shared prefix is computed once per batch")
    if not layout.chunked:
        log.info(
            "the logits of a batch are computed at once: %s does more to them than its output layer",
            type(base).__name__,
        )


def _own_attention(base: Any) -> str:
    """The model's attention before it was switched to varlen."""
    now = str(base.config._attn_implementation)
    if now != VARLEN:
        return now
    return "sdpa" if getattr(base, "_supports_sdpa", False) else "eager"


def _sliding_window(base: Any) -> int:
    """The size of the model's sliding window in tokens; 0 without one."""
    config = base.config.get_text_config()
    layers = getattr(config, "layer_types", None)
    if chunk := getattr(config, "attention_chunk_size", None):  # Llama 4: chunked attention
        return int(chunk)
    if getattr(config, "use_sliding_window", True) is False or (layers and "sliding_attention" not in layers):
        return 0
    return int(getattr(config, "sliding_window", None) or 0)
