"""Standard benchmarks through lm-eval (EleutherAI's Language Model Evaluation Harness), on a model that is loaded here."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sft.config.build import build
from sft.config.errors import UserError
from sft.evaluation.compare import format_table
from sft.evaluation.spec import LmEval
from sft.evaluation.undisturbed import ready_to_generate, same_draws, undisturbed

log = logging.getLogger(__name__)

PREFIX = "lm_eval_"


@dataclass
class Benchmarks:
    """What the tasks found.

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


def prepare_tasks(spec: LmEval) -> Any:
    """Find the tasks and load their data: what is missing is said before a model is loaded.

    Returns:
        lm-eval's task manager.

    Raises:
        UserError: no lm-eval, an unknown task, or data that cannot be had.
    """
    folder = Path(spec.include_path).expanduser() if spec.include_path else None
    if folder is not None and not folder.is_dir():
        raise UserError(
            "there is no such directory",
            where=f"evaluation.include_path={spec.include_path}",
            remedy="give the directory of your task files",
        )
    own = _task_manager(str(folder) if folder else None, packaged=False)
    known = set(own.all_tasks)
    if all(name in known or Path(name).is_file() for name in spec.tasks):
        with contextlib.suppress(KeyError):  # a group of packaged tasks
            return _loaded(own, spec.tasks)
    manager = _task_manager(str(folder) if folder else None, packaged=True)
    known = set(manager.all_tasks)
    for name in spec.tasks:
        if name not in known and not Path(name).is_file():
            raise _unknown_task(name, sorted(known), spec)
    return _loaded(manager, spec.tasks)


def _loaded(manager: Any, tasks: Sequence[str]) -> Any:
    """The manager, after each task was loaded once."""
    with same_draws(), _quiet():
        for name in tasks:
            try:
                manager.load([name])
            except KeyError:
                raise
            except Exception as error:
                raise _unloadable(name, error) from error
    return manager


def find_benchmarks(config: Mapping[str, Any]) -> None:
    """See `prepare_tasks`, for a whole config; nothing where it asks for no benchmarks. Raises UserError."""
    node = config.get("evaluation") or {}
    if "tasks" in node:
        prepare_tasks(build(node, where="evaluation", allowed=config.get("allow_targets") or []))


def run_benchmarks(model: Any, tokenizer: Any, spec: LmEval, manager: Any = None) -> Benchmarks:
    """Put the tasks' questions to a model; it is left as it was.

    Args:
        model: a causal language model, with or without an adapter, quantized or not.
        tokenizer: its tokenizer.
        spec: which tasks, how.
        manager: from `prepare_tasks`, where that has been called.

    Raises:
        UserError: what `prepare_tasks` raises, or a task that runs code which was not allowed.
    """
    manager = manager or prepare_tasks(spec)
    with same_draws():  # importing it seeds
        from lm_eval import evaluator

    started = time.perf_counter()
    with undisturbed(model), ready_to_generate(model) as inner, _quiet():
        try:
            # it would ask git for the commit of the working directory, which run.json has, and git would complain
            evaluator.get_git_commit_hash = lambda: None
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
                    remedy="leave it out; lm-eval itself runs it in a sandbox of yours",
                ) from error
            raise
    return _read(found or {}, time.perf_counter() - started)


def benchmark_table(
    after: Benchmarks, before: Benchmarks | None = None, names: tuple[str, str] = ("before", "after")
) -> str:
    """A line a figure, with its standard error; the base's beside it where there is one."""
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


@functools.lru_cache(maxsize=8)
def _task_manager(folder: str | None, packaged: bool) -> Any:
    """lm-eval's index of task files; that of its own thousands takes seconds, so it is made when a task needs it."""
    try:
        with same_draws(), _quiet():
            from lm_eval.tasks import TaskManager

            return TaskManager(include_path=folder, include_defaults=packaged)
    except ImportError as error:
        raise UserError(
            f"lm-eval cannot be imported ({error})", where="evaluation", remedy="pip install 'sft[eval]'"
        ) from error


def _unknown_task(name: str, known: list[str], spec: LmEval) -> UserError:
    import difflib

    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    near = near or [other for other in known if name in other][:3]
    own = f" or in {spec.include_path}" if spec.include_path else ""
    remedy = f"did you mean {', '.join(near)}?" if near else "`lm-eval ls tasks` lists them"
    return UserError(f"there is no task {name!r} in lm-eval{own}", where="evaluation.tasks", remedy=remedy)


def _unloadable(name: str, error: Exception) -> UserError:
    """The user's error for a task that could not be loaded; the hub's many errors are one: the data is not there."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    text = " ".join(str(error).split())[:300]
    hub = {
        "OfflineModeIsEnabled",
        "ConnectionError",
        "HfHubHTTPError",
        "LocalEntryNotFoundError",
        "DatasetNotFoundError",
    }
    if kinds & hub or "offline" in text.lower():
        return UserError(
            f"the data of task {name!r} is not on this machine and cannot be loaded from the hub ({text})",
            where="evaluation.tasks",
            remedy="load it once with the network (and HF_HUB_OFFLINE unset), or take a task with local data: "
            "dataset_path: json and dataset_kwargs.data_files in a task file, evaluation.include_path=DIR",
        )
    return UserError(
        f"task {name!r} cannot be loaded: {type(error).__name__}: {text}",
        where="evaluation.tasks",
        remedy="check its task file; paths in dataset_kwargs.data_files are relative to the working directory",
    )


def _wrapped(model: Any, tokenizer: Any, batch_size: int) -> Any:
    """lm-eval's view of a loaded model. It would tie the model's weights anew, which may undo what training untied."""
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval's warnings are about its own command line, so only its errors are shown; bars are for terminals."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.ExitStack() as stack:
            if not sys.stderr.isatty():
                stack.enter_context(contextlib.redirect_stderr(stack.enter_context(open(os.devnull, "w"))))
            yield
    finally:
        logger.setLevel(level)
