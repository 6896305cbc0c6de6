"""From a config to rows: the tokenizer, the chat template that fits the rows, the encoder, and the prepared data."""

from __future__ import annotations

import logging
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sft.config.build import build
from sft.config.errors import UserError
from sft.config.rank import local_rank, world_size
from sft.config.run_config import RunConfig
from sft.data.batches.by_tokens import TokenBatches
from sft.data.cache import Cache
from sft.data.labels.encoder import Encoder
from sft.data.labels.unmatched import refuse_unmatched
from sft.data.pipeline import Prepared, prepare, sample_conversations
from sft.data.report.report import with_steps
from sft.data.spec import Dataset
from sft.distributed.ranks import Ranks
from sft.model.facts import family_of
from sft.model.load import load_config, load_tokenizer
from sft.model.spec import Model
from sft.model.tokens import add_control_tokens
from sft.run.phases import mark
from sft.template.bind import BoundTemplate, bind
from sft.template.families import Family
from sft.template.tokens import check_sentencepiece, check_tokenizer

log = logging.getLogger(__name__)


@dataclass
class Preprocessing:
    """How a model reads rows: everything known before rows and weights are loaded.

    Attributes:
        model: the model's spec.
        model_config: the model's own config.
        family: facts about its model family.
        dataset: the dataset's spec.
        tokenizer: with the template's control tokens added.
        template: the chat template, bound.
        encoder: turns conversations into token ids and labels.
        sample: some conversations of every source.
    """

    model: Model
    model_config: Any
    family: Family
    dataset: Dataset
    tokenizer: Any
    template: BoundTemplate
    encoder: Encoder
    sample: list[dict[str, Any]]


@dataclass
class Inputs(Preprocessing):
    """Everything training knows before the weights are loaded.

    Attributes:
        data: training and evaluation rows with their report.
    """

    data: Prepared


def prepare_inputs(config: Mapping[str, Any], cache_root: Path | None = None) -> Inputs:
    """Load the tokenizer, choose the template and prepare the rows of a resolved config.

    Args:
        config: resolved, plain.
        cache_root: cache tokenized rows here, even with `dataset.cache=false`; None: the usual cache.

    Raises:
        UserError: any problem with model, template, dataset or rows.
    """
    config = RunConfig.of(config)
    preprocessing = build_preprocessing(config, cache_root)
    data = prepare(preprocessing.dataset, preprocessing.encoder, seed=config.seed, cache_root=cache_root)
    fill_steps_per_epoch(data, config)
    return Inputs(**vars(preprocessing), data=data)


def prepare_on_all_ranks(config: RunConfig, ranks: Ranks) -> Inputs:
    """Prepare the inputs in each of several processes: rank 0 tokenizes, the others read the cache that it has written.

    Without a cache, each machine uses a temporary one, which is removed when all processes have mapped its files.

    Raises:
        UserError: on every rank, if it is raised on any rank, or if their rows differ.
    """
    if not ranks.is_distributed:
        return prepare_inputs(config)
    kept = ranks.gather(Cache(enabled=bool(config.dataset.get("cache", True))).enabled)
    root = None if all(kept) else Path(tempfile.gettempdir()) / f"sft-rows-{ranks.broadcast(uuid.uuid4().hex)}"
    try:
        inputs = ranks.main_process_first(lambda: prepare_inputs(config, root))
    finally:
        if root is not None and local_rank() == 0:
            shutil.rmtree(root, ignore_errors=True)
    prints = ranks.gather(inputs.data.fingerprint)
    other = next((index for index, found in enumerate(prints) if found != prints[0]), None)
    if other is not None:
        raise UserError(
            f"rank {other} reads different rows than rank 0",
            where="dataset",
            remedy="give every machine the same files, or put them on storage that all machines share",
        )
    return inputs


def build_preprocessing(config: RunConfig, cache_root: Path | None = None) -> Preprocessing:
    """Load the tokenizer of a resolved config and choose the template using some of its rows.

    Args:
        config, cache_root: as for `prepare_inputs`.

    Raises:
        UserError: any problem with model or template, or a source that cannot be read.
    """
    allowed = config.allow_targets
    model: Model = build(config.model, where="model", allowed=allowed)
    dataset: Dataset = build(config.dataset, where="dataset", allowed=allowed, _recursive_=False)
    if cache_root is not None:
        dataset = replace(dataset, cache=True)
    template = build(config.template, where="template", allowed=allowed)
    model_config = load_config(model)
    family = family_of(model, model_config)
    tokenizer = load_tokenizer(model, model_config)
    sample, formats = sample_conversations(dataset, cache_root=cache_root)
    bound = bind(template, tokenizer, family, sample, formats)
    added = add_control_tokens(tokenizer, bound.missing_tokens, bound.stop_tokens)
    encoder = Encoder(
        bound,
        tokenizer,
        train_on=dataset.train_on,
        masking=dataset.masking,
        history=dataset.history,
        control_tokens=dataset.control_tokens,
        response_template=dataset.response_template,
        instruction_template=dataset.instruction_template,
    )
    refuse_unmatched(encoder, sample)
    log.info("chat template: %s", bound.reason)
    for warning in bound.warnings:
        if warning != bound.reason:
            log.warning("%s", warning)
    if added:
        log.info("added to the vocabulary, their embeddings are trained: %s", ", ".join(added))
    control = [token for token in family.control_tokens if token in bound.text]
    _check_tokenizer(tokenizer, bound, control, model.tokenizer.expected_ids)
    mark("tokenizer and template")
    return Preprocessing(model, model_config, family, dataset, tokenizer, bound, encoder, sample)


def fill_steps_per_epoch(data: Prepared, config: RunConfig, padded: bool | None = None) -> None:
    """Fill in the report's steps per epoch.

    Args:
        padded: whether batches are padded; None: not known yet, as expected from the config.

    Raises:
        UserError: a row has more tokens than `trainer.max_tokens_per_batch`.
    """
    trainer = config.trainer
    accumulation, limit = trainer.get("gradient_accumulation_steps", 1), trainer.get("max_tokens_per_batch")
    if limit:
        if padded is None:
            padded = config.model.get("attn_implementation") not in (None, "varlen")
        ranks = world_size()
        seed = config.seed if trainer.get("data_seed") is None else trainer.data_seed
        batches = TokenBatches(data.train.lengths, limit, seed, padded=padded, ranks=ranks)
        data.report["train"]["steps_per_epoch"] = -(-len(batches) // (ranks * accumulation))
        return
    rows = trainer.get("per_device_train_batch_size", 8) * accumulation * world_size()
    with_steps(data.report, rows, bool(trainer.get("dataloader_drop_last")))


def _check_tokenizer(tokenizer: Any, bound: BoundTemplate, control: list[str], expected: Mapping[str, int]) -> None:
    """Check the tokenizer against the template, and against the ids in the config."""
    found = check_tokenizer(
        tokenizer, stop_tokens=bound.stop_tokens, chat_tokens=control, expected_ids=dict(expected) or None
    )
    for warning in found:
        log.warning("%s", warning)
    sentencepiece = Path(tokenizer.name_or_path) / "tokenizer.model"
    if expected and sentencepiece.is_file():
        check_sentencepiece(sentencepiece, expected)
