"""A training run from top to bottom: callbacks, data, model, trainer, fit, finish."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from sft.config.build import build
from sft.config.checks.figures import objective_of
from sft.distributed.ranks import Ranks
from sft.evaluation.tasks import find_benchmarks
from sft.model.shared import lent
from sft.run import memory
from sft.run.log import apart
from sft.run.phases import mark
from sft.run.record import RunRecord
from sft.run.trackers.base import Tracker, tracking
from sft.training.answers import Examination, few_examples
from sft.training.build import build_model, build_trainer, built_early
from sft.training.callbacks.base import bind_all, closing
from sft.training.callbacks.profiling import profiling_callbacks
from sft.training.callbacks.pruning import pruning_callbacks
from sft.training.callbacks.stopping import Stopping
from sft.training.estimate.start import with_memory
from sft.training.finish import Trained, finish
from sft.training.inputs import Inputs, prepare_together
from sft.training.job import Job
from sft.training.layout.layout import lay_out
from sft.training.outputs import settle_steps, training_info, write_data
from sft.training.result import Result
from sft.training.resume.identity import input_facts, refuse_other_inputs
from sft.training.resume.start import explicit_keys, refuse_unmeasured, seed_everything


class TrainingRun:
    """One run, trained in this process; of several processes each has its own and goes the same way.

    Args:
        job: what to run; its config is complete but for automatic gradient checkpointing, which needs the rows.
        record: run.json, begun.
        ranks: the processes that train together.
        callbacks, compute_metrics: of the caller, as for `sft.train.train`.
        started: when, in seconds since the epoch.
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
        """Train and give the result.

        Args:
            resume_from: a checkpoint's directory; None to begin at the first step.
        """
        mark("imports")
        memory.reset_peak()  # a sweep's job has its own
        with self.stopping.listening():
            seed_everything(self.job.config["seed"])
            callbacks = self.build_callbacks()
            inputs = self.prepare_data()
            self.settle_checkpointing(inputs)
            model = self.build_model(inputs)
            with lent(model), ExitStack() as closed_at_the_end:
                trained = self.build_trainer(inputs, model, callbacks, closed_at_the_end)
                self.ask_before(trained.examination, model)
                self.fit(trained.trainer, resume_from)
                return finish(trained)

    def build_callbacks(self) -> dict[str, Any]:
        """The config's callbacks by name; with them, whatever needs neither data nor model is tried."""
        config = self.job.config
        with self.ranks.agreeing():
            callbacks = built_early(config, self.job.run, explicit_keys(self.job))
        find_benchmarks(config)
        return callbacks

    def prepare_data(self) -> Inputs:
        """Tokenizer, template and rows, the same as those that the run was begun with; their report is written."""
        job, ranks = self.job, self.ranks
        inputs = prepare_together(job.config, ranks)
        refuse_unmeasured(job.config, self.compute_metrics is not None, list(inputs.data.eval))
        facts = ranks.decided(lambda: input_facts(job.config, inputs))
        refuse_other_inputs(job.config, self.before, facts)
        write_data(job.run, inputs)
        self.record.update(**facts)
        mark("data")
        return inputs

    def settle_checkpointing(self, inputs: Inputs) -> None:
        """Replace `trainer.gradient_checkpointing=auto` by what the memory estimate of these rows says."""
        job = self.job
        config = self.ranks.decided(lambda: with_memory(job.config, inputs, self.before, job.run))
        self.job = job.settled(config)
        self.record.update(gradient_checkpointing=config["trainer"].get("gradient_checkpointing"))

    def build_model(self, inputs: Inputs) -> Any:
        """Base weights, embeddings for new tokens, the adapter."""
        with self.ranks.agreeing():
            return build_model(self.job.config, inputs, self.job.shares_base)

    def build_trainer(self, inputs: Inputs, model: Any, callbacks: Mapping[str, Any], stack: ExitStack) -> Trained:
        """The trainer with its callbacks bound and the layout of its batches checked on the model.

        Args:
            stack: closes the tracker and the callbacks.
        """
        config, run = self.job.config, self.job.run
        with self.ranks.agreeing():
            info = training_info(config, inputs, model)
            info.write(run)
            examination = Examination(self._built("evaluation"), inputs, config["seed"])
            trainer, tracker, objective = self._bound_trainer(inputs, model, callbacks, stack)
            attention = trainer.attention_for(inputs.model.attn_implementation)
            mark("trainer")
            noisy = trainer.noise is not None
            layout = lay_out(model, inputs.data.parts, attention, trainer.accelerator.autocast, noisy)
        layout = self.ranks.agree(layout)
        layout.take(model)
        trainer.lay_out(layout)
        with self.ranks.agreeing():
            settle_steps(run, inputs, config, trainer.batches_are_padded)
        mark("start-up check")
        return Trained(self.job, inputs, trainer, info, examination, tracker, objective, self.started)

    def ask_before(self, examination: Examination, model: Any) -> None:
        """The untrained model's answers, where `evaluation.before` wants them."""
        examination.ask_before(model, self.ranks)
        if examination.before is not None:
            mark("answers before training")

    def fit(self, trainer: Any, resume_from: str | None) -> None:
        """Train to the end.

        Raises:
            Interrupted: a signal came before it.
        """
        with apart():
            trainer.train(resume_from_checkpoint=resume_from)
        self.stopping.check(trainer.state.global_step, None if not self.stopping.stopped else trainer.state.max_steps)

    @property
    def before(self) -> Mapping[str, Any]:
        """run.json of the run that this one replays, else its own: what both must have in common is there."""
        return self.job.origin or self.record.content

    def _bound_trainer(
        self, inputs: Inputs, model: Any, callbacks: Mapping[str, Any], stack: ExitStack
    ) -> tuple[Any, Tracker, str]:
        """The trainer, its tracker and the run's objective."""
        job = self.job
        config, run = job.config, job.run
        objective, direction = objective_of(config, evaluates=bool(inputs.data.eval))
        bind_all(callbacks.values(), None, objective=objective, direction=direction)
        profiling = profiling_callbacks(bool(config.get("profile")))
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
            examples=few_examples(inputs, 4, config),
            objective=objective,
            direction=direction,
            rows_of_step=trainer.guard.rows_of_step,
        )
        return trainer, tracker, objective

    def _built(self, node: str) -> Any:
        """What a node's `_target_` makes of it."""
        config = self.job.config
        return build(config[node], where=node, allowed=config["allow_targets"])
