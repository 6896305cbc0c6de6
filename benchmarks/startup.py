"""Seconds from the command to the end of the first step: sft, a TRL script, and only the imports of each, alternating.

    python benchmarks/startup.py [--model DIR] [--rounds 5] [--json OUT]

The token cache is warm, one step of one row is trained, and the process is timed up to the end of that step. The last
line has the ratios.
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
IMPORTS = "import torch, transformers, peft, datasets; from transformers import Trainer, AutoModelForCausalLM; from peft import LoraConfig"
TRL_IMPORTS = "import torch; from datasets import load_dataset; from peft import LoraConfig; from transformers import AutoModelForCausalLM; from trl import SFTConfig, SFTTrainer"
STEP = "print('first step', flush=True)"
TRL = """
import sys, torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

class First(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        print("first step", flush=True)

data, model, out = sys.argv[1:4]
rows = load_dataset("json", data_files=data, split="train")
args = SFTConfig(out, per_device_train_batch_size=1, max_steps=1, max_length=1024, save_strategy="no", report_to="none",
                 disable_tqdm=True, use_cpu=not torch.cuda.is_available(), gradient_checkpointing=False)
SFTTrainer(AutoModelForCausalLM.from_pretrained(model), args=args, train_dataset=rows, callbacks=[First()],
           processing_class=AutoTokenizer.from_pretrained(model),
           peft_config=LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")).train()
"""


def until(arguments: list[str], sign: str) -> float:
    """Seconds until a process prints a line with `sign`; waits for its end, so that the next one has the machine to
    itself."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    started, found = time.perf_counter(), None
    with subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if found is None and sign in line:
                found = time.perf_counter() - started
    if process.returncode or found is None:
        sys.exit("".join(lines)[-3000:])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="", help="a local model; default: the one that comes with sft")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        data = scratch / "rows.json"
        row = {"prompt": [{"role": "user", "content": "2 + 2?"}], "completion": [{"role": "assistant", "content": "4"}]}
        data.write_text(json.dumps([row] * 4))
        model = ["model=hub", f"model.name={options.model}"] if options.model else []
        base = [
            sys.executable, "-m", "sft.train", *model, "dataset=local", f"dataset.path={data}", "dataset.eval_fraction=0",
            "callbacks=none", "trainer.max_steps=1", "trainer.per_device_train_batch_size=1", "trainer.save_strategy='no'",
        ]  # fmt: skip
        until([*base, f"hydra.run.dir={scratch}/warm"], "first step after")
        path = json.loads((scratch / "warm/training_info.json").read_text())["model_path"]
        rounds: list[dict[str, float]] = []
        for number in range(options.rounds):
            commands: dict[str, tuple[list[str], str]] = {
                "imports": ([sys.executable, "-c", f"{IMPORTS}; {STEP}"], "first step"),
                "sft": ([*base, f"hydra.run.dir={scratch}/{number}"], "first step after"),
                "TRL imports": ([sys.executable, "-c", f"{TRL_IMPORTS}; {STEP}"], "first step"),
                "TRL": ([sys.executable, "-c", TRL, str(data), path, f"{scratch}/trl"], "first step"),
                "finished run": ([*base, f"hydra.run.dir={scratch}/warm"], "is finished"),
            }
            rounds.append({name: until(*command) for name, command in commands.items()})
            print(f"round {number}: " + ", ".join(f"{name} {s:.2f} s" for name, s in rounds[-1].items()), flush=True)
    report(rounds)
    if options.json:
        options.json.write_text(json.dumps(rounds, indent=1))


def report(rounds: list[dict[str, Any]]) -> None:
    """Print medians, and the ratios as the last line."""
    median = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    for name, seconds in median.items():
        print(f"{name:<14} {seconds:6.2f} s")
    print(
        f"ratios: sft {median['sft'] / median['imports']:.2f} of its imports, "
        f"TRL {median['TRL'] / median['TRL imports']:.2f} of its own; sft {median['sft'] / median['TRL']:.2f} of TRL"
    )


if __name__ == "__main__":
    main()
