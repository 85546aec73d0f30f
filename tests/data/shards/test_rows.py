"""Protects arrays over shards: rows as NumPy would index them, in bounded memory, damage found and made good."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from sslt.data import cache, sharding
from sslt.data.shards.rows import ShardedRows
from sslt.data.shards.writing import Writer
from sslt.errors import UserError

VALUES = np.random.default_rng(0).integers(0, 1000, (53, 3, 2)).astype(np.int32)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_root", tmp_path / "cache")
    monkeypatch.setattr(cache, "_checked", set())


def make(folder: Path, puts: list[int], stop: int | None = None) -> dict:
    """Shards of 10 rows of `VALUES`; `puts` notes which were written, `stop` dies before that one."""
    writer = Writer(folder, "values", 10, (3, 2), np.int32)
    for number in range(6):
        if number == stop:
            raise KeyboardInterrupt
        if not writer.has(number):
            puts.append(number)
            rows = VALUES[number * 10 : number * 10 + 10]
            writer.put(number, rows, {"sums": rows.sum((1, 2))})
    about, columns = writer.finish(53)
    np.save(folder / "sums.npy", columns["sums"])
    return {"shards": {"values": about}}


def entry(puts: list[int] | None = None, stop: int | None = None) -> cache.Entry:
    return cache.get_or_make("kind", "key", lambda folder: make(folder, [] if puts is None else puts, stop), resumable=True)


def test_rows_are_numpys():
    """Any order, repeated rows, runs over borders of shards, none at all; negative and missing rows are refused."""
    rows = ShardedRows.open(entry(), "values")
    assert len(rows) == 53 and rows.shape == VALUES.shape and rows.dtype == VALUES.dtype
    assert rows.bounds.tolist() == [0, 10, 20, 30, 40, 50, 53]
    for index in (
        np.arange(53),
        np.arange(5, 35),
        np.array([52, 0, 9, 10, 52, 11]),
        np.random.default_rng(1).permutation(53),
        np.array([]),
    ):
        np.testing.assert_array_equal(rows[index], VALUES[index.astype(int)])
    for wrong in ([-1], [53]):
        with pytest.raises(IndexError):
            rows[np.array(wrong)]
    np.testing.assert_array_equal(entry()["sums"], VALUES.sum((1, 2)))


def test_nothing_is_mapped_or_left_open():
    """After reading, the process has no map of a shard and no file more than before."""
    rows = ShardedRows.open(entry(), "values")
    before = len(os.listdir("/proc/self/fd"))
    rows[np.arange(53)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert "values-" not in Path("/proc/self/maps").read_text()


def test_a_killed_preparation_goes_on():
    """What was written before is not written again, and the entry is there when all of it is."""
    puts: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        entry(puts, stop=4)
    assert cache.find("kind", "key") is None
    rows = ShardedRows.open(entry(puts), "values")
    assert puts == [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(rows[np.arange(53)], VALUES)


def test_half_a_shard_is_none():
    """A file cut short in the unfinished folder, or one without its note, is written again."""
    puts: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        entry(puts, stop=4)
    folder = cache.cache_dir() / "kind" / ".part-key" / "shards"
    os.truncate(folder / "values-000001.npy", 100)
    (folder / "values-000002.npz").write_bytes(b"half a note")
    rows = ShardedRows.open(entry(puts), "values")
    assert puts == [0, 1, 2, 3, 1, 2, 4, 5]
    np.testing.assert_array_equal(rows[np.arange(53)], VALUES)


@pytest.mark.parametrize("how", ["flipped", "short", "gone"])
def test_damage_is_named_and_only_that_shard_made_again(how, caplog):
    """A shard that is not as it was written is never read from; the next to open the entry makes it, and no other."""
    path = entry().path / "shards" / "values-000003.npy"
    rows = ShardedRows.open(entry(), "values")
    if how == "flipped":
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)
    elif how == "short":
        os.truncate(path, 200)
    else:
        path.unlink()
    np.testing.assert_array_equal(rows[np.arange(30)], VALUES[:30])
    with pytest.raises(UserError, match=r"values-000003.npy is (not as it was written|gone): the same command again"):
        rows[np.array([35])]
    puts: list[int] = []
    again = ShardedRows.open(entry(puts), "values")
    assert puts == [3] and "lacks 1 of 6 shards" in caplog.text
    np.testing.assert_array_equal(again[np.arange(53)], VALUES)


def test_one_process_of_a_machine_checks(monkeypatch):
    """The other ranks trust it: a shard is read to its end once a machine and run."""
    rows = ShardedRows.open(entry(), "values")
    monkeypatch.setattr("sslt.data.shards.files.digest_of", lambda path: pytest.fail("read by another rank"))
    monkeypatch.setenv("LOCAL_RANK", "1")
    np.testing.assert_array_equal(rows[np.arange(53)], VALUES)


@pytest.mark.parametrize("bytes_left", [-8, 100, None])
def test_another_rank_reads_no_wrong_rows(bytes_left, monkeypatch):
    """Of a shard that is cut short or gone after the first has looked at it."""
    path = entry().path / "shards" / "values-000003.npy"
    rows = ShardedRows.open(entry(), "values")
    monkeypatch.setenv("LOCAL_RANK", "1")
    last = int(rows.bounds[4]) - 1
    if bytes_left is None:
        path.unlink()
    else:
        os.truncate(path, bytes_left % path.stat().st_size)
        if bytes_left < 0:
            np.testing.assert_array_equal(rows[np.array([last - 5])], VALUES[[last - 5]])
    with pytest.raises(UserError, match=r"values-000003.npy is (cut short|gone): the same command again"):
        rows[np.array([last])]


def test_an_old_entry_is_mended_as_a_new_one():
    """What lies half-made for a month is swept, and what was prepared long ago is not that."""
    path = entry().path
    (path / "shards" / "values-000003.npy").unlink()
    for folder in (path, path / "shards"):
        os.utime(folder, (1e9, 1e9))
    puts: list[int] = []
    entry(puts)
    assert puts == [3]


def test_two_writers_make_it_once():
    """The second waits for the first and takes what it made."""
    puts: list[int] = []
    threads = [threading.Thread(target=entry, args=(puts,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(puts) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("wrong", [0, -1, True, "much", float("inf")])
def test_limits_are_bytes(wrong):
    with pytest.raises(UserError, match=r"shards\.shard_bytes="):
        sharding.set_limits({"from_bytes": 1e9, "shard_bytes": wrong, "keep_bytes": 1e9})
