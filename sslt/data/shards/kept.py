"""Files of an object store on this machine's disk: the least recently used go where there are more bytes than `shards.keep_bytes`.

Processes of a machine share them. One fetches a file and the others wait for it; what it is going to take is reserved before, so
that the sum stays below the bound at any time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from sslt.data import cache, sharding, side_by_side
from sslt.data.shards.hashed import digest_of
from sslt.data.store import Store
from sslt.errors import UserError

log = logging.getLogger("sslt")

FETCHES = 3  # of a file that does not come as it was written
_LOCKS = 64  # files that stand for the names that they lock


def kept(store: Store, name: str, size: int, digest: str) -> Path:
    """Where a file of the store is on this machine: fetched, unless it is there, and compared with its size and digest.

    It may be gone when it is opened, since another process needed room: ask again then. Raises `UserError` for one that is damaged or
    gone in the store, or larger than all that is to be kept.
    """
    path = _folder() / name.replace("/", "~")
    if _is_there(path, size, digest):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with side_by_side.alone(path.parent, f".lock-{zlib.crc32(path.name.encode()) % _LOCKS}"):
        if _is_there(path, size, digest):  # fetched by the one that this one waited for
            return path
        said = ""
        for _ in range(FETCHES):
            with _reserved(path, size) as tmp:
                try:
                    store.get(name, tmp)
                except FileNotFoundError:
                    raise UserError(f"{store.where(name)} is gone: {_remake(store, name)}") from None
                came = tmp.stat().st_size
                if came == size and digest_of(tmp) == digest:
                    cache.note_checked(_identity(path, tmp.stat()))
                    os.replace(tmp, path)
                    return path
            said = "its bytes are not those that were written" if came == size else f"cut short, {came:,} of {size:,} bytes"
            log.warning("%s came damaged (%s); fetching it again", store.where(name), said)
        raise UserError(f"{store.where(name)} is damaged ({said}), fetched {FETCHES} times: {_remake(store, name)}")


def adopt(path: Path, name: str) -> None:
    """Have a file that was just written to the store, at `path`, be one of those that are kept; where it has no room, remove it."""
    with _reserved(_folder() / name.replace("/", "~"), path.stat().st_size) as tmp:
        os.replace(path, tmp)
        os.replace(tmp, _folder() / name.replace("/", "~"))


def _remake(store: Store, name: str) -> str:
    return f"remove {store.where('/'.join(name.split('/')[:2]))}/ to have it prepared again"


def _folder() -> Path:
    return cache.cache_dir() / "kept"


def _identity(path: Path, stat: os.stat_result) -> tuple[object, ...]:
    return str(path), stat.st_ino, stat.st_size


def _is_there(path: Path, size: int, digest: str) -> bool:
    """Whether the file is there as it was written, which one process of a machine compares once a run; marks it as used."""
    try:
        os.utime(path)
        identity = _identity(path, stat := path.stat())
        if stat.st_size != size:
            return False
        if not cache.was_checked(identity) and os.environ.get("LOCAL_RANK", "0") == "0":
            if digest_of(path) != digest:
                path.unlink(missing_ok=True)
                return False
            cache.note_checked(identity)
        return True
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _reserved(path: Path, size: int) -> Iterator[Path]:
    """A place for a file of `size` bytes, made free of the files that were not used for longest; gone afterwards if it is not renamed."""
    limits = sharding.limits()
    room = None if limits is None else limits.keep_bytes
    if room is not None and size > room:
        raise UserError(f"shards.keep_bytes={room}: one file has {size:,} bytes, give as much as some dozens of them")
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    claim, tmp = (folder / f"{side_by_side.temporary()}-{end}" for end in ("claim", "file"))
    while True:
        with side_by_side.alone(folder, ".lock-room"):
            side_by_side.sweep(folder)
            if room is None or _has_room(folder, size, room):
                with claim.open("wb") as file:  # of no bytes on the disk, but counted by its size
                    file.truncate(size)
                break
        time.sleep(0.02)  # others are fetching what fills it
    try:
        yield tmp
    finally:
        tmp.unlink(missing_ok=True)
        with side_by_side.alone(folder, ".lock-room"):  # who counts the files meanwhile must find the claim or what it stood for
            claim.unlink(missing_ok=True)


def _has_room(folder: Path, size: int, room: int) -> bool:
    """Whether a file of `size` bytes fits, after those that were not used for longest are gone, as many as it takes."""
    found = []
    for path in folder.iterdir():
        if not path.name.startswith(".lock") and not path.name.endswith("-file"):
            with contextlib.suppress(FileNotFoundError):
                found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
    total = sum(n for _, n, _ in found) + size
    for _, n, path in sorted(f for f in found if not f[2].name.startswith(".tmp")):
        if total <= room:
            break
        path.unlink(missing_ok=True)
        total -= n
    return total <= room
