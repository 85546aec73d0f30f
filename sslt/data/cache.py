"""Prepared data on disk: written once, whole or not at all, by however many processes ask at the same time.

An entry is a folder `<cache_dir>/<kind>/<key>/` of `.npy` files and a `meta.json`. It is written beside its place under
a temporary name and then renamed: a crash leaves only a temporary folder, which the next writer removes, and of two
writers the first to finish wins and the other drops its copy.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_root: Path | None = None
_HOST = re.sub(r"\W", "", platform.node()) or "here"


def set_cache_dir(path: str | os.PathLike[str]) -> None:
    """Where entries of this process go (the `cache_dir` setting)."""
    global _root
    _root = Path(path).expanduser()


def cache_dir() -> Path:
    """The folder of all entries: `cache_dir`, else $SSLT_CACHE, else ~/.cache/sslt."""
    return _root or Path(os.environ.get("SSLT_CACHE", "~/.cache/sslt")).expanduser()


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
        if text := memo.read_text():
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
    """A finished entry: `entry["name"]` memory-maps an array, `entry.meta` is its JSON."""

    def __init__(self, path: Path):
        self.path = path
        self.meta: dict[str, Any] = json.loads((path / "meta.json").read_text())

    def __getitem__(self, name: str) -> np.ndarray:
        return np.load(self.path / f"{name}.npy", mmap_mode="r")

    def __contains__(self, name: str) -> bool:
        return (self.path / f"{name}.npy").exists()


def get_or_make(kind: str, key: str, make: Callable[[Path], dict[str, Any]]) -> Entry:
    """The entry `key`, made by `make(folder) -> meta` if it is not there.

    `make` writes `.npy` files into the folder it is given and returns what goes into `meta.json`.
    """
    place = cache_dir() / kind / key
    if (place / "meta.json").exists():
        return Entry(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    _sweep(place.parent)
    tmp = place.with_name(f".tmp-{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:8]}-{key}")
    tmp.mkdir()
    try:
        meta = make(tmp)
        (tmp / "meta.json").write_text(json.dumps(meta))
        try:
            tmp.rename(place)
        except OSError:
            if not (place / "meta.json").exists():
                raise
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    return Entry(place)


def _sweep(folder: Path) -> None:
    """Remove what crashed writers left: temporary folders of processes that are gone, or older than a day."""
    for tmp in folder.glob(".tmp-*"):
        host, pid = tmp.name.split("-")[1:3]
        with contextlib.suppress(OSError):
            alive = host != _HOST or not Path("/proc").exists() or Path(f"/proc/{pid}").exists()
            if not alive or time.time() - tmp.stat().st_mtime > 86_400:
                shutil.rmtree(tmp, ignore_errors=True)
