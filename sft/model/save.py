"""Saving models and adapters so that plain transformers and peft load them anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sft.model.facts import stored_bytes
from sft.model.tokenizer_files import save_tokenizer
from sft.run.disk.atomic import let_read, replacing_directory
from sft.run.disk.errors import check_free_space, storage_errors

SHARD = "5GB"  # of a safetensors file at most


def save_model(
    model: Any,
    directory: str | Path,
    tokenizer: Any = None,
    chat_template: str | None = None,
    complete: Callable[[Any, Path], object] | None = None,
    weights: Mapping[str, Any] | None = None,
) -> Path:
    """Write a whole model as safetensors shards, its generation config and its tokenizer.

    The directory is written atomically; an older one is replaced. Training turns `use_cache` off, which would make
    later generation slow; it is on in the saved config.

    Args:
        model: a model of transformers.
        directory: where to.
        tokenizer: saved with it, with `chat_template` where given.
        complete: called with the model and the directory before the model is written.
        weights: the complete weights, where the model has only a shard of them.
    """
    configs = {id(c): c for c in (model.config, model.config.get_text_config()) if hasattr(c, "use_cache")}.values()
    before = [config.use_cache for config in configs]
    for config in configs:
        config.use_cache = True
    try:
        _mend_generation_config(model)
        size = stored_bytes((weights or model.state_dict()).values())
        with _written_whole(Path(directory), size) as beside:
            if complete is not None:
                complete(model, beside)
            model.save_pretrained(str(beside), max_shard_size=SHARD, state_dict=_once(model, weights))
            if tokenizer is not None:
                save_tokenizer(tokenizer, beside, chat_template)
    finally:
        for config, value in zip(configs, before, strict=True):
            config.use_cache = value
    return Path(directory)


def _once(model: Any, weights: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Gathered weights without the tied ones, which transformers recognises only by shared memory."""
    tied = getattr(model, "all_tied_weights_keys", {})
    return weights and {name: value for name, value in weights.items() if tied.get(name) not in weights}


def _mend_generation_config(model: Any) -> None:
    """Set `do_sample` where a model has sampling settings without it, which transformers loads but refuses to save."""
    generation = getattr(model, "generation_config", None)
    if generation is None:
        return
    try:
        generation.validate(strict=True)
    except ValueError:
        generation.do_sample = True


def stop_at(model: Any, tokenizer: Any, stop_tokens: Iterable[str]) -> list[int]:
    """Add stop tokens to the generation config, which is saved with a complete model.

    Returns:
        All ids at which generation stops.
    """
    ids = [i for i in (tokenizer.convert_tokens_to_ids(token) for token in stop_tokens) if i is not None]
    known = model.generation_config.eos_token_id
    known = [] if known is None else [known] if isinstance(known, int) else list(known)
    found = list(dict.fromkeys([*ids, *known]))
    model.generation_config.eos_token_id = found or None
    return found


def decode_greedily(model: Any, tokenizer: Any, stop_tokens: Iterable[str]) -> None:
    """Set the generation config to greedy decoding with the stop tokens of training.

    The base's own settings (a temperature, penalties) were meant for the model before training.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    kept = {name: getattr(own, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if kept["pad_token_id"] is None:
        kept["pad_token_id"] = tokenizer.pad_token_id
    model.generation_config = GenerationConfig(do_sample=False, **kept)
    stop_at(model, tokenizer, stop_tokens)


def save_adapter(
    adapted: Any,
    directory: str | Path,
    tokenizer: Any = None,
    chat_template: str | None = None,
    weights: Mapping[str, Any] | None = None,
) -> Path:
    """Save an adapter so that plain `peft.PeftModel.from_pretrained` loads it on its base.

    The directory is written atomically; an older one is replaced. It has the rows of new tokens, but not the base's
    other embeddings.

    Args:
        adapted: the trained PeftModel.
        directory: where to.
        tokenizer: saved with it, with `chat_template` where given.
        weights: the complete weights, where the model has only a shard of them.
    """
    from sft.model.adapters.initial import convert_saved

    size = stored_bytes(each for each in adapted.parameters() if each.requires_grad)
    with _written_whole(Path(directory), size) as beside:
        adapted.save_pretrained(str(beside), save_embedding_layers=False, state_dict=weights)
        convert_saved(adapted, beside)
        if tokenizer is not None:
            save_tokenizer(tokenizer, beside, chat_template)
    return Path(directory)


@contextmanager
def _written_whole(target: Path, size: int) -> Iterator[Path]:
    """A temporary directory next to `target`, which replaces it when everything is written.

    Loaded weights may be memory-mapped from the old file: overwriting it in place would corrupt or crash the model.

    Args:
        size: bytes of the weights to be written; free disk space is checked first.

    Raises:
        StorageError: there is not enough disk space.
    """
    check_free_space(target, size)
    with replacing_directory(target) as beside, storage_errors(target, size):
        yield beside
        let_read(beside)
