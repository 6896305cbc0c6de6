"""A fused sweep over several processes, one a card: each trains a group of its own and takes the next job when it has
room."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus

from sft.sweep.launchers.devices import visible_devices
from sft.sweep.launchers.job import LostJob, Sweep, lost_job
from sft.sweep.launchers.pool import Pool
from sft.system.processes import alive


@dataclass
class Share(JobReturn):
    """What one process returned: the results of the jobs it trained, by number."""

    returned: dict[int, JobReturn] = field(default_factory=dict)


class Claims:
    """Which process trains which job: a file a job, made by the first process that wants it.

    Args:
        place: a directory that all processes see.
    """

    def __init__(self, place: Path) -> None:
        self.place = place

    def claim(self, number: int) -> bool:
        """Claim a job; False where a living process has it."""
        path = self.place / str(number)
        try:
            with open(path, "x") as file:
                file.write(str(os.getpid()))
            return True
        except FileExistsError:
            owner = int(path.read_text() or 0)
            if not owner or owner == os.getpid() or alive(owner):
                return False
            path.write_text(str(os.getpid()))  # whoever had it died; the pool starts one process after another
            return True


def processes_for(asked: int | None) -> int:
    """How many processes a fused sweep uses: as asked, else one for each visible card."""
    return asked or max(1, len(visible_devices()))


def run_shares(
    sweep: Sweep,
    jobs: Sequence[Sequence[str]],
    first: int,
    processes: int,
    n_jobs: int | None,
    max_tokens: int | None,
) -> list[JobReturn]:
    """Train jobs in several processes, each with its own card and its own group; see `run_fused`."""
    pool = Pool(processes, visible_devices(), 1)
    try:
        with tempfile.TemporaryDirectory(prefix="sft-claims-") as place:
            run = partial(_share, sweep, [list(each) for each in jobs], first, n_jobs, max_tokens, Path(place))
            shares = pool.run(run, [[] for _ in range(processes)], 0)
    finally:
        pool.close()
    returned: dict[int, JobReturn] = {}
    for share in shares:
        returned |= share.returned if isinstance(share, Share) else {}
    died = next((share.error for share in shares if isinstance(share, LostJob)), "")
    missing = RuntimeError(died.removeprefix("its process died: ") or "killed")
    return [returned.get(first + at) or lost_job(list(each), missing) for at, each in enumerate(jobs)]


def _share(
    sweep: Sweep,
    jobs: Sequence[Sequence[str]],
    first: int,
    n_jobs: int | None,
    max_tokens: int | None,
    place: Path,
    overrides: Sequence[str],
    number: int,
) -> Share:
    """In a worker: train the jobs that this process claims."""
    from hydra.core.singleton import Singleton

    from sft.config.resolvers import register
    from sft.sweep.launchers.fused import run_claimed

    Singleton.set_state(sweep.state)
    register()
    claim = Claims(place).claim
    returned = run_claimed(sweep.context, sweep.task, sweep.config, jobs, first, n_jobs, max_tokens, claim)
    return Share(overrides=list(overrides), status=JobStatus.COMPLETED, returned=returned)
