"""Library settings that would change nothing in a run: alone, or without another setting that they belong to.

Every argument of `trainer`, `lora`, `quant` and the callbacks either changes a run or is refused here or by
`sft.config.owners`; a test holds each signature against that, so that an argument which a library adds is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sft.config.errors import UserError
from sft.config.owners import written

# Commands that train or show what a training would do; a finished run's config is taken as it is by the others.
TRAINING = ("train", "preview", "estimate")


@dataclass(frozen=True)
class NoEffect:
    """An argument that nothing here reads.

    Attributes:
        why: what takes its place.
        default: the value that it has anyway, which is accepted beside null.
        remedy: the override to write instead; None: to leave it out.
    """

    why: str
    default: Any = None
    remedy: str | None = None


@dataclass(frozen=True)
class Needs:
    """An argument that is read only where another setting is on.

    Attributes:
        holds: config -> whether it is read.
        why: when it is read.
        remedy: an override with which it is.
        default: the value that it has anyway.
    """

    holds: Callable[[Mapping[str, Any]], bool]
    why: str
    remedy: str
    default: Any = None


_PREDICTIONS = "it is about predictions, which are made for the `compute_metrics` of a Python caller alone"
_HUB = "a finished run is pushed once, by sft"
_DATA = "rows come tokenized and labelled from `dataset`"
_WEIGHTS = "its weights would have to be fitted to data before training, which is not done"
_LOSS = "its regularization is a part of the loss that is not computed"

NO_EFFECT: dict[str, NoEffect] = {
    "trainer.bf16_full_eval": NoEffect("evaluation computes in the precision that training does", False, "trainer.bf16=true"),
    "trainer.fp16_full_eval": NoEffect("evaluation computes in the precision that training does", False, "trainer.fp16=true"),
    "trainer.include_num_input_tokens_seen": NoEffect("every run counts its tokens: total_tokens in metrics.json", "no"),
    "trainer.trackio_bucket_id": NoEffect("Trackio is reached by `tracker`", None, "tracker=trackio tracker.space_id=USER/NAME"),
    "trainer.trackio_static_space_id": NoEffect("Trackio is reached by `tracker`", None, "tracker=trackio"),
    "trainer.prediction_loss_only": NoEffect("without a `compute_metrics` only the loss is measured", False),
    "trainer.enable_jit_checkpoint": NoEffect("a checkpoint is written on SIGTERM and SIGINT by every run", False),
    "trainer.hub_strategy": NoEffect(_HUB, "every_save", "hub.push=ORG/NAME"),
    "trainer.hub_always_push": NoEffect(_HUB, False, "hub.push=ORG/NAME"),
    "trainer.hub_revision": NoEffect(_HUB, None, "hub.push=ORG/NAME"),
    "trainer.restore_callback_states_from_checkpoint": NoEffect(
        "a resumed run restores the state of its callbacks in any case", False
    ),
    "trainer.parallelism_config": NoEffect("it is an object of accelerate's, which no config can name", None, "trainer=fsdp"),
    "trainer.remove_unused_columns": NoEffect("rows have the model's inputs alone", False),
    "trainer.label_names": NoEffect("labels are made by `dataset` and read by name"),
    "trainer.length_column_name": NoEffect("rows know their lengths", "length"),
    "trainer.do_train": NoEffect("sft.train trains", False),
    "trainer.do_eval": NoEffect("evaluation is switched by its strategy", False, "trainer.eval_strategy=epoch"),
    "trainer.do_predict": NoEffect("sft.train makes no predictions", False, "python -m sft.evaluate run=DIR"),
    "trainer.model_init_kwargs": NoEffect("the model is loaded by `model`", None, "the keys of model: --cfg job --package model"),
    "trainer.trust_remote_code": NoEffect("the model is loaded by `model`", False, "model.trust_remote_code=true"),
    "trainer.chat_template_path": NoEffect(_DATA, None, "template=file template.path=FILE"),
    "trainer.dataset_text_field": NoEffect(_DATA, "text", "columns of a source: dataset.sources.NAME.columns"),
    "trainer.dataset_num_proc": NoEffect(_DATA),
    "trainer.eos_token": NoEffect(_DATA, None, "model.tokenizer.special_tokens.eos_token=TOKEN"),
    "trainer.pad_token": NoEffect(_DATA, None, "model.tokenizer.special_tokens.pad_token=TOKEN"),
    "trainer.truncation_mode": NoEffect(_DATA, "keep_start", "dataset.on_long=truncate"),
    "trainer.shuffle_dataset": NoEffect(_DATA, False, "dataset.shuffle=true"),
    "trainer.packing_strategy": NoEffect(_DATA, "bfd", "dataset.packing=true"),
    "trainer.pad_to_multiple_of": NoEffect("batches are padded to their longest row"),
    "lora.auto_mapping": NoEffect("peft writes it itself"),
    "lora.peft_version": NoEffect("peft writes it itself"),
    "lora.megatron_config": NoEffect("Megatron's layers are not used"),
    "lora.megatron_core": NoEffect("Megatron's layers are not used", "megatron.core"),
    "lora.arrow_config": NoEffect("Arrow routes among adapters that were trained before"),
    "lora.use_qalora": NoEffect("QALoRA is for bases that GPTQ quantized", False, "quant=nf4"),
    "lora.qalora_group_size": NoEffect("QALoRA is for bases that GPTQ quantized", 16, "quant=nf4"),
    "lora.loftq_config": NoEffect(
        "LoftQ fits the adapter in one step to the base as `quant` quantized it", {"loftq_bits": 4, "loftq_iter": 1}, "quant=nf4, or quant=int8"
    ),
    "lora.eva_config": NoEffect(f"EVA: {_WEIGHTS}", None, "lora=pissa"),
    "lora.corda_config": NoEffect(f"CorDA: {_WEIGHTS}", None, "lora=pissa"),
    "lora.lora_ga_config": NoEffect(f"LoRA-GA: {_WEIGHTS}", None, "lora=pissa"),
    "lora.kasa_config": NoEffect(f"KaSA: {_LOSS}", None, "lora=dora"),
    "lora.monteclora_config": NoEffect(f"MonteCLoRA: {_LOSS}", None, "lora.lora_dropout=0.05"),
    "lora.alora_invocation_tokens": NoEffect(
        "activated LoRA looks for its tokens once a row, and a row here may hold several conversations"
    ),
    "lora.layer_replication": NoEffect(
        "layers that share their weights can be trained, but neither be merged nor loaded again by what serves adapters"
    ),
}


def _trainer(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found = config.get("trainer")
    return found if isinstance(found, Mapping) else {}


def _node(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = config.get(key)
    return found if isinstance(found, Mapping) else {}


def _is(key: str, *values: Any) -> Callable[[Mapping[str, Any]], bool]:
    """Whether trainer.KEY is one of the values."""
    return lambda config: _trainer(config).get(key) in values


def _on(key: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda config: bool(_trainer(config).get(key))


def _callback(config: Mapping[str, Any], *names: str) -> bool:
    """Whether one of these callbacks is on."""
    nodes = _node(config, "callbacks").values()
    return any(str(node.get("_target_", "")).endswith(names) for node in nodes if isinstance(node, Mapping))


def _picks_best(config: Mapping[str, Any]) -> bool:
    """Whether something watches a figure of the evaluations."""
    trainer = _trainer(config)
    return (
        bool(trainer.get("load_best_model_at_end"))
        or trainer.get("save_strategy") == "best"
        or trainer.get("lr_scheduler_type") in ("reduce_lr_on_plateau", "greedy")
        or _callback(config, "EarlyStopping", "EarlyStoppingCallback", "BestModel")
    )


_WORKERS = Needs(_on("dataloader_num_workers"), "read by worker processes, and there are none", "trainer.dataloader_num_workers=2")
_BEST = Needs(_picks_best, "read where the best model is looked for", "callbacks=[default,best_model]")
_ADAM = Needs(
    lambda config: any(
        name in str(_trainer(config).get("optim", "adamw")) for name in ("adam", "lion")
    ),
    "read by Adam and its relatives",
    "trainer.optim=adamw_torch_fused",
)
_IN_4BIT = Needs(lambda config: bool(_node(config, "quant").get("load_in_4bit")), "read with 4 bits", "quant=nf4")
_IN_8BIT = Needs(lambda config: bool(_node(config, "quant").get("load_in_8bit")), "read with 8 bits", "quant=int8")
_ROWS = Needs(
    lambda config: not _trainer(config).get("max_tokens_per_batch"),
    "read for batches of so many rows, and trainer.max_tokens_per_batch makes batches of so many tokens",
    "trainer.max_tokens_per_batch=null",
)
_READS_ARGS = (
    "sgd", "adagrad", "rmsprop", "anyprecision", "rmsprop_bnb", "ademamix", "galore", "apollo", "grok", "4bit", "torch_8bit",
    "schedule_free", "stable",
)  # fmt: skip

NEEDS: dict[str, Needs] = {
    "trainer.eval_steps": Needs(
        lambda config: _is("eval_strategy", "steps")(config) or _callback(config, "Validation"),
        "read where trainer.eval_strategy is steps",
        "trainer.eval_strategy=steps",
    ),
    "trainer.save_steps": Needs(
        lambda config: _is("save_strategy", "steps", None)(config) or _callback(config, "Checkpoint"),
        "read where trainer.save_strategy is steps",
        "trainer.save_strategy=steps",
    ),
    "trainer.metric_for_best_model": _BEST,
    "trainer.greater_is_better": _BEST,
    "trainer.liger_kernel_config": Needs(
        _on("use_liger_kernel"), "read by Liger's kernels, and they are off", "trainer.use_liger_kernel=true"
    ),
    "trainer.gradient_checkpointing_kwargs": Needs(
        lambda config: _trainer(config).get("gradient_checkpointing", "auto") is not False,
        "read where activations are computed again",
        "trainer.gradient_checkpointing=true",
    ),
    "trainer.fsdp_config": Needs(_on("fsdp"), "read by FSDP", "trainer=fsdp"),
    "trainer.optim_target_modules": Needs(
        lambda config: str(_trainer(config).get("optim")).startswith(("galore", "apollo")),
        "read by GaLore and APOLLO",
        "trainer.optim=galore_adamw",
    ),
    "trainer.optim_args": Needs(
        lambda config: any(name in str(_trainer(config).get("optim")) for name in _READS_ARGS),
        "read by optimizers with arguments of their own, and the betas of Adam are trainer.adam_beta1 and adam_beta2",
        "trainer.optim=sgd",
    ),
    "trainer.adam_beta1": _ADAM,
    "trainer.adam_beta2": _ADAM,
    "trainer.adam_epsilon": _ADAM,
    "trainer.dataloader_prefetch_factor": _WORKERS,
    "trainer.dataloader_persistent_workers": Needs(_WORKERS.holds, _WORKERS.why, _WORKERS.remedy, False),
    "trainer.dataloader_multiprocessing_context": _WORKERS,
    "trainer.dataloader_in_order": Needs(_WORKERS.holds, _WORKERS.why, _WORKERS.remedy, True),
    "trainer.dataloader_drop_last": Needs(_ROWS.holds, _ROWS.why, _ROWS.remedy, False),
    "trainer.data_seed": Needs(
        lambda config: not _ROWS.holds(config) or _is("train_sampling_strategy", None, "random")(config),
        "read where rows are drawn at random",
        "trainer.train_sampling_strategy=random",
    ),
    "trainer.train_sampling_strategy": Needs(_ROWS.holds, _ROWS.why, _ROWS.remedy, "random"),
    "lora.layers_pattern": Needs(
        lambda config: _node(config, "lora").get("layers_to_transform") is not None,
        "read with layers_to_transform, which says which of the layers",
        "lora.layers_to_transform=[0,1]",
    ),
    "quant.bnb_4bit_compute_dtype": _IN_4BIT,
    "quant.bnb_4bit_quant_type": _IN_4BIT,
    "quant.bnb_4bit_use_double_quant": Needs(_IN_4BIT.holds, _IN_4BIT.why, _IN_4BIT.remedy, False),
    "quant.bnb_4bit_quant_storage": _IN_4BIT,
    "quant.llm_int8_threshold": _IN_8BIT,
    "quant.llm_int8_has_fp16_weight": Needs(_IN_8BIT.holds, _IN_8BIT.why, _IN_8BIT.remedy, False),
    "quant.llm_int8_enable_fp32_cpu_offload": Needs(
        lambda config: _node(config, "model").get("device_map") is not None,
        "read with a device map that puts modules on the CPU",
        "model.device_map=auto",
        False,
    ),
    "callbacks.generation_samples.count": Needs(
        lambda config: _node(_node(config, "callbacks"), "generation_samples").get("prompts") is None,
        "read where the prompts are examples of the data, and callbacks.generation_samples.prompts names its own",
        "callbacks.generation_samples.prompts=null",
        3,
    ),
}

# Values of arguments that do something with others.
_STARTS = {"eva": "EVA", "corda": "CorDA", "lora_ga": "LoRA-GA"}
# Arguments of transformers' that only a Python caller's `compute_metrics` gives a meaning.
PREDICTIONS = {
    "trainer.eval_do_concat_batches": True,
    "trainer.eval_use_gather_object": False,
    "trainer.eval_accumulation_steps": None,
    "trainer.include_for_metrics": [],
    "trainer.batch_eval_metrics": False,
}


def without_effect(config: Mapping[str, Any], predicts: bool = False) -> Iterator[UserError]:
    """An error for each setting of a training's config that would change nothing.

    Args:
        config: resolved, plain.
        predicts: whether a `compute_metrics` of a Python caller may be given.
    """
    for key, none in NO_EFFECT.items():
        value = _given(config, key)
        if value not in (None, {}, []) and value != none.default:
            yield UserError(f"it has no effect: {none.why}", where=key, remedy=none.remedy or f"remove {key}")
    for key, needs in NEEDS.items():
        value = _given(config, key)
        if value is not None and value != needs.default and not needs.holds(config):
            yield UserError(
                f"{written(value)} has no effect: it is {needs.why}", where=key, remedy=f"{needs.remedy}, or remove {key}"
            )
    if not predicts:
        yield from unread_without_predictions(config)
    yield from _values(config)


def unread_without_predictions(config: Mapping[str, Any]) -> Iterator[UserError]:
    """An error for each setting about predictions, which only a `compute_metrics` has made."""
    for key, default in PREDICTIONS.items():
        value = _given(config, key)
        if value is not None and value != default:
            yield UserError(f"it has no effect: {_PREDICTIONS}", where=key, remedy=f"remove {key}")


def _values(config: Mapping[str, Any]) -> Iterator[UserError]:
    """Values without an effect, of arguments that have one."""
    start = str(_node(config, "lora").get("init_lora_weights"))
    if start in _STARTS:
        yield UserError(
            f"{_STARTS[start]}: {_WEIGHTS}", where="lora.init_lora_weights", remedy="lora=pissa, lora=olora, or lora=r16"
        )
    quant = config.get("quant")
    if isinstance(quant, Mapping) and not quant.get("load_in_4bit") and not quant.get("load_in_8bit"):
        yield UserError("neither 4 nor 8 bits are asked for", where="quant", remedy="quant=nf4, quant=int8, or quant=none")
    if "tpu_metrics_debug" in str(_trainer(config).get("debug")):
        yield UserError("TPUs are not trained on", where="trainer.debug", remedy="trainer.debug=underflow_overflow")
    shared = _trainer(config).get("accelerator_config")
    for name in ("split_batches", "dispatch_batches", "even_batches", "use_configured_state"):
        if isinstance(shared, Mapping) and shared.get(name) not in (None, name == "even_batches"):
            yield UserError(
                "it has no effect: rows are shared out among processes by sft, each exactly once",
                where=f"trainer.accelerator_config.{name}",
                remedy=f"remove trainer.accelerator_config.{name}",
            )


def _given(config: Mapping[str, Any], key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node
