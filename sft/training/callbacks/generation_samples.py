"""What the model answers while it learns: a few generations at each evaluation."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from sft.config.errors import UserError
from sft.run.log import FILE_ONLY
from sft.training.callbacks.base import RunCallback

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


class GenerationSamples(RunCallback):
    """Generates answers to a few prompts at each evaluation, into samples.jsonl and train.log.

    Decoding is greedy. Training goes on as if it had not happened: the random generators, the modules' train modes and
    the settings of generation are as they were.

    Args:
        prompts: user messages to answer; None takes the first examples of the evaluation data.
        count: how many examples that are.
        max_new_tokens: the longest answer.
    """

    def __init__(self, prompts: list[str] | None = None, count: int = 3, max_new_tokens: int = 64) -> None:
        if max_new_tokens < 1 or count < 0:
            raise UserError(
                "an answer has at least one token, and there are no fewer than 0 of them",
                where="callbacks.generation_samples",
                remedy="max_new_tokens=64 count=3",
            )
        self.prompts, self.count, self.max_new_tokens = prompts, count, max_new_tokens
        self._last_step = -1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop samples that an interrupted session made after the checkpoint this one goes on from."""
        self._last_step = -1
        if self.run is not None:
            self.run.keep_jsonl(self.run.samples_jsonl, lambda line: 0 < state.global_step >= line.get("step", 0))

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        """Generate, once a step however many evaluation sets there are."""
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
            log.warning("generation samples are left out: the model is spread over several processes")
            return
        with undisturbed(model), _autocast(model, args):
            for messages, reference in self._questions():
                answer = self._answer(model, tokenizer, messages)
                self._keep(state.global_step, messages, answer, reference)

    def _questions(self) -> Iterator[tuple[list[dict[str, Any]], str | None]]:
        """Conversations up to an answer, and the answer they had in the data."""
        if self.prompts is not None:
            for prompt in self.prompts:
                yield [{"role": "user", "content": prompt}], None
            return
        for conversation in (self.examples or [])[: self.count]:
            messages = conversation.get("messages") or []
            last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=0)
            if last:
                yield messages[:last], messages[last].get("content")

    def _answer(self, model: Any, tokenizer: Any, messages: list[dict[str, Any]]) -> str:
        if self.template is not None:
            text = self.template.render({"messages": messages}, add_generation_prompt=True)
        else:
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False).to(model.device)
        found = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            use_cache=True,
            eos_token_id=self._stop_ids(tokenizer),
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        )
        return tokenizer.decode(found[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    def _stop_ids(self, tokenizer: Any) -> list[int] | None:
        tokens = list(getattr(self.template, "stop_tokens", None) or [])
        ids = {tokenizer.convert_tokens_to_ids(token) for token in tokens} | {tokenizer.eos_token_id}
        return sorted(i for i in ids if i is not None and i != tokenizer.unk_token_id) or None

    def _keep(self, step: int, messages: list[dict[str, Any]], answer: str, reference: str | None) -> None:
        log.info("sample at step %d: %r -> %r", step, messages[-1].get("content"), answer, extra=FILE_ONLY)
        if self.run is not None:
            line = {"step": step, "messages": messages, "answer": answer, "reference": reference}
            self.run.append_jsonl(self.run.samples_jsonl, line)


@contextmanager
def undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, after which every module's mode and all global random states are as before."""
    import numpy
    import torch

    modes = [(module, module.training) for module in model.modules()]
    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            model.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        random.setstate(python_state)
        numpy.random.set_state(numpy_state)


def _autocast(model: Any, args: TrainingArguments) -> Any:
    """The precision that training computes in."""
    import torch

    dtype = torch.bfloat16 if args.bf16 else torch.float16
    return torch.autocast(model.device.type, dtype=dtype, enabled=bool(args.bf16 or args.fp16))
