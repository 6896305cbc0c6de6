"""Memory estimates: sizes compared with real models, the step with a real one, and the refusal of runs that cannot
fit."""

import json
import sys

import pytest
import torch
from peft import LoraConfig
from transformers import LlamaConfig

from sft.api import compose
from sft.config.errors import UserError
from sft.kernels.cross_entropy import summed_loss
from sft.kernels.lowrank import install
from sft.model import load as loading
from sft.model.adapters.attach import attach
from sft.model.facts import count_parameters
from sft.model.footprint import Parameter, footprint
from sft.model.head import output_layer
from sft.model.load import load_config, load_model
from sft.model.quant import bits_and_bytes
from sft.model.spec import Model, TinyModel
from sft.run.memory import DeviceMemory
from sft.training.estimate import report as answers
from sft.training.estimate import start
from sft.training.estimate.blueprint import build_blueprint
from sft.training.estimate.estimate import Estimator, configured_batch, with_lengths
from sft.training.estimate.optimizer import state_bytes
from sft.training.estimate.step import Batch, Machine, simulate
from sft.training.estimate.tracker import Tracker
from sft.training.job import Job

pytestmark = pytest.mark.numeric

TINY = [
    "model=tiny",
    "dataset.sources.tickets.generator.rows=24",
    "dataset.eval_sources=null",
    "dataset.eval_fraction=0",
    "trainer.max_steps=1",
]


def real(architecture, lora, quant=None):
    spec = TinyModel(architecture=architecture)
    base = load_model(spec, quant, trained=lora is None)
    model = attach(base, lora, spec, seed=0)[0]
    install(model)  # as training does
    return model


def drawn(architecture, lora, quant=None):
    spec = TinyModel(architecture=architecture)
    return build_blueprint(spec, load_config(spec), quant, lora)


def test_an_8b_model_is_counted_from_its_config_alone():
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
    )
    held = build_blueprint(Model(name="llama", dtype="bf16"), config, None, LoraConfig(r=16)).footprint()
    assert held.parameters == 8_030_261_248
    assert held.weights - 2 * held.parameters < 2048  # the rotary frequencies
    assert held.trained_parameters == 41_943_040
    assert held.adapter == held.gradients == 4 * 41_943_040


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "phi3", "gpt2"])
@pytest.mark.parametrize("lora", [None, LoraConfig(r=4), LoraConfig(r=4, use_dora=True)], ids=["full", "lora", "dora"])
def test_parameter_counts_equal_the_real_models(architecture, lora):
    model, held = real(architecture, lora), drawn(architecture, lora).footprint()
    assert held.trained_parameters == count_parameters(model, trainable_only=True)
    whole = footprint(model)
    assert (held.weights, held.adapter, held.gradients) == (whole.weights, whole.adapter, whole.gradients)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    assert held.weights + held.adapter == weights + buffers


@pytest.mark.parametrize(
    "settings",
    [{"load_in_4bit": True}, {"load_in_4bit": True, "bnb_4bit_use_double_quant": True}, {"load_in_8bit": True}],
)
def test_quantized_bytes_equal_those_of_bitsandbytes(settings):
    quant = bits_and_bytes(**settings)
    model, held = real("llama", LoraConfig(r=4), quant), drawn("llama", LoraConfig(r=4), quant).footprint()
    kept = 0
    for module in model.modules():
        kind = type(module).__name__
        if kind == "Linear8bitLt" and not hasattr(module, "lora_A"):
            weight = module.weight
            kept += (
                weight.numel() * weight.element_size()
                + (weight.SCB if weight.SCB is not None else module.state.SCB).nbytes
            )
        elif kind == "Linear4bit" and not hasattr(module, "lora_A"):
            kept += module.weight.nbytes + _state_bytes(module.weight.quant_state)
    assert held.quantized == kept > 0


def _state_bytes(state):
    tensors = [state.absmax, state.code]
    if state.nested:
        tensors += [state.offset, state.state2.absmax, state.state2.code]
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "adamw_8bit"])
def test_optimizer_states_equal_those_of_a_real_step(optim, tmp_path):
    from transformers import Trainer, TrainingArguments

    model = torch.nn.ModuleDict({"a": torch.nn.Linear(96, 64), "b": torch.nn.Linear(8, 4)})
    arguments = TrainingArguments(str(tmp_path), optim=optim, use_cpu=True, report_to="none")
    trainer = Trainer(model, arguments)
    optimizer = trainer.create_optimizer()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tensors = {
        id(value): value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    }
    shapes = [Parameter(name, tuple(p.shape), 4) for name, p in model.named_parameters()]
    assert state_bytes(optim, shapes) == sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize(
    ("architecture", "lora", "checkpointing"),
    [
        ("llama", LoraConfig(r=4, lora_dropout=0.1), False),
        ("llama", LoraConfig(r=4), True),
        ("gemma3", None, False),
        ("qwen3", None, True),
        ("gpt2", LoraConfig(r=4), False),
        ("phi3", LoraConfig(r=4, use_dora=True), False),
    ],
)
def test_a_simulated_step_needs_as_much_memory_as_a_real_one(architecture, lora, checkpointing):
    batch = Batch(2, 64, 2 * 63)
    found = simulate(drawn(architecture, lora), batch, Machine("cpu", checkpointing=checkpointing))
    model = real(architecture, lora).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    ids = torch.ones((2, 64), dtype=torch.long)
    labels = ids.clone()
    labels[:, -1] = -100
    inputs = {"input_ids": ids, "shift_labels": labels, "attention_mask": torch.ones_like(ids)}
    with Tracker() as tracker:
        tracker.ignore(*model.parameters(), *model.buffers(), *inputs.values())
        loss, outputs = summed_loss(model, inputs, True, output_layer(model))
        del outputs
        tracker.mark("loss")
        loss.backward()
        tracker.mark("end")
    first, second = tracker.regions
    assert found.peak == pytest.approx(max(first.peak, first.net + second.peak), rel=0.02)


def test_estimating_loads_no_weights_and_uses_no_random_numbers(monkeypatch):
    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("loads weights"))
    config = with_lengths(Job.of(compose(*TINY, "lora.lora_dropout=0.1", "dataset.max_length=64")).config)
    before = torch.get_rng_state()
    found = Estimator(config, "cpu").estimate(configured_batch(config), configured_batch(config, evaluation=True))
    assert torch.equal(torch.get_rng_state(), before)
    assert found.batch == Batch(8, 64, 8 * 63) and found.peak > found.process


def small(monkeypatch, free):
    place = DeviceMemory("this process", "cpu", free, free, "the container's limit")
    monkeypatch.setattr(start, "device_memories", lambda: [place])
    monkeypatch.setattr(answers, "device_memories", lambda: [place])


def test_a_run_that_cannot_fit_is_refused_with_suggestions(monkeypatch, tmp_path):
    from sft.train import train

    small(monkeypatch, 400 << 20)
    config = compose(*TINY, f"hydra.run.dir={tmp_path}/run")
    with pytest.raises(UserError) as caught:
        train(config)
    text = str(caught.value)
    assert "the container's limit" in text and "estimate.enforce=false" in text
    assert "trainer.per_device_train_batch_size=2 trainer.gradient_accumulation_steps=4" in text
    assert train(compose(*TINY, f"hydra.run.dir={tmp_path}/run", "estimate.enforce=false")).metrics["steps"] == 1


def test_the_command_exits_with_2_if_a_run_cannot_fit(monkeypatch, tmp_path, capsys):
    from sft import train as train_command

    small(monkeypatch, 400 << 20)
    monkeypatch.setattr(sys, "argv", ["train", *TINY, f"hydra.run.dir={tmp_path}/run"])
    with pytest.raises(SystemExit) as left:
        train_command.main()
    assert left.value.code == 2
    assert "the run needs about" in capsys.readouterr().err


def test_activations_are_recomputed_only_if_they_do_not_fit(monkeypatch, tmp_path):
    from sft.train import train

    config = with_lengths(Job.of(compose(*TINY)).config)
    estimator = Estimator(config, "cpu")
    kept, again = (estimator.estimate(Batch(8, 90, 300, True), checkpointing=on).needs for on in (False, True))
    assert again < kept
    rooms = {"plenty": 8 << 30, "little": 594 << 20}
    settled = {}
    for name, room in rooms.items():
        small(monkeypatch, room)
        train(compose(*TINY, f"hydra.run.dir={tmp_path}/{name}"))
        settled[name] = json.loads((tmp_path / name / "run.json").read_text())["gradient_checkpointing"]
    assert settled == {"plenty": False, "little": True}


def test_the_checkpointing_decision_is_kept_when_a_run_is_resumed(monkeypatch):
    from sft.run.directory import RunDirectory
    from sft.training.inputs import prepare_inputs

    config = Job.of(compose(*TINY)).config
    inputs = prepare_inputs(config)
    small(monkeypatch, 8 << 30)
    for recorded in (True, False):
        record = {"gradient_checkpointing": recorded}
        found = start.check_memory(config, inputs, record, RunDirectory("/nowhere"))
        assert found["trainer"]["gradient_checkpointing"] is recorded


def test_the_command_prints_the_parts_and_what_would_fit(monkeypatch):
    small(monkeypatch, 610 << 20)
    config = Job.of(compose(*TINY, "dataset.max_length=512")).config
    text = str(answers.estimate_report(config))
    for part in ("weights", "adapter", "gradients", "optimizer", "activations", "logits", "peak", "does not fit"):
        assert part in text
    assert "dataset.max_length=256" in text
