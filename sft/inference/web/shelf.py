"""The models of the page: one run at a time is in memory, and only one answer is made at a time."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sft.config.compose import plain
from sft.config.errors import UserError
from sft.config.script import compose_script
from sft.inference.subject import Subject, find_subject
from sft.inference.talk import Talk, talk_with
from sft.inference.web.runs import facts_of, finished_runs, runs_directory
from sft.model import shared
from sft.run.info import TrainingInfo

log = logging.getLogger(__name__)


@dataclass
class Opened:
    """A model that is loaded.

    Attributes:
        key: the name it is picked by.
        subject: what it is.
        talk: a conversation with it in which nothing has been said; those of the page are copies.
    """

    key: str
    subject: Subject
    talk: Talk
    _base: Any = None

    @contextlib.contextmanager
    def as_base(self) -> Iterator[Talk]:
        """For the time of the block, a conversation with the model that training started from, rendered alike.

        An adapter is switched off; a full fine-tune's base is loaded beside it, once.

        Raises:
            UserError: what training started from is not known, or cannot be loaded.
        """
        if self.subject.adapter is not None:
            with self.talk.model.disable_adapter():
                yield self.talk
            return
        if self._base is None:
            base = self.subject.base()
            if base is None:
                raise UserError(f"{self.key} has no base to compare with: no training is recorded with it")
            from sft.model.facts import family_of
            from sft.model.load import load_config

            log.info("loading %s, which %s was trained from", base.name, self.key)
            control = family_of(self.subject.spec, load_config(self.subject.spec)).control_tokens
            wanted = [token for token in control if token in self.talk.template.text]
            self._base = base.load(self.talk.tokenizer, wanted)
        yield replace(self.talk, model=self._base)


@dataclass
class Card:
    """What the page shows of a model before it is loaded.

    Attributes:
        system: the system prompt of its training, "" for none.
        facts: a line on it.
        has_base: whether there is a base to compare with.
    """

    system: str
    facts: str
    has_base: bool


@dataclass
class Shelf:
    """Opens what is picked, and holds it until something else is.

    Args:
        settings: the command's resolved config.
        overrides: of the command line, for the further runs too.

    Attributes:
        runs: the finished runs by name, as `finished_runs` gives them.
        first: the name of what the command named.
        lock: held by whoever uses the model.
        closed: set when the page ends.
    """

    settings: Mapping[str, Any]
    overrides: Sequence[str] = ()
    runs: dict[str, Path] = field(default_factory=dict, init=False)
    lock: threading.Lock = field(default_factory=threading.Lock)
    closed: threading.Event = field(default_factory=threading.Event)
    _opened: Opened | None = None

    def __post_init__(self) -> None:
        self._subject = find_subject(self.settings)
        self._directory = runs_directory(self.settings)
        self.look()
        run = self._subject.run
        own = [name for name, path in self.runs.items() if run is not None and path == run.path]
        self.first = own[0] if own else self._subject.name

    def look(self) -> None:
        """Look for finished runs."""
        self.runs = finished_runs(self._directory)

    @property
    def names(self) -> list[str]:
        """What can be picked: what the command named, then the other runs."""
        return [self.first, *(name for name in self.runs if name != self.first)]

    def card(self, name: str) -> Card:
        """What is known of a model without loading it.

        Raises:
            UserError: there is no such model, or its files cannot be read.
        """
        settings, subject = self._find(name)
        run, info = subject.run, subject.info
        figures = (run.read_json(run.metrics_json, {}) or {}) if run is not None else {}
        system = settings.get("system")
        if system is None:
            system = info.system if info else None
        return Card(system or "", facts_of(info, figures), subject.adapter is not None or _knows_base(info))

    def is_open(self, name: str) -> bool:
        """Whether the model of that name needs no loading."""
        return self._opened is not None and self._opened.key == name

    def open(self, name: str) -> Opened:
        """The model of that name, loaded. The caller holds `lock`.

        Raises:
            UserError: there is no such model, or it cannot be loaded; then none is open.
        """
        if self._opened is not None and self.is_open(name):
            return self._opened
        settings, subject = self._find(name)
        self.close()
        log.info("loading %s", name)
        self._opened = Opened(name, subject, talk_with(settings, subject, lambda: _load(subject)))
        return self._opened

    def close(self) -> None:
        """Let go of the open model; a base that the next run may use too is kept."""
        if self._opened is not None:
            shared.take_back(self._opened.talk.model)
            self._opened = None

    def _find(self, name: str) -> tuple[Mapping[str, Any], Subject]:
        if name == self.first:
            return self.settings, self._subject
        if name not in self.runs:
            raise UserError("there is no such run", remedy="pick one of the list")
        own = compose_script([f"run={self.runs[name]}", *self.overrides], command="webui")
        settings = in_four_bits(plain(own)) if self.settings.get("load_in_4bit") else plain(own)
        return settings, find_subject(settings)


def _knows_base(info: TrainingInfo | None) -> bool:
    return info is not None and bool(info.model_path)


def _load(subject: Subject) -> Any:
    if subject.adapter is None:
        shared.give_up()
        return subject.load()
    key = f"{subject.spec} {subject.quant}"
    return subject.load(base=shared.lend(key, subject.load_base))


def in_four_bits(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same config with its base in nf4; one that is in 4 bits already stays as it was trained."""
    from omegaconf import OmegaConf

    from sft.config.command_line.base import read_yaml
    from sft.config.paths import conf_dir

    if (settings.get("quant") or {}).get("load_in_4bit"):
        return dict(settings)
    node = OmegaConf.create({"model": settings["model"], "quant": read_yaml(conf_dir() / "quant" / "nf4.yaml")})
    return {**settings, "quant": OmegaConf.to_container(node.quant, resolve=True)}
