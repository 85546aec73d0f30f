"""Run one verb in one run folder: status, logs, and which errors are whose."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sslt import groups, scheduler, signals
from sslt.errors import RankLost, UserError, cause
from sslt.processes import perform, settle
from sslt.runs import Run, comparable, now, refuse_overwrite

log = logging.getLogger("sslt")
_EXTRAS = {
    "datasets": "hf", "peft": "peft", "diffusers": "diffusion", "tensorboard": "tensorboard", "tensorboardX": "tensorboard",
    "torchao": "quantize", "onnx": "export", "onnxruntime": "export", "onnxscript": "export", "onnx_ir": "export",
    "fastapi": "serve", "uvicorn": "serve", "prometheus_client": "serve",
}  # fmt: skip


def execute(verb: str, cfg: Any, folder: Path, overrides: list[str], config_dir: str | None = None, resuming: bool = False) -> int:
    """Run `verb` with a checked config in `folder`; returns the exit code."""
    from sslt.data import cache

    run = Run(folder)
    if not resuming:
        refuse_overwrite(folder)
    elif run.finished and comparable(overrides) == comparable(run.info.get("overrides", [])):
        print(f"{run} is finished already")
        return 0
    cache.set_cache_dir(cfg.cache_dir, cfg.get("shards"))
    if verb == "run" and not all("config" in part for part in cfg.stages.values()):
        from sslt.chain import compose_stages

        compose_stages(cfg, folder, config_dir)
    settle(cfg, run)
    with _writable(run):
        folder.mkdir(parents=True, exist_ok=True)
    with _writable(run), _lock(run), _logs(run), _status(run) as status:
        run.start(verb, cfg, overrides, config_dir)
        if verb == "run":
            from sslt.chain import run_chain

            status["code"] = run_chain(cfg, run, config_dir, execute)
        else:
            perform(verb, cfg, run)
        extra = str(cfg.get("compare") or "")
        if extra and verb == "finetune":
            from sslt.stages.compare import compare

            compare(cfg, run, overrides)
    return int(status.get("code", 0))


# -------------------------------------------------------------------- status, logs
@contextlib.contextmanager
def _lock(run: Run) -> Iterator[None]:
    """One process at a time works in a run folder; the lock ends with the process, however it ends."""
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        yield
        return
    with (run / ".lock").open("w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another process is working in {run}: wait for it, or choose another hydra.run.dir=") from None
        yield


@contextlib.contextmanager
def _status(run: Run) -> Iterator[dict[str, Any]]:
    box: dict[str, Any] = {}
    try:
        with signals.Watch() as watch:
            try:
                yield box
            except (signals.Interrupted, signals.Stopped) as e:
                watch.writing = True  # signals that come from here on change nothing
                said = f"{e} came: stopped at once" if isinstance(e, signals.Stopped) else str(e)
                run.update(status="interrupted", ended=now())
                log.info("%s; go on with: %s", said, groups.command(str(run.info.get("verb")), f"resume={run}"))
                box["code"] = scheduler.code_of(e.number)
            else:
                watch.writing = True
                run.update(status="interrupted" if box.get("code") else "finished", ended=now())
    except KeyboardInterrupt:
        run.update(status="interrupted", ended=now())
        raise
    except BaseException as e:
        with contextlib.suppress(OSError):
            run.update(status="failed", error=f"{type(e).__name__}: {e}", ended=now())
        mend = explained(e, run)
        if mend is None or mend is e:
            raise
        raise mend from (None if cause(e, lambda x: x is mend) else e)


def explained(e: BaseException, run: Run) -> UserError | RankLost | None:
    """What an error comes down to, where that is something a user can mend, or a rank that is gone."""
    from sslt.data import cache

    full = cause(e, _disk_is_full)
    if full is not None:
        where = getattr(full, "filename", None) or _fullest(run)
        return UserError(f"the disk is full ({where}): free some space, then go on with {groups.quoted(f'resume={run}')}")
    denied = cause(e, lambda x: isinstance(x, OSError) and _of_folder(x, cache.cache_dir()) and not _below(x.filename, run.path))
    if isinstance(denied, OSError):
        way = "choose another folder by cache_dir= or $SSLT_CACHE"
        return UserError(f"the cache cannot be used: {str(denied.filename)[:200]}: {denied.strerror}; {way}")
    mine = cause(e, lambda x: isinstance(x, (UserError, RankLost)))
    if isinstance(mine, (UserError, RankLost)):
        return mine
    lacking = cause(e, lambda x: isinstance(x, ModuleNotFoundError) and x.name in _EXTRAS)
    if lacking is not None:
        name = getattr(lacking, "name", "")
        return UserError(f"this needs the package {name}: pip install 'sslt[{_EXTRAS[name]}]'")
    if cause(e, _memory_is_full):
        way = "lower batch_size, and raise trainer.accumulate_grad_batches by as much to keep the size of a step"
        return UserError(f"out of memory: {way}")
    return None


def _memory_is_full(e: BaseException) -> bool:
    """As Python says it, torch on a GPU and torch on a CPU."""
    return isinstance(e, MemoryError) or any(words in str(e).lower() for words in ("out of memory", "can't allocate memory"))


@contextlib.contextmanager
def _writable(run: Run) -> Iterator[None]:
    """What the system refuses in the run folder is for the user to mend."""
    try:
        yield
    except OSError as e:
        if e.errno not in _REFUSALS or not _of_folder(e, run.path):
            raise
        what = f"{str(e.filename)[:200]}: {e.strerror}"
        raise UserError(f"the run folder cannot be written: {what}; mend that, or choose another by hydra.run.dir=") from e


_REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)


def _of_folder(e: OSError, folder: Path) -> bool:
    """Whether an error is of something in `folder`, or of a folder above that could not be made."""
    return _below(e.filename, folder) or (isinstance(e.filename, str) and _below(folder, Path(e.filename)))


def _below(path: Any, folder: Path) -> bool:
    """Whether `path`, as an error names it, is `folder` or in it."""
    if not isinstance(path, (str, Path)) or not str(path):
        return False
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))


def _fullest(run: Run) -> Path | Run:
    """Of the run folder and the cache, the one whose disk has less room."""
    from sslt.data import cache

    places: list[Path] = [p for p in (run.path, cache.cache_dir()) if p.exists()]
    if len(places) < 2 or places[0].stat().st_dev == places[1].stat().st_dev:
        return run
    room = [shutil.disk_usage(p).free for p in places]
    return run if room[0] <= room[1] else places[1]


def _disk_is_full(e: BaseException) -> bool:
    """As the system says it, safetensors (by its text) and numpy (which tells how much it could write)."""
    if isinstance(e, OSError) and (e.errno in (errno.ENOSPC, errno.EDQUOT) or re.search(r"requested and \d+ written", str(e))):
        return True
    return "No space left on device" in str(e)


class _ConsoleFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{'warning: ' if record.levelno >= logging.WARNING else ''}{record.getMessage()}"


@contextlib.contextmanager
def _logs(run: Run) -> Iterator[None]:
    """Messages of sslt go to the terminal and, with times, to logs/sslt.log; of another rank than the first to its own log alone."""
    to_terminal = logging.StreamHandler(sys.stderr)
    to_terminal.setFormatter(_ConsoleFormatter())
    handlers: list[logging.Handler] = [to_terminal]
    if run.is_main:
        (run / "logs").mkdir(parents=True, exist_ok=True)
        to_file = logging.FileHandler(run / "logs" / "sslt.log")
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        handlers.append(to_file)
    log.setLevel(logging.INFO)
    before = log.handlers, log.propagate
    log.handlers, log.propagate = handlers, False
    try:
        yield
    finally:
        log.handlers, log.propagate = before
        for handler in handlers[1:]:
            handler.close()
