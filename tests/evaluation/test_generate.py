"""Batched generation: the same answers as one at a time, in order, without side effects."""

from __future__ import annotations

import random
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sft.config.errors import UserError
from sft.evaluation.generate import answer_prompts, by_length, find_stops, generate_answers, pad_id, read_answer

PROMPTS = ["Hi", "How are you today?", "x", "A much longer prompt than all of the others here", "Tell me", "12 + 30 ="]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3", "gemma3_text", "phi3", "mistral"])
def test_a_batch_answers_as_single_prompts_do(architecture: str, build_model: Any, tokenizer: Any) -> None:
    model = build_model(architecture)
    alone = [generate_answers(model, tokenizer, [prompt], max_new_tokens=12)[0] for prompt in PROMPTS]
    assert generate_answers(model, tokenizer, PROMPTS, max_new_tokens=12, batch_size=4) == alone
    assert len(set(alone)) > 1


def test_text_and_id_prompts_are_equivalent(build_model: Any, tokenizer: Any) -> None:
    model = build_model()
    ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in PROMPTS]
    assert answer_prompts(model, tokenizer, ids, max_new_tokens=5) == answer_prompts(
        model, tokenizer, PROMPTS, max_new_tokens=5
    )
    assert generate_answers(model, tokenizer, []) == []


def test_batches_cost_fewer_forward_passes(build_model: Any, tokenizer: Any) -> None:
    model = build_model()
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    answer_prompts(model, tokenizer, PROMPTS, max_new_tokens=6, batch_size=6)
    handle.remove()
    assert len(calls) <= 6


def test_generation_does_not_disturb_training(build_model: Any, tokenizer: Any) -> None:
    model = build_model(use_cache=False)
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    own, tokenizer.padding_side = model.generation_config, "right"
    states = torch.get_rng_state().clone(), random.getstate(), numpy.random.get_state()[1].copy()
    answer_prompts(model, tokenizer, PROMPTS, max_new_tokens=4, temperature=1.0, seed=3)
    assert [module.training for module in model.modules()] == modes
    assert model.generation_config is own
    assert model.config.use_cache is False
    assert tokenizer.padding_side == "right"
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (numpy.random.get_state()[1] == states[2]).all()


def test_state_is_restored_after_an_error(build_model: Any, tokenizer: Any) -> None:
    model = build_model()
    model.train()
    own = model.generation_config
    with pytest.raises(UserError, match="300 tokens leave no room"):
        answer_prompts(model, tokenizer, [[5] * 300])
    assert model.training
    assert model.generation_config is own


def test_decoding_is_greedy_despite_the_models_defaults(build_model: Any, tokenizer: Any) -> None:
    model = build_model()
    plain = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=10)
    model.generation_config.update(do_sample=True, temperature=5.0, top_k=50, repetition_penalty=9.0, max_new_tokens=2)
    assert generate_answers(model, tokenizer, PROMPTS, max_new_tokens=10) == plain


def test_sampling_follows_the_seed(build_model: Any, tokenizer: Any) -> None:
    model = build_model()

    def draw(seed: int) -> list[str]:
        return generate_answers(model, tokenizer, PROMPTS, max_new_tokens=8, temperature=1.5, seed=seed)

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_top_k_of_one_is_greedy(build_model: Any, tokenizer: Any) -> None:
    model = build_model()
    greedy = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=8)
    assert generate_answers(model, tokenizer, PROMPTS, max_new_tokens=8, temperature=2.0, top_k=1) == greedy


def _always_say(model: Any, *tokens: int) -> Any:
    """Make the model say these tokens in turn, again and again; returns the hook to remove."""
    turn = iter(tokens * 100)

    def force(module: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        forced = torch.zeros_like(logits)
        forced[..., next(turn)] = 1.0
        return forced

    return model.lm_head.register_forward_hook(force)


def test_an_answer_excludes_its_stop_token(build_model: Any, tokenizer: Any) -> None:
    model = build_model()
    a, end, b = (tokenizer.convert_tokens_to_ids(token) for token in ("a", "<|im_end|>", "b"))
    hook = _always_say(model, a, a, end, b)
    answers = answer_prompts(model, tokenizer, PROMPTS, stop_tokens=["<|im_end|>"], max_new_tokens=9)
    hook.remove()
    assert {(answer.text, answer.tokens, answer.stopped) for answer in answers} == {("aa", 3, True)}


def test_a_stop_text_of_several_tokens_stops_too(build_model: Any, tokenizer: Any) -> None:
    model = build_model()
    ids = tokenizer("abEND", add_special_tokens=False)["input_ids"]
    hook = _always_say(model, *ids)
    answers = answer_prompts(model, tokenizer, PROMPTS[:1], stop_tokens=["END"], max_new_tokens=50)
    hook.remove()
    assert (answers[0].text, answers[0].stopped) == ("ab", True)


def test_an_unfinished_answer_is_flagged(build_model: Any, tokenizer: Any) -> None:
    model = build_model()
    hook = _always_say(model, tokenizer.convert_tokens_to_ids("a"))
    answer = answer_prompts(model, tokenizer, ["x"], max_new_tokens=4)[0]
    hook.remove()
    assert (answer.text, answer.tokens, answer.stopped) == ("aaaa", 4, False)


def test_the_models_context_length_limits_an_answer(build_model: Any, tokenizer: Any) -> None:
    model = build_model("gpt2")
    hook = _always_say(model, tokenizer.convert_tokens_to_ids("a"))
    answer = answer_prompts(model, tokenizer, [[5] * 250], max_new_tokens=50)[0]
    hook.remove()
    assert answer.tokens == 6


def test_an_empty_prompt_is_a_user_error(build_model: Any, tokenizer: Any) -> None:
    with pytest.raises(UserError, match="empty"):
        answer_prompts(build_model(), tokenizer, ["a", ""])


def test_stop_tokens_include_given_own_and_the_tokenizers(build_model: Any, tokenizer: Any) -> None:
    model = build_model()
    model.generation_config.eos_token_id = [1, 3]
    stops = find_stops(tokenizer, ["<|im_start|>", "no such token"], model)
    assert stops.ids == (2, 3, 1)
    assert stops.texts == ("no such token",)
    assert pad_id(tokenizer, stops) == 0


def test_the_padding_token_is_not_a_stop_token_if_there_is_another(tokenizer: Any) -> None:
    import copy

    padded_with_end = copy.deepcopy(tokenizer)
    padded_with_end.pad_token = "<|im_end|>"
    assert pad_id(padded_with_end, find_stops(padded_with_end, [])) == tokenizer.bos_token_id


def test_special_tokens_are_not_part_of_the_text(tokenizer: Any) -> None:
    start, a = tokenizer.convert_tokens_to_ids(["<|im_start|>", "a"])
    assert read_answer(tokenizer, [start, a, a], find_stops(tokenizer, [])).text == "aa"


def test_the_adapter_affects_the_answer(build_model: Any, tokenizer: Any) -> None:
    from peft import LoraConfig, get_peft_model

    plain = generate_answers(build_model(), tokenizer, PROMPTS, max_new_tokens=6)
    torch.manual_seed(0)
    model = get_peft_model(build_model(), LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear"))
    adapted = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=6)
    assert adapted != plain
    with model.disable_adapter():
        assert generate_answers(model, tokenizer, PROMPTS, max_new_tokens=6) == plain


def test_progress_counts_prompts(build_model: Any, tokenizer: Any) -> None:
    seen: list[tuple[int, int]] = []
    answer_prompts(
        build_model(), tokenizer, PROMPTS, max_new_tokens=1, batch_size=4, progress=lambda *x: seen.append(x)
    )
    assert seen == [(4, 6), (6, 6)]


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 7))
def test_batches_cover_every_prompt_once_longest_first(lengths: list[int], size: int) -> None:
    batches = list(by_length(lengths, size))
    places = [i for batch in batches for i in batch]
    assert sorted(places) == list(range(len(lengths)))
    assert [lengths[i] for i in places] == sorted(lengths, reverse=True)
    assert all(len(batch) == size for batch in batches[:-1])


def test_the_output_layer_is_not_copied_for_each_prompt(build_model: Any, tokenizer: Any) -> None:
    model = build_model().requires_grad_(False)  # as the base of an adapter is
    rows = model.get_output_embeddings().weight.shape[0]
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, record_shapes=True) as profile:
        answer_prompts(model, tokenizer, PROMPTS, batch_size=len(PROMPTS), max_new_tokens=2)
    products = [event for event in profile.events() if event.name in ("aten::mm", "aten::addmm", "aten::bmm")]
    batched = [event.name == "aten::bmm" for event in products if any(rows in shape for shape in event.input_shapes)]
    assert batched and not any(batched)
    assert not model.get_output_embeddings()._forward_pre_hooks
