"""Runs replayed from their directories."""

import json
from pathlib import Path

import pytest

from sft.config.errors import RunFailed, UserError
from sft.reproduce import main

ROOT = Path(__file__).parents[2]
DROPOUT = "lora.lora_dropout=0.1"
STEPS = ("trainer.save_strategy=steps", "trainer.save_steps=2", "trainer.max_steps=5", "trainer.logging_steps=2")


@pytest.fixture
def reproduce(tmp_path):
    """Replays a run directory; gives the replay's."""
    from omegaconf import open_dict

    from sft.api import compose

    def start(directory, *overrides, to="replay"):
        config = compose(f"hydra.run.dir={tmp_path / to}", *overrides, file=directory / "config.resolved.yaml")
        with open_dict(config):
            config.run = str(directory)
            config.hydra.overrides.hydra = [f"hydra.run.dir={tmp_path / to}"]
        main.__wrapped__(config)
        return tmp_path / to

    return start


def test_the_command_uses_the_runs_config(run, command):
    result = run(DROPOUT, "lora.r=5")
    done = command("reproduce", f"run={result.directory}", "--cfg", "job", "--package", "lora")
    assert done.returncode == 0, done.stderr
    assert "r: 5" in done.stdout and "lora_dropout: 0.1" in done.stdout


@pytest.mark.parametrize("options", [(DROPOUT,), ("lora=none",)])
def test_a_replay_is_byte_identical(run, reproduce, capsys, options):
    result = run(*options)
    before = {path: path.read_bytes() for path in result.directory.rglob("*") if path.is_file()}
    reproduce(result.directory)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["figure", "then", "now", "equal"]
    assert all(line.endswith("yes") for line in printed[1:-1]) and len(printed) > 15
    weights = "model/model.safetensors" if "lora=none" in options else "adapter/adapter_model.safetensors"
    assert printed[-2].startswith(weights)
    assert {path: path.read_bytes() for path in result.directory.rglob("*") if path.is_file()} == before


def test_a_resumed_run_can_be_replayed(run, reproduce, capsys):
    from transformers import TrainerCallback

    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                raise RuntimeError("power cut")

    with pytest.raises(RunFailed, match="power cut"):
        run(*STEPS, DROPOUT, callbacks=[Break()])
    result = run(*STEPS, DROPOUT)
    reproduce(result.directory)
    assert " NO" not in capsys.readouterr().out


def test_differences_are_named(run, reproduce, capsys):
    result = run()
    with pytest.raises(UserError, match=r"seed: the run to replay had 42, not 7"):
        reproduce(result.directory, "seed=7")
    with pytest.raises(RunFailed, match=r"the replay differs .*: train_loss, .*adapter/adapter_model.safetensors"):
        reproduce(result.directory, "seed=7", "allow_changes=[seed,data]")
    rows = {line.split()[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines()}
    assert (rows["steps"], rows["train_loss"], rows["adapter/adapter_model.safetensors"]) == ("yes", "NO", "NO")


def test_versions_and_rows_are_checked_first(run, reproduce, tmp_path):
    result = run()
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())

    def written(**changed):
        path.write_text(json.dumps({**record, **changed}))

    written(versions={**record["versions"], "torch": "1.0"})
    with pytest.raises(UserError, match=r"versions.torch: this run was started with torch 1.0"):
        reproduce(result.directory)
    written(data={**record["data"], "sources": {"tickets": "0" * 32}})
    with pytest.raises(UserError, match=r"data.sources.tickets: the rows are not what the run was started with"):
        reproduce(result.directory)
    written(world_size=8)
    with pytest.raises(UserError, match=r"torchrun --nproc-per-node=8"):
        reproduce(result.directory)
    written(status="interrupted")
    with pytest.raises(UserError, match=r"the run is interrupted: there is no result to compare with"):
        reproduce(result.directory)


def test_the_original_is_not_overwritten(run, reproduce):
    result = run()
    with pytest.raises(UserError, match="a replay must not overwrite its original"):
        reproduce(result.directory, to="run")
