"""The commands as a user runs them: exit codes, stdout, and what is imported."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = [
    "model=tiny",
    "lora=r8",
    "dataset=tickets",
    "dataset.sources.tickets.generator.rows=24",
    "trainer.max_steps=2",
    "dataset.eval_sources=null",
    "dataset.eval_fraction=0",
]


def sft(command: str, *arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, "-m", f"sft.{command}", *arguments], cwd=cwd, env=env, capture_output=True, text=True
    )


def test_train_prints_its_directory_and_nothing_else(tmp_path):
    done = sft("train", *TINY, "hydra.run.dir=here", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "here")) and done.stdout.count("\n") == 1
    for picture in ("curves.png", "lengths.png"):
        content = (tmp_path / "here" / picture).read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) > 5_000


@pytest.mark.parametrize("flags", [["--cfg", "job"], ["--help"], ["--cfg", "job", "lora.r=8"]])
def test_showing_the_config_imports_nothing_heavy(flags):
    code = (
        "import atexit, sys, runpy; sys.argv = ['sft.train', *sys.argv[1:]];"
        "atexit.register(lambda: print('heavy:', sorted({'torch', 'transformers', 'datasets', 'peft'} & set(sys.modules)), file=sys.stderr));"
        "runpy.run_module('sft.train', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip().splitlines()[-1]) == (0, "heavy: []")
    assert "lora" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lora.rnak=4", "trainer.learning_rte=1"], ["lora.rnak", "trainer.learning_rate"]),
        (["model=qewn3"], ["did you mean model=qwen3?"]),
        (["dataset=local", "dataset.path=/nowhere.json"], ["/nowhere.json"]),
        (["lora.r=[1"], ["lora.r"]),
        (["seed=${nothing}"], ["nothing"]),
        (["what"], ["'what' is neither a flag nor an override"]),
        (["--config-dir", "/nowhere"], ["/nowhere"]),
        (["-m", "lora=none,r8", "lora.r=4"], ["lora is off (lora=none)"]),
    ],
)
def test_a_user_error_exits_with_2_and_a_few_lines(tmp_path, arguments, says):
    done = sft("train", *TINY, *arguments, f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 2, done.stdout + done.stderr
    assert all(text in done.stderr for text in says), done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_broken_rows_exit_with_2_and_name_file_and_rows(tmp_path, command):
    rows = tmp_path / "bad.jsonl"
    rows.write_text(
        '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}\n'
        '{"messages": [{"role": "user", "content": "no answer"}]}\n{"messages": 7}\nnot json\n'
    )
    done = command("train", "model=tiny", "dataset=local", f"dataset.path={rows}", f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 2
    assert all(f"bad.jsonl row {row}" in done.stderr for row in (2, 3, 4)), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_writes_a_checkpoint_and_sets_the_exit_code(tmp_path, number, code):
    run = tmp_path / "run"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "sft.train",
            *TINY,
            "trainer.max_steps=100000",
            "trainer.save_strategy=steps",
            "trainer.save_steps=100000",
            f"hydra.run.dir={run}",
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.time() + 120
    while time.time() < until and process.poll() is None and not (run / "metrics.jsonl").exists():
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(60) == code
    assert [path.name for path in (run / "checkpoints").iterdir()]
    assert '"interrupted"' in (run / "run.json").read_text()


def test_preview_shows_rows_without_weights(tmp_path, command):
    done = command("preview", *TINY, "preview.rows=3", f"hydra.run.dir={tmp_path}/p")
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "p" / "preview.jsonl").read_text().splitlines()) == 3


def test_a_wheel_contains_the_configs(tmp_path):
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert settings["force-include"] == {"conf": "sft/conf"}
    assert settings["packages"] == ["sft", "hydra_plugins"]
