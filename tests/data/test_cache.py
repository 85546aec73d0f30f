"""Protects the cache of prepared data: entries are whole or absent, whatever crashes or runs at the same time."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sslt.data import cache


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_root", tmp_path / "cache")
    return tmp_path / "cache"


def write_numbers(folder: Path) -> dict[str, int]:
    np.save(folder / "numbers.npy", np.arange(10))
    return {"count": 10}


def everything_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*"))


def test_made_once_then_read(own_cache):
    """The second asker gets the first one's arrays, memory-mapped, and its meta."""
    calls = []
    make = lambda folder: (calls.append(1), write_numbers(folder))[1]  # noqa: E731
    for _ in range(2):
        entry = cache.get_or_make("kind", "key", make)
        assert entry.meta == {"count": 10} and "numbers" in entry and "letters" not in entry
        assert isinstance(entry["numbers"], np.memmap) and entry["numbers"].tolist() == list(range(10))
    assert calls == [1]
    assert everything_in(own_cache) == ["key", "kind", "meta.json", "numbers.npy"]


def test_a_crash_leaves_nothing(own_cache):
    """An exception in `make` comes through, no half an entry stays, and the next attempt makes it."""

    def crash(folder: Path):
        write_numbers(folder)
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        cache.get_or_make("kind", "key", crash)
    assert everything_in(own_cache) == ["kind"]
    assert cache.get_or_make("kind", "key", write_numbers).meta == {"count": 10}


def test_meta_that_is_no_json_leaves_nothing(own_cache):
    """The same where the meta cannot be written."""
    with pytest.raises(TypeError):
        cache.get_or_make("kind", "key", lambda folder: {"count": object()})
    assert everything_in(own_cache) == ["kind"]


def _make_slowly(root: str, mark: int, started, answers) -> None:
    cache.set_cache_dir(root)

    def make(folder: Path):
        started.wait(20)  # both are inside `make` before either ends
        np.save(folder / "big.npy", np.full(200_000, mark))
        return {"mark": mark}

    entry = cache.get_or_make("kind", "key", make)
    answers.put((entry.meta["mark"], entry["big"].min().item(), entry["big"].max().item(), len(entry["big"])))


def test_two_processes_at_once(own_cache):
    """Two processes that make the same key at the same time both end with one whole entry, and the same one afterwards."""
    context = multiprocessing.get_context("spawn")
    started, answers = context.Barrier(2), context.Queue()
    writers = [context.Process(target=_make_slowly, args=(str(own_cache), mark, started, answers)) for mark in (1, 2)]
    for w in writers:
        w.start()
    for w in writers:
        w.join(30)
    assert [w.exitcode for w in writers] == [0, 0]
    got = [answers.get(timeout=5) for _ in writers]
    assert all(mark == low == high and n == 200_000 for mark, low, high, n in got)
    entry = cache.get_or_make("kind", "key", write_numbers)
    assert entry.meta["mark"] in (1, 2) and set(np.unique(entry["big"])) == {entry.meta["mark"]}
    assert everything_in(own_cache) == ["big.npy", "key", "kind", "meta.json"]


def test_a_dead_writers_folder_is_swept(own_cache):
    """What a killed process left goes when the next one writes; a living writer's folder stays."""
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    kind = own_cache / "kind"
    left = kind / f".tmp-{cache._HOST}-{dead.pid}-12345678-key"
    living = kind / f".tmp-{cache._HOST}-{os.getpid()}-12345678-other"
    for folder in (left, living):
        folder.mkdir(parents=True)
        (folder / "numbers.npy").write_bytes(b"half")
    cache.get_or_make("kind", "key", write_numbers)
    assert living.is_dir() and not left.exists()


def test_an_old_temporary_folder_is_swept(own_cache):
    """A process id may have been given to another process since: after a day its folder goes anyway."""
    old = own_cache / "kind" / f".tmp-{cache._HOST}-{os.getpid()}-12345678-key"
    old.mkdir(parents=True)
    os.utime(old, (time.time() - 100_000,) * 2)
    cache.get_or_make("kind", "key", write_numbers)
    assert not old.exists()


def test_file_digest_follows_the_content(tmp_path):
    """Other bytes, other digest, even at the same size; the same bytes elsewhere, the same one."""
    path, copy = tmp_path / "a.bin", tmp_path / "b.bin"
    path.write_bytes(b"one")
    first = cache.file_digest(path)
    path.write_bytes(b"two")  # at once: within the resolution of some file systems' timestamps
    assert cache.file_digest(path) != first
    copy.write_bytes(b"one")
    assert cache.file_digest(copy) == first


def test_file_digest_reads_an_old_file_once(tmp_path):
    """A large file that was at rest is not read again, until its time or size changes."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    os.utime(path, (time.time() - 100,) * 2)
    first, at = cache.file_digest(path), path.stat().st_mtime_ns
    path.write_bytes(b"two")
    os.utime(path, ns=(at, at))
    assert cache.file_digest(path) == first  # by its time and size it is the file that was read
    os.utime(path, ns=(at + 1, at + 1))
    assert cache.file_digest(path) != first


def test_digest_tells_things_apart():
    """Arrays by type, shape and content, not by layout; parts do not run into each other; keys in any order."""
    a = np.arange(6, dtype=np.int32)
    different = [
        cache.digest(a), cache.digest(a.astype(np.int64)), cache.digest(a.reshape(2, 3)), cache.digest(a + 1),
        cache.digest("ab", "c"), cache.digest("a", "bc"), cache.digest("abc"), cache.digest(None), cache.digest(),
    ]  # fmt: skip
    assert len(set(different)) == len(different)
    assert cache.digest(a.reshape(2, 3)) == cache.digest(np.asfortranarray(a.reshape(2, 3)))
    assert cache.digest({"x": 1, "y": 2}) == cache.digest({"y": 2, "x": 1})


def test_write_atomic(tmp_path, monkeypatch):
    """The file is the old one or the new one; a failure leaves the old one and no rest."""
    path = tmp_path / "file.json"
    cache.write_atomic(path, "old")
    cache.write_atomic(path, "neu ü")
    assert path.read_text(encoding="utf-8") == "neu ü"
    cache.write_atomic(path, b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        cache.write_atomic(path, "new")
    assert path.read_bytes() == b"\x00\x01"
    assert everything_in(tmp_path) == ["file.json"]


def test_cache_dir_comes_from_the_setting_then_the_environment(monkeypatch, tmp_path):
    """`cache_dir=` before $SSLT_CACHE before the home folder; ~ is the home folder."""
    assert cache.cache_dir() == tmp_path / "cache"
    monkeypatch.setattr(cache, "_root", None)
    monkeypatch.setenv("SSLT_CACHE", "~/here")
    assert cache.cache_dir() == Path.home() / "here"
    monkeypatch.delenv("SSLT_CACHE")
    assert cache.cache_dir() == Path.home() / ".cache" / "sslt"


def test_meta_is_plain_json(own_cache):
    """Entries can be read by anything, in any later version."""
    entry = cache.get_or_make("kind", "key", write_numbers)
    assert json.loads((entry.path / "meta.json").read_text()) == {"count": 10}
