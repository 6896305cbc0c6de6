"""Whether a config value fits an annotation that was read from source."""

from __future__ import annotations

import ast
from pathlib import Path

from sft.config.source_code.definitions import find_in_file, is_dataclass, literal_values

_SCALARS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
_SEQUENCES = {"list", "List", "tuple", "Tuple", "set", "Sequence", "Iterable"}
_MAPPINGS = {"dict", "Dict", "Mapping", "MutableMapping", "Node"}  # Node: of sft.config.schema


def mismatch(value: object, annotation: ast.expr | None, home: Path) -> str | None:
    """What the annotation wants where the value does not fit it ("a whole number"); None where it fits.

    Names that are not plain types (a library's own classes) accept anything: the class itself checks it.
    """
    if annotation is None:
        return None
    wanted = _wanted(value, annotation, home)
    return None if wanted is None else " or ".join(dict.fromkeys(wanted))


def nested_dataclass(annotation: ast.expr | None, home: Path) -> tuple[ast.ClassDef, Path, str] | None:
    """The dataclass an annotation means, with how it is held: "one" (`X`, `X | None`) or "dict" (`dict[str, X]`)."""
    if annotation is None:
        return None
    for option in _options(annotation):
        held, inner = "one", option
        if isinstance(option, ast.Subscript) and ast.unparse(option.value) in _MAPPINGS:
            parts = option.slice.elts if isinstance(option.slice, ast.Tuple) else []
            if len(parts) != 2:
                continue
            held, inner = "dict", _options(parts[1])[0]
        if isinstance(inner, ast.Name):
            found = find_in_file(home, inner.id)
            if found and isinstance(found[0], ast.ClassDef) and is_dataclass(found[0]):
                return found[0], found[1], held
    return None


def _options(annotation: ast.expr) -> list[ast.expr]:
    """`A | B`, Optional[A] and Union[A, B] as a list of their parts; quoted annotations are opened."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return _options(annotation.left) + _options(annotation.right)
    if isinstance(annotation, ast.Subscript):
        name = ast.unparse(annotation.value).rpartition(".")[2]
        if name == "Optional":
            return [*_options(annotation.slice), ast.Constant(None)]
        if name == "Union" and isinstance(annotation.slice, ast.Tuple):
            return [option for part in annotation.slice.elts for option in _options(part)]
    return [annotation]


def _wanted(value: object, annotation: ast.expr, home: Path) -> list[str] | None:
    wanted: list[str] = []
    options = _options(annotation)
    for option in options:
        if isinstance(option, ast.Constant) and option.value is None:
            if value is None:
                return None
            continue
        problem = _one(value, option, home)
        if problem is None:
            # `SchedulerType | str`: the enumeration says more than `str`
            enums = [v for o in options if isinstance(o, ast.Name) and (v := literal_values(o.id, home))]
            if enums and isinstance(value, str) and value not in enums[0]:
                return ["one of " + ", ".join(enums[0])]
            return None
        wanted.append(problem)
    return wanted or None


def _one(value: object, option: ast.expr, home: Path) -> str | None:
    """What one alternative wants, None where the value fits it."""
    name = ast.unparse(option.value if isinstance(option, ast.Subscript) else option).rpartition(".")[2]
    if name in _SCALARS:
        return None if _is_scalar(value, name) else _SCALARS[name]
    if name == "Literal" and isinstance(option, ast.Subscript):
        return _literal(value, option)
    if name in _SEQUENCES:
        return None if isinstance(value, (list, tuple)) else "a list"
    if name in _MAPPINGS:
        return None if value is None or isinstance(value, dict) else "a mapping"  # null: an empty one
    found = find_in_file(home, name) if isinstance(option, ast.Name) else None
    if found and is_dataclass(found[0]):
        return None if isinstance(value, dict) else "a mapping"
    if found and (values := literal_values(name, home)):
        return None if value in values else "one of " + ", ".join(values)
    if found and isinstance(found[0], ast.ClassDef):
        return None if isinstance(value, dict) else "a mapping"
    return None


def _is_scalar(value: object, name: str) -> bool:
    if name == "bool":
        return isinstance(value, bool)
    if name == "str":
        return isinstance(value, str)
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (name == "float" and isinstance(value, float))


def _literal(value: object, option: ast.Subscript) -> str | None:
    parts = option.slice.elts if isinstance(option.slice, ast.Tuple) else [option.slice]
    values = [part.value for part in parts if isinstance(part, ast.Constant)]
    if any(value == v and type(value) is type(v) for v in values):
        return None
    # an enumeration member with a value, written in the source as `name_[what it is]`
    if isinstance(value, str) and any(
        isinstance(v, str) and "[" in v and value.startswith(v.split("[")[0]) for v in values
    ):
        return None
    return "one of " + ", ".join(str(v) for v in values)
