"""One start of a job: its directory is taken, what kind of start this is decided, and the run trained where there is
something to train. Nothing heavy is imported before that is known."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from sft.distributed.coordinated_exit import Ending
from sft.distributed.ranks import joined
from sft.distributed.sharding import refuse_unspreadable
from sft.hub.push import Push
from sft.run.log import alike
from sft.run.phases import begin as begin_phases
from sft.run.record import RunRecord
from sft.run.session import ended, holding, recording
from sft.training.job import Job
from sft.training.memory import answering
from sft.training.result import Result
from sft.training.resume.finished import push_weights
from sft.training.resume.start import decide, refuse_unmeasured


def start(job: Job, callbacks: Sequence[Any] = (), compute_metrics: Callable[..., Any] | None = None) -> Result:
    """Train a job, resume it, or give the result that it has already.

    Of several processes each calls it; rank 0 decides and writes.

    Args:
        job: made from a config, or from a run to replay.
        callbacks, compute_metrics: as for `sft.train.train`.

    Raises:
        UserError, RunFailed, Interrupted: as `sft.train.train`.
    """
    started = time.time()
    begin_phases()
    ranks = joined()
    job = job.agreed(ranks)
    run, push = job.run, Push.of(job.config)
    with ExitStack() as stack:
        with ranks.agreeing():
            stack.enter_context(holding(run))
            refuse_unspreadable(job.config)
            if not job.origin:
                refuse_unmeasured(job.config, predicts=compute_metrics is not None)
        stack.enter_context(alike())
        record = RunRecord(run)
        decision, record.content = ranks.decided(lambda: (decide(job, record), record.content))
        result = decision.result
        if result is None:
            ending = stack.enter_context(Ending(ranks, lambda error: ended(run, record, "failed", error)))
            with recording(run, record), answering(job.config, run), ending.common():
                from sft.training.run import TrainingRun

                training = TrainingRun(job.settled(decision.config), record, ranks, callbacks, compute_metrics, started)
                result = training.execute(decision.resume_from)
                ranks.wait()  # rank 0 still closes its tracker: whoever leaves before would be missed
        if push:
            ranks.decided(lambda: push_weights(run, push))
        return result
