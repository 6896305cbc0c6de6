"""`profile=true`: profile a few steps, as a trace for chrome://tracing or Perfetto and as a table."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerControl, TrainerState, TrainingArguments

from sft.training.callbacks.base import RunCallback

log = logging.getLogger(__name__)

SKIPPED, STEPS = 2, 3  # the first steps warm up: allocation, autotuning
ROWS = 40  # in the table


class Profiling(RunCallback):
    """Profiles a few steps of rank 0, and writes the run's profile/."""

    def __init__(self) -> None:
        self.first = self.last = 0
        self.profiler: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Choose the steps: after the first ones, if the run is long enough."""
        ahead = state.max_steps - state.global_step
        self.first = state.global_step + min(SKIPPED, max(0, ahead - 1))
        self.last = self.first + STEPS

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the profiler at the first of them."""
        if state.is_world_process_zero and state.global_step == self.first and self.profiler is None:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            every = _ExperimentalConfig(profile_all_threads=True)  # microbatches are computed in threads
            self.profiler = profile(activities=activities, experimental_config=every)
            self.profiler.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop after the last one, and write the results."""
        if self.profiler is not None and state.global_step >= min(self.last, state.max_steps):
            self.write()

    def write(self) -> None:
        """Stop profiling; write profile/trace.json.gz and profile/table.txt, sorted by the GPU's or the CPU's own
        time."""
        profiler, self.profiler, self.first = self.profiler, None, -1
        profiler.stop()
        if self.run is None:
            return
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=60)
        directory = self.run.path / "profile"
        directory.mkdir(exist_ok=True)
        profiler.export_chrome_trace(str(directory / "trace.json.gz"))
        self.run.write_text("profile/table.txt", table)
        log.info("profile of a few steps: %s", directory)

    def close(self) -> None:
        """Discard a profile that was interrupted by an error."""
        if self.profiler is not None:
            self.profiler.stop()
            self.profiler = None


def profiling_callbacks(asked: bool) -> list[RunCallback]:
    """The callback of `profile=true`; [] for any other run."""
    return [Profiling()] if asked else []
