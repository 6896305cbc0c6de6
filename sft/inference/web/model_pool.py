"""The models of the page: only one is in memory at a time, and only one answer is generated at a time."""

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
from sft.inference.chat_session import ChatSession, chat_session_with
from sft.inference.model_source import ModelSource, find_model_source
from sft.inference.web.runs import finished_runs, model_line, runs_directory
from sft.model import shared
from sft.run.info import TrainingInfo

log = logging.getLogger(__name__)


@dataclass
class LoadedModel:
    """A loaded model.

    Attributes:
        key: the name by which it is selected.
        model_source: where it comes from.
        chat_session: an empty chat session with it, which is copied for each answer.
    """

    key: str
    model_source: ModelSource
    chat_session: ChatSession
    _base: Any = None

    @contextlib.contextmanager
    def as_base(self) -> Iterator[ChatSession]:
        """Yield a chat session with the model before training, with the same template.

        An adapter is disabled meanwhile; a full fine-tune's base is loaded in addition, once.

        Raises:
            UserError: the model before training is not known, or cannot be loaded.
        """
        if self.model_source.adapter is not None:
            with self.chat_session.model.disable_adapter():
                yield self.chat_session
            return
        if self._base is None:
            base = self.model_source.base()
            if base is None:
                raise UserError(f"{self.key} has no base to compare with: no training is recorded for it")
            from sft.model.facts import family_of
            from sft.model.load import load_config

            log.info("loading %s, which %s was trained from", base.name, self.key)
            control = family_of(self.model_source.spec, load_config(self.model_source.spec)).control_tokens
            wanted = [token for token in control if token in self.chat_session.template.text]
            self._base = base.load(self.chat_session.tokenizer, wanted)
        yield replace(self.chat_session, model=self._base)


@dataclass
class ModelSummary:
    """What the page shows about a model before it is loaded.

    Attributes:
        system: the system prompt of its training, "" for none.
        facts: one line about it.
        has_base: whether there is a base to compare with.
    """

    system: str
    facts: str
    has_base: bool


@dataclass
class ModelPool:
    """Loads the selected model, and keeps it until another one is selected.

    Args:
        settings: the command's resolved config.
        overrides: of the command line, which also apply to other runs.

    Attributes:
        runs: the finished runs by name, as `finished_runs` gives them.
        first: the name of the model that the command was started with.
        lock: must be held while a model is used.
        closed: set when the page is closed.
    """

    settings: Mapping[str, Any]
    overrides: Sequence[str] = ()
    runs: dict[str, Path] = field(default_factory=dict, init=False)
    lock: threading.Lock = field(default_factory=threading.Lock)
    closed: threading.Event = field(default_factory=threading.Event)
    _loaded: LoadedModel | None = None

    def __post_init__(self) -> None:
        self._model_source = find_model_source(self.settings)
        self._directory = runs_directory(self.settings)
        self.scan_runs()
        run = self._model_source.run
        own = [name for name, path in self.runs.items() if run is not None and path == run.path]
        self.first = own[0] if own else self._model_source.name

    def scan_runs(self) -> None:
        """Search for finished runs."""
        self.runs = finished_runs(self._directory)

    @property
    def names(self) -> list[str]:
        """The names that can be selected: the command's own model, then the other runs."""
        return [self.first, *(name for name in self.runs if name != self.first)]

    def summary(self, name: str) -> ModelSummary:
        """What is known about a model without loading it.

        Raises:
            UserError: there is no such model, or its files cannot be read.
        """
        settings, model_source = self._find(name)
        run, info = model_source.run, model_source.info
        figures = (run.read_json(run.metrics_json, {}) or {}) if run is not None else {}
        system = settings.get("system")
        if system is None:
            system = info.system if info else None
        return ModelSummary(
            system or "", model_line(info, figures), model_source.adapter is not None or _knows_base(info)
        )

    def is_open(self, name: str) -> bool:
        """Whether the model of that name is loaded."""
        return self._loaded is not None and self._loaded.key == name

    def open(self, name: str) -> LoadedModel:
        """Load the model of that name. The caller must hold `lock`.

        Raises:
            UserError: there is no such model, or it cannot be loaded; then no model is loaded.
        """
        if self._loaded is not None and self.is_open(name):
            return self._loaded
        settings, model_source = self._find(name)
        self.close()
        log.info("loading %s", name)
        self._loaded = LoadedModel(
            name, model_source, chat_session_with(settings, model_source, lambda: _load(model_source))
        )
        return self._loaded

    def close(self) -> None:
        """Unload the model; a base that the next run may share is kept."""
        if self._loaded is not None:
            shared.release_base(self._loaded.chat_session.model)
            self._loaded = None

    def _find(self, name: str) -> tuple[Mapping[str, Any], ModelSource]:
        if name == self.first:
            return self.settings, self._model_source
        if name not in self.runs:
            raise UserError("there is no such run", remedy="select one from the list")
        own = compose_script([f"run={self.runs[name]}", *self.overrides], command="webui")
        settings = with_4bit_base(plain(own)) if self.settings.get("load_in_4bit") else plain(own)
        return settings, find_model_source(settings)


def _knows_base(info: TrainingInfo | None) -> bool:
    return info is not None and bool(info.model_path)


def _load(model_source: ModelSource) -> Any:
    if model_source.adapter is None:
        shared.discard_base()
        return model_source.load()
    key = f"{model_source.spec} {model_source.quant}"
    return model_source.load(base=shared.acquire_base(key, model_source.load_base))


def with_4bit_base(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the base in nf4; one that was trained in 4 bits is unchanged."""
    from omegaconf import OmegaConf

    from sft.config.command_line.base import read_yaml
    from sft.config.paths import conf_dir

    if (settings.get("quant") or {}).get("load_in_4bit"):
        return dict(settings)
    node = OmegaConf.create({"model": settings["model"], "quant": read_yaml(conf_dir() / "quant" / "nf4.yaml")})
    return {**settings, "quant": OmegaConf.to_container(node.quant, resolve=True)}
