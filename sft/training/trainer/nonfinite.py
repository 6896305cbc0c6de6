"""A loss or gradient that is no number: the run stops, or the step is left out. Its rows are named and kept either way."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sft.data.batches.collate import split_batch
from sft.data.documents import IGNORE, Rows
from sft.distributed.ranks import Ranks
from sft.run.directory import RunDirectory

log = logging.getLogger(__name__)

IN_A_ROW = 20  # so many steps left out one after another stop the run: nothing is being learnt
NAMED = 24  # rows that a message names; the file has all


class NonFinite(RuntimeError):
    """A NaN or an infinity in the loss or the gradient.

    Attributes:
        what: "loss" or "gradient".
        rows: the batch's rows, as text.
        step: the optimizer step being made, from 1.
    """

    def __init__(self, what: str, rows: str, step: int, kept: str | None = None) -> None:
        self.what, self.rows, self.step = what, rows, step
        super().__init__(
            f"{finding(what, rows, step, kept)}; a lower trainer.learning_rate, trainer.max_grad_norm=1.0 or "
            "model.dtype=float32 often mends it, and on_nonfinite=skip leaves such steps out"
        )


class Guard:
    """Watches the steps of a run for non-finite values.

    Args:
        policy: "stop" raises NonFinite, "skip" lets the trainer leave the step out.
        run: where the rows are kept; None keeps none.
        rows: the training rows, to look tokens up in.
        tokenizer: makes them text.
        ranks: the processes that train together: what one meets is everyone's, see `settle`.

    Attributes:
        batches: the batches of the step being made, as the collator gave them.
        found: "loss" or "gradient" where this step has met one, None so far.
    """

    def __init__(
        self,
        policy: str = "stop",
        run: RunDirectory | None = None,
        rows: Rows | None = None,
        tokenizer: Any = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.policy, self.run, self.rows, self.tokenizer = policy, run, rows, tokenizer
        self.ranks = ranks or Ranks()
        self._met: list[tuple[str, Mapping[str, Any]]] = []
        self.batches: list[Mapping[str, Any]] = []
        self.found: str | None = None

    def begin(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """A step begins, of these batches."""
        self.batches, self.found, self._met = list(batches), None, []

    def about_step(self) -> dict[str, list[Any]]:
        """Source, row and length of each document of the step, all its batches together."""
        parts = [split_batch(batch)[1] for batch in self.batches]
        return {key: [item for part in parts for item in part.get(key, ())] for key in ("source", "row", "lengths")}

    def rows_of_step(self) -> str:
        """The step's rows as a message names them."""
        return describe(self.about_step())

    def meet(self, what: str, about: Mapping[str, Any], step: int) -> None:
        """A loss or gradient of these rows is no number: keep the rows, then stop or note it.

        One of several processes only notes it: the others wait for this one's gradients.

        Raises:
            NonFinite: with policy "stop".
        """
        if self.ranks.many:
            self.found = self.found or what
            self._met.append((what, about))
            return
        self._answer(what, about, step)

    def settle(self, step: int) -> None:
        """At the end of a step's gradients: what any of several processes has met is answered by all alike.

        Raises:
            NonFinite: with policy "stop".
        """
        if not self.ranks.many or not self.ranks.most(int(self.found is not None)):
            return
        every = [met for part in self.ranks.gather(self._met) for met in part]
        what = "loss" if any(kind == "loss" for kind, _ in every) else "gradient"  # a loss makes all gradients none
        parts = [about for kind, about in every if kind == what]
        about = {key: [item for part in parts for item in part.get(key, ())] for key in ("source", "row", "lengths")}
        self.found = None
        self._answer(what, about, step)

    def _answer(self, what: str, about: Mapping[str, Any], step: int) -> None:
        first = self.found is None
        self.found = self.found or what
        kept = self._keep(what, about, step)
        if self.policy == "stop":
            raise NonFinite(what, describe(about), step, kept)
        if first:
            log.warning("%s; the step is left out", finding(what, describe(about), step, kept))

    def _keep(self, what: str, about: Mapping[str, Any], step: int) -> str | None:
        """Write the rows with their tokens into nonfinite_step-<step>.jsonl; gives its name."""
        if self.run is None:
            return None
        name = f"nonfinite_step-{step}.jsonl"
        for source, row, length in zip(about["source"], about["row"], about["lengths"], strict=True):
            line = {"step": step, "what": what, "source": source, "row": row, **self._tokens(source, row, length)}
            self.run.append_jsonl(name, line)
        return name

    def _tokens(self, source: str, row: int, length: int) -> dict[str, Any]:
        """File, tokens, labels and texts of a document; {} where the rows do not have it."""
        if self.rows is None or source not in self.rows.names:
            return {}
        table = self.rows.documents
        same = (table.source == self.rows.names.index(source)) & (table.row == row) & (table.length == length)
        members = np.flatnonzero(same)
        if not len(members):
            return {}
        document = self.rows.document(int(members[0]))
        found = {"where": self.rows.where(int(members[0]))}
        if self.tokenizer is not None:
            trained = [token for token in document["labels"] if token != IGNORE]
            found["text"] = self.tokenizer.decode(document["input_ids"])
            found["trained_text"] = self.tokenizer.decode(trained)
        return {**found, "input_ids": document["input_ids"], "labels": document["labels"]}


def finding(what: str, rows: str, step: int, kept: str | None = None) -> str:
    """ "the loss of step 3 is not finite on tickets rows 4, 7 (kept in nonfinite_step-3.jsonl)"."""
    at, where = f" on {rows}" if rows else "", f" (kept in {kept})" if kept else ""
    return f"the {what} of step {step} is not finite{at}{where}"


def describe(about: Mapping[str, Any], named: int = NAMED) -> str:
    """A batch's rows as "source rows 3, 7; other rows 1"; so many of them."""
    by_source: dict[str, list[str]] = {}
    pairs = list(zip(about.get("source", ()), about.get("row", ()), strict=False))
    for source, row in pairs[:named]:
        by_source.setdefault(str(source), []).append(str(row))
    text = "; ".join(f"{source} rows {', '.join(rows)}" for source, rows in by_source.items())
    return f"{text} and {len(pairs) - named} more" if len(pairs) > named else text
