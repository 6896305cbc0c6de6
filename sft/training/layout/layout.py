"""How rows lie in a batch, and how their loss is computed: the cheapest way that gives the model's own losses.

Documents end to end with no padding (`varlen`) where the model keeps them apart so, else side by side; the output layer
by chunks where the model does nothing else to its logits, else at once. What holds for a model is measured before the
first step on a few of the run's rows (see `isolation`), and a run whose packed documents would see each other does not
start.
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
from sft.data.batches.prefix import SharingCollator
from sft.data.documents import Rows
from sft.evaluation.undisturbed import undisturbed
from sft.kernels.attention import VARLEN, register
from sft.model.base import base_of
from sft.model.head import output_layer
from sft.model.view import original_of
from sft.training.layout.isolation import (
    TOKENS,
    Isolation,
    alone,
    alone_after,
    beginning_alike,
    compare,
    compare_sharing,
    few_documents,
)
from sft.training.layout.reentrant import Notes, notes_of, rotations_change, wrote_notes

log = logging.getLogger(__name__)

Computing = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Layout:
    """How batches are made and their loss is computed.

    Attributes:
        attention: the model's attention implementation.
        chunked: whether the output layer is applied by chunks.
        shared: whether tokens that all documents of a batch begin with are computed once.
        parallel: whether documents may be computed at the same time, by several calls of the model.
    """

    attention: str
    chunked: bool
    shared: bool = False
    parallel: bool = False

    def take(self, model: Any) -> None:
        """Set a model's attention to it."""
        base_of(model).set_attn_implementation(self.attention)

    def collator(self, pad_token_id: int) -> PaddedCollator | FlatCollator:
        """What makes batches of rows."""
        if self.shared:
            return SharingCollator()
        return FlatCollator() if self.attention == VARLEN else PaddedCollator(pad_token_id, padding_side="right")


# what was found of a base model, for the jobs of a sweep that share it: (what it was found for, the layout)
_found: weakref.WeakKeyDictionary[Any, tuple[Any, Layout]] = weakref.WeakKeyDictionary()


def lay_out(
    model: Any, parts: list[Rows], asked: str | None, computing: Computing = nullcontext, noisy: bool = False
) -> Layout:
    """Choose a run's layout; the model's attention is set to it.

    Args:
        model: with its adapter, on its device.
        parts: the rows of training and of each evaluation source.
        asked: `model.attn_implementation`; None tries varlen and falls back to the model's own.
        computing: the context that training computes its forward passes in (autocast).
        noisy: whether noise is drawn for each document's embeddings, so that documents share nothing.

    Raises:
        UserError: varlen was asked for and the model cannot take it, or packed documents are not apart.
    """
    base = base_of(model)
    register()
    own = _own_attention(base)
    packed = [rows for rows in parts if rows.packs is not None]
    longest = _window(base)
    samples = (few_documents(rows, longest and longest + TOKENS // 2) for rows in packed or parts)
    documents = next(filter(None, samples), None)
    if documents is None:
        base.set_attn_implementation(own)
        return Layout(own, chunked=False)
    drawless, heads = not noisy and _draws_nothing(model), output_layer(model) is not None
    key = (documents, asked, own, bool(packed), drawless, heads)  # the adapter of each job decides the last two
    shared = original_of(base)
    if shared not in _found or _found[shared][0] != key:
        _found[shared] = key, _measured(model, documents, asked, own, bool(packed), computing, drawless)
    layout = _found[shared][1]
    base.set_attn_implementation(layout.attention)
    return layout


def _measured(
    model: Any,
    documents: list[list[int]],
    asked: str | None,
    own: str,
    packed: bool,
    computing: Computing,
    drawless: bool,
) -> Layout:
    """The first of the candidates whose losses are those of each document alone with the model's own attention."""
    base, reasons = base_of(model), {}
    alike = beginning_alike(documents) if drawless else []
    with undisturbed(model), computing():
        base.set_attn_implementation(own)
        apart = alone(model, documents)
        apart_alike = alone_after(model, alike) if alike else []
        notes = notes_of(base)
        for layout in _candidates(model, asked, own):
            try:
                base.set_attn_implementation(layout.attention)
                _refuse_unseen(base, layout.attention)
                found = compare(model, documents, apart, output_layer(model) if layout.chunked else None)
            except (ValueError, TypeError, RuntimeError, NotImplementedError, ImportError) as error:
                reasons[layout] = str(error).split("\n")[0]
                continue
            if found.holds or not (packed or layout.attention == VARLEN or layout.chunked):
                if alike and layout.attention == VARLEN:
                    layout = _sharing(model, layout, alike, apart_alike)
                    layout = replace(layout, parallel=_may_run_at_once(base, notes))
                _tell(base, layout, found, len(documents), reasons)
                return layout
            reasons[layout] = str(found)
        base.set_attn_implementation(own)
    if asked == VARLEN:
        raise UserError(
            f"varlen attention does not give the losses of {type(base).__name__}'s own: {next(iter(reasons.values()))}",
            where="model.attn_implementation",
            remedy=f"model.attn_implementation={own}",
        )
    what = f"the documents of a pack are not apart in {type(base).__name__} with attention {own}"
    offered = getattr(base, "_supports_sdpa", False) and own != "sdpa"
    remedy = "model.attn_implementation=sdpa, or " * offered + "dataset.packing=false"
    raise UserError(f"{what}: {list(reasons.values())[-1]}", where="dataset.packing", remedy=remedy)


def _refuse_unseen(base: Any, attention: str) -> None:
    """Refuse varlen where the comparison could not tell that the model does something else.

    Raises:
        ValueError: the model does not take it, or scales queries by their place in the batch.
    """
    config = base.config.get_text_config()
    if attention == VARLEN and base.config._attn_implementation != VARLEN:
        raise ValueError(f"{type(base).__name__} computes its attention itself")
    if attention == VARLEN and getattr(config, "attn_temperature_tuning", False):
        raise ValueError("queries are scaled by their place in the batch")


def _sharing(model: Any, layout: Layout, alike: list[list[int]], apart: list[torch.Tensor]) -> Layout:
    """The layout, with common beginnings computed once where that gives the losses of documents that begin alike."""
    found = compare_sharing(model, alike, apart, output_layer(model) if layout.chunked else None)
    if not found.holds:
        log.info("what documents begin with alike is computed for each: shared, %s", found)
    return replace(layout, shared=found.holds)


def _draws_nothing(model: Any) -> bool:
    """Whether a document's hidden states depend on its tokens alone: on the CPU, and nothing is dropped."""
    if any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules()):
        return False
    config = base_of(model).config.get_text_config()
    # of these some models draw without a module of torch's
    dropped = any(getattr(config, name, None) for name in ("attention_dropout", "dropout", "activation_dropout"))
    return not dropped and model.get_input_embeddings().weight.device.type == "cpu"


def _may_run_at_once(base: Any, notes: Notes) -> bool:
    """Whether calls of the model do not meet: it is transformers' own, and has left nothing behind since `notes`."""
    wrote = wrote_notes(notes, notes_of(base))
    if wrote is not None or rotations_change(base):
        log.info(
            "batches are computed whole: %s changes module state in its forward pass (%s)",
            type(base).__name__,
            wrote or "rope",
        )
        return False
    return type(base).__module__.startswith("transformers.")


def _candidates(model: Any, asked: str | None, own: str) -> Iterator[Layout]:
    """From the cheapest on."""
    heads = [True, False] if output_layer(model) is not None else [False]
    attentions = {None: [VARLEN, own], VARLEN: [VARLEN]}.get(asked, [own])
    for attention in attentions:
        for chunked in heads:
            yield Layout(attention, chunked)


def _tell(base: Any, layout: Layout, found: Isolation, count: int, reasons: dict[Layout, str]) -> None:
    """Say what was chosen, and what was not and why."""
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
    """The model's attention before anyone switched it to varlen."""
    now = str(base.config._attn_implementation)
    if now != VARLEN:
        return now
    return "sdpa" if getattr(base, "_supports_sdpa", False) else "eager"


def _window(base: Any) -> int:
    """The tokens of the model's sliding window; 0 where it has none."""
    config = base.config.get_text_config()
    layers = getattr(config, "layer_types", None)
    if chunk := getattr(config, "attention_chunk_size", None):  # Llama 4: blocks that do not see each other
        return int(chunk)
    if getattr(config, "use_sliding_window", True) is False or (layers and "sliding_attention" not in layers):
        return 0
    return int(getattr(config, "sliding_window", None) or 0)
