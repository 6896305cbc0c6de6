"""The metrics that a run will have, known from its config: what an objective and the callbacks may name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sft.config.checks.roles import role_of
from sft.config.checks.suggest import nearest
from sft.config.errors import UserError
from sft.config.source_code.class_attributes import class_attribute

_LOSS = ("loss", "perplexity", "token_accuracy")
_ANSWERS = ("exact_match", "f1", "rouge_l")
_JSON = ("json_valid", "json_match", "json_field_accuracy")  # only where references are JSON, which depends on the data
_TRAINED = (
    "train_loss",
    "steps",
    "epochs",
    "total_tokens",
    "trained_tokens",
    "tokens_per_second",
    "trained_tokens_per_second",
    "padding",
    "shared",
    "model_flop_utilization",
    "peak_memory_bytes",
    "train_seconds",
    "total_seconds",
)


def greater_is_better(metric: str, direction: str | None = None) -> bool:
    """Whether larger values of a metric are better: given by the direction, else true of all but losses and
    perplexities."""
    if direction is not None:
        return direction == "maximize"
    return not metric.endswith(("loss", "perplexity"))


def objective_of(config: Mapping[str, Any], evaluates: bool) -> tuple[str, str]:
    """The metric by which a run is judged, and its direction.

    Args:
        evaluates: whether there are evaluation rows.
    """
    objective = config.get("objective") or ("eval_loss" if evaluates else "train_loss")
    direction = config.get("direction") or ("maximize" if greater_is_better(objective) else "minimize")
    return objective, direction


def evaluated_sources(config: Mapping[str, Any]) -> list[str]:
    """Names of the sources with evaluation rows, as far as the config tells; [] where there are no evaluation rows."""
    dataset = config.get("dataset")
    if not isinstance(dataset, Mapping):
        return []
    if dataset.get("eval_sources"):
        return [str(name) for name in dataset["eval_sources"]]
    if not dataset.get("eval_fraction", 0.1):  # 0.1: spec.Dataset
        return []
    return [*(["local"] if dataset.get("path") else []), *(str(name) for name in dataset.get("sources") or {})]


def of_evaluation(sources: Iterable[str]) -> list[str]:
    """Metrics of each evaluation during training; with several sources also the metrics of each."""
    sources = list(sources)
    if not sources:
        return []
    each = [f"eval_{source}_{name}" for source in sources for name in _LOSS] if len(sources) > 1 else []
    return [*(f"eval_{name}" for name in _LOSS), *each]


def of_run(config: Mapping[str, Any], sources: Iterable[str]) -> list[str]:
    """Metrics in metrics.json that can be numbers."""
    sources = list(sources)
    skipped = ["skipped_steps"] if config.get("on_nonfinite") == "skip" else []
    evaluation = config.get("evaluation")
    evaluation = evaluation if isinstance(evaluation, Mapping) else {}
    answers: list[str] = []
    if evaluation.get("generate") and sources:
        names = [f"eval_{name}" for name in (*_ANSWERS, *_JSON)]
        names += [f"eval_{source}_{name}" for source in sources for name in (*_ANSWERS, *_JSON)]
        names += ["eval_answers", "eval_stopped"]
        answers = [*names, *([f"before_{name}" for name in names] if evaluation.get("before") else [])]
    return [*of_evaluation(sources), *answers, *_TRAINED, *skipped]


def unknown_figures(config: Mapping[str, Any], sources: Iterable[str] | None = None) -> Iterator[UserError]:
    """An error for each metric that the config names but no evaluation reports.

    Args:
        config: resolved, plain.
        sources: those that have evaluation rows; None: as far as the config tells.
    """
    if _has_own_callbacks(config):
        return  # a user's callback may add metrics of its own to an evaluation
    sources = evaluated_sources(config) if sources is None else list(sources)
    yield from _unknown("objective", config.get("objective"), of_run(config, sources), config)
    for where, name, inherited in _watched(config):
        full = name if name is None or name.startswith("eval_") else f"eval_{name}"
        for error in _unknown(where, full, of_evaluation(sources), config):
            if inherited and error.where == where:
                error = UserError(
                    f"it follows the objective, and {name} is not a metric of the evaluations during training",
                    where=where.rpartition(".")[0],
                    remedy=f"{where}=eval_loss",
                )
            yield error


def _watched(config: Mapping[str, Any]) -> Iterator[tuple[str, str | None, bool]]:
    """(key, metric, whether it is the objective) of everything that depends on evaluations during training."""
    objective = config.get("objective")
    objective = None if objective == "train_loss" else objective
    trainer = config.get("trainer")
    if isinstance(trainer, Mapping) and isinstance(trainer.get("metric_for_best_model"), str):
        yield "trainer.metric_for_best_model", trainer["metric_for_best_model"], False
    callbacks = config.get("callbacks")
    for name, node in callbacks.items() if isinstance(callbacks, Mapping) else []:
        if not isinstance(node, Mapping):
            continue
        key = class_attribute(node.get("_target_"), "figure_argument")
        if key is None and role_of(node) == "saves" and node.get("best_only"):
            yield f"callbacks.{name}.best_only", objective, True
        elif key is not None:
            own = node.get(key)
            yield f"callbacks.{name}.{key}", own or objective, own is None


def _unknown(where: str, name: Any, known: list[str], config: Mapping[str, Any]) -> Iterator[UserError]:
    if not isinstance(name, str) or name in known:
        return
    tasks = (config.get("evaluation") or {}).get("tasks")
    if tasks and name.removeprefix("before_").startswith("lm_eval_"):
        return
    near = nearest(name, known)
    listed = ", ".join(known) if known else "none: there are no evaluation rows"
    remedy = f"did you mean {where}={near}? " * bool(near) + f"There are: {listed}"
    if name.removeprefix("eval_").endswith((*_ANSWERS, *_JSON)) and where == "objective":
        remedy += "; with evaluation.generate=true also eval_exact_match, eval_f1 and eval_rouge_l"
    yield UserError(f"no evaluation reports the metric {name!r}", where=where, remedy=remedy)


def _has_own_callbacks(config: Mapping[str, Any]) -> bool:
    callbacks = config.get("callbacks")
    nodes = callbacks.values() if isinstance(callbacks, Mapping) else []
    targets = [str(node.get("_target_", "sft.")) for node in nodes if isinstance(node, Mapping)]
    return any(not target.startswith(("sft.", "transformers.")) for target in targets)
