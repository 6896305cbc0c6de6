"""A training run from top to bottom: callbacks, data, model, trainer, fit, finish."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from sft.config.build import build
from sft.config.checks.figures import objective_of
from sft.distributed.ranks import Ranks
from sft.evaluation.tasks import find_benchmarks
from sft.model.shared import borrowed_base
from sft.run import memory
from sft.run.log import all_processes_log
from sft.run.phases import mark
from sft.run.record import RunRecord
from sft.run.trackers.base import Tracker, tracking
from sft.training.answers import AnswerEvaluation, sample_conversations_for_callbacks
from sft.training.build import build_callbacks_early, build_model, build_trainer
from sft.training.callbacks.base import bind_all, closing
from sft.training.callbacks.profiling import profiling_callbacks
from sft.training.callbacks.pruning import pruning_callbacks
from sft.training.callbacks.stopping import Stopping
from sft.training.estimate.start import check_memory
from sft.training.finish import TrainedRun, finish
from sft.training.inputs import Inputs, prepare_on_all_ranks
from sft.training.job import Job
from sft.training.layout.layout import choose_layout
from sft.training.outputs import training_info, write_data, write_steps_per_epoch
from sft.training.result import Result
from sft.training.resume.identity import input_facts, refuse_other_inputs
from sft.training.resume.start import explicit_keys, refuse_unavailable_metrics, seed_everything


class TrainingRun:
    """One run, trained in this process; with several processes each has its own, and all execute the same steps.

    Args:
        job: what to run; its config is complete except for automatic gradient checkpointing, which needs the rows.
        record: run.json, already written at the start.
        ranks: the processes that train together.
        callbacks, compute_metrics: given by the caller, as for `sft.train.train`.
        started: start time, in seconds since the epoch.
    """

    def __init__(
        self,
        job: Job,
        record: RunRecord,
        ranks: Ranks,
        callbacks: Sequence[Any] = (),
        compute_metrics: Callable[..., Any] | None = None,
        started: float = 0.0,
    ) -> None:
        self.job, self.record, self.ranks = job, record, ranks
        self.callbacks, self.compute_metrics, self.started = callbacks, compute_metrics, started
        self.stopping = Stopping(ranks)

    def execute(self, resume_from: str | None) -> Result:
        """Train and return the result.

        Args:
            resume_from: a checkpoint's directory; None to begin at the first step.
        """
        mark("imports")
        memory.reset_peak()  # each job of a sweep has its own peak
        with self.stopping.catch_signals():
            seed_everything(self.job.config.seed)
            callbacks = self.build_callbacks()
            inputs = self.prepare_data()
            self.settle_checkpointing(inputs)
            model = self.build_model(inputs)
            with borrowed_base(model), ExitStack() as closed_at_the_end:
                trained = self.build_trainer(inputs, model, callbacks, closed_at_the_end)
                self.evaluate_before(trained.answer_evaluation, model)
                self.fit(trained.trainer, resume_from)
                return finish(trained)

    def build_callbacks(self) -> dict[str, Any]:
        """Build the config's callbacks by name, and check everything that needs neither data nor model."""
        config = self.job.config
        with self.ranks.raise_on_any_rank():
            callbacks = build_callbacks_early(config, self.job.run, explicit_keys(self.job))
        find_benchmarks(config)
        return callbacks

    def prepare_data(self) -> Inputs:
        """Prepare tokenizer, template and rows, check that they are those the run was started with, and write their
        report."""
        job, ranks = self.job, self.ranks
        inputs = prepare_on_all_ranks(job.config, ranks)
        refuse_unavailable_metrics(job.config, self.compute_metrics is not None, list(inputs.data.eval))
        facts = ranks.run_on_main_and_broadcast(lambda: input_facts(job.config, inputs))
        refuse_other_inputs(job.config, self.before, facts)
        write_data(job.run, inputs)
        self.record.update(**facts)
        mark("data")
        return inputs

    def settle_checkpointing(self, inputs: Inputs) -> None:
        """Resolve `trainer.gradient_checkpointing=auto` by the memory estimate for these rows."""
        job = self.job
        config = self.ranks.run_on_main_and_broadcast(lambda: check_memory(job.config, inputs, self.before, job.run))
        self.job = job.settled(config)
        self.record.update(gradient_checkpointing=config.trainer.get("gradient_checkpointing"))

    def build_model(self, inputs: Inputs) -> Any:
        """Load base weights, add embeddings for new tokens, attach the adapter."""
        with self.ranks.raise_on_any_rank():
            return build_model(self.job.config, inputs, self.job.shares_base)

    def build_trainer(self, inputs: Inputs, model: Any, callbacks: Mapping[str, Any], stack: ExitStack) -> TrainedRun:
        """Build the trainer, bind its callbacks and check the batch layout on the model.

        Args:
            stack: closes the tracker and the callbacks.
        """
        config, run = self.job.config, self.job.run
        with self.ranks.raise_on_any_rank():
            info = training_info(config, inputs, model)
            info.write(run)
            answer_evaluation = AnswerEvaluation(self._built("evaluation"), inputs, config.seed)
            trainer, tracker, objective = self._bound_trainer(inputs, model, callbacks, stack)
            attention = trainer.attention_for(inputs.model.attn_implementation)
            mark("trainer")
            noisy = trainer.noise is not None
            layout = choose_layout(model, inputs.data.parts, attention, trainer.accelerator.autocast, noisy)
        layout = self.ranks.broadcast(layout)
        layout.apply(model)
        trainer.apply_layout(layout)
        with self.ranks.raise_on_any_rank():
            write_steps_per_epoch(run, inputs, config, trainer.batches_are_padded)
        mark("start-up check")
        return TrainedRun(self.job, inputs, trainer, info, answer_evaluation, tracker, objective, self.started)

    def evaluate_before(self, answer_evaluation: AnswerEvaluation, model: Any) -> None:
        """Generate the untrained model's answers if `evaluation.before` is on."""
        answer_evaluation.evaluate_before(model, self.ranks)
        if answer_evaluation.before is not None:
            mark("answers before training")

    def fit(self, trainer: Any, resume_from: str | None) -> None:
        """Train to the end.

        Raises:
            Interrupted: stopped by a signal before the end.
        """
        with all_processes_log():
            trainer.train(resume_from_checkpoint=resume_from)
        self.stopping.check(trainer.state.global_step, None if not self.stopping.stopped else trainer.state.max_steps)

    @property
    def before(self) -> Mapping[str, Any]:
        """run.json of the run that this one replays, or else its own: it records what must stay the same."""
        return self.job.origin or self.record.content

    def _bound_trainer(
        self, inputs: Inputs, model: Any, callbacks: Mapping[str, Any], stack: ExitStack
    ) -> tuple[Any, Tracker, str]:
        """The trainer with its callbacks bound, its tracker and the run's objective."""
        job = self.job
        config, run = job.config, job.run
        objective, direction = objective_of(config, evaluates=bool(inputs.data.eval))
        bind_all(callbacks.values(), None, objective=objective, direction=direction)
        profiling = profiling_callbacks(config.profile)
        tracker = stack.enter_context(tracking(self._built("tracker"), run, config, run.path.name, job.group))
        stack.enter_context(closing([*callbacks.values(), *profiling]))
        others = [*self.callbacks, *pruning_callbacks(), *profiling, self.stopping]
        trainer = build_trainer(
            config, run, model, inputs, callbacks, others, tracker, explicit_keys(job), self.compute_metrics
        )
        bind_all(
            trainer.callback_handler.callbacks,
            run,
            tokenizer=inputs.tokenizer,
            template=inputs.template,
            examples=sample_conversations_for_callbacks(inputs, 4, config),
            objective=objective,
            direction=direction,
            rows_of_step=trainer.guard.rows_of_step,
        )
        return trainer, tracker, objective

    def _built(self, node: str) -> Any:
        """The object built from a node's `_target_`."""
        config = self.job.config
        return build(getattr(config, node), where=node, allowed=config.allow_targets)
