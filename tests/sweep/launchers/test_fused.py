"""hydra/launcher=fused: jobs that train together, each with the results and the files that it has alone."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from sft.api import compose, sweep, train
from sft.config.errors import UserError
from sft.sweep.differences import Difference, difference

ROOT = Path(__file__).parents[3]
BASE = [
    "model=tiny",
    "model.dtype=float32",
    "trainer.bf16=false",
    "dataset=tickets",
    "dataset.sources.tickets.generator.rows=40",
    "dataset.eval_sources.known.generator.rows=4",
    "dataset.eval_sources.unseen=null",
    "dataset.num_proc=0",
    "trainer.logging_steps=1",
    "callbacks=quiet",
]
STEPS = ["trainer.max_steps=4", "trainer.per_device_train_batch_size=4"]
# of fp32 sums in another order, over a few steps
LOSS, WEIGHT = 1e-5, 1e-4
# what may differ between jobs that train together
KINDS = {
    "plain": {},
    "targets": {"lora": {"r": 3, "target_modules": ["q_proj", "down_proj"]}, "trainer": {"learning_rate": 1e-2}},
    "accumulates": {"trainer": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}},
    "dropout": {"lora": {"lora_dropout": 0.2}},
    "noise": {"trainer": {"neftune_noise_alpha": 5}},
    "longer": {"trainer": {"max_steps": 7, "lr_scheduler_type": "cosine"}, "lora": {"use_rslora": True}},
    "seed": {"seed": 7, "trainer": {"weight_decay": 0.1}},
    "packs": {"dataset": {"packing": True, "max_length": 256}},
}


def overrides_of(kind):
    """An experiment's settings as a command line has them, with those of STEPS that it leaves open."""
    own = [
        f"{group}.{key}={value}".replace("'", "").replace(" ", "") if key else f"{group}={value}"
        for group, node in KINDS[kind].items()
        for key, value in (node.items() if isinstance(node, dict) else [("", node)])
    ]
    return own + [each for each in STEPS if each.partition("=")[0] not in {one.partition("=")[0] for one in own}]


def fused(command, directory, *overrides, at_once=4):
    options = ["hydra/launcher=fused", f"hydra.launcher.n_jobs={at_once}", f"hydra.sweep.dir={directory}"]
    return command("train", "-m", *overrides, *BASE, *options)


def states(directory):
    found = json.loads((directory / "sweep.json").read_text())["jobs"]
    return {job["number"]: job["status"] for job in found}


def logged(run):
    """(loss, gradient norm, rate) of each step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["loss"], line["grad_norm"], line["learning_rate"]) for line in lines if "learning_rate" in line]


def assert_trained_alike(ours, alone):
    a, b = logged(ours), logged(alone)
    assert len(a) == len(b) > 0
    for (loss, norm, rate), (loss_alone, norm_alone, rate_alone) in zip(a, b, strict=True):
        assert loss == pytest.approx(loss_alone, rel=LOSS)
        assert norm == pytest.approx(norm_alone, rel=1e-3)
        assert rate == rate_alone
    mine, others = (load_file(run / "adapter/adapter_model.safetensors") for run in (ours, alone))
    assert mine.keys() == others.keys()
    largest = max(float(each.abs().max()) for each in others.values())
    assert all(float((mine[name] - others[name]).abs().max()) <= WEIGHT * largest for name in mine)
    figures = [json.loads((run / "metrics.json").read_text()) for run in (ours, alone)]
    assert figures[0]["eval_loss"] == pytest.approx(figures[1]["eval_loss"], rel=1e-4)
    assert figures[0]["trained_tokens"] == figures[1]["trained_tokens"]


@pytest.fixture(scope="module")
def conf(tmp_path_factory):
    """A user's conf/ with an experiment for each kind."""
    directory = tmp_path_factory.mktemp("conf")
    (directory / "experiment").mkdir()
    for name, nodes in KINDS.items():
        steps = {"max_steps": 4, "per_device_train_batch_size": 4, **nodes.get("trainer", {})}
        (directory / "experiment" / f"{name}.yaml").write_text(
            "# @package _global_\n" + yaml.safe_dump({**nodes, "trainer": steps})
        )
    return directory


@pytest.fixture(scope="module")
def kinds(tmp_path_factory, command, conf):
    """A sweep whose jobs differ in what may differ: (directory, process)."""
    directory = tmp_path_factory.mktemp("fused") / "kinds"
    return directory, fused(command, directory, "--config-dir", str(conf), "experiment=" + ",".join(KINDS), at_once=5)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_job_in_company_trains_as_alone(kinds, kind, tmp_path):
    directory, done = kinds
    assert done.returncode == 0, done.stderr
    (ours,) = directory.glob(f"*experiment-{kind}")
    alone = train(compose(*BASE, *overrides_of(kind), f"hydra.run.dir={tmp_path / 'alone'}"))
    assert_trained_alike(ours, alone.directory)
    assert "trains by itself" not in (ours / "train.log").read_text()


def test_each_job_has_the_files_and_the_log_of_a_run(kinds):
    directory, _ = kinds
    assert set(states(directory).values()) == {"finished"}
    for run in (path for path in directory.iterdir() if path.is_dir()):
        assert {"config.resolved.yaml", "metrics.jsonl", "run.json", "train.log", "adapter", "eval_rows.json"} <= {
            path.name for path in run.iterdir()
        }
        log = (run / "train.log").read_text()
        assert log.count("LoRA r=") == 1 and log.count("first step after") == 1, run.name


def test_the_leaderboard_says_what_rows_can_tell_apart(kinds):
    directory, done = kinds
    rows = list(csv.DictReader((directory / "leaderboard.csv").open()))
    best, *others = rows
    assert best["difference"] == "best" and best["difference_low_95"] == ""
    compared = [row for row in others if row["difference"]]
    assert compared and all(row["difference"] in ("worse", "better", "not told apart") for row in compared)
    for row in compared:
        low, high = float(row["difference_low_95"]), float(row["difference_high_95"])
        assert low <= float(row["eval_loss"]) - float(best["eval_loss"]) <= high
        assert (row["difference"] == "not told apart") == (low <= 0 <= high)
    assert "eval_loss less the best, 95%" in done.stdout


@pytest.mark.slow
def test_a_job_that_fails_ends_alone(command, tmp_path):
    done = fused(command, tmp_path / "sweep", *STEPS, "trainer.learning_rate=1e-3,1e38,1e-2")
    assert done.returncode == 1, done.stderr
    assert states(tmp_path / "sweep") == {0: "finished", 1: "failed", 2: "finished"}
    assert "1 of 3 jobs failed" in done.stderr


@pytest.mark.slow
def test_what_cannot_train_in_company_runs_by_itself_and_says_why(command, tmp_path):
    done = fused(command, tmp_path / "sweep", *STEPS, "lora=r8,dora,none", "seed=1,2")
    assert done.returncode == 0, done.stderr
    assert set(states(tmp_path / "sweep").values()) == {"finished"}
    assert "2 jobs train together" in done.stderr
    assert "job 2 trains by itself: DoRA scales whole layers" in done.stderr
    assert "job 4 trains by itself: all weights are trained" in done.stderr


@pytest.mark.slow
def test_places_that_become_free_are_taken_at_once(command, tmp_path):
    done = fused(command, tmp_path / "sweep", "trainer.max_steps=2,9", "seed=1,2", STEPS[1], at_once=2)
    assert done.returncode == 0, done.stderr
    directory = tmp_path / "sweep"
    ended = {n: json.loads(next(directory.glob(f"{n}_*/run.json")).read_text()) for n in range(4)}
    assert [ended[n]["status"] for n in range(4)] == ["finished"] * 4
    assert done.stderr.index("[2] first step") < done.stderr.index("[3] first step")


LONG = ["trainer.max_steps=400", "trainer.save_strategy=steps", "trainer.save_steps=5", "trainer.logging_steps=50"]


def start(directory, *more):
    options = ["hydra/launcher=fused", "hydra.launcher.n_jobs=3", f"hydra.sweep.dir={directory}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "sft.train", "-m", *BASE, *LONG, "seed=1,2,3,4", STEPS[1], *options, *more]
    return subprocess.Popen(line, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def checkpoints(directory):
    return sorted(path.parent.parent.name for path in directory.glob("*/checkpoints/checkpoint-*"))


def wait_for_checkpoints(process, directory, count):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if len(set(checkpoints(directory))) >= count:
            return
        time.sleep(0.1)
    raise AssertionError(process.communicate())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_sweep_that_is_stopped_goes_on_from_every_jobs_checkpoint(tmp_path, number):
    directory = tmp_path / "sweep"
    process = start(directory)
    wait_for_checkpoints(process, directory, 3)
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode == (143 if number == signal.SIGTERM else -9)
    if number == signal.SIGTERM:
        assert [states(directory)[n] for n in range(3)] == ["interrupted"] * 3
    reached = {
        path.name: max(int(c.name.split("-")[1]) for c in path.glob("checkpoints/checkpoint-*"))
        for path in directory.glob("[0-2]_*")
    }
    again = start(directory, "hydra.launcher.n_jobs=2")
    _, errors = again.communicate(timeout=500)
    assert again.returncode == 0, errors
    for name, step in reached.items():
        record = json.loads((directory / name / "run.json").read_text())
        assert record["sessions"][-1]["resumed_from"].startswith("checkpoint-") and step > 0
    figures = [json.loads(path.read_text()) for path in directory.glob("*/metrics.json")]
    assert [each["steps"] for each in figures] == [400] * 4


@pytest.mark.slow
def test_a_quantized_base_is_shared(command, tmp_path):
    done = fused(command, tmp_path / "sweep", *STEPS, "quant=nf4", "lora.r=4,8", "trainer.learning_rate=1e-3,1e-2")
    assert done.returncode == 0, done.stderr
    assert "trains by itself" not in done.stderr
    for run in sorted(path for path in (tmp_path / "sweep").iterdir() if path.is_dir()):
        number = int(run.name.split("_")[0])
        r, rate = (4, 8)[number // 2], ("1e-3", "1e-2")[number % 2]
        alone = train(
            compose(
                *BASE, *STEPS, "quant=nf4", f"lora.r={r}", f"trainer.learning_rate={rate}",
                f"hydra.run.dir={tmp_path / run.name}",
            )
        )  # fmt: skip
        assert_trained_alike(run, alone.directory)


def test_a_grid_from_python_ranks_what_trained_together(tmp_path):
    config = compose(*BASE, *STEPS)
    board = sweep(
        config, {"lora.r": [4, 8], "trainer.learning_rate": [1e-3, 1e-2]}, fused=True, directory=tmp_path / "s"
    )
    assert len(board.ranked) == 4 and not board.unranked
    assert {job.name for job in board.ranked} == {
        "0_lora.r-4_learning_rate-0.001",
        "1_lora.r-4_learning_rate-0.01",
        "2_lora.r-8_learning_rate-0.001",
        "3_lora.r-8_learning_rate-0.01",
    }
    scores = [job.figures["eval_loss"] for job in board.ranked]
    assert scores == sorted(scores) and board.winner is board.ranked[0]
    assert set(board.differences) == {job.number for job in board.ranked[1:]}
    assert (tmp_path / "s" / "leaderboard.csv").is_file()
    again = sweep(config, {"lora.r": [4, 8], "trainer.learning_rate": [1e-3, 1e-2]}, directory=tmp_path / "s")
    assert [job.figures["eval_loss"] for job in again.ranked] == scores  # finished jobs are left as they are


def test_a_grid_with_a_wrong_key_is_refused_before_its_first_job(tmp_path):
    with pytest.raises(UserError, match=r"lora\.rr"):
        sweep(compose(*BASE, *STEPS), {"lora.rr": [4, 8]}, directory=tmp_path / "s")
    assert not list(tmp_path.rglob("run.json"))


@pytest.mark.slow
def test_a_search_draws_points_that_train_together_and_are_judged_together(command, tmp_path):
    pytest.importorskip("optuna")
    search = [
        "hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=4", "hydra.sweeper.pruner=halving",
        "hydra.sweeper.reduction_factor=2", "trainer.eval_strategy=steps", "trainer.eval_steps=2",
        "trainer.max_steps=8", STEPS[1], "trainer.learning_rate=tag(log, interval(1e-4,1e-1))",
    ]  # fmt: skip
    done = fused(command, tmp_path / "sweep", *search)
    assert done.returncode == 0, done.stderr
    found = states(tmp_path / "sweep")
    # of four that reach step 2, two go on, and of these one after step 4, which it ends
    assert sorted(found.values()) == ["finished", "pruned", "pruned", "pruned"]
    logs = {n: next((tmp_path / "sweep").glob(f"{n}_*/metrics.jsonl")).read_text().splitlines() for n in found}
    first = {
        n: next(line["eval_loss"] for line in map(json.loads, each) if "eval_loss" in line) for n, each in logs.items()
    }
    steps = {n: json.loads(next((tmp_path / "sweep").glob(f"{n}_*/metrics.json")).read_text())["steps"] for n in found}
    assert sorted(steps.values()) == [2, 2, 4, 8]
    assert {n for n, count in steps.items() if count > 2} == set(sorted(first, key=first.__getitem__)[:2])


def test_a_rung_keeps_one_in_so_many_and_judges_by_the_direction():
    from sft.sweep.search.pruning import Rungs

    rungs = Rungs(2, "maximize")
    for job, value in enumerate([0.1, 0.4, 0.3, 0.2]):
        rungs.report(job, 10, value)
    assert [rungs.is_out(job, 10) for job in range(4)] == [True, False, False, True]
    assert not any(rungs.is_out(job, 15) for job in (1, 2))  # between two rungs nobody is judged anew
    rungs.report(1, 20, 0.5)
    rungs.report(2, 20, 0.6)
    assert [rungs.is_out(job, 20) for job in (1, 2)] == [True, False]


@pytest.mark.slow
def test_two_processes_share_out_the_jobs(command, tmp_path):
    pytest.importorskip("joblib")
    done = fused(
        command, tmp_path / "sweep", *STEPS, "lora.r=4,8", "seed=1,2,3", "hydra.launcher.processes=2", at_once=2
    )
    assert done.returncode == 0, done.stderr
    directory = tmp_path / "sweep"
    assert states(directory) == dict.fromkeys(range(6), "finished")
    pids = {json.loads(path.read_text())["sessions"][-1]["pid"] for path in directory.glob("*/run.json")}
    assert len(pids) == 2
    alone = train(compose(*BASE, *STEPS, "lora.r=8", "seed=3", f"hydra.run.dir={tmp_path / 'alone'}"))
    assert_trained_alike(next(directory.glob("5_*")), alone.directory)


def test_a_job_is_claimed_by_one_process_and_again_when_that_died(tmp_path):
    from sft.sweep.launchers.shares import Claims

    claims = Claims(tmp_path)
    assert claims.claim(3) and not claims.claim(3)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / "4").write_text(str(gone.pid))
    assert claims.claim(4) and not claims.claim(4)


@pytest.mark.parametrize("key", ["n_jobs", "max_tokens_per_step", "processes"])
@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_a_launcher_setting_out_of_range_is_refused(key, value):
    from hydra_plugins.sft_fused_launcher import FusedLauncher
    from sft.config.errors import PastHydra

    launcher = FusedLauncher(**{key: int(value) if value != "many" else value})
    launcher.setup(hydra_context=None, task_function=None, config=None)
    with pytest.raises(PastHydra, match=rf"hydra.launcher.{key}: .* is out of range"):
        launcher.launch([["seed=1"], ["seed=2"]], 0)


@pytest.mark.parametrize(
    ("grid", "what"),
    [
        ({"lora": "r8"}, "'r8', not a list of values"),
        ({"lora.r": []}, "an empty list"),
        ({"lora.r": 8}, "8, not a list"),
    ],
)
def test_a_grid_whose_values_are_no_list_is_refused(tmp_path, grid, what):
    with pytest.raises(UserError, match=what):
        sweep(compose(*BASE, *STEPS), grid, directory=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_another_grid_in_the_directory_of_one_is_refused(tmp_path):
    config = compose(*BASE, "trainer.max_steps=1", STEPS[1])
    first = sweep(config, {"trainer.learning_rate": [1e38, 1e37]}, directory=tmp_path / "s")
    assert len(first.sweep.jobs) == 2
    with pytest.raises(UserError, match="holds another sweep"):
        sweep(config, {"trainer.learning_rate": [1e-3]}, directory=tmp_path / "s")


def test_a_grid_of_which_every_job_fails_says_so(tmp_path):
    board = sweep(compose(*BASE, *STEPS), {"trainer.learning_rate": [1e38]}, directory=tmp_path / "s")
    assert board.winner is None and [job.status for job in board.unranked] == ["failed"]
    assert json.loads((tmp_path / "s" / "sweep.json").read_text())["status"] == "failed"


def test_values_of_a_grid_are_typed_as_they_are(tmp_path):
    from sft.sweep.script import _text

    given = [8, 1e-5, True, None, "r8", "a b's", ["q_proj", "k proj"], {"a": [1, "x"]}]
    assert [_text(each) for each in given] == [
        "8", "1e-05", "true", "null", "r8", r"'a b\'s'", "[q_proj,'k proj']", "{a:[1,x]}",
    ]  # fmt: skip


@pytest.mark.parametrize(("objective", "metric"), [("eval_loss", np.positive), ("eval_perplexity", np.exp)])
def test_the_interval_is_of_the_objective_itself(objective, metric):
    draw = np.random.default_rng(0)
    tokens = draw.integers(5, 40, 200).astype(float)
    best = {"value": draw.gamma(2, 1, 200) * tokens, "weight": tokens}
    rows = {"value": best["value"] + draw.normal(0.3, 0.2, 200) * tokens, "weight": tokens}
    found = difference(rows, best, "minimize", perplexity=objective == "eval_perplexity")
    means = [each["value"].sum() / tokens.sum() for each in (rows, best)]
    assert 0 < found.low < metric(means[0]) - metric(means[1]) < found.high
    assert found.verdict == "worse" and found.rows == 200
    assert difference(best, best, "minimize") == Difference(0.0, 0.0, 200, "not told apart")
    assert difference(best, rows, "minimize").verdict == "better"
    assert difference(best, rows, "maximize").verdict == "worse"
