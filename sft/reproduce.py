"""`python -m sft.reproduce run=DIR`: replays a finished run from its directory, and compares both."""

from __future__ import annotations

from omegaconf import DictConfig

from sft.config.app import command, logs_to_stderr
from sft.config.errors import RunFailed
from sft.config.rank import is_main_process
from sft.distributed.coordinated_exit import coordinated_exit
from sft.run.directory import RunDirectory


@command("reproduce", distributed_exit=coordinated_exit)
def main(config: DictConfig) -> None:
    """Replay a run into a new directory and print both runs' metrics side by side; exits with 1 where they differ."""
    from sft.distributed.ranks import process_group
    from sft.training.reproduce import compare, replay_of, table
    from sft.training.start import start

    with logs_to_stderr():
        with process_group().raise_on_any_rank():
            origin, job = replay_of(config)
        result = start(job)
    if not is_main_process():
        return
    rows = compare(origin, RunDirectory(result.directory))
    print(table(rows))
    print(result.directory)
    differ = [row.name for row in rows if not row.equal]
    if differ:
        raise RunFailed(f"the replay differs from {origin.path} in: {', '.join(differ)}")


if __name__ == "__main__":
    main()
