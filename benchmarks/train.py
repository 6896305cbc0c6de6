"""Training speed of sft, TRL's default, TRL's packing and plain transformers.Trainer, on the same rows.

    python benchmarks/train.py [--data FILE] [--model DIR] [--rows 16,48] [--rounds 3] [--json OUT] [--picture OUT]
                               [--busy N] [--busy-threads T]

Same model, rows, LoRA (r=16, all linear layers), batch of 8 rows (TRL's packing: 2 packs), precision and seed. Every
variant trains in its own process on fewer and on more rows; the difference is the time of the additional rows, so that
imports, loading and tokenizing do not count. Variants alternate, and medians over the rounds are reported. Peak memory
is that of the whole process. With --busy, N other processes compute all the time. The last line has the ratios.
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

from busy import busy

ROOT = Path(__file__).resolve().parents[1]
PEERS = Path(__file__).resolve().parent / "peers.py"
VARIANTS = ("sft", "TRL", "TRL packing", "Trainer")
BATCH, MAX_LENGTH, RATE = 8, 1024, 1e-9  # a rate this small keeps the losses of all rows comparable


def command(variant: str, data: Path, model: str, out: Path) -> list[str]:
    """The command line of one variant for one file of rows; its last line of output has the loss."""
    if variant != "sft":
        return [sys.executable, str(PEERS), variant, str(data), model, str(out), str(BATCH), str(MAX_LENGTH), str(RATE)]
    named = [f"model.name={model}", "model=hub"] if model else []
    return [
        sys.executable, "-m", "sft.train", *named, "lora=r16", "lora.lora_alpha=32", "lora.lora_dropout=0",
        "lora.target_modules=all-linear", "dataset=local", f"dataset.path={data}", f"dataset.max_length={MAX_LENGTH}",
        "dataset.eval_fraction=0", "callbacks=none", "trainer.num_train_epochs=1", f"trainer.learning_rate={RATE}",
        f"trainer.per_device_train_batch_size={BATCH}", "trainer.save_strategy='no'", "seed=0", f"hydra.run.dir={out}",
    ]  # fmt: skip


def timed(arguments: list[str], scratch: Path) -> dict[str, Any]:
    """Wall seconds, CPU seconds and peak bytes of a process, and its output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    with open(scratch / "stdout", "w+") as out, open(scratch / "stderr", "w+") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(arguments, env=environment, stdout=out, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit((scratch / "stderr").read_text()[-3000:])
        out.seek(0)
        return {
            "seconds": seconds,
            "cpu": usage.ru_utime + usage.ru_stime,
            "peak": usage.ru_maxrss * 1024,
            "out": out.read(),
        }


def measure(variant: str, files: dict[int, Path], model: str, scratch: Path, tag: str) -> dict[str, float]:
    """One round of one variant: the time of the additional rows, and the longer run's loss and peak."""
    found = {}
    for count, data in sorted(files.items()):
        out = scratch / f"{variant.replace(' ', '-')}-{count}-{tag}"
        found[count] = timed(command(variant, data, model, out), scratch)
        if variant == "sft":
            found[count]["loss"] = json.loads((out / "metrics.json").read_text())["train_loss"]
        else:
            found[count]["loss"] = float(found[count]["out"].split()[-1])
    few, many = (found[count] for count in sorted(found))
    return {
        "seconds": many["seconds"] - few["seconds"],
        "cpu": many["cpu"] - few["cpu"],
        "first": few["seconds"],
        "peak": many["peak"],
        "loss": many["loss"],
    }


def take_turns(
    variants: list[str], files: dict[int, Path], rounds: int, models: dict[str, str], base: str, scratch: Path
) -> list[dict[str, dict[str, float]]]:
    """Measure each variant once per round, in reverse order every other round.

    Args:
        models: the model of a variant, if it is not `base`.
    """
    found = []
    for number in range(rounds):
        order = variants if number % 2 == 0 else variants[::-1]
        found.append({name: measure(name, files, models.get(name, base), scratch, str(number)) for name in order})
        times = ", ".join(
            f"{name} {found[-1][name]['seconds']:.1f} s ({found[-1][name]['cpu']:.1f} s processor)" for name in variants
        )
        print(f"round {number}: {times}", flush=True)
    return found


def tokens_between(files: dict[int, Path], model: str, scratch: Path) -> tuple[int, str]:
    """Tokens (without padding) of the additional rows, and the directory of the model that ours loads."""
    counts, base = [], ""
    for count, data in sorted(files.items()):
        out = scratch / f"count-{count}"
        timed([*command("sft", data, model, out), "trainer.max_steps=1"], scratch)
        counts.append(json.loads((out / "data_report.json").read_text())["train"]["tokens"])
        base = json.loads((out / "training_info.json").read_text())["model_path"]
    return counts[1] - counts[0], base


def matrix_rates(seconds: float = 2.0) -> dict[str, float]:
    """FLOP/s of a large matrix product with PyTorch in this process, by precision."""
    import torch

    size, found = 1024, {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a = torch.randn(size, size).to(dtype)
        best, until = 0.0, time.perf_counter() + seconds
        while time.perf_counter() < until:
            started = time.perf_counter()
            torch.nn.functional.linear(a, a)
            best = max(best, 2 * size**3 / (time.perf_counter() - started))
        found[name] = best
    return found


def draw(medians: dict[str, dict[str, float]], tokens: int, path: Path) -> None:
    """Plot tokens per second and peak memory as bars."""
    from matplotlib.figure import Figure

    figure = Figure((9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(medians)[::-1]
    for axes, values, label in (
        (left, [tokens / medians[name]["seconds"] for name in names], "tokens per second, without padding"),
        (right, [medians[name]["peak"] / 2**30 for name in names], "peak memory, GiB"),
    ):
        bars = axes.barh(names, values, color=["#2a6fbb" if name == "sft" else "#b5bec8" for name in names])
        axes.bar_label(bars, fmt="%.4g", padding=3)
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.15)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="JSON list of instruction, input, output; default: generated")
    parser.add_argument("--model", default="", help="a local model; default: the one that comes with sft")
    parser.add_argument("--rows", default="16,48", help="rows of the shorter and the longer run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--busy", type=int, default=0, help="other processes that compute alongside every variant")
    parser.add_argument("--busy-threads", type=int, default=1, help="threads of each of them")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    variants = [name for name in VARIANTS if name in options.variants.split(",")]
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        rows = json.loads(options.data.read_text()) if options.data else made_up(max(map(int, options.rows.split(","))))
        files = {count: scratch / f"rows{count}.json" for count in map(int, options.rows.split(","))}
        for count, path in files.items():
            path.write_text(json.dumps(rows[:count]))
        tokens, base = tokens_between(files, options.model, scratch)
        with busy(options.busy, options.busy_threads):
            rounds = take_turns(variants, files, options.rounds, {"sft": options.model}, base, scratch)
    medians = {
        name: {key: statistics.median(each[name][key] for each in rounds) for key in rounds[0][name]}
        for name in variants
    }
    result = {
        "tokens": tokens,
        "medians": medians,
        "rounds": rounds,
        "matrix_rates": matrix_rates(),
        "versions": versions(),
        "processor": processor(),
        "busy": {"processes": options.busy, "threads": options.busy_threads},
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    if options.picture:
        draw(medians, tokens, options.picture)
    report(medians, tokens, result)


def report(medians: dict[str, dict[str, float]], tokens: int, result: dict[str, Any]) -> None:
    """Print the table, and the ratios as the last line."""
    rates = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in result["matrix_rates"].items())
    print(f"{tokens} tokens between; {result['versions']}; {result['processor']}; matrix products: {rates}")
    if result["busy"]["processes"]:
        print(f"beside {result['busy']['processes']} busy processes of {result['busy']['threads']} threads")
    print(f"{'':<12} {'tokens/s':>9} {'seconds':>8} {'cpu s':>7} {'peak GiB':>9} {'loss':>8} {'shorter run':>12}")
    for name, each in medians.items():
        print(
            f"{name:<12} {tokens / each['seconds']:>9.1f} {each['seconds']:>8.1f} {each['cpu']:>7.1f} "
            f"{each['peak'] / 2**30:>9.2f} {each['loss']:>8.4f} {each['first']:>10.1f} s"
        )
    ours = medians.get("sft")
    if ours:
        others = [name for name in medians if name != "sft"]
        speed = ", ".join(f"{medians[name]['seconds'] / ours['seconds']:.2f} x {name}" for name in others)
        memory = ", ".join(f"{ours['peak'] / medians[name]['peak']:.2f} of {name}" for name in others)
        print(f"ratios: speed {speed}; peak memory {memory}")


def made_up(count: int) -> list[dict[str, str]]:
    """Instruction rows with the length distribution of instruction data (log-normal, median near 90 words)."""
    import random

    draw = random.Random(0)
    words = ["the", "a", "model", "learns", "to", "write", "short", "answers", "about", "rivers", "and", "people"]

    def text(median: float) -> str:
        return " ".join(draw.choices(words, k=max(3, int(draw.lognormvariate(0, 0.8) * median))))

    return [{"instruction": text(14), "input": "", "output": text(80)} for _ in range(count)]


def processor() -> str:
    """The CPU's name and how many of its cores this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown processor"
    )
    return f"{len(os.sched_getaffinity(0))} cores of {name}"


def versions() -> dict[str, str]:
    from importlib import metadata

    return {name: metadata.version(name) for name in ("torch", "transformers", "peft", "trl")}


if __name__ == "__main__":
    main()
