"""The digest of a model's weights: the same for the same weights, however they are sharded into files."""

from __future__ import annotations

import torch
from safetensors.torch import load_file, save_file

from sft.model.fingerprint import weights_fingerprint

WEIGHTS = {f"layer.{i}.weight": torch.arange(12.0).reshape(3, 4) + i for i in range(6)}


def written(directory, weights, shards: int = 1):
    directory.mkdir()
    names = sorted(weights)
    for shard in range(shards):
        save_file({name: weights[name] for name in names[shard::shards]}, directory / f"model-{shard}.safetensors")
    return str(directory)


def test_shards_do_not_matter(tmp_path):
    whole, parts = written(tmp_path / "a", WEIGHTS), written(tmp_path / "b", WEIGHTS, shards=3)
    assert weights_fingerprint(whole) == weights_fingerprint(parts) is not None
    assert load_file(tmp_path / "b" / "model-0.safetensors").keys() != WEIGHTS.keys()


def test_values_types_shapes_and_names_matter(tmp_path):
    changed = {name: weight.clone() for name, weight in WEIGHTS.items()}
    changed["layer.3.weight"][0, 0] += 1
    others = [
        changed,
        {**WEIGHTS, "layer.0.weight": WEIGHTS["layer.0.weight"].half()},
        {**WEIGHTS, "layer.0.weight": WEIGHTS["layer.0.weight"].reshape(4, 3)},
        {name.replace("layer", "block"): weight for name, weight in WEIGHTS.items()},
    ]
    digests = [weights_fingerprint(written(tmp_path / str(i), each)) for i, each in enumerate([WEIGHTS, *others])]
    assert len(set(digests)) == 5


def test_without_safetensors_there_is_none(tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 8 + b"no header")
    assert weights_fingerprint(str(tmp_path)) is None
    assert weights_fingerprint("nobody/has-this-model") is None
