"""Adapters: what they cover, what is refused, and that they reproduce the same logits when loaded elsewhere."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sft.config.errors import UserError
from sft.export.reload import logits_of, verify_reload
from sft.model.adapters.attach import attach, changes_base, detach
from sft.model.adapters.existing import check_adapter
from sft.model.load import load_model, load_tokenizer
from sft.model.save import save_adapter

IDS = torch.arange(40).reshape(2, 20) * 7 + 300


def train(model, steps=4, rate=5e-3, ids=IDS):
    """A few steps of AdamW on fixed rows; the losses."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def trained(built, *overrides, **options):
    spec, quant, lora = built(*overrides)
    model, coverage = attach(load_model(spec, quant), lora, spec, seed=1)
    losses = train(model, **options)
    assert losses[-1] < losses[0]
    return spec, quant, model, coverage


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mistral", "gemma3", "phi3", "gpt2"])
def test_every_family_trains_and_its_adapter_loads_with_plain_peft(built, tmp_path, architecture):
    spec, _, model, coverage = trained(built, f"model.architecture={architecture}", "lora=r8")
    save_adapter(model, tmp_path / "adapter", load_tokenizer(spec))
    assert set(coverage.layers.values()) == {4 if architecture in ("phi3", "gpt2") else 7}
    name = peft.PeftConfig.from_pretrained(tmp_path / "adapter").base_model_name_or_path
    assert name == spec.locate()
    plain = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(name), tmp_path / "adapter")
    assert torch.equal(logits_of(plain, IDS), logits_of(model, IDS))
    assert not torch.equal(logits_of(model, IDS), logits_of(load_model(spec), IDS))
    assert AutoTokenizer.from_pretrained(tmp_path / "adapter").get_vocab() == load_tokenizer(spec).get_vocab()


@pytest.mark.parametrize(("lora", "quant"), [("rslora", "none"), ("dora", "none"), ("dora", "nf4"), ("r64", "nf4")])
def test_variants_reload_exactly(built, tmp_path, lora, quant):
    spec, bits, model, _ = trained(built, f"lora={lora}", f"quant={quant}")
    save_adapter(model, tmp_path / "adapter")
    assert verify_reload(model, tmp_path / "adapter", spec, IDS, bits) == 0.0


@pytest.mark.parametrize("quant", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_quantized_bases_train_on_the_cpu_and_reload_exactly(built, tmp_path, quant, architecture):
    spec, bits, model, coverage = trained(built, f"quant={quant}", f"model.architecture={architecture}")
    assert (
        coverage.total == attach(load_model(spec), built()[2], spec)[1].total
    )  # packed weights count as many as they are
    save_adapter(model, tmp_path / "adapter")
    assert verify_reload(model, tmp_path / "adapter", spec, IDS, bits) == 0.0


@pytest.mark.parametrize(
    ("lora", "architecture"),
    [("pissa", "llama"), ("pissa", "phi3"), ("pissa", "gpt2"), ("olora", "llama"), ("olora", "mistral")],
)
def test_pissa_and_olora_adapters_load_on_the_plain_base(built, tmp_path, lora, architecture):
    spec, _, model, _ = trained(built, f"lora={lora}", "lora.r=4", f"model.architecture={architecture}")
    save_adapter(model, tmp_path / "adapter")
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"], saved["init_lora_weights"]) == (8, 8, True)
    assert verify_reload(model, tmp_path / "adapter", spec, IDS) < 1e-4 * logits_of(model, IDS).abs().max()
    save_adapter(model, tmp_path / "again")  # saving changes nothing in the model
    files = [(tmp_path / d / "adapter_model.safetensors").read_bytes() for d in ("adapter", "again")]
    assert files[0] == files[1]


def test_pissa_with_rank_stabilized_scaling_keeps_it(built, tmp_path):
    spec, _, model, _ = trained(built, "lora=pissa", "lora.r=4", "lora.use_rslora=true")
    save_adapter(model, tmp_path / "adapter")
    assert verify_reload(model, tmp_path / "adapter", spec, IDS) < 1e-4 * logits_of(model, IDS).abs().max()


def test_loftq_selects_its_quantization_and_starts_closer_to_the_plain_base(built, tmp_path):
    spec, bits, lora = built("lora=loftq")
    assert bits is not None and bits.bnb_4bit_quant_type == "nf4"
    want = logits_of(load_model(spec), IDS)
    plain = (logits_of(load_model(spec, bits), IDS) - want).norm()
    model, _ = attach(load_model(spec, bits), lora, spec)
    assert (logits_of(model, IDS) - want).norm() < 0.9 * plain
    train(model)
    save_adapter(model, tmp_path / "adapter")
    assert verify_reload(model, tmp_path / "adapter", spec, IDS, bits) == 0.0


def test_alpha_follows_the_rank_unless_set(compose):
    assert compose("lora.r=4")["lora"]["lora_alpha"] == 4
    assert compose("lora=r64")["lora"]["lora_alpha"] == 64
    assert compose("lora=r8", "lora.lora_alpha=32")["lora"]["lora_alpha"] == 32
    assert compose("lora=dora", "lora.r=2")["lora"]["lora_alpha"] == 2


def test_coverage_is_counted_and_logged(built):
    spec, _, lora = built("lora=r8")
    _, coverage = attach(load_model(spec), lora, spec)
    assert coverage.modules == dict.fromkeys(
        ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"], 2
    )
    assert coverage.layers == {0: 7, 1: 7}
    hidden, inner, kv = 64, 128, 32
    shapes = [(hidden, hidden)] * 2 + [(hidden, kv)] * 2 + [(hidden, inner)] * 3
    assert coverage.trainable == 2 * 8 * sum(a + b for a, b in shapes)
    assert coverage.line().startswith("LoRA r=8 covers down_proj x2, ")
    assert "in 2 of 2 layers; left out: lm_head; " in coverage.line()
    assert f"{coverage.trainable:,} of {coverage.total:,} parameters train" in coverage.line()


def test_partial_coverage_is_logged(built):
    spec, _, lora = built("lora.target_modules=[q_proj]", "lora.layers_to_transform=[1]")
    _, coverage = attach(load_model(spec), lora, spec)
    assert coverage.layers == {0: 0, 1: 1}
    assert (
        "in 1 of 2 layers (none in layer 0); left out: down_proj, gate_proj, k_proj, lm_head, o_proj" in coverage.line()
    )


@pytest.mark.parametrize("target", ["[q_proj,vproj]", "[nothing]", "'.*nothing'"])
def test_targets_that_match_nothing_name_the_candidates(built, target):
    spec, _, lora = built(f"lora.target_modules={target}")
    with pytest.raises(UserError) as error:
        attach(load_model(spec), lora, spec)
    assert error.value.where == "lora.target_modules"
    assert "vproj" in error.value.what or "nothing" in error.value.what
    assert "[down_proj,gate_proj,k_proj,o_proj,q_proj,up_proj,v_proj]" in error.value.remedy


def test_the_familys_targets_are_the_default(built):
    spec, _, lora = built()
    _, coverage = attach(load_model(spec), lora, spec, target_modules=["q_proj", "v_proj"])
    assert coverage.modules == {"q_proj": 2, "v_proj": 2}


def test_adapters_train_in_fp32_on_a_half_precision_base(built, tmp_path):
    spec, _, model, _ = trained(built, "model.dtype=bf16")
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    save_adapter(model, tmp_path / "adapter")
    assert verify_reload(model, tmp_path / "adapter", spec, IDS) == 0.0


def test_an_existing_adapter_is_trained_further(built, tmp_path):
    spec, _, model, _ = trained(built, "lora=r8")
    save_adapter(model, tmp_path / "adapter", load_tokenizer(spec))
    spec, _, lora = built("lora=r32", f"model.adapter={tmp_path / 'adapter'}")
    again, coverage = attach(load_model(spec), lora, spec)
    assert coverage.rank == 8
    assert torch.equal(logits_of(again, IDS), logits_of(model, IDS))
    losses = train(again)
    assert losses[-1] < losses[0]
    save_adapter(again, tmp_path / "second")
    assert verify_reload(again, tmp_path / "second", spec, IDS) == 0.0


def test_an_adapter_of_another_base_is_refused(built, tmp_path):
    _, _, model, _ = trained(built, "lora=r8")
    save_adapter(model, tmp_path / "adapter")
    for architecture in ("gpt2", "qwen3"):
        spec, _, lora = built(f"model.architecture={architecture}", f"model.adapter={tmp_path / 'adapter'}")
        with pytest.raises(UserError):
            attach(load_model(spec), lora, spec)


def test_a_run_directory_given_as_adapter_suggests_its_adapter(tmp_path):
    (tmp_path / "adapter").mkdir()
    with pytest.raises(UserError, match=r"model\.adapter=.*/adapter"):
        check_adapter(str(tmp_path))


def test_full_fine_tuning_trains_everything_and_refuses_quantized_weights(built):
    spec, bits, lora = built("lora=none", "quant=nf4")
    assert lora is None
    model, coverage = attach(load_model(spec, trained=True), None, spec)
    assert coverage.trainable == coverage.total and coverage.line().startswith("full fine-tuning: ")
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(UserError, match="quantized"):
        attach(load_model(spec, bits), None, spec)


@pytest.mark.parametrize(("lora", "quant"), [("loftq", "none"), ("pissa", "nf4"), ("olora", "int8")])
def test_unsupported_initializations_are_refused(built, lora, quant):
    spec, bits, _ = built(f"quant={quant}")
    _, _, lora = built(f"lora={lora}")
    with pytest.raises(UserError) as error:
        attach(load_model(spec, bits), lora, spec)
    assert error.value.where == "lora.init_lora_weights" and "quant=" in error.value.remedy


def test_the_initialization_does_not_depend_on_earlier_random_numbers(built):
    spec, _, lora = built()
    drawn = []
    for before in (0, 1):
        torch.manual_seed(before)
        model, _ = attach(load_model(spec), lora, spec, seed=42)
        drawn.append(torch.cat([p.flatten() for p in model.parameters() if p.requires_grad]))
    assert torch.equal(*drawn)


@pytest.mark.parametrize(
    ("overrides", "changes"),
    [
        ((), False),
        (("lora=dora",), False),
        (("lora=loftq",), True),
        (("lora=pissa",), True),
        (("lora=none",), True),
        (("lora.bias=all",), True),
        (("lora.modules_to_save=[lm_head]",), True),
    ],
)
def test_which_adapters_modify_the_base(built, overrides, changes):
    spec, _, lora = built(*overrides)
    assert changes_base(lora, spec) is changes
    assert changes_base(lora, spec, new_rows=[3]) is True


@pytest.mark.parametrize("quant", ["none", "nf4"])
@pytest.mark.parametrize("lora", ["r8", "dora"])
def test_the_base_stays_byte_identical_through_training_and_evaluation(built, quant, lora):
    spec, bits, config = built(f"lora={lora}", f"quant={quant}")
    base = load_model(spec, bits)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    model, _ = attach(base, config, spec)
    logits_of(model, IDS)
    train(model)
    logits_of(model, IDS)
    assert detach(model) is base and not base.training and not any(p.requires_grad for p in base.parameters())
    after = base.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
