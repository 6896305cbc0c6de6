"""The config of a run: a read-only tree of objects that is an equal mapping too."""

import copy
import json
import pickle
from dataclasses import FrozenInstanceError, fields

import pytest
import yaml

from sft.config.build import build
from sft.config.node import Node, plain
from sft.config.run_config import RunConfig
from sft.config.schema import Train
from sft.run.jsonable import dumps


@pytest.fixture
def composed(compose):
    """A composed config as plain containers."""
    return compose("callbacks=full", "model=tiny").plain


@pytest.fixture
def config(composed):
    """The same as a RunConfig."""
    return RunConfig.of(composed)


def kinds(value):
    """The types of all containers in a value."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return {type(value)} | {kind for item in items if isinstance(item, dict | list) for kind in kinds(item)}


def test_attributes_are_the_values_of_the_config(config, composed):
    assert config.seed == composed["seed"]
    assert config.trainer.learning_rate == composed["trainer"]["learning_rate"]
    assert config.callbacks.metrics_jsonl == composed["callbacks"]["metrics_jsonl"]
    assert config.sweep.share_base is True
    assert all(getattr(config, field.name) == composed[field.name] for field in fields(Train))


def test_it_is_equal_to_the_plain_mapping_and_gives_it_back(config, composed):
    assert config == composed and config.plain() == composed and list(config) == list(composed)
    assert kinds(config.plain()) == {dict, list} and kinds(config) == {RunConfig, Node, list}
    assert json.dumps(config) == json.dumps(composed)
    assert dumps(config) == dumps(composed)
    assert yaml.safe_dump(config.plain(), sort_keys=False) == yaml.safe_dump(composed, sort_keys=False)


def test_it_shares_nothing_that_could_be_changed():
    given = {"trainer": {"betas": [1, 2]}, "allow_targets": []}
    config = RunConfig.of(given)
    given["trainer"]["betas"].append(3)
    config.plain()["trainer"]["betas"].append(4)
    assert config.trainer.betas == [1, 2]
    assert RunConfig.of(config) is config


@pytest.mark.parametrize(
    "change",
    [
        lambda node: node.update(r=1),
        lambda node: node.pop("r"),
        lambda node: node.clear(),
        lambda node: node.setdefault("r", 1),
        lambda node: node.popitem(),
        lambda node: node.__setitem__("r", 1),
        lambda node: node.__delitem__("r"),
        lambda node: node.__ior__({"r": 1}),
    ],
)
def test_items_cannot_be_changed(change):
    config = RunConfig.of({"r": 2, "lora": {"r": 2}})
    for node in (config, config.lora):
        with pytest.raises(TypeError, match="read-only"):
            change(node)
    assert config == {"r": 2, "lora": {"r": 2}}


def test_attributes_cannot_be_changed(config):
    for node, name in ((config, "seed"), (config.trainer, "learning_rate"), (config.trainer, "new")):
        with pytest.raises(FrozenInstanceError, match=name):
            setattr(node, name, 1)
    with pytest.raises(FrozenInstanceError, match="seed"):
        del config.seed


def test_a_missing_key_is_named(config):
    with pytest.raises(AttributeError, match=r"no key 'learning_rat' here; there are: .*learning_rate"):
        _ = config.trainer.learning_rat
    with pytest.raises(AttributeError, match="no key 'model' here; there are: seed"):
        _ = RunConfig.of({"seed": 1}).model
    assert not hasattr(config, "traner") and config.trainer.get("learning_rat", 3) == 3


def test_a_key_that_was_switched_off_or_is_newer_than_the_config_has_its_meaning():
    config = RunConfig.of({"sweep": {"share_base": False}, "estimate": None})
    assert (config.lora, config.quant, config.allow_targets, config.on_nonfinite) == (None, None, [], "stop")
    assert (config.sweep.share_base, config.sweep.retry_failed) == (False, True)
    assert config.estimate.enforce and config.hub.push is None
    assert config == {"sweep": {"share_base": False}, "estimate": None}
    config.allow_targets.append("mine.Callback")
    assert RunConfig.of({}).allow_targets == []


def test_a_changed_copy(config, composed):
    changed = config.with_(trainer=config.trainer.with_(max_steps=3), tracker={"project": "p"})
    assert changed.trainer.max_steps == 3 and changed.tracker.project == "p"
    assert changed == {**composed, "trainer": {**composed["trainer"], "max_steps": 3}, "tracker": {"project": "p"}}
    assert type(changed) is RunConfig and list(changed) == list(composed) and config == composed


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_are_equal_and_of_the_same_types(config, copied):
    again = copied(config)
    assert again == config and list(again) == list(config) and kinds(again) == kinds(config)


def test_objects_are_built_from_plain_containers():
    class_ = build(Node({"_target_": "sft.data.spec.Dataset", "sources": {"a": {"path": "x"}}, "_recursive_": False}))
    assert class_.sources["a"].path == "x"
    assert kinds(plain(Node({"a": [{"b": 1}]}))) == {dict, list}
