"""A few generated answers at each evaluation, to see how the model develops."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from sft.config.errors import UserError
from sft.evaluation.generate import generate_answers
from sft.run.log import FILE_ONLY
from sft.training.callbacks.base import RunCallback
from sft.training.callbacks.state import evaluated_at

log = logging.getLogger(__name__)


class GenerationSamples(RunCallback):
    """Generates answers to a few prompts at each evaluation, into generations.jsonl and train.log.

    Decoding is greedy. Training is not affected: the random generators, the modules' train modes and the generation
    settings are restored.

    Args:
        prompts: user messages to answer; None uses the first examples of the evaluation data.
        count: the number of examples.
        max_new_tokens: the maximum length of an answer.
    """

    wants_examples = True
    weight_neutral = ("*",)

    def __init__(self, prompts: list[str] | None = None, count: int = 3, max_new_tokens: int = 64) -> None:
        if max_new_tokens < 1 or count < 0:
            raise UserError(
                "max_new_tokens must be at least 1, and count at least 0",
                where="callbacks.generation_samples",
                remedy="max_new_tokens=64 count=3",
            )
        self.prompts, self.count, self.max_new_tokens = prompts, count, max_new_tokens
        self._last_step = -1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop samples that an interrupted session wrote after the checkpoint being resumed."""
        self._last_step = -1
        if self.run is not None:
            step = state.global_step
            # the evaluation at the checkpoint's step may follow it
            had = step if evaluated_at(state, step) else step - 1
            self.run.keep_jsonl(self.run.generations_jsonl, lambda line: step > 0 and had >= line.get("step", 0))

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        """Generate, once per step however many evaluation sets there are."""
        tokenizer = self.tokenizer or processing_class
        if (
            not state.is_world_process_zero
            or state.global_step == self._last_step
            or model is None
            or tokenizer is None
        ):
            return
        self._last_step = state.global_step
        if getattr(args, "deepspeed", None) or getattr(args, "fsdp", None):
            log.warning("no generation samples: the model is sharded over several processes")
            return
        questions = list(self._questions())
        with _autocast(model, args):
            answers = generate_answers(
                model,
                tokenizer,
                [self._prompt(tokenizer, messages) for messages, _ in questions],
                stop_tokens=list(getattr(self.template, "stop_tokens", None) or []),
                max_new_tokens=self.max_new_tokens,
            )
        for (messages, reference), answer in zip(questions, answers, strict=True):
            self._keep(state.global_step, messages, answer, reference)

    def _questions(self) -> Iterator[tuple[list[dict[str, Any]], str | None]]:
        """Conversations up to an answer, and the answer in the data."""
        if self.prompts is not None:
            for prompt in self.prompts:
                yield [{"role": "user", "content": prompt}], None
            return
        for conversation in (self.examples or [])[: self.count]:
            messages = conversation.get("messages") or []
            last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=0)
            if last:
                yield messages[:last], messages[last].get("content")

    def _prompt(self, tokenizer: Any, messages: list[dict[str, Any]]) -> str:
        if self.template is not None:
            return self.template.render({"messages": messages}, add_generation_prompt=True)
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def _keep(self, step: int, messages: list[dict[str, Any]], answer: str, reference: str | None) -> None:
        log.info("sample at step %d: %r -> %r", step, messages[-1].get("content"), answer, extra=FILE_ONLY)
        if self.run is not None:
            line = {"step": step, "messages": messages, "answer": answer, "reference": reference}
            self.run.append_jsonl(self.run.generations_jsonl, line)


def _autocast(model: Any, args: TrainingArguments) -> Any:
    """The precision in which training computes."""
    import torch

    dtype = torch.bfloat16 if args.bf16 else torch.float16
    return torch.autocast(model.device.type, dtype=dtype, enabled=bool(args.bf16 or args.fp16))
