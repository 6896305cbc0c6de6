"""Names of modules in an adapter's config, checked against a model: each must match something.

peft accepts a list of targets if one of them is found, and ignores those that match nothing; they would end up in
adapter_config.json, where servers of the adapter fail on them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sft.config.errors import UserError, raise_all
from sft.model.adapters.coverage import adaptable_modules, candidates
from sft.model.adapters.layers import layer_faults, layer_lists
from sft.model.adapters.matching import last_parts, listed, matching, nothing_matches, some_of
from sft.safety.regexes import wrong_pattern

log = logging.getLogger(__name__)


def refuse_unmatched(config: Any, model: Any) -> None:
    """Refuse names and patterns of an adapter's config that match nothing in a model.

    Args:
        config: a peft.LoraConfig with its targets filled in.
        model: the base, with or without weights.

    Raises:
        UserError: all of them at once.
    """
    modules = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    parameters = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    if faults := list(_patterns(config)):
        raise_all(faults)
    faults = list(_unmatched_targets(config, model, modules))
    raise_all(faults or list(layer_faults(config, model, modules)))
    adapted = [*_adapted(config, model, modules), *matching(parameters, config.target_parameters or ())]
    faults = [
        *_unmatched("exclude_modules", listed(config.exclude_modules), modules),
        *_unmatched("modules_to_save", config.modules_to_save or (), modules),
        *_unmatched_parameters(config.target_parameters or (), parameters),
        *_unmatched_keys("rank_pattern", config.rank_pattern or {}, adapted),
        *_unmatched_keys("alpha_pattern", config.alpha_pattern or {}, adapted),
        *_token_indices(config.trainable_token_indices, model, modules),
        *_biases(config, adapted, parameters),
    ]
    excluded = config.exclude_modules
    if isinstance(excluded, str) and not any(re.fullmatch(excluded, name) for name in modules):
        faults.append(nothing_matches("exclude_modules", [excluded], last_parts(modules)))
    raise_all(faults)
    _tell_saved(config.modules_to_save or (), modules)


def refuse_unskipped(quant: Any, model: Any) -> None:
    """Refuse names in `quant.llm_int8_skip_modules` that no module of a model has. Raises UserError."""
    modules = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    names = [str(name) for name in getattr(quant, "llm_int8_skip_modules", None) or ()]
    unmatched = [name for name in names if not any(name in module for module in modules)]
    if unmatched:
        raise UserError(
            f"no module of {type(model).__name__} is called {', '.join(unmatched)}",
            where="quant.llm_int8_skip_modules",
            remedy=f"some of {some_of(last_parts(modules))}",
        )


def no_match(targets: Sequence[str], model: Any) -> UserError:
    """The error for target modules that the model does not have, naming those it has."""
    return UserError(
        f"no module of {type(model).__name__} is called {', '.join(targets)}",
        where="lora.target_modules",
        remedy=f"lora.target_modules=[{','.join(candidates(model))}], or some of these, or all-linear",
    )


def _patterns(config: Any) -> Iterator[UserError]:
    """Errors for expressions that Python cannot read, or that may take years to match."""
    given = [("target_modules", config.target_modules), ("exclude_modules", config.exclude_modules)]
    given += [(key, pattern) for key in ("rank_pattern", "alpha_pattern") for pattern in getattr(config, key) or {}]
    given += [("layers_pattern", pattern) for pattern in layer_lists(config)]
    for key, pattern in given:
        if isinstance(pattern, str) and (wrong := wrong_pattern(pattern)):
            yield UserError(
                f"{pattern!r} {wrong}", where=f"lora.{key}", remedy="a module's name, or a shorter expression"
            )


def _unmatched_targets(config: Any, model: Any, modules: list[str]) -> Iterator[UserError]:
    targets = config.target_modules
    if targets is None or isinstance(targets, str):
        return
    unmatched = sorted(target for target in targets if not matching(modules, [target]))
    if unmatched:
        yield no_match(unmatched, model)


def _adapted(config: Any, model: Any, modules: list[str]) -> list[str]:
    """The modules that will get an adapter."""
    from peft.tuners.tuners_utils import check_target_module_exists

    if isinstance(config.target_modules, str) and config.target_modules.replace("_", "-") == "all-linear":
        linear, excluded = [name for name, _ in adaptable_modules(model)], config.exclude_modules
        if isinstance(excluded, str):
            return [name for name in linear if not re.fullmatch(excluded, name)]
        return [name for name in linear if name not in matching(linear, excluded or ())]
    return [name for name in modules if check_target_module_exists(config, name)]


def _unmatched(key: str, names: Iterable[str], modules: list[str]) -> Iterator[UserError]:
    unmatched = sorted(name for name in names if not matching(modules, [name]))
    if unmatched:
        yield nothing_matches(key, unmatched, last_parts(modules))


def _unmatched_parameters(names: Iterable[str], parameters: list[str]) -> Iterator[UserError]:
    unmatched = sorted(name for name in names if not matching(parameters, [name]))
    if unmatched:
        ends = {".".join(name.split(".")[-2:]) for name in parameters}
        yield UserError(
            f"no parameter is called {', '.join(unmatched)}",
            where="lora.target_parameters",
            remedy=f"some of {some_of(ends)}",
        )


def _unmatched_keys(key: str, patterns: dict[str, Any], adapted: list[str]) -> Iterator[UserError]:
    """Errors for keys that match no adapted module, or only ones that an earlier key matches."""
    from peft.utils.other import get_pattern_key

    takes = {get_pattern_key(list(patterns), name) for name in adapted}
    for pattern in patterns:
        if pattern in takes:
            continue
        earlier = {
            get_pattern_key(list(patterns), name) for name in adapted if get_pattern_key([pattern], name) == pattern
        }
        if earlier - {pattern}:
            yield UserError(
                f"{pattern!r} comes after {', '.join(sorted(earlier))}, which already matches all of its modules",
                where=f"lora.{key}",
                remedy="put the more specific key first",
            )
        else:
            yield nothing_matches(key, [pattern], last_parts(adapted), "no adapted module matches")


def _token_indices(indices: Any, model: Any, modules: list[str]) -> Iterator[UserError]:
    """Errors for unknown embeddings, and for token ids beyond them."""
    if not indices:
        return
    where = "lora.trainable_token_indices"
    weight = model.get_input_embeddings().weight
    rows = weight.shape[0]
    named = indices if isinstance(indices, dict) else {None: indices}
    for name, tokens in named.items():
        if name is not None and not matching(modules, [name]):
            embeddings = [each for each in last_parts(modules) if each in ("embed_tokens", "wte", "lm_head")]
            yield nothing_matches("trainable_token_indices", [name], embeddings or last_parts(modules))
        beyond = [token for token in tokens if not 0 <= token < rows]
        if beyond and not weight.is_meta:  # rows for new tokens are added once the model has weights
            yield UserError(
                f"there is no token {', '.join(map(str, beyond[:5]))}: the embeddings have {rows:,} rows",
                where=where,
                remedy=f"ids between 0 and {rows - 1}",
            )


def _biases(config: Any, adapted: list[str], parameters: list[str]) -> Iterator[UserError]:
    """The error for biases that should be trained but do not exist."""
    there = {name.removesuffix(".bias") for name in parameters if name.endswith(".bias")}
    if config.bias == "none" or there & (set(adapted) if config.bias == "lora_only" else there):
        return
    where = "adapted layer" if config.bias == "lora_only" else "layer"
    yield UserError(f"no {where} has a bias", where="lora.bias", remedy="lora.bias=none")


def _tell_saved(names: Iterable[str], modules: list[str]) -> None:
    """Warn where peft trains more than the named modules, because it matches all names with that ending."""
    for name in names:
        more = sorted({m.rpartition(".")[2] for m in modules if m.endswith(name)} - {name.rpartition(".")[2]})
        if more:
            log.warning(
                "lora.modules_to_save: %s also trains and saves %s, whose names have the same ending; the full path "
                "(%s) selects only that one",
                name,
                ", ".join(more),
                min(matching(modules, [name]), key=len),
            )
