"""The rows that a model is evaluated on, read as its training read them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sft.data.conversations import evaluation_conversations
from sft.data.documents import Rows
from sft.data.pipeline import prepare_evaluation
from sft.inference.subject import Subject, has_tokenizer, unchanged
from sft.run.record import read_record
from sft.training.inputs import Reading, prepare_reading
from sft.training.resume.identity import with_recorded_day

log = logging.getLogger(__name__)


@dataclass
class EvaluationRows:
    """Rows by source, and how the model reads them.

    Attributes:
        reading: tokenizer, chat template and the dataset's spec.
        rows: encoded rows by source.
    """

    reading: Reading
    rows: dict[str, Rows]

    @property
    def control(self) -> list[str]:
        """The chat template's own tokens, as training made room for them."""
        return [token for token in self.reading.family.control_tokens if token in self.reading.template.text]

    def conversations(self, limit: int | None) -> dict[str, list[dict[str, Any]]]:
        """The conversations behind the rows, at most `limit` of each source."""
        return evaluation_conversations(self.reading.dataset, self.rows, limit)


def evaluation_rows(config: Mapping[str, Any], subject: Subject) -> EvaluationRows:
    """The run's own evaluation rows, or with another `dataset` the rows of that.

    Of another dataset `eval_sources` are evaluated where it has some, else all rows: none of them was trained on. Its
    conversations without a system message get the one of the training.

    Raises:
        UserError: what `prepare_reading` and `prepare_evaluation` raise.
    """
    own = subject.run is not None and unchanged(config, subject.run, "dataset")
    config = {"trainer": {}, "allow_targets": [], **config}
    if subject.run is not None:
        config = with_recorded_day(config, read_record(subject.run))
    if not own and subject.info and subject.info.system and not (config["template"] or {}).get("system"):
        config["template"] = {**config["template"], "system": subject.info.system}
    if subject.adapter is None and subject.run is not None:
        config["model"] = {**config["model"], "name": subject.spec.name, "revision": None, "adapter": None}
    if subject.run is None and subject.adapter is not None:
        config = _as_trained(config, subject)
    reading = prepare_reading(config)
    rows = prepare_evaluation(reading.dataset, reading.encoder, seed=config["seed"], whole=not own)
    if not own and not reading.dataset.eval_sources:
        reading.dataset = replace(reading.dataset, eval_sources=reading.dataset.sources)
    log.info("evaluated: %s", ", ".join(f"{name} {len(each.documents):,} rows" for name, each in rows.items()))
    return EvaluationRows(reading, rows)


def _as_trained(config: Mapping[str, Any], subject: Subject) -> dict[str, Any]:
    """The tokenizer and the chat template that lie beside an adapter without its run, unless the config names others."""
    model, template = dict(config["model"]), dict(config["template"] or {})
    own = dict(model.get("tokenizer") or {})
    if subject.adapter is not None and has_tokenizer(subject.adapter) and not own.get("name"):
        model["tokenizer"] = {**own, "name": str(subject.adapter)}
    if subject.info and subject.info.template and template.get("name", "auto") == "auto":
        template |= {"name": "file", "text": subject.info.template}
    return {**config, "model": model, "template": template}
