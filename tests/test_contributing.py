"""CONTRIBUTING.md's examples, each in an empty directory of a user's own: the files it takes, composed and built."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft.config.build import build
from sft.config.errors import UserError

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]}
MOST = {"A model family": 1, "A dataset format": 1, "A callback": 2, "A trainer": 2, "A config key": 2}
PAIRS = [{"sum": f"{n}+4", "is": n + 4} for n in range(20)]


def files_of(section: str) -> dict[str, str]:
    """The files of a section's example, each named by the first line of its block."""
    found = re.findall(r"^```\w+\n(# (\S+\.(?:yaml|py))\n.*?)^```", SECTIONS[section], re.DOTALL | re.MULTILINE)
    return {name: body for body, name in found}


@pytest.fixture
def composed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """composed("A callback", *overrides) -> the config as plain containers, in a directory with the example's files."""
    from sft.api import compose
    from sft.config.compose import plain

    def make(section: str, *overrides: str) -> dict[str, Any]:
        for name, body in files_of(section).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(body)
        return plain(compose("experiment=smoke", f"hydra.run.dir={tmp_path / 'run'}", *overrides))

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield make
    for section in MOST:
        for name in files_of(section):
            sys.modules.pop(Path(name).stem, None)


def test_the_table_says_how_many_files_each_takes():
    told = dict(re.findall(r"^\| (a [\w ]+) \| (\d) \|", PAGE, re.MULTILINE))
    counts = {section: len(files_of(section)) for section in MOST}
    assert {section.lower(): str(count) for section, count in counts.items()} == told
    assert all(counts[section] <= most for section, most in MOST.items())


def test_a_model_family(composed):
    from sft.model.facts import family_of
    from sft.model.load import load_config, load_tokenizer
    from sft.template.bind import bind

    config = composed("A model family", "model=mine")
    spec = build(config["model"], where="model")
    family = family_of(spec, load_config(spec))
    assert (family.stop_tokens, family.target_modules) == (("<|im_end|>",), ["q_proj", "v_proj"])
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    template = build(config["template"], where="template")
    bound = bind(template, load_tokenizer(spec, load_config(spec)), family, rows, ["messages"])
    assert bound.stop_tokens[0] == "<|im_end|>"
    assert "<|im_start|>assistant\nb<|im_end|>" in bound.render(rows[0])


def test_a_dataset_format(composed, tmp_path):
    from sft.data.formats import recognise
    from sft.data.readers import read_source

    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*PAIRS, {"sum": "1+1"}]))
    convert = "dataset.convert={_target_: pairs.conversation}"
    given = ["dataset=local", "dataset.path=pairs.jsonl", convert, "allow_targets=[pairs.conversation]"]
    dataset = build(composed("A dataset format", *given)["dataset"], where="dataset", allowed=["pairs.conversation"])
    source = dataset.sources["local"]
    rows = [row for _, row in read_source(source, "local", "dataset")]
    converter = recognise(source, rows, "dataset")
    said = {"role": "assistant", "content": "4"}
    assert converter.to_conversation(rows[0])["messages"] == [{"role": "user", "content": "What is 0+4?"}, said]
    with pytest.raises(ValueError, match="left out by convert"):
        converter.to_conversation(rows[-1])


def test_a_callback(composed):
    given = ["callbacks=[default,gradient_norms]", "allow_targets=[norms.GradientNorms]"]
    config = composed("A callback", *given)
    callback = build(config["callbacks"]["gradient_norms"], where="callbacks", allowed=config["allow_targets"])
    assert type(callback).__name__ == "GradientNorms" and callback.above == 0.1
    with pytest.raises(UserError, match="not on the list"):
        composed("A callback", given[0])


def test_a_trainer(composed, tmp_path, monkeypatch):
    from sft.api import compose, train

    given = ["trainer=loraplus", "trainer.max_steps=1", "allow_targets=[loraplus.LoraPlusArguments]"]
    rates: list[set[float]] = []
    composed("A trainer", *given)
    import loraplus

    made = loraplus.LoraPlus.create_optimizer

    def create(trainer: Any, model: Any = None) -> Any:
        optimizer = made(trainer, model)
        rates.append({group["lr"] for group in optimizer.param_groups if group["params"]})
        return optimizer

    monkeypatch.setattr(loraplus.LoraPlus, "create_optimizer", create)
    small = ["dataset.sources.tickets.generator.rows=8", "dataset.eval_sources=null", "dataset.eval_fraction=0"]
    quick = [*small, "dataset.num_proc=0", "callbacks=quiet", "trainer.lr_ratio=4", "trainer.learning_rate=0.5"]
    result = train(compose("experiment=smoke", f"hydra.run.dir={tmp_path / 'run'}", *given, *quick))
    assert result.metrics["steps"] == 1 and rates[0] == {0.5, 2.0}


def test_a_config_key(composed):
    given = ["dataset=quick", "allow_targets=[quick.Quick]"]

    def samples(*overrides: str) -> set[int | None]:
        config = composed("A config key", *given, *overrides)
        dataset = build(config["dataset"], where="dataset", allowed=config["allow_targets"])
        return {source.samples for source in dataset.sources.values()}

    assert samples() == {64} and samples("dataset.rows=16") == {16}
    with pytest.raises(UserError, match=r"did you mean dataset\.rows\?"):
        samples("dataset.rowz=16")
    with pytest.raises(UserError, match=r"dataset\.rows"):
        samples("dataset.rows=many")
