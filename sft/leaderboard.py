"""`python -m sft.leaderboard dir=SWEEP`: a sweep's table and picture, and the commands for its winner."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from sft.config.app import command


@command("leaderboard")
def main(config: DictConfig) -> None:
    """Write leaderboard.csv, .md and .png into the sweep's directory, and print the table and the winner."""
    from sft.sweep.leaderboard import show, write_leaderboard

    show(write_leaderboard(Path(config.dir), config.objective, config.direction))


if __name__ == "__main__":
    main()
