"""What every door has in common: the command line, the checks before Hydra, and one place where errors arrive."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig

from sft.config.errors import Interrupted, PastHydra, Pruned, RunFailed, UserError
from sft.config.paths import expanded
from sft.config.rank import is_main, local_world_size, world_size
from sft.config.text import harmless
from sft.safety.secrets import redact

Task = Callable[[DictConfig], Any]
Together = Callable[[BaseException, Callable[[], NoReturn]], NoReturn]


def command(name: str, together: Together | None = None) -> Callable[[Task], Callable[[], None]]:
    """Make a function that takes the composed config into `python -m sft.<name>`.

    Args:
        name: of the command.
        together: how several processes leave with an error, given it and what says it and leaves; None: the command
            is for one process.

    Exit codes: 0 done, 1 the run failed, 2 the user's mistake, 130 and 143 stopped by a signal.
    """

    def decorate(task: Task) -> Callable[[], None]:
        """The door: runs the task, and leaves with the contract's exit code."""

        def door() -> None:
            try:
                _start(name, task, sys.argv[1:], together is not None)
            except SystemExit as error:
                # Hydra leaves with 1 where its own parser or composer refuses; argparse with 2
                sys.exit(error.code)
            except BaseException as error:
                _leave(error, together)

        door.__doc__ = task.__doc__
        door.__wrapped__ = task  # type: ignore[attr-defined]
        return door

    return decorate


def _start(name: str, task: Task, argv: list[str], together: bool) -> None:
    import hydra
    from omegaconf.errors import OmegaConfBaseException

    from sft.config.command_line.overrides import parse_command_line, swept_values
    from sft.config.compose import check_command, config_loader
    from sft.config.paths import conf_dir, user_conf_dirs
    from sft.config.resolvers import register, set_swept

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and leaving by itself
    # threads that spin while they wait stall small models whenever a core is busy; read when torch is loaded
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # but for some microseconds: to wake a thread for each of a step's thousands of operations costs a sixth of its time
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    read_dotenv()
    line = parse_command_line(argv)
    _refuse_several(name, line.multirun, together)
    if line.multirun and line.shows and not any(flag in ("--help", "-h", "--hydra-help") for flag in line.flags):
        raise UserError(
            "one run is shown, and -m asks for several", where="-m", remedy="leave out -m, or --cfg and --info"
        )
    for directory in line.config_dirs:
        if not Path(directory).is_dir():
            raise UserError("no such directory", where=f"--config-dir {directory}")
    if line.config_dirs:
        os.environ["SFT_CONFIG_DIR"] = os.pathsep.join(line.config_dirs)
    config_name = line.config_name or name
    register()
    # Hydra composes once more itself; where it only shows the packaged defaults, there is nothing to check
    if not line.shows or line.overrides or user_conf_dirs():
        loader = config_loader()
        config_name, overrides = over_base(loader, config_name, name, _with_environment(name, line.overrides))
        line.overrides = check_command(loader, config_name, overrides, name, line.multirun, not line.shows)
    set_swept(swept_values(line.overrides) if line.multirun else {})
    sys.argv = [sys.argv[0], *(["-m"] if line.multirun else []), *line.flags, *line.overrides]
    jobs = _Jobs(task, line.multirun)
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(jobs)()
    except PastHydra as past:
        jobs.at_stop(past.error)
        raise past.error from None
    except KeyboardInterrupt as error:
        jobs.at_stop(error)
        raise
    except OSError as error:  # of Hydra's own, which makes the directory
        if error.filename is None:
            raise
        raise UserError(f"cannot be made: {error.strerror}", where=str(error.filename)[:200]) from error
    except (TypeError, ValueError, AttributeError) as error:
        if jobs.count or line.multirun or isinstance(error, OmegaConfBaseException):
            raise
        what = " ".join(str(error).split())
        raise UserError(
            f"Hydra does not start the run: {what}", where="hydra", remedy="look at the hydra.* settings"
        ) from error
    jobs.report()


class _Jobs:
    """The task as Hydra calls it: a single run's error leaves at once, a sweep goes on after a failed job.

    Args:
        task: the door's function.
        multirun: whether Hydra calls it for the jobs of a sweep.

    Attributes:
        error: what the last job failed with; None where it did not.
        at_stop: called when the sweep is broken off.
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
            self.error = None  # jobs that train together end in any order
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
            _say(f"job {job} failed: {error}")
            traceback.clear_frames(error.__traceback__)  # a traceback keeps its frames, and they the model
            return None

    def report(self) -> None:
        """Raise where a job of the sweep failed, naming each."""
        if self.failed:
            listed = "\n  ".join(self.failed)
            raise RunFailed(f"{len(self.failed)} of {self.count} jobs failed:\n  {listed}")


def _job_number() -> int:
    """Of the sweep's job that Hydra is running; in a launcher's worker process too."""
    from hydra.core.hydra_config import HydraConfig

    return int(HydraConfig.get().job.num)


def over_base(loader: Any, config_name: str, command_name: str, overrides: list[str]) -> tuple[str, list[str]]:
    """With `run=DIR`, the run's resolved config takes the place of the command's defaults.

    DIR may be the adapter in it; one that was trained elsewhere becomes `model.adapter`.
    """
    from sft.config.command_line.bare_adapter import COMMANDS, as_model, run_around
    from sft.config.command_line.base import BASE_NAME, read_run, register_base
    from sft.config.command_line.overrides import quoted

    given = [o for o in overrides if o.partition("=")[0] == "run"]
    if not given:
        return config_name, overrides
    from hydra.core.override_parser.overrides_parser import OverridesParser

    run = OverridesParser.create().parse_override(given[-1]).value()
    named = expanded(str(run).replace("\\${", "${"))
    if command_name in COMMANDS and (instead := as_model(run_around(named), overrides)) is not None:
        return config_name, instead
    if (around := run_around(named)) != named:
        overrides = [o if o.partition("=")[0] != "run" else f"run={quoted(str(around))}" for o in overrides]
    base = read_run(str(around))
    return BASE_NAME, register_base(base, command_name, overrides, set(loader.list_groups("")))


def _with_environment(command_name: str, overrides: list[str]) -> list[str]:
    """MODEL_ID is for the commands that have a model."""
    from dataclasses import fields

    from sft.config.command_line.overrides import with_environment
    from sft.config.schema import COMMANDS

    has_model = any(field.name == "model" for field in fields(COMMANDS[command_name]))
    return with_environment(overrides) if has_model else overrides


def logs_to_stderr() -> contextlib.AbstractContextManager[Any]:
    """For the time of the block, what libraries print goes to stderr: a door's stdout carries its answer alone."""
    return contextlib.redirect_stdout(sys.stderr)


def read_dotenv() -> None:
    """Read ./.env into the environment; what the environment has already wins."""
    path = Path.cwd() / ".env"
    if path.is_file():
        from dotenv import dotenv_values, load_dotenv

        from sft.safety.expansion import endless

        try:
            if endless(dotenv_values(path, interpolate=False)):
                raise ValueError("its ${...} stand for more than anybody writes")
            load_dotenv(path, override=False)
        except (OSError, ValueError) as error:  # not UTF-8 and NUL bytes are ValueErrors
            raise UserError(f"cannot be read: {error}", where=str(path), remedy="KEY=value lines in UTF-8") from None


def _refuse_several(name: str, multirun: bool, together: bool) -> None:
    """Of several processes one run is made; where torchrun starts them, each computes with its share of the cores."""
    if world_size() == 1:
        return
    if multirun:
        raise UserError(
            f"a sweep's jobs are runs of their own, and {world_size()} processes were started to train one run together",
            where="-m",
            remedy="python -m sft.train -m ... without torchrun, with hydra/launcher=joblib or submitit for several at once",
        )
    if not together:
        raise UserError(
            f"this command works in one process, and {world_size()} were started",
            where=f"sft.{name}",
            remedy=f"python -m sft.{name} ... without torchrun or accelerate launch",
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // local_world_size())))


def _leave(error: BaseException, together: Together | None) -> NoReturn:
    """Leave with an error; of several processes rank 0 says it, before torchrun ends all because of the first to go."""
    if world_size() > 1 and together is not None:
        together(error, lambda: _say_and_leave(error))
    if not is_main():
        time.sleep(10)
    _say_and_leave(error)


def _say_and_leave(error: BaseException) -> NoReturn:
    """Print what the user needs to know and leave with the contract's exit code."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(
        error, BrokenPipeError
    ):  # the reader has had enough (`| head`); nothing more is to be flushed into it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.stdout.flush()
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    if isinstance(error, Interrupted):
        _say(str(error))
        sys.exit(error.code)
    if isinstance(error, UserError):
        _say(f"error: {error}")
        sys.exit(2)
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        _say(f"error: {_hydra_message(error)}")
        sys.exit(2)
    if type(error).__module__.partition(".")[0] == "yaml":  # broken YAML in a directory of the user's configs
        _say(f"error: is not YAML: {' '.join(str(error).split())}")
        sys.exit(2)
    if isinstance(error, RunFailed):  # its traceback is in train.log
        _say(f"error: {error}")
        sys.exit(1)
    _say("".join(traceback.format_exception(error)).rstrip())
    sys.exit(1)


def _say(text: str) -> None:
    """Print to stderr, without secrets and without what would act on a terminal: an error may quote anything."""
    print(harmless(redact(text)), file=sys.stderr)


def _hydra_message(error: BaseException) -> str:
    """Hydra's message with that of its cause, which often has the reason."""
    lines = [" ".join(str(error).split())] if str(error).strip() else []
    cause = error.__cause__
    while cause is not None:
        text = str(cause).strip().split("\n")[0]
        if text and text not in lines:
            lines.append(text)
        cause = cause.__cause__
    return "\n  ".join(lines) or type(error).__name__
