"""Standard benchmarks through lm-eval (EleutherAI's Language Model Evaluation Harness), on a model loaded by sft."""

from __future__ import annotations

import contextlib
import copy
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sft.config.errors import UserError
from sft.evaluation.compare import format_table
from sft.evaluation.eval_mode import eval_mode, preserve_rng_state, ready_to_generate
from sft.evaluation.spec import LmEval
from sft.evaluation.tasks import prepare_tasks, quiet

PREFIX = "lm_eval_"


@dataclass
class Benchmarks:
    """The results of the tasks.

    Attributes:
        results: lm-eval's figures by task and group: `{"arc_easy": {"acc": 0.61, "acc_stderr": 0.01, ...}}`.
        about: versions, examples shown and number of questions of each task.
        samples: every question with the model's answer, as lm-eval logs it.
        seconds: what it took.
    """

    results: dict[str, dict[str, float]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    def metrics(self, prefix: str = PREFIX) -> dict[str, float]:
        """`lm_eval_arc_easy_acc` and so on, without the standard errors, which lm_eval.json has."""
        return {
            f"{prefix}{task}_{name}": value
            for task, figures in self.results.items()
            for name, value in figures.items()
            if not _is_error(name)
        }


def run_benchmarks(model: Any, tokenizer: Any, spec: LmEval, manager: Any = None) -> Benchmarks:
    """Run the tasks on a model, which is unchanged afterwards.

    Args:
        model: a causal language model, with or without an adapter, quantized or not.
        tokenizer: its tokenizer.
        spec: which tasks, how.
        manager: from `prepare_tasks`, where that has been called.

    Raises:
        UserError: what `prepare_tasks` raises, or a task that runs generated code.
    """
    manager = manager or prepare_tasks(spec)
    with preserve_rng_state():  # importing it seeds
        from lm_eval import evaluator

    started = time.perf_counter()
    with eval_mode(model), ready_to_generate(model) as inner, quiet(), _without_git(evaluator):
        try:
            found = evaluator.simple_evaluate(
                model=_wrapped(inner, tokenizer, spec.batch_size),
                tasks=list(spec.tasks),
                task_manager=manager,
                num_fewshot=spec.num_fewshot,
                limit=spec.limit if spec.limit is None or spec.limit < 1 else int(spec.limit),
                apply_chat_template=spec.apply_chat_template,
                log_samples=True,
            )
        except ValueError as error:
            if "unsafe" in str(error).lower():
                raise UserError(
                    "a task runs code that the model writes, which sft does not do",
                    where="evaluation.tasks",
                    remedy="leave it out, or run it with lm-eval itself in a sandbox",
                ) from error
            raise
    return _read(found or {}, time.perf_counter() - started)


def benchmark_table(
    after: Benchmarks, before: Benchmarks | None = None, names: tuple[str, str] = ("before", "after")
) -> str:
    """One line per metric, with its standard error, and the base's next to it where there is one."""
    lines = []
    for task, figures in after.results.items():
        place = [task, str(after.about.get(task, {}).get("questions", "")), _shots(after.about.get(task, {}))]
        for name in [name for name in figures if not _is_error(name)]:
            old = [_with_error(before.results.get(task, {}), name)] if before else []
            lines.append([*place, name, *old, _with_error(figures, name)])
            place = ["", "", ""]
    return format_table(["task", "questions", "shots", "figure", *([names[0]] if before else []), names[1]], lines)


def benchmark_files(after: Benchmarks, before: Benchmarks | None = None) -> dict[str, str]:
    """Texts of lm_eval.json (figures with standard errors, versions) and lm_eval_samples.jsonl, by name."""
    whole: dict[str, Any] = {"tasks": after.about, "results": after.results, "seconds": after.seconds}
    if before is not None:
        whole |= {"before_results": before.results, "before_seconds": before.seconds}
    lines = [json.dumps(sample, ensure_ascii=False, default=str) for sample in after.samples]
    return {
        "lm_eval.json": json.dumps(whole, indent=2, ensure_ascii=False, default=str) + "\n",
        "lm_eval_samples.jsonl": "".join(f"{line}\n" for line in lines),
    }


@contextlib.contextmanager
def _without_git(evaluator: Any) -> Iterator[None]:
    """Keep lm-eval from calling git for the commit, which run.json has; outside of a repository git would complain."""
    asks = evaluator.get_git_commit_hash
    evaluator.get_git_commit_hash = lambda: None
    try:
        yield
    finally:
        evaluator.get_git_commit_hash = asks


def _wrapped(model: Any, tokenizer: Any, batch_size: int) -> Any:
    """A loaded model wrapped for lm-eval, which is kept from tying weights that training has untied."""
    from lm_eval.models.huggingface import HFLM

    model.tie_weights = lambda *args, **kwargs: None
    try:
        return HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size, backend="causal")
    finally:
        del model.tie_weights


def _read(found: Mapping[str, Any], seconds: float) -> Benchmarks:
    made = Benchmarks(seconds=seconds)
    shots, counts = found.get("n-shot") or {}, found.get("n-samples") or {}
    for task, figures in {**(found.get("results") or {}), **(found.get("groups") or {})}.items():
        named = {
            _plain(name): float(value)
            for name, value in figures.items()
            if "," in name and isinstance(value, int | float) and not isinstance(value, bool)
        }
        if named:
            made.results[task] = named
            made.about[task] = {
                "version": (found.get("versions") or {}).get(task),
                "num_fewshot": shots.get(task),
                "questions": (counts.get(task) or {}).get("effective"),
            }
    for task, rows in (found.get("samples") or {}).items():
        kept = ("doc_id", "doc", "target", "resps", "filtered_resps", "filter", "metrics")
        for row in rows:
            figures = {name: row[name] for name in row.get("metrics") or [] if name in row}
            made.samples.append({"task": task, **{key: row[key] for key in kept if key in row}, **figures})
    return made


def _plain(name: str) -> str:
    """`acc_norm,none` as acc_norm; `exact_match,strict-match` as exact_match_strict_match."""
    figure, _, filtered = name.partition(",")
    return figure if filtered == "none" else f"{figure}_{filtered}".replace("-", "_")


def _is_error(name: str) -> bool:
    return "_stderr" in name


def _with_error(figures: Mapping[str, float], name: str) -> str:
    if name not in figures:
        return "-"
    place = next((key for key in figures if key.replace("_stderr", "", 1) == name and key != name), None)
    error = figures[place] if place else float("nan")
    return f"{figures[name]:.4f}" + (f" ± {error:.4f}" if error == error else "")


def _shots(about: Mapping[str, Any]) -> str:
    shots = about.get("num_fewshot")
    return "" if shots is None else str(shots)
