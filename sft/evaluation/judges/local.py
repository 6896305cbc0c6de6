"""A local model as a judge. It always gives a verdict: a free reason, and a score computed from its logits."""

from __future__ import annotations

import functools
import json
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sft.evaluation.judges.base import CallFailed, JudgeSpec
from sft.evaluation.judges.verdict import HIGHEST, SCHEMA

_BEFORE_REASON = '{"reason": "'
_BEFORE_SCORE = '", "score": '


@dataclass
class LocalJudge(JudgeSpec):
    """A local model, loaded after the judged one has been freed; needs no network and no key.

    Args:
        model: hub id or directory; null for the embedded SmolLM2 135M, which is too small to judge well.
        dtype: precision of its weights.
        load_in_4bit: quantize it to nf4.
    """

    max_tokens: int = 256
    dtype: Literal["auto", "bfloat16", "bf16", "float16", "fp16", "float32", "fp32"] = "auto"
    load_in_4bit: bool = False

    def open(self) -> Local:
        """The judge."""
        return Local(self)


class Local:
    """See `sft.evaluation.judges.base.Judge`.

    For a verdict the beginning of the answer's JSON is given: the model writes the reason, and the score is the mean of
    the possible scores, weighted with the probabilities that the model gives them (G-Eval; Liu et al., 2023), so that
    even a small model gives a verdict and ties are rare. Other forms are generated freely.

    Args:
        spec: the config node.
    """

    parallel = False

    def __init__(self, spec: LocalJudge) -> None:
        from sft.model.spec import Model, OfflineModel

        self.spec = spec
        self.model_spec = Model(name=spec.model, dtype=spec.dtype) if spec.model else OfflineModel(dtype=spec.dtype)
        self.name = spec.model or "SmolLM2-135M-Instruct"
        self._lock = threading.Lock()
        self._loaded: tuple[Any, Any, Any] | None = None

    @functools.cached_property
    def settings(self) -> Mapping[str, Any]:
        """What its answers depend on, including the weights in its directory."""
        from sft.model.fingerprint import weights_fingerprint

        names = ("max_tokens", "dtype", "load_in_4bit")
        weights = weights_fingerprint(self.model_spec.locate(), None)
        return {**{name: getattr(self.spec, name) for name in names}, "weights": weights}

    def check(self) -> None:
        """Find the model; it is loaded with the first question. Raises UserError."""
        from sft.model.load import load_config

        load_config(self.model_spec)

    def reply(self, prompt: str, schema: Mapping[str, Any] | None = None) -> str:
        """Answer a prompt. Raises CallFailed where it does not fit into the model's positions."""
        from sft.config.errors import UserError

        with self._lock:
            self._loaded = self._loaded or _load(self.model_spec, self.spec.load_in_4bit)
            model, tokenizer, bound = self._loaded
            start = bound.render({"messages": [{"role": "user", "content": prompt}]}, add_generation_prompt=True)
            try:
                if schema != SCHEMA:
                    return self._generate(model, tokenizer, bound, start)
                reason = self._generate(model, tokenizer, bound, start + _BEFORE_REASON)
                reason = json.loads(f'"{_to_quote(reason)}"', strict=False)
                quoted = json.dumps(reason, ensure_ascii=False)[1:-1]
                score = expected_score(model, tokenizer, f"{start}{_BEFORE_REASON}{quoted}{_BEFORE_SCORE}")
            except UserError as error:
                raise CallFailed(error.what, again=False) from None
            return json.dumps({"reason": reason, "score": score}, ensure_ascii=False)

    def _generate(self, model: Any, tokenizer: Any, bound: Any, prompt: str) -> str:
        from sft.evaluation.generate import answer_prompts

        stops = [*bound.stop_tokens, *(['"'] if prompt.endswith(_BEFORE_REASON) else [])]
        (answer,) = answer_prompts(model, tokenizer, [prompt], stop_tokens=stops, max_new_tokens=self.spec.max_tokens)
        return answer.text


def expected_score(model: Any, tokenizer: Any, prompt: str) -> float:
    """The mean of the scores 0 to HIGHEST, weighted with the probability of each as the prompt's continuation.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        prompt: a text that ends where the score follows; "}" comes after it, so that 1 and 10 differ.
    """
    import torch

    from sft.evaluation.eval_mode import eval_mode
    from sft.evaluation.generate import prompt_ids

    (start,) = prompt_ids(tokenizer, [prompt])
    wholes = prompt_ids(tokenizer, [f"{prompt}{score}}}" for score in range(HIGHEST + 1)])
    shared = min(_shared(start, whole) for whole in wholes)  # digits may join the last token of the prompt
    device, logs = model.get_input_embeddings().weight.device, []
    with eval_mode(model):
        for ids in wholes:
            logits = model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0, shared - 1 : -1]
            chosen = torch.tensor(ids[shared:], device=logits.device)
            logs.append(float(logits.float().log_softmax(-1).gather(1, chosen[:, None]).sum()))
    top = max(logs)
    weights = [math.exp(value - top) for value in logs]
    return sum(score * weight for score, weight in enumerate(weights)) / sum(weights)


def _shared(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _to_quote(text: str) -> str:
    """The part of a JSON string's inside before its closing quote; a backslash that escapes nothing is doubled."""
    kept, i = [], 0
    while i < len(text) and text[i] != '"':
        pair = text[i : i + 2] if text[i] == "\\" else text[i]
        if text[i] == "\\" and (len(pair) < 2 or pair[1] not in '"\\/bfnrt'):
            pair = "\\\\" + pair[1:]
        kept.append(pair)
        i += 2 if text[i] == "\\" else 1
    return "".join(kept)


def _load(spec: Any, in_4bit: bool) -> tuple[Any, Any, Any]:
    from sft.model.facts import family_of
    from sft.model.load import load_config, load_model, load_tokenizer
    from sft.template.bind import bind
    from sft.template.spec import Template

    quant = None
    if in_4bit:
        from transformers import BitsAndBytesConfig

        quant = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    config = load_config(spec)
    tokenizer = load_tokenizer(spec, config)
    return (
        load_model(spec, quant, config=config).eval(),
        tokenizer,
        bind(Template(), tokenizer, family_of(spec, config)),
    )
