"""What may change when a run is resumed, and what the change then does.

A key that is not here is fixed for the life of a run: the state in its checkpoints (weights, optimizer, random numbers,
place in the data) has no meaning under another value of it. `sft.training.resume.config_changes` refuses those, and those that are here
unless `allow_changes` names them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SCHEDULE = "each later step has the rate that the new schedule gives at that step"
_END = "training ends there; the schedule as trainer.resume_schedule says"
_OPTIMIZER = "each later optimizer step uses it, with the moments of before"
_SPLIT = "a step is made of other batches of the same rows; the product with the number of processes must stay"
_EVALUATION = "later evaluations are made at the new steps"
_ROWS = "later steps take their rows from the data as it is now, in its order, at the same step number"

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
    "trainer.gradient_checkpointing": "later steps keep their activations, or compute them again",
    "trainer.bf16": "later steps are computed in that precision",
    "trainer.cpu_parts": "later batches are computed in so many parts",
    "trainer.neftune_noise_alpha": "later steps have that noise on their embeddings",
    "trainer.eval_strategy": _EVALUATION,
    "trainer.eval_steps": _EVALUATION,
    "trainer.eval_delay": _EVALUATION,
    "lora.lora_dropout": "later steps drop that share",
    "model.attn_implementation": "later steps are computed with it",
    "callbacks": "they act as they are set now; what they have counted so far is kept",
    "dataset": _ROWS,
    "template": _ROWS,
}
# What is not in the config, and is compared with run.json.
FACTS: dict[str, str] = {
    "data": _ROWS,
    "template": _ROWS,
    "versions": "later steps are computed by the libraries that are installed",
    "world_size": "the rows of a step are shared out anew; each process draws random numbers of its own",
}
# Below a key of the table, and fixed nevertheless.
FIXED: dict[str, str] = {
    "callbacks.best_model": "the best evaluation so far was chosen without it, or by another figure",
}


def effect_of(key: str) -> str | None:
    """What a change of a key does on resume; None where it is fixed."""
    if _covering(key, FIXED):
        return None
    covering = _covering(key, EFFECTS) or _covering(key, FACTS)
    return (EFFECTS | FACTS)[covering] if covering else None


def why_fixed(key: str) -> str:
    """Why a key that is not in the table cannot change."""
    covering = _covering(key, FIXED)
    if covering:
        return FIXED[covering]
    group = key.partition(".")[0]
    return _WHY.get(key) or _WHY.get(group) or "its checkpoints mean nothing under another value"


def batch_of_a_step(trainer: Mapping[str, Any], processes: int) -> tuple[int, Any]:
    """Rows of one optimizer step over all processes, and the limit of tokens that a batch has instead (or None)."""
    rows = int(trainer.get("per_device_train_batch_size") or 8)
    accumulation = int(trainer.get("gradient_accumulation_steps") or 1)
    tokens = trainer.get("max_tokens_per_batch")
    return (accumulation if tokens else rows * accumulation) * processes, tokens


def _covering(key: str, table: Mapping[str, str]) -> str | None:
    return next((name for name in table if key == name or key.startswith(f"{name}.")), None)


_WHY = {
    "trainer.optim": "another optimizer has no use for the state of this one",
    "seed": "the order of the rows is drawn from it",
    "trainer.data_seed": "the order of the rows is drawn from it",
    "tokenizer": "the weights were trained on the token ids of the other one",
    "model": "the weights were trained on the other base",
    "quant": "the weights were trained on a base that is stored otherwise",
    "lora": "the adapter in its checkpoints has the other shape or scale",
}
