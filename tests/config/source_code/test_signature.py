"""Signatures and types read from source, without an import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from sft.config.checks.types import mismatch
from sft.config.source_code.signature import read_signature


def test_library_signatures_equal_those_of_inspect():
    import dataclasses

    from peft import LoraConfig
    from transformers import TrainingArguments

    for target, cls in (("peft.LoraConfig", LoraConfig), ("transformers.TrainingArguments", TrainingArguments)):
        assert set(read_signature(target).parameters) == {f.name for f in dataclasses.fields(cls) if f.init}


def test_base_classes_are_followed():
    assert {"name", "architecture"} <= set(read_signature("sft.model.spec.TinyModel").parameters)


def test_nothing_is_imported():
    code = "import sys; from sft.config.source_code.signature import read_signature as r; r('peft.LoraConfig'); print('torch' in sys.modules, 'peft' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.stdout.split() == ["False", "False"]


def test_a_missing_name_has_no_signature():
    assert read_signature("peft.NoSuchConfig") is None
    assert read_signature("no_such_package.Thing") is None


@pytest.mark.parametrize(
    ("value", "annotation", "wanted"),
    [
        (8, "int", None),
        (8.0, "int", "a whole number"),
        (True, "int", "a whole number"),
        (8, "float", None),
        ("8", "float", "a number"),
        (None, "int", "a whole number"),
        (None, "int | None", None),
        (None, "Optional[int]", None),
        ("x", "Optional[Union[list[str], str]]", None),
        (["x"], "Optional[Union[list[str], str]]", None),
        (3, "Optional[Union[list[str], str]]", "a list or text"),
        ("a", "Literal['a', 'b']", None),
        ("c", "Literal['a', 'b']", "one of a, b"),
        ({"a": 1}, "dict[str, int]", None),
        ("pissa_niter_4", "bool | Literal['pissa', 'pissa_niter_[number of iters]']", None),
        ("anything", "SomeClassOfALibrary", None),
    ],
)
def test_values_are_checked_against_annotations(value, annotation, wanted):
    assert mismatch(value, ast.parse(annotation, mode="eval").body, Path(__file__)) == wanted
