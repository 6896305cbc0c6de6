"""A conversation with a model: its history, its system prompt, one answer after the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sft.config.build import build
from sft.config.errors import UserError
from sft.config.paths import expanded
from sft.evaluation.generate import answer_prompts, find_stops
from sft.evaluation.sampling import Sampling
from sft.inference.stream import Stopped, Stream
from sft.inference.subject import Subject, find_subject, has_tokenizer, unchanged
from sft.template.bind import BoundTemplate, bind
from sft.template.spec import Template

Message = dict[str, Any]  # role and content; train: false


@dataclass
class Talk:
    """A model that answers, and what has been said.

    Attributes:
        model, tokenizer, template: the model, ready to generate.
        sampling: how tokens are drawn; each further answer draws anew.
        system: the system prompt, None for none.
        stop_tokens: texts that end an answer.
        messages: the turns so far, the system prompt apart; an answer that was stopped has `train: false`.
        answered: answers made so far; each is drawn with a seed of its own.
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
        """The answer to one more message; both join the history, unless an error or an interrupt comes between.

        Args:
            text: what the user says.
            show: called with each piece of the answer while it is made.
            stopped: asked before each token, true ends the answer: what there is of it is kept, and marked as no
                answer to train on. Where there is nothing yet, the message is forgotten.

        Raises:
            UserError: the conversation fills the model's positions.
        """
        question: Message = {"role": "user", "content": text}
        answer = self._answer([*self.messages, question], show, stopped)
        if answer["content"] or "train" not in answer:
            self.messages += [question, answer]
        return answer["content"]

    def again(self, show: Callable[[str], None] | None = None, stopped: Callable[[], bool] | None = None) -> str:
        """Another answer to the last message, in place of the one it got.

        Args:
            show, stopped: as in `ask`; stopped before there is anything, the earlier answer stays.

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
        """Forget what was said; the system prompt stays."""
        self.messages.clear()

    def save(self, path: str | Path) -> Path:
        """Add the conversation to a file as one line of JSON, which `dataset.path` reads.

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
        """The conversation with its system prompt, as it is saved and as the model is given it."""
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
        except Stopped as stop:
            return {"role": "assistant", "content": stop.shown, "train": False}
        if stream is not None:
            stream.finish(answer.text)
        self.answered += 1
        return {"role": "assistant", "content": answer.text}


def _unseen(piece: str) -> None:
    """For an answer that nobody watches."""


def open_talk(config: Mapping[str, Any]) -> Talk:
    """A conversation with what a resolved config names, loaded.

    Without a `system` in the config it is the one that the model was trained with.

    Raises:
        UserError: settings out of range, or a model that cannot be loaded.
    """
    Sampling.of(config)  # refused before anything is loaded
    subject = find_subject(config)
    return talk_with(config, subject, subject.load)


def talk_with(config: Mapping[str, Any], subject: Subject, load: Callable[[], Any]) -> Talk:
    """The same for a subject that is found already; `load` is called for its model when all else is ready."""
    tokenizer, bound = bind_subject(config, subject)
    system = config.get("system")
    if system is None and subject.info:
        system = subject.info.system
    stops = list(dict.fromkeys([*bound.stop_tokens, *(subject.info.stop_tokens if subject.info else [])]))
    return Talk(load(), tokenizer, bound, Sampling.of(config), system or None, stops)


def bind_subject(config: Mapping[str, Any], subject: Subject) -> tuple[Any, BoundTemplate]:
    """A model's tokenizer, and the chat template that it was trained with unless the config names another."""
    from sft.model.facts import family_of
    from sft.model.load import load_config, load_tokenizer

    spec = subject.spec
    if subject.adapter is not None and has_tokenizer(subject.adapter):
        spec = replace(spec, tokenizer=replace(spec.tokenizer, name=str(subject.adapter)))
    model_config = load_config(spec)
    tokenizer = load_tokenizer(spec, model_config)
    node: Template = build(config["template"], where="template", allowed=subject.allowed)
    recorded = subject.info.template if subject.info else None
    own = unchanged(config, subject.run, "template") if subject.run else subject.adapter and node.name == "auto"
    if recorded and own:
        node = Template(name="file", text=recorded, date=node.date)
    return tokenizer, bind(node, tokenizer, family_of(spec, model_config))
