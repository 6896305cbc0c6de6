"""A finished run: its metrics are returned without heavy imports."""

import subprocess
import sys


def test_nothing_heavy_is_imported_for_a_finished_run():
    heavy = "torch", "transformers", "peft", "datasets", "bitsandbytes", "accelerate", "matplotlib"
    script = (
        "import sys, sft.train, sft.training.start, sft.training.resume.finished, sft.training.memory\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
