"""Hydra's side of a sweep: what enumerates its cells and hands those that are left to a launcher."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import io
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from omegaconf import OmegaConf, open_dict

from sslt import groups, runs, signals, stored
from sslt.errors import UserError
from sslt.sweeps import metric as metrics
from sslt.sweeps import table
from sslt.sweeps.folder import DONE, FILE, Cell, Sweep
from sslt.sweeps.job import STOPPED, Job, said, tell
from sslt.sweeps.study import JOURNAL

ATTEMPTS = 2  # of a cell whose process was killed, perhaps with that of another


@dataclasses.dataclass
class Command:
    """What was typed, and what the sweep came to: the exit code."""

    verb: str
    overrides: list[str]
    config_dir: str | None
    job: Job
    code: int = 0


current: list[Command] = []  # the one that this process sweeps over


class Cells(Sweeper):
    """What all sweepers have in common: a folder, cells that are run or left alone, a table in the end."""

    hydra_context: Any
    config: Any
    launcher: Any

    def __init__(self, params: dict[str, Any] | None, metric: str | None, direction: str | None):
        self.params, self.metric, self.direction = params or {}, metric, direction
        self.command = current[0]
        self.errors: dict[int, str] = {}
        self.codes: list[int] = []
        self.cells: list[Cell] = []

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context=hydra_context, task_function=task_function, config=config)
        self.folder = Sweep(Path(str(config.hydra.sweep.dir)))

    def cover(self, overrides: list[Any]) -> None:
        """Run what there is to run. overrides: as Hydra has parsed them."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise `UserError` for settings that are none."""
        metrics.check(self.metric, self.direction)

    def sweep(self, arguments: list[str]) -> None:
        self.check()
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*(f"{k}={v}" for k, v in self.params.items()), *arguments])
        verb, typed, config_dir = self.command.verb, self.command.overrides, self.command.config_dir
        if stored.is_file(self.folder.path / FILE) and not self.folder.is_of(verb, typed, config_dir):
            raise UserError(f"{self.folder} holds another sweep ({FILE}): choose another hydra.sweep.dir=")
        made = [p for p in (self.folder.path, *self.folder.path.parents) if not p.exists()]
        with _leaving_nothing(self, made), self.folder.lock(), signals.Watch() as watch:
            self.folder.update(verb=verb, overrides=typed, config_dir=config_dir, status="running")
            if "started" not in self.folder.info:
                self.folder.update(started=runs.now(), cells=[])
            OmegaConf.save(self.config, self.folder.path / "multirun.yaml")
            try:
                self.cover(overrides)
            except (KeyboardInterrupt, signals.Stopped) as e:
                watch.writing = True
                self._end("interrupted")
                print(f"  the same command goes on with it (or {groups.quoted(f'resume={self.folder}')})")
                raise KeyboardInterrupt from e
            watch.writing = True
            self._end(None)
            self.command.code = 1 if 1 in self.codes else max(self.codes, default=0)

    def _end(self, status: str | None) -> None:
        table.write(self.folder, self.command.verb, self.cells, self.metric, self.direction, self.errors, status)

    # ---------------------------------------------------------------- cells
    def enter(self, cells: Sequence[tuple[int, list[str], dict[str, str]]]) -> list[Cell]:
        """Compose and note the cells (number, overrides, swept ones); those that are noted already keep their numbers and folders.

        All are composed before any is run, so that a mistake that composing finds costs nothing.
        """
        noted = [c for c in self.folder.info.get("cells", []) if isinstance(c, dict)]
        known = {tuple(map(str, c.get("overrides", []))): c for c in noted}
        free = max((int(c["number"]) for c in noted), default=-1) + 1
        out = []
        for number, overrides, swept in cells:
            if (old := known.get(tuple(overrides))) is not None:
                name = str(old["folder"])
                if _is_elsewhere(name):
                    raise UserError(f"{self.folder}/{FILE} is damaged: a cell lies outside of it, in {name[:100]}")
                out.append(Cell(int(old["number"]), list(overrides), swept, self.folder.path / name))
                continue
            number, free = max(number, free), max(number, free) + 1
            name = self._subfolder(number, overrides)
            self._check_own(name, noted)
            out.append(Cell(number, list(overrides), swept, self.folder.path / name))
            noted.append({"number": number, "folder": name, "overrides": list(overrides), "swept": swept})
            known[tuple(overrides)] = noted[-1]
        self.folder.update(cells=noted)
        self.cells += [c for c in dict.fromkeys(out) if c not in self.cells]
        return out

    def _check_own(self, name: str, noted: list[dict[str, Any]]) -> None:
        """Raise `UserError` for a cell's folder that is another's, whose run would be taken for its own, or that lies elsewhere."""
        if _is_elsewhere(name):
            raise UserError(f"hydra.sweep.subdir: {name[:100]} is not within {self.folder}: give hydra.sweep.dir= for where the sweep lies")
        if other := next((c for c in noted if Path(str(c["folder"])) == Path(name)), None):
            raise UserError(
                f"hydra.sweep.subdir gives two cells the folder {name[:100]}, one of them {' '.join(map(str, other['overrides']))[:200]}: "
                f"name all that varies in it, or leave it out"
            )

    def _subfolder(self, number: int, overrides: list[str]) -> str:
        """`hydra.sweep.subdir` of a cell."""
        composed = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(composed):
            composed.hydra.job.num, composed.hydra.job.id = number, str(number)
        before, HydraConfig.instance().cfg = HydraConfig.instance().cfg, None
        try:
            HydraConfig.instance().set_config(composed)
            return str(composed.hydra.sweep.subdir)
        finally:
            HydraConfig.instance().cfg = before

    # ---------------------------------------------------------------- jobs
    def run(self, cells: Sequence[Cell]) -> None:
        """Hand the cells that are not done to the launcher, and note how they ended.

        A launcher whose process was killed may take others with it: what is left of them is tried once more, and so is what never began.
        """
        attempts = {cell.number: 0 for cell in cells if cell.state not in DONE}
        while left := [c for c in cells if 0 <= attempts.get(c.number, ATTEMPTS) < ATTEMPTS]:
            try:
                answers = self._launch(left)
            except UserError:
                raise
            except Exception as e:
                begun = [c for c in left if c.state != "not run"]
                why = f"its process ended without an answer ({said(e)})"
                for cell in begun or left:
                    attempts[cell.number] += 1
                again = isinstance(e, concurrent.futures.BrokenExecutor)  # nothing of it runs any more
                for cell in left:
                    if cell.state in DONE:
                        attempts[cell.number] = ATTEMPTS
                    elif not again or attempts[cell.number] == ATTEMPTS:
                        self._note(cell, {"code": 1, "error": why, "told": False})
                        attempts[cell.number] = ATTEMPTS
                continue
            for cell, answer in zip(left, answers, strict=True):
                attempts[cell.number] = ATTEMPTS
                self._note(cell, answer)
            if any(a["code"] in STOPPED for a in answers):
                raise KeyboardInterrupt

    def _launch(self, cells: Sequence[Cell]) -> list[dict[str, Any]]:
        where = f"hydra.sweep.dir={groups.written(str(self.folder.path))}"
        jobs = [[*c.overrides, where, f"hydra.sweep.subdir={groups.written(str(c.folder.relative_to(self.folder.path)))}"] for c in cells]
        returned = self.launcher.launch(jobs, initial_job_idx=cells[0].number)
        return [_answer(r) for r in returned]

    def _note(self, cell: Cell, answer: dict[str, Any]) -> None:
        self.codes.append(int(answer["code"]))
        if (error := answer["error"]) is not None:
            self.errors[cell.number] = error
            if not answer["told"]:
                tell(cell.folder, error)


def _is_elsewhere(folder: str) -> bool:
    """Whether a cell's folder, as it is named within its sweep's, would not lie in that."""
    return Path(folder).is_absolute() or ".." in Path(folder).parts


def _answer(returned: Any) -> dict[str, Any]:
    """What a job gave back; of one that its launcher ended (submitit, when the time is up for good) the reason."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # Hydra's own words
            return dict(returned.return_value)
    except Exception as e:
        return {"code": 1, "error": said(e), "told": False}


@contextlib.contextmanager
def _leaving_nothing(sweep: Cells, made: list[Path]) -> Iterator[None]:
    """Where a sweep is refused before it has a cell, the folders `made` for it, innermost first, go again."""
    try:
        yield
    except Exception:
        if not sweep.cells and sweep.folder.path in made:
            with contextlib.suppress(OSError):
                for name in (".lock", FILE, "multirun.yaml", JOURNAL):
                    (sweep.folder.path / name).unlink(missing_ok=True)
                for path in made:
                    path.rmdir()
        raise


class Grid(Cells):
    """Every combination of the values, in the order of Hydra's own sweeper."""

    def __init__(self, max_batch_size: int | None, params: dict[str, Any] | None, metric: str | None, direction: str | None):
        super().__init__(params, metric, direction)
        self.size = max_batch_size

    def check(self) -> None:
        super().check()
        if self.size is not None and (not isinstance(self.size, int) or self.size < 1):
            raise UserError(f"hydra.sweeper.max_batch_size={self.size}: give a whole number, 1 or more, or null")

    def cover(self, overrides: list[Any]) -> None:
        choices: dict[str, list[str]] = {}  # of a key that is given twice, Hydra's sweeper takes the last
        for o in overrides:
            if o.is_interval_sweep():
                raise UserError(f"{o.input_line}: there is no end of values in an interval: add hydra/sweeper=optuna, or give some of them")
            key = o.get_key_element()
            choices[key] = [f"{key}={v}" for v in o.sweep_string_iterator()] if o.is_sweep_override() else [o.input_line]
        varying = [o.get_key_element() for o in overrides if o.is_sweep_override()]
        found = []
        for number, cell in enumerate(itertools.product(*choices.values())):
            given = dict(zip(choices, cell, strict=True))
            found.append((number, list(cell), {k: given[k].partition("=")[2] for k in varying}))
        cells = self.enter(found)
        size = self.size or max(len(cells), 1)
        for start in range(0, len(cells), size):
            self.run(cells[start : start + size])
