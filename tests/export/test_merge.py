"""Merged and full models: the same logits, correctly tied or untied, written atomically."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from sft.config.errors import UserError
from sft.export import merge as merging
from sft.export.merge import merge
from sft.export.reload import logits_of
from sft.model.adapters.attach import attach
from sft.model.embeddings import is_tied
from sft.model.load import load_model, load_tokenizer
from sft.model.save import save_adapter, save_model, stop_at
from sft.model.tokenizer_files import save_tokenizer

pytestmark = pytest.mark.numeric

IDS = torch.arange(40).reshape(2, 20) * 7 + 300


def adapter(built, path, *overrides):
    """A saved adapter whose weights are far from where they started."""
    spec, quant, lora = built(*overrides)
    model, _ = attach(load_model(spec, quant), lora, spec, seed=3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    save_adapter(model, path)
    return spec, model


@pytest.mark.parametrize("overrides", [("lora=r8",), ("lora=dora",), ("lora=rslora",), ("model.architecture=gpt2",)])
def test_a_merged_model_gives_the_adapters_logits(built, tmp_path, overrides, assert_near):
    spec, model = adapter(built, tmp_path / "adapter", *overrides)
    found = merge(spec, tmp_path / "adapter", tmp_path / "merged", tokenizer=load_tokenizer(spec))
    assert found.difference == found.rounding < 1e-4
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert_near(logits_of(merged, IDS), logits_of(model, IDS))
    assert merged.config.use_cache and is_tied(merged)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").get_vocab() == load_tokenizer(spec).get_vocab()


def test_an_adapter_on_a_tied_output_layer_unties_it(built, tmp_path, assert_near):
    spec, model = adapter(built, tmp_path / "adapter", "lora.target_modules=[lm_head,q_proj]")
    assert merge(spec, tmp_path / "adapter", tmp_path / "merged").difference < 1e-4
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not is_tied(merged)
    assert_near(logits_of(merged, IDS), logits_of(model, IDS))


@pytest.mark.parametrize(
    "targets",
    [
        "lora.target_modules=[embed_tokens,q_proj]",
        "lora.target_modules=[embed_tokens]",
        "lora.target_modules=[embed_tokens,lm_head]",
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_on_a_tied_input_embedding_unties_it(built, tmp_path, targets, dtype, assert_near):
    spec, model = adapter(built, tmp_path / "adapter", targets, f"model.dtype={dtype}")
    with torch.no_grad():  # an embedding's adapter starts with its A at 0
        for name, parameter in model.named_parameters():
            if "lora_embedding" in name:
                parameter.normal_(std=0.1)
    save_adapter(model, tmp_path / "adapter")
    found = merge(spec, tmp_path / "adapter", tmp_path / "merged")
    assert found.difference < 1e-4
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert str(merged.dtype) == f"torch.{dtype}"
    assert not is_tied(merged)
    if dtype == "float32":
        assert_near(logits_of(merged, IDS), logits_of(model, IDS))


def test_the_rounding_error_of_a_merge_is_reported(built, tmp_path, caplog):
    spec, model = adapter(built, tmp_path / "adapter", "model.dtype=bfloat16")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(1e-2)
    save_adapter(model, tmp_path / "adapter")
    found = merge(spec, tmp_path / "adapter", tmp_path / "merged")
    assert found.difference < 1e-2 < 0.1 < found.rounding
    assert "rounding the merged weights to bfloat16 changes the logits by" in caplog.text


def test_an_adapter_without_effect_can_be_merged(built, tmp_path):
    spec, quant, lora = built("lora=r8")
    model, _ = attach(load_model(spec, quant), lora, spec, seed=3)
    save_adapter(model, tmp_path / "adapter")
    assert merge(spec, tmp_path / "adapter", tmp_path / "merged").difference < 1e-2


def test_an_adapters_bias_needs_a_layer_with_a_bias(built, tmp_path, assert_near):
    with pytest.raises(UserError, match=r"lora.lora_bias: the adapter has a bias for .*q_proj"):
        adapter(built, tmp_path / "adapter", "lora.lora_bias=true")
    spec, model = adapter(built, tmp_path / "adapter", "model.architecture=gpt2", "lora.lora_bias=true")
    assert merge(spec, tmp_path / "adapter", tmp_path / "merged").difference < 1e-4
    assert_near(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), IDS), logits_of(model, IDS))


def test_an_adapter_trained_on_a_4_bit_base_is_merged_in_full_precision(built, tmp_path):
    spec, _ = adapter(built, tmp_path / "adapter", "quant=nf4")
    assert merge(spec, tmp_path / "adapter", tmp_path / "merged").difference < 1e-4
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())


def test_a_merge_that_changes_the_logits_is_refused(built, tmp_path, monkeypatch):
    spec, _ = adapter(built, tmp_path / "adapter")
    monkeypatch.setattr(merging, "unload_merged", lambda adapted: adapted.unload())
    with pytest.raises(UserError, match="more than rounding"):
        merge(spec, tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_saving_replaces_the_old_model_and_leaves_no_temporary_files(built, tmp_path):
    spec, model = adapter(built, tmp_path / "adapter")
    (tmp_path / "adapter" / "stale").write_text("")
    save_adapter(model, tmp_path / "adapter", load_tokenizer(spec), chat_template="{{ messages }}")
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
    names = {p.name for p in (tmp_path / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert "stale" not in names
    assert AutoTokenizer.from_pretrained(tmp_path / "adapter").chat_template == "{{ messages }}"


def test_a_failed_save_keeps_the_old_model(built, tmp_path, monkeypatch):
    _, model = adapter(built, tmp_path / "adapter")
    before = (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()
    monkeypatch.setattr(model, "save_pretrained", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_adapter(model, tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_a_model_can_be_saved_over_the_directory_it_was_loaded_from(built, tmp_path):
    spec, _, _ = built()
    save_model(load_model(spec), tmp_path / "model", load_tokenizer(spec))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    save_model(again, tmp_path / "model")
    assert torch.equal(logits_of(again, IDS), logits_of(load_model(spec), IDS))


def test_sampling_settings_without_sampling_do_not_stop_the_save(built, tmp_path):
    spec, _, _ = built()
    model = load_model(spec)
    model.generation_config = GenerationConfig(temperature=0.6, top_p=0.9)
    save_model(model, tmp_path / "model")
    assert GenerationConfig.from_pretrained(tmp_path / "model").temperature == 0.6


def test_a_saved_tokenizer_has_no_local_paths(built, tmp_path):
    spec, _, _ = built()
    tokenizer = load_tokenizer(spec)
    save_tokenizer(tokenizer, tmp_path, chat_template="x")
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert not {"is_local", "local_files_only", "name_or_path"} & saved.keys()
    assert spec.locate() not in (tmp_path / "tokenizer_config.json").read_text()
    assert tokenizer.chat_template is None


def test_generation_stops_where_a_turn_ends(built, tmp_path):
    spec, _, _ = built("model.architecture=gpt2")
    model, tokenizer = load_model(spec), load_tokenizer(spec)
    over, end = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert stop_at(model, tokenizer, ["<|im_end|>", "<|nowhere|>"]) == [over, end]
    save_model(model, tmp_path / "model")
    assert GenerationConfig.from_pretrained(tmp_path / "model").eos_token_id == [over, end]
