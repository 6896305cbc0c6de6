"""From sources to training rows: load, fit to max_length, split off evaluation, mix, pack; and report on every row."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sft.data.batches.packing import pack
from sft.data.cache import Cache
from sft.data.cache.keys import key_of
from sft.data.content import Options
from sft.data.documents import Documents, Rows
from sft.data.load import load
from sft.data.mixture import Mixture, mix
from sft.data.part import Part
from sft.data.report.dropped import refuse_empty, refuse_losses
from sft.data.report.length import fit
from sft.data.report.report import build_report
from sft.data.sample import sample
from sft.data.source import Source
from sft.data.spec import Dataset
from sft.data.split import combined, held_out

if TYPE_CHECKING:
    from sft.data.labels.encoder import Encoder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """The prepared data of a run.

    Args:
        train: the training rows, mixed and, with packing, packed.
        eval: evaluation rows by the name of their source; empty where there is no evaluation.
        report: the content of data_report.json.
        fingerprint: digest of everything that determines the rows and their order.
    """

    train: Rows
    eval: dict[str, Rows]
    report: dict[str, Any]
    fingerprint: str

    @property
    def parts(self) -> list[Rows]:
        """The training rows and the evaluation rows of each source."""
        return [self.train, *self.eval.values()]


def prepare(dataset: Dataset, encoder: Encoder, *, seed: int, cache_root: Path | None = None) -> Prepared:
    """Prepare a run's data.

    Args:
        dataset: the config node.
        encoder: turns conversations into labelled tokens.
        seed: alone decides what is held out and drawn, and the order.
        cache_root: where tokens are kept; $SFT_CACHE or ~/.cache/sft if left out.

    Raises:
        UserError: more rows are broken than dataset.max_dropped allows (all of them listed up to a number), rows are
            too long with on_long=error, a source has nothing to train on, or what `load` raises.
    """
    cache = Cache(cache_root, enabled=dataset.cache)
    train = [_part(name, source, False, dataset, encoder, cache) for name, source in dataset.sources.items()]
    evaluated = [_part(name, source, True, dataset, encoder, cache) for name, source in dataset.eval_sources.items()]
    _log_cache([*train, *evaluated], cache)
    refuse_losses([*train, *evaluated], dataset)
    if not evaluated:
        for part in train:
            _hold_out(part, dataset.eval_fraction, seed)
            if dataset.eval_fraction and not len(part.eval):
                log.warning("%s: too few different rows to hold some out; it is not evaluated", part.where)
    _drop_leaked(train, evaluated)
    refuse_empty(train, evaluated)
    weights = {part.name: part.weight for part in train}
    mixture = mix({part.name: len(part.train) for part in train}, weights, size=dataset.size, seed=seed)
    rows = _train_rows(train, mixture, dataset, seed)
    evaluation = {
        part.name: _rows([part], part.eval, dataset.max_length if dataset.eval_packing else None, None)
        for part in (evaluated or train)
        if len(part.eval)
    }
    return Prepared(
        rows,
        evaluation,
        build_report(train, evaluated, mixture, rows, evaluation, dataset),
        _fingerprint([*train, *evaluated], dataset, seed),
    )


def prepare_evaluation(
    dataset: Dataset, encoder: Encoder, *, seed: int, whole: bool = False, cache_root: Path | None = None
) -> dict[str, Rows]:
    """Prepare the rows that `prepare` evaluates on, and no others.

    Args:
        dataset: the config node; its `eval_sources` are evaluated, else what `eval_fraction` holds out.
        encoder: turns conversations into labelled tokens.
        seed: decides what is held out.
        whole: without `eval_sources`, evaluate all rows of the sources, because none was trained on.
        cache_root: as for `prepare`.

    Raises:
        UserError: as `prepare`, for these rows.
    """
    cache, given = Cache(cache_root, enabled=dataset.cache), bool(dataset.eval_sources)
    sources = dataset.eval_sources or dataset.sources
    parts = [_part(name, source, given or whole, dataset, encoder, cache) for name, source in sources.items()]
    _log_cache(parts, cache)
    refuse_losses(parts, dataset)
    if not (given or whole):
        for part in parts:
            _hold_out(part, dataset.eval_fraction, seed)
    else:
        refuse_empty([], parts)
    capacity = dataset.max_length if dataset.eval_packing else None
    return {part.name: _rows([part], part.eval, capacity, None) for part in parts if len(part.eval)}


def sample_conversations(
    dataset: Dataset, count: int = 64, *, cache_root: Path | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Some conversations of every source, and the names of their formats, from which `sft.template.bind` chooses.

    Raises:
        UserError: a source cannot be read, or has no known format.
    """
    cache, options = Cache(cache_root, enabled=dataset.cache), _options(dataset)
    conversations, formats = [], []
    for kind, sources in (("sources", dataset.sources), ("eval_sources", dataset.eval_sources)):
        for name, source in sources.items():
            some, form = sample(name, source, options, cache, f"dataset.{kind}.{name}", count)
            conversations += some
            formats.append(form)
    return conversations, list(dict.fromkeys(formats))


def _options(dataset: Dataset) -> Options:
    return Options(dataset.use_text_column, dataset.check_rows, dataset.num_proc, dataset.consecutive)


def _part(name: str, source: Source, evaluated: bool, dataset: Dataset, encoder: Encoder, cache: Cache) -> Part:
    where = f"dataset.{'eval_sources' if evaluated and dataset.eval_sources else 'sources'}.{name}"
    loaded = load(name, source, encoder, _options(dataset), cache, where)
    some = loaded.documents
    fitted = fit(some, loaded.tokens, dataset.max_length, cut_long=dataset.on_long == "truncate")
    none = some.take(np.empty(0, np.int64))
    train, held = (none, fitted.documents) if evaluated else (fitted.documents, none)
    return Part(name, where, source.weight, loaded, fitted, train, held, none)


def _log_cache(parts: list[Part], cache: Cache) -> None:
    cached = [part.name for part in parts if part.loaded.cached]
    if cached:
        log.info("rows come from the cache in %s: %s", cache.root, ", ".join(cached))
    if len(cached) < len(parts):
        made = [part.name for part in parts if not part.loaded.cached]
        log.info("rows tokenized: %s%s", ", ".join(made), f"; kept in the cache {cache.root}" if cache.enabled else "")
        cache.prune()


def _hold_out(part: Part, fraction: float, seed: int) -> None:
    """Split a source by whole conversations."""
    documents = part.fitted.documents
    _, conversation = np.unique(documents.conversation, return_inverse=True)
    count = int(conversation[-1]) + 1 if len(conversation) else 0
    held = held_out(combined(documents.digest, conversation, count), fraction, seed)[conversation]
    part.train, part.eval = documents.take(~held), documents.take(held)


def _drop_leaked(train: list[Part], evaluated: list[Part]) -> None:
    """Remove from training the rows that any source evaluates on, and equal rows of other conversations and sources."""
    held = np.concatenate([part.eval.digest for part in (*train, *evaluated)])
    for part in train:
        leaks = np.isin(part.train.digest, held)
        part.leaked, part.train = part.train.take(leaks), part.train.take(~leaks)


def _train_rows(train: list[Part], mixture: Mixture, dataset: Dataset, seed: int) -> Rows:
    drawn = [_of(index, part.train.take(mixture.rows[part.name])) for index, part in enumerate(train)]
    documents = Documents.concatenate(drawn)
    if dataset.shuffle:
        documents = documents.take(np.random.default_rng([seed, len(documents)]).permutation(len(documents)))
    capacity = dataset.max_length if dataset.packing else None
    return _rows(train, documents, capacity, seed if dataset.shuffle else None)


def _of(index: int, documents: Documents) -> Documents:
    return documents.with_columns(source=np.full(len(documents), index, np.int32))


def _rows(parts: list[Part], documents: Documents, capacity: int | None, seed: int | None) -> Rows:
    """Documents as rows, packed up to `capacity` tokens if it is given."""
    packs = None if capacity is None else pack(documents.length, capacity, seed)
    loaded = [part.loaded for part in parts]
    return Rows(
        [each.name for each in loaded],
        [each.files for each in loaded],
        [each.tokens for each in loaded],
        documents,
        packs,
    )


def _fingerprint(parts: list[Part], dataset: Dataset, seed: int) -> str:
    names = ("eval_fraction", "max_length", "on_long", "packing", "eval_packing", "size", "shuffle")
    facts: dict[str, Any] = {name: getattr(dataset, name) for name in names}
    return key_of(
        {**facts, "seed": seed, "parts": [(part.where, part.weight, part.loaded.fingerprint) for part in parts]}
    )
