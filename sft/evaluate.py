"""`python -m sft.evaluate run=DIR`: loss, accuracy and scored answers of a finished run, a merged model or a bare base."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from sft.config.app import command, logs_to_stderr

if TYPE_CHECKING:
    from sft.inference.evaluated import Evaluated


@command("evaluate")
def main(config: DictConfig) -> None:
    """Evaluate, print the tables and the directory with metrics.json and the answers."""
    from sft.config.errors import RunFailed, UserError

    try:
        with logs_to_stderr():
            found = evaluate(config)
    except UserError:
        _leave_nothing()
        raise
    print(found)
    if found.missing:
        raise RunFailed(found.missing)


def _leave_nothing() -> None:
    """Remove the directory that Hydra made for a refused evaluation; `rmdir` removes empty ones only."""
    from hydra.core.hydra_config import HydraConfig

    made = Path(HydraConfig.get().runtime.output_dir)
    for directory in (made, made.parent) if made.parent.name == "evaluations" else (made,):
        with contextlib.suppress(OSError):
            directory.rmdir()


def evaluate(config: DictConfig) -> Evaluated:
    """Evaluate what a composed config names.

    Raises:
        UserError: a mistake in config or data, a run without weights, or an unreachable judge.
    """
    from sft.inference.judge import judge, open_judge, with_answers
    from sft.run.log import RunLog
    from sft.training.job import Job

    job = Job.of(config)
    run_config = job.config
    with RunLog(None):
        judging = open_judge(run_config)  # first, because the following imports take seconds

        from sft.config.build import build
        from sft.evaluation.tasks import find_benchmarks
        from sft.inference.evaluate_model import batch_size_of, evaluate_base, evaluate_model
        from sft.inference.evaluated import Evaluated, free_directory, write
        from sft.inference.model_source import find_model_source
        from sft.inference.rows import evaluation_rows
        from sft.model.dtype import autocast_dtype

        spec = build(run_config.evaluation, where="evaluation", allowed=run_config.allow_targets)
        find_benchmarks(run_config)
        spec = spec if judging is None else with_answers(spec)
        model_source = find_model_source(run_config)
        rows = evaluation_rows(run_config, model_source)
        settings = {
            "batch_size": batch_size_of(run_config),
            "autocast": autocast_dtype(run_config.get("trainer") or {}, run_config.model.dtype),
            "seed": run_config.seed,
        }
        model = model_source.load(rows.preprocessing.tokenizer, rows.control)
        before = (
            evaluate_base(model_source, model, rows, spec, **settings) if spec.before and model_source.adapter else None
        )
        after = evaluate_model(model, rows, spec, **settings)
        del model
        if spec.before and not model_source.adapter:
            before = evaluate_base(model_source, None, rows, spec, **settings)
        directory = free_directory(job.run)
        found = Evaluated(directory.path, model_source, after, before, spec.num_samples)
        if judging is not None:
            write(directory, found, status="interrupted")  # written now, in case the judge is interrupted
            judge(found, judging)
        write(directory, found)
    return found


if __name__ == "__main__":
    main()
