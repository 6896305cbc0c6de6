"""Generations during training, which do not affect the training."""

from __future__ import annotations

import copy
import random
from types import SimpleNamespace
from typing import Any

import numpy
import torch
from transformers import TrainerCallback

from sft.evaluation.eval_mode import eval_mode
from sft.run.directory import RunDirectory
from sft.training.callbacks import generation_samples
from sft.training.callbacks.base import bind_all
from sft.training.callbacks.generation_samples import GenerationSamples


class Words:
    """A tokenizer of single digits, as far as generation needs one."""

    eos_token_id, pad_token_id, bos_token_id, unk_token_id = 9, 0, None, None

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [int(c) for c in text if c.isdigit()]}

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return "".join(message["content"] for message in messages)

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(str(int(i)) for i in ids)

    def convert_tokens_to_ids(self, token: str) -> int:
        return int(token)

    def convert_ids_to_tokens(self, token: int) -> str:
        return str(token)


EXAMPLES = [
    {"messages": [{"role": "user", "content": "12"}, {"role": "assistant", "content": "3"}]},
    {
        "messages": [
            {"role": "user", "content": "4"},
            {"role": "assistant", "content": "5"},
            {"role": "user", "content": "6"},
        ]
    },
    {"text": "raw text has no question"},
]


def test_samples_are_kept_once_a_step(event, tiny, run: RunDirectory) -> None:
    callback = GenerationSamples(count=3, max_new_tokens=4)
    callback.bind(run, tokenizer=Words(), examples=EXAMPLES)
    for step in (2, 2, 4):
        event("on_evaluate", callback, step, model=tiny(), metrics={})
    lines = run.read_jsonl(run.generations_jsonl)
    assert [(line["step"], line["messages"][-1]["content"], line["reference"]) for line in lines] == [
        (2, "12", "3"),
        (2, "4", "5"),
        (4, "12", "3"),
        (4, "4", "5"),
    ]
    assert all(len(line["answer"].split()) <= 4 for line in lines)
    event("on_train_begin", callback, 2, history=[{"step": 2, "eval_loss": 1.0}])
    assert [line["step"] for line in run.read_jsonl(run.generations_jsonl)] == [2, 2]
    event("on_train_begin", callback, 2, history=[{"step": 2, "loss": 1.0}])  # a checkpoint from before the evaluation
    assert run.read_jsonl(run.generations_jsonl) == []


def test_the_users_prompts_are_rendered_by_the_bound_template(event, tiny, run: RunDirectory, monkeypatch) -> None:
    seen: list[Any] = []
    stops: list[Any] = []
    generate = generation_samples.generate_answers

    def noting(*args: Any, **settings: Any) -> list[str]:
        stops.append(settings["stop_tokens"])
        return generate(*args, **settings)

    monkeypatch.setattr(generation_samples, "generate_answers", noting)

    def render(conversation: dict[str, Any], add_generation_prompt: bool = False) -> str:
        seen.append((conversation, add_generation_prompt))
        return "123"

    callback = GenerationSamples(prompts=["7"], max_new_tokens=1)
    callback.bind(run, tokenizer=Words(), template=SimpleNamespace(render=render, stop_tokens=["8"]))
    event("on_evaluate", callback, 1, model=tiny(), metrics={})
    assert seen == [({"messages": [{"role": "user", "content": "7"}]}, True)]
    assert run.read_jsonl(run.generations_jsonl)[0]["reference"] is None
    assert stops == [["8"]]


def test_training_is_the_same_with_and_without_samples(trainer, run: RunDirectory) -> None:
    def weights(callbacks: list[TrainerCallback]) -> dict[str, torch.Tensor]:
        bind_all(callbacks, run, tokenizer=Words(), examples=EXAMPLES)
        built = trainer(callbacks, True, eval_strategy="steps", eval_steps=2, seed=3)
        built.train()
        return built.model.state_dict()

    with_samples, without = weights([GenerationSamples(max_new_tokens=3)]), weights([])
    assert len(run.read_jsonl(run.generations_jsonl)) == 6
    assert all(torch.equal(with_samples[name], without[name]) for name in without)


def test_modes_settings_and_random_states_are_restored(event, tiny) -> None:
    model = tiny()
    model.train()
    model.transformer.h[0].eval()  # a frozen part keeps its own mode
    modes = [module.training for module in model.modules()]
    config = copy.deepcopy(model.generation_config.to_dict())
    states = (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state())
    with eval_mode(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        random.random()
        numpy.random.random()
        torch.rand(3)
    assert [module.training for module in model.modules()] == modes
    callback = GenerationSamples(max_new_tokens=3)
    callback.bind(None, tokenizer=Words(), examples=EXAMPLES)
    event("on_evaluate", callback, 1, model=model, metrics={})
    assert [module.training for module in model.modules()] == modes
    assert model.generation_config.to_dict() == config
    assert random.getstate() == states[0]
    assert numpy.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
