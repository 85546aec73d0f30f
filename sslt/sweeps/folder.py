"""The folder of a sweep: which cells it has, how each of them stands, and which sweep a command goes on with.

sweep.json  the command, the cells, and in the end their numbers   sweep.csv  a line for each cell
NUMBER/     the run folder of a cell                               trials.log what Optuna asked and was told
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sslt import groups, runs, stored
from sslt.errors import UserError
from sslt.runs import Run, display

FILE = "sweep.json"
DONE = ("finished", "pruned")  # states of cells that nothing is left to do for
# What does not make another sweep: where it is and who runs its cells, and how many trials there are to be.
_ASIDE = ("resume=", "debug=", "hydra.sweep.dir=", "hydra/launcher=", "hydra.launcher.", "hydra.sweeper.n_trials=", "hydra.sweeper.n_jobs=")
_KINDS: dict[str, type] = {"verb": str, "status": str, "started": str, "overrides": list, "cells": list}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a sweep. overrides: of its command; swept: those of them that vary, key → value."""

    number: int
    overrides: list[str]
    swept: dict[str, str]
    folder: Path

    def __hash__(self) -> int:
        return hash(self.folder)

    @property
    def state(self) -> str:
        """finished, pruned, failed, interrupted (there is something to go on from), running (by another process) or not run."""
        run = Run(self.folder)
        info = run.info
        if not info:
            return "not run"
        status = str(info.get("status"))
        if status != "finished" and "pruned" in info:
            return "pruned"
        if status == "running" and not _is_locked(self.folder):
            return "interrupted"  # it was killed
        return status


class Sweep:
    """A sweep folder, and what its sweep.json says."""

    def __init__(self, path: Path):
        self.path = path

    def __str__(self) -> str:
        return display(self.path)

    @property
    def info(self) -> dict[str, Any]:
        """Raises `UserError` where the file is damaged."""
        found = runs.read_json(self.path / FILE)
        for key, kind in _KINDS.items():
            if key in found:
                stored.value(found, key, kind, self.path / FILE)
        return found

    def update(self, **values: Any) -> None:
        """Set keys of sweep.json."""
        self.path.mkdir(parents=True, exist_ok=True)
        runs.write_json(self.path / FILE, {**self.info, **values})

    def is_of(self, verb: str, overrides: list[str], config_dir: str | None) -> bool:
        """Whether this is the sweep of a command."""
        info = self.info
        known = (info.get("verb"), comparable(info.get("overrides", [])), info.get("config_dir"))
        return known == (verb, comparable(overrides), config_dir)

    def number_of(self, folder: Path) -> int:
        """Of the cell whose run folder this is."""
        return next(int(c["number"]) for c in self.info["cells"] if (self.path / c["folder"]).resolve() == folder.resolve())

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """One process at a time works on a sweep; its jobs lock their own folders."""
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            import fcntl
        except ImportError:  # no such locks on this system
            yield
            return
        with (self.path / ".lock").open("w") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"another process is working on {self}: wait for it, or choose another hydra.sweep.dir=") from None
            yield


def comparable(overrides: list[str]) -> list[str]:
    """Overrides without what makes no other sweep, in a fixed order."""
    return sorted(o for o in map(str, overrides) if not o.lstrip("+").startswith(_ASIDE))


def place(verb: str, overrides: list[str], config_dir: str | None) -> tuple[list[str], bool]:
    """Overrides as Hydra is to have them: without `resume=`, and in the folder of the sweep that this command goes on with, if any.

    The same command goes on with the newest one of its kind that was killed or stopped, `resume=auto` also with one in which jobs failed,
    `resume=FOLDER` with that one; `resume=null` starts anew. The second value says whether there is one to go on with.
    """
    given = {_key(o): o.partition("=")[2] for o in overrides}
    typed = [o for o in overrides if _key(o) != "resume"]
    wanted, where = given.get("resume"), given.get("hydra.sweep.dir", "")
    if "resume" in given and wanted in ("null", ""):
        return typed, False
    if wanted not in (None, "auto"):
        sweep: Sweep | None = _named(str(wanted), verb, typed, config_dir)
    elif where and "${" not in where:
        there = Sweep(stored.located(where))
        mine = stored.is_file(there.path / FILE) and there.is_of(verb, typed, config_dir)
        sweep = there if mine and (wanted == "auto" or there.info.get("status") not in ("finished", "failed")) else None
    else:
        sweep = _newest(verb, typed, config_dir, failed_too=wanted == "auto")
    if sweep is None:
        return typed, False
    from sslt.resume import check_folder

    check_folder(Run(sweep.path))
    cells = sweep.info.get("cells", [])
    done = sum(Run(sweep.path / str(c.get("folder"))).finished for c in cells if isinstance(c, dict))
    anew = "; resume=null starts anew" if wanted is None else ""
    print(f"going on with the sweep {sweep}: {done} of {len(cells)} cells are finished{anew}", flush=True)
    rest = [o for o in typed if _key(o) != "hydra.sweep.dir"]
    return [*rest, f"hydra.sweep.dir={groups.written(str(sweep.path))}"], True


def _named(folder: str, verb: str, typed: list[str], config_dir: str | None) -> Sweep:
    sweep = Sweep(stored.located(folder))
    if not stored.is_file(sweep.path / FILE):
        one = stored.is_file(sweep.path / runs.RUN_FILE)
        raise UserError(f"resume={folder} is {'one run: leave out -m' if one else f'no sweep folder (one with a {FILE})'}")
    if not sweep.is_of(verb, typed, config_dir):  # what a folder says is never given to Hydra
        raise UserError(f"resume={folder} is the sweep of another command: repeat the whole command that began it, which its {FILE} names")
    return sweep


def _newest(verb: str, typed: list[str], config_dir: str | None, failed_too: bool) -> Sweep | None:
    """The newest sweep of a command below runs/ that is not over; one that another process is at work on is somebody's."""
    over = ("finished",) if failed_too else ("finished", "failed")
    found = []
    for path in Path("runs").glob(f"**/{FILE}"):
        with contextlib.suppress(UserError):  # a damaged one does not hide the others
            sweep = Sweep(path.parent)
            if sweep.is_of(verb, typed, config_dir) and sweep.info.get("status") not in over and not _is_locked(sweep.path):
                found.append((str(sweep.info.get("started", "")), str(sweep.path), sweep))
    return max(found, key=lambda f: f[:2])[2] if found else None


def _is_locked(folder: Path) -> bool:
    """Whether a process is at work in a folder."""
    try:
        import fcntl

        with (folder / ".lock").open("r") as f:
            fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return False
    return False


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")
