"""The config node `dataset`: defaults, the one-source shorthand, and errors that name the key."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml

from sft.config.build import build
from sft.config.errors import UserError
from sft.data.source import Source
from sft.data.spec import Dataset

CONF = Path(__file__).parents[2] / "conf" / "dataset"


def test_defaults() -> None:
    dataset = Dataset(path="a.json")
    assert dataset.sources == {"local": Source(path="a.json")}
    expected = {
        "max_length": 2048,
        "packing": False,
        "eval_packing": False,
        "eval_fraction": 0.1,
        "eval_sources": {},
        "on_long": "drop",
        "max_dropped": 0,
        "size": None,
        "train_on": "assistant",
        "masking": "template",
        "history": "expand",
        "use_text_column": False,
    }
    assert {key: getattr(dataset, key) for key in expected} == expected
    assert Dataset(path="a.json", packing=True).eval_packing is True
    assert Dataset(path="a.json", packing=True, eval_packing=False).eval_packing is False


def test_the_shorthand_is_one_source_and_copies_stay_the_same() -> None:
    dataset = Dataset(path=["a.json", "b/*"], format="alpaca", columns={"output": "gold"})
    assert dataset.sources == {"local": Source(path=["a.json", "b/*"], format="alpaca", columns={"output": "gold"})}
    assert dataclasses.replace(dataset, max_length=5).sources == dataset.sources
    assert pickle.loads(pickle.dumps(dataset)) == dataset


def test_sources_are_mappings_and_null_removes_one() -> None:
    sources: dict[str, Any] = {
        "a": {"path": "a.json", "weight": 0.7},
        "b": {"name": "o/d", "split": "x"},
        "c": None,
        "d": "d.csv",
    }
    dataset = Dataset(sources=sources, eval_sources={"e": {"path": "e.json"}})
    assert dataset.sources == {
        "a": Source(path="a.json", weight=0.7),
        "b": Source(name="o/d", split="x"),
        "d": Source(path="d.csv"),
    }
    assert dataset.eval_sources == {"e": Source(path="e.json")}


MISTAKES: dict[str, tuple[dict[str, Any], str, str]] = {
    "nothing": ({}, "dataset.path", "nothing to train on"),
    "an unknown key": ({"sources": {"a": {"pth": "x"}}}, "dataset.sources.a", "did you mean dataset.sources.a.path?"),
    "an unlike key": ({"sources": {"a": {"zzz": 1}}}, "dataset.sources.a", "its keys are path, name"),
    "two places": ({"sources": {"a": {"path": "x", "name": "y"}}}, "dataset.sources.a", "dataset.sources.a.name=null"),
    "no place": ({"sources": {"a": {"weight": 1}}}, "dataset.sources.a", "neither path nor name is set"),
    "no mapping": ({"sources": {"a": 7}}, "dataset.sources.a", "not 7"),
    "a list": ({"sources": ["a"]}, "dataset.sources", "a mapping of named sources"),
    "a negative weight": ({"sources": {"a": {"path": "x", "weight": -1}}}, "dataset.sources.a.weight", "not -1"),
    "a weight of NaN": (
        {"sources": {"a": {"path": "x", "weight": float("nan")}}},
        "dataset.sources.a.weight",
        "not nan",
    ),
    "no weight left": ({"sources": {"a": {"path": "x", "weight": 0}}}, "dataset.sources", "every source has weight 0"),
    "no samples": ({"sources": {"a": {"path": "x", "samples": 0}}}, "dataset.sources.a.samples", "not 0"),
    "a column of nothing": (
        {"path": "x", "columns": {"output": None}},
        "dataset.columns.output",
        "None is not a column",
    ),
    "columns of no path": (
        {"sources": {"a": "x"}, "columns": {"output": "y"}},
        "dataset.columns",
        "belongs to dataset.path",
    ),
    "local twice": ({"path": "x", "sources": {"local": {"path": "y"}}}, "dataset.path", "are the same source"),
    "a revision of a file": (
        {"sources": {"a": {"path": "x", "revision": "v1"}}},
        "dataset.sources.a.revision",
        "hub dataset",
    ),
    "a whole for evaluation": ({"path": "x", "eval_fraction": 1}, "dataset.eval_fraction", "a share below 1"),
    "a share above 1": ({"path": "x", "max_dropped": 1.5}, "dataset.max_dropped", "not 1.5"),
    "no length": ({"path": "x", "max_length": 0}, "dataset.max_length", "a whole number of 1 or more"),
    "a length of text": ({"path": "x", "max_length": "long"}, "dataset.max_length", "not 'long'"),
    "another policy": ({"path": "x", "consecutive": "join"}, "dataset.consecutive", "not one of refuse, merge"),
    "an invalid choice": ({"path": "x", "on_long": "cut"}, "dataset.on_long", "not one of drop, truncate, error"),
    "a marker missing": ({"path": "x", "masking": "response_template"}, "dataset.response_template", "needs the text"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_an_error_names_the_key_and_a_remedy(name: str) -> None:
    given, where, text = MISTAKES[name]
    with pytest.raises(UserError) as caught:
        Dataset(**given)
    assert caught.value.where == where and text in str(caught.value)


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_packaged_dataset_builds(path: Path) -> None:
    node = yaml.safe_load(path.read_text())
    if path.stem == "local":
        node["path"] = "a.json"
    if path.stem == "mixture":
        node["sources"] = {"a": {"path": "a.json", "weight": 0.7}}
    assert isinstance(build(node, where="dataset", _recursive_=False), Dataset)


@pytest.mark.parametrize(
    ("name", "weights"), [("small", (0.5, 0.3, 0.2)), ("medium", (0.4, 0.4, 0.2)), ("large", (0.3, 0.4, 0.3))]
)
def test_curated_mixtures_have_the_recommended_weights(name: str, weights: tuple[float, ...]) -> None:
    sources = yaml.safe_load((CONF / f"mix_{name}.yaml").read_text())["sources"]
    assert {key: source["weight"] for key, source in sources.items()} == dict(
        zip(("dolly", "oasst1", "alpaca"), weights, strict=True)
    )
