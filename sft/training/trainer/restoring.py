"""A training loop that resumes at the end of a step as if it had never stopped, under the settings as they are now.

transformers' own takes one more step where a checkpoint is the last of a run that ends within an epoch, leaves out what
the end of an epoch had still to do, and keeps the rates, intervals and optimizer settings of the earlier start.
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

_SETTINGS = ("weight_decay", "betas", "eps")  # of an optimizer's groups, by the config


class RestoringTrainer(Trainer):
    """A Trainer that resumes exactly.

    Attributes:
        progress: what checkpoints keep of a run beside transformers' own state.
    """

    progress: Progress
    _unsettled: bool = False  # whether the end of an epoch that the checkpoint lies before has to be looked at

    def _init_training_state(
        self, max_steps: int, steps_per_epoch: int, epochs: int, resume_from_checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        """The checkpoint's state, with this start's intervals and end.

        Raises:
            UserError: the checkpoint lies behind the end, or the best model's is gone.
        """
        found = super()._init_training_state(max_steps, steps_per_epoch, epochs, resume_from_checkpoint, trial)
        self._unsettled = resume_from_checkpoint is not None
        self.state.compute_steps(self.args, max_steps)
        if self.state.global_step > max_steps:
            raise UserError(
                f"the checkpoint is at step {self.state.global_step}, behind the last one, {max_steps}",
                where="trainer.max_steps" if self.args.max_steps > 0 else "trainer.num_train_epochs",
                remedy="a larger value, or resume= an earlier checkpoint in another hydra.run.dir",
            )
        self._find_best(resume_from_checkpoint)
        kept = getattr(self.args, "resume_schedule", "stretched") == "kept"
        if not (kept and resume_from_checkpoint and self.progress.schedule_steps):
            self.progress.schedule_steps = max_steps
        return found

    def _find_best(self, resume_from_checkpoint: str | None) -> None:
        """The best model's checkpoint where it is now: a run directory may have been moved."""
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
                f"the best model so far is that of step {step}, and its checkpoint is gone",
                where=str(places[1] / checkpoint.name(step)),
                remedy="put it back, or resume=never to train again from the first step",
            )

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule over the whole run, or over what it was made for first (`trainer.resume_schedule=kept`)."""
        steps = self.progress.schedule_steps or num_training_steps
        scheduler = super().create_scheduler(steps, optimizer)
        if steps < num_training_steps:
            held_after(scheduler, steps)
        return scheduler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The state of both; the settings stay those of this start's config."""
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
        """An epoch's steps; none where the run is at its end."""
        at_end = self._at_end
        whole = kwargs["num_update_steps_per_epoch"]
        self._settle(at_end or self.state.global_step % whole == 0, kwargs["trial"], kwargs["ignore_keys_for_eval"])
        if at_end:
            self.control.should_training_stop = True
            self._load_rng_state(kwargs["resume_from_checkpoint"])
            return None
        return super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> Any:
        self._settle(True, trial, None)  # where no epoch was left to run
        return super()._finalize_training(trial, num_train_samples, start_time)

    @property
    def _at_end(self) -> bool:
        return self.state.global_step >= self.state.max_steps or self.control.should_training_stop

    def _settle(self, ends_epoch: bool, trial: Any, ignore_keys: Any) -> None:
        """What the end of an epoch does, where the checkpoint was written in the epoch's last step and before it."""
        if not self._unsettled:
            return
        self._unsettled = False
        if not ends_epoch or self.progress.epoch_ended or not self.state.global_step:
            return
        control, stops = self.control, self.control.should_training_stop
        control.should_log = control.should_evaluate = control.should_save = False  # as the checkpoint's step had them
        self.control = self.callback_handler.on_epoch_end(self.args, self.state, control)
        norm, rate = self.progress.last_step or (None, None)
        epoch = int(self.state.epoch or 0)
        began = 0.0  # transformers' log makes speeds of it where tokens are counted, which is off
        self._maybe_log_save_evaluate(
            self._tr_loss, norm, self.model, trial, epoch, ignore_keys, began, learning_rate=rate
        )
        self.control.should_training_stop = self.control.should_training_stop or stops

    def _maybe_log_save_evaluate(self, tr_loss: Any, grad_norm: Any, *args: Any, **kwargs: Any) -> None:
        self._of_step = grad_norm, kwargs.get("learning_rate")
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)

    def _note_checkpoint(self) -> None:
        """Have the progress keep what the epoch's end would log of the present step."""
        norm, rate = getattr(self, "_of_step", (None, None))
        self.progress.last_step = [None if norm is None else float(norm), rate]

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> Any:
        """As in transformers; the evaluation before the first step is made once and not at every resume."""
        if skip_scheduler and self.state.global_step:
            return {}
        return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
