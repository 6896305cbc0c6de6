"""Attacks through YAML: an untrusted config directory or run. Nothing is built, and memory stays bounded."""

from __future__ import annotations

import pytest

from sft.config.command_line.base import over_base
from sft.config.command_line.overrides import parse_command_line
from sft.config.compose import check_command, config_loader
from sft.config.errors import UserError
from sft.safety.yaml_files import MOST_NODES, check_yaml

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
EVIL = "callbacks/evil.yaml"
CHOSEN = "callbacks=evil"

# What is tried: (file in conf/, its text, what is told)
ATTACKS: dict[str, tuple[str, str | bytes, str]] = {
    "a billion laughs of aliases": (EVIL, LAUGHS, f"has aliases that expand to more than {MOST_NODES:,} values"),
    "an alias inside of itself": (EVIL, "a: &a [*a]\n", f"has aliases that expand to more than {MOST_NODES:,} values"),
    "`!!python/object/apply`": (
        EVIL,
        "a: !!python/object/apply:os.system [touch owned]\n",
        "names an object of Python",
    ),
    "a Python tag by its long name": (
        EVIL,
        "a: !<tag:yaml.org,2002:python/name:os.system> x\n",
        "names an object of Python",
    ),
    "YAML of 100,000 brackets": (EVIL, "a: " + "[" * 100_000, "evil.yaml: nested too deeply"),
    "YAML of 2,000 indents": (EVIL, "\n".join(" " * i + "a:" for i in range(2000)), "evil.yaml: nested too deeply"),
    "YAML of 16 MiB": (EVIL, "# " + "x" * (16 << 20), "is larger than 16 MiB, which no config is"),
    "YAML that is not UTF-8": (EVIL, b"a: \xff\xfe\n", "evil.yaml: is not UTF-8"),
    "`_target_` by an alias": (
        EVIL,
        "x: &x {_target_: os.system, command: touch owned}\nevil: *x\n",
        "callbacks.evil._target_: _target_ os.system is not on the list",
    ),
    "`_target_` by a merge key": (
        EVIL,
        "evil:\n  <<: &x {_target_: os.system}\n  command: touch owned\n",
        "callbacks.evil._target_: _target_ os.system is not on the list",
    ),
    "`_target_` in a default of a default": (
        EVIL,
        "defaults:\n  - inner/more\n",
        "_target_ os.system is not on the list",
    ),
    "a factory `()` in Hydra's logging": (
        EVIL,
        "# @package hydra.job_logging\nversion: 1\nhandlers:\n  h: {(): os.system, command: touch owned}\n",
        "os.system is not on the list of what logging may build, and was not run",
    ),
    "another config that allows itself Python's own": (
        EVIL,
        "# @package _global_\nallow_targets: [os.system]\ncallbacks: {evil: {_target_: os.system, command: touch owned}}\n",
        "os.system is part of Python, and no config may call it",
    ),
    "defaults that lead back to themselves": (
        EVIL,
        "defaults: [evil]\n",
        "the defaults of a YAML file lead back to itself",
    ),
    "defaults that are not a list": (EVIL, "defaults: abc\n", "the config cannot be composed: Invalid defaults list"),
    "a default that is a number": (
        EVIL,
        "defaults: [1]\n",
        "the config cannot be composed: Unsupported type in defaults",
    ),
    "a package of four words": (
        EVIL,
        "# @package a b c: d\na: 1\n",
        "the config cannot be composed: Too many components",
    ),
    "a date that is none": (
        EVIL,
        "a: !!timestamp 2020-99-99\n",
        "has a value that cannot be read: month must be in 1..12",
    ),
    "a number that is none": (EVIL, "a: !!int abc\n", "has a value that cannot be read: invalid literal for int()"),
    "a number of 6,000 digits": (EVIL, "a: " + "9" * 6000 + "\n", "has a value that cannot be read: Exceeds the limit"),
    "a number of 6,000 digits, in hexadecimal": (EVIL, "a: 0x" + "f" * 6000, "an integer with more digits than any"),
    "a character that is none": (EVIL, 'a: "\\UFFFFFFFF"\n', "has a value that cannot be read: Python int too large"),
    "a key that is a number": (EVIL, "# @package _global_\n1: a\n", "1: no such key"),
    "`trust_remote_code` of a config that is neither true nor false": (
        EVIL,
        "# @package _global_\nmodel: {trust_remote_code: 'sure'}\n",
        "model.trust_remote_code: 'sure' is not true or false",
    ),
}


@pytest.fixture
def told(tmp_path, monkeypatch):
    """What is told of a command in a directory with these configs."""
    monkeypatch.chdir(tmp_path)

    def answer(file: str, text: str | bytes, *arguments: str) -> str:
        path = tmp_path / "conf" / file
        (path.parent / "inner").mkdir(parents=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        (path.parent / "inner" / "more.yaml").write_text("evil: {_target_: os.system, command: touch owned}\n")
        try:
            check_command(config_loader(), "train", list(arguments), "train", False)
        except Exception as error:
            return str(error)
        return ""

    return answer


@pytest.mark.parametrize("name", ATTACKS)
def test_each_hostile_yaml_file_is_refused_with_its_reason(name, told, tmp_path):
    file, text, reason = ATTACKS[name]
    assert reason in told(file, text, CHOSEN)
    assert not (tmp_path / "owned").exists()


def test_legitimate_aliases_are_read(tmp_path):
    path = tmp_path / "fine.yaml"
    path.write_text("x: &x {b: [1, 2]}\ny: *x\nz: [*x, *x]\n")
    assert check_yaml(path) is None


# What a run directory from elsewhere may hold: (text of config.resolved.yaml, what is told)
RUNS: dict[str, tuple[str, str]] = {
    "a run's config with a Python object": ("a: !!python/name:os.system\n", "names an object of Python"),
    "a run's config of aliases": (LAUGHS, "has aliases that expand to more than"),
    "a run's config that names code": (
        "callbacks: {evil: {_target_: os.system}}\n",
        "callbacks.evil._target_: _target_ os.system is not on the list",
    ),
    "a run's config that is a list": ("[1, 2]\n", "has no mapping at its top level"),
    "a run's config that is cut off": ("a: {b: [", "is not YAML"),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_hostile_run_directory_is_refused(name, tmp_path):
    text, reason = RUNS[name]
    (tmp_path / "config.resolved.yaml").write_text(text)
    line = parse_command_line([f"run={tmp_path}"])
    with pytest.raises(UserError) as caught:
        loader = config_loader()
        config_name, overrides = over_base(loader, "evaluate", "evaluate", line.overrides)
        check_command(loader, config_name, overrides, "evaluate", False)
    assert reason in str(caught.value)


ATTACKS_ON_RUNS = RUNS
