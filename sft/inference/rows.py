"""The rows that a model is evaluated on, processed as in its training."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sft.config.run_config import RunConfig
from sft.data.conversations import evaluation_conversations
from sft.data.documents import Rows
from sft.data.pipeline import prepare_evaluation
from sft.inference.model_source import ModelSource, has_tokenizer, unchanged
from sft.run.record import read_record
from sft.training.inputs import Preprocessing, build_preprocessing
from sft.training.resume.identity import with_recorded_day

log = logging.getLogger(__name__)


@dataclass
class EvaluationRows:
    """Rows by source, with their preprocessing.

    Attributes:
        preprocessing: tokenizer, chat template and the dataset's spec.
        rows: encoded rows by source.
    """

    preprocessing: Preprocessing
    rows: dict[str, Rows]

    @property
    def control(self) -> list[str]:
        """The chat template's control tokens, for which training added embeddings."""
        return [
            token for token in self.preprocessing.family.control_tokens if token in self.preprocessing.template.text
        ]

    def conversations(self, limit: int | None) -> dict[str, list[dict[str, Any]]]:
        """The conversations behind the rows, at most `limit` of each source."""
        return evaluation_conversations(self.preprocessing.dataset, self.rows, limit)


def evaluation_rows(config: Mapping[str, Any], model_source: ModelSource) -> EvaluationRows:
    """The run's own evaluation rows, or those of another `dataset`.

    Of another dataset the `eval_sources` are evaluated if it has some, else all rows, because none was trained on. Its
    conversations without a system message get that of the training.

    Raises:
        UserError: what `build_preprocessing` and `prepare_evaluation` raise.
    """
    own = model_source.run is not None and unchanged(config, model_source.run, "dataset")
    config = RunConfig({"trainer": {}, **config})
    if model_source.run is not None:
        config = with_recorded_day(config, read_record(model_source.run))
    if not own and model_source.info and model_source.info.system and not config.template.get("system"):
        config = config.with_(template=config.template.with_(system=model_source.info.system))
    if model_source.adapter is None and model_source.run is not None:
        whole = config.model.with_(name=model_source.spec.name, revision=None, adapter=None)
        config = config.with_(model=whole)
    if model_source.run is None and model_source.adapter is not None:
        config = _as_trained(config, model_source)
    preprocessing = build_preprocessing(config)
    rows = prepare_evaluation(preprocessing.dataset, preprocessing.encoder, seed=config.seed, whole=not own)
    if not own and not preprocessing.dataset.eval_sources:
        preprocessing.dataset = replace(preprocessing.dataset, eval_sources=preprocessing.dataset.sources)
    log.info("evaluated: %s", ", ".join(f"{name} {len(each.documents):,} rows" for name, each in rows.items()))
    return EvaluationRows(preprocessing, rows)


def _as_trained(config: RunConfig, model_source: ModelSource) -> RunConfig:
    """The config with the tokenizer and chat template beside a bare adapter, unless it names others."""
    model, template = dict(config.model), dict(config.template)
    own = dict(model.get("tokenizer") or {})
    if model_source.adapter is not None and has_tokenizer(model_source.adapter) and not own.get("name"):
        model["tokenizer"] = {**own, "name": str(model_source.adapter)}
    if model_source.info and model_source.info.template and template.get("name", "auto") == "auto":
        template |= {"name": "file", "text": model_source.info.template}
    return config.with_(model=model, template=template)
