"""Several processes that write into one folder: one at a time, under names of their own, and what those that died left is removed."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from sslt.data.entries import SHARDS

HOST = re.sub(r"\W", "", platform.node()) or "here"


def temporary() -> str:
    """The beginning of a name that `sweep` knows."""
    return f".tmp-{HOST}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


@contextlib.contextmanager
def alone(folder: Path, name: str = ".lock") -> Iterator[None]:
    """One process at a time is inside (to take entries away, say), where the file system has locks."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            file = stack.enter_context((folder / name).open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sweep(folder: Path) -> None:
    """Remove what crashed writers left: temporary folders of processes that are gone, or older than a day; half-made shards of a month."""
    for part in folder.glob(".part-*"):
        with contextlib.suppress(OSError):
            newest = max((p.stat().st_mtime for p in (part, part / SHARDS) if p.exists()), default=0)
            if time.time() - newest > 30 * 86_400:
                shutil.rmtree(part, ignore_errors=True)
    for tmp in folder.glob(".tmp-*"):
        host, pid = tmp.name.split("-")[1:3]
        with contextlib.suppress(OSError):
            alive = host != HOST or not Path("/proc").exists() or Path(f"/proc/{pid}").exists()
            if not alive or time.time() - tmp.stat().st_mtime > 86_400:
                shutil.rmtree(tmp, ignore_errors=True)
                tmp.unlink(missing_ok=True)  # it was a file
