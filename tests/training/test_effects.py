"""Each argument that can be set changes the run, or is refused: tables that are compared with the signatures.

An argument added by a library is in none of them, and fails the first test of its kind until it has been reviewed.
"""

from __future__ import annotations

import copy
import inspect
import logging
from typing import Any

import pytest
import torch
import transformers.trainer
import transformers.trainer_optimizer
from transformers import TrainerControl, TrainerState
from transformers.trainer_callback import DefaultFlowCallback

import sft.distributed.sharding
import sft.training.arguments
import sft.training.trainer.evaluating
import sft.training.trainer.saving
import sft.training.trainer.shrinking
import sft.training.trainer.trainer
from sft.config.build import build
from sft.config.checks.effects import without_effect
from sft.config.checks.needs import NEEDS
from sft.config.checks.no_effect import NO_EFFECT, PREDICTIONS
from sft.config.checks.owners import OWNED
from sft.config.errors import UserError
from sft.config.source_code.signature import read_signature
from sft.run.directory import RunDirectory
from sft.run.trackers.base import Tracker
from sft.training.build import build_callbacks_early, build_trainer
from tests.runs import TINY

REFUSED = {*OWNED, *NO_EFFECT, *PREDICTIONS}


def keys(node: str, target: str) -> set[str]:
    """What may be set of a node."""
    signature = read_signature(target)
    assert signature is not None
    return {name for name in signature.parameters if f"{node}.{name}" not in REFUSED}


# -- trainer -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def trainer_of(tmp_path_factory):
    """Overrides -> a trainer that has not trained."""
    from sft.api import compose
    from sft.config.compose import plain
    from sft.model.load import load_model
    from sft.training.inputs import prepare_inputs

    first = plain(compose(*TINY, "trainer.max_steps=12"))
    inputs = prepare_inputs(first)
    model = load_model(inputs.model, None, trained=True, config=inputs.model_config)
    run = RunDirectory(tmp_path_factory.mktemp("effects"))

    def made(*overrides: str) -> Any:
        config = plain(compose(*TINY, "trainer.max_steps=12", *overrides))
        torch.manual_seed(0)
        return build_trainer(
            config, run, copy.deepcopy(model), inputs, build_callbacks_early(config, run), [], Tracker()
        )

    return made


def optimizer(trainer: Any) -> Any:
    """Its class and its groups' settings."""
    made = trainer.create_optimizer()
    return type(made).__name__, [{k: v for k, v in group.items() if k != "params"} for group in made.param_groups]


def rates(trainer: Any) -> list[float]:
    """The learning rate of each of 12 steps."""
    trainer.create_optimizer_and_scheduler(12)
    found = []
    for _ in range(12):
        found.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    return found


def loader(trainer: Any) -> Any:
    """What loads batches, and the tokens of an epoch's batches where this process loads them."""
    made = trainer.get_train_dataloader()
    names = ("num_workers", "prefetch_factor", "persistent_workers", "in_order", "pin_memory")
    context = made.multiprocessing_context
    about = [*(getattr(made, name) for name in names), context and context.get_start_method()]
    return about, [batch["input_ids"].tolist() for batch in made] if not made.num_workers else None


def decisions(trainer: Any) -> list[tuple[int, bool, bool, bool, bool]]:
    """(step, logs, evaluates, saves, stops) at the ends of 12 steps and of 3 epochs."""
    flow, args, state = DefaultFlowCallback(), trainer.args, TrainerState(max_steps=12)
    state.compute_steps(args, 12)
    found = []
    for step in range(1, 13):
        state.global_step, state.epoch = step, step / 4
        for event in ("on_step_end", "on_epoch_end") if step % 4 == 0 else ("on_step_end",):
            control = TrainerControl()
            getattr(flow, event)(args, state, control)
            found.append(
                (step, control.should_log, control.should_evaluate, control.should_save, control.should_training_stop)
            )
    return found


STEPS = ("trainer.eval_strategy=steps", "trainer.eval_steps=4", "trainer.save_strategy=steps", "trainer.save_steps=4")
LOADED = ("trainer.dataloader_num_workers=1",)
# Key -> (value, what is looked at, overrides that it needs).
LOOKED_AT: dict[str, tuple[str, Any, tuple[str, ...]]] = {
    "per_device_train_batch_size": ("2", loader, ()),
    "max_tokens_per_batch": ("400", loader, ()),
    "train_sampling_strategy": ("group_by_length", loader, ()),
    "data_seed": ("7", loader, ()),
    "accelerator_config": ("{use_seedable_sampler: false}", loader, ()),
    "dataloader_drop_last": ("true", loader, ("trainer.per_device_train_batch_size=5",)),
    "dataloader_num_workers": ("1", loader, ()),
    "dataloader_prefetch_factor": ("3", loader, LOADED),
    "dataloader_persistent_workers": ("true", loader, LOADED),
    "dataloader_in_order": ("false", loader, LOADED),
    "dataloader_multiprocessing_context": ("spawn", loader, LOADED),
    "learning_rate": ("1e-5", rates, ()),
    "lr_scheduler_type": ("linear", rates, ()),
    "lr_scheduler_kwargs": ("{num_cycles: 2}", rates, ()),
    "warmup_steps": ("3", rates, ()),
    "optim": ("sgd", optimizer, ()),
    "optim_args": ("'momentum=0.5'", optimizer, ("trainer.optim=sgd",)),
    "weight_decay": ("0.1", optimizer, ()),
    "adam_beta1": ("0.8", optimizer, ()),
    "adam_beta2": ("0.8", optimizer, ()),
    "adam_epsilon": ("1e-3", optimizer, ()),
    "max_steps": ("3", lambda trainer: trainer.args.max_steps, ()),
    "num_train_epochs": ("3", lambda trainer: trainer.args.num_train_epochs, ()),
    "gradient_accumulation_steps": ("2", lambda trainer: trainer.effective_batch, ()),
    "neftune_noise_alpha": ("5", lambda trainer: trainer.noise is not None, ()),
    "bf16": ("true", lambda trainer: trainer.accelerator.mixed_precision, ()),
    "log_level": ("error", lambda trainer: logging.getLogger("transformers").level, ()),
    "skip_memory_metrics": ("false", lambda trainer: trainer._memory_tracker.skip_memory_metrics, ()),
    "logging_strategy": ("epoch", decisions, ()),
    "logging_steps": ("5", decisions, ()),
    "eval_strategy": ("'no'", decisions, ()),
    "eval_steps": ("3", decisions, STEPS),
    "eval_delay": ("6", decisions, STEPS),
    "save_strategy": ("'no'", decisions, ()),
    "save_steps": ("3", decisions, STEPS),
}
# Key -> (value, the code that reads args.KEY while a run is made, overrides that it needs).
BEST = ("callbacks=[quiet,early_stopping]",)
READ_BY: dict[str, tuple[str, Any, tuple[str, ...]]] = {
    "max_grad_norm": ("0.3", transformers.trainer, ()),
    "torch_empty_cache_steps": ("3", transformers.trainer, ()),
    "torch_compile": ("true", transformers.trainer, ()),
    "torch_compile_backend": ("eager", transformers.trainer, ()),
    "torch_compile_mode": ("default", transformers.trainer, ()),
    "eval_on_start": ("true", transformers.trainer, ()),
    "load_best_model_at_end": ("true", transformers.trainer, ()),
    "metric_for_best_model": ("eval_perplexity", transformers.trainer, BEST),
    "greater_is_better": ("true", transformers.trainer, BEST),
    "ignore_data_skip": ("true", transformers.trainer, ()),
    "full_determinism": ("true", transformers.trainer, ()),
    "debug": ("underflow_overflow", transformers.trainer, ()),
    "logging_first_step": ("true", transformers.trainer_callback, ("trainer.logging_steps=5",)),
    "auto_find_batch_size": ("true", sft.training.trainer.shrinking, ()),
    "per_device_eval_batch_size": ("3", sft.training.trainer.evaluating, ()),
    "save_only_model": ("true", sft.training.trainer.saving, ()),
    "save_total_limit": ("1", sft.training.trainer.saving, ()),
    "gradient_checkpointing": ("true", sft.training.trainer.trainer, ()),
}
# Keys that change nothing on one CPU, by what they are for.
ELSEWHERE = {
    "a GPU": {"fp16", "tf32", "use_cpu", "use_liger_kernel", "liger_kernel_config", "dataloader_pin_memory"},
    "several processes": {
        *("average_tokens_across_devices", "ddp_backend", "ddp_broadcast_buffers", "ddp_bucket_cap_mb"),
        *("ddp_find_unused_parameters", "ddp_static_graph", "ddp_timeout", "deepspeed", "fsdp", "fsdp_config"),
        *("log_level_replica", "log_on_each_node", "save_on_each_node"),
    },
    "an optimizer that is not installed": {"optim_target_modules"},
    "a value that another test looks at": {
        "cpu_parts",  # test_side_by_side
        "gradient_checkpointing_kwargs",  # test_switches
        "resume_schedule",  # test_changes
    },
    "trainer=trl": {"label_smoothing_factor"},  # refused with trainer=default
}


def test_every_trainer_argument_is_tested():
    listed = [*LOOKED_AT, *READ_BY, *(key for found in ELSEWHERE.values() for key in found)]
    assert len(listed) == len(set(listed))
    assert set(listed) == keys("trainer", "sft.training.arguments.Arguments")


@pytest.fixture(scope="module")
def seen(trainer_of):
    """(observer, overrides) -> what it sees without the key, looked at once."""
    known: dict[Any, Any] = {}

    def look(observe: Any, needed: tuple[str, ...]) -> Any:
        if (observe, needed) not in known:
            known[observe, needed] = observe(trainer_of(*needed))
        return known[observe, needed]

    return look


@pytest.mark.parametrize("key", LOOKED_AT)
def test_an_argument_of_the_trainer_changes_what_it_says(trainer_of, seen, key):
    value, observe, needed = LOOKED_AT[key]
    before = seen(observe, needed)
    assert observe(trainer_of(*needed, f"trainer.{key}={value}")) != before


@pytest.mark.parametrize("key", READ_BY)
def test_an_argument_of_the_trainer_reaches_the_code_that_reads_it(faults, key):
    value, module, needed = READ_BY[key]
    assert f"trainer.{key}" not in faults(*needed, f"trainer.{key}={value}")
    assert f"args.{key}" in inspect.getsource(module)


# -- what is refused ---------------------------------------------------------------------------------------------------


def _another(key: str) -> str:
    """A value that is not the key's default."""
    none = NO_EFFECT.get(key)
    default = (
        none.default if none else PREDICTIONS.get(key, OWNED[key].fits[0] if key in OWNED and OWNED[key].fits else None)
    )
    if isinstance(default, bool):
        return str(not default).lower()
    return {"lora.layer_replication": "[[0,1]]", "lora.alora_invocation_tokens": "[1]"}.get(key, "other")


REFUSALS = sorted(
    key
    for key in REFUSED
    if key.split(".")[1] in keys("", "sft.training.arguments.Arguments") | keys("", "peft.LoraConfig")
)


@pytest.mark.parametrize("key", REFUSALS)
def test_an_argument_without_an_effect_is_refused_with_a_remedy(faults, key):
    found = faults(f"{key}={_another(key)}")
    assert key in found
    assert not found[key].endswith("None")


@pytest.mark.parametrize("key", [key for key in REFUSALS if (key in NO_EFFECT and NO_EFFECT[key].default is not None)])
def test_its_default_is_accepted(key):
    node, name = key.split(".")
    assert not [
        error for error in without_effect({node: {name: NO_EFFECT[key].default}, "lora": {}}) if error.where == key
    ]


NEEDING = {
    "trainer.eval_steps=3": "trainer.eval_strategy=steps",
    "trainer.save_steps=3": "trainer.save_strategy=steps",
    "trainer.metric_for_best_model=eval_loss": "trainer.lr_scheduler_type=reduce_lr_on_plateau",
    "trainer.greater_is_better=true": "trainer.lr_scheduler_type=reduce_lr_on_plateau",
    "trainer.liger_kernel_config={rope:true}": "trainer.use_liger_kernel=true",
    "trainer.gradient_checkpointing_kwargs={use_reentrant:true}": "trainer.gradient_checkpointing=true",
    "trainer.fsdp_config={reshard_after_forward:true}": "trainer.fsdp=true",
    "trainer.optim_target_modules=[q_proj]": "trainer.optim=galore_adamw",
    "trainer.optim_args='momentum=0.5'": "trainer.optim=sgd",
    "trainer.adam_beta1=0.8": "",
    "trainer.adam_beta2=0.8": "",
    "trainer.adam_epsilon=1e-3": "",
    "trainer.dataloader_prefetch_factor=2": "trainer.dataloader_num_workers=1",
    "trainer.dataloader_persistent_workers=true": "trainer.dataloader_num_workers=1",
    "trainer.dataloader_multiprocessing_context=spawn": "trainer.dataloader_num_workers=1",
    "trainer.dataloader_in_order=false": "trainer.dataloader_num_workers=1",
    "trainer.dataloader_drop_last=true": "",
    "trainer.data_seed=3": "",
    "trainer.train_sampling_strategy=sequential": "",
    "lora.layers_pattern=layers": "lora.layers_to_transform=[0]",
    "quant=int8 quant.bnb_4bit_compute_dtype=bf16": "quant.load_in_4bit=true",
    "quant=int8 quant.bnb_4bit_quant_type=fp4": "quant.load_in_4bit=true",
    "quant=int8 quant.bnb_4bit_use_double_quant=true": "quant.load_in_4bit=true",
    "quant=int8 quant.bnb_4bit_quant_storage=uint8": "quant.load_in_4bit=true",
    "quant=nf4 quant.llm_int8_threshold=3": "quant.load_in_8bit=true",
    "quant=nf4 quant.llm_int8_has_fp16_weight=true": "quant.load_in_8bit=true",
    "quant=nf4 quant.llm_int8_enable_fp32_cpu_offload=true": "model.device_map=auto",
    "callbacks=full callbacks.generation_samples.count=5": "",
}
# What takes the effect from a key that has one with the packaged defaults.
WITHOUT = {
    "trainer.gradient_checkpointing_kwargs": "trainer.gradient_checkpointing=false",
    "trainer.adam_beta1": "trainer.optim=sgd",
    "trainer.adam_beta2": "trainer.optim=sgd",
    "trainer.adam_epsilon": "trainer.optim=sgd",
    "trainer.dataloader_drop_last": "trainer.max_tokens_per_batch=400",
    "trainer.data_seed": "trainer.train_sampling_strategy=sequential",
    "trainer.train_sampling_strategy": "trainer.max_tokens_per_batch=400",
    "callbacks.generation_samples.count": "callbacks.generation_samples.prompts=[Hi]",
}


def test_every_dependent_argument_is_tested():
    assert {override.split()[-1].partition("=")[0] for override in NEEDING} == set(NEEDS)


@pytest.mark.parametrize("override", NEEDING)
def test_an_unread_argument_is_refused(faults, override):
    key = override.split()[-1].partition("=")[0]
    without = WITHOUT.get(key, "").split()
    assert "has no effect" in faults(*override.split(), *without)[key]
    assert key not in faults(*override.split(), *NEEDING[override].split())


# -- lora --------------------------------------------------------------------------------------------------------------
ADAPTERS: dict[str, Any] = {
    "r": 4,
    "lora_alpha": 5,
    "lora_dropout": 0.5,
    "target_modules": ["q_proj"],
    "exclude_modules": ["q_proj"],
    "use_rslora": True,
    "use_dora": True,
    "modules_to_save": ["lm_head"],
    "init_lora_weights": "orthogonal",
    "layers_to_transform": [0],
    "rank_pattern": {"q_proj": 2},
    "alpha_pattern": {"q_proj": 2},
    "trainable_token_indices": [1, 2],
    "velora_config": {"num_groups": 2},
    "use_bdlora": {"target_modules_bd_a": ["o_proj", "down_proj"], "nblocks": 2, "match_strict": False},
}
# Those that need more than the key, with what they are compared with.
COMPARED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "bias": ({"bias": "all"}, {}, "gpt2"),
    "lora_bias": ({"lora_bias": True}, {}, "gpt2"),
    "target_parameters": (
        {"target_modules": ["v_proj"], "target_parameters": ["q_proj.weight"]},
        {"target_modules": ["v_proj"]},
        "qwen3",
    ),
}
# Keys whose effect this model cannot show, by what they are for.
OF_OTHERS = {
    "layers_pattern": "models with several lists of layers",
    "ensure_weight_tying": "models with tied embeddings",
    "runtime_config": "DoRA with weights on the CPU beside a GPU",
}


def test_every_adapter_argument_is_tested():
    assert {*ADAPTERS, *COMPARED, *OF_OTHERS} == keys("lora", "peft.LoraConfig")


@pytest.fixture(scope="module")
def adapted():
    """LoRA's arguments -> what of the model trains, and how."""
    from sft.model.adapters.attach import attach
    from sft.model.load import load_config, load_model
    from sft.model.spec import TinyModel

    bases: dict[str, Any] = {}

    def made(arguments: dict[str, Any], architecture: Any = "qwen3") -> Any:
        spec = TinyModel(architecture=architecture)
        if architecture not in bases:
            bases[architecture] = load_model(spec, None, trained=False, config=load_config(spec))
        base = bases[architecture]
        lora = build({"_target_": "peft.LoraConfig", "r": 8, **arguments}, where="lora")
        model, _ = attach(copy.deepcopy(base), lora, spec, seed=0)
        weights = {
            name: weight.detach().sum().item() for name, weight in model.named_parameters() if weight.requires_grad
        }
        layers = {
            name: (layer.scaling["default"], layer.lora_dropout["default"].__class__.__name__, str(layer.lora_variant))
            for name, layer in model.named_modules()
            if isinstance(getattr(layer, "scaling", None), dict)
        }
        return weights, layers

    return made


@pytest.fixture(scope="module")
def plain_adapter(adapted):
    return adapted({})


@pytest.mark.parametrize("key", ADAPTERS)
def test_an_argument_of_the_adapter_changes_what_trains(adapted, plain_adapter, key):
    assert adapted({key: ADAPTERS[key]}) != plain_adapter


@pytest.mark.parametrize("key", COMPARED)
def test_an_argument_with_another_changes_what_trains(adapted, key):
    given, compared, architecture = COMPARED[key]
    assert adapted(given, architecture) != adapted(compared, architecture)


def test_missing_biases_are_refused(adapted):
    with pytest.raises(UserError, match="no layer has a bias"):
        adapted({"bias": "all"})


# -- quant -------------------------------------------------------------------------------------------------------------
QUANTIZED: dict[str, tuple[Any, dict[str, Any]]] = {
    "load_in_4bit": (True, {}),
    "load_in_8bit": (True, {}),
    "llm_int8_threshold": (3.0, {"load_in_8bit": True}),
    "llm_int8_skip_modules": (["lm_head"], {"load_in_8bit": True}),
    "llm_int8_enable_fp32_cpu_offload": (True, {"load_in_8bit": True}),
    "llm_int8_has_fp16_weight": (True, {"load_in_8bit": True}),
    "bnb_4bit_compute_dtype": ("fp16", {"load_in_4bit": True}),
    "bnb_4bit_quant_type": ("fp4", {"load_in_4bit": True}),
    "bnb_4bit_use_double_quant": (True, {"load_in_4bit": True}),
    "bnb_4bit_quant_storage": ("float16", {"load_in_4bit": True}),
}


def test_every_quantization_argument_is_tested():
    assert set(QUANTIZED) == keys("quant", "sft.model.quant.bits_and_bytes")


@pytest.mark.parametrize("key", QUANTIZED)
def test_an_argument_of_quantization_reaches_the_library(key):
    from sft.model.quant import bits_and_bytes

    value, needed = QUANTIZED[key]
    assert bits_and_bytes(**{**needed, key: value}).to_dict() != bits_and_bytes(**needed).to_dict()


# -- callbacks ---------------------------------------------------------------------------------------------------------
def _callbacks() -> list[str]:
    from sft.safety.targets import packaged_targets

    return sorted(target for target in packaged_targets() if target.startswith("sft.training.callbacks."))


@pytest.mark.parametrize("target", _callbacks())
def test_every_argument_of_a_callback_is_read(target):
    from hydra.utils import get_class

    source = inspect.getsource(get_class(target))
    signature = read_signature(target)
    assert signature is not None
    beyond = source.replace(inspect.getsource(get_class(target).__init__), "") if signature.parameters else source
    assert [name for name in signature.parameters if f"self.{name}" not in beyond] == []
