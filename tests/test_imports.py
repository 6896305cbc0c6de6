"""Imports go one way: no module of sft leads back to itself, no folder has become a drawer, and tests/ mirrors sft/."""

import ast
import re
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "sft").rglob("*.py")
}


def imported(path: Path) -> set[str]:
    """The modules of sft that a file imports: at its head, within functions and for types."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in inner}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & set(FILES)


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The first modules that lead back to themselves; [] where none do."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_there_are_no_import_cycles():
    assert circle({module: imported(path) - {module} for module, path in FILES.items()}) == []


def test_an_import_cycle_would_be_found():
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"b"}})) == {"b", "c"}


def test_no_folder_has_more_than_16_modules():
    counts = Counter(path.parent for path in FILES.values() if path.name != "__init__.py")
    assert {str(folder.relative_to(ROOT)): n for folder, n in counts.items() if n > 16} == {}


def test_a_folder_of_tests_is_named_for_the_folder_it_tests():
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    across = {Path("hostile")}  # attacks, by the way they come in
    assert {str(folder) for folder in folders - across if not (ROOT / "sft" / folder).is_dir()} == set()


def test_every_folder_is_a_room_of_the_architecture():
    rooms = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("```")[1]
    folders = {path.parent for path in FILES.values()} - {ROOT / "sft"}
    assert sorted(f"{folder.name}/" for folder in folders if not re.search(rf"\b{folder.name}/", rooms)) == []


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        ("data", ("model", "training", "inference", "sweep", "export")),
        ("model", ("data", "training", "inference", "sweep")),
        ("config", ("data", "model", "run", "template", "training", "evaluation", "inference", "sweep")),
        ("run", ("data", "model", "training", "evaluation", "inference", "sweep")),
        ("template", ("data", "model", "training", "inference", "sweep")),
        ("evaluation", ("training", "inference", "sweep")),
        ("kernels", ("training", "inference", "sweep")),
        ("training", ("inference",)),
    ],
)
def test_imports_go_one_way(lower, upper):
    wrong = {
        f"{module} -> {other}"
        for module, path in FILES.items()
        if module.startswith(f"sft.{lower}.")
        for other in imported(path)
        if other.split(".")[1:2] and other.split(".")[1] in upper
    }
    assert wrong == set()
