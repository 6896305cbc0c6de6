"""Writing tokenizers and whole models so that plain transformers loads them anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sft.model.facts import stored_bytes
from sft.model.tokenizer_files import save_tokenizer
from sft.run.disk.atomic import let_read, replacing_directory
from sft.run.disk.errors import check_room, storage

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

    The directory appears whole or not at all; an older one is replaced. Training turns `use_cache` off, which would
    make every later generation slow; it is on in what is written.

    Args:
        model: a model of transformers.
        directory: where to.
        tokenizer: saved with it, with `chat_template` where given.
        complete: called with the model and the directory before the model is written into it.
        weights: all of the model's, where it has only a share of them.
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
    """Weights that were gathered without those that are tied to others: transformers sees by their memory alone."""
    tied = getattr(model, "all_tied_weights_keys", {})
    return weights and {name: value for name, value in weights.items() if tied.get(name) not in weights}


def _mend_generation_config(model: Any) -> None:
    """Some models ship sampling settings without `do_sample`, which transformers loads but refuses to write."""
    generation = getattr(model, "generation_config", None)
    if generation is None:
        return
    try:
        generation.validate(strict=True)
    except ValueError:
        generation.do_sample = True


def stop_at(model: Any, tokenizer: Any, stop_tokens: Iterable[str]) -> list[int]:
    """Have generation stop at these tokens too, the first one first; it is saved with a whole model.

    Returns:
        All ids that generation stops at.
    """
    ids = [i for i in (tokenizer.convert_tokens_to_ids(token) for token in stop_tokens) if i is not None]
    known = model.generation_config.eos_token_id
    known = [] if known is None else [known] if isinstance(known, int) else list(known)
    found = list(dict.fromkeys([*ids, *known]))
    model.generation_config.eos_token_id = found or None
    return found


def decode_greedily(model: Any, tokenizer: Any, stop_tokens: Iterable[str]) -> None:
    """Have generation take the likeliest token each time, and stop where the training's answers end.

    What the base's authors set (a temperature, penalties) was meant for the model before it was trained.
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
    """Write an adapter so that plain `peft.PeftModel.from_pretrained` loads it over its base.

    The directory appears whole or not at all; an older one is replaced. Rows of new tokens are in it, the base's other
    embeddings are not.

    Args:
        adapted: the trained PeftModel.
        directory: where to.
        tokenizer: saved with it, with `chat_template` where given.
        weights: all of the model's, where it has only a share of them.
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
    """A directory beside `target` to write into, which takes its place when all is written.

    Loaded weights may be the file itself, mapped into memory: writing over it in place would change or crash the model.

    Args:
        size: bytes of the weights that will be written; the disk is asked for them first.

    Raises:
        StorageError: the disk has no room for them.
    """
    check_room(target, size)
    with replacing_directory(target) as beside, storage(target, size):
        yield beside
        let_read(beside)
