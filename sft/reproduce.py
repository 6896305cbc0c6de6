"""`python -m sft.reproduce run=DIR`: a finished run once more, from its directory, and whether both are the same."""

from __future__ import annotations

from omegaconf import DictConfig

from sft.config.app import command, logs_to_stderr
from sft.config.errors import RunFailed
from sft.config.rank import is_main
from sft.distributed.coordinated_exit import leave_together
from sft.run.directory import RunDirectory


@command("reproduce", together=leave_together)
def main(config: DictConfig) -> None:
    """Replay a run into a directory of its own and print both runs' figures side by side; 1 where they differ."""
    from sft.distributed.ranks import joined
    from sft.training.reproduce import compare, replay_of, table
    from sft.training.start import start

    with logs_to_stderr():
        with joined().agreeing():
            origin, job = replay_of(config)
        result = start(job)
    if not is_main():
        return
    rows = compare(origin, RunDirectory(result.directory))
    print(table(rows))
    print(result.directory)
    differ = [row.name for row in rows if not row.equal]
    if differ:
        raise RunFailed(f"the replay differs from {origin.path} in: {', '.join(differ)}")


if __name__ == "__main__":
    main()
