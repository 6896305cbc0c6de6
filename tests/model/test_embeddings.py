"""Tokens that the base model lacks: added once, embedded, trained, saved with the adapter, and loaded again."""

from __future__ import annotations

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sft.config.errors import UserError
from sft.export.merge import merge
from sft.export.reload import logits_of, verify_reload
from sft.model.adapters.attach import attach
from sft.model.embeddings import embedding_names, fit_embeddings, is_tied
from sft.model.load import load_model, load_tokenizer
from sft.model.save import save_adapter
from sft.model.tokens import add_control_tokens, added_rows, is_single, needed_rows, set_special_tokens

pytestmark = pytest.mark.numeric

CHAT = ["<|turn|>", "<|over|>"]


def prepared(built, *overrides):
    """A base with two chat tokens added, its tokenizer, its adapter attached, trained for a few steps."""
    spec, quant, lora = built(*overrides)
    tokenizer = load_tokenizer(spec)
    assert add_control_tokens(tokenizer, CHAT[:1], CHAT[1:]) == CHAT
    base = load_model(spec, quant, trained=lora is None)
    rows = fit_embeddings(base, tokenizer, CHAT)
    model, coverage = attach(base, lora, spec, new_rows=rows)
    ids = torch.tensor([tokenizer("<|turn|>hello there<|over|> my name is Tom<|over|>").input_ids])
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return spec, quant, tokenizer, model, coverage, rows, ids


@pytest.mark.parametrize(  # tied, untied, scaled, another name
    ("architecture", "quant"),
    [("llama", "none"), ("mistral", "none"), ("mistral", "nf4"), ("gemma3", "none"), ("gpt2", "nf4")],
)
def test_new_rows_train_are_saved_and_load_again(built, tmp_path, architecture, quant):
    spec, bits, tokenizer, model, coverage, rows, ids = prepared(
        built, f"model.architecture={architecture}", f"quant={quant}"
    )
    assert rows == [1536, 1537] and coverage.rows == 2
    assert "2 new embedding rows" in coverage.line()
    hidden, matrices = 64, 2 if architecture == "mistral" else 1
    fresh = [p for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n]
    assert [tuple(p.shape) for p in fresh] == [(2, hidden)] * matrices
    save_adapter(model, tmp_path / "adapter", tokenizer)
    assert verify_reload(model, tmp_path / "adapter", spec, ids, bits) == 0.0
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < 300_000  # not the whole embedding


def test_the_adapter_loads_with_plain_peft_after_resizing_the_base(built, tmp_path):
    spec, _, tokenizer, model, _, _, ids = prepared(built)
    save_adapter(model, tmp_path / "adapter", tokenizer)
    want = logits_of(model, ids)
    again = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    assert again("<|turn|>hello there<|over|> my name is Tom<|over|>").input_ids == ids[0].tolist()
    base = AutoModelForCausalLM.from_pretrained(spec.locate())
    base.resize_token_embeddings(len(again))
    assert torch.equal(logits_of(peft.PeftModel.from_pretrained(base, tmp_path / "adapter"), ids), want)
    assert torch.equal(logits_of(peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter"), ids), want)


def test_tied_embeddings_stay_tied(built, tmp_path):
    _, _, _, model, _, _, _ = prepared(built)
    base = model.base_model.model
    assert torch.equal(base.get_input_embeddings().weight, base.get_output_embeddings().weight)


@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_a_merged_model_has_the_new_rows(built, tmp_path, architecture, assert_near):
    spec, _, tokenizer, model, _, _, ids = prepared(built, f"model.architecture={architecture}")
    save_adapter(model, tmp_path / "adapter", tokenizer)
    found = merge(spec, tmp_path / "adapter", tmp_path / "merged", tokenizer=tokenizer, prompts=ids)
    assert found.difference < 1e-4
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert_near(logits_of(merged, ids), logits_of(model, ids))
    assert is_tied(merged) is (architecture == "llama")


def test_training_an_adapter_with_new_rows_further(built, tmp_path):
    spec, _, tokenizer, model, _, _, ids = prepared(built)
    save_adapter(model, tmp_path / "adapter", tokenizer)
    spec, _, lora = built(f"model.adapter={tmp_path / 'adapter'}")
    tokenizer = load_tokenizer(spec)
    assert tokenizer.eos_token == "<|over|>" and add_control_tokens(tokenizer, CHAT) == []
    base = load_model(spec)
    again, coverage = attach(base, lora, spec, new_rows=fit_embeddings(base, tokenizer))
    assert coverage.rows == 2
    assert torch.equal(logits_of(again, ids), logits_of(model, ids))
    with pytest.raises(UserError, match=r"\[1538\]"):
        attach(load_model(spec), lora, spec, new_rows=[1537, 1538])


def test_full_fine_tuning_with_new_tokens(built, tmp_path):
    spec, _, _, model, coverage, rows, ids = prepared(built, "lora=none")
    assert rows == [1536, 1537] and coverage.trainable == coverage.total
    from sft.model.save import save_model

    save_model(model, tmp_path / "model")
    assert verify_reload(model, tmp_path / "model", spec, ids) == 0.0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").config.use_cache is True
    assert model.config.use_cache is False


def test_tokens_the_tokenizer_has_are_not_added(built):
    spec, _, _ = built("model.architecture=qwen3")
    tokenizer = load_tokenizer(spec)
    before = len(tokenizer), tokenizer.eos_token
    assert add_control_tokens(tokenizer, ["<|im_start|>", "<|im_end|>", "<think>"], ["<|im_end|>"]) == []
    assert (len(tokenizer), tokenizer.eos_token, added_rows(tokenizer)) == (*before, {})
    assert fit_embeddings(load_model(spec), tokenizer, ["<|im_start|>"]) == []


def test_spare_rows_are_used_before_the_embedding_grows(built):
    spec, _, _ = built()
    tokenizer, model = load_tokenizer(spec), load_model(spec)
    model.resize_token_embeddings(1600)
    add_control_tokens(tokenizer, CHAT)
    assert needed_rows(tokenizer) == 1538
    assert fit_embeddings(model, tokenizer) == [1536, 1537]
    assert model.get_input_embeddings().weight.shape == (1600, 64)


def test_new_rows_are_initialized_from_existing_ones_without_random_numbers(built):
    spec, _, _ = built("model.architecture=mistral")
    tokenizer, model = load_tokenizer(spec), load_model(spec)
    old = [m.weight.detach().clone() for m in (model.get_input_embeddings(), model.get_output_embeddings())]
    eos = tokenizer.eos_token_id
    add_control_tokens(tokenizer, CHAT[:1], CHAT[1:])
    torch.manual_seed(5)
    want = torch.rand(1)
    torch.manual_seed(5)
    fit_embeddings(model, tokenizer)
    assert torch.equal(torch.rand(1), want)
    for before, module in zip(old, (model.get_input_embeddings(), model.get_output_embeddings()), strict=True):
        assert torch.equal(module.weight[:1536], before)
        assert torch.equal(module.weight[1537], before[eos])  # <|over|> ends a turn as the old token ended a text
        torch.testing.assert_close(module.weight[1536], before.mean(dim=0))


def test_reserved_untrained_rows_count_as_new(built):
    spec, _, _ = built()
    tokenizer, model = load_tokenizer(spec), load_model(spec)
    row = tokenizer.convert_tokens_to_ids("<|eom_id|>")
    with torch.no_grad():
        model.get_input_embeddings().weight[row] = 0.0
    assert fit_embeddings(model, tokenizer, ["<|eot_id|>", "<|eom_id|>"]) == [row]
    assert torch.equal(
        model.get_input_embeddings().weight[row], model.get_input_embeddings().weight[tokenizer.eos_token_id]
    )


def test_embedding_names_follow_tying(built):
    assert embedding_names(load_model(built("model.architecture=gpt2")[0])) == ["transformer.wte"]
    assert embedding_names(load_model(built("model.architecture=mistral")[0])) == ["model.embed_tokens", "lm_head"]


def test_special_tokens_of_the_config_are_set_and_added(built):
    spec, _, _ = built(
        "model.tokenizer.special_tokens.pad_token='<mypad>'", "model.tokenizer.special_tokens.unk_token='<|eom_id|>'"
    )
    tokenizer = load_tokenizer(spec)
    assert (tokenizer.pad_token, tokenizer.pad_token_id, tokenizer.unk_token) == ("<mypad>", 1536, "<|eom_id|>")
    assert added_rows(tokenizer) == {1536: None}
    set_special_tokens(tokenizer, {"additional_special_tokens": ["<note>", "<|eom_id|>"]})
    assert is_single(tokenizer, "<note>") and needed_rows(tokenizer) == 1538


@pytest.mark.parametrize("whole", ["embed_tokens", "lm_head"])
@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_fully_trained_embeddings_are_saved_and_tied_ones_stay_tied(built, tmp_path, architecture, whole):
    overrides = (f"model.architecture={architecture}", f"lora.modules_to_save=[{whole}]")
    spec, _, tokenizer, model, _, _, ids = prepared(built, *overrides)
    save_adapter(model, tmp_path / "adapter", tokenizer)
    assert verify_reload(model, tmp_path / "adapter", spec, ids) == 0.0
    if architecture == "llama":
        base = model.base_model.model
        weights = [
            m.modules_to_save["default"].weight for m in (base.get_input_embeddings(), base.get_output_embeddings())
        ]
        assert torch.equal(*weights)


def test_ids_given_as_special_tokens_lead_to_expected_ids():
    with pytest.raises(UserError) as caught:
        set_special_tokens(None, {"pad_token": 0, "bos": 1})
    assert str(caught.value) == (
        "model.tokenizer.special_tokens.pad_token: a token is given as its text, not as 0\n"
        "  -> ids are checked with 'model.tokenizer.expected_ids={pad: 0, bos: 1}'"
    )
