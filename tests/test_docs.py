"""The documentation's commands and links: every command composes and passes the check, so a renamed key breaks a test."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

from sft.config.compose import check_command, config_loader
from sft.config.overrides import parse_command_line

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
    for block in blocks((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        if match := re.match(r"# (\S+\.(?:yaml|py))\n", block):
            (directory / match[1]).parent.mkdir(parents=True, exist_ok=True)
            (directory / match[1]).write_text(block)
    assert len(list(directory.rglob("*.*"))) == 4
    for name in ("there", "bad.jsonl", "sums.jsonl"):
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
        check_command(loader, name, line.overrides, name, line.multirun)
    except Exception as error:
        return str(error) or repr(error)
    return ""


def filled(arguments: tuple[str, ...], workplace: Path) -> tuple[str, ...]:
    """Arguments with files in the place of FILE and DIR."""
    return tuple(PLACEHOLDERS.sub(str(workplace / "there"), argument) for argument in arguments)


def test_the_pages_have_commands_of_every_door():
    doors = {path.stem for path in (ROOT / "sft").glob("*.py")} - {"__init__", "api"}
    named = {command.name for command in COMMANDS}
    assert named <= doors, "a command that does not exist"
    assert {"train", "preview"} <= named


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c.line not in MISTAKES], ids=lambda c: f"{c.page}: {c.line}"
)
def test_a_command_composes_and_passes_the_check(command, loader, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    arguments = filled(command.arguments, workplace)
    assert faults(loader, command.name, arguments) == ""


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.line in MISTAKES], ids=lambda c: c.line)
def test_a_mistake_that_is_shown_is_still_one(command, loader):
    assert MISTAKES[command.line] in faults(loader, command.name, command.arguments)


def test_every_mistake_is_shown_somewhere():
    assert set(MISTAKES) == {command.line for command in COMMANDS} & set(MISTAKES)


def test_a_key_that_does_not_exist_would_be_noticed(loader):
    assert "no such key" in faults(loader, "train", ("lora.rnak=8",))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "outputs/README.md"], ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_readme_starts_with_the_two_commands():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines[1:6] if line] == ["```", "make demo", "make test", "```"]
