"""Existing adapters: find one, and load it on its base."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors import SafetensorError, safe_open

from sft.config.errors import UserError
from sft.config.paths import expanded
from sft.safety.regexes import wrong_pattern

log = logging.getLogger(__name__)
MOST_RANKS, MOST_LAYERS, MOST_ROWS = 65_536, 1_000, 10_000_000
_KNOWN_WARNINGS = re.compile(
    "is_gradient_checkpointing|fan_in_fan_out|ensure_weight_tying|tie_word_embeddings|rank_pattern|tied"
)


def check_adapter(path: str) -> Path:
    """The directory of an adapter in safetensors.

    Raises:
        UserError: there is none; for a run's directory it names the adapter in it.
    """
    directory = expanded(path)
    if (directory / "adapter_model.safetensors").is_file() and (directory / "adapter_config.json").is_file():
        return directory.resolve()
    inner = directory / "adapter"
    remedy = (
        f"model.adapter={inner}"
        if inner.is_dir()
        else "a directory with adapter_config.json and adapter_model.safetensors"
    )
    raise UserError(f"{path} holds no adapter in safetensors", where="model.adapter", remedy=remedy)


def load_adapter(model: Any, path: str | Path, trainable: bool = False) -> Any:
    """Load an adapter on its base, whose embeddings are resized to those of the adapter's training.

    Raises:
        UserError: the adapter does not belong to this base.
    """
    rows = _adapter_rows(Path(path))
    if rows > model.get_input_embeddings().weight.shape[0]:
        with torch.random.fork_rng(devices=[]):
            model.resize_token_embeddings(rows, mean_resizing=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            adapted = peft.PeftModel.from_pretrained(model, str(path), is_trainable=trainable)
        except RuntimeError as error:
            raise wrong_base(path, model, str(error)) from error
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            what = f"is not an adapter that can be read: {' '.join(str(error).split())[:200]}"
            raise UserError(what, where=str(path), remedy="give the complete adapter/ of a run") from error
    for message in {str(w.message) for w in caught}:
        if "missing adapter keys" in message:
            raise wrong_base(path, model, message)
        if not _KNOWN_WARNINGS.search(message):
            log.warning("%s", message)
    return adapted


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence peft's warnings about what is handled here: fused layers stored transposed, and tied weights."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=f".*({_KNOWN_WARNINGS.pattern}).*")
        yield


def _adapter_rows(path: Path) -> int:
    """Embedding rows an adapter was trained with, from the rows it stores; 0 where it stores none."""
    rows = max(stored_rows(read_adapter_config(path)), default=-1) + 1
    weights = path / "adapter_model.safetensors"
    try:
        opened = safe_open(weights, "pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"holds no complete safetensors file: {error}", where=str(weights)) from error
    with opened as file:
        for key in file.keys():  # noqa: SIM118 - a safetensors file is not a mapping
            if re.search(r"(embed_tokens|wte|lm_head|embed_out)\.(modules_to_save\.)?weight$", key):
                rows = max(rows, file.get_slice(key).get_shape()[0])
    return rows


def read_adapter_config(path: Path) -> dict[str, Any]:
    """An adapter's adapter_config.json."""
    where = path / "adapter_config.json"
    try:
        config = json.loads(where.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise UserError(f"is not an adapter's config: {what}", where=str(where)) from None
    if config.get("megatron_core") not in (None, "megatron.core"):  # peft would import the module of that name
        raise UserError(f"names a module to import, {config['megatron_core']!r}", where=str(where))
    if fault := next(_faults(config), None):
        raise UserError(fault, where=str(where), remedy="give the unmodified adapter/ of a run")
    return config


def _faults(config: dict[str, Any]) -> Iterator[str]:
    """Values that no real adapter has, and those that would keep peft busy forever."""
    patterns = [config.get("target_modules"), config.get("exclude_modules"), config.get("layers_pattern")]
    for key in ("rank_pattern", "alpha_pattern"):
        given = config.get(key)
        if not isinstance(given, dict | None):
            yield f"{key} is {type(given).__name__}, and not names with numbers"
        patterns += list(given or {}) if isinstance(given, dict) else []
    for pattern in patterns:
        if isinstance(pattern, str) and (wrong := wrong_pattern(pattern)):
            yield f"{pattern[:80]!r} {wrong}"
    rank, layers = config.get("r", 8), config.get("layer_replication") or []
    if type(rank) is not int or not 1 <= rank <= MOST_RANKS:
        yield f"r={rank!r} is not a rank from 1 to {MOST_RANKS:,}"
    if not isinstance(layers, list) or len(layers) > MOST_LAYERS:
        yield f"layer_replication has more than {MOST_LAYERS:,} parts"
    iterations = re.fullmatch(r"pissa_niter_(\d+)", str(config.get("init_lora_weights")))
    if iterations and len(iterations[1]) > 3:
        yield f"init_lora_weights={iterations[0][:40]} asks for more than 999 iterations"
    stored = config.get("trainable_token_indices") or {}
    lists = list(stored.values()) if isinstance(stored, dict) else [stored]
    if not all(
        isinstance(ids, list) and all(type(row) is int and 0 <= row < MOST_ROWS for row in ids) for ids in lists
    ):
        yield f"trainable_token_indices are not ids below {MOST_ROWS:,}"


def stored_rows(config: dict[str, Any]) -> list[int]:
    """Ids of the embedding rows in an adapter."""
    stored = config.get("trainable_token_indices") or {}
    lists = stored.values() if isinstance(stored, dict) else [stored]
    return sorted({row for ids in lists for row in ids})


def wrong_base(path: str | Path, model: Any, detail: str) -> UserError:
    """The error for an adapter whose weights do not fit a model.

    Args:
        path: the adapter.
        model: the model it was loaded on.
        detail: the message of peft or torch.
    """
    return UserError(
        f"the adapter {path} does not belong to {model.name_or_path}: {' '.join(detail.split())[:200]}",
        where="model.adapter",
        remedy="set model.name to the base in its adapter_config.json",
    )


def layers_without_bias(adapted: Any) -> list[str]:
    """Names of adapted layers without a bias whose adapter has one (`lora_bias`), which could not be merged."""
    if not any(getattr(config, "lora_bias", False) for config in adapted.peft_config.values()):
        return []
    adapts = ("lora_A", "lora_embedding_A")
    layers = [(name, each) for name, each in adapted.named_modules() if any(hasattr(each, key) for key in adapts)]
    lacking = (name for name, each in layers if getattr(each.get_base_layer(), "bias", None) is None)
    return sorted({name.rpartition(".")[2] for name in lacking})


def no_bias(layers: list[str]) -> UserError:
    """The error for `lora_bias` on layers without a bias."""
    return UserError(
        f"the adapter has a bias for {', '.join(layers)}, which have none: it cannot be merged or served",
        where="lora.lora_bias",
        remedy="lora.lora_bias=false, or lora.target_modules of layers with a bias",
    )
