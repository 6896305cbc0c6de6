"""How a command ends with an error: what the user is told on stderr, and the exit code.

Exit codes: 0 done, 1 the run failed, 2 the user's mistake, 130 and 143 stopped by a signal.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from sft.config.errors import Interrupted, RunFailed, UserError
from sft.config.rank import is_main_process, world_size
from sft.config.text import without_control_characters
from sft.safety.secrets import redact

DistributedExit = Callable[[BaseException, Callable[[], NoReturn]], NoReturn]


def leave(error: BaseException, distributed_exit: DistributedExit | None) -> NoReturn:
    """Exit with an error; in a distributed run rank 0 prints it before torchrun kills all ranks because one exited."""
    if world_size() > 1 and distributed_exit is not None:
        distributed_exit(error, lambda: _say_and_leave(error))
    if not is_main_process():
        time.sleep(10)
    _say_and_leave(error)


def _say_and_leave(error: BaseException) -> NoReturn:
    """Print what the user needs to know and exit with the documented exit code."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, BrokenPipeError):  # the reader is gone (`| head`); nothing more may be flushed to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.stdout.flush()
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    if isinstance(error, Interrupted):
        say(str(error))
        sys.exit(error.code)
    if isinstance(error, UserError):
        say(f"error: {error}")
        sys.exit(2)
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        say(f"error: {_hydra_message(error)}")
        sys.exit(2)
    if type(error).__module__.partition(".")[0] == "yaml":  # broken YAML in a directory of the user's configs
        say(f"error: is not YAML: {' '.join(str(error).split())}")
        sys.exit(2)
    if isinstance(error, RunFailed):  # its traceback is in train.log
        say(f"error: {error}")
        sys.exit(1)
    say("".join(traceback.format_exception(error)).rstrip())
    sys.exit(1)


def say(text: str) -> None:
    """Print to stderr without secrets and terminal control sequences: an error may quote anything."""
    print(without_control_characters(redact(text)), file=sys.stderr)


def _hydra_message(error: BaseException) -> str:
    """Hydra's message distributed_exit with that of its cause, which often has the actual reason."""
    lines = [" ".join(str(error).split())] if str(error).strip() else []
    cause = error.__cause__
    while cause is not None:
        text = str(cause).strip().split("\n")[0]
        if text and text not in lines:
            lines.append(text)
        cause = cause.__cause__
    return "\n  ".join(lines) or type(error).__name__
