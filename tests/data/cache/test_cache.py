"""The cache returns what was stored or nothing: never a partial, damaged or stale entry."""

from __future__ import annotations

import logging
import os
import time

import numpy as np
import pytest

from sft.data import cache as module
from sft.data.cache import Cache, default_root
from sft.data.cache.keys import key_of


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


def store(cache: Cache, key: str = "k", tokens: int = 5, note: str = "stored") -> None:
    with cache.writer(key) as writer:
        writer.append({"ids": np.arange(tokens, dtype=np.int32), "none": np.empty(0, np.int64)})
        writer.append({"ids": np.arange(2, dtype=np.int32)})
        writer.commit({"note": note})


def test_an_entry_comes_back_as_it_was_stored(cache):
    store(cache)
    entry = cache.load("k")
    assert entry.columns["ids"].tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert entry.columns["ids"].dtype == np.int32
    assert entry.columns["none"].tolist() == []
    assert entry.meta == {"note": "stored"}
    assert cache.load("other") is None


def test_an_uncommitted_entry_leaves_nothing(cache):
    with pytest.raises(RuntimeError), cache.writer("k") as writer:
        writer.append({"ids": np.arange(3)})
        raise RuntimeError
    assert cache.load("k") is None and list(cache.root.iterdir()) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "ids.bin").write_bytes(b"\1" * 28),
        lambda folder: (folder / "ids.bin").write_bytes((folder / "ids.bin").read_bytes()[:-4]),
        lambda folder: (folder / "ids.bin").unlink(),
        lambda folder: (folder / "meta.json").write_text("{"),
        lambda folder: (folder / "meta.json").write_text("[]"),
        lambda folder: (folder / "meta.json").write_text(
            (folder / "meta.json").read_text().replace("stored", "forged")
        ),
    ],
)
def test_a_damaged_entry_is_ignored_and_can_be_recreated(cache, damage, caplog):
    store(cache)
    damage(cache.root / "k")
    with caplog.at_level(logging.WARNING):
        assert cache.load("k") is None
    assert "damaged" in caplog.text
    store(cache, note="again")
    assert cache.load("k").meta == {"note": "again"}


def test_columns_stay_readable_when_their_entry_is_replaced(cache):
    store(cache)
    before = cache.load("k").columns["ids"]
    store(cache, tokens=3)
    assert before.tolist() == [0, 1, 2, 3, 4, 0, 1] and cache.load("k").columns["ids"].tolist() == [0, 1, 2, 0, 1]


def test_a_disabled_cache_stores_nothing_but_the_rows_are_usable(tmp_path):
    cache = Cache(tmp_path / "cache", enabled=False)
    with cache.writer("k") as writer:
        writer.append({"ids": np.arange(3)})
        entry = writer.commit({})
    assert entry.columns["ids"].tolist() == [0, 1, 2]
    assert cache.load("k") is None and not (tmp_path / "cache").exists()


def test_an_unwritable_folder_disables_the_cache(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert not Cache(tmp_path / "file" / "cache").enabled
    assert "cannot be written" in caplog.text


def test_the_cache_location_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SFT_CACHE", str(tmp_path))
    assert default_root() == tmp_path / "data"
    monkeypatch.delenv("SFT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_root() == tmp_path / ".cache" / "sft" / "data"
    monkeypatch.setenv("SFT_CACHE", "~/elsewhere")
    assert default_root() == tmp_path / "elsewhere" / "data"


def test_a_key_depends_on_every_fact_and_not_on_their_order():
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1})
    assert len({key_of({"a": 1}), key_of({"a": "1"}), key_of({"a": 2}), key_of({"b": 1}), key_of({"a": "\ud800"})}) == 5


def test_a_memoized_file_digest_follows_the_content(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MEMO_FROM", 0)
    file = tmp_path / "rows.jsonl"
    file.write_text("one")
    hour_ago = time.time() - 3600
    os.utime(file, (hour_ago, hour_ago))
    first = cache.file_digest(file)
    assert cache.file_digest(file) == first and len(list((cache.root / "digests").iterdir())) == 1
    file.write_text("two")  # the same size and, below, the same time of change
    os.utime(file, (hour_ago, hour_ago))
    assert cache.file_digest(file) != first


def test_the_longest_unused_entries_are_removed_first(cache):
    for age, key in ((100, "old"), (50, "mid"), (0, "new")):
        store(cache, key, tokens=100)
        os.utime(cache.root / key / "meta.json", (time.time() - age * 86400,) * 2)
    cache.prune(keep_bytes=2000)
    assert cache.load("old") is not None  # loading counts as use
    os.utime(cache.root / "old" / "meta.json", (0, 0))
    cache.prune(keep_bytes=1500)
    assert cache.load("old") is None and cache.load("mid") is not None
    cache.prune(keep_bytes=0)
    assert cache.load("mid") is not None and cache.load("new") is not None  # used within a day
