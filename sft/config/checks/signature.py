"""What a `_target_` takes, read from its source: names and annotations, with nothing imported.

Importing transformers and peft to look at six signatures takes seconds; parsing the six files takes milliseconds, and a
typo is then answered before anything heavy is loaded.
"""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass, field
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
_MISSING = object()


@dataclass
class Signature:
    """The arguments of a class or function.

    Attributes:
        parameters: name -> annotation (an ast expression, or None where there is none).
        required: names without a default.
        open: takes any keyword (`**kwargs`).
        module: file the annotations were written in, to resolve their names.
    """

    parameters: dict[str, ast.expr | None] = field(default_factory=dict)
    required: set[str] = field(default_factory=set)
    open: bool = False
    homes: dict[str, Path] = field(default_factory=dict)

    def clear(self) -> None:
        self.parameters, self.required, self.open, self.homes = {}, set(), False, {}

    def add(self, name: str, annotation: ast.expr | None, required: bool, home: Path) -> None:
        self.parameters[name] = annotation
        self.homes[name] = home
        (self.required.add if required else self.required.discard)(name)


def read_signature(target: str) -> Signature | None:
    """The signature of a dotted class or function; None where its source cannot be found without importing."""
    found = find_definition(DEFINED_IN.get(target, target))
    return None if found is None else signature_of(*found)


def signature_of(node: ast.AST, home: Path) -> Signature:
    """The signature of a class or function definition that stands in the file `home`."""
    signature = Signature()
    if isinstance(node, ast.ClassDef):
        _read_class(node, home, signature)
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        _read_function(node, home, signature)
    return signature


@functools.cache
def find_definition(target: str) -> tuple[ast.AST, Path] | None:
    """The definition a dotted name leads to, followed through `from x import y`; None where it is not to be found."""
    module, _, name = target.rpartition(".")
    path = module_file(module) if module else None
    return find_in_file(path, name) if path else None


def find_in_file(path: Path, name: str, depth: int = 0) -> tuple[ast.AST, Path] | None:
    """A class or function by name in a file, or where that file imports it from."""
    definitions, imports = _index(path)
    if name in definitions:
        return definitions[name], path
    if name not in imports or depth > 5:
        return None
    node, original = imports[name]
    source = _imported_file(node, path)
    return find_in_file(source, original, depth + 1) if source else None


@functools.cache
def _index(path: Path) -> tuple[dict[str, ast.AST], dict[str, tuple[ast.ImportFrom, str]]]:
    """A file's own definitions, and the names it imports, also those under `if TYPE_CHECKING` and `try`."""
    definitions: dict[str, ast.AST] = {}
    imports: dict[str, tuple[ast.ImportFrom, str]] = {}
    pending: list[ast.stmt] = list(ast.parse(path.read_text(encoding="utf-8")).body)
    for node in pending:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            definitions.setdefault(node.name, node)
        elif isinstance(node, ast.ImportFrom):
            imports.update({alias.asname or alias.name: (node, alias.name) for alias in node.names})
        elif isinstance(node, (ast.If, ast.Try)):
            pending += [*node.body, *node.orelse]
    return definitions, imports


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


def _read_class(node: ast.ClassDef, home: Path, signature: Signature) -> None:
    """Base classes first, then this class's dataclass fields or its __init__, as Python itself resolves them."""
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is not None:
        signature.clear()  # an explicit __init__ replaces what the bases took
        _read_function(init, home, signature, skip_self=True)
        return
    for base in node.bases:
        found = find_in_file(home, ast.unparse(base).rpartition(".")[2])
        if found and found[0] is not node:
            _read_class(found[0], found[1], signature) if isinstance(found[0], ast.ClassDef) else None
    if is_dataclass(node):
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and _is_init_field(item):
                signature.add(item.target.id, item.annotation, not _has_default(item), home)


def _is_init_field(item: ast.AnnAssign) -> bool:
    if "ClassVar" in ast.unparse(item.annotation):
        return False
    if isinstance(item.value, ast.Call) and ast.unparse(item.value.func).endswith("field"):
        given = {k.arg: k.value for k in item.value.keywords}
        init = given.get("init")
        return not (isinstance(init, ast.Constant) and init.value is False)
    return True


def _has_default(item: ast.AnnAssign) -> bool:
    if isinstance(item.value, ast.Call) and ast.unparse(item.value.func).endswith("field"):
        return any(k.arg in ("default", "default_factory") for k in item.value.keywords)
    return item.value is not None


def _read_function(node: ast.AST, home: Path, signature: Signature, skip_self: bool = False) -> None:
    arguments = node.args  # type: ignore[attr-defined]
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = [_MISSING] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
    for argument, default in list(zip(plain, defaults, strict=True))[1 if skip_self else 0 :]:
        signature.add(argument.arg, argument.annotation, default is _MISSING, home)
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        signature.add(argument.arg, argument.annotation, default is None, home)
    signature.open = arguments.kwarg is not None
