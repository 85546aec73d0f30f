"""The run folder: what one command leaves behind, written so that nothing in it is ever lost or executed.

config.yaml      the resolved config            run.json      verb, status, parents, data fingerprint
command.txt      the command, every time        versions.json python, packages, machine
metrics.json     flat final numbers             metrics.csv   curves, one scalar a line
logs/            text logs, one a rank          plots/        pictures
checkpoints/     last, previous.ckpt (resume=)  encoder/      the result (from=)
student/ teacher/ raw/   other weights that training left, beside those of encoder/ (from=RUN/teacher)
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from sslt import groups, moved, places, stored
from sslt.errors import UserError
from sslt.stored import shown as display

RUN_FILE = "run.json"
_EMPTY = (".hydra", "logs", ".lock")  # what a run that was killed at its start leaves
_KINDS: dict[str, type] = {"verb": str, "status": str, "started": str, "overrides": list, "resumed": list}  # of what run.json says


class Run:
    """A run folder. `is_main` is true on the one process that writes into it."""

    def __init__(self, path: str | os.PathLike[str], is_main: bool = True):
        self.path = Path(path)
        self.is_main = is_main

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __str__(self) -> str:
        return display(self.path)

    # ---------------------------------------------------------------- identity and status
    @property
    def info(self) -> dict[str, Any]:
        """What run.json says. Raises `UserError` where that is damaged."""
        found = read_json(self.path / RUN_FILE)
        for key, kind in _KINDS.items():
            if key in found:
                stored.value(found, key, kind, self.path / RUN_FILE)
        return found

    def update(self, **values: Any) -> None:
        """Set keys of run.json."""
        if self.is_main:
            write_json(self.path / RUN_FILE, {**self.info, **values})

    @property
    def finished(self) -> bool:
        return self.info.get("status") == "finished"

    @property
    def metrics(self) -> dict[str, Any]:
        """What metrics.json says."""
        return read_json(self.path / "metrics.json")

    def add_metrics(self, values: dict[str, Any]) -> None:
        """Add to metrics.json; keys given again are replaced."""
        if self.is_main:
            write_json(self.path / "metrics.json", {**self.metrics, **values})

    @property
    def config(self) -> Any:
        """The resolved config, as plain data in a DictConfig. Raises `UserError` where it is missing or damaged."""
        from omegaconf import OmegaConf

        path = self.path / "config.yaml"
        stored.require_there(path)
        return OmegaConf.create(moved.up_to_date(stored.yaml_object(path)))

    def start(self, verb: str, config: Any, overrides: list[str], config_dir: str | None = None) -> None:
        """Fill a new folder, or note in an existing one that it goes on (its former config is kept beside the new one)."""
        from omegaconf import OmegaConf

        self.path.mkdir(parents=True, exist_ok=True)
        resolved = OmegaConf.to_yaml(OmegaConf.create(OmegaConf.to_container(config, resolve=True)))
        place = self.path / "config.yaml"
        about = {"status": "running", "overrides": overrides, "config_dir": config_dir}
        if (job := places.job()) is not None:
            about["job"] = job
        if known := self.info:
            earlier = known.get("resumed", [])
            if place.exists() and (former := place.read_text()) != resolved:
                write_text(self.path / f"config.{len(earlier)}.yaml", former)
            self.update(**about, resumed=[*earlier, now()])
        else:  # first of all: from here on resume= knows the folder, and before nothing is in it
            self.update(verb=verb, started=now(), **about, **{"from": config.get("from")})
        write_text(place, resolved)
        if not (self.path / "versions.json").exists():
            write_json(self.path / "versions.json", versions())
        typed = ["sslt", verb, *overrides, *(["--config-dir", config_dir] if config_dir else [])]
        with (self.path / "command.txt").open("a") as f:
            f.write(shlex.join(typed) + "\n")


def open_run(path: str | os.PathLike[str], purpose: str = "from") -> Run:
    """An existing run folder. Raises `UserError` if it is none."""
    p = stored.located(str(path))
    if not stored.is_file(p / RUN_FILE):
        near = [str(q.parent) for q in p.glob(f"*/{RUN_FILE}")] if stored.is_folder(p) else []
        hint = f"; did you mean {near[0]}?" if near else " (a run is a folder with a run.json; `sslt list runs` shows yours)"
        raise UserError(f"{purpose}={path} is no run folder{hint}")
    return Run(p)


def run_of(path: Path) -> Run | None:
    """The run that a folder is, or that an encoder folder is a part of (`RUN/encoder`, `RUN/teacher`)."""
    places = (path, path.parent) if stored.is_folder(path) else ()
    return next((Run(p) for p in places if stored.is_file(p / RUN_FILE)), None)


def all_runs(root: str | os.PathLike[str] = "runs") -> list[Run]:
    """Every run below `root`, oldest first."""
    found = [Run(p.parent) for p in Path(root).glob(f"**/{RUN_FILE}")]
    return sorted(found, key=lambda r: (_started(r), str(r.path)))


def _started(run: Run) -> str:
    """When a run started; "" where its file is damaged, so that one such run does not hide the others."""
    try:
        return str(run.info.get("started", ""))
    except UserError:
        return ""


def find_resumable(verb: str, overrides: list[str], root: str = "runs") -> Run | None:
    """The newest unfinished run of the same command, for `resume=auto`; of one that is started again, whatever that began with."""
    wanted = comparable(overrides)
    job = places.job() if places.restarted() else None
    alike = [run for run in reversed(all_runs(root)) if _is_of(run, verb, wanted)]
    same_job = [run for run in alike if job and run.info.get("job") == job]
    return next(iter(same_job), next((run for run in alike if not run.finished), None))


def _is_of(run: Run, verb: str, overrides: list[str]) -> bool:
    """Whether a run is one of a command; of one whose file is damaged nobody knows, and it does not hide the others."""
    with contextlib.suppress(UserError):
        return run.info.get("verb") == verb and comparable(run.info.get("overrides", [])) == overrides
    return False


def comparable(overrides: list[str]) -> list[str]:
    """Overrides without what only says where and whether to go on, in a fixed order."""
    return sorted(o for o in map(str, overrides) if not o.startswith(("resume=", "hydra.run.dir=", "+resume=", "debug=")))


def refuse_overwrite(path: Path, setting: str = "hydra.run.dir") -> None:
    """Raise `UserError` if `path`, the value of `setting`, already holds something a new run would mix with or overwrite."""
    if stored.is_folder(path) and any(p.name not in _EMPTY and not p.name.startswith(f".{RUN_FILE}.") for p in path.iterdir()):
        raise UserError(
            f"{display(path)} already holds files; choose another {setting}=, or go on with what is there by "
            + groups.quoted(f"resume={display(path)}{'/NUMBER' if setting == 'hydra.sweep.dir' else ''}")
        )


_SCAFFOLD = {
    "": {".lock", "config.yaml", "command.txt", "versions.json", RUN_FILE},
    ".hydra": {"config.yaml", "hydra.yaml", "overrides.yaml"},
}
_STAGES = ("pretrain", "finetune", "evaluate")  # folders in a chain's


def remove_refused(folder: Path, made: list[Path]) -> None:
    """Remove the folder of a run that was refused before it trained, and of `made`, the folders made for it, those that are left empty.

    One that holds anything else than what says how the run was started stays as it is, and so does one that was not made for this run.
    """
    if folder not in made or not _is_bare(folder):
        return
    with contextlib.suppress(OSError):
        for path in sorted(folder.rglob("*"), key=lambda p: -len(p.parts)):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        for path in sorted(made, key=lambda p: -len(p.parts)):
            path.rmdir()


def _is_bare(folder: Path) -> bool:
    """Whether a run folder holds nothing but the scaffolding of a run that never trained."""
    try:
        if "training" in Run(folder).info:
            return False
        for path in folder.rglob("*"):
            *inner, name = path.relative_to(folder).parts
            while inner and inner[0] in _STAGES:
                inner = inner[1:]
            known = name in (".hydra", "logs", *_STAGES) if path.is_dir() else name in _SCAFFOLD.get("/".join(inner), ())
            ours = inner == ["logs"] and (
                name in ("sslt.log", "workers.yaml") or (name.startswith("rank") and name.endswith((".log", ".json")))
            )
            if path.is_symlink() or not (known or ours):
                return False
        return all("training" not in Run(folder / stage).info for stage in _STAGES)
    except (OSError, UserError):
        return False


def now() -> str:
    """Local time with its offset, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is none."""
    try:
        return stored.json_object(path)
    except FileNotFoundError:
        return {}


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=1, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text whole or not at all."""
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        tmp.write_text(text)
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


def versions() -> dict[str, Any]:
    """Python, the packages that matter and the machine, found without importing them."""
    import importlib.metadata
    import platform

    packages = {}
    for name in ("sslt", "torch", "torchvision", "pytorch-lightning", "hydra-core", "transformers", "timm", "tokenizers", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": packages,
        "git": _git_commit(),
    }


def _git_commit() -> str | None:
    """The commit of the user's working folder, read from .git without running git."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        head = folder / ".git" / "HEAD"
        if head.is_file():
            text = head.read_text().strip()
            ref = folder / ".git" / text.removeprefix("ref: ")
            return ref.read_text().strip() if text.startswith("ref: ") and ref.is_file() else text
    return None
