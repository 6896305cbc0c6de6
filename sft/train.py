"""`python -m sft.train model=qwen3 lora=r16`: one run; with `-m lora.r=8,16,32` a sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from sft.config.app import command, logs_to_stderr
from sft.config.rank import is_main_process
from sft.distributed.coordinated_exit import coordinated_exit

if TYPE_CHECKING:
    from sft.training.result import Result


@command("train", distributed_exit=coordinated_exit)
def main(config: DictConfig) -> float | None:
    """Train one composed run, print its directory, and return its objective to the sweeper."""
    with logs_to_stderr():
        result = train(config)
    if is_main_process():
        print(result)
    return result.value


def train(
    config: DictConfig, callbacks: Sequence[Any] = (), compute_metrics: Callable[..., Any] | None = None
) -> Result:
    """Train a composed config.

    Args:
        config: from Hydra or `sft.api.compose`.
        callbacks: transformers callbacks beside those of the config.
        compute_metrics: as transformers.Trainer takes it.

    Raises:
        UserError: a mistake in config or data, found before the first step.
        RunFailed: the run started and failed; what it wrote is kept.
        Interrupted: stopped by a signal with its checkpoint written.
    """
    from sft.distributed.ranks import process_group
    from sft.training.job import Job
    from sft.training.start import start

    with process_group(config.trainer.get("ddp_timeout") or 1800).raise_on_any_rank():
        job = Job.of(config)
    return start(job, callbacks, compute_metrics)


if __name__ == "__main__":
    main()
