"""Atomic checkpoints that include the callbacks' state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from sft.distributed.ranks import Ranks
from sft.model.facts import stored_bytes
from sft.run import checkpoint
from sft.training.callbacks.state import collect, restore
from sft.training.trainer.restoring import RestoringTrainer


class SavingTrainer(RestoringTrainer):
    """A Trainer that writes the checkpoints it resumes from.

    Attributes:
        ranks: the processes that train together.
    """

    ranks: Ranks

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write an atomic checkpoint, and delete the oldest ones beyond save_total_limit."""
        self.store_flos()
        root, step, state = Path(str(self.args.output_dir)), self.state.global_step, self.state
        self.progress.unlogged_loss = self.ranks.gather(float(self._tr_loss))
        self.progress.last_logged = self._globalstep_last_logged
        self._note_checkpoint()
        main, barrier, needed = self.args.should_save, self.accelerator.wait_for_everyone, self._checkpoint_bytes()
        with checkpoint.writing(root, step, main=main, barrier=barrier, needed=needed) as directory:
            self.save_model(str(directory), _internal_call=True)
            if state.best_global_step:
                best = root / checkpoint.name(state.best_global_step)
                if best.is_dir() or state.best_global_step == step:
                    state.best_model_checkpoint = str(best)
            if not self.args.save_only_model:
                self._save_optimizer_and_scheduler(str(directory))
                self._save_scaler(str(directory))
                self._save_rng_state(str(directory))
            if self.args.should_save:
                state.stateful_callbacks = collect([*self.callback_handler.callbacks, self.control])  # type: ignore[assignment]
                state.save_to_json(str(directory / TRAINER_STATE_NAME))
        if self.args.should_save:
            keep = [state.best_model_checkpoint] if state.best_model_checkpoint else []
            checkpoint.prune(root, self.args.save_total_limit, keep=keep)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        # a pickle of all arguments, which nothing here reads; config.resolved.yaml has the same content
        (Path(str(output_dir or self.args.output_dir)) / "training_args.bin").unlink(missing_ok=True)

    def _load_callback_state(self) -> None:
        """Restore only the callbacks' state from the checkpoint; they keep their position and run directory."""
        states: Any = self.state.stateful_callbacks
        restore([*self.callback_handler.callbacks, self.control], states or {})

    def _checkpoint_bytes(self) -> int | None:
        """Bytes of a checkpoint written now: trained weights and optimizer state. None if they are sharded."""
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or self.model is None:
            return None
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        adapts = hasattr(self.model, "peft_config")
        weights = trained if adapts else list(self.model.state_dict().values())
        size = stored_bytes(weights)
        if not self.args.save_only_model and self.optimizer is not None:
            states = (value for state in self.optimizer.state.values() for value in state.values())
            size += stored_bytes(each for each in states if hasattr(each, "element_size"))
        return size
