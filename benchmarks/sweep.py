"""A sweep of four jobs in one process compared with the same four runs in separate processes.

    python benchmarks/sweep.py [--model smollm2_offline] [--steps 10] [--rounds 1] [--json OUT] [overrides ...]

Both sides train the same runs (their adapters are compared byte for byte) with a warm token cache. Prints the wall
times, their ratio, and how each side's time splits into training and evaluation and the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RATES = ("1e-4", "3e-4", "1e-3", "3e-3")


def sft(*arguments: str) -> float:
    """Run `python -m sft.train` and return the seconds it took."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "sft.train", *arguments], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)
    return time.perf_counter() - started


def trained_seconds(runs: list[Path]) -> float:
    """Seconds spent by the runs in training and evaluation."""
    return sum(json.loads((run / "metrics.json").read_text())["train_seconds"] for run in runs)


def adapters(runs: list[Path]) -> list[bytes]:
    return [(run / "adapter/adapter_model.safetensors").read_bytes() for run in runs]


def measure(base: list[str], directory: Path) -> dict[str, Any]:
    """Measure one round: the sweep, then the single runs."""
    swept = sft("-m", *base, f"trainer.learning_rate={','.join(RATES)}", f"hydra.sweep.dir={directory}/sweep")
    jobs = sorted(path for path in (directory / "sweep").iterdir() if (path / "metrics.json").exists())
    single = []
    for number, rate in enumerate(RATES):
        single.append(sft(*base, f"trainer.learning_rate={rate}", f"hydra.run.dir={directory}/{number}"))
    alone = [directory / str(number) for number in range(len(RATES))]
    return {
        "sweep_seconds": swept,
        "sweep_training": trained_seconds(jobs),
        "single_seconds": sum(single),
        "single_training": trained_seconds(alone),
        "identical": adapters(jobs) == adapters(alone),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2_offline")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    known, more = parser.parse_known_args()
    base = [f"model={known.model}", "lora=r8", f"trainer.max_steps={known.steps}"]
    base += ["dataset=tickets", "dataset.eval_sources.known.generator.rows=8", "dataset.eval_sources.unseen=null"]
    base += ["trainer.per_device_train_batch_size=1", "trainer.save_strategy='no'", *more]
    rounds = []
    with tempfile.TemporaryDirectory() as scratch:
        sft(*base, "trainer.max_steps=1", f"hydra.run.dir={scratch}/warm")  # fills the token cache for both
        for number in range(known.rounds):
            rounds.append(measure(base, Path(scratch) / str(number)))
    report(rounds)
    if known.json:
        known.json.write_text(json.dumps(rounds, indent=1))


def report(rounds: list[dict[str, Any]]) -> None:
    """Print medians over the rounds."""
    median = {key: statistics.median(each[key] for each in rounds) for key in rounds[0] if key != "identical"}
    count = len(RATES)
    for side in ("sweep", "single"):
        whole, training = median[f"{side}_seconds"], median[f"{side}_training"]
        outside = whole - training
        print(f"{side:>7}: {whole:6.1f} s = {training:5.1f} s training and evaluation + {outside:5.1f} s outside")
    saved = median["single_seconds"] - median["sweep_seconds"]
    per_job = (median["single_seconds"] - median["single_training"]) / count
    outside = median["sweep_seconds"] - median["sweep_training"]
    print(f"a single run takes {per_job:.1f} s outside of training; the sweep's {count} jobs together {outside:.1f} s,")
    print(f"so each job after the first costs {(outside - per_job) / (count - 1):.2f} s outside; {saved:.1f} s saved")
    print(f"adapters byte-identical: {all(each['identical'] for each in rounds)}")
    print(f"ratio {median['single_seconds'] / median['sweep_seconds']:.2f}")


if __name__ == "__main__":
    main()
