"""`python -m sft.train model=qwen3 lora=r16`: one run; with `-m lora.r=8,16,32` a sweep."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from sft.config.app import command, logs_to_stderr
from sft.config.rank import is_main
from sft.distributed.coordinated_exit import leave_together
from sft.run.phases import begin as begin_phases
from sft.run.phases import mark

if TYPE_CHECKING:
    from sft.distributed.ranks import Ranks
    from sft.run.record import RunRecord
    from sft.run.trackers.base import Tracker
    from sft.training.job import Job
    from sft.training.result import Result


@command("train", together=leave_together)
def main(config: DictConfig) -> float | None:
    """Train one composed run, print its directory, and return its objective to the sweeper."""
    with logs_to_stderr():
        result = train(config)
    if is_main():
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
    from sft.distributed.ranks import joined
    from sft.training.job import Job

    with joined(config.trainer.get("ddp_timeout") or 1800).agreeing():
        job = Job.of(config)
    return train_job(job, callbacks, compute_metrics)


def train_job(job: Job, callbacks: Sequence[Any] = (), compute_metrics: Callable[..., Any] | None = None) -> Result:
    """As `train`, of a job that is made already. Of several processes each calls it; rank 0 decides and writes."""
    started = time.time()
    begin_phases()
    from sft.distributed.coordinated_exit import Ending
    from sft.distributed.ranks import joined
    from sft.distributed.sharding import refuse_unspreadable
    from sft.hub.push import Push
    from sft.run.log import alike
    from sft.run.record import RunRecord
    from sft.run.session import ended, holding, recording
    from sft.training.memory import answering
    from sft.training.resume.finished import earlier_result, push_weights
    from sft.training.resume.start import begin, refuse_unmeasured

    ranks = joined()
    job = job.agreed(ranks)
    push = Push.of(job.config)
    with ExitStack() as stack:
        with ranks.agreeing():
            stack.enter_context(holding(job.run))
            refuse_unspreadable(job.config)
            if not job.origin:
                refuse_unmeasured(job.config, predicts=compute_metrics is not None)
        stack.enter_context(alike())
        record = RunRecord(job.run)
        resume_from, record.content = ranks.decided(lambda: (begin(job, record), record.content))
        result = ranks.decided(lambda: earlier_result(job) if resume_from is None else None)
        if result is None:
            ending = stack.enter_context(Ending(ranks, lambda error: ended(job.run, record, "failed", error)))
            with recording(job.run, record), answering(job.config, job.run), ending.common():
                result = _run(_Course(job, record, resume_from, callbacks, compute_metrics, ranks, started))
                ranks.wait()  # rank 0 still closes its tracker: whoever leaves before would be missed
        if push:
            ranks.decided(lambda: push_weights(job.run, push))
        return result


@dataclass
class _Course:
    """What the steps of a run hand on.

    Attributes:
        job, record: the run's.
        resume_from: a checkpoint's directory; None from the beginning.
        callbacks, compute_metrics: of the caller.
        ranks: the processes that train together.
        started: when, in seconds.
    """

    job: Job
    record: RunRecord
    resume_from: str | None
    callbacks: Sequence[Any]
    compute_metrics: Callable[..., Any] | None
    ranks: Ranks
    started: float


def _run(course: _Course) -> Result:
    """Data and model; then `_fit`."""
    from sft.evaluation.tasks import find_benchmarks
    from sft.model.shared import lent
    from sft.run import memory
    from sft.training.build import build_model, built_early
    from sft.training.estimate.start import with_memory
    from sft.training.inputs import prepare_together
    from sft.training.outputs import write_data
    from sft.training.resume.identity import input_facts, refuse_other_inputs, with_recorded_day
    from sft.training.resume.start import explicit_keys, refuse_unmeasured, seed_everything
    from sft.training.stopping import Stopping

    job, record, ranks = course.job, course.record, course.ranks
    mark("imports")
    memory.reset_peak()  # a sweep's job has its own
    before = job.origin or record.content
    job.config = config = with_recorded_day(job.config, before)
    stopping = Stopping(ranks)
    with stopping.listening():
        seed_everything(config["seed"])
        with ranks.agreeing():
            callbacks = built_early(config, job.run, explicit_keys(job))
        find_benchmarks(config)
        inputs = prepare_together(config, ranks)
        refuse_unmeasured(config, course.compute_metrics is not None, list(inputs.data.eval))
        facts = ranks.decided(lambda: input_facts(config, inputs))
        refuse_other_inputs(config, before, facts)
        write_data(job.run, inputs)
        record.update(**facts)
        mark("data")
        job.config = config = ranks.decided(lambda: with_memory(config, inputs, before, job.run))
        record.update(gradient_checkpointing=config["trainer"].get("gradient_checkpointing"))
        with ranks.agreeing():
            model = build_model(config, inputs, job.shares_base)
        with lent(model):
            return _fit(course, inputs, model, callbacks, stopping)


def _fit(course: _Course, inputs: Any, model: Any, callbacks: Any, stopping: Any) -> Result:
    """Trainer; fit; save; the figures."""
    from sft.run.log import apart
    from sft.training.answers import Examination
    from sft.training.finish import Trained, finish
    from sft.training.layout.layout import lay_out
    from sft.training.outputs import settle_steps, training_info

    job, ranks = course.job, course.ranks
    config, run = job.config, job.run
    with ExitStack() as stack:
        with ranks.agreeing():
            info = training_info(config, inputs, model)
            info.write(run)
            examination = Examination(_built(config, "evaluation"), inputs, config["seed"])
            trainer, tracker, objective = _trainer(course, inputs, model, callbacks, stopping, stack)
            attention = trainer.attention_for(inputs.model.attn_implementation)
            mark("trainer")
            noisy = trainer.noise is not None
            layout = lay_out(model, inputs.data.parts, attention, trainer.accelerator.autocast, noisy)
        layout = ranks.agree(layout)
        layout.take(model)
        trainer.lay_out(layout)
        with ranks.agreeing():
            settle_steps(run, inputs, config, trainer.batches_are_padded)
        mark("start-up check")
        examination.ask_before(model, ranks)
        if examination.before is not None:
            mark("answers before training")
        with apart():
            trainer.train(resume_from_checkpoint=course.resume_from)
        stopping.check(trainer.state.global_step, None if not stopping.stopped else trainer.state.max_steps)
        return finish(Trained(job, inputs, trainer, info, examination, tracker, objective, course.started))


def _trainer(
    course: _Course, inputs: Any, model: Any, callbacks: Any, stopping: Any, stack: ExitStack
) -> tuple[Any, Tracker, str]:
    """The trainer with its callbacks bound, the tracker, and the run's objective; `stack` closes what wants closing."""
    from sft.config.checks.figures import objective_of
    from sft.run.trackers.base import tracking
    from sft.training.answers import few_examples
    from sft.training.build import build_trainer
    from sft.training.callbacks.base import bind_all, closing
    from sft.training.callbacks.pruning import pruning_callbacks
    from sft.training.profiling import profiling_callbacks
    from sft.training.resume.start import explicit_keys

    job = course.job
    config, run = job.config, job.run
    objective, direction = objective_of(config, evaluates=bool(inputs.data.eval))
    bind_all(callbacks.values(), None, objective=objective, direction=direction)
    profiling = profiling_callbacks(bool(config.get("profile")))
    tracker = stack.enter_context(tracking(_built(config, "tracker"), run, config, run.path.name, job.group))
    stack.enter_context(closing([*callbacks.values(), *profiling]))
    others = [*course.callbacks, *pruning_callbacks(), *profiling, stopping]
    explicit, compute_metrics = explicit_keys(job), course.compute_metrics
    trainer = build_trainer(config, run, model, inputs, callbacks, others, tracker, explicit, compute_metrics)
    bind_all(
        trainer.callback_handler.callbacks,
        run,
        tokenizer=inputs.tokenizer,
        template=inputs.template,
        examples=few_examples(inputs, 4, config),
        objective=objective,
        direction=direction,
        rows_of_step=trainer.guard.rows_of_step,
    )
    return trainer, tracker, objective


def _built(config: Any, node: str) -> Any:
    """What a node's `_target_` makes of it."""
    from sft.config.build import build

    return build(config[node], where=node, allowed=config["allow_targets"])


if __name__ == "__main__":
    main()
