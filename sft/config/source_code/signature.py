"""The arguments of a `_target_`, read from its source: names and annotations, with nothing imported.

Importing transformers and peft to look at six signatures takes seconds; parsing the six files takes milliseconds, and a
typo is then answered before anything heavy is loaded.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path

from sft.config.source_code.definitions import DEFINED_IN, base_classes, find_definition, is_dataclass

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
    """The signature of a class or function definition in the file `home`."""
    signature = Signature()
    if isinstance(node, ast.ClassDef):
        _read_class(node, home, signature)
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        _read_function(node, home, signature)
    return signature


def _read_class(node: ast.ClassDef, home: Path, signature: Signature) -> None:
    """Base classes first, then this class's dataclass fields or its __init__, as Python itself resolves them."""
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is not None:
        signature.clear()  # an explicit __init__ replaces what the bases took
        _read_function(init, home, signature, skip_self=True)
        return
    for base, elsewhere in base_classes(node, home):
        _read_class(base, elsewhere, signature)
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
