"""Sweeps of run directories like those of finished runs, without training."""

import json

import pytest
import yaml

from sft.run.directory import RunDirectory
from sft.run.metrics import Metrics


@pytest.fixture
def make_run(tmp_path):
    """Write one run directory: `make_run("sweep/0_a", config, eval_loss=1.0, curve=[2.0, 1.0])`."""

    def make(name, config, status="finished", error=None, curve=(), facts=None, **figures):
        run = RunDirectory(tmp_path / name)
        run.write_text(run.config, yaml.safe_dump(config))
        run.write_json(run.run_json, {"status": status, "error": error, **(facts or {})})
        named = {key: figures.pop(key) for key in ("eval_loss", "train_loss", "train_seconds") if key in figures}
        Metrics(status=status, steps=10 * len(curve), **named, extra=figures).write(run)
        for index, value in enumerate(curve, 1):
            run.append_jsonl(run.metrics_jsonl, {"step": 10 * index, "loss": value + 0.5, "eval_loss": value})
        return run.path

    return make


@pytest.fixture
def make_sweep(tmp_path, make_run):
    """Write a sweep with its sweep.json.

    Each job is (swept values, status, eval_loss); one of status "nowhere" failed before it had a directory.
    """

    def make(keys, jobs, **facts):
        entries = []
        for number, (values, status, loss) in enumerate(jobs):
            swept = dict(zip(keys, values, strict=True))
            entry = {
                "number": number,
                "directory": f"{number}_job",
                "overrides": swept,
                "status": status,
                "error": None,
            }
            error = f"RuntimeError: {number} went wrong\nsecond line" if status in ("failed", "nowhere") else None
            if status == "nowhere":
                entry |= {"directory": None, "status": "failed", "error": error}
            elif status != "pending":
                curve = [] if loss is None else [loss + 1, loss]
                make_run(f"sweep/{number}_job", {"seed": 1}, status, error, curve, eval_loss=loss)
            entries.append(entry)
        content = {"command": "python -m sft.train -m", "swept": list(keys), "status": "finished", "jobs": entries}
        content |= {"objective": "eval_loss", "direction": "minimize", **facts}
        (tmp_path / "sweep").mkdir(exist_ok=True)
        (tmp_path / "sweep" / "sweep.json").write_text(json.dumps(content))
        return tmp_path / "sweep"

    return make
