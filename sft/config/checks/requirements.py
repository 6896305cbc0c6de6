"""What a config needs on this machine beside sft's own dependencies: extras, API keys, files.

Checked before data and model are loaded, and without importing any of it.
"""

from __future__ import annotations

import glob
import importlib.util
import netrc
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sft.config.errors import UserError
from sft.config.paths import expanded, nearest_path
from sft.config.source_code.class_attributes import class_attribute
from sft.safety.secrets import holds_secret

_OPTIMIZERS = {
    "galore": "galore_torch",
    "apollo": "apollo_torch",
    "lomo": "lomo_optim",
    "adalomo": "lomo_optim",
    "grokadamw": "grokadamw",
    "schedule_free": "schedulefree",
    "stable_adamw": "optimi",
    "adamw_torch_4bit": "torchao",
    "adamw_torch_8bit": "torchao",
    "adamw_anyprecision": "torchdistx",
    "adamw_torch_xla": "torch_xla",
    "adamw_torch_npu": "torch_npu",
}
_PACKAGES = {  # the name on PyPI, where it is not the module's name with dashes
    "galore_torch": "galore-torch",
    "apollo_torch": "apollo-torch",
    "lomo_optim": "lomo-optim",
    "optimi": "torch-optimi",
    "lm_eval": "lm-eval",
    "liger_kernel": "liger-kernel",
}
_WANDB = "https://api.wandb.ai"


def missing(
    config: Mapping[str, Any], hydra: Mapping[str, Any] | None = None, command: str = "train"
) -> list[UserError]:
    """An error for each thing that a command would need and not find.

    Args:
        config: resolved, plain.
        hydra: Hydra's own node, whose sweeper and launcher are checked.
        command: the command it is for: chatting with a run needs nothing that only its training needed.
    """
    found: list[UserError] = []
    if command in ("train", "reproduce"):
        found += [*_of_training(config), *_of_hydra(hydra or {})]
    if command in ("train", "evaluate"):
        found += _of_evaluation(config)
    if command in ("train", "prepare", "preview", "estimate") and config.get("resume") in (None, "auto", "never"):
        found += _of_files(config)
    return found


def _of_training(config: Mapping[str, Any]) -> Iterator[UserError]:
    trainer, lora = _node(config, "trainer"), _node(config, "lora")
    tracker = _node(config, "tracker")
    yield from _required_by(tracker, where="tracker", instead="tracker=none")
    if "wandb" in _requires(tracker):
        yield from _wandb_key(tracker)
    yield from _required_by(trainer, where="trainer", instead="trainer=default")
    if trainer.get("deepspeed"):
        yield from _absent("deepspeed", "deepspeed", where="trainer.deepspeed", instead="trainer=default")
    if trainer.get("use_liger_kernel"):
        where = "trainer.use_liger_kernel"
        yield from _absent("liger_kernel", "liger", where=where, instead=f"{where}=false")
    if lora.get("init_lora_weights") == "loftq":
        yield from _absent("scipy", "loftq", where="lora.init_lora_weights", instead="lora=r16")
    optimizer = str(trainer.get("optim") or "")
    for beginning, module in _OPTIMIZERS.items():
        if optimizer.startswith(beginning):
            yield from _absent(module, None, where="trainer.optim", instead="trainer.optim=adamw_torch_fused")


def _of_evaluation(config: Mapping[str, Any]) -> Iterator[UserError]:
    if "tasks" in _node(config, "evaluation"):
        yield from _absent("lm_eval", "eval", where="evaluation", instead="evaluation=default")
    if _node(config, "judge").get("scorer") == "deepeval":
        yield from _absent("deepeval", "judge", where="judge.scorer", instead="judge.scorer=sft")


def _of_files(config: Mapping[str, Any]) -> Iterator[UserError]:
    """Errors for named files and directories that do not exist; their contents are checked when they are read."""
    for where, value in _named_paths(config).items():
        for text in value if isinstance(value, list) else [value]:
            # a secret is refused without being shown
            if isinstance(text, str) and not holds_secret(text) and _is_absent(text):
                remedy = nearest_path(expanded(text))
                if "," in text and where.startswith("dataset."):
                    remedy = (
                        f"{where}=[{text}] reads all of them; with -m, {where}=choice({text}) makes one run with each"
                    )
                yield UserError(f"{text} does not exist", where=where, remedy=remedy)


def _named_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values that name files or directories, by key."""
    dataset, model = _node(config, "dataset"), _node(config, "model")
    named: dict[str, Any] = {
        "dataset.path": dataset.get("path"),
        "template.path": _node(config, "template").get("path"),
        "model.adapter": model.get("adapter"),
    }
    for kind in ("sources", "eval_sources"):
        for name, source in _node(dataset, kind).items():
            where = f"dataset.{kind}.{name}"
            named |= {f"{where}.path": source.get("path")} if isinstance(source, Mapping) else {where: source}
    models = {"model.name": model.get("name"), "model.tokenizer.name": _node(model, "tokenizer").get("name")}
    # another name may be a hub id
    return named | {key: name for key, name in models.items() if str(name).startswith(("/", "./", "../", "~"))}


def _is_absent(text: str) -> bool:
    """Whether a path does not exist; globs, addresses and anything that is not a path are left to the reader's own
    messages."""
    if not text or "\0" in text or "://" in text or glob.has_magic(text):
        return False
    return not os.path.lexists(expanded(text))


def _of_hydra(hydra: Mapping[str, Any]) -> Iterator[UserError]:
    for node in ("sweeper", "launcher"):
        yield from _required_by(_node(hydra, node), where=f"hydra/{node}", instead=f"hydra/{node}=basic")


def _required_by(node: Mapping[str, Any], *, where: str, instead: str) -> Iterator[UserError]:
    """The error for the module that the class of a node says it requires, where that is not installed."""
    if requires := _requires(node):
        yield from _absent(*requires, where=where, instead=instead)


def _requires(node: Mapping[str, Any]) -> tuple[Any, ...]:
    """(module, extra that brings it or None), as the class of a node has it; () for none."""
    return tuple(class_attribute(node.get("_target_"), "requires") or ())


def _absent(module: str, extra: str | None, *, where: str, instead: str) -> Iterator[UserError]:
    """The error for a module that is not installed."""
    if not _installed(module):
        package = _PACKAGES.get(module, module)
        install = f"pip install 'sft[{extra}]'" if extra else f"pip install {package}"
        yield UserError(f"it needs {package}, which is not installed", where=where, remedy=f"{install}, or {instead}")


def _installed(module: str) -> bool:
    """Whether a top-level module is installed; it is not imported."""
    if module in sys.modules:
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None


def _wandb_key(tracker: Mapping[str, Any]) -> Iterator[UserError]:
    """wandb needs a key to send to its service; without one it would prompt on the terminal, or fail."""
    if tracker.get("mode", "online") != "online" or os.environ.get("RANK", "0") != "0":
        return
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return
    if _in_netrc() or _in_settings():
        return
    yield UserError(
        "wandb has no key: WANDB_API_KEY is not set, and `wandb login` has stored none",
        where="tracker",
        remedy="WANDB_API_KEY=... in the environment or .env, tracker.mode=offline, or tracker=none",
    )


def _in_netrc() -> bool:
    """Whether `wandb login` has stored a key."""
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or _WANDB).hostname
    for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        try:
            if path and host and netrc.netrc(str(expanded(path))).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _in_settings() -> bool:
    """Whether one of wandb's settings files has a key."""
    home = os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb"
    for path in (expanded(home) / "settings", Path("wandb/settings")):
        try:
            if "api_key" in path.read_text(encoding="utf-8", errors="replace"):
                return True
        except OSError:
            continue
    return False


def _node(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = config.get(key)
    return found if isinstance(found, Mapping) else {}
