"""Tasks of lm-eval: found, and their data loaded, before any model is loaded."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sft.config.build import build
from sft.config.errors import UserError
from sft.config.paths import expanded
from sft.config.run_config import RunConfig
from sft.config.text import closest_names
from sft.evaluation.eval_mode import preserve_rng_state
from sft.evaluation.spec import LmEval


def prepare_tasks(spec: LmEval) -> Any:
    """Find the tasks and load their data, so that missing ones are reported before a model is loaded.

    Returns:
        lm-eval's task manager.

    Raises:
        UserError: lm-eval is not installed, a task is unknown, or its data cannot be loaded.
    """
    folder = expanded(spec.include_path) if spec.include_path else None
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
    """The manager, after loading each task once."""
    with preserve_rng_state(), quiet():
        for name in tasks:
            try:
                manager.load([name])
            except KeyError:
                raise
            except Exception as error:
                raise _unloadable(name, error) from error
    return manager


def find_benchmarks(config: RunConfig) -> None:
    """See `prepare_tasks`, for a whole config; nothing where it asks for no benchmarks. Raises UserError."""
    node = config.evaluation
    if node is not None and "tasks" in node:
        prepare_tasks(build(node, where="evaluation", allowed=config.allow_targets))


@functools.lru_cache(maxsize=8)
def _task_manager(folder: str | None, packaged: bool) -> Any:
    """lm-eval's index of task files; indexing its own thousands takes seconds, so it is done only when a task needs
    it."""
    try:
        with preserve_rng_state(), quiet():
            from lm_eval.tasks import TaskManager

            return TaskManager(include_path=folder, include_defaults=packaged)
    except ImportError as error:
        raise UserError(
            f"lm-eval cannot be imported ({error})", where="evaluation", remedy="pip install 'sft[eval]'"
        ) from error


def _unknown_task(name: str, known: list[str], spec: LmEval) -> UserError:
    near = closest_names(name, known, most=3) or [other for other in known if name in other][:3]
    own = f" or in {spec.include_path}" if spec.include_path else ""
    remedy = f"did you mean {', '.join(near)}?" if near else "`lm-eval ls tasks` lists them"
    return UserError(f"there is no task {name!r} in lm-eval{own}", where="evaluation.tasks", remedy=remedy)


def _unloadable(name: str, error: Exception) -> UserError:
    """The UserError for a task that could not be loaded; all errors of the hub mean that its data is missing."""
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
            remedy="load it once online (with HF_HUB_OFFLINE unset), or use a task with local data: "
            "dataset_path: json and dataset_kwargs.data_files in a task file, evaluation.include_path=DIR",
        )
    return UserError(
        f"task {name!r} cannot be loaded: {type(error).__name__}: {text}",
        where="evaluation.tasks",
        remedy="check its task file; paths in dataset_kwargs.data_files are relative to the working directory",
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Show only lm-eval's errors, because its warnings are about its own command line; progress bars only on
    terminals."""
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
