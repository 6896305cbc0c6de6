"""docs/reliability.md lists exactly the tested attacks, as their tests describe them."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- attacks: as tests/hostile/test_table.py writes them -->\n", "<!-- end of attacks -->"
# file of tests -> (heading, the tables in it with their test)
CHAPTERS = {
    "test_config.py": "By the command line",
    "test_yaml.py": "By YAML",
    "test_templates.py": "By a chat template",
    "test_files.py": "By rows",
    "test_models.py": "By a model or an adapter",
    "test_run_directories.py": "By a run directory",
    "test_shown.py": "On who looks",
}


def attacks(file: str) -> Iterator[tuple[str, str]]:
    """(what is tried, what is told) of a file's tables."""
    spec = importlib.util.spec_from_file_location(f"attacks_{file[:-3]}", HERE / file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for table in ("ATTACKS", "RUNS", "ADAPTERS"):
        for name, case in getattr(module, table, {}).items():
            yield name, case[-1]


def cell(text: str) -> str:
    return text.replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")


def written() -> str:
    """The tables as they stand in the page."""
    parts = []
    for file, heading in CHAPTERS.items():
        rows = [f"| {cell(name)} | {cell(told).strip()} |" for name, told in attacks(file)]
        parts.append(
            "\n".join(
                [
                    f"### {heading} (`tests/hostile/{file}`)\n",
                    "| tried | told, or what becomes of it |",
                    "|---|---|",
                    *rows,
                ]
            )
        )
    return "\n\n".join(parts) + "\n\n"


def test_the_page_lists_the_attacks_as_they_are_tested():
    page = PAGE.read_text(encoding="utf-8")
    there = page.partition(BEGIN)[2].partition(END)[0]
    assert there == written(), "run: python tests/hostile/test_table.py"


def test_there_are_more_than_a_hundred_attacks_and_the_page_counts_them():
    count = sum(len(list(attacks(file))) for file in CHAPTERS)
    assert count >= 100
    assert re.search(rf"\b{count} attacks", PAGE.read_text(encoding="utf-8"))


def test_every_attack_file_has_a_section():
    with_tables = {path.name for path in HERE.glob("test_*.py") if "\nATTACKS: " in path.read_text()}
    assert with_tables == set(CHAPTERS)


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    count = sum(len(list(attacks(file))) for file in CHAPTERS)
    before = re.sub(r"\b\d+ attacks", f"{count} attacks", before)
    PAGE.write_text(before + BEGIN + written() + END + rest.partition(END)[2], encoding="utf-8")
