"""Settings that may change when a run is resumed, and the effect of the change.

A key that is not listed is fixed for the life of a run: the state in its checkpoints (weights, optimizer, random
numbers, position in the data) is meaningless with a different value. `sft.training.resume.config_changes` refuses
changes of those, and changes of the listed ones unless `allow_changes` names them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SCHEDULE = "each later step uses the learning rate of the new schedule at that step"
_END = "training ends there; the schedule follows trainer.resume_schedule"
_OPTIMIZER = "each later optimizer step uses it, with the existing moments"
_SPLIT = "a step splits the same rows into other batches; the product with the number of processes must stay the same"
_EVALUATION = "later evaluations happen at the new steps"
_ROWS = "later steps take their rows from the current data, in its order, from the same step number on"

# A key stands for all keys below it.
EFFECTS: dict[str, str] = {
    "trainer.learning_rate": _SCHEDULE,
    "trainer.lr_scheduler_type": _SCHEDULE,
    "trainer.lr_scheduler_kwargs": _SCHEDULE,
    "trainer.warmup_steps": _SCHEDULE,
    "trainer.max_steps": _END,
    "trainer.num_train_epochs": _END,
    "trainer.weight_decay": _OPTIMIZER,
    "trainer.adam_beta1": _OPTIMIZER,
    "trainer.adam_beta2": _OPTIMIZER,
    "trainer.adam_epsilon": _OPTIMIZER,
    "trainer.max_grad_norm": "later gradients are clipped to it",
    "trainer.per_device_train_batch_size": _SPLIT,
    "trainer.gradient_accumulation_steps": _SPLIT,
    "trainer.gradient_checkpointing": "later steps keep their activations, or recompute them",
    "trainer.bf16": "later steps are computed in that precision",
    "trainer.cpu_parts": "later batches are computed in that many parts",
    "trainer.neftune_noise_alpha": "later steps add that noise to the embeddings",
    "trainer.eval_strategy": _EVALUATION,
    "trainer.eval_steps": _EVALUATION,
    "trainer.eval_delay": _EVALUATION,
    "lora.lora_dropout": "later steps drop that fraction",
    "model.attn_implementation": "later steps are computed with it",
    "callbacks": "they use the new settings; what they have counted so far is kept",
    "dataset": _ROWS,
    "template": _ROWS,
}
# Not in the config, compared with run.json.
FACTS: dict[str, str] = {
    "data": _ROWS,
    "template": _ROWS,
    "versions": "later steps are computed by the installed libraries",
    "world_size": "the rows of a step are redistributed; each process draws its own random numbers",
}
# Fixed although a parent key is in the table.
FIXED: dict[str, str] = {
    "callbacks.best_model": "the best evaluation so far was chosen without it, or by another metric",
}


def effect_of(key: str) -> str | None:
    """The effect of changing a key on resume; None if it is fixed."""
    if _covering(key, FIXED):
        return None
    covering = _covering(key, EFFECTS) or _covering(key, FACTS)
    return (EFFECTS | FACTS)[covering] if covering else None


def why_fixed(key: str) -> str:
    """The reason why a key outside the table cannot change."""
    covering = _covering(key, FIXED)
    if covering:
        return FIXED[covering]
    group = key.partition(".")[0]
    return _WHY.get(key) or _WHY.get(group) or "its checkpoints are meaningless with another value"


def batch_of_a_step(trainer: Mapping[str, Any], processes: int) -> tuple[int, Any]:
    """Rows per optimizer step over all processes, and the token limit per batch used instead (or None)."""
    rows = int(trainer.get("per_device_train_batch_size") or 8)
    accumulation = int(trainer.get("gradient_accumulation_steps") or 1)
    tokens = trainer.get("max_tokens_per_batch")
    return (accumulation if tokens else rows * accumulation) * processes, tokens


def _covering(key: str, table: Mapping[str, str]) -> str | None:
    return next((name for name in table if key == name or key.startswith(f"{name}.")), None)


_WHY = {
    "trainer.optim": "another optimizer cannot use the state of this one",
    "seed": "it determines the order of the rows",
    "trainer.data_seed": "it determines the order of the rows",
    "tokenizer": "the weights were trained on the token ids of the original one",
    "model": "the weights were trained on the original base",
    "quant": "the weights were trained on a base in a different format",
    "lora": "the adapter in its checkpoints has the original shape or scale",
}
