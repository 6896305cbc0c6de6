"""A training loop that resumes after a step as if it had never stopped, with the current settings.

transformers' own takes an extra step if a checkpoint is the last of a run that ends within an epoch, skips what was
still due at the end of an epoch, and keeps the rates, intervals and optimizer settings of the earlier start.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import SaveStrategy

from sft.config.errors import UserError
from sft.run import checkpoint
from sft.training.trainer.progress import Progress
from sft.training.trainer.schedule import held_after, set_rates

log = logging.getLogger(__name__)

_SETTINGS = ("weight_decay", "betas", "eps")  # settings of an optimizer's parameter groups that come from the config


class RestoringTrainer(Trainer):
    """A Trainer that resumes exactly.

    Attributes:
        progress: state in checkpoints besides transformers' own.
    """

    progress: Progress
    _epoch_end_pending: bool = False  # whether the end of the checkpoint's epoch is still to be processed

    def _init_training_state(
        self, max_steps: int, steps_per_epoch: int, epochs: int, resume_from_checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        """The checkpoint's state, with the current intervals and last step.

        Raises:
            UserError: the checkpoint is past the last step, or the best model's checkpoint is missing.
        """
        found = super()._init_training_state(max_steps, steps_per_epoch, epochs, resume_from_checkpoint, trial)
        self._epoch_end_pending = resume_from_checkpoint is not None
        self.state.compute_steps(self.args, max_steps)
        if self.state.global_step > max_steps:
            raise UserError(
                f"the checkpoint is at step {self.state.global_step}, past the last one, {max_steps}",
                where="trainer.max_steps" if self.args.max_steps > 0 else "trainer.num_train_epochs",
                remedy="a larger value, or resume= an earlier checkpoint in another hydra.run.dir",
            )
        self._locate_best_checkpoint(resume_from_checkpoint)
        kept = getattr(self.args, "resume_schedule", "stretched") == "kept"
        if not (kept and resume_from_checkpoint and self.progress.schedule_steps):
            self.progress.schedule_steps = max_steps
        return found

    def _locate_best_checkpoint(self, resume_from_checkpoint: str | None) -> None:
        """Locate the best model's checkpoint: the run directory may have been moved."""
        step = self.state.best_global_step
        if not step or not resume_from_checkpoint or self.state.best_model_checkpoint:
            return
        places = (Path(str(self.args.output_dir)), Path(resume_from_checkpoint).parent)
        best = next(
            (place / checkpoint.name(step) for place in places if (place / checkpoint.name(step)).is_dir()), None
        )
        if best is not None:
            self.state.best_model_checkpoint = str(best)
        elif self.args.load_best_model_at_end and self.args.save_strategy != SaveStrategy.NO:
            raise UserError(
                f"the best model so far is that of step {step}, and its checkpoint is missing",
                where=str(places[1] / checkpoint.name(step)),
                remedy="put it back, or resume=never to train again from the first step",
            )

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule over the whole run, or over its original length (`trainer.resume_schedule=kept`)."""
        steps = self.progress.schedule_steps or num_training_steps
        scheduler = super().create_scheduler(steps, optimizer)
        if steps < num_training_steps:
            held_after(scheduler, steps)
        return scheduler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load the state of both; keep the settings of the current config."""
        if checkpoint is None or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        assert self.optimizer is not None
        settings = [{key: group[key] for key in _SETTINGS if key in group} for group in self.optimizer.param_groups]
        peaks = list(getattr(self.lr_scheduler, "base_lrs", []))
        super()._load_optimizer_and_scheduler(checkpoint)
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)
        set_rates(self.optimizer, self.lr_scheduler, peaks)

    # -- the end of an epoch, and of the run -----------------------------------------------------------------------------
    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        """Run an epoch's steps; none if the run is at its end."""
        at_end = self._is_at_end
        whole = kwargs["num_update_steps_per_epoch"]
        self._finish_epoch(
            at_end or self.state.global_step % whole == 0, kwargs["trial"], kwargs["ignore_keys_for_eval"]
        )
        if at_end:
            self.control.should_training_stop = True
            self._load_rng_state(kwargs["resume_from_checkpoint"])
            return None
        return super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> Any:
        self._finish_epoch(True, trial, None)  # if no epoch was left to run
        return super()._finalize_training(trial, num_train_samples, start_time)

    @property
    def _is_at_end(self) -> bool:
        return self.state.global_step >= self.state.max_steps or self.control.should_training_stop

    def _finish_epoch(self, ends_epoch: bool, trial: Any, ignore_keys: Any) -> None:
        """Do what is due at the end of an epoch, if the checkpoint was written in the epoch's last step before it."""
        if not self._epoch_end_pending:
            return
        self._epoch_end_pending = False
        if not ends_epoch or self.progress.epoch_ended or not self.state.global_step:
            return
        control, stops = self.control, self.control.should_training_stop
        control.should_log = control.should_evaluate = control.should_save = False  # as in the checkpoint's step
        self.control = self.callback_handler.on_epoch_end(self.args, self.state, control)
        norm, rate = self.progress.last_step or (None, None)
        epoch = int(self.state.epoch or 0)
        began = 0.0  # transformers' log computes speeds from it if it counts tokens, which is off
        self._maybe_log_save_evaluate(
            self._tr_loss, norm, self.model, trial, epoch, ignore_keys, began, learning_rate=rate
        )
        self.control.should_training_stop = self.control.should_training_stop or stops

    def _maybe_log_save_evaluate(self, tr_loss: Any, grad_norm: Any, *args: Any, **kwargs: Any) -> None:
        self._of_step = grad_norm, kwargs.get("learning_rate")
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)

    def _note_checkpoint(self) -> None:
        """Store in the progress what the epoch's end would log of the current step."""
        norm, rate = getattr(self, "_of_step", (None, None))
        self.progress.last_step = [None if norm is None else float(norm), rate]

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> Any:
        """As in transformers, but the evaluation before the first step is done only once and not at every resume."""
        if skip_scheduler and self.state.global_step:
            return {}
        return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
