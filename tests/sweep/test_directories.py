"""Two jobs of a sweep never write to the same directory."""

import pytest
from hydra.types import RunMode
from hydra.utils import instantiate

from sft.config.compose import config_loader
from sft.config.errors import PastHydra, UserError
from sft.sweep.directories import refuse_shared_directories


@pytest.fixture
def check(tmp_path):
    """subdir, overrides of each job (None: a search), more of the command line -> the check's answer."""

    def checked(subdir, jobs, *more):
        overrides = ["model=tiny", f"hydra.sweep.dir={tmp_path}", *more]
        overrides += [f"hydra.sweep.subdir={subdir}"] if subdir else []
        config = config_loader().load_configuration("train", overrides, RunMode.MULTIRUN)
        refuse_shared_directories(config, jobs)

    return checked


SEEDS = [["seed=1"], ["seed=2"]]


@pytest.mark.parametrize(
    ("subdir", "jobs"),
    [
        (None, SEEDS),
        (None, [["seed=1"], ["seed=1"]]),
        ("${hydra.job.num}", SEEDS),
        ("seed_${seed}", SEEDS),
        ("${hydra.job.override_dirname}", SEEDS),
        ("same", [["seed=1"]]),
        (None, None),
        ("trial_${hydra.job.num}", None),
        ("${nothing.of.that.name}", SEEDS),
    ],
)
def test_distinct_directories_are_accepted(check, subdir, jobs):
    assert check(subdir, jobs) is None  # nothing is raised


@pytest.mark.parametrize(
    ("subdir", "jobs", "words"),
    [
        ("same", SEEDS, "jobs 0 and 1 would both write .*/same"),
        ("r${lora.r}", [["lora.r=2", "seed=1"], ["lora.r=4", "seed=1"], ["lora.r=2", "seed=2"]], "jobs 0 and 2 .*/r2"),
        ("${hydra.job.override_dirname}", [["seed=1"], ["seed=1"]], "jobs 0 and 1"),
        ("x/../${name}", SEEDS, "jobs 0 and 1 would both write .*/sft"),
        ("same", None, "same does not contain the job's number"),
        ("seed_${seed}", None, ".* does not contain the job's number"),
    ],
)
def test_two_jobs_in_one_directory_are_refused(check, subdir, jobs, words):
    with pytest.raises(UserError, match=f"^hydra.sweep.subdir: {words}"):
        check(subdir, jobs)


@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_two_jobs_in_one_directory_are_refused_with_every_launcher(check, launcher):
    with pytest.raises(UserError, match="jobs 0 and 1 would both write"):
        check("same", SEEDS, f"hydra/launcher={launcher}")


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_directories_are_checked_before_the_first_job_of_every_command_that_writes(command, tmp_path):
    config = config_loader().load_configuration(
        command,
        ["model=tiny", "seed=1,2", f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=same"],
        RunMode.MULTIRUN,
    )
    started = [instantiate(node) for node in config.hydra.callbacks.values()]
    with pytest.raises(PastHydra) as refused:
        for callback in started:
            callback.on_multirun_start(config, config_name=command)
    assert "jobs 0 and 1 would both write" in str(refused.value.error)
