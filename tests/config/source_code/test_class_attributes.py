"""What a class says of itself is read from its source, and a subclass of the user's own says the same."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from sft.config.checks.requirements import missing
from sft.config.source_code.class_attributes import class_attribute
from sft.safety.targets import packaged_targets

ATTRIBUTES = (
    "role",
    "figure_argument",
    "wants_examples",
    "requires",
    "own_loss",
    "kind",
    "weight_neutral",
    "has_study",
)


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """The user's own classes, in a directory that Python looks into."""
    directory = tmp_path_factory.mktemp("own")
    (directory / "attributes_base.py").write_text(
        """
class Base:
    plain = "base"
    annotated: str = "base"
    pair = ("a", None)
    one = two = 3
    computed = len("abc")
    unset: int

    def method(self):
        self.plain = "an instance's own"


class Left(Base):
    pass


class Right(Base):
    plain = "right"


class Generic(dict):
    plain = "generic"
"""
    )
    (directory / "attributes_broken.py").write_text("class Base(:")
    (directory / "attributes_own.py").write_text(
        """
import attributes_base
import attributes_base as other
from attributes_base import Base as Renamed
from attributes_base import Generic, Left, Right


class Own(Renamed):
    annotated = "own"


class Base(attributes_base.Base):
    pass


class Aliased(other.Base):
    pass


class Both(Left, Right):
    pass


class Subscripted(Generic[str, int]):
    pass


def function():
    plain = "a function's"
"""
    )
    (directory / "attributes_of_sft.py").write_text(
        """
import transformers
from transformers import EarlyStoppingCallback

import sft.training.callbacks.early_stopping
from sft.run.trackers.wandb import WandbTracker
from sft.training.callbacks import checkpoint
from sft.training.callbacks.early_stopping import EarlyStopping
from sft.training.callbacks.generation_samples import GenerationSamples
from sft.training.callbacks.loss_logger import LossLogger
from sft.training.callbacks.validation import Validation
from sft.training.with_trl import TrlArguments


class Looks(Validation):
    pass


class Patience(EarlyStoppingCallback):
    pass


class Dotted(transformers.EarlyStoppingCallback):
    pass


class Spikes(LossLogger, EarlyStopping):
    pass


class Twice(sft.training.callbacks.early_stopping.EarlyStopping):
    figure_argument = "figure"

    def __init__(self, figure=None):
        super().__init__()


class Best(checkpoint.BestModel):
    pass


class Samples(GenerationSamples):
    pass


class Notes(WandbTracker):
    pass


class Settings(TrlArguments):
    pass
"""
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(directory)
        yield directory


@pytest.mark.parametrize(
    ("target", "name", "value"),
    [
        ("attributes_base.Base", "plain", "base"),
        ("attributes_base.Base", "annotated", "base"),
        ("attributes_base.Base", "pair", ("a", None)),
        ("attributes_base.Base", "two", 3),
        ("attributes_base.Base", "computed", "default"),
        ("attributes_base.Base", "unset", "default"),
        ("attributes_base.Base", "method", "default"),
        ("attributes_own.Own", "plain", "base"),
        ("attributes_own.Own", "annotated", "own"),
        ("attributes_own.Base", "plain", "base"),
        ("attributes_own.Aliased", "plain", "base"),
        ("attributes_own.Both", "plain", "right"),
        ("attributes_own.Subscripted", "plain", "generic"),
        ("attributes_own.function", "plain", "default"),
        ("attributes_own.Absent", "plain", "default"),
        ("attributes_broken.Base", "plain", "default"),
        ("no_such_module.Base", "plain", "default"),
        ("Base", "plain", "default"),
        ("", "plain", "default"),
        (None, "plain", "default"),
        (["attributes_base.Base"], "plain", "default"),
    ],
)
def test_an_attribute_is_that_of_the_class_or_of_its_nearest_base(modules, target, name, value):
    assert class_attribute(target, name, "default") == value


@pytest.mark.parametrize(
    ("target", "name", "value"),
    [
        ("Looks", "role", "evaluates"),
        ("Patience", "role", "stops_early"),
        ("Dotted", "role", "stops_early"),
        ("Spikes", "role", "stops_early"),
        ("Twice", "role", "stops_early"),
        ("Twice", "figure_argument", "figure"),
        ("Best", "figure_argument", "metric_for_best_model"),
        ("Samples", "wants_examples", True),
        ("Notes", "requires", ("wandb", None)),
        ("Settings", "own_loss", True),
        ("Settings", "requires", ("trl", "trl")),
    ],
)
def test_a_class_of_the_users_own_says_what_its_base_says(modules, target, name, value):
    assert class_attribute(f"attributes_of_sft.{target}", name) == value


def test_what_is_read_is_what_python_has():
    for target in sorted(packaged_targets()):
        module, _, name = target.rpartition(".")
        found = getattr(importlib.import_module(module), name)
        if isinstance(found, type) and target.startswith(("sft.", "hydra_plugins.")):
            for attribute in ATTRIBUTES:
                assert class_attribute(target, attribute) == getattr(found, attribute, None), (target, attribute)


def test_nothing_is_imported():
    code = (
        "import sys; from sft.config.source_code.class_attributes import class_attribute as read; "
        "print(read('sft.training.with_trl.TrlArguments', 'own_loss'), read('transformers.EarlyStoppingCallback', 'role'), "
        "{'torch', 'transformers', 'trl', 'sft.training.with_trl'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.stdout.split() == ["True", "stops_early", "set()"]


# -- subclasses in a config ----------------------------------------------------------------------------------------------
def node(name: str) -> list[str]:
    """Overrides that add a callback of the user's own."""
    target = f"attributes_of_sft.{name}"
    return [f"+callbacks.own={{_target_: {target}}}", f"allow_targets=[{target}]"]


@pytest.mark.parametrize("name", ["Patience", "Spikes", "Twice"])
def test_an_own_class_that_stops_early_needs_evaluations(modules, faults, name):
    assert "this run makes none" in faults(*node(name), "trainer.eval_strategy=no")["callbacks.own"]
    assert "callbacks.own" not in faults(*node(name), "trainer.eval_strategy=epoch")


def test_an_own_class_that_loads_the_best_needs_evaluations(modules, faults):
    assert "this run makes none" in faults(*node("Best"), "trainer.eval_strategy=no")["callbacks.own"]
    assert "callbacks.own" not in faults(*node("Best"), "trainer.eval_strategy=epoch")


def test_an_own_class_that_evaluates_has_the_intervals_read(modules, faults):
    assert "trainer.eval_steps" in faults("trainer.eval_steps=5", "trainer.eval_strategy=epoch")
    assert "trainer.eval_steps" not in faults(*node("Looks"), "trainer.eval_steps=5", "trainer.eval_strategy=epoch")


def test_an_own_class_of_the_trainers_arguments_needs_what_its_base_needs(modules, monkeypatch):
    monkeypatch.setattr("sft.config.checks.requirements._installed", lambda module: module != "trl")
    (error,) = missing({"trainer": {"_target_": "attributes_of_sft.Settings"}})
    assert (error.where, "pip install 'sft[trl]'" in str(error)) == ("trainer", True)


def test_an_own_class_of_the_trainers_arguments_may_smooth_labels(modules, faults):
    allowed = ["trainer._target_=attributes_of_sft.Settings", "allow_targets=[attributes_of_sft.Settings]"]
    assert "trainer.label_smoothing_factor" in faults("trainer.label_smoothing_factor=0.1")
    assert "trainer.label_smoothing_factor" not in faults(*allowed, "trainer.label_smoothing_factor=0.1")
