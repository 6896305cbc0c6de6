"""One start of a run, from taking its directory to saying how it ended."""

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
def holding(run: RunDirectory) -> Iterator[None]:
    """The directory's lock and log for the time of one start.

    Raises:
        UserError: another process is writing the directory.
    """
    with RunLock(run.path), RunLog(run):
        yield


@contextmanager
def recording(run: RunDirectory, record: RunRecord) -> Iterator[None]:
    """Write into run.json and metrics.json how the block ended.

    Raises:
        RunFailed: for any error that is not the user's, with the way to go on.
    """
    try:
        yield
    except Interrupted as stop:
        ended(run, record, "interrupted", stop)
        raise
    except KeyboardInterrupt as stop:
        ended(run, record, "interrupted", stop)
        raise Interrupted(f"interrupted; go on with the same command and hydra.run.dir={run.path}", 130) from None
    except Pruned:
        ended(run, record, "pruned", None)
        raise
    except (UserError, RunFailed) as error:
        ended(run, record, "failed", error)
        raise
    except BaseException as error:
        ended(run, record, "failed", error)
        if run.main:
            log.error("the run failed: %s: %s", type(error).__name__, error)
        log.debug("", exc_info=error)
        raise RunFailed(
            f"{type(error).__name__}: {error}\n  the traceback is in {run.train_log}\n  {how_to_go_on(run)}"
        ) from error
    record.finish("finished")


def ended(run: RunDirectory, record: RunRecord, status: str, error: BaseException | None) -> None:
    """Write how a start ended that gave no result."""
    metrics = Metrics.read(run) or Metrics()
    if status == "pruned":
        _figures_so_far(run, metrics)
    metrics.status = status  # type: ignore[assignment]
    metrics.write(run)
    record.finish(status, error=error)  # type: ignore[arg-type]


def _figures_so_far(run: RunDirectory, metrics: Metrics) -> None:
    """A pruned run is over: what it last logged is what is known of it."""
    logged = last_values(run.read_jsonl(run.metrics_jsonl))
    metrics.steps, metrics.epochs = int(logged.get("step", 0)), logged.get("epoch")
    metrics.eval_loss, metrics.eval_token_accuracy = logged.get("eval_loss"), logged.get("eval_token_accuracy")
    named = metrics.as_dict()
    metrics.extra.update({k: v for k, v in logged.items() if k.startswith("eval_") and k not in named})


def how_to_go_on(run: RunDirectory) -> str:
    """What a user does after a failed run: a sweep's job is tried again by its sweep."""
    sweep = (run.path.parent / "sweep.json").exists()
    where = f"hydra.sweep.dir={run.path.parent}" if sweep else f"hydra.run.dir={run.path}"
    then = "goes on from its last checkpoint" if listed(run.checkpoints) else "tries it again"
    return f"what it wrote is kept; the same command with {where} {then}"
