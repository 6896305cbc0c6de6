"""What every command shares: the command line, the checks before Hydra, and the one place where errors are handled."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sft.config.command_line.overrides import CommandLine, parse_command_line, swept_values, with_environment
from sft.config.entry.exit_codes import DistributedExit, leave
from sft.config.entry.hydra_jobs import Task, run_jobs
from sft.config.entry.surroundings import prepare_threads, read_dotenv, refuse_several
from sft.config.errors import UserError


def command(name: str, distributed_exit: DistributedExit | None = None) -> Callable[[Task], Callable[[], None]]:
    """Make a function that takes the composed config into `python -m sft.<name>`.

    Args:
        name: of the command.
        distributed_exit: how the processes of a distributed run exit on an error; called with the error and with a
            function that prints it and exits. None: the command runs in one process only.

    Exit codes: 0 done, 1 the run failed, 2 the user's mistake, 130 and 143 stopped by a signal.
    """

    def decorate(task: Task) -> Callable[[], None]:
        """The command: run the task and exit with the documented exit code."""

        def run_command() -> None:
            try:
                _start(name, task, sys.argv[1:], distributed_exit is not None)
            except SystemExit as error:
                # Hydra exits with 1 where its own parser or composer refuses; argparse with 2
                sys.exit(error.code)
            except BaseException as error:
                leave(error, distributed_exit)

        run_command.__doc__ = task.__doc__
        run_command.__wrapped__ = task  # type: ignore[attr-defined]
        return run_command

    return decorate


def logs_to_stderr() -> contextlib.AbstractContextManager[Any]:
    """Within the block, what libraries print goes to stderr: a command's stdout carries only its result."""
    return contextlib.redirect_stdout(sys.stderr)


def _start(name: str, task: Task, argv: list[str], distributed: bool) -> None:
    """Read and check the command line, then have Hydra call the task for its run or its jobs."""
    from sft.config.resolvers import register, set_swept

    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise instead of printing the error and exiting
    prepare_threads()
    read_dotenv()
    line = parse_command_line(argv)
    refuse_several(name, line.multirun, distributed)
    _take_flags(line)
    register()
    config_name = _checked(name, line)
    set_swept(swept_values(line.overrides) if line.multirun else {})
    sys.argv = [sys.argv[0], *(["-m"] if line.multirun else []), *line.flags, *line.overrides]
    run_jobs(task, config_name, line.multirun)


def _take_flags(line: CommandLine) -> None:
    """Refuse flags that do not go together; put what `--config-dir` names where the search for configs looks."""
    if line.multirun and line.shows and not any(flag in ("--help", "-h", "--hydra-help") for flag in line.flags):
        raise UserError(
            "only one run can be shown, and -m asks for several", where="-m", remedy="leave out -m, or --cfg and --info"
        )
    for directory in line.config_dirs:
        if not Path(directory).is_dir():
            raise UserError("no such directory", where=f"--config-dir {directory}")
    if line.config_dirs:
        os.environ["SFT_CONFIG_DIR"] = os.pathsep.join(line.config_dirs)


def _checked(name: str, line: CommandLine) -> str:
    """Compose and check every job of the command line, whose overrides are then ready for Hydra.

    Returns:
        The name of the primary config.
    """
    from sft.config.command_line.base import over_base
    from sft.config.compose import check_command, config_loader
    from sft.config.paths import user_conf_dirs

    config_name = line.config_name or name
    # Hydra composes once more itself; where it only shows the packaged defaults, there is nothing to check
    if not line.shows or line.overrides or user_conf_dirs():
        loader = config_loader()
        config_name, overrides = over_base(loader, config_name, name, _with_environment(name, line.overrides))
        line.overrides = check_command(loader, config_name, overrides, name, line.multirun, not line.shows)
    return config_name


def _with_environment(command_name: str, overrides: list[str]) -> list[str]:
    """The overrides with MODEL_ID applied, for the commands that have a model."""
    from dataclasses import fields

    from sft.config.schema import COMMANDS

    has_model = any(field.name == "model" for field in fields(COMMANDS[command_name]))
    return with_environment(overrides) if has_model else overrides
