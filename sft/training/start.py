"""Start a job: lock its directory, decide between a new run, a resumed and a finished one, and train if there is
something to train. Nothing heavy is imported before that is known."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from sft.distributed.coordinated_exit import CoordinatedShutdown
from sft.distributed.ranks import process_group
from sft.distributed.sharding import check_sharding_supported
from sft.hub.push import Push
from sft.run.log import main_process_logs_only
from sft.run.phases import begin as begin_phases
from sft.run.record import RunRecord
from sft.run.session import record_outcome, record_unfinished, run_lock_and_log
from sft.training.job import Job
from sft.training.memory import explain_out_of_memory
from sft.training.result import Result
from sft.training.resume.finished import push_weights
from sft.training.resume.start import decide, refuse_unavailable_metrics


def start(job: Job, callbacks: Sequence[Any] = (), compute_metrics: Callable[..., Any] | None = None) -> Result:
    """Train a job, resume it, or return the result that it already has.

    With several processes each calls it; rank 0 decides and writes.

    Args:
        job: made from a config, or from a run to replay.
        callbacks, compute_metrics: as for `sft.train.train`.

    Raises:
        UserError, RunFailed, Interrupted: as `sft.train.train`.
    """
    started = time.time()
    begin_phases()
    ranks = process_group()
    job = job.broadcast_from_main(ranks)
    run, push = job.run, Push.of(job.config)
    with ExitStack() as stack:
        with ranks.raise_on_any_rank():
            stack.enter_context(run_lock_and_log(run))
            check_sharding_supported(job.config)
            if not job.origin:
                refuse_unavailable_metrics(job.config, predicts=compute_metrics is not None)
        stack.enter_context(main_process_logs_only())
        record = RunRecord(run)
        decision, record.content = ranks.run_on_main_and_broadcast(lambda: (decide(job, record), record.content))
        result = decision.result
        if result is None:
            ending = stack.enter_context(
                CoordinatedShutdown(ranks, lambda error: record_unfinished(run, record, "failed", error))
            )
            with record_outcome(run, record), explain_out_of_memory(job.config, run), ending.raise_first_error():
                from sft.training.run import TrainingRun

                training = TrainingRun(job.settled(decision.config), record, ranks, callbacks, compute_metrics, started)
                result = training.execute(decision.resume_from)
                ranks.barrier()  # rank 0 still closes its tracker, and a rank that exits earlier counts as failed
        if push:
            ranks.run_on_main_and_broadcast(lambda: push_weights(run, push))
        return result
