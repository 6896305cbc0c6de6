"""Attacks through the command line: code, secrets and paths in a config. Each is refused before anything is built."""

from __future__ import annotations

import pytest

from sft.config.command_line.overrides import parse_command_line
from sft.config.compose import check_command, config_loader

TOKEN = "hf_" + "s3cr3tT0k3n" * 2
NOT_LISTED = "is not on the list of what a config may build, and was not run"
BY_LOGGING = "is not on the list of what logging may build, and was not run"
WRITTEN = "and a config is written into the run directory"
INSIDE = "'${hydra.runtime.output_dir}/x.log'"
INNER = "sft.training.callbacks.validation.Validation"

# What is tried: (overrides, what is told)
ATTACKS: dict[str, tuple[list[str], str]] = {
    "`_target_: os.system`": (["++callbacks.evil={_target_: os.system, command: x}"], f"os.system {NOT_LISTED}"),
    "a shell of a package that is used": (
        ["++callbacks.evil={_target_: torch.utils.collect_env.run, command: x}"],
        f"torch.utils.collect_env.run {NOT_LISTED}",
    ),
    "`os` by way of another module": (
        ["++callbacks.evil={_target_: logging.os.system}"],
        f"logging.os.system {NOT_LISTED}",
    ),
    "`builtins.eval`": (["++callbacks.evil={_target_: builtins.eval}"], f"builtins.eval {NOT_LISTED}"),
    "a function of sft that no YAML names": (
        ["++callbacks.evil={_target_: sft.run.disk.atomic.remove_directory}"],
        f"sft.run.disk.atomic.remove_directory {NOT_LISTED}",
    ),
    "`_target_` with `_partial_`": (
        ["++callbacks.evil={_target_: os.system, _partial_: true}"],
        f"os.system {NOT_LISTED}",
    ),
    "`_target_` in a list in a node": (
        [f"++callbacks.evil={{_target_: {INNER}, every: [{{_target_: os.system}}]}}"],
        f"callbacks.evil.every[0]._target_: _target_ os.system {NOT_LISTED}",
    ),
    "`_target_` below `_recursive_: false`": (
        [f"++callbacks.evil={{_target_: {INNER}, _recursive_: false, every: {{_target_: os.system}}}}"],
        f"callbacks.evil.every._target_: _target_ os.system {NOT_LISTED}",
    ),
    "`_target_` by interpolation": (["++callbacks.evil={_target_: '${name}'}", "name=os.system"], NOT_LISTED),
    "`_target_` out of the environment": (["++callbacks.evil={_target_: '${oc.env:HOME}'}"], NOT_LISTED),
    "`_target_` that is a list": (["++callbacks.evil={_target_: [os.system]}"], NOT_LISTED),
    "`_target_` of a dataset's generator": (
        ["++dataset.sources.tickets.generator={_target_: os.system}"],
        f"os.system {NOT_LISTED}",
    ),
    "`_target_` of a row converter": (
        ["++dataset.sources.tickets.convert={_target_: os.system}"],
        f"os.system {NOT_LISTED}",
    ),
    "`_target_` of the evaluation": (["evaluation._target_=os.system"], f"os.system {NOT_LISTED}"),
    "`_target_` of Hydra's launcher": (["hydra.launcher._target_=os.system"], f"os.system {NOT_LISTED}"),
    "`_target_` of Hydra's sweeper, by interpolation": (
        ["++hydra.sweeper={_target_: '${name}'}", "name=os.system"],
        NOT_LISTED,
    ),
    "`_target_` of a callback of Hydra's": (
        ["++hydra.callbacks.evil={_target_: os.system}"],
        f"os.system {NOT_LISTED}",
    ),
    "`allow_targets` for Python's own": (
        ["allow_targets=[os.system]", "++callbacks.evil={_target_: os.system}"],
        "os.system is part of Python, and no config may call it",
    ),
    "a class in Hydra's logging": (
        ["++hydra.job_logging={version: 1, handlers: {h: {class: subprocess.Popen, args: [touch, owned]}}}"],
        f"subprocess.Popen {BY_LOGGING}",
    ),
    "an object by `ext://` in Hydra's logging": (
        ["++hydra.job_logging={version: 1, handlers: {h: {class: logging.StreamHandler, stream: 'ext://os.environ'}}}"],
        "ext://os.environ would be imported",
    ),
    "a module that peft would import": (
        ["++lora.megatron_config={a: 1}", "++lora.megatron_core=evil"],
        "'evil' would be imported, and is not Megatron",
    ),
    "`LD_PRELOAD` set by Hydra": (["++hydra.job.env_set.LD_PRELOAD=evil.so"], "may decide which code programs run"),
    "a program by git's settings, set by Hydra": (
        ["++hydra.job.env_set.GIT_CONFIG_COUNT='1'"],
        "env_set.GIT_CONFIG_COUNT: may decide which code programs run",
    ),
    "the hub's address set by Hydra": (
        ["++hydra.job.env_set.HF_ENDPOINT=http://127.0.0.1:1"],
        "env_set.HF_ENDPOINT: may decide which code programs run, or which hosts they contact",
    ),
    "a secret set by Hydra": (["++hydra.job.env_set.HF_TOKEN=abc"], f"is a secret by its name, {WRITTEN}"),
    "a secret variable in a value": (
        ["name=${oc.env:HF_TOKEN}"],
        f"name: holds the value of the environment variable HF_TOKEN, {WRITTEN}",
    ),
    "a secret variable in the run directory's name": (
        ["hydra.run.dir=outputs/${oc.env:HF_TOKEN}"],
        f"hydra.run.dir: reads the environment variable HF_TOKEN, {WRITTEN}",
    ),
    "a secret variable's value typed": ([f"dataset.sources.tickets.path=/data/{TOKEN}"], f"HF_TOKEN, {WRITTEN}"),
    "an access token typed": (["name=hf_abcdefghijklmnopqrstuvwxyz"], f"name: looks like an access token, {WRITTEN}"),
    "a login in a model's address": (
        ["model.name=https://me:pass@host/model"],
        f"model.name: holds a login, {WRITTEN}",
    ),
    "a login in a dataset's address": (
        ["dataset=local", "dataset.path=https://me:pass@host/rows.jsonl"],
        f"dataset.path: holds a login, {WRITTEN}",
    ),
    "`trainer.hub_token`": (
        ["trainer.hub_token=abc"],
        "this setting belongs to the environment variable HF_TOKEN",
    ),
    "a key for the tracker": (["tracker=wandb", "+tracker.api_key=abc"], "tracker.api_key: is a secret by its name"),
    "a secret among the template's variables": (
        ["++template.kwargs.api_key=abc"],
        f"template.kwargs.api_key: is a secret by its name, {WRITTEN}",
    ),
    "`name` that leads up": (["name=../../etc"], "'../../etc' is not a valid name"),
    "`name` that is a path": (["name=/etc/sft"], "'/etc/sft' is not a valid name"),
    "`name` that begins in a home": (["name='~root/x'"], "'~root/x' is not a valid name"),
    "`name` with a terminal's escape": (["name='a\x1b]0;owned\x07'"], "a name has no control or invisible characters"),
    "`name` with a mark that reverses it": (["name='a\u202egpj.exe'"], "a name has no control or invisible characters"),
    "`name` of 5,000 characters": (["name=" + "a" * 5000], "a name has at most 100 characters, this one 5,000"),
    "a source's name that leads up": (
        ["++dataset.sources={../../x: {path: a.jsonl}}"],
        "'../../x' is not a valid name: it would lead out of its directory",
    ),
    "`hydra.output_subdir` that leads out": (["hydra.output_subdir=../../x"], "leads out of its directory"),
    "`hydra.sweep.subdir` that leads out": (["hydra.sweep.subdir=/etc"], "leads out of its directory"),
    "a hub repository that is a path": (["hub.push=../../etc/passwd"], "is not a repository of the hub"),
    "a value of 3,000 brackets": (["++name=" + "[" * 3000 + "]" * 3000], "nested too deeply"),
    "a value that is itself": (["name=${name}"], "Recursive interpolation detected"),
    "values in a ring": (["++name=${project}", "++project=${name}"], "Recursive interpolation detected"),
    "a seed of 40 digits": (["seed=" + "9" * 40], "is not a whole number between 0 and 4294967295"),
    "a rank below 1": (["lora.r=-1"], "lora.r: -1 is not a whole number of 1 or more"),
    "a learning rate of NaN": (["trainer.learning_rate=nan"], "nan is not a number of 0 or more"),
    "an infinite learning rate": (["trainer.learning_rate=inf"], "inf is not a number of 0 or more"),
    "a huge batch": (["trainer.per_device_train_batch_size=1" + "0" * 20], "is not a whole number of 1 or more"),
    "several values without `-m`": (["model.name=a,b"], "several values are given for a single run"),
    "a log outside of the run directory": (
        ["++hydra.job_logging={version: 1, handlers: {h: {class: logging.FileHandler, filename: /tmp/x.log}}}"],
        "/tmp/x.log is written outside of the run directory",
    ),
    "interpolations without end": (
        ["++x0=aaaaaaaaaa", *(f"++x{n}='{f'${{x{n - 1}}}' * 10}'" for n in range(1, 10))],
        "interpolations expand to more than 1,000,000 characters or values",
    ),
    "an environment variable that another value names": (
        ["hydra.run.dir='${oc.env:${name}}'", "name=MY_API_KEY"],
        "reads an environment variable that another value names",
    ),
    "a secret named KEY alone, asked for": (["objective='${oc.env:OPENAI_KEY}'"], "OPENAI_KEY"),
    "control characters in the run directory": (
        ["hydra.run.dir='a\x1b[2Jb'"],
        "hydra.run.dir: a directory's name has no control characters",
    ),
    "a name of 300 letters in the run directory": (
        ["hydra.run.dir=" + "a" * 300],
        "hydra.run.dir: a name has at most 255 bytes",
    ),
    "a key of 3,000 letters": (["++" + "a" * 3000 + "=1"], "no such key"),
    "a model taken away": (["~model"], "~model: cannot be removed"),
    "a `_target_` taken away": (["~trainer._target_"], "~trainer._target_: cannot be removed"),
    "`allow_targets` that is not a list": (["allow_targets=true"], "allow_targets: True is not a list of names"),
    "`allow_targets` of lists": (["allow_targets=[[1]]"], "allow_targets: [[1]] is not a list of names"),
    "null for a group": (["quant=null"], "quant: null is not an option"),
    "a truth value taken away from a group": (["~lora=true"], "lora: cannot be removed: True is not an option"),
    "one bad value of a sweep": (["-m", "lora.r=8,0"], "lora.r: 0 is not a whole number of 1 or more"),
}


@pytest.fixture(scope="module")
def loader():
    return config_loader()


@pytest.fixture
def told(loader, monkeypatch):
    """Overrides -> what is told of them, empty where nothing is."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def answer(arguments: list[str]) -> str:
        line = parse_command_line(arguments)
        try:
            check_command(loader, "train", line.overrides, "train", line.multirun)
        except Exception as error:
            return str(error)
        return ""

    return answer


@pytest.mark.parametrize("name", ATTACKS)
def test_each_hostile_config_is_refused_with_its_reason(name, told):
    overrides, reason = ATTACKS[name]
    answer = told(overrides)
    assert reason in answer
    assert TOKEN not in answer and ":pass@" not in answer


def test_similar_legitimate_configs_are_accepted(told):
    for fine in (
        ["name=team/first try"],
        ["++hydra.job.env_set.OMP_NUM_THREADS=2"],
        ["template.system='Keys begin with hf_, logins are user:password.'"],
        ["allow_targets=[mine.Callback]"],
        ["hub.push=me/my-model_1.0"],
        [f"++hydra.job_logging={{version: 1, handlers: {{h: {{class: logging.FileHandler, filename: {INSIDE}}}}}}}"],
        ["lora.r=1", "trainer.learning_rate=0", "trainer.max_steps=-1", "seed=0"],
    ):
        assert told(fine) == "", fine
