"""Runs that are killed at random moments and resumed until done, each compared with an uninterrupted one.

    python tests/soak/soak.py --rounds 50 --jobs 2

A round starts `python -m sft.train` in a layout and kills the process with SIGKILL at a random moment: some time after
a new checkpoint, while one is being written, in an evaluation, after the last step, or while weights are written and
answers are generated at the end. It starts the same command again, several times; the last start may finish. Its
weights must be byte-identical to those of an uninterrupted run, and its logged losses and final metrics equal. Prints a
table; exits with 1 if any round differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 600.0  # seconds for one start; beyond it the round has failed

STEPS, EVERY = 60, 20  # of a run, and between its evaluations
DURING = ("step", "saving", "evaluation")  # moments of a kill, any number of times in a round
AT_THE_END = ("evaluation", "last step", "end")  # and of its last one

COMMON = [
    "model=tiny",
    "model.dtype=float32",
    "dataset=tickets",
    "dataset.sources.tickets.generator.rows=60",
    "dataset.eval_sources=null",
    "dataset.eval_fraction=0.1",
    "dataset.num_proc=0",
    "trainer.per_device_train_batch_size=4",
    f"trainer.max_steps={STEPS}",
    "trainer.save_strategy=steps",
    "trainer.save_steps=3",
    "trainer.save_total_limit=2",
    "trainer.eval_strategy=steps",
    f"trainer.eval_steps={EVERY}",
    "trainer.logging_steps=2",
    "callbacks=quiet",
    "evaluation=generate",
    "evaluation.max_samples=4",
    "evaluation.max_new_tokens=8",
]
ADAPTER = ["lora=r8", "lora.lora_dropout=0.1"]
SECOND = "+dataset.sources.more={generator: {_target_: sft.data.tickets.generate, part: train, rows: 30, seed: 7}, weight: 0.4}"
LAYOUTS = {
    "padding-free": ADAPTER,
    "padded": [*ADAPTER, "model.attn_implementation=sdpa"],
    "packed": [*ADAPTER, "dataset.packing=true", "dataset.max_length=512", "trainer.per_device_train_batch_size=2"],
    "accumulated": [*ADAPTER, "trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=3"],
    "mixture": [*ADAPTER, SECOND, "dataset.sources.tickets.weight=0.6"],
    "qlora nf4": [*ADAPTER, "quant=nf4"],
    "full": ["lora=none", "trainer.learning_rate=1e-3", "trainer.neftune_noise_alpha=5"],
}


@dataclass
class Tally:
    """What happened to a layout's rounds."""

    rounds: int = 0
    kills: int = 0
    saving: int = 0
    evaluating: int = 0
    ending: int = 0
    torn: int = 0
    identical: int = 0
    faults: list[str] = field(default_factory=list)


@dataclass
class Soak:
    """One soak: its directory, its runs without interruption, its counts."""

    home: Path
    tallies: dict[str, Tally]
    lock: threading.Lock = field(default_factory=threading.Lock)
    living: set[subprocess.Popen[bytes]] = field(default_factory=set)

    def start(self, layout: str, run: Path) -> subprocess.Popen[bytes]:
        """The layout's command in a directory, in a process group of its own."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "sft.train", *COMMON, *LAYOUTS[layout], f"hydra.run.dir={run}"]
        with open(run.with_suffix(".err"), "ab") as errors:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
            )
        with self.lock:
            self.living.add(process)
        return process

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a process with all it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        with self.lock:
            self.living.discard(process)

    def finish(self, layout: str, run: Path) -> str | None:
        """Let a run come to its end; why it did not, or None."""
        process = self.start(layout, run)
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            return f"{run}: no end after {PATIENCE:.0f} s"
        finally:
            self.end(process)
        return None if code == 0 else f"{run}: exit code {code}, see {run.with_suffix('.err')}"

    def kill_once(self, layout: str, run: Path, draw: random.Random, moment: str) -> bool:
        """Start, wait for the moment, kill; False where the run ended first."""
        had = newest(run)
        process = self.start(layout, run)
        until = time.monotonic() + PATIENCE

        def wait(holds: Callable[[], object]) -> None:
            while process.poll() is None and not holds() and time.monotonic() < until:
                time.sleep(0.0005)

        if moment in ("step", "saving"):
            wait(lambda: newest(run) > had or newest(run) >= STEPS)
            time.sleep(draw.uniform(0.0, 0.3))
        if moment == "saving":
            wait(lambda: half_written(run))
            time.sleep(draw.uniform(0.0, 0.01))
        elif moment == "evaluation":
            wait(lambda: evaluating(run) or newest(run) >= STEPS)
            time.sleep(draw.uniform(0.0, 0.05))
        elif moment == "last step":
            wait(lambda: newest(run) >= STEPS)
            time.sleep(draw.uniform(0.0, 0.2))
        elif moment == "end":
            wait(lambda: list(run.glob(".tmp-*-adapter")) + list(run.glob("*.tmp-*model*")) or weights(run))
            time.sleep(draw.uniform(0.0, 0.3))
        ended = process.poll() is not None
        self.end(process)
        if not ended:
            with self.lock:
                tally = self.tallies[layout]
                tally.kills += 1
                tally.saving += bool(half_written(run))
                tally.evaluating += moment == "evaluation"
                tally.ending += moment in ("last step", "end")
        return not ended

    def round(self, number: int, layout: str, seed: int) -> None:
        """One round: kills, the end, the comparison."""
        draw, run = random.Random(f"{seed} {number}"), self.home / f"round-{number}"
        moments = [draw.choice(DURING) for _ in range(draw.randint(1, 3))] + [draw.choice(AT_THE_END)]
        for moment in moments:
            if not self.kill_once(layout, run, draw, moment):
                break
        fault = self.finish(layout, run) or difference(self.home / f"whole-{layout}", run)
        tally = self.tallies[layout]
        with self.lock:
            tally.rounds += 1
            tally.torn += torn(run)
            tally.identical += fault is None
            if fault:
                tally.faults.append(fault)
        print(f"round {number}: {layout}: {fault or 'identical'}", file=sys.stderr, flush=True)
        if fault is None:
            shutil.rmtree(run)


def newest(run: Path) -> int:
    """The step of the newest checkpoint that has its name, 0 for none."""
    return max((int(path.name.split("-")[1]) for path in run.glob("checkpoints/checkpoint-*")), default=0)


def evaluating(run: Path) -> bool:
    """Whether the last logged line is of a step that is evaluated next."""
    try:
        line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    except (OSError, IndexError, ValueError):
        return False
    return "loss" in line and line.get("step", 1) % EVERY == 0


def half_written(run: Path) -> list[Path]:
    """Checkpoints on their way in or out."""
    return list(run.glob("checkpoints/.tmp-*"))


def torn(run: Path) -> int:
    """How often a resumed start passed a checkpoint over."""
    log = run / "train.log"
    return len(re.findall(r"checkpoint-\d+ is skipped", log.read_text(errors="replace"))) if log.exists() else 0


def weights(run: Path) -> dict[str, bytes]:
    """The bytes of the trained weights by file."""
    files = [path for name in ("adapter", "model") for path in (run / name).glob("*.safetensors")]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in files}


def logged(run: Path) -> list[dict[str, float]]:
    """Step, loss, evaluation loss and gradient norm of every logged line."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = ("step", "loss", "grad_norm", "learning_rate", "eval_loss")
    return [{name: line[name] for name in names if name in line} for line in lines if "train_runtime" not in line]


def figures(run: Path) -> dict[str, float]:
    """metrics.json."""
    found: dict[str, float] = json.loads((run / "metrics.json").read_text())
    return found


FIGURES = ("status", "steps", "epochs", "train_loss", "eval_loss", "eval_exact_match", "total_tokens", "trained_tokens")


def difference(whole: Path, run: Path) -> str | None:
    """What a resumed run has otherwise than the one left alone, None for nothing."""
    first, second = weights(whole), weights(run)
    if not first or first.keys() != second.keys():
        return f"{run}: weights {sorted(second)} where {sorted(first)} were wanted"
    for name in first:
        if first[name] != second[name]:
            return f"{run}: {name} has other bytes"
    for one, other in zip(logged(whole), logged(run), strict=False):
        if one != other:
            return f"{run}: logged {other} where {one} was wanted"
    one, other = ({key: value for key, value in figures(each).items() if key in FIGURES} for each in (whole, run))
    if one != other:
        return f"{run}: {other} where {one} was wanted"
    same = len(logged(whole)) == len(logged(run))
    return None if same else f"{run}: {len(logged(run))} lines logged where {len(logged(whole))} were wanted"


def table(tallies: dict[str, Tally]) -> str:
    """The counts as Markdown."""
    lines = [
        "| layout | rounds | kills | while saving | in evaluations | after the last step | incomplete checkpoints | identical |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    counts = ("rounds", "kills", "saving", "evaluating", "ending", "torn", "identical")
    total = Tally()
    for tally in tallies.values():
        for count in counts:
            setattr(total, count, getattr(total, count) + getattr(tally, count))
    for name, tally in [*tallies.items(), ("all", total)]:
        lines.append(f"| {name} | " + " | ".join(str(getattr(tally, count)) for count in counts) + " |")
    return "\n".join(lines)


def machine() -> str:
    """The machine's size in a line."""
    cpu = (
        re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if Path("/proc/cpuinfo").exists() else None
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{len(os.sched_getaffinity(0))} cores of {cpu[1] if cpu else platform.processor()}, {memory:.0f} GiB, {platform.system()}"


def main() -> int:
    """Run the soak and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=2, help="rounds at the same time")
    parser.add_argument("--seed", type=int, default=0, help="decides when is killed")
    parser.add_argument("--dir", type=Path, help="where the runs go; a temporary directory, removed at the end")
    options = parser.parse_args()
    began = time.monotonic()
    home = (options.dir or Path(tempfile.mkdtemp(prefix="sft-soak-"))).absolute()
    home.mkdir(parents=True, exist_ok=True)
    layouts = list(LAYOUTS)[: options.rounds]
    soak = Soak(home, {layout: Tally() for layout in layouts})
    try:
        with ThreadPoolExecutor(options.jobs) as pool:
            failed = [f for f in pool.map(lambda layout: soak.finish(layout, home / f"whole-{layout}"), layouts) if f]
            if not failed:
                rounds = ((number, layouts[number % len(layouts)], options.seed) for number in range(options.rounds))
                list(pool.map(lambda arguments: soak.round(*arguments), rounds))
    finally:
        for process in list(soak.living):
            soak.end(process)
    faults = failed + [fault for tally in soak.tallies.values() for fault in tally.faults]
    command = shlex.join(["python", "tests/soak/soak.py", *sys.argv[1:]])
    print(f"{command}\n{machine()}, {time.monotonic() - began:.0f} s\n\n{table(soak.tallies)}")
    for fault in faults:
        print(fault)
    if options.dir is None and not faults:
        shutil.rmtree(home)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
