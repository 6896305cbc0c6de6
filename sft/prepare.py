"""`python -m sft.prepare source=dolly output=FILE`: public datasets as JSONL that the readers here accept."""

from __future__ import annotations

from omegaconf import DictConfig

from sft.config.app import command, logs_to_stderr


@command("prepare")
def main(config: DictConfig) -> None:
    """Write one file, completely or not at all; print what was kept and why the rest was not."""
    from sft.data.makers import prepare
    from sft.run.log import RunLog

    with logs_to_stderr(), RunLog(None):
        counts = prepare(
            config.source,
            config.input,
            config.output,
            mode=config.mode,
            context=config.context,
            lang=config.lang,
            samples=config.samples,
        )
    print(counts)


if __name__ == "__main__":
    main()
