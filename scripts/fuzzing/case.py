"""One case: a folder of its own, what is typed there, and what must be the same afterwards."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

_LARGE = 16 << 20  # bytes of a file of which size and time are compared, not content
KEPT = "a file that nobody asked to change\n"


@dataclasses.dataclass
class Case:
    """What is typed, with which environment, and how the files it meets were made.

    untouched: paths below the case's folder whose files must neither change, come nor go (beside those of every case).
    console: run it by the real console script. long: it may train for long, so that it is interrupted as a user would.
    """

    argv: list[str]
    made: str = ""
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    untouched: list[str] = dataclasses.field(default_factory=list)
    console: bool = False
    long: bool = False


class Place:
    """The folder of one case.

    work/ is the working folder, cache/, home/ and tmp/ are what their names say: there a command may write. outside/ and
    work/victim.txt are nobody's business, and EXECUTED is what hostile content writes when it runs.
    """

    def __init__(self, root: Path):
        self.root = root
        self.work, self.cache, self.home, self.tmp, self.outside = (root / n for n in ("work", "cache", "home", "tmp", "outside"))
        self.marker = root / "EXECUTED"
        self.victim = self.outside / "victim.txt"

    def make(self) -> None:
        """The empty folders and the files that must stay as they are."""
        for folder in (self.work, self.cache, self.home, self.tmp, self.outside / "runs" / "one"):
            folder.mkdir(parents=True)
        for victim in (self.victim, self.work / "victim.txt", self.outside / "runs" / "one" / "metrics.json", self.outside / "last.ckpt"):
            victim.write_text(KEPT)

    @property
    def shell(self) -> str:
        """A shell command that leaves the marker."""
        return f"touch {self.marker}"

    @property
    def python(self) -> str:
        """A line of Python that leaves the marker."""
        return f"open({str(self.marker)!r}, 'w').close()"

    def environment(self) -> dict[str, str]:
        """What a command sees of it."""
        return {"SSLT_CACHE": str(self.cache), "HOME": str(self.home), "TMPDIR": str(self.tmp), "COLUMNS": "200"}


@dataclasses.dataclass(frozen=True)
class Planned:
    """A case by its name (`folders-17`) and who makes it in its empty folder."""

    name: str
    make: Callable[[Place], Case]


def snapshot(place: Place, case: Case) -> dict[str, Any]:
    """path → kind, time and content of everything that must stay as it is."""
    found: dict[str, Any] = {}
    for name in ("outside", "work/victim.txt", *case.untouched):
        start = place.root / name
        todo = [start]
        while todo:
            path = todo.pop()
            try:
                about = path.lstat()
            except OSError:
                continue
            content = ""
            if stat.S_ISDIR(about.st_mode):
                todo += sorted(path.iterdir())
            elif stat.S_ISREG(about.st_mode) and about.st_size > _LARGE:
                content = str(about.st_size)
            elif stat.S_ISREG(about.st_mode):
                content = hashlib.blake2b(path.read_bytes(), digest_size=10).hexdigest()
            when = 0 if stat.S_ISDIR(about.st_mode) else about.st_mtime_ns  # of a folder its content tells
            found[str(path.relative_to(place.root))] = [stat.S_IFMT(about.st_mode), when, content]
    return found


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What came, went or changed between two snapshots."""
    verbs = ((before.keys() - after.keys(), "went"), (after.keys() - before.keys(), "came"))
    told = [f"{path} {verb}" for paths, verb in verbs for path in paths]
    return sorted(told + [f"{path} changed" for path in before.keys() & after.keys() if before[path] != after[path]])


def save(place: Place, case: Case) -> None:
    """Write down what is about to run, so that whoever waits for it knows, however it ends."""
    about = {**dataclasses.asdict(case), "before": snapshot(place, case)}
    (place.root / "case.json").write_text(json.dumps(about))


def load(place: Place) -> tuple[Case, dict[str, Any]]:
    """What `save` wrote: the case and what was there before."""
    about = json.loads((place.root / "case.json").read_text())
    before = about.pop("before")
    return Case(**about), before


def command(case: Case) -> list[str]:
    """Settings of the environment and arguments, as they would be typed."""
    return [*(f"{k}={v}" for k, v in case.env.items()), "sslt", *case.argv]


def inside(path: str, folder: Path) -> bool:
    """Whether a path without links is a folder or below it."""
    return path == str(folder) or path.startswith(f"{folder}{os.sep}")
