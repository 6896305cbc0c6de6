"""Training speed on one GPU, with no network and no downloads: models with random weights, built on the device.

    python benchmarks/gpu.py [--shapes qwen3-0.6b,...] [--methods lora,qlora,full] [--lengths 512,2048,8192]
                             [--variants sft,sft padded,Trainer,TRL,TRL packing,...] [--rounds 3] [--json OUT]
    python benchmarks/gpu.py --smoke     # tiny shapes, on whatever device there is

A copy of the checkout with torch, transformers, peft, hydra-core and omegaconf is enough; bitsandbytes is needed for
qlora and trl for its variants, which are skipped if they are not installed. Row lengths follow instruction data
(log-normal, truncated at the given length), and two thirds of each row are a trained answer. Each variant trains a few
steps on the same rows after a warm-up, in its own process; the results are tokens per second (without padding), model
FLOPs utilization and peak memory.
"""

from __future__ import annotations

import argparse
import importlib.util
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
sys.path.insert(0, str(ROOT))

# vocabulary, hidden size, inner size, layers, heads, key and value heads, head dimension, tied embeddings
SHAPES = {
    "qwen3-0.6b": ("qwen3", 151936, 1024, 3072, 28, 16, 8, 128, True),
    "llama3.2-1b": ("llama", 128256, 2048, 8192, 16, 32, 8, 64, True),
    "qwen3-8b": ("qwen3", 151936, 4096, 12288, 36, 32, 8, 128, False),
    "tiny": ("llama", 1024, 64, 128, 2, 4, 2, 16, True),
}
VARIANTS = ("sft", "sft padded", "Trainer", "TRL", "TRL packing", "TRL padding-free")
MEDIAN, SPREAD = (
    0.25,
    0.9,
)  # of the row lengths: the median as a fraction of the given length, sigma of its logarithm
WARM = 2  # steps before the clock starts


def model_config(shape: str, attention: str) -> Any:
    """The model config of a shape."""
    from transformers import LlamaConfig, Qwen3Config

    kind, vocabulary, hidden, inner, layers, heads, shared, dimension, tied = SHAPES[shape]
    return {"qwen3": Qwen3Config, "llama": LlamaConfig}[kind](
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=shared, head_dim=dimension, tie_word_embeddings=tied,
        max_position_embeddings=32768, attn_implementation=attention, use_cache=False,
        bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip


def build_model(shape: str, method: str, attention: str, device: str) -> Any:
    """Random weights on the device: bf16 with a LoRA adapter, 4-bit with one, or bf16 with all weights trained."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(model_config(shape, attention), dtype=torch.bfloat16)
    if method == "full":
        return model
    if method == "qlora":
        quantize(model, device)
    model.requires_grad_(False)
    targets = "all-linear"
    return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM"))


def quantize(model: Any, device: str) -> None:
    """Quantize every linear layer except the output layer to nf4, in place."""
    import bitsandbytes as bnb
    import torch

    names = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in n]
    for name in names:
        parent, _, leaf = name.rpartition(".")
        owner, linear = model.get_submodule(parent), model.get_submodule(name)
        four = bnb.nn.Linear4bit(
            linear.in_features, linear.out_features, bias=linear.bias is not None,
            compute_dtype=torch.bfloat16, quant_type="nf4",
        )  # fmt: skip
        four.weight = bnb.nn.Params4bit(linear.weight.data.to("cpu"), requires_grad=False, quant_type="nf4")
        four.support_avx512bf16_for_cpu = False
        setattr(owner, leaf, four.to(device))
    model.is_loaded_in_4bit = model.is_quantized = True


def draw_rows(length: int, count: int, vocabulary: int) -> list[dict[str, Any]]:
    """Token ids and labels of rows with the lengths of instruction data."""
    import numpy as np

    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(np.log(MEDIAN * length), SPREAD, count), 16, length).astype(int)
    rows = []
    for size in lengths.tolist():
        ids = draw.integers(1, vocabulary, size).tolist()
        asked = max(1, size // 3)
        rows.append(
            {"input_ids": ids, "labels": [-100] * asked + ids[asked:], "lengths": [size], "source": "drawn", "row": 1}
        )
    return rows


class Loop:
    """A plain training loop with the same optimizer and clipping for every variant; batches and loss are the
    variant's."""

    def __init__(self, model: Any, device: str) -> None:
        import torch

        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.model, self.device, self.trained = model, device, trained
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def step(self, batch: dict[str, Any], loss_of: Any) -> float:
        """Make one optimizer step; return the loss."""
        import torch

        inputs = {key: value.to(self.device) if torch.is_tensor(value) else value for key, value in batch.items()}
        with torch.autocast(torch.device(self.device).type, torch.bfloat16):
            loss = loss_of(inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


def ours(
    model: Any, rows: list[dict[str, Any]], batch: int, device: str, padded: bool
) -> tuple[list[float], list[float]]:
    """Seconds and losses of the steps with sft's batches, attention and loss."""
    from sft.data.batches.collate import FlatCollator, PaddedCollator, split_batch
    from sft.kernels.attention import VARLEN, register
    from sft.kernels.cross_entropy import summed_loss
    from sft.model.head import output_layer, supports_logits_to_keep

    register()
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.set_attn_implementation("sdpa" if padded else VARLEN)
    collate = PaddedCollator(0) if padded else FlatCollator()
    positions, head, loop = supports_logits_to_keep(model), output_layer(model), Loop(model, device)

    def loss_of(inputs: dict[str, Any]) -> Any:
        total, _ = summed_loss(model, inputs, positions, head)
        return total / (inputs["shift_labels"] != -100).sum()

    parts = [split_batch(collate(rows[at : at + batch]))[0] for at in range(0, len(rows), batch)]
    return clocked(parts, lambda part: loop.step(part, loss_of), device)


def plain(model: Any, rows: list[dict[str, Any]], batch: int, device: str) -> tuple[list[float], list[float]]:
    """The same with transformers' own loss over padded batches."""
    from sft.data.batches.collate import PaddedCollator, split_batch

    loop, collate = Loop(model, device), PaddedCollator(0)
    parts = [split_batch(collate(rows[at : at + batch]))[0] for at in range(0, len(rows), batch)]
    parts = [{key: part[key] for key in ("input_ids", "attention_mask", "labels")} for part in parts]
    return clocked(parts, lambda part: loop.step(part, lambda inputs: model(**inputs).loss), device)


def clocked(parts: list[Any], step: Any, device: str) -> tuple[list[float], list[float]]:
    """Seconds and loss of each step, with the device synchronized."""
    import torch

    seconds, losses = [], []
    for part in parts:
        started = time.perf_counter()
        losses.append(step(part))
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds, losses


def trl(
    model: Any, rows: list[dict[str, Any]], batch: int, length: int, device: str, kind: str
) -> tuple[list[float], list[float]]:
    """TRL's SFTTrainer on the same tokens, timed by us around each optimizer step."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1}, unk_token="<unk>")),
        pad_token="<pad>", eos_token="<pad>", unk_token="<unk>",
    )  # fmt: skip
    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - self.started)

    packing, free = kind == "TRL packing", kind == "TRL padding-free"
    mean = sum(len(row["input_ids"]) for row in rows) / len(rows)
    size = max(1, round(batch * mean / length)) if packing else batch
    arguments = SFTConfig(
        tempfile.mkdtemp(), per_device_train_batch_size=size, num_train_epochs=1, bf16=True, use_cpu=device == "cpu",
        learning_rate=1e-5, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, seed=0,
        max_length=None if free else length, packing=packing, padding_free=free, gradient_checkpointing=False,
        optim="adamw_torch_fused", train_sampling_strategy="sequential",
    )  # fmt: skip
    data = Dataset.from_list([{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows])
    trainer = SFTTrainer(model, args=arguments, train_dataset=data, processing_class=tokenizer, callbacks=[Clock()])
    trainer.train()
    return seconds, [line["loss"] for line in trainer.state.log_history if "loss" in line]


def attention_of(variant: str, device: str) -> str:
    """The best attention available to the variant; sft's is chosen later."""
    flash = device == "cuda" and importlib.util.find_spec("flash_attn") is not None
    return "flash_attention_2" if flash and variant.startswith("TRL ") else "sdpa"


def one(options: argparse.Namespace) -> dict[str, Any]:
    """Run one variant in this process."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape, method, variant, length = options.shape, options.method, options.variant, options.length
    batch = max(1, options.batch_tokens // max(1, int(MEDIAN * length * 1.4)))
    count = batch * (options.steps + WARM)
    rows = draw_rows(length, count, SHAPES[shape][1])
    model = build_model(shape, method, attention_of(variant, device), device).train()
    from sft.training.flops import attention_pairs, flops_per_token, peak_flops

    flops = flops_per_token(model)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    if variant.startswith("sft"):
        seconds, losses = ours(model, rows, batch, device, padded=variant == "sft padded")
    elif variant == "Trainer":
        seconds, losses = plain(model, rows, batch, device)
    else:
        seconds, losses = trl(model, rows, batch, length, device, variant)
    share = max(0.0, 1 - WARM / len(seconds))  # per row: those of a pack are not known separately
    sizes = [len(row["input_ids"]) for row in rows[WARM * batch :]] if variant != "TRL packing" else None
    sizes = sizes or [len(row["input_ids"]) for row in rows]
    part = 1.0 if variant != "TRL packing" else share
    tokens, spent = sum(sizes) * part, sum(seconds[WARM:]) or sum(seconds)
    trained = sum(size - max(1, size // 3) for size in sizes) * part
    rate = peak_flops() or matrix_rate(device)
    needed = flops.operations(int(tokens), int(trained), attention_pairs(sizes) * part) if flops else None
    return {
        "tokens_per_second": tokens / spent,
        "utilization": needed / spent / rate if needed else None,
        "peak_gib": (torch.cuda.max_memory_allocated() / 2**30) if device == "cuda" else None,
        "loss": statistics.fmean(losses),
        "batch": batch,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }


def matrix_rate(device: str) -> float:
    """FLOP/s of a large product if no data sheet is known: the better of bf16 and fp32."""
    import torch

    size, best = 8192 if device == "cuda" else 512, 0.0
    for dtype in (torch.bfloat16, torch.float32):
        a = torch.randn(size, size, device=device).to(dtype)
        for _ in range(4):
            started = time.perf_counter()
            torch.nn.functional.linear(a, a)
            if device == "cuda":
                torch.cuda.synchronize()
            best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def available(variants: list[str], methods: list[str]) -> tuple[list[str], list[str]]:
    """The variants and methods whose libraries are installed; the others are printed."""
    has_trl, has_bnb = (importlib.util.find_spec(name) is not None for name in ("trl", "bitsandbytes"))
    for missing, name in ((not has_trl, "trl"), (not has_bnb, "bitsandbytes")):
        if missing:
            print(f"{name} is not installed; skipping what needs it", file=sys.stderr)
    return (
        [variant for variant in variants if has_trl or not variant.startswith("TRL")],
        [method for method in methods if has_bnb or method != "qlora"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", default="qwen3-0.6b,llama3.2-1b,qwen3-8b")
    parser.add_argument("--methods", default="lora,qlora,full")
    parser.add_argument("--lengths", default="512,1024,2048,4096,8192")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--batch-tokens", type=int, default=16384, help="approximate tokens per batch, without padding")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--smoke", action="store_true")
    for name in ("--shape", "--method", "--variant"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(one(options)))
        return
    if options.smoke:
        options.shapes, options.lengths, options.batch_tokens, options.steps = "tiny", "64", 256, 2
    variants, methods = available(options.variants.split(","), options.methods.split(","))
    cases = [(s, m, int(n)) for s in options.shapes.split(",") for m in methods for n in options.lengths.split(",")]
    results = []
    for shape, method, length in cases:
        found: dict[str, list[dict[str, Any]]] = {}
        for number in range(options.rounds):
            for variant in variants if number % 2 == 0 else variants[::-1]:
                found.setdefault(variant, []).append(alone(options, shape, method, length, variant))
        results.append({"shape": shape, "method": method, "length": length, "variants": found})
        report(results[-1])
        if options.json:  # after every case, so that an interrupted run keeps its results
            options.json.write_text(json.dumps(results, indent=1))
    print(ratios(results))


def alone(options: argparse.Namespace, shape: str, method: str, length: int, variant: str) -> dict[str, Any]:
    """Run a variant in its own process; if it failed (mostly out of memory), return the error."""
    command = [
        sys.executable, __file__, "--shape", shape, "--method", method, "--length", str(length), "--variant", variant,
        "--batch-tokens", str(options.batch_tokens), "--steps", str(options.steps),
    ]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["failed"])[-1][:300]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def middle(found: list[dict[str, Any]], key: str) -> float | None:
    """The median of a value over the successful rounds."""
    values = [each[key] for each in found if each.get(key) is not None]
    return statistics.median(values) if values else None


def report(result: dict[str, Any]) -> None:
    """Print the table of one case."""
    print(f"\n{result['shape']} {result['method']} length {result['length']}")
    print(f"{'':<18} {'tokens/s':>10} {'MFU':>7} {'peak GiB':>9} {'loss':>8}")
    for variant, found in result["variants"].items():
        speed = middle(found, "tokens_per_second")
        if speed is None:
            print(f"{variant:<18} {found[0]['error'][:90]}")
            continue
        mfu, peak, loss = (middle(found, key) for key in ("utilization", "peak_gib", "loss"))
        shown = (f"{mfu:7.1%}" if mfu else f"{'-':>7}", f"{peak:9.1f}" if peak else f"{'-':>9}")
        print(f"{variant:<18} {speed:>10.0f} {shown[0]} {shown[1]} {loss:>8.4f}", flush=True)


def ratios(results: list[dict[str, Any]]) -> str:
    """sft's speed relative to each peer's: the median over the cases."""
    parts = []
    for variant in dict.fromkeys(name for result in results for name in result["variants"] if name != "sft"):
        pairs = [
            (
                middle(result["variants"].get("sft", []), "tokens_per_second"),
                middle(result["variants"][variant], "tokens_per_second"),
            )
            for result in results
        ]
        found = [ours / other for ours, other in pairs if ours and other]
        if found:
            parts.append(f"{statistics.median(found):.2f} x {variant} ({min(found):.2f} to {max(found):.2f})")
    return "ratios: sft " + ", ".join(parts)


if __name__ == "__main__":
    main()
