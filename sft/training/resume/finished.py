"""An already finished run: its result, and the upload of its weights. Nothing heavy is imported for it."""

from __future__ import annotations

import logging

from sft.config.checks.figures import objective_of
from sft.hub.push import Push
from sft.run.directory import RunDirectory
from sft.run.metrics import Metrics
from sft.run.record import read_record
from sft.training.job import Job
from sft.training.result import Result

log = logging.getLogger(__name__)


def earlier_result(job: Job) -> Result | None:
    """The result of an already finished run; None for any other."""
    if read_record(job.run).get("status") != "finished":
        return None
    metrics = Metrics.read(job.run)
    if metrics is None:
        return None
    log.info("%s is finished; resume=never trains it again", job.run.path)
    figures = metrics.as_dict()
    objective, _ = objective_of(job.config, evaluates=figures.get("eval_loss") is not None)
    return Result(job.run.path, figures, objective, figures.get(objective))


def push_weights(run: RunDirectory, push: Push) -> str:
    """Push a finished run's weights to the hub.

    Raises:
        UserError: the push failed; the run stays finished, and the same command tries again.
    """
    if push.what == "merged":
        return push.send(run.merged)
    return push.send(run.adapter if run.adapter.is_dir() else run.model)
