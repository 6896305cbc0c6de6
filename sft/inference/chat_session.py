"""A chat session with a model: history, system prompt, and answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sft.config.build import build
from sft.config.errors import UserError
from sft.config.paths import expanded
from sft.config.run_config import RunConfig
from sft.evaluation.generate import answer_prompts, find_stops
from sft.evaluation.sampling import Sampling
from sft.inference.model_source import ModelSource, find_model_source, has_tokenizer, unchanged
from sft.inference.stream import GenerationStopped, Stream
from sft.template.bind import BoundTemplate, bind
from sft.template.spec import Template

Message = dict[str, Any]  # role and content; train: false


@dataclass
class ChatSession:
    """A model and the conversation with it.

    Attributes:
        model, tokenizer, template: ready to generate.
        sampling: how tokens are sampled.
        system: the system prompt, None for none.
        stop_tokens: texts that end an answer.
        messages: the turns so far, without the system prompt; an answer that was stopped has `train: false`.
        answered: answers generated so far; each is sampled with its own seed.
    """

    model: Any
    tokenizer: Any
    template: BoundTemplate
    sampling: Sampling = field(default_factory=Sampling)
    system: str | None = None
    stop_tokens: list[str] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    answered: int = 0

    def ask(
        self, text: str, show: Callable[[str], None] | None = None, stopped: Callable[[], bool] | None = None
    ) -> str:
        """Answer one more message; both are added to the history unless an error or interrupt occurs.

        Args:
            text: the user's message.
            show: called with each piece of the answer while it is generated.
            stopped: called before each token; true ends the answer. The text so far is kept and marked as not to
                train on; if there is none yet, the message is forgotten.

        Raises:
            UserError: the conversation exceeds the model's context length.
        """
        question: Message = {"role": "user", "content": text}
        answer = self._answer([*self.messages, question], show, stopped)
        if answer["content"] or "train" not in answer:
            self.messages += [question, answer]
        return answer["content"]

    def again(self, show: Callable[[str], None] | None = None, stopped: Callable[[], bool] | None = None) -> str:
        """Generate another answer to the last message, replacing the previous one.

        Args:
            show, stopped: as in `ask`; if stopped before the first token, the previous answer stays.

        Raises:
            UserError: nothing has been asked.
        """
        if not self.messages:
            raise UserError("nothing has been asked yet")
        answer = self._answer(self.messages[:-1], show, stopped)
        if answer["content"] or "train" not in answer:
            self.messages[-1] = answer
        return answer["content"]

    def reset(self) -> None:
        """Forget the conversation; the system prompt stays."""
        self.messages.clear()

    def save(self, path: str | Path) -> Path:
        """Append the conversation to a file as one line of JSON, which `dataset.path` reads.

        Raises:
            UserError: there is nothing to save, or the file cannot be written.
        """
        if not self.messages:
            raise UserError("nothing has been said yet")
        target = expanded(path)
        try:
            with target.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"messages": self.whole()}, ensure_ascii=False) + "\n")
        except OSError as error:
            raise UserError(f"cannot be written: {error.strerror}", where=str(target)) from None
        return target

    def whole(self) -> list[Message]:
        """The conversation with its system prompt, as it is saved and as it is given to the model."""
        return self._whole(self.messages)

    def _whole(self, messages: list[Message]) -> list[Message]:
        return [{"role": "system", "content": self.system}, *messages] if self.system else messages

    def _answer(
        self, messages: list[Message], show: Callable[[str], None] | None, stopped: Callable[[], bool] | None
    ) -> Message:
        said = [{key: message[key] for key in ("role", "content")} for message in self._whole(messages)]
        prompt = self.template.render({"messages": said}, add_generation_prompt=True)
        stream = None
        if show is not None or stopped is not None:
            texts = find_stops(self.tokenizer, self.stop_tokens, self.model).texts
            stream = Stream(self.tokenizer, show or _unseen, texts, stopped)
        drawn = replace(self.sampling, seed=self.sampling.seed + self.answered)
        try:
            (answer,) = answer_prompts(
                self.model, self.tokenizer, [prompt], stop_tokens=self.stop_tokens, streamer=stream, **asdict(drawn)
            )
        except GenerationStopped as stop:
            return {"role": "assistant", "content": stop.shown, "train": False}
        if stream is not None:
            stream.finish(answer.text)
        self.answered += 1
        return {"role": "assistant", "content": answer.text}


def _unseen(piece: str) -> None:
    """Ignores the pieces of an answer."""


def open_chat_session(config: Mapping[str, Any]) -> ChatSession:
    """Load the model of a resolved config and start a chat session.

    Without `system` in the config, the system prompt is the one from training.

    Raises:
        UserError: settings are out of range, or the model cannot be loaded.
    """
    Sampling.of(config)  # checked before anything is loaded
    model_source = find_model_source(config)
    return chat_session_with(config, model_source, model_source.load)


def chat_session_with(config: Mapping[str, Any], model_source: ModelSource, load: Callable[[], Any]) -> ChatSession:
    """The same for a given model source; `load` is called for the model when everything else is ready."""
    tokenizer, bound = bind_template(RunConfig.of(config), model_source)
    system = config.get("system")
    if system is None and model_source.info:
        system = model_source.info.system
    stops = list(dict.fromkeys([*bound.stop_tokens, *(model_source.info.stop_tokens if model_source.info else [])]))
    return ChatSession(load(), tokenizer, bound, Sampling.of(config), system or None, stops)


def bind_template(config: RunConfig, model_source: ModelSource) -> tuple[Any, BoundTemplate]:
    """A model's tokenizer, and its chat template from training unless the config names another."""
    from sft.model.facts import family_of
    from sft.model.load import load_config, load_tokenizer

    spec = model_source.spec
    if model_source.adapter is not None and has_tokenizer(model_source.adapter):
        spec = replace(spec, tokenizer=replace(spec.tokenizer, name=str(model_source.adapter)))
    model_config = load_config(spec)
    tokenizer = load_tokenizer(spec, model_config)
    node: Template = build(config.template, where="template", allowed=model_source.allowed)
    recorded = model_source.info.template if model_source.info else None
    own = (
        unchanged(config, model_source.run, "template")
        if model_source.run
        else model_source.adapter and node.name == "auto"
    )
    if recorded and own:
        node = Template(name="file", text=recorded, date=node.date)
    return tokenizer, bind(node, tokenizer, family_of(spec, model_config))
