"""A sweep whose jobs train together against the same sweep one job after another, both on one loaded base.

    python benchmarks/fused.py [--jobs 8] [--batch 1] [--steps 4,16] [--rounds 3] [--quant none] [--json OUT] [overrides ...]

Rows of the demo, SmolLM2-135M, LoRA of rank 8 and 16 at several rates. Each side runs with few steps and with more; the
difference is the time of the steps between, so that imports, loading and checks do not count. Sides take turns, medians
over the rounds are told, and the peak memory of each side's process. Every job's losses are compared, too.
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
RANKS, RATES = (8, 16), ("1e-4", "3e-4", "1e-3", "3e-3", "2e-4", "6e-4", "2e-3", "6e-3")
SIDES = {"one by one": ["hydra/launcher=basic"], "together": ["hydra/launcher=fused"]}


def run(arguments: list[str], scratch: Path) -> dict[str, float]:
    """Wall seconds and peak bytes of a sweep."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with open(scratch / "stderr", "w+") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "sft.train", "-m", *arguments],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit((scratch / "stderr").read_text()[-3000:])
    return {"seconds": seconds, "peak": usage.ru_maxrss * 1024}


def losses(sweep: Path) -> dict[str, list[float]]:
    """The logged losses of each job, by its directory."""
    return {
        path.parent.name: [line["loss"] for line in map(json.loads, path.read_text().splitlines()) if "loss" in line]
        for path in sweep.glob("*/metrics.jsonl")
    }


def measure(base: list[str], steps: list[int], place: Path) -> dict[str, Any]:
    """One round: each side with few steps and with more."""
    found: dict[str, Any] = {}
    for name, launcher in SIDES.items():
        ends = []
        for count in steps:
            directory = place / f"{name.replace(' ', '-')}-{count}"
            ends.append(run([*base, *launcher, f"trainer.max_steps={count}", f"hydra.sweep.dir={directory}"], place))
        found[name] = {
            "steps": ends[1]["seconds"] - ends[0]["seconds"],
            "whole": ends[1]["seconds"],
            "peak": ends[1]["peak"],
            "losses": losses(directory),
        }
    alone, together = (found[name].pop("losses") for name in SIDES)
    found["difference"] = max(
        abs(a - b) / abs(a) for job in alone for a, b in zip(alone[job], together[job], strict=True)
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", default="4,16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    known, more = parser.parse_known_args()
    rates = RATES[: max(1, known.jobs // len(RANKS))]
    base = [
        "experiment=demo", "evaluation=default", "dataset.eval_fraction=0", "dataset.eval_sources.known=null", "dataset.eval_sources.unseen=null",
        "trainer.eval_strategy='no'", "trainer.save_strategy='no'", "callbacks=quiet", "trainer.logging_steps=1",
        f"trainer.per_device_train_batch_size={known.batch}", f"lora.r={','.join(map(str, RANKS))}",
        f"trainer.learning_rate={','.join(rates)}", *more,
    ]  # fmt: skip
    steps = [int(each) for each in known.steps.split(",")]
    rounds = []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(known.rounds):
            place = Path(scratch) / str(number)
            place.mkdir()
            rounds.append(measure(base, steps, place))
            print(f"round {number}: { ({name: round(rounds[-1][name]['steps'], 1) for name in SIDES}) } s", flush=True)
    report(rounds, len(RANKS) * len(rates), steps)
    if known.json:
        known.json.write_text(json.dumps(rounds, indent=1))


def report(rounds: list[dict[str, Any]], jobs: int, steps: list[int]) -> None:
    """The table, and the ratio as the last line."""
    print(f"{jobs} jobs, {steps[1] - steps[0]} steps each")
    print(f"{'':<12} {'steps':>8} {'whole':>8} {'peak GiB':>9}")
    medians = {
        name: {key: statistics.median(each[name][key] for each in rounds) for key in ("steps", "whole", "peak")}
        for name in SIDES
    }
    for name, each in medians.items():
        print(f"{name:<12} {each['steps']:>6.1f} s {each['whole']:>6.1f} s {each['peak'] / 2**30:>9.2f}")
    alone, together = (medians[name] for name in SIDES)
    print(f"losses differ by at most {max(each['difference'] for each in rounds):.1e} of themselves")
    print(
        f"together {alone['steps'] / together['steps']:.2f} times faster in the steps, "
        f"{alone['whole'] / together['whole']:.2f} times as a whole"
    )


if __name__ == "__main__":
    main()
