"""A start in an earlier run's directory: what must be the same, full and unwritable disks, no secrets."""

import errno
import json
import logging
import os

import pytest
import torch

from sft.config.errors import Interrupted, RunFailed, UserError
from sft.run.environment import versions
from sft.run.manifest import complete

STEPS = ("trainer.save_strategy=steps", "trainer.save_steps=2", "trainer.max_steps=5")


def _break(step=3):
    from transformers import TrainerCallback

    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == step:
                raise RuntimeError("power cut")

    return Break()


def _telltale(secret):
    from transformers import TrainerCallback

    class Telltale(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            logging.getLogger("sft").warning("the key is %s", secret)

    return Telltale()


@pytest.fixture
def rows(tmp_path):
    """Writes a file of conversations, with other answers if asked."""
    path = tmp_path / "rows.jsonl"

    def write(answer="four", space=""):
        turns = [{"role": "user", "content": "{} and two?"}, {"role": "assistant", "content": answer}]
        lines = [json.dumps({"messages": turns}).replace("{}", str(number)) + space for number in range(24)]
        path.write_text("\n".join(lines) + "\n")

    write()
    return write


@pytest.fixture
def local(tmp_path, rows):
    """As `run`, over the file."""
    from sft.api import compose, train

    def start(*overrides, **kwargs):
        return train(
            compose(
                *("model=tiny", "lora=r8", "dataset=local", f"dataset.path={tmp_path / 'rows.jsonl'}"),
                *("dataset.num_proc=0", "model.dtype=float32", "trainer.per_device_train_batch_size=4"),
                *("callbacks=quiet", f"hydra.run.dir={tmp_path / 'run'}", *STEPS, *overrides),
            ),
            **kwargs,
        )

    return start


def test_changed_rows_are_refused_and_existing_files_are_kept(local, rows, tmp_path):
    with pytest.raises(RunFailed, match="power cut"):
        local(callbacks=[_break()])
    rows("five")
    with pytest.raises(UserError, match=r"data.sources.local: the rows are not .*[^$]*allow_changes=\[data\]"):
        local()
    rows("four", space=" ")  # another file of the same rows
    resumed = local()
    sessions = json.loads((tmp_path / "run" / "run.json").read_text())["sessions"]
    assert [session["resumed_from"] for session in sessions] == [None, "checkpoint-2", "checkpoint-2"]
    assert resumed.metrics["steps"] == 5


def test_a_finished_run_is_checked_for_changes_first(local, rows, tmp_path):
    first = local()
    record = (tmp_path / "run" / "run.json").read_bytes()
    rows("four", space=" ")
    assert local().value == first.value
    rows("five")
    with pytest.raises(UserError, match=r"data.sources.local"):
        local()
    assert (tmp_path / "run" / "run.json").read_bytes() == record
    assert local("allow_changes=[data]").value == first.value


@pytest.mark.parametrize("finished", [True, False])
def test_other_versions_are_refused_by_name(run, monkeypatch, finished):
    if finished:
        run()
    else:
        with pytest.raises(RunFailed, match="power cut"):
            run(*STEPS, callbacks=[_break()])
    monkeypatch.setattr(
        "sft.training.resume.fingerprints.versions", lambda: {**versions(), "torch": "99.0", "numpy": "99.0"}
    )
    options = () if finished else STEPS
    with pytest.raises(UserError, match=r"versions.torch: this run was started with torch .*, not 99.0"):
        run(*options)
    assert run(*options, "allow_changes=[versions]").metrics["status"] == "finished"


def test_another_tokenizer_is_refused_by_name(run, monkeypatch):
    from sft.training import inputs

    with pytest.raises(RunFailed, match="power cut"):
        run(*STEPS, callbacks=[_break()])
    load = inputs.load_tokenizer

    def other(*arguments):
        tokenizer = load(*arguments)
        tokenizer.add_tokens(["never seen"])
        return tokenizer

    monkeypatch.setattr(inputs, "load_tokenizer", other)
    with pytest.raises(UserError, match=r"^tokenizer: the tokenizer is not what the run was started with"):
        run(*STEPS)


@pytest.mark.slow
def test_a_template_that_prints_the_date_keeps_the_first_date(run, tmp_path, monkeypatch):
    options = (*STEPS, "template=llama3", "template.name=gptoss", "lora.lora_dropout=0.1")

    class Tomorrow:
        @staticmethod
        def today():
            import datetime

            return datetime.date(2031, 2, 3)

        @staticmethod
        def fromisoformat(text):
            import datetime

            return datetime.date.fromisoformat(text)

    whole = run(*options, to="whole")
    with pytest.raises(RunFailed, match="power cut"):
        run(*options, to="cut", callbacks=[_break()])
    day = json.loads((tmp_path / "cut" / "run.json").read_text())["template_date"]
    monkeypatch.setattr("sft.template.bind.Date", Tomorrow)
    cut = run(*options, to="cut")
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["template_date"] == day
    weights = "adapter/adapter_model.safetensors"
    assert (cut.directory / weights).read_bytes() == (whole.directory / weights).read_bytes()
    new = run(*options, to="new")
    assert json.loads((new.directory / "run.json").read_text())["template_date"] == "2031-02-03" != day
    assert (new.directory / weights).read_bytes() != (whole.directory / weights).read_bytes()


def test_a_full_disk_keeps_the_last_good_checkpoint(run, tmp_path, monkeypatch):
    save = torch.save

    def refused(value, file, *arguments, **kwargs):
        if "checkpoint-4" in str(file):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        save(value, file, *arguments, **kwargs)

    whole = run(*STEPS, to="whole")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", refused)
        with pytest.raises(UserError, match="cannot write: no space is left on the disk"):
            run(*STEPS, "trainer.save_total_limit=1")
    found = tmp_path / "run" / "checkpoints"
    assert [path.name for path in found.iterdir()] == ["checkpoint-2"]
    assert complete(found / "checkpoint-2")
    resumed = run(*STEPS, "trainer.save_total_limit=1")
    weights = "adapter/adapter_model.safetensors"
    assert (resumed.directory / weights).read_bytes() == (whole.directory / weights).read_bytes()


@pytest.mark.parametrize("lora", ["lora=r8", "lora=none"])
def test_too_little_space_for_a_checkpoint_is_reported_before_writing(run, tmp_path, monkeypatch, lora):
    from sft.run.disk import errors

    options = (*STEPS, lora)
    whole = run(*options, to="whole")
    written = whole.directory / "checkpoints" / "checkpoint-4"
    tensors = sum((written / name).stat().st_size for name in ("optimizer.pt",))
    tensors += sum(path.stat().st_size for path in written.glob("*.safetensors"))
    seen = []

    def usage(path):
        seen.append(path)
        return type("Usage", (), {"free": 10_000})()

    with monkeypatch.context() as patch:
        patch.setattr(errors.shutil, "disk_usage", usage)
        with pytest.raises(UserError, match=r"checkpoint-2: cannot write: too little space on the disk: ") as refused:
            run(*options)
    assert "0.0 MiB free" in str(refused.value)
    assert "start the same command again: it resumes from its last checkpoint" in str(refused.value)
    needed = float(str(refused.value).split("disk: ")[1].split(" MiB")[0]) * 2**20
    assert 0.8 * tensors < needed < 1.05 * tensors + 2**17
    assert seen
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_a_disk_that_fills_while_the_adapter_is_written_reports_the_needed_space(run, monkeypatch):
    import safetensors.torch

    def full(*arguments, **kwargs):
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    options = (*(step for step in STEPS if "save_" not in step), "trainer.save_strategy='no'")
    with monkeypatch.context() as patch:
        patch.setattr("peft.peft_model.safe_save_file", full)
        with pytest.raises(UserError, match=r"adapter: cannot write: no space is left on the disk: 0\.\d MiB needed, "):
            run(*options)
    assert run(*options).metrics["status"] == "finished"


def test_no_secret_is_in_any_file_of_a_run_directory(run, tmp_path, monkeypatch):
    secret = "hf_" + "Qx7" * 12
    monkeypatch.setenv("HF_TOKEN", secret)
    result = run(*STEPS, callbacks=[_telltale(secret)])
    assert "the key is ***" in (result.directory / "train.log").read_text()
    files = [path for path in result.directory.rglob("*") if path.is_file()]
    assert [path.name for path in files if secret.encode() in path.read_bytes()] == []
    assert [path for path in files if path.name == "training_args.bin"] == []
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth"} <= {path.name for path in files}


def test_a_pickle_that_does_not_match_the_manifest_is_never_loaded(run, tmp_path):
    with pytest.raises(RunFailed, match="power cut"):
        run(*STEPS, "trainer.max_steps=7", callbacks=[_break(5)])
    mark = tmp_path / "opened"
    evil = f"cos\nsystem\n(S'touch {mark}'\ntR.".encode()
    (tmp_path / "run" / "checkpoints" / "checkpoint-4" / "optimizer.pt").write_bytes(evil)
    resumed = run(*STEPS, "trainer.max_steps=7")
    assert not mark.exists()
    assert "checkpoint-4 is skipped" in (resumed.directory / "train.log").read_text()
    sessions = json.loads((resumed.directory / "run.json").read_text())["sessions"]
    assert sessions[-1]["resumed_from"] == "checkpoint-2"


def test_a_removed_callback_is_one_line(run):
    with pytest.raises(RunFailed, match="power cut"):
        run(
            *("callbacks=[quiet,validation,checkpoint,best_model,early_stopping]", "trainer.max_steps=5"),
            *("callbacks.validation.every=2", "callbacks.checkpoint.every=2"),
            callbacks=[_break()],
        )
    with pytest.raises(UserError) as refused:
        run("trainer.max_steps=5")
    lines = [line for line in str(refused.value).splitlines() if line.startswith("callbacks.")]
    assert lines == [
        f"callbacks.{name}: this run was started with {kind}, not none{more}"
        for name, kind, more in (
            ("validation", "Validation", ""),
            ("checkpoint", "Checkpoint", ""),
            (
                *("best_model", "BestModel"),
                ", and it cannot change: the best evaluation so far was chosen without it, or by another metric",
            ),
            ("early_stopping", "EarlyStopping", ""),
        )
    ]


@pytest.mark.parametrize("step", [pytest.param(2, marks=pytest.mark.slow), 6])
def test_a_signal_within_an_epoch_triggers_no_evaluation(run, step):
    """Six steps per epoch: at the second nothing is due, at the sixth the epoch's evaluation is."""
    import os
    import signal

    from transformers import TrainerCallback

    class Signal(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == step - 1:
                os.kill(os.getpid(), signal.SIGINT)

    def evaluations(result):
        lines = [json.loads(line) for line in (result.directory / "metrics.jsonl").read_text().splitlines()]
        return [(line["step"], line["eval_loss"]) for line in lines if "eval_loss" in line]

    options = ("trainer.max_steps=-1", "trainer.num_train_epochs=2", "trainer.eval_strategy=epoch")
    options += ("trainer.save_strategy=epoch", "trainer.load_best_model_at_end=true", "trainer.learning_rate=1.0")
    whole = run(*options, to="whole")
    with pytest.raises(Interrupted):
        run(*options, to="cut", callbacks=[Signal()])
    cut = run(*options, to="cut")
    assert [at for at, _ in evaluations(whole)][:2] == [6, 12]
    assert evaluations(cut) == evaluations(whole)
    weights = "adapter/adapter_model.safetensors"
    assert (cut.directory / weights).read_bytes() == (whole.directory / weights).read_bytes()
