"""Out-of-memory errors: overrides that would help, with values, by effect; and automatically smaller batches."""

from __future__ import annotations

import errno
import gc
import random
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from sft.config.errors import RunFailed
from sft.config.run_config import RunConfig
from sft.run import checkpoint
from sft.run.directory import RunDirectory

_TEXTS = re.compile(
    r"out[ -]of[ -]memory|DefaultCPUAllocator|can(?:'|no)t allocate memory|bad_alloc|STATUS_ALLOC_FAILED", re.IGNORECASE
)


class OutOfMemory(RunFailed):
    """A run ran out of memory; the message has the overrides that would help."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means out of memory: of an accelerator, of torch on the CPU, of Python or of the system."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, Exception) and not isinstance(error, RunFailed) and bool(_TEXTS.search(str(error)))


@contextmanager
def explain_out_of_memory(config: RunConfig, run: RunDirectory) -> Iterator[None]:
    """Turn an out-of-memory error of the block into one that says what would help.

    Args:
        config: the resolved config.
        run: its directory, with the data report and the checkpoints.

    Raises:
        OutOfMemory: instead of such an error.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        causes = list(_causes(error))
        place = _place(causes)
        first = next(reason for reason in reversed(causes) if is_out_of_memory(reason))
        what = " ".join(str(first).rpartition("DefaultCPUAllocator: ")[2].split()).split(". ")[0][:200]
        what = what or type(first).__name__
        traceback.clear_frames(error.__traceback__)  # the frames keep the activations alive
        free_memory()
        raise OutOfMemory(out_of_memory_message(config, run, place, what)) from error


def out_of_memory_message(config: RunConfig, run: RunDirectory, place: str, what: str) -> str:
    """The whole message: what would help, most effective first, and how to resume.

    Args:
        place: "loading", "evaluation" or "training".
        what: the error's own words.
    """
    remedies = {"loading": _loading_remedies, "evaluation": _evaluation_remedies, "training": training_remedies}[place](
        config, run
    )
    width = max((len(override) for override, _ in remedies), default=0)
    lines = [f"out of memory in {place}: {what}", "  what would help, most effective first:"]
    lines += [f"    {override.ljust(width)}  {why}" for override, why in remedies]
    if place != "loading" and checkpoint.listed(run.checkpoints):
        same = [override for override, _ in remedies if override.startswith("trainer.") and "=true" not in override]
        keys = ",".join(part.partition("=")[0] for override in same for part in override.split())
        lines.append(f"  to resume from the last checkpoint: the same command with hydra.run.dir={run.path} and")
        lines += [f"    {override} 'allow_changes=[{keys}]'" for override in same]
        lines += ["    or trainer.auto_find_batch_size=true"] if place == "training" else []
        lines.append("  any of the others makes it a different run, in a directory of its own")
    else:
        lines.append("  no checkpoint has been written yet: start again with some of these, in a new run directory")
    return "\n".join([*lines, f"  the traceback is in {run.train_log}"])


def smaller_batch(batch: int, effective: int, share: int = 2) -> int:
    """The largest batch that divides the effective one and is at most `batch / share`; at least 1."""
    most = max(1, batch // share)
    return next(size for size in range(most, 0, -1) if effective % size == 0)


def free_memory() -> None:
    """Release unused memory."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class RngState:
    """The state of the global random generators, to draw the same numbers again."""

    def __init__(self) -> None:
        import numpy as np
        import torch

        self.states = (random.getstate(), np.random.get_state(), torch.get_rng_state())
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None

    def restore(self) -> None:
        """Restore the generators."""
        import numpy as np
        import torch

        random.setstate(self.states[0])
        np.random.set_state(self.states[1])
        torch.set_rng_state(self.states[2])
        if self.cuda is not None:
            torch.cuda.set_rng_state_all(self.cuda)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on."""
    reason: BaseException | None = error
    while reason is not None:
        yield reason
        reason = reason.__cause__ or reason.__context__


def _place(causes: list[BaseException]) -> str:
    """Where memory ran out, according to the functions in the traceback."""
    names = {frame.name for reason in causes for frame in traceback.extract_tb(reason.__traceback__)}
    if "build_model" in names:
        return "loading"
    return "evaluation" if names & {"evaluate", "evaluate_loss", "evaluate_before", "evaluate_after"} else "training"


def training_remedies(config: RunConfig, run: RunDirectory) -> list[tuple[str, str]]:
    """Overrides that reduce the memory of a training step, and their cost; most effective first."""
    trainer, dataset, lora = config.trainer, config.dataset, config.lora
    batch, accumulation = trainer.get("per_device_train_batch_size", 8), trainer.get("gradient_accumulation_steps", 1)
    remedies = []
    report = run.read_json(run.data_report, {}) or {}
    longest = max((source["length"]["max"] for source in report.get("sources", {}).values()), default=0)
    most = report.get("max_length") or dataset.get("max_length") or longest
    width = most if dataset.get("packing") else min(longest or most, most)
    if width >= 32:
        what = "cut" if dataset.get("on_long") == "truncate" else "dropped"
        why = f"now {most:,}, the longest row has {longest:,} tokens; longer rows are {what}"
        remedies.append((f"dataset.max_length={width // 2}", why))
    if batch > 1:
        size = smaller_batch(batch, batch * accumulation, 4)
        both = f"trainer.per_device_train_batch_size={size} trainer.gradient_accumulation_steps={batch * accumulation // size}"
        remedies.append((both, f"now {batch} and {accumulation}; the effective batch stays {batch * accumulation}"))
        remedies.append(("trainer.auto_find_batch_size=true", "finds such a pair by itself"))
    if lora is None:
        remedies.append(("lora=r16", "now all weights are trained, with their gradients and optimizer states"))
    elif (lora.get("r") or 0) > 4:
        remedies.append((f"lora.r={lora.r // 2}", f"now {lora.r}"))
    if trainer.get("gradient_checkpointing") is not True:
        remedies.append(("trainer.gradient_checkpointing=true", "now off; a third more time"))
    if lora is not None and not config.quant:
        remedies.append(("quant=nf4", "now none; some exactness of the base"))
    return remedies


def _evaluation_remedies(config: RunConfig, run: RunDirectory) -> list[tuple[str, str]]:
    size = config.trainer.get("per_device_eval_batch_size", 8)
    remedies = [(f"trainer.per_device_eval_batch_size={max(1, size // 4)}", f"now {size}; changes no figure")]
    return (remedies if size > 1 else []) + [
        help for help in training_remedies(config, run) if help[0].startswith(("dataset", "quant"))
    ]


def _loading_remedies(config: RunConfig, _: RunDirectory) -> list[tuple[str, str]]:
    remedies = []
    if not config.quant and config.lora is not None:
        remedies.append(("quant=nf4", "now none; a quarter of the weights' memory in bf16"))
    if config.model.get("dtype") in ("float32", "fp32", "auto"):
        remedies.append(("model.dtype=bfloat16", f"now {config['model'].get('dtype')}"))
    return [*remedies, ("model=...", "a smaller one of the family")]
