"""One session of a run: locking its directory, logging, and recording how it ended."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from sft.config.errors import Interrupted, Pruned, RunFailed, UserError
from sft.run.checkpoint import listed
from sft.run.directory import RunDirectory
from sft.run.lock import RunLock
from sft.run.log import RunLog
from sft.run.metrics import Metrics, last_values
from sft.run.record import RunRecord

log = logging.getLogger(__name__)


@contextmanager
def run_lock_and_log(run: RunDirectory) -> Iterator[None]:
    """The directory's lock and log for one session.

    Raises:
        UserError: another process is writing the directory.
    """
    with RunLock(run.path), RunLog(run):
        yield


@contextmanager
def record_outcome(run: RunDirectory, record: RunRecord) -> Iterator[None]:
    """Record in run.json and metrics.json how the block ended.

    Raises:
        RunFailed: for any error that is not a UserError, with a hint on how to resume.
    """
    try:
        yield
    except Interrupted as stop:
        record_unfinished(run, record, "interrupted", stop)
        raise
    except KeyboardInterrupt as stop:
        record_unfinished(run, record, "interrupted", stop)
        raise Interrupted(f"interrupted; resume with the same command and hydra.run.dir={run.path}", 130) from None
    except Pruned:
        record_unfinished(run, record, "pruned", None)
        raise
    except (UserError, RunFailed) as error:
        record_unfinished(run, record, "failed", error)
        raise
    except BaseException as error:
        record_unfinished(run, record, "failed", error)
        if run.main:
            log.error("the run failed: %s: %s", type(error).__name__, error)
        log.debug("", exc_info=error)
        raise RunFailed(
            f"{type(error).__name__}: {error}\n  the traceback is in {run.train_log}\n  {resume_hint(run)}"
        ) from error
    record.finish("finished")


def record_unfinished(run: RunDirectory, record: RunRecord, status: str, error: BaseException | None) -> None:
    """Record how a session ended that has no result."""
    metrics = Metrics.read(run) or Metrics()
    if status == "pruned":
        _figures_so_far(run, metrics)
    metrics.status = status  # type: ignore[assignment]
    metrics.write(run)
    record.finish(status, error=error)  # type: ignore[arg-type]


def _figures_so_far(run: RunDirectory, metrics: Metrics) -> None:
    """Use the last logged metrics of a pruned run as its final ones."""
    logged = last_values(run.read_jsonl(run.metrics_jsonl))
    metrics.steps, metrics.epochs = int(logged.get("step", 0)), logged.get("epoch")
    metrics.eval_loss, metrics.eval_token_accuracy = logged.get("eval_loss"), logged.get("eval_token_accuracy")
    named = metrics.as_dict()
    metrics.extra.update({k: v for k, v in logged.items() if k.startswith("eval_") and k not in named})


def resume_hint(run: RunDirectory) -> str:
    """What the user can do after a failed run; a job of a sweep is retried by its sweep."""
    sweep = (run.path.parent / "sweep.json").exists()
    where = f"hydra.sweep.dir={run.path.parent}" if sweep else f"hydra.run.dir={run.path}"
    then = "resumes from its last checkpoint" if listed(run.checkpoints) else "retries it"
    return f"its files are kept; the same command with {where} {then}"
