"""The documentation's commands and links: every command composes and passes the check, so a renamed key breaks a test.

The slow tests run them as a new user would: in an empty directory, with the tiny model instead of hub models.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

import pytest

from sft.config.command_line.overrides import parse_command_line
from sft.config.compose import check_command, config_loader

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("[!_]*.md"))]
STARTS = (
    r"(?:\S*/)?python|torchrun [^\n]*?|(?:\S*/)?python -m torch\.distributed\.run [^\n]*?|accelerate launch [^\n]*?"
)
COMMAND = re.compile(rf"^(?:\$ )?(?:{STARTS}) -m sft\.(\w+)(.*)$")
PLACEHOLDERS = re.compile(r"\b(FILE|DIR)\b")
# commands that are shown for the error they give, by what the error must hold
MISTAKES = {
    "train experiment=smoke model=mine dataset=sums callbacks=[default,gradient_norms] hydra.run.dir=outputs/mine": "allow_targets",
    "train experiment=smoke callbacks=[default,gradient_norms] allow_targets=[norms.GradientNorms] "
    "callbacks.gradient_norms.abov=1": "did you mean callbacks.gradient_norms.above?",
    "train experiment=smoke trainer.learnig_rate=1e-4 dataset.max_lenght=512": "trainer.learning_rate",
    "train experiment=smok": "did you mean experiment=smoke?",
    "train trainer.seed=3": "this setting belongs to seed",
    "train trainer.save_steps=50": "it is read where trainer.save_strategy is steps",
    "train experiment=smoke lora=none lora.r=8": "lora is off (lora=none)",
    "train model=tiny quant=nf4 lora=none": "quantized weights cannot be trained in full",
}


class Command(NamedTuple):
    """One command of a page."""

    page: str
    name: str
    arguments: tuple[str, ...]

    @property
    def line(self) -> str:
        return " ".join((self.name, *self.arguments))


def blocks(text: str) -> list[str]:
    """The fenced code blocks of a page, indented ones without their indent."""
    found = re.findall(r"^( *)```[^\n]*\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", body, flags=re.MULTILINE) for indent, body in found]


def commands_in(text: str, page: str) -> list[Command]:
    """Every `python -m sft.…` of a page's code blocks; a line that ends in a backslash goes on."""
    found = []
    for block in blocks(text):
        for line in block.replace("\\\n", " ").splitlines():
            if match := COMMAND.match(line):
                found.append(Command(page, match[1], tuple(shlex.split(match[2], comments=True))))
    return found


COMMANDS = [c for page in PAGES for c in commands_in(page.read_text(encoding="utf-8"), page.name) if "…" not in c.line]
COMMANDS = list({command.line: command for command in COMMANDS}.values())


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A directory with the files that CONTRIBUTING.md's examples consist of, each named by its block's first line."""
    directory = tmp_path_factory.mktemp("docs")
    example_files(directory)
    assert len(list(directory.rglob("*.*"))) == 11
    for name in ("there", "bad.jsonl", "tools.jsonl"):
        (directory / name).touch()
    return directory


@pytest.fixture(scope="module")
def loader(workplace):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        patch.syspath_prepend(workplace)
        patch.delenv("MODEL_ID", raising=False)
        yield config_loader()


def faults(loader, name: str, arguments: tuple[str, ...]) -> str:
    """What is wrong with a command, empty where nothing is."""
    line = parse_command_line(list(arguments))
    try:
        check_command(loader, name, line.overrides, name, line.multirun, runs=False)  # extras may be missing
    except Exception as error:
        return str(error) or repr(error)
    return ""


def filled(arguments: tuple[str, ...], workplace: Path) -> tuple[str, ...]:
    """Arguments with files in the place of FILE and DIR."""
    return tuple(PLACEHOLDERS.sub(str(workplace / "there"), argument) for argument in arguments)


def test_the_pages_have_every_command():
    commands = {path.stem for path in (ROOT / "sft").glob("*.py")} - {"__init__", "api"}
    named = {command.name for command in COMMANDS}
    assert named <= commands, "a command that does not exist"
    assert {"train", "preview"} <= named


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c.line not in MISTAKES], ids=lambda c: f"{c.page}: {c.line}"
)
def test_a_command_composes_and_passes_the_check(command, loader, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    arguments = filled(command.arguments, workplace)
    assert faults(loader, command.name, arguments) == ""


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.line in MISTAKES], ids=lambda c: c.line)
def test_documented_mistakes_are_still_refused(command, loader):
    assert MISTAKES[command.line] in faults(loader, command.name, command.arguments)


def test_every_kind_of_mistake_is_documented():
    assert set(MISTAKES) == {command.line for command in COMMANDS} & set(MISTAKES)


def test_an_unknown_key_would_be_detected(loader):
    assert "no such key" in faults(loader, "train", ("lora.rnak=8",))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "outputs/README.md"], ids=lambda p: p.name)
def test_links_between_pages_are_valid(page):
    links = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_tests_that_a_page_names_are_there(page):
    named = re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", page.read_text(encoding="utf-8"))
    missing = [file for file, _ in named if not (ROOT / file).is_file()]
    assert missing == [] and [each for each in named if each[1] not in (ROOT / each[0]).read_text()] == []


def test_readme_starts_with_the_two_commands():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines[1:6] if line] == ["```", "make demo", "make test", "```"]


# -- the newcomer's day: the commands run for real ---------------------------------------------------------------------

SUMS = [
    {"messages": [{"role": "user", "content": f"What is {n}+4?"}, {"role": "assistant", "content": str(n + 4)}]}
    for n in range(40)
]
# of five rows the last three are broken, as README shows them
BAD = [*map(json.dumps, SUMS[:2]), json.dumps({"messages": SUMS[0]["messages"][:1]}), '{"messages": 3}', '{"messages']
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 4}}}
TOOL = {"type": "function", "function": {"name": "add", "description": "a sum", "parameters": {"type": "object"}}}
CALLED = {
    "messages": [
        {"role": "user", "content": "What is 1+4?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "5"},
        {"role": "assistant", "content": "5"},
    ],
    "tools": [TOOL],
}
# what needs a network, a key, a cluster or files that are not made here
ELSEWHERE = (
    "hub.push=",
    "submitit_slurm",
    "prepare source=",
    "arc_easy",
    "capitals",
    "judge=gemini",
    "judge=openai",
    "judge=deepeval",
)
HUB_MODELS = re.compile(r"^model=(qwen3\w*)$")
# commands whose error is what the page is about
REFUSED = (
    "train experiment=smoke dataset=local dataset.path=bad.jsonl",
    "train model=tiny lora.target_modules=[qq_proj]",
    "train model=tiny lora.rank_pattern={qq_proj: 2}",
    "train experiment=smoke dataset=local dataset.path=FILE.jsonl dataset.max_length=8",
    "train experiment=smoke dataset=local dataset.path=tools.jsonl template=llama2",
    "webui run=DIR host=0.0.0.0",
)
GRID = "outputs/ranks/grid"


class Day:
    """A directory of a newcomer's, in which commands are run.

    Args:
        place: the directory.
        cache: where models and tokens are kept.
    """

    def __init__(self, place: Path, cache: Path) -> None:
        self.place = place
        known = {key: value for key, value in os.environ.items() if key not in ("MODEL_ID", "HF_TOKEN")}
        more = {"SFT_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self.environment = {**known, **more, "PYTHONPATH": f"{ROOT}{os.pathsep}{place}"}

    def run(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `python -m sft.<name>`; a chat that waits for input gets a line, a server is ended once it serves."""
        command = [sys.executable, "-m", f"sft.{name}", *arguments]
        given = {"cwd": self.place, "env": self.environment, "text": True}
        if name != "webui":
            return subprocess.run(command, input="What is 1+4?\n", capture_output=True, timeout=500, **given)
        return self._served(command, given)

    def _served(self, command: list[str], given: dict) -> subprocess.CompletedProcess[str]:
        """Run a server until it tells its address, or fails."""
        with tempfile.TemporaryFile("w+") as errors:
            server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, **given)
            watch = threading.Timer(120, server.kill)
            watch.start()
            address = server.stdout.readline()
            if address:
                server.send_signal(signal.SIGTERM)
            code = server.wait()
            watch.cancel()
            errors.seek(0)
            return subprocess.CompletedProcess(
                command, 0 if address and code == 128 + signal.SIGTERM else code, address, errors.read()
            )

    def done(self, name: str, *arguments: str) -> None:
        """Run a command that has to succeed."""
        finished = self.run(name, *arguments)
        assert finished.returncode == 0, finished.stderr[-3000:]


def example_files(place: Path, page: Path = ROOT / "CONTRIBUTING.md") -> None:
    """The files that a page's examples consist of, each named by its block's first line, and CONTRIBUTING's rows."""
    for block in blocks(page.read_text(encoding="utf-8")):
        if match := re.match(r"# (\S+\.(?:yaml|py))\n", block):
            (place / match[1]).parent.mkdir(parents=True, exist_ok=True)
            (place / match[1]).write_text(block)
    write_rows(place / "sums.jsonl", SUMS)
    write_rows(place / "pairs.jsonl", [{"sum": f"{n}+4", "is": n + 4} for n in range(40)])


def write_rows(path: Path, rows: list[dict]) -> None:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    """A newcomer's directory with rows, two finished runs (one merged) and a sweep."""
    found = Day(tmp_path_factory.mktemp("day"), tmp_path_factory.mktemp("cache"))
    example_files(found.place)
    example_files(found.place, ROOT / "docs/benchmarks.md")
    asked = [{"question": f"{n}+4?", "choices": [str(n + 4), "0"], "label": 0} for n in range(4)]
    write_rows(found.place / "tasks/sums.jsonl", asked)
    write_rows(found.place / "tools.jsonl", [CALLED] * 8)
    for name in ("FILE", "FILE.jsonl", "FILE, (second) try=2.jsonl"):
        (found.place / name).write_text((found.place / "sums.jsonl").read_text())
    (found.place / "FILE").rename(found.place / "rows.jsonl")
    (found.place / "bad.jsonl").write_text("\n".join(BAD))
    found.done("train", "experiment=smoke", "hydra.run.dir=outputs/one")
    found.done("train", "experiment=smoke", "lora.r=4", "hydra.run.dir=outputs/two")
    found.done("merge", "run=outputs/one", "output=merged")
    sweep = ("experiment=smoke", "lora.r=4,8", "trainer.learning_rate=1e-3,1e-2", "trainer.max_steps=2")
    found.done("train", "-m", *sweep, f"hydra.sweep.dir={GRID}")
    return found


def for_the_day(command: Command) -> list[str]:
    """A command's arguments with what there is in the place of FILE, DIR and SWEEP, and small enough for a test."""
    arguments = [HUB_MODELS.sub("model=tiny", argument) for argument in command.arguments]
    swaps = (
        (r"^(judge\.model|model\.name)=DIR$", r"\1=merged"),
        (r"^runs=\[DIR,DIR\]$", "runs=[outputs/one,outputs/two]"),
        (r"^run=DIR$", "run=outputs/one"),
        (r"^(run|model\.adapter)=ADAPTER$", r"\1=outputs/one/adapter"),
        (r"^output=DIR$", f"output=output-{COMMANDS.index(command)}"),  # which must not exist yet
        (r"^dir=SWEEP$", f"dir={GRID}"),
        (r"^dataset\.path=FILE$", "dataset.path=rows.jsonl"),
        (r"n_trials=\d+", "n_trials=2"),
    )
    for pattern, there in swaps:
        arguments = [re.sub(pattern, there, argument) for argument in arguments]
    given = {argument.partition("=")[0] for argument in arguments}
    if not given & {"model", "model.name", "run", "runs", "dir"} and "experiment=smoke" not in arguments:
        arguments += ["model=tiny"] if command.name != "doctor" else []
    if command.name == "train" and "--cfg" not in arguments:
        arguments = [a for a in arguments if not re.match(r"(hydra\.sweep\.dir|trainer\.max_steps)=", a)]
        arguments += ["trainer.max_steps=2"]
    if command.name in ("train", "evaluate") and "--cfg" not in arguments:
        arguments += ["evaluation.max_samples=2"]
    return arguments


DAILY = [c for c in COMMANDS if c.line not in MISTAKES and not any(word in c.line for word in ELSEWHERE)]


@pytest.mark.slow
@pytest.mark.parametrize("command", DAILY, ids=lambda c: f"{c.page}: {c.line}")
def test_a_command_does_what_the_page_says(command, day):
    finished = day.run(command.name, *for_the_day(command))
    if command.line in REFUSED:
        assert finished.returncode == 2 and finished.stderr.rpartition("error: ")[2].count("\n") < 12, finished.stderr[
            -3000:
        ]
    else:
        assert finished.returncode == 0, finished.stderr[-3000:]
        assert finished.stdout.strip()
    assert "Traceback" not in finished.stderr


@pytest.mark.slow
@pytest.mark.parametrize("line", REFUSED)
def test_the_refused_mistakes_are_still_documented(line):
    assert line in {command.line for command in DAILY}


def without_figures(text: str) -> list[str]:
    """The lines of an output without times and figures, which are another machine's."""
    text = re.sub(r"^\d\d:\d\d:\d\d ", "", text, flags=re.MULTILINE)
    text = re.sub(r"kept in the cache \S+", "kept in the cache", text)
    return [re.sub(r"\d[\d,.]*(e-?\d+)?", "#", line).strip() for line in text.splitlines() if line.strip()]


@pytest.mark.slow
def test_the_worked_example_of_contributing_works(tmp_path, tmp_path_factory):
    day = Day(tmp_path, tmp_path_factory.mktemp("cache"))
    example_files(tmp_path)
    shown = [
        block for block in blocks((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")) if block.startswith("$ ")
    ]
    assert len(shown) == 3
    for block in shown:
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, output = part.partition("\n")
            words = shlex.split(line)
            if words[0] == "cat":
                said = (tmp_path / words[1]).read_text()
            else:
                assert words[:2] == ["python", "-m"]
                finished = day.run(words[2].removeprefix("sft."), *words[3:])
                said = (finished.stderr + finished.stdout).replace(f"{tmp_path}/", "")  # the page shortens paths
            assert [each for each in without_figures(output) if each not in without_figures(said)] == [], said
