"""Protects shards on an object store: each fetched once an epoch and machine, bounded disk, faults tried again or named."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from flaky_s3 import BUCKET, serving
from killed_runs import CONTEXT

from sslt.data import cache, sharding, side_by_side, store
from sslt.data.base import Samples
from sslt.data.shards import kept
from sslt.data.shards.rows import ShardedRows
from sslt.data.shards.writing import Writer
from sslt.data.streams.streams import Stream
from sslt.errors import UserError

ROWS, SHARDS = 8, 64
SHARD_BYTES = 128 + ROWS * 4  # with the header of a .npy file
VALUES = np.arange(ROWS * SHARDS, dtype=np.int32)[:, None] * 7


class Numbers(Samples):
    """Rows of `VALUES` over shards."""

    answers = None
    fingerprint = "numbers"

    def __init__(self, rows: ShardedRows):
        self.rows = rows

    shards = property(lambda self: self.rows.bounds)

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, shards):
        self.rows.fetch(shards)

    def batch(self, index):
        return {"value": torch.from_numpy(self.rows[index])}

    def subset(self, index):
        raise NotImplementedError


def make(folder: Path, stop: int | None = None, puts: list[int] | None = None, shards: int = SHARDS) -> dict:
    writer = Writer(folder, "values", ROWS, (1,), np.int32)
    for number in range(shards):
        if number == stop:
            raise KeyboardInterrupt
        if not writer.has(number):
            if puts is not None:
                puts.append(number)
            rows = VALUES[number * ROWS : (number + 1) * ROWS]
            writer.put(number, rows, {"doubled": rows[:, 0] * 2})
    about, columns = writer.finish(shards * ROWS)
    np.save(folder / "doubled.npy", columns["doubled"])
    return {"shards": {"values": about}}


def machine(url: str, folder: Path, keep: float = 1e9) -> None:
    """This process is on a machine whose own disk is `folder`."""
    os.environ["SSLT_LOCAL_CACHE"] = str(folder)
    cache.set_cache_dir(url, {"from_bytes": 1, "shard_bytes": ROWS * 4, "keep_bytes": keep})


def entry(**how) -> cache.Entry:
    return cache.get_or_make("kind", "key", lambda folder: make(folder, **how), resumable=True)


def found() -> cache.Entry:
    """The entry as another machine has made it."""
    return cache.get_or_make("kind", "key", lambda folder: pytest.fail("made again"), resumable=True)


@pytest.fixture(autouse=True)
def _settings(monkeypatch, tmp_path):
    for name in ("_root", "_store"):
        monkeypatch.setattr(cache, name, None)
    monkeypatch.setattr(cache, "_checked", set())
    monkeypatch.setattr(sharding, "_limits", None)
    monkeypatch.setattr(cache.log, "propagate", True)
    monkeypatch.setattr(store, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(store, "LONGEST_WAIT", 0.02)
    monkeypatch.setattr("sslt.data.shards.files._warned", set())
    monkeypatch.setenv("SSLT_LOCAL_CACHE", "")


@pytest.fixture
def url(tmp_path) -> str:
    return f"file://{tmp_path}/store"


@pytest.fixture
def fetched(monkeypatch) -> list[str]:
    """Names of what is fetched of a store, by this process."""
    names: list[str] = []
    get = store.Store.get
    monkeypatch.setattr(store.Store, "get", lambda self, name, file: (names.append(name), get(self, name, file))[1])
    return names


def kept_bytes() -> int:
    """Of all shards on this machine's disk, while threads fetch and remove them."""
    total = 0
    for path in (cache.cache_dir() / "kept").glob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if "~" in path.name else 0
    return total


def shards_of(names: list[str]) -> list[str]:
    return sorted(name for name in names if name.endswith(".npy") and "/shards/" in name)


def test_made_on_one_machine_read_on_another(url, tmp_path, fetched):
    """The second makes nothing, fetches small files at once and shards as they are read; the first keeps what it wrote."""
    machine(url, tmp_path / "a")
    one = ShardedRows.open(entry(), "values")
    np.testing.assert_array_equal(one[np.arange(len(VALUES))], VALUES)
    assert shards_of(fetched) == [], "what was just written lies here"
    machine(url, tmp_path / "b")
    other = cache.get_or_make("kind", "key", lambda folder: pytest.fail("made again"), resumable=True)
    np.testing.assert_array_equal(other["doubled"], VALUES[:, 0] * 2)
    assert shards_of(fetched) == []
    rows = ShardedRows.open(other, "values")
    np.testing.assert_array_equal(rows[np.array([100, 3])], VALUES[[100, 3]])
    assert shards_of(fetched) == [f"kind/key/shards/values-{n:06}.npy" for n in (0, 12)]


def test_entries_without_shards_are_shared_too(url, tmp_path):
    """An ordinary entry that one machine made is whole on another; one that is damaged in the store is made again there."""

    def write(folder):
        np.save(folder / "numbers.npy", np.arange(5))
        return {"count": 5}

    machine(url, tmp_path / "a")
    cache.get_or_make("kind", "small", write)
    machine(url, tmp_path / "b")
    found = cache.get_or_make("kind", "small", lambda folder: pytest.fail("made again"))
    assert found.meta == {"count": 5} and found["numbers"].tolist() == list(range(5))
    (tmp_path / "store" / "kind" / "small" / "numbers.npy").write_bytes(b"damaged")
    machine(url, tmp_path / "c")
    made: list[int] = []
    cache.get_or_make("kind", "small", lambda folder: (made.append(1), write(folder))[1])
    assert made == [1]
    machine(url, tmp_path / "d")
    assert cache.get_or_make("kind", "small", lambda folder: pytest.fail("made again"))["numbers"].tolist() == list(range(5))


def test_a_preparation_goes_on_on_another_machine(url, tmp_path):
    """Killed at the 40th shard; a machine that has nothing of it makes the other 24."""
    machine(url, tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        entry(stop=40)
    machine(url, tmp_path / "b")
    assert cache.find("kind", "key") is None
    puts: list[int] = []
    rows = ShardedRows.open(entry(puts=puts), "values")
    assert puts == list(range(40, 64))
    np.testing.assert_array_equal(rows[np.arange(len(VALUES))], VALUES)


def test_preparation_keeps_no_more_than_its_share_of_the_disk(url, tmp_path):
    """Of 64 shards that are written, ten stay on this machine."""
    machine(url, tmp_path / "a", keep=10.5 * SHARD_BYTES)
    entry()
    assert kept_bytes() == 10 * SHARD_BYTES
    assert not list(cache.cache_dir().glob("kind/*/shards/*.npy"))


def test_an_epoch_in_a_disk_of_three_windows(url, tmp_path, monkeypatch):
    """Each shard is fetched once an epoch, a resumed run fetches its window and the next, and the disk is never fuller than it may."""
    machine(url, tmp_path / "a")
    entry()
    keep = 48 * SHARD_BYTES
    machine(url, tmp_path / "b", keep)
    names: list[str] = []
    get = store.Store.get

    def counted(self, name, file):
        names.append(name)
        get(self, name, file)
        assert kept_bytes() <= keep

    monkeypatch.setattr(store.Store, "get", counted)
    stream = Stream(Numbers(ShardedRows.open(found(), "values")), 8, seed=0)
    seen = np.concatenate([stream.at(step)["value"].numpy()[:, 0] for step in range(len(stream))])
    assert sorted(seen.tolist()) == VALUES[:, 0].tolist()
    assert len(shards_of(names)) == len(set(shards_of(names))) == SHARDS
    assert kept_bytes() <= keep
    names.clear()
    machine(url, tmp_path / "c", keep)
    resumed = Stream(Numbers(ShardedRows.open(found(), "values")), 8, seed=0)
    resumed.at(len(stream) + 3 * 16 + 1)  # in the last window of the second epoch
    assert len(shards_of(names)) == 16


def test_what_is_reserved_is_counted_until_its_file_is(url, tmp_path):
    """While one counts the files, no claim goes away: its file may have come after the names were read, and would be counted nowhere."""
    machine(url, tmp_path / "a")
    folder = cache.cache_dir() / "kept"
    reserved, counting, placed = threading.Event(), threading.Event(), threading.Event()

    def fetch() -> None:
        with kept._reserved(folder / "kind~key~000.npy", SHARD_BYTES) as tmp:
            reserved.set()
            counting.wait(60)
            tmp.write_bytes(bytes(SHARD_BYTES))
            os.replace(tmp, folder / "kind~key~000.npy")
            placed.set()

    fetching = threading.Thread(target=fetch)
    fetching.start()
    assert reserved.wait(60)
    with side_by_side.alone(folder, ".lock-room"):
        counting.set()
        assert placed.wait(60)
        fetching.join(0.3)
        assert len(list(folder.glob(".tmp-*-claim"))) == 1
    fetching.join(60)
    assert kept_bytes() == SHARD_BYTES
    assert not list(folder.glob(".tmp-*"))


def test_too_little_disk_is_told_and_enough(url, tmp_path, caplog):
    """With room for five shards all is read, with a line about it; with room for none it is refused."""
    machine(url, tmp_path / "a")
    entry()
    machine(url, tmp_path / "b", 5 * SHARD_BYTES)
    stream = Stream(Numbers(ShardedRows.open(entry(), "values")), 8, seed=0)
    seen = [stream.at(step)["value"].numpy()[:, 0] for step in range(len(stream))]
    assert sorted(np.concatenate(seen).tolist()) == VALUES[:, 0].tolist()
    assert sum("less than two windows" in r.getMessage() for r in caplog.records) == 1
    machine(url, tmp_path / "c", SHARD_BYTES - 1)
    with pytest.raises(UserError, match=r"shards\.keep_bytes="):
        ShardedRows.open(entry(), "values")[np.array([0])]


def _read_epoch(rank: int, url: str, folder: str, log: str, barrier) -> None:
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank))
    get = store.Store.get

    def counted(self, name, file):
        with open(log, "a") as f:
            f.write(name + "\n")
        get(self, name, file)

    store.Store.get = counted  # type: ignore[method-assign]
    machine(url, Path(folder), 48 * SHARD_BYTES)
    stream = Stream(Numbers(ShardedRows.open(entry(), "values")), 4, seed=0, rank=rank, world=2)
    seen = []
    for step in range(len(stream)):
        barrier.wait(60)  # as the gradients of a step make them wait
        seen.append(stream.at(step)["value"].numpy()[:, 0])
    np.save(f"{folder}/seen{rank}.npy", np.concatenate(seen))


def test_two_processes_of_a_machine_fetch_each_shard_once(url, tmp_path):
    """Two ranks read an epoch: all rows, each shard fetched once by one of them."""
    machine(url, tmp_path / "a")
    entry()
    barrier = CONTEXT.Barrier(2)
    (tmp_path / "b").mkdir()
    args = (url, str(tmp_path / "b"), str(tmp_path / "log"), barrier)
    processes = [CONTEXT.Process(target=_read_epoch, args=(rank, *args)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [p.exitcode for p in processes] == [0, 0]
    seen = np.concatenate([np.load(tmp_path / "b" / f"seen{rank}.npy") for rank in range(2)])
    assert sorted(seen.tolist()) == VALUES[:, 0].tolist()
    names = shards_of((tmp_path / "log").read_text().splitlines())
    assert len(names) == len(set(names)) == SHARDS


def test_s3_with_faults(tmp_path, monkeypatch, caplog):
    """Answers of 503 and cut connections are tried again, with a line; an object cut short, gone or changed is named; so is no bucket."""
    with serving(monkeypatch) as s3:
        where = f"s3://{BUCKET}/some/prefix"
        machine(where, tmp_path / "a")
        entry(shards=10)
        machine(where, tmp_path / "b")
        rows = ShardedRows.open(entry(), "values")
        s3.faults += ["503", "cut", "503", "cut"]
        np.testing.assert_array_equal(rows[np.arange(2 * ROWS)], VALUES[: 2 * ROWS])
        assert not s3.faults and len(s3.gets) >= 6
        s3.faults += ["503"] * 500
        with (
            caplog.at_level(logging.WARNING),
            pytest.raises(UserError, match=rf"{where}/kind/key/shards/values-000005.npy .*tried 6 times"),
        ):
            rows[np.array([5 * ROWS])]
        s3.faults.clear()
        assert sum("trying again" in r.getMessage() for r in caplog.records) == 2, "one line a shard"

        import boto3

        client, name = boto3.client("s3"), "some/prefix/kind/key/shards/values-{:06}.npy"
        whole = client.get_object(Bucket=BUCKET, Key=name.format(7))["Body"].read()
        client.put_object(Bucket=BUCKET, Key=name.format(7), Body=whole[:-8])
        with pytest.raises(UserError, match=r"values-000007.npy is damaged \(cut short, 152 of 160 bytes\), fetched 3 times: remove s3://"):
            rows[np.array([7 * ROWS])]
        client.put_object(Bucket=BUCKET, Key=name.format(8), Body=whole)
        with pytest.raises(UserError, match=r"values-000008.npy is damaged \(its bytes are not"):
            rows[np.array([8 * ROWS])]
        client.delete_object(Bucket=BUCKET, Key=name.format(9))
        with pytest.raises(UserError, match=r"values-000009.npy is gone: remove s3://"):
            rows[np.array([9 * ROWS])]
        client.put_object(Bucket=BUCKET, Key=name.format(7), Body=whole)
        np.testing.assert_array_equal(rows[np.array([7 * ROWS])], VALUES[[7 * ROWS]])
        machine("s3://no-such-bucket/x", tmp_path / "c")
        with pytest.raises(UserError, match=r"s3://no-such-bucket/x/kind/key"):
            entry()


@pytest.mark.parametrize(("wrong", "said"), [("nothing://x", "cannot be opened"), ("s3:///", "cannot be")])
def test_a_place_that_is_none(tmp_path, wrong, said):
    machine(wrong, tmp_path / "a")
    with pytest.raises(UserError, match=said):
        cache.get_or_make("kind", "small", lambda folder: {})
