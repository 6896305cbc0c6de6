"""What a machine has and lacks: versions, devices, kernels, disk space, API keys, extras."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from sft.config.paths import cache_dir, expanded
from sft.model.dtype import native_bf16
from sft.run import environment
from sft.run.memory import device_memories

# Optional package -> what it is for, and the extra of this project that installs it ("" for none).
EXTRAS = {
    "bitsandbytes": ("quant=nf4, int8 and 8-bit optimizers", ""),
    "wandb": ("tracker=wandb", ""),
    "tensorboard": ("tracker=tensorboard", "trackers"),
    "mlflow": ("tracker=mlflow", "trackers"),
    "trackio": ("tracker=trackio", "trackers"),
    "optuna": ("hydra/sweeper=optuna", "optuna"),
    "joblib": ("sweeps side by side", "joblib"),
    "submitit": ("sweeps on a Slurm cluster", "submitit"),
    "scipy": ("lora=loftq", "loftq"),
    "gradio": ("sft.webui", "webui"),
    "deepeval": ("judge.scorer=deepeval", "judge"),
    "lm_eval": ("lm-eval benchmarks", "eval"),
    "sentencepiece": ("tokenizers that only have a tokenizer.model", "sentencepiece"),
    "flash_attn": ("model.attn_implementation=flash_attention_2", ""),
}
KEYS = (
    "HF_TOKEN",
    "WANDB_API_KEY",
    "GEMINI_API_KEY",
    "GOOGLE_API_KEY",
    "OPENAI_API_KEY",
    "ANTHROPIC_API_KEY",
    "MLFLOW_TRACKING_URI",
)
SETTINGS = ("MODEL_ID", "HF_HOME", "HF_HUB_OFFLINE", "SFT_CACHE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


@dataclass(frozen=True)
class Findings:
    """The findings, in sections of (name, description)."""

    sections: dict[str, dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """The sections, plain."""
        return self.sections

    def __str__(self) -> str:
        width = max(len(name) for section in self.sections.values() for name in section)
        lines: list[str] = []
        for title, section in self.sections.items():
            lines += ["", title, *(f"  {name:<{width}}  {_text(value)}".rstrip() for name, value in section.items())]
        return "\n".join(lines[1:])


def inspect_machine() -> Findings:
    """Inspect everything; loads no weights and does not read the values of keys."""
    return Findings(
        {
            "versions": {name: version or "not installed" for name, version in environment.versions().items()},
            "devices": _devices(),
            "attention": _attention(),
            "space": _space(),
            "keys": {name: "set" if os.environ.get(name) else "not set" for name in _keys()},
            "settings": {name: "set" if os.environ.get(name) else "not set" for name in SETTINGS},
            "extras": _extras(),
        }
    )


def _devices() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {}
    hardware = environment.hardware()
    found["processor"] = (
        f"{hardware['cpu']}, {hardware['usable_cores']} cores, torch takes {torch.get_num_threads()} threads"
    )
    for place in device_memories():
        found[place.name] = f"{place.free / 2**30:.1f} of {place.total / 2**30:.1f} GiB free ({place.limit})"
    for index, gpu in enumerate(hardware["gpus"]):
        found[f"GPU {index}"] = f"{gpu['name']}, compute capability {gpu['compute_capability']}"
    if not hardware["gpus"]:
        built = torch.version.cuda
        found["CUDA"] = (
            f"torch is built for {built}, but no GPU is seen" if built else "no: torch is built for the CPU alone"
        )

    found["bf16"] = "yes" if native_bf16() else "emulated: fp32 is faster here"
    return found


def _attention() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {}
    cuda = torch.cuda.is_available()
    for name in ("flash", "mem_efficient", "cudnn", "math"):
        enabled = getattr(torch.backends.cuda, f"{name}_sdp_enabled", lambda: False)()
        found[f"sdpa {name}"] = (
            ("yes" if enabled else "disabled")
            if cuda
            else ("CPU's own" if name in ("flash", "math") else "needs a GPU")
        )
    found["flash-attn"] = _version("flash_attn") or "not installed"
    flex = importlib.util.find_spec("torch.nn.attention.flex_attention") is not None
    found["flex attention"] = ("yes" if cuda else "slow without a GPU") if flex else "needs a newer torch"
    varlen = importlib.util.find_spec("torch.nn.attention.varlen") is not None
    found["varlen attention"] = ("yes" if cuda else "needs a GPU") if varlen else "needs a newer torch"
    return found


def _space() -> dict[str, Any]:
    hub = (
        os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface") / "hub"
    )
    wanted = {
        "runs (outputs)": Path.cwd(),
        "cache (SFT_CACHE)": cache_dir(),
        "hub models": Path(hub),
    }
    found: dict[str, Any] = {}
    for name, path in wanted.items():
        path = expanded(path).absolute()
        there = next(parent for parent in (path, *path.parents) if parent.exists())
        writable = "" if os.access(there, os.W_OK) else ", cannot be written"
        found[name] = f"{path}: {shutil.disk_usage(there).free / 2**30:.1f} GiB free{writable}"
    return found


def _keys() -> list[str]:
    from sft.safety.secrets import is_secret_variable

    return [*KEYS, *sorted(name for name in os.environ if is_secret_variable(name) and name not in KEYS)]


def _extras() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, (purpose, extra) in EXTRAS.items():
        version = _version(name)
        install = f"pip install 'sft[{extra}]'" if extra else f"pip install {name.replace('_', '-')}"
        found[name] = f"{version}, for {purpose}" if version else f"missing for {purpose}: {install}"
    return found


def _version(name: str) -> str | None:
    if importlib.util.find_spec(name) is None:
        return None
    try:
        return metadata.version(re.sub("_", "-", name))
    except metadata.PackageNotFoundError:
        return "installed"


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
