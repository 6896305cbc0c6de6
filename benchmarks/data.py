"""Rows per second from files to labelled, packed tokens: sft.data against TRL's SFTTrainer, on the same rows.

    python benchmarks/data.py FILE [FILE ...] [--rows 50000] [--processes 2] [--rounds 1] [--json OUT]

The files hold instruction/input/output rows or ShareGPT conversations; their turns are recombined into distinct
multi-turn rows. Each side runs in its own process with a cold cache. Ours is timed starting from the file; TRL's from
the loaded dataset (its reading time is printed separately). Both train only assistant turns, with the same chat
template, and pack by best-fit decreasing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MAX_LENGTH = 1024
# one template for both: TRL needs the generation marks
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}\n"
    "{% else %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def turns_of(paths: list[str]) -> list[tuple[str, str]]:
    """(question, answer) pairs of all files; three of them fit MAX_LENGTH, so that neither side drops or truncates."""
    pairs = []
    for path in paths:
        for row in json.loads(Path(path).read_text()):
            if "conversations" in row:
                values = [(turn["from"], turn["value"].strip()) for turn in row["conversations"]]
                pairs += [
                    (asked, said)
                    for (one, asked), (two, said) in pairwise(values)
                    if (one, two) == ("human", "gpt") and asked and said
                ]
            else:
                asked = "\n".join(part for part in (row["instruction"], row.get("input", "")) if part).strip()
                pairs.append((asked, row["output"].strip()))
    return [pair for pair in pairs if all(pair) and len("".join(pair)) < MAX_LENGTH]


def write_rows(pairs: list[tuple[str, str]], count: int, path: Path, unlike: bool = False) -> None:
    """Write distinct conversations of one to three turns, sampled from the pairs; `unlike` numbers every turn, so none
    recurs."""
    rng, seen = random.Random(0), set()
    with path.open("w") as file:
        while len(seen) < count:
            chosen = tuple(rng.randrange(len(pairs)) for _ in range(rng.choice((1, 2, 2, 3))))
            if chosen in seen:
                continue
            seen.add(chosen)
            messages = [
                {"role": role, "content": f"{text} ({len(seen)})" if unlike else text}
                for index in chosen
                for role, text in zip(("user", "assistant"), pairs[index], strict=True)
            ]
            file.write(json.dumps({"messages": messages}) + "\n")


def cpu_seconds() -> float:
    """CPU seconds of this process and its finished children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def ours(rows: Path, tokenizer: str, processes: int) -> dict[str, Any]:
    """Prepare with sft; seconds and results."""
    from transformers import AutoTokenizer

    from sft.data.labels.encoder import Encoder
    from sft.data.pipeline import prepare
    from sft.data.spec import Dataset
    from sft.template.bind import bind
    from sft.template.spec import Template

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    dataset = Dataset(
        path=str(rows), max_length=MAX_LENGTH, packing=True, eval_fraction=0, num_proc=processes, max_dropped=0.01
    )
    started, cpu = time.perf_counter(), cpu_seconds()
    encoder = Encoder(bind(Template(name="file", text=TEMPLATE), loaded), loaded)
    prepared = prepare(dataset, encoder, seed=0, cache_root=Path(tempfile.mkdtemp()))
    seconds, cpu = time.perf_counter() - started, cpu_seconds() - cpu
    train = prepared.report["train"]
    tokens = {"tokens": train["tokens"], "trained": train["trained_tokens"]}
    return {"seconds": seconds, "cpu": cpu, "packs": train["rows"], **tokens}


def peer(rows: Path, tokenizer: str, processes: int) -> dict[str, Any]:
    """Prepare with TRL; seconds of only its preparation, and results."""
    import torch
    from datasets import disable_progress_bars, load_dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    started = time.perf_counter()
    data = load_dataset("json", data_files=str(rows), split="train", cache_dir=tempfile.mkdtemp())
    reading = time.perf_counter() - started
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    loaded.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(loaded), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    took = []
    prepare = SFTTrainer._prepare_dataset

    def timed(*args: Any, **kwargs: Any) -> Any:
        began, cpu = time.perf_counter(), cpu_seconds()
        result = prepare(*args, **kwargs)
        took.append((time.perf_counter() - began, cpu_seconds() - cpu))
        return result

    SFTTrainer._prepare_dataset = timed
    with torch.device("cpu"):
        model = LlamaForCausalLM(config)
    args = SFTConfig(
        tempfile.mkdtemp(),
        max_length=MAX_LENGTH,
        packing=True,
        assistant_only_loss=True,
        dataset_num_proc=processes,
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    trainer = SFTTrainer(model, args=args, train_dataset=data, processing_class=loaded)
    train = trainer.train_dataset
    return {
        "seconds": took[0][0],
        "cpu": took[0][1],
        "reading": reading,
        "packs": len(train),
        "tokens": sum(map(len, train["input_ids"])),
        "trained": sum(label != -100 for labels in train["labels"] for label in labels),
    }


def measured(side: str, rows: Path, tokenizer: str, processes: int) -> dict[str, Any]:
    """Run one side in its own process."""
    command = [
        sys.executable,
        __file__,
        "--side",
        side,
        str(rows),
        "--tokenizer",
        tokenizer,
        "--processes",
        str(processes),
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": tempfile.mkdtemp(), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--unlike", action="store_true", help="no turn in two rows: sft tokenizes shared ones once")
    parser.add_argument("--tokenizer", help="a directory or hub id; default: the embedded model's")
    parser.add_argument("--json", help="write the results here")
    parser.add_argument("--side", choices=("ours", "peer"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps((ours if args.side == "ours" else peer)(Path(args.files[0]), args.tokenizer, args.processes)))
        return
    tokenizer = args.tokenizer or _embedded()
    rows = Path(tempfile.mkdtemp()) / "rows.jsonl"
    write_rows(turns_of(args.files), args.rows, rows, args.unlike)
    print(f"{args.rows:,} rows, {rows.stat().st_size / 1e6:.0f} MB, {args.processes} processes each", flush=True)
    results: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    for number in range(args.rounds):
        for side, name in (("ours", "sft"), ("peer", "TRL")):
            result = measured(side, rows, tokenizer, args.processes)
            results[side].append(result)
            reading = f" (and {result['reading']:.1f} s to read)" if "reading" in result else ""
            print(
                f"round {number + 1}: {name} {result['seconds']:.1f} s, {args.rows / result['seconds']:,.0f} rows/s, "
                f"{result['cpu']:.1f} s of processor{reading}; "
                f"{result['packs']:,} packs, {result['tokens']:,} tokens, {result['trained']:,} trained",
                flush=True,
            )
    ratio = {
        key: statistics.median(each[key] for each in results["peer"])
        / statistics.median(each[key] for each in results["ours"])
        for key in ("seconds", "cpu")
    }
    print(f"ratio {ratio['seconds']:.2f} by the clock (2 wanted), {ratio['cpu']:.2f} by processor time")
    if args.json:
        Path(args.json).write_text(json.dumps({"rows": args.rows, "processes": args.processes, **results}, indent=1))


def _embedded() -> str:
    """The directory of the model that comes with the project."""
    sys.path.insert(0, str(ROOT))
    from sft.model.sources.offline import locate_embedded

    return str(locate_embedded())


if __name__ == "__main__":
    main()
