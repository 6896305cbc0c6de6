"""`python -m sft.train model=qwen3 lora=r16`: one run; with `-m lora.r=8,16,32` a sweep."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from sft.config.app import command, logs_to_stderr

if TYPE_CHECKING:
    from sft.run.record import RunRecord
    from sft.training.job import Job
    from sft.training.result import Result


@command("train")
def main(config: DictConfig) -> float | None:
    """Train one composed run, print its directory, and return its objective to the sweeper."""
    with logs_to_stderr():
        result = train(config)
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
    started = time.time()
    from sft.run.record import RunRecord
    from sft.run.session import holding, recording
    from sft.training.finish import earlier_result
    from sft.training.job import Job
    from sft.training.start import begin

    job = Job.of(config)
    with holding(job.run):
        record = RunRecord(job.run)
        resume_from = begin(job, record)
        if resume_from is None and (result := earlier_result(job)):
            return result
        with recording(job.run, record):
            return _run(job, record, resume_from, callbacks, compute_metrics, started)


def _run(
    job: Job,
    record: RunRecord,
    resume_from: str | None,
    more: Sequence[Any],
    compute_metrics: Callable[..., Any] | None,
    started: float,
) -> Result:
    """Data, model, trainer; fit; save; the figures."""
    from sft.config.build import build
    from sft.run.trackers.base import tracking
    from sft.training.answers import Examination, few_examples
    from sft.training.build import build_callbacks, build_model, build_trainer
    from sft.training.callbacks.base import bind_all, closing
    from sft.training.finish import finish, objective_of
    from sft.training.inputs import prepare_inputs
    from sft.training.isolation import check_isolation
    from sft.training.outputs import training_info, write_data
    from sft.training.start import explicit_keys, seed_everything
    from sft.training.stopping import Stopping

    config, run = job.config, job.run
    allowed = config["allow_targets"]
    stopping = Stopping()
    with stopping.listening():
        seed_everything(config["seed"])
        inputs = prepare_inputs(config)
        write_data(run, inputs)
        record.update(data=inputs.data.report.get("fingerprints") or {"rows": inputs.data.fingerprint})

        model = build_model(config, inputs)
        info = training_info(config, inputs, model)
        info.write(run)

        objective, direction = objective_of(config, evaluates=bool(inputs.data.eval))
        callbacks = build_callbacks(config, objective, direction)
        examination = Examination(
            build(config["evaluation"], where="evaluation", allowed=allowed), inputs, config["seed"]
        )
        tracker = build(config["tracker"], where="tracker", allowed=allowed)
        with tracking(tracker, run, config, run.path.name, job.group) as active, closing(callbacks.values()):
            trainer = build_trainer(
                config, run, model, inputs, callbacks, [*more, stopping], active, explicit_keys(job), compute_metrics
            )
            bind_all(
                trainer.callback_handler.callbacks,
                run,
                tokenizer=inputs.tokenizer,
                template=inputs.template,
                examples=few_examples(inputs, 4, config),
                objective=objective,
                direction=direction,
            )
            check_isolation(model, inputs.data.parts, trainer.compute_loss_context_manager)
            examination.ask_before(model)
            trainer.train(resume_from_checkpoint=resume_from)
            stopping.check(trainer.state.global_step, None if not stopping.stopped else trainer.state.max_steps)
            return finish(job, trainer, inputs, info, examination, active, (objective, started))


if __name__ == "__main__":
    main()
