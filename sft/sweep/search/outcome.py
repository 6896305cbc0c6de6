"""optimization_results.json: a search's best point, and what every trial came to."""

from __future__ import annotations

from typing import Any

from sft.sweep.search.trials import Trials

RESULTS = "optimization_results.json"
_STATUS = {"COMPLETE": "finished", "FAIL": "failed", "PRUNED": "pruned"}  # by Optuna's names


def outcome(trials: Trials, total: int, objective: str, direction: str) -> dict[str, Any]:
    """The content of optimization_results.json.

    Args:
        trials: so far.
        total: how many places the search has.
        objective: the figure's name.
        direction: minimize or maximize.
    """
    rows = [_row(trials, place, trial) for place, trial in sorted(trials.by_place().items())]
    done = [row for row in rows if row["status"] == "finished"]
    sign = 1 if direction == "minimize" else -1
    return {
        "objective": objective,
        "direction": direction,
        "best": min(done, key=lambda row: (sign * row["value"], row["trial"]), default=None),
        "n_trials": total,
        "finished": len(done),
        "pruned": sum(row["status"] == "pruned" for row in rows),
        "failed": sum(row["status"] == "failed" for row in rows),
        "sampler": trials.options.sampler,
        "seed": trials.options.seed,
        "pruner": trials.options.pruner,
        "trials": rows,
    }


def _row(trials: Trials, place: int, trial: Any) -> dict[str, Any]:
    status = _STATUS.get(trial.state.name, "running")
    many, texts = len(trials.options.job_seeds), trials.space.texts(trial.params)
    return {
        "trial": place,
        "jobs": [place * many + index for index in range(many)],
        "status": status,
        "value": trial.value if status == "finished" else None,
        "values": trial.user_attrs.get("values"),
        "params": texts,
        "overrides": " ".join(f"{key}={text}" for key, text in texts.items()),
    }
