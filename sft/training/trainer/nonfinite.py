"""Non-finite losses and gradients: the run stops, or the step is skipped. Either way the rows are named and kept."""

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

IN_A_ROW = 20  # this many skipped steps in a row stop the run: nothing is being learnt
NAMED = 24  # number of rows named in a message; the file has all


class NonFinite(RuntimeError):
    """A NaN or an infinity in the loss or the gradient.

    Attributes:
        what: "loss" or "gradient".
        rows: the batch's rows, as text.
        step: the current optimizer step, from 1.
    """

    def __init__(self, what: str, rows: str, step: int, kept: str | None = None) -> None:
        self.what, self.rows, self.step = what, rows, step
        super().__init__(
            f"{nonfinite_message(what, rows, step, kept)}; a lower trainer.learning_rate, trainer.max_grad_norm=1.0 or "
            "model.dtype=float32 often fixes it, and on_nonfinite=skip skips such steps"
        )


class Guard:
    """Checks the steps of a run for non-finite values.

    Args:
        policy: "stop" raises NonFinite, "skip" makes the trainer skip the step.
        run: the run directory in which the rows are kept; None keeps none.
        rows: the training rows, to look up tokens.
        tokenizer: decodes them to text.
        ranks: the processes that train together: they share what one finds, see `settle`.

    Attributes:
        batches: the batches of the current step, as the collator returned them.
        found: "loss" or "gradient" if this step has a non-finite one, else None.
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
        self._reported: list[tuple[str, Mapping[str, Any]]] = []
        self.batches: list[Mapping[str, Any]] = []
        self.found: str | None = None

    def begin(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """Begin a step of these batches."""
        self.batches, self.found, self._reported = list(batches), None, []

    def about_step(self) -> dict[str, list[Any]]:
        """Source, row and length of each document in all batches of the step."""
        parts = [split_batch(batch)[1] for batch in self.batches]
        return {key: [item for part in parts for item in part.get(key, ())] for key in ("source", "row", "lengths")}

    def rows_of_step(self) -> str:
        """The step's rows as text for messages."""
        return describe(self.about_step())

    def handle(self, what: str, about: Mapping[str, Any], step: int) -> None:
        """Handle a non-finite loss or gradient of these rows: keep the rows, then stop the run or note it.

        With several processes it is only noted: the others wait for this one's gradients.

        Raises:
            NonFinite: with policy "stop".
        """
        if self.ranks.is_distributed:
            self.found = self.found or what
            self._reported.append((what, about))
            return
        self._respond(what, about, step)

    def synchronize(self, step: int) -> None:
        """After the gradients of a step: all processes react in the same way to what any of them has found.

        Raises:
            NonFinite: with policy "stop".
        """
        if not self.ranks.is_distributed or not self.ranks.all_reduce_max(int(self.found is not None)):
            return
        every = [reported for part in self.ranks.gather(self._reported) for reported in part]
        # a non-finite loss makes all gradients non-finite
        what = "loss" if any(kind == "loss" for kind, _ in every) else "gradient"
        parts = [about for kind, about in every if kind == what]
        about = {key: [item for part in parts for item in part.get(key, ())] for key in ("source", "row", "lengths")}
        self.found = None
        self._respond(what, about, step)

    def _respond(self, what: str, about: Mapping[str, Any], step: int) -> None:
        first = self.found is None
        self.found = self.found or what
        kept = self._keep(what, about, step)
        if self.policy == "stop":
            raise NonFinite(what, describe(about), step, kept)
        if first:
            log.warning("%s; the step is skipped", nonfinite_message(what, describe(about), step, kept))

    def _keep(self, what: str, about: Mapping[str, Any], step: int) -> str | None:
        """Write the rows with their tokens into nonfinite_step-<step>.jsonl; return its name."""
        if self.run is None:
            return None
        name = f"nonfinite_step-{step}.jsonl"
        for source, row, length in zip(about["source"], about["row"], about["lengths"], strict=True):
            line = {"step": step, "what": what, "source": source, "row": row, **self._tokens(source, row, length)}
            self.run.append_jsonl(name, line)
        return name

    def _tokens(self, source: str, row: int, length: int) -> dict[str, Any]:
        """File, tokens, labels and texts of a document; {} if the rows do not contain it."""
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


def nonfinite_message(what: str, rows: str, step: int, kept: str | None = None) -> str:
    """ "the loss of step 3 is not finite on tickets rows 4, 7 (kept in nonfinite_step-3.jsonl)"."""
    at, where = f" on {rows}" if rows else "", f" (kept in {kept})" if kept else ""
    return f"the {what} of step {step} is not finite{at}{where}"


def describe(about: Mapping[str, Any], named: int = NAMED) -> str:
    """A batch's rows as "source rows 3, 7; other rows 1", at most `named` of them."""
    by_source: dict[str, list[str]] = {}
    pairs = list(zip(about.get("source", ()), about.get("row", ()), strict=False))
    for source, row in pairs[:named]:
        by_source.setdefault(str(source), []).append(str(row))
    text = "; ".join(f"{source} rows {', '.join(rows)}" for source, rows in by_source.items())
    return f"{text} and {len(pairs) - named} more" if len(pairs) > named else text
