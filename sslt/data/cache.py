"""Prepared data on disk: written once, whole or not at all, by however many processes ask at the same time.

An entry is a folder `<cache_dir>/<kind>/<key>/` of files and a `meta.json`. It is written beside its place under
a temporary name and then renamed: a crash leaves only a temporary folder, which the next writer removes, and of two
writers the first to finish wins and the other drops its copy.

`meta.json` holds a CRC-32 of every `BLOCK` bytes of every file and of itself. A run reads each entry that it opens once from end to
end and compares; what is damaged, cut short or from before there were checksums is moved away and made again. Every byte is compared,
whatever its file's time says, since a disk that errs does not change times; and before training rather than at the first touch of a block,
since only then can an entry be made again without a step on garbage. It takes 0.3 s of one core per GB of what the
system has in memory (CRC-32 finds every error of up to 32 bits in a row and misses 1 in 4 billion of others; BLAKE2b would take 1.1 s
per GB), and blocks are shared among threads. The reading is not lost, as it fills the system's
page cache, in order. One process of a run does it, the others trust it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from sslt import stored
from sslt.errors import UserError

log = logging.getLogger("sslt")

BLOCK = 16 << 20  # bytes that one checksum is of
THREADS = min(8, os.cpu_count() or 1)  # more read no faster than memory does
SMALL = 4 * BLOCK  # bytes of an entry up to which every process checks it
TOLD = 20 << 30  # bytes of an entry from which on its checking is worth a line
_SUMS = "checksums"  # key of meta.json

_root: Path | None = None
_checked: set[tuple[Any, ...]] = set()  # entries that this run has compared with their checksums
_HOST = re.sub(r"\W", "", platform.node()) or "here"


def set_cache_dir(path: str | os.PathLike[str]) -> None:
    """Where entries of this process go (the `cache_dir` setting; "": by itself). Called as a run begins: what it opens is checked anew."""
    global _root
    _root = Path(path).expanduser() if path else None
    _checked.clear()


def cache_dir() -> Path:
    """The folder of all entries: `cache_dir`, else $SSLT_CACHE, else ~/.cache/sslt."""
    return _root or Path(os.environ.get("SSLT_CACHE") or "~/.cache/sslt").expanduser()


def digest(*parts: Any) -> str:
    """20 hex digits over `parts`: bytes and arrays by content, everything else by its JSON."""
    h = hashlib.blake2b(digest_size=10)
    for part in parts:
        if isinstance(part, np.ndarray):
            h.update(f"{part.dtype}{part.shape}".encode())
            h.update(np.ascontiguousarray(part).data)
        elif isinstance(part, bytes):
            h.update(part)
        else:
            h.update(json.dumps(part, sort_keys=True, default=str).encode())
        h.update(b"\x00")
    return h.hexdigest()


def file_digest(path: Path) -> str:
    """Digest of a file's bytes. Read once: remembered by path, size and modification time."""
    stat = path.stat()
    memo = cache_dir() / "files" / digest(str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    with contextlib.suppress(OSError):
        if re.fullmatch(r"[0-9a-f]{20}", text := memo.read_text(errors="replace")):
            return text
    h = hashlib.blake2b(digest_size=10)
    with path.open("rb") as f:
        while chunk := f.read(1 << 22):
            h.update(chunk)
    if time.time_ns() - stat.st_mtime_ns > 2_000_000_000:  # a file still being written may change within its timestamp
        with contextlib.suppress(OSError):
            memo.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(memo, h.hexdigest())
    return h.hexdigest()


def write_atomic(path: Path, text: str | bytes) -> None:
    """Write a file whole or not at all."""
    tmp = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        tmp.write_bytes(text.encode() if isinstance(text, str) else text)
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


class Entry:
    """A finished entry: `entry["name"]` memory-maps an array, `entry.meta` is its JSON.

    Raises `UserError`, `OSError` or `ValueError` where its `meta.json` is damaged or not there.
    """

    def __init__(self, path: Path):
        self.path = path
        self.meta: dict[str, Any] = json.loads(stored.text(path / "meta.json", largest=1 << 30))
        if not isinstance(self.meta, dict):
            raise ValueError("meta.json holds no object")
        self.sums: dict[str, list[int]] | None = self.meta.pop(_SUMS, None)

    def __getitem__(self, name: str) -> np.ndarray:
        return np.load(self.path / f"{name}.npy", mmap_mode="r")

    def __contains__(self, name: str) -> bool:
        return (self.path / f"{name}.npy").exists()

    def damage(self) -> str | None:
        """What is wrong with it: None if every byte is as it was written."""
        if not isinstance(self.sums, dict) or self.sums.get("meta.json") != [_own_sum(self.meta, self.sums)]:
            return "meta.json is damaged"
        if self.size > TOLD:
            log.info("checking %.0f GB of prepared data in %s", self.size / 1e9, self.path)
        for name, wanted in self.sums.items():
            if name != "meta.json" and (found := _sums(self.path / name)) != wanted:
                bad = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), None)
                where = "its length" if bad is None else f"block {bad + 1} of {len(wanted)}"
                return f"{name} is not as it was written ({where})"
        return None

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(stat.st_size for stat in self._stats())

    def identity(self) -> tuple[Any, ...]:
        """What tells this entry from another one in its place."""
        return str(self.path), *((s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in self._stats())

    def _stats(self) -> list[os.stat_result]:
        return [(self.path / name).stat() for name in sorted(self.sums or {})]


def find(kind: str, key: str, checked: bool = True) -> Entry | None:
    """The entry `key` if it is there. A damaged one is moved away with a line, and is then none.

    checked: compare it with its checksums, once a run; False where another process of this run has done so (a small one is anyway).
    Raises `UserError` where a damaged one cannot be moved away.
    """
    place = cache_dir() / kind / key
    if not os.path.lexists(place):
        return None
    entry, damage = _open(place, checked)
    if damage is not None:
        with _alone(place.parent):  # of two that saw the damage, the second may see the first one's new entry here
            if not os.path.lexists(place):
                return None
            entry, damage = _open(place, checked)
            if damage is not None:
                try:
                    _remove(place)
                except OSError as e:
                    if damage == _OLD:
                        return Entry(place)
                    raise UserError(f"{place} is damaged ({damage}) and cannot be moved away ({e.strerror}): set another cache_dir=") from e
                if damage != _OLD:
                    log.warning("%s/%s in the cache is damaged and made again: %s", kind, key, damage)
    return entry


def get_or_make(kind: str, key: str, make: Callable[[Path], dict[str, Any]]) -> Entry:
    """The entry `key`, made by `make(folder) -> meta` if it is not there whole.

    `make` writes files into the folder it is given and returns what goes into `meta.json`.
    """
    # of a run on several devices, the first process has opened (and so checked) what the others open after it
    if (found := find(kind, key, checked=os.environ.get("LOCAL_RANK", "0") == "0")) is not None:
        return found
    place = cache_dir() / kind / key
    place.parent.mkdir(parents=True, exist_ok=True)
    _sweep(place.parent)
    tmp = place.with_name(f"{_temporary()}-{key}")
    tmp.mkdir()
    try:
        meta = json.loads(json.dumps(make(tmp)))  # as it will be read
        sums = {str(p.relative_to(tmp)): _sums(p) for p in sorted(tmp.rglob("*")) if p.is_file()}
        sums["meta.json"] = [_own_sum(meta, sums)]
        (tmp / "meta.json").write_text(json.dumps({**meta, _SUMS: sums}))
        try:
            tmp.rename(place)
        except OSError:
            if not (place / "meta.json").exists():
                raise
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    entry = Entry(place)
    _checked.add(entry.identity())
    return entry


_OLD = "it has no checksums"


def _open(place: Path, checked: bool) -> tuple[Entry | None, str | None]:
    """(the entry, None), or (None, what is wrong with it)."""
    try:
        entry = Entry(place)
        if entry.sums is None:
            return None, _OLD
        if (checked or entry.size < SMALL) and entry.identity() not in _checked:
            if (damage := entry.damage()) is not None:
                return None, damage
            _checked.add(entry.identity())
        return entry, None
    except FileNotFoundError as e:
        return None, f"{Path(e.filename).name} is missing"
    except (UserError, OSError, ValueError, RecursionError, TypeError) as e:  # whatever bytes may stand there
        return None, f"it cannot be read ({str(e).splitlines()[0][:200]})"


def _sums(path: Path) -> list[int]:
    """CRC-32 of every `BLOCK` bytes of a file; [0] if it is empty."""
    stored.require_regular(path)
    blocks = range(0, max(path.stat().st_size, 1), BLOCK)
    with path.open("rb") as f, ThreadPoolExecutor(THREADS) as pool:  # zlib works outside of Python's lock
        return list(pool.map(lambda start: zlib.crc32(os.pread(f.fileno(), BLOCK, start)), blocks))


def _own_sum(meta: dict[str, Any], sums: dict[str, list[int]]) -> int:
    """CRC-32 of what meta.json holds beside this number."""
    others = {k: v for k, v in sums.items() if k != "meta.json"}
    return zlib.crc32(json.dumps([meta, others], sort_keys=True).encode())


def _temporary() -> str:
    """The beginning of a name that `_sweep` knows."""
    return f".tmp-{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def _remove(place: Path) -> None:
    """Take away what is in an entry's place, at once for whoever looks there."""
    away = place.with_name(f"{_temporary()}-{place.name}")
    place.rename(away)
    shutil.rmtree(away, ignore_errors=True)
    with contextlib.suppress(OSError):  # it was no folder
        away.unlink()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time takes entries away, where the file system has locks."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            file = stack.enter_context((folder / ".lock").open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sweep(folder: Path) -> None:
    """Remove what crashed writers left: temporary folders of processes that are gone, or older than a day."""
    for tmp in folder.glob(".tmp-*"):
        host, pid = tmp.name.split("-")[1:3]
        with contextlib.suppress(OSError):
            alive = host != _HOST or not Path("/proc").exists() or Path(f"/proc/{pid}").exists()
            if not alive or time.time() - tmp.stat().st_mtime > 86_400:
                shutil.rmtree(tmp, ignore_errors=True)
