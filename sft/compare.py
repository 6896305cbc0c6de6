"""`python -m sft.compare runs=[A,B]`: what differs between runs, and their curves together."""

from __future__ import annotations

from omegaconf import DictConfig

from sft.config.app import command


@command("compare")
def main(config: DictConfig) -> None:
    """Print the differences of config, versions, data and figures; draw the curves and print where."""
    from sft.sweep.compare import check_picture, read_runs, show, write_picture

    picture = check_picture(config.output) if config.output is not None else None
    runs = read_runs(list(config.runs))
    show(runs)
    if picture is not None:
        write_picture(runs, picture)
        print(f"\n{picture}")


if __name__ == "__main__":
    main()
