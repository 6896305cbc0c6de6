"""Measure real memory: two steps on a batch of the estimate's shape, and the peak."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sft.config.run_config import RunConfig
from sft.data.documents import Documents, Rows, Tokens
from sft.run import memory
from sft.run.directory import RunDirectory
from sft.run.trackers.base import Tracker
from sft.training.build import build_model, build_trainer
from sft.training.estimate.step import Batch
from sft.training.inputs import Inputs, build_preprocessing
from sft.training.layout.layout import choose_layout
from sft.training.resume.start import seed_everything

STEPS = 2  # the second has the optimizer's states


def measure(config: RunConfig, batch: Batch, checkpointing: bool) -> int:
    """Train on random tokens, each row `batch.length` long, without keeping anything.

    Returns:
        The peak in bytes: of the GPU's allocator, or of the process where there is none.
    """
    trainer_node = config.trainer.with_(
        max_steps=STEPS,
        per_device_train_batch_size=batch.rows,
        gradient_checkpointing=checkpointing,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
    )
    config = config.with_(trainer=trainer_node, callbacks=None)
    seed_everything(config.seed)
    preprocessing = build_preprocessing(config)
    accumulation = trainer_node.get("gradient_accumulation_steps") or 1
    rows = _rows(batch, batch.rows * accumulation * STEPS, preprocessing.model_config.get_text_config().vocab_size)
    data: Any = SimpleNamespace(train=rows, eval={})
    inputs = Inputs(**vars(preprocessing), data=data)
    model = build_model(config, inputs)
    with tempfile.TemporaryDirectory(prefix="sft-measure-") as directory:
        run = RunDirectory(Path(directory))
        trainer = build_trainer(config, run, model, inputs, {}, [], Tracker())
        attention = preprocessing.model.attn_implementation
        trainer.apply_layout(choose_layout(model, [rows], attention, trainer.accelerator.autocast))
        memory.reset_peak()
        trainer.train()
        return memory.peak_bytes()


def _rows(batch: Batch, count: int, vocabulary: int) -> Rows:
    """Rows of one length with trained tokens at their ends, as many in total as the batch has."""
    import numpy

    generator = numpy.random.default_rng(0)
    trained = -(-batch.trained // batch.rows)
    numbers, none = numpy.arange(count, dtype=numpy.int64), numpy.zeros(count, numpy.int32)
    lengths = numpy.full(count, batch.length, numpy.int64)
    ids = generator.integers(0, vocabulary, (count, batch.length)).astype(numpy.int32)
    flags = numpy.zeros((count, batch.length), numpy.uint8)
    flags[:, batch.length - trained :] = 1
    documents = Documents(
        source=none,
        start=numbers * batch.length,
        length=lengths,
        trained=flags[:, 1:].sum(1).astype(numpy.int64),
        row=numbers + 1,
        file=none,
        conversation=numbers,
        digest=numbers.astype(numpy.uint64),
    )
    return Rows(["random"], [["random"]], [Tokens(ids.reshape(-1), flags.reshape(-1))], documents)
