"""Where a dotted name is defined: the class or function in its source file, followed through imports, none of them made."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

# Public names whose packages load lazily, so that the source does not say statically where the class is.
DEFINED_IN = {
    "peft.LoraConfig": "peft.tuners.lora.config.LoraConfig",
    "transformers.BitsAndBytesConfig": "transformers.utils.quantization_config.BitsAndBytesConfig",
    "transformers.EarlyStoppingCallback": "transformers.trainer_callback.EarlyStoppingCallback",
    "transformers.TrainingArguments": "transformers.training_args.TrainingArguments",
    "trl.SFTConfig": "trl.trainer.sft_config.SFTConfig",
}


@functools.cache
def find_definition(target: str) -> tuple[ast.AST, Path] | None:
    """The definition of a dotted name, followed through `from x import y`; None where it cannot be found."""
    module, _, name = target.rpartition(".")
    path = module_file(module) if module else None
    return find_in_file(path, name) if path else None


def find_in_file(path: Path, name: str, depth: int = 0) -> tuple[ast.AST, Path] | None:
    """A class or function by name in a file, or where that file imports it from."""
    definitions, imports, _ = _index(path)
    if name in definitions:
        return definitions[name], path
    if name not in imports or depth > 5:
        return None
    node, original = imports[name]
    source = _imported_file(node, path)
    return find_in_file(source, original, depth + 1) if source else None


@functools.cache
def _index(path: Path) -> tuple[dict[str, ast.AST], dict[str, tuple[ast.ImportFrom, str]], dict[str, str]]:
    """A file's own definitions, the names it imports, also those under `if TYPE_CHECKING` and `try`, and its modules.

    The modules are the names that may stand for one: `import a.b as c` is {"c": "a.b"}, and so is `from a import b as c`.
    """
    definitions: dict[str, ast.AST] = {}
    imports: dict[str, tuple[ast.ImportFrom, str]] = {}
    modules: dict[str, str] = {}
    pending: list[ast.stmt] = list(ast.parse(path.read_text(encoding="utf-8")).body)
    for node in pending:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            definitions.setdefault(node.name, node)
        elif isinstance(node, ast.ImportFrom):
            imports.update({alias.asname or alias.name: (node, alias.name) for alias in node.names})
            if node.module and not node.level:
                modules.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
        elif isinstance(node, ast.Import):
            modules.update({alias.asname: alias.name for alias in node.names if alias.asname})
        elif isinstance(node, (ast.If, ast.Try)):
            pending += [*node.body, *node.orelse]
    return definitions, imports, modules


def base_classes(node: ast.ClassDef, home: Path) -> Iterator[tuple[ast.ClassDef, Path]]:
    """The definitions of a class's bases with their files, in order; those that are not to be found are left out."""
    for base in node.bases:
        name = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
        found = _named_in_file(home, name)
        if found and found[0] is not node and isinstance(found[0], ast.ClassDef):
            yield found[0], found[1]


def _named_in_file(home: Path, name: str) -> tuple[ast.AST, Path] | None:
    """What a name means in a file: `Base`, or `module.Base` where the file imports the module."""
    first, _, rest = name.partition(".")
    if not rest:
        return find_in_file(home, name)
    full = f"{_index(home)[2].get(first, first)}.{rest}"
    return find_definition(DEFINED_IN.get(full, full)) or find_in_file(home, name.rpartition(".")[2])


@functools.cache
def literal_values(name: str, home: Path) -> list[str] | None:
    """The values of a string enumeration that an annotation names; None where it is not one."""
    found = find_in_file(home, name)
    if found is None or not isinstance(found[0], ast.ClassDef):
        return None
    bases = {ast.unparse(base).rpartition(".")[2] for base in found[0].bases}
    if not bases & {"Enum", "ExplicitEnum", "StrEnum"}:
        return None
    values = [node.value for node in found[0].body if isinstance(node, ast.Assign)]
    return [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]


def is_dataclass(node: ast.AST) -> bool:
    """Whether a definition is a class with a dataclass decorator."""
    return isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list)


@functools.cache
def module_file(module: str) -> Path | None:
    """The source file of a module, found on sys.path without importing its packages."""
    search: list[str] | None = None
    spec = None
    for part in module.split("."):
        spec = PathFinder.find_spec(part, search)
        if spec is None:
            return None
        search = list(spec.submodule_search_locations or [])
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _imported_file(node: ast.ImportFrom, path: Path) -> Path | None:
    if not node.level:
        return module_file(node.module) if node.module else None
    folder = path.parent
    for _ in range(node.level - 1):
        folder = folder.parent
    for part in (node.module or "").split("."):
        folder = folder / part if part else folder
    for candidate in (folder.with_suffix(".py"), folder / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None
