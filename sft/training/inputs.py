"""From a config to rows: the tokenizer, the chat template that fits the rows, the encoder, and the prepared data."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.config.build import build
from sft.data.labels import Encoder
from sft.data.pipeline import Prepared, prepare, sample_conversations
from sft.data.report import with_steps
from sft.data.spec import Dataset
from sft.model.facts import family_of
from sft.model.load import load_config, load_tokenizer
from sft.model.spec import Model
from sft.model.tokens import add_control_tokens
from sft.run.rank import world_size
from sft.template.bind import BoundTemplate, bind
from sft.template.families import Family
from sft.template.tokens import check_sentencepiece, check_tokenizer

log = logging.getLogger(__name__)


@dataclass
class Inputs:
    """All that training knows before there are weights.

    Attributes:
        model: the model's spec.
        model_config: the model's own config.
        family: what is known of its family.
        dataset: the dataset's spec.
        tokenizer: with the template's control tokens added.
        template: the chat template, bound.
        encoder: conversations to labels.
        data: training and evaluation rows with their report.
    """

    model: Model
    model_config: Any
    family: Family
    dataset: Dataset
    tokenizer: Any
    template: BoundTemplate
    encoder: Encoder
    data: Prepared


def prepare_inputs(config: Mapping[str, Any]) -> Inputs:
    """Load the tokenizer, choose the template and prepare the rows of a resolved config.

    Raises:
        UserError: anything in model, template, dataset or rows that must not train.
    """
    allowed = config.get("allow_targets") or []
    model: Model = build(config["model"], where="model", allowed=allowed)
    dataset: Dataset = build(config["dataset"], where="dataset", allowed=allowed, _recursive_=False)
    template = build(config["template"], where="template", allowed=allowed)
    model_config = load_config(model)
    family = family_of(model, model_config)
    tokenizer = load_tokenizer(model, model_config)
    sample, formats = sample_conversations(dataset)
    bound = bind(template, tokenizer, family, sample, formats)
    log.info("chat template: %s", bound.reason)
    for warning in bound.warnings:
        if warning != bound.reason:
            log.warning("%s", warning)
    added = add_control_tokens(tokenizer, bound.missing_tokens, bound.stop_tokens)
    if added:
        log.info("added to the vocabulary, their embeddings are trained: %s", ", ".join(added))
    control = [token for token in family.control_tokens if token in bound.text]
    _check_tokenizer(tokenizer, bound, control, model.tokenizer.expected_ids)
    encoder = Encoder(
        bound,
        tokenizer,
        train_on=dataset.train_on,
        masking=dataset.masking,
        history=dataset.history,
        response_template=dataset.response_template,
        instruction_template=dataset.instruction_template,
    )
    data = prepare(dataset, encoder, seed=config["seed"])
    with_steps(data.report, *_rows_per_step(config["trainer"]))
    return Inputs(model, model_config, family, dataset, tokenizer, bound, encoder, data)


def _rows_per_step(trainer: Mapping[str, Any]) -> tuple[int, bool]:
    """Rows (packs, where they are packed) that an optimizer step takes, and whether a last part of one is left out."""
    batch = trainer.get("per_device_train_batch_size", 8) * trainer.get("gradient_accumulation_steps", 1)
    return batch * world_size(), bool(trainer.get("dataloader_drop_last"))


def _check_tokenizer(tokenizer: Any, bound: BoundTemplate, control: list[str], expected: Mapping[str, int]) -> None:
    """Hold the tokenizer to the template, and to the ids that the config asks for."""
    found = check_tokenizer(
        tokenizer, stop_tokens=bound.stop_tokens, chat_tokens=control, expected_ids=dict(expected) or None
    )
    for warning in found:
        log.warning("%s", warning)
    sentencepiece = Path(tokenizer.name_or_path) / "tokenizer.model"
    if expected and sentencepiece.is_file():
        check_sentencepiece(sentencepiece, expected)
