"""The surroundings of a command: .env, how threads wait, and other processes of the same launch."""

from __future__ import annotations

import os
from pathlib import Path

from sft.config.errors import UserError
from sft.config.rank import local_world_size, world_size
from sft.system.processes import usable_cores


def prepare_threads() -> None:
    """Say how threads wait for work, where the environment does not; read when torch is loaded."""
    # threads that spin while waiting stall small models whenever a core is busy
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # spin for some microseconds: waking a thread for each of a step's thousands of operations costs a sixth of its time
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def read_dotenv() -> None:
    """Read ./.env into the environment; variables that are already set win."""
    path = Path.cwd() / ".env"
    if path.is_file():
        from dotenv import dotenv_values, load_dotenv

        from sft.safety.expansion import endless

        try:
            if endless(dotenv_values(path, interpolate=False)):
                raise ValueError("its ${...} expand to more than any real setting needs")
            load_dotenv(path, override=False)
        except (OSError, ValueError) as error:  # not UTF-8 and NUL bytes are ValueErrors
            raise UserError(f"cannot be read: {error}", where=str(path), remedy="KEY=value lines in UTF-8") from None


def refuse_several(name: str, multirun: bool, distributed: bool) -> None:
    """Refuse sweeps and single-process commands under torchrun; give each process its share of the cores."""
    if world_size() == 1:
        return
    if multirun:
        raise UserError(
            f"a sweep's jobs are runs of their own, and {world_size()} processes were started to train one run together",
            where="-m",
            remedy="python -m sft.train -m ... without torchrun, with hydra/launcher=joblib or submitit for several at once",
        )
    if not distributed:
        raise UserError(
            f"this command works in one process, and {world_size()} were started",
            where=f"sft.{name}",
            remedy=f"python -m sft.{name} ... without torchrun or accelerate launch",
        )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // local_world_size())))
