"""What may differ between two starts of one run is said by the class that the setting belongs to."""

from dataclasses import fields
from fnmatch import fnmatchcase

import pytest

from sft.config.schema import Train
from sft.config.source_code.class_attributes import class_attribute
from sft.config.source_code.signature import read_signature
from sft.config.weight_neutral import is_weight_neutral
from sft.safety.targets import packaged_targets


@pytest.fixture
def config(compose):
    """A config with every callback."""
    return compose("callbacks=full", "model=tiny").plain


@pytest.mark.parametrize(
    ("key", "neutral"),
    [
        ("name", True),
        ("seed", False),
        ("hub.push", True),
        ("tracker", True),
        ("tracker.project", True),
        ("objective", True),
        ("trainer", False),
        ("trainer.logging_steps", True),
        ("trainer.save_total_limit", True),
        ("trainer.learning_rate", False),
        ("trainer.eval_steps", False),
        ("trainer._target_", False),
        ("dataset.num_proc", True),
        ("dataset.max_length", False),
        ("model.device_map", True),
        ("model.device_map.lm_head", True),
        ("model.name", False),
        ("callbacks", False),
        ("callbacks.display", True),
        ("callbacks.display.seconds", True),
        ("callbacks.generation_samples.count", True),
        ("callbacks.early_stopping", False),
        ("callbacks.early_stopping.metric", False),
        ("no_such_key", False),
    ],
)
def test_a_key_is_neutral_where_its_class_says_so(config, key, neutral):
    assert is_weight_neutral(key, config) == neutral


def test_the_class_decides_and_not_the_name_in_the_config(config):
    display, stopping = config["callbacks"]["display"], config["callbacks"]["early_stopping"]
    assert is_weight_neutral("callbacks.bar.seconds", {"callbacks": {"bar": display}})
    assert not is_weight_neutral("callbacks.display.metric", {"callbacks": {"display": stopping}})


def test_the_first_config_that_has_the_node_says_of_which_class_it_is(config):
    without = {**config, "callbacks": {"display": None}}
    assert is_weight_neutral("callbacks.display", without, config)
    assert not is_weight_neutral("callbacks.early_stopping", without, config)


@pytest.mark.parametrize("callbacks", [None, {}, {"display": None}, {"display": 3}, []])
def test_a_packaged_callback_is_known_where_the_config_is_without_it(callbacks):
    assert is_weight_neutral("callbacks.display", {"callbacks": callbacks})
    assert not is_weight_neutral("callbacks.checkpoint", {"callbacks": callbacks})
    assert not is_weight_neutral("callbacks.of_the_users_own", {"callbacks": callbacks})


def test_a_class_of_the_users_own_is_as_neutral_as_its_base(tmp_path, monkeypatch):
    (tmp_path / "neutral_own.py").write_text(
        "from sft.data.spec import Dataset\nfrom sft.training.callbacks.display import Display\n\n"
        "class Rows(Dataset):\n    pass\n\nclass Bar(Display):\n    pass\n\nclass Other:\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = {
        "dataset": {"_target_": "neutral_own.Rows"},
        "callbacks": {"bar": {"_target_": "neutral_own.Bar"}, "display": {"_target_": "neutral_own.Other"}},
    }
    neutral = ("dataset.cache", "dataset.size", "callbacks.bar", "callbacks.display")
    assert [is_weight_neutral(key, config) for key in neutral] == [True, False, True, False]


def test_what_is_listed_exists():
    assert set(Train.weight_neutral) <= {field.name for field in fields(Train)}
    for target in packaged_targets():
        names = list(signature.parameters) if (signature := read_signature(target)) else []
        for pattern in class_attribute(target, "weight_neutral", ()):
            assert pattern == "*" or [name for name in names if fnmatchcase(name, pattern)], (target, pattern)
