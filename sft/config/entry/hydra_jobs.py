"""A command's task as Hydra calls it: for one run, or for each job of a sweep."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig

from sft.config.entry.exit_codes import say
from sft.config.errors import Interrupted, PastHydra, Pruned, RunFailed, UserError
from sft.config.paths import conf_dir

Task = Callable[[DictConfig], Any]


def run_jobs(task: Task, config_name: str, multirun: bool) -> None:
    """Have Hydra call the task, with the command line as it stands in `sys.argv`.

    Args:
        config_name: of the primary config.
        multirun: whether it is called for the jobs of a sweep.

    Raises:
        RunFailed: jobs of a sweep failed.
        UserError: Hydra cannot make its directory, or does not take its own settings.
        Exception: whatever a single run's task raises.
    """
    import hydra
    from omegaconf.errors import OmegaConfBaseException

    jobs = _Jobs(task, multirun)
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(jobs)()
    except PastHydra as past:
        jobs.at_stop(past.error)
        raise past.error from None
    except KeyboardInterrupt as error:
        jobs.at_stop(error)
        raise
    except OSError as error:  # from Hydra, which makes the directory
        if error.filename is None:
            raise
        raise UserError(f"cannot be created: {error.strerror}", where=str(error.filename)[:200]) from error
    except (TypeError, ValueError, AttributeError) as error:
        if jobs.count or multirun or isinstance(error, OmegaConfBaseException):
            raise
        what = " ".join(str(error).split())
        raise UserError(
            f"Hydra cannot start the run: {what}", where="hydra", remedy="check the hydra.* settings"
        ) from error
    jobs.report()


class _Jobs:
    """The task as Hydra calls it: a single run's error ends the command at once, a sweep continues after a failed job.

    Args:
        task: the command's function.
        multirun: whether Hydra calls it for the jobs of a sweep.

    Attributes:
        error: what the last job failed with; None where it did not.
        at_stop: called when the sweep is interrupted.
    """

    def __init__(self, task: Task, multirun: bool) -> None:
        self.task, self.multirun = task, multirun
        self.count = 0
        self.failed: list[str] = []
        self.error: str | None = None
        self.at_stop: Callable[[BaseException], None] = lambda error: None
        functools.update_wrapper(self, task)

    def __call__(self, config: DictConfig) -> Any:
        self.count += 1
        self.error = None
        try:
            value = self.task(config)
            self.error = None  # fused jobs end in any order
            return value
        except (Interrupted, KeyboardInterrupt) as error:
            raise PastHydra(error) from error
        except Pruned:
            self.error = None
            return None
        except (Exception, SystemExit) as error:
            if not self.multirun:
                raise PastHydra(error) from error
            self.error = str(error) or type(error).__name__
            job = _job_number()
            self.failed.append(f"job {job}: {error}")
            say(f"job {job} failed: {error}")
            traceback.clear_frames(error.__traceback__)  # a traceback keeps its frames alive, and those keep the model
            return None

    def report(self) -> None:
        """Raise RunFailed naming every failed job of the sweep, if any failed."""
        if self.failed:
            listed = "\n  ".join(self.failed)
            raise RunFailed(f"{len(self.failed)} of {self.count} jobs failed:\n  {listed}")


def _job_number() -> int:
    """The number of the sweep's job that Hydra is running; works in a launcher's worker process too."""
    from hydra.core.hydra_config import HydraConfig

    return int(HydraConfig.get().job.num)
