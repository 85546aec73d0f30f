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

Of an entry with `shards` in its meta, these are compared one by one as they are first read (`shards/files.py`). It is made in a folder
that stays when its maker is killed, and a shard that is missing later is made again alone.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sslt.data import entries, sharding
from sslt.data.entries import SHARDS, Entry
from sslt.data.side_by_side import alone, sweep, temporary
from sslt.data.store import Store, is_url
from sslt.errors import UserError

log = logging.getLogger("sslt")

FETCHES = 3  # of an entry of a store that does not come whole
SMALL = 4 * entries.BLOCK  # bytes of an entry up to which every process checks it

_root: Path | None = None
_store: Store | None = None
_checked: set[tuple[Any, ...]] = set()  # entries that this run has compared with their checksums


def set_cache_dir(path: str | os.PathLike[str], shards: Mapping[str, Any] | None = None) -> None:
    """Where entries of this process go (the `cache_dir` setting; "": by itself). Called as a run begins: what it opens is checked anew.

    shards: the setting of that name (`sharding.Limits`); None: nothing is kept as shards. Raises `UserError` for what cannot be.
    """
    global _root, _store
    sharding.set_limits(shards)
    _root, _store = _located(str(path), os.environ.get("SSLT_LOCAL_CACHE")) if path else (None, None)
    _checked.clear()


def store() -> Store | None:
    """Where the entries are that all machines share, where `cache_dir` is a URL; `cache_dir()` then has this machine's copies."""
    return _store if _root is not None else _by_environment()[1]


def _by_environment() -> tuple[Path, Store | None]:
    return _located(os.environ.get("SSLT_CACHE") or "~/.cache/sslt", os.environ.get("SSLT_LOCAL_CACHE"))


@functools.lru_cache
def _located(path: str, local: str | None) -> tuple[Path, Store | None]:
    if not is_url(path):
        return Path(path).expanduser(), None
    return Path(local or "~/.cache/sslt").expanduser() / "stores" / digest(path.rstrip("/")), Store(path)


def was_checked(identity: tuple[Any, ...]) -> bool:
    """Whether this run has compared what `identity` tells apart with its digest."""
    return identity in _checked


def note_checked(identity: tuple[Any, ...]) -> None:
    """Say that it has."""
    _checked.add(identity)


def cache_dir() -> Path:
    """The folder of all entries: `cache_dir`, else $SSLT_CACHE, else ~/.cache/sslt.

    Where that is a URL, the folder of this machine's copies: below $SSLT_LOCAL_CACHE, else ~/.cache/sslt.
    """
    return _root or _by_environment()[0]


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


def find(kind: str, key: str, checked: bool = True) -> Entry | None:
    """The entry `key` if it is there. A damaged one is moved away with a line, and is then none.

    checked: compare it with its checksums, once a run; False where another process of this run has done so (a small one is anyway).
    Raises `UserError` where a damaged one cannot be moved away.
    """
    place, shared = cache_dir() / kind / key, store()
    if shared is not None and not os.path.lexists(place):
        _fetch(shared, f"{kind}/{key}", place)
    if not os.path.lexists(place):
        return None
    entry, damage = _open(place, checked)
    if damage is not None:
        with alone(place.parent):  # of two that saw the damage, the second may see the first one's new entry here
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
    if entry is not None and checked and shared is None and (missing := entry.missing()):
        log.warning("%s/%s in the cache lacks %d of %d shards, which are made again", kind, key, len(missing), len(entry.shards()))
        try:
            os.utime(place)  # or it would be taken for one left over from long ago
            place.rename(_unfinished(place))
        except OSError:  # another process is making it there already
            _remove(place)
        return None
    return entry


def get_or_make(kind: str, key: str, make: Callable[[Path], dict[str, Any]], resumable: bool = False) -> Entry:
    """The entry `key`, made by `make(folder) -> meta` if it is not there whole.

    `make` writes files into the folder it is given and returns what goes into `meta.json`. resumable: one process makes it while others
    wait, and the folder stays when that fails, for the next `make` to go on with.
    """
    # of a run on several devices, the first process has opened (and so checked) what the others open after it
    if (found := find(kind, key, checked := os.environ.get("LOCAL_RANK", "0") == "0")) is not None:
        return found
    place = cache_dir() / kind / key
    place.parent.mkdir(parents=True, exist_ok=True)
    sweep(place.parent)
    with contextlib.ExitStack() as stack:
        if resumable:
            stack.enter_context(alone(place.parent, f".lock-{key}"))
            if (found := find(kind, key, checked)) is not None:  # made by the one that this one waited for
                return found
            tmp = _unfinished(place)
            tmp.mkdir(exist_ok=True)
            (tmp / "meta.json").unlink(missing_ok=True)
        else:
            tmp = place.with_name(f"{temporary()}-{key}")
            tmp.mkdir()
            stack.callback(shutil.rmtree, tmp, ignore_errors=True)
        meta = json.loads(json.dumps(make(tmp)))  # as it will be read
        inside = (p for p in sorted(tmp.rglob("*")) if p.is_file() and p.parent != tmp / SHARDS)
        sums = {str(p.relative_to(tmp)): entries.sums_of(p) for p in inside}
        sums["meta.json"] = [entries.own_sum(meta, sums)]
        (tmp / "meta.json").write_text(json.dumps({**meta, entries.SUMS: sums}))
        if (shared := store()) is not None:
            for name in sums:  # meta.json is the last of them: without it there is no entry
                shared.put(tmp / name, f"{kind}/{key}/{name}")
        try:
            tmp.rename(place)
        except OSError:
            if not (place / "meta.json").exists():
                raise
    entry = Entry(place)
    _checked.add(entry.identity())
    return entry


def _fetch(shared: Store, name: str, place: Path) -> None:
    """Copy the entry `name`, without its shards, to this machine; nothing where there is none, or none that is whole."""
    if shared.read(f"{name}/meta.json") is None:
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with alone(place.parent, f".fetch-{place.name}"):
        if os.path.lexists(place):  # by the process that this one waited for
            return
        for _ in range(FETCHES):
            tmp = place.with_name(f"{temporary()}-{place.name}")
            tmp.mkdir()
            try:
                with contextlib.suppress(FileNotFoundError, UserError, ValueError):
                    shared.get(f"{name}/meta.json", tmp / "meta.json")
                    entry = Entry(tmp)
                    for file in entry.files():
                        (tmp / file).parent.mkdir(parents=True, exist_ok=True)
                        shared.get(f"{name}/{file}", tmp / file)
                    if entry.damage() is None:
                        tmp.rename(place)
                        return
            finally:
                shutil.rmtree(tmp, ignore_errors=True)
        log.warning("%s is damaged or not whole, and made again", shared.where(name))


def _unfinished(place: Path) -> Path:
    """Where a resumable entry is while it is made."""
    return place.with_name(f".part-{place.name}")


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


def _remove(place: Path) -> None:
    """Take away what is in an entry's place, at once for whoever looks there."""
    away = place.with_name(f"{temporary()}-{place.name}")
    place.rename(away)
    shutil.rmtree(away, ignore_errors=True)
    with contextlib.suppress(OSError):  # it was no folder
        away.unlink()
