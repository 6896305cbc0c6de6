"""Launchers: real processes, with a fast function instead of training."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from hydra.types import RunMode

from sft.config.compose import config_loader
from sft.config.errors import Interrupted, PastHydra
from sft.sweep.launchers.devices import assign_devices, claim_slot, threads_each, use_devices, visible_devices
from sft.sweep.launchers.submit import Submitted, _result

ROOT = Path(__file__).parents[3]
DOOR = '''
import json, os
from pathlib import Path

from sft.config.app import command


@command("train")
def main(config):
    """Note what this process sees, and give |r - 6| as the objective; `name` says what is to go wrong."""
    from hydra.core.hydra_config import HydraConfig

    from sft.config.errors import Pruned, UserError
    from sft.sweep.search.pruning import current

    directory = Path(HydraConfig.get().runtime.output_dir)
    seen = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}
    with open(directory / "starts.jsonl", "a") as file:
        file.write(json.dumps({**seen, "pid": os.getpid()}) + "\\n")
    many = len((directory / "starts.jsonl").read_text().splitlines())
    if config.lora.r == 4 and (config.name == "faults" or (config.name == "killed_once" and many == 1)):
        os.kill(os.getpid(), 9)
    if config.lora.r == 5 and config.name == "faults":
        raise UserError("does not fit", where="lora.r", remedy="lora.r=8")
    value = float(abs(config.lora.r - 6))
    if (reporter := current()) is not None:
        reporter.report(1, value)
        if reporter.should_prune():
            raise Pruned("given up")
    return value


if __name__ == "__main__":
    main()
'''


@pytest.fixture
def launch(tmp_path):
    """Arguments -> the finished process of a sweep into tmp_path/sweep."""
    door = tmp_path / "door.py"
    door.write_text(DOOR)

    def start(*arguments, **environment):
        command = [sys.executable, str(door), "-m", "lora=r8", *arguments, f"hydra.sweep.dir={tmp_path}/sweep"]
        env = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        env |= {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **environment}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)

    return start


def starts(tmp_path):
    """{job's directory: what each of its starts saw}."""
    return {
        path.parent.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted((tmp_path / "sweep").glob("*/starts.jsonl"))
    }


def test_each_worker_gets_its_own_devices_while_there_are_enough():
    assert [assign_devices(["0", "1", "5", "7"], slot) for slot in range(4)] == [["0"], ["1"], ["5"], ["7"]]
    assert [assign_devices(["0", "1", "5", "7"], slot, each=2) for slot in range(2)] == [["0", "1"], ["5", "7"]]
    assert [assign_devices(["0", "1"], slot) for slot in range(3)] == [["0"], ["1"], ["0"]]
    assert assign_devices(["GPU-a", "GPU-b"], 0, each=4) == ["GPU-a", "GPU-b"]
    assert assign_devices([], 3) == []


def test_visible_devices_are_those_of_the_environment():
    assert visible_devices({"CUDA_VISIBLE_DEVICES": "2, GPU-f3"}) == ["2", "GPU-f3"]
    assert visible_devices({"CUDA_VISIBLE_DEVICES": ""}) == []
    assert visible_devices({"CUDA_VISIBLE_DEVICES": "-1"}) == []


def test_threads_are_divided_unless_the_user_sets_them(monkeypatch):
    monkeypatch.setattr("sft.sweep.launchers.devices.usable_cores", lambda: 10)
    assert [threads_each(workers, {}) for workers in (1, 3, 16)] == [10, 3, 1]
    assert threads_each(3, {"OMP_NUM_THREADS": "6"}) == 6


def test_a_worker_sees_only_its_devices():
    environment = {"PATH": "/bin"}
    import torch

    before = torch.get_num_threads()
    use_devices(["1", "3"], 1, environment)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)
    assert environment == {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "1,3",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }


def test_a_slot_belongs_to_one_process_until_it_ends(tmp_path):
    script = f"from pathlib import Path; from sft.sweep.launchers.devices import claim_slot; print(claim_slot(Path({str(tmp_path)!r}), 3))"
    assert claim_slot(tmp_path, 3) == 0
    for _ in range(2):  # the first one's end frees its slot
        found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
        assert found.stdout == "1\n"
    claim_slot(tmp_path, 3), claim_slot(tmp_path, 3)
    with pytest.raises(RuntimeError, match="all 3 slots"):
        claim_slot(tmp_path, 3, patience=0)


def test_joblib_assigns_gpus_and_cores_and_reruns_a_killed_job(tmp_path, launch):
    done = launch(
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        "name=killed_once",
        "lora.r=4,8,16,32",
        CUDA_VISIBLE_DEVICES="3,5",
    )
    assert done.returncode == 0, done.stderr
    found = starts(tmp_path)
    assert list(found) == ["0_lora.r-4", "1_lora.r-8", "2_lora.r-16", "3_lora.r-32"]
    assert len(found["0_lora.r-4"]) == 2 and len(found["3_lora.r-32"]) == 1
    seen = [each for job in found.values() for each in job]
    device_of = {each["pid"]: each["CUDA_VISIBLE_DEVICES"] for each in seen}
    assert set(device_of.values()) == {"3", "5"}
    assert all(each["CUDA_VISIBLE_DEVICES"] == device_of[each["pid"]] for each in seen)
    assert {each["OMP_NUM_THREADS"] for each in seen} == {str(max(1, len(os.sched_getaffinity(0)) // 2))}


def test_a_job_that_fails_or_kills_its_worker_does_not_stop_the_others(tmp_path, launch):
    done = launch("hydra/launcher=joblib", "name=faults", "lora.r=4,5,8")
    assert done.returncode == 1, done.stderr
    found = starts(tmp_path)
    assert len(found["0_lora.r-4"]) == 2
    # on a busy machine the last job may be under way when the pool breaks, and is then begun again
    assert len(found["2_lora.r-8"]) in (1, 2)
    jobs = json.loads((tmp_path / "sweep/sweep.json").read_text())["jobs"]
    assert [job["status"] for job in jobs[:2]] == ["failed", "failed"]
    assert jobs[0]["error"].startswith("its process died: A worker process")
    assert jobs[1]["error"] == "lora.r: does not fit\n  -> lora.r=8"
    assert jobs[2]["error"] is None
    assert "error: 2 of 3 jobs failed" in done.stderr and "Traceback" not in done.stderr


def test_submitit_runs_each_job_in_a_process_and_continues_after_a_failure(tmp_path, launch):
    done = launch("hydra/launcher=submitit_local", "name=faults", "lora.r=5,8", CUDA_VISIBLE_DEVICES="3,5")
    assert done.returncode == 1 and "error: 1 of 2 jobs failed" in done.stderr
    found = starts(tmp_path)
    assert {name: seen[0]["CUDA_VISIBLE_DEVICES"] for name, seen in found.items()} == {
        "0_lora.r-5": "3",
        "1_lora.r-8": "5",
    }
    assert found["0_lora.r-5"][0]["pid"] != found["1_lora.r-8"][0]["pid"]
    jobs = json.loads((tmp_path / "sweep/sweep.json").read_text())["jobs"]
    assert [job["error"] for job in jobs] == ["lora.r: does not fit\n  -> lora.r=8", None]


def test_a_submitted_job_that_was_killed_has_no_result():
    class Killed:
        def results(self):
            raise RuntimeError("Job 7 has not produced any output\nand so on")

    found = _result(Killed(), ["lora.r=4"])
    assert (found.overrides, found.return_value) == (["lora.r=4"], None)
    assert found.error == "its process died: Job 7 has not produced any output"


def test_a_job_at_its_time_limit_is_requeued():
    """As submitit does it: the job gets SIGUSR1, writes its checkpoint, and then submitit's own handler is to see it."""

    class Sweep:
        def run(self, overrides, number):
            raise PastHydra(Interrupted("stopped by SIGUSR1 at step 3", 128 + signal.SIGUSR1))

    taken = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: taken.append(number))
    try:
        with pytest.raises(PastHydra):
            Submitted(Sweep(), None, None)(["lora.r=4"], 0)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert taken == [signal.SIGUSR1]


def test_our_options_take_precedence_over_a_published_plugins():
    ConfigStore.instance().store(group="hydra/launcher", name="joblib", node={"n_jobs": -1, "verbose": 0})
    config = config_loader().load_configuration("train", ["hydra/launcher=joblib"], RunMode.MULTIRUN)
    assert dict(config.hydra.launcher) == {
        "_target_": "hydra_plugins.sft_joblib_launcher.JoblibLauncher",
        "n_jobs": None,
        "gpus_per_job": 1,
    }


@pytest.mark.slow
def test_a_search_in_parallel_prunes_through_its_storage(tmp_path, launch):
    done = launch(
        "hydra/launcher=joblib",
        "hydra/sweeper=optuna",
        "hydra.sweeper.sampler=grid",
        "hydra.sweeper.n_jobs=2",
        "hydra.sweeper.pruner=median",
        "hydra.sweeper.pruner_startup_trials=2",
        "lora.r=5,6,30,31",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "sweep/optimization_results.json").read_text())
    assert [row["status"] for row in found["trials"]] == ["finished", "finished", "pruned", "pruned"]
    assert found["best"]["overrides"] == "lora.r=6"
    assert sorted(starts(tmp_path)) == ["0_lora.r-5", "1_lora.r-6", "2_lora.r-30", "3_lora.r-31"]


def test_a_search_with_seeds_names_its_jobs_and_records_the_seed(tmp_path, launch):
    done = launch(
        "hydra/sweeper=optuna", "hydra.sweeper.n_trials=1", "hydra.sweeper.seeds=[7,8]", "lora.r=int(interval(1,9))"
    )
    assert done.returncode == 0, done.stderr
    r = json.loads((tmp_path / "sweep/optimization_results.json").read_text())["best"]["params"]["lora.r"]
    assert sorted(starts(tmp_path)) == [f"0_lora.r-{r}_seed-7", f"1_lora.r-{r}_seed-8"]
    content = json.loads((tmp_path / "sweep/sweep.json").read_text())
    assert content["swept"] == ["lora.r", "seed"]
    assert [job["overrides"] for job in content["jobs"]] == [{"lora.r": r, "seed": "7"}, {"lora.r": r, "seed": "8"}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["hydra/sweeper=optuna", "hydra.sweeper.pruner=median", "trainer.eval_strategy='no'", "lora.r=4,8"],
            "a pruner needs evaluations, and these jobs make none",
        ),
        (["hydra/launcher=submitit_slurm", "lora.r=4,8"], 'submitit_slurm: Could not detect "srun"'),
    ],
)
def test_impossible_settings_are_user_errors(launch, arguments, message):
    done = launch(*arguments)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
