"""Protects the cache of prepared data: entries are whole or absent, whatever crashes or runs at the same time."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sslt.data import cache, entries, side_by_side
from sslt.errors import UserError


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
        started.wait(120)  # both are inside `make` before either ends
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
        w.join(120)
    assert [w.exitcode for w in writers] == [0, 0]
    got = [answers.get(timeout=120) for _ in writers]
    assert all(mark == low == high and n == 200_000 for mark, low, high, n in got)
    entry = cache.get_or_make("kind", "key", write_numbers)
    assert entry.meta["mark"] in (1, 2) and set(np.unique(entry["big"])) == {entry.meta["mark"]}
    assert everything_in(own_cache) == ["big.npy", "key", "kind", "meta.json"]


def test_a_dead_writers_folder_is_swept(own_cache):
    """What a killed process left goes when the next one writes; a living writer's folder stays."""
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    kind = own_cache / "kind"
    left = kind / f".tmp-{side_by_side.HOST}-{dead.pid}-12345678-key"
    living = kind / f".tmp-{side_by_side.HOST}-{os.getpid()}-12345678-other"
    for folder in (left, living):
        folder.mkdir(parents=True)
        (folder / "numbers.npy").write_bytes(b"half")
    cache.get_or_make("kind", "key", write_numbers)
    assert living.is_dir() and not left.exists()


def test_an_old_temporary_folder_is_swept(own_cache):
    """A process id may have been given to another process since: after a day its folder goes anyway."""
    old = own_cache / "kind" / f".tmp-{side_by_side.HOST}-{os.getpid()}-12345678-key"
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
    monkeypatch.setenv("SSLT_CACHE", "")
    cache.set_cache_dir("")  # what a setting that reads the environment becomes
    assert cache.cache_dir() == Path.home() / ".cache" / "sslt"
    monkeypatch.delenv("SSLT_CACHE")
    assert cache.cache_dir() == Path.home() / ".cache" / "sslt"


def test_meta_is_plain_json(own_cache):
    """Entries can be read by anything, in any later version."""
    entry = cache.get_or_make("kind", "key", write_numbers)
    meta = json.loads((entry.path / "meta.json").read_text())
    assert meta.pop("checksums").keys() == {"numbers.npy", "meta.json"} and meta == {"count": 10}


# ---------------------------------------------------------------- what is damaged
def write_much(folder: Path) -> dict[str, int]:
    np.save(folder / "numbers.npy", np.arange(1_000_000))  # 8 MB: eight blocks of the size below
    (folder / "words.json").write_text('["one"]')
    return {"count": 10}


def flip(path: Path, at: int) -> None:
    """Change one bit, and nothing that `stat` tells."""
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    with path.open("r+b") as f:
        f.write(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def damages(place: Path) -> dict[str, object]:
    numbers, meta = place / "numbers.npy", place / "meta.json"
    return {
        "a bit in the middle": lambda: flip(numbers, 5_000_000),
        "a bit in the last block": lambda: flip(numbers, numbers.stat().st_size - 1),
        "a bit of the header": lambda: flip(numbers, 30),
        "a bit of a small file": lambda: flip(place / "words.json", 3),
        "a number in meta.json": lambda: meta.write_text(meta.read_text().replace('"count": 10', '"count": 12')),
        "a checksum": lambda: meta.write_text(meta.read_text().replace('"numbers.npy": [', '"numbers.npy": [1')),
        "no JSON": lambda: meta.write_bytes(b"\xff\x00 not JSON"),
        "another JSON": lambda: meta.write_text("[1, 2]"),
        "checksums of another kind": lambda: meta.write_text('{"count": 10, "checksums": [3]}'),
        "cut short": lambda: os.truncate(numbers, 4_000_000),
        "emptied": lambda: os.truncate(numbers, 0),
        "too long": lambda: numbers.open("ab").write(b"more"),
        "missing": numbers.unlink,
        "no meta.json": meta.unlink,
        "a pipe": lambda: (meta.unlink(), os.mkfifo(meta)),
        "a pipe for data": lambda: (numbers.unlink(), os.mkfifo(numbers)),
        "no folder": lambda: (shutil.rmtree(place), place.write_text("a file")),
    }


@pytest.mark.parametrize("what", damages(Path()))
def test_a_damaged_entry_is_made_again(own_cache, monkeypatch, caplog, what):
    """With a line, in the next run; the file's time tells nothing. What was damaged is gone, and the new one is whole."""
    monkeypatch.setattr(entries, "BLOCK", 1 << 20)
    monkeypatch.setattr(cache.log, "propagate", True)
    made = []
    make = lambda folder: (made.append(1), write_much(folder))[1]  # noqa: E731
    place = cache.get_or_make("kind", "key", make).path
    damages(place)[what]()
    cache.set_cache_dir(own_cache)  # another run
    for _ in range(2):
        entry = cache.get_or_make("kind", "key", make)
        assert entry["numbers"].tolist() == list(range(1_000_000)) and entry.meta == {"count": 10}
    assert made == [1, 1]
    (line,) = [r.getMessage() for r in caplog.records]
    assert line.startswith("kind/key in the cache is damaged and made again: ") and "\n" not in line
    assert everything_in(own_cache) == [".lock", "key", "kind", "meta.json", "numbers.npy", "words.json"]


def test_an_entry_is_read_once_a_run(own_cache, monkeypatch):
    """Opening it again costs a look at its files; what this run made is not read at all."""
    read, sums = [], entries.sums_of
    cache.get_or_make("kind", "key", write_much)
    monkeypatch.setattr(entries, "sums_of", lambda path: read.append(path.name) or sums(path))
    cache.get_or_make("kind", "key", write_much)
    assert read == []
    cache.set_cache_dir(own_cache)
    for _ in range(3):
        cache.get_or_make("kind", "key", write_much)
    assert sorted(read) == ["numbers.npy", "words.json"]


@pytest.mark.parametrize(("rank", "read_by_it"), [("0", ["numbers.npy", "words.json"]), ("1", [])])
def test_a_large_entry_is_read_by_one_rank(own_cache, monkeypatch, rank, read_by_it):
    """The others open it after the first, and trust it; small ones are not worth the asking."""
    cache.get_or_make("kind", "key", write_much)
    read, sums = [], entries.sums_of
    monkeypatch.setattr(entries, "sums_of", lambda path: read.append(path.name) or sums(path))
    monkeypatch.setenv("LOCAL_RANK", rank)
    for small, expected in ((1 << 20, read_by_it), (cache.SMALL, ["numbers.npy", "words.json"])):
        monkeypatch.setattr(cache, "SMALL", small)
        cache.set_cache_dir(own_cache)
        cache.get_or_make("kind", "key", write_much)
        assert sorted(read) == expected
        read.clear()


def test_another_entry_in_its_place_is_read(own_cache, caplog, monkeypatch):
    """What this run has compared is this very entry, not whatever stands in its place later."""
    monkeypatch.setattr(cache.log, "propagate", True)
    place = cache.get_or_make("kind", "key", write_much).path
    shutil.copytree(place, place.with_name("copy"))
    flip(place.with_name("copy") / "numbers.npy", 5_000_000)
    shutil.rmtree(place)
    place.with_name("copy").rename(place)
    assert cache.get_or_make("kind", "key", write_much)["numbers"].tolist() == list(range(1_000_000))
    assert len(caplog.records) == 1


def test_damage_that_cannot_be_taken_away_ends_in_one_line(own_cache, monkeypatch):
    """Somebody else's cache, say: what was never checked is taken as it is, what is known to be damaged is not."""
    place = cache.get_or_make("kind", "key", write_much).path
    refuse = lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))  # noqa: E731
    monkeypatch.setattr(cache, "_remove", refuse)
    flip(place / "numbers.npy", 5_000_000)
    cache.set_cache_dir(own_cache)
    with pytest.raises(UserError, match=r"key is damaged \(numbers\.npy .*Permission denied.*set another cache_dir="):
        cache.get_or_make("kind", "key", write_much)
    (place / "meta.json").write_text('{"count": 3}')
    assert cache.get_or_make("kind", "key", write_much).meta == {"count": 3}


def test_an_entry_without_checksums_is_made_again_silently(own_cache, caplog):
    """As earlier versions wrote it; where nothing can be written it is taken as it is."""
    place = own_cache / "kind" / "key"
    place.mkdir(parents=True)
    (place / "meta.json").write_text('{"count": 3}')
    assert cache.get_or_make("kind", "key", write_numbers).meta == {"count": 10}
    assert caplog.records == []


def _open_damaged(root: str, started, answers) -> None:
    cache.set_cache_dir(root)
    started.wait(120)
    entry = cache.get_or_make("kind", "key", write_much)
    answers.put(int(np.array(entry["numbers"]).sum()))


def test_processes_that_find_the_same_damage(own_cache):
    """All end with the whole entry, though one may take away what another is about to look at."""
    place = cache.get_or_make("kind", "key", write_much).path
    flip(place / "numbers.npy", 5_000_000)
    context = multiprocessing.get_context("fork")
    started, answers = context.Barrier(4), context.Queue()
    readers = [context.Process(target=_open_damaged, args=(str(own_cache), started, answers)) for _ in range(4)]
    for r in readers:
        r.start()
    got = [answers.get(timeout=120) for _ in readers]
    for r in readers:
        r.join(120)
    assert got == [499_999_500_000] * 4
    assert everything_in(own_cache) == [".lock", "key", "kind", "meta.json", "numbers.npy", "words.json"]
