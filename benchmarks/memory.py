"""The estimate and the measured peak of two real steps on a full batch, each configuration in its own process.

    python benchmarks/memory.py [--method lora qlora full] [--length 256 1024] [--batch 1 4] [--checkpointing false true]

Prints each row of a Markdown table as soon as it is measured, and the median and the largest error at the end.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys

METHODS = {"lora": ["lora=r16"], "qlora": ["lora=r16", "quant=nf4"], "full": ["lora=none"]}


def measure(method: str, length: int, batch: int, checkpointing: str, more: list[str]) -> tuple[int, int]:
    """The (predicted, measured) peak in bytes."""
    command = [sys.executable, "-m", "sft.estimate", "measure=true", "json=true", *METHODS[method]]
    command += [f"dataset.max_length={length}", f"trainer.per_device_train_batch_size={batch}"]
    command += [
        f"trainer.gradient_checkpointing={checkpointing}",
        "dataset.eval_sources=null",
        "dataset.eval_fraction=0",
    ]
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found = json.loads(done.stdout)
    return found["estimate"]["peak"], found["measured"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--length", nargs="+", type=int, default=[256, 1024])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--checkpointing", nargs="+", choices=["false", "true"], default=["false", "true"])
    parser.add_argument("overrides", nargs="*", help="overrides for sft.estimate, after --")
    asked = parser.parse_args()
    print(
        "| method | length | batch | checkpointing | predicted MiB | measured MiB | error |\n|---|--:|--:|---|--:|--:|--:|"
    )
    errors = []
    for length, batch, method, on in itertools.product(asked.length, asked.batch, asked.method, asked.checkpointing):
        predicted, measured = measure(method, length, batch, on, asked.overrides)
        errors.append(predicted / measured - 1)
        shown = "on" if on == "true" else "off"
        sizes = f"{predicted / 2**20:,.0f} | {measured / 2**20:,.0f}"
        print(f"| {method} | {length} | {batch} | {shown} | {sizes} | {errors[-1]:+.1%} |", flush=True)
    sizes_of_errors = [abs(error) for error in errors]
    print(f"\nmedian error {statistics.median(sizes_of_errors):.1%}, largest {max(sizes_of_errors):.1%}")


if __name__ == "__main__":
    main()
