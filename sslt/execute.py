"""Run one verb in one run folder: status, logs, helper processes, and which errors are whose."""

from __future__ import annotations

import contextlib
import errno
import importlib
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sslt import signals
from sslt.errors import RankLost, UserError
from sslt.runs import Run, comparable, display, now, refuse_overwrite

log = logging.getLogger("sslt")
_EXTRAS = {"datasets": "hf", "peft": "peft", "diffusers": "diffusion", "tensorboard": "tensorboard", "tensorboardX": "tensorboard"}
# Modules are looked for where rank 0 finds them: `-m` would begin with the working folder.
_WORKER = "import sys; sys.path[:] = {!r}; from sslt.worker import main; raise SystemExit(main())"
LEFT_ALONE = 3  # exit code of a rank that ends only because another did
_PATIENCE = 5.0  # seconds for rank 0 to fail by itself, when another rank has
_IMAGE_SIZES = {"cpu": 64, "gpu": 128}  # what max_image_size=auto stands for


class Interrupted(Exception):
    """The user or the scheduler stopped a run at a step; its checkpoint is written. number: of the signal, where this process got it."""

    def __init__(self, step: int, number: int | None = None):
        super().__init__(f"{f'{signals.name(number)} came: ' if number else ''}stopped at step {step}")


def execute(verb: str, cfg: Any, folder: Path, overrides: list[str], config_dir: str | None = None, resuming: bool = False) -> int:
    """Run `verb` with a checked config in `folder`; returns the exit code."""
    from sslt.data import cache

    run = Run(folder)
    if not resuming:
        refuse_overwrite(folder)
    elif run.finished and comparable(overrides) == comparable(run.info.get("overrides", [])):
        print(f"{run} is finished already")
        return 0
    cache.set_cache_dir(cfg.cache_dir)
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

            status["code"] = run_chain(cfg, run, config_dir)
        else:
            perform(verb, cfg, run)
        extra = str(cfg.get("compare") or "")
        if extra and verb == "finetune":
            from sslt.stages.compare import compare

            compare(cfg, run, overrides)
    return int(status.get("code", 0))


def settle(cfg: Any, run: Run) -> None:
    """Write down what `auto` stands for where a run must stay the same on another machine."""
    if cfg.get("max_image_size") == "auto":
        before = run.config.get("max_image_size") if run.info else None
        cfg.max_image_size = before or image_size(cfg)


def image_size(cfg: Any) -> Any:
    """`max_image_size`, resolved."""
    return _IMAGE_SIZES[accelerator(cfg.trainer)] if cfg.max_image_size == "auto" else cfg.max_image_size


def perform(verb: str, cfg: Any, run: Run) -> None:
    """Run a stage, with helper processes beside it when `trainer.devices` asks for them."""
    if "WORLD_SIZE" in os.environ and not {"RANK", "LOCAL_RANK"} & set(os.environ):
        raise UserError(
            f"the environment has WORLD_SIZE={os.environ['WORLD_SIZE']}, but no launcher's RANK: `unset WORLD_SIZE` (trainer.devices= says "
            f"how many processes there are), or start with torchrun"
        )
    world = devices(cfg.trainer)
    if world > 1 and "LOCAL_RANK" not in os.environ:
        with _workers(verb, cfg, run, world):
            stage(verb, cfg, run)
    else:
        stage(verb, cfg, run)


def stage(verb: str, cfg: Any, run: Run) -> None:
    """What every process of a run does."""
    _quiet_libraries()
    import torch

    from sslt import distributed

    distributed.init(accelerator(cfg.trainer))
    torch.manual_seed(int(cfg.seed))
    if accelerator(cfg.trainer) == "gpu":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    try:
        importlib.import_module(f"sslt.stages.{verb}").main(cfg, run)
        distributed.barrier()
    finally:
        distributed.close()


# -------------------------------------------------------------------- devices and processes
def accelerator(trainer: Any) -> str:
    """ "gpu" or "cpu", "auto" resolved."""
    name = str(trainer.accelerator)
    if name not in ("auto", "cpu", "gpu", "cuda"):
        raise UserError(f"trainer.accelerator={name}: sslt trains on cpu or gpu (auto takes a gpu where there is one)")
    if name == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "gpu"
    if name == "auto":
        return "cpu"
    raise UserError(f"trainer.accelerator={name}: torch finds no GPU on this machine; set trainer.accelerator=cpu")


def devices(trainer: Any) -> int:
    """How many processes train: `trainer.devices`, where auto is every GPU, or one process on a CPU."""
    wanted = trainer.devices
    if wanted == "auto" or wanted == -1:
        if accelerator(trainer) == "cpu":
            return 1
        import torch

        return torch.cuda.device_count()
    try:
        n = int(wanted)
    except (TypeError, ValueError):
        n = 0
    if n < 1:
        raise UserError(f"trainer.devices={wanted}: give a number of devices, or auto")
    if n > 1 and accelerator(trainer) == "gpu":
        import torch

        if n > torch.cuda.device_count():
            raise UserError(f"trainer.devices={n}, but this machine has {torch.cuda.device_count()} GPUs")
    return n


@contextlib.contextmanager
def _workers(verb: str, cfg: Any, run: Run, world: int) -> Iterator[None]:
    """Start ranks 1…world-1 as processes of their own, and be rank 0.

    They get the composed config by a file, not by repeating the command line: so a sweep, a changed working folder or
    a time stamp in a path cannot make them do something else than rank 0.
    """
    from omegaconf import OmegaConf

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "NODE_RANK": "0"}
    if "OMP_NUM_THREADS" not in os.environ and accelerator(cfg.trainer) == "cpu":
        shared["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // world))
    (run / "logs").mkdir(exist_ok=True)
    handed = run / "logs" / "workers.yaml"
    handed.write_text(OmegaConf.to_yaml(cfg, resolve=True))
    processes = []
    for r in range(1, world):
        with (run / "logs" / f"rank{r}.log").open("a") as out:
            env = {**os.environ, **shared, "RANK": str(r), "LOCAL_RANK": str(r)}
            command = [sys.executable, "-c", _WORKER.format(sys.path), verb, str(handed), str(run.path.absolute())]
            processes.append(subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT))
    mine = {**shared, "RANK": "0", "LOCAL_RANK": "0"}
    old = {k: os.environ.get(k) for k in mine}
    os.environ.update(mine)
    if "OMP_NUM_THREADS" in shared:
        import torch

        torch.set_num_threads(int(shared["OMP_NUM_THREADS"]))
    done = threading.Event()
    threading.Thread(target=_watch, args=(processes, run, done), daemon=True).start()
    try:
        yield
        for p in processes:
            p.wait(60)
    except Exception as e:
        from sslt.distributed import connection_lost

        if not _find(e, connection_lost):
            raise
        given_up = time.monotonic() + _PATIENCE  # the one that failed may not have ended yet
        while (lost := _lost_rank(processes, run)) is None and time.monotonic() < given_up:
            time.sleep(0.1)
        raise lost or e from e
    finally:
        done.set()
        for p in processes:
            if p.poll() is None:
                p.kill()
            p.stdin.close()  # type: ignore[union-attr]
        for k, v in old.items():
            os.environ.pop(k, None)
            if v is not None:
                os.environ[k] = v


def _lost_rank(processes: list[subprocess.Popen], run: Run) -> UserError | RankLost | None:
    """What to say of the rank that ended in a way from which the others' ends follow; None where none did."""
    codes = {r: p.poll() for r, p in enumerate(processes, 1)}
    first = {r: code for r, code in codes.items() if code not in (None, 0, LEFT_ALONE)}
    if not first:
        return None
    r = min(first, key=lambda r: (first[r] != 2, first[r] > 0))  # a mistake, or killed, before what may come from it
    log_file = run / "logs" / f"rank{r}.log"
    said = [line.removeprefix("sslt: ") for line in log_file.read_text(errors="replace").splitlines() if line.startswith("sslt: ")]
    if first[r] == 2 and said:
        return UserError(said[-1])
    way = f"see {display(log_file)}; go on with: sslt {run.info.get('verb')} resume={run}"
    if first[r] < 0:
        why = ", perhaps because memory ran out" if first[r] == -signal.SIGKILL else ""
        return RankLost(f"rank {r} was ended by signal {-first[r]}{why}; {way}")
    return RankLost(f"rank {r} ended with code {first[r]}{f' ({said[-1]})' if said else ''}; {way}")


def _watch(processes: list[subprocess.Popen], run: Run, done: threading.Event) -> None:
    """If another rank fails, rank 0 may wait for it for ever, or work on for long: end it."""
    while not done.wait(0.2):
        if _lost_rank(processes, run) is not None:
            if done.wait(_PATIENCE):  # rank 0 usually fails by itself
                return
            lost = _lost_rank(processes, run)
            print(f"sslt: {lost}", file=sys.stderr, flush=True)
            for p in processes:
                p.kill()
            run.update(status="failed", error=f"{type(lost).__name__}: {lost}", ended=now())
            os._exit(2 if isinstance(lost, UserError) else 1)


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
            except (Interrupted, signals.Stopped) as e:
                watch.writing = True  # signals that come from here on change nothing
                said = f"{e} came: stopped at once" if isinstance(e, signals.Stopped) else str(e)
                run.update(status="interrupted", ended=now())
                log.info("%s; go on with: sslt %s resume=%s", said, run.info.get("verb"), run)
                box["code"] = 130
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
        raise mend from (None if _find(e, lambda x: x is mend) else e)


def explained(e: BaseException, run: Run) -> UserError | RankLost | None:
    """What an error comes down to, where that is something a user can mend, or a rank that is gone."""
    from sslt.data import cache

    full = _find(e, _disk_is_full)
    if full is not None:
        where = getattr(full, "filename", None) or _fullest(run)
        return UserError(f"the disk is full ({where}): free some space, then go on with resume={run}")
    denied = _find(e, lambda x: isinstance(x, OSError) and _of_folder(x, cache.cache_dir()) and not _below(x.filename, run.path))
    if isinstance(denied, OSError):
        way = "choose another folder by cache_dir= or $SSLT_CACHE"
        return UserError(f"the cache cannot be used: {str(denied.filename)[:200]}: {denied.strerror}; {way}")
    mine = _find(e, lambda x: isinstance(x, (UserError, RankLost)))
    if isinstance(mine, (UserError, RankLost)):
        return mine
    lacking = _find(e, lambda x: isinstance(x, ModuleNotFoundError) and x.name in _EXTRAS)
    if lacking is not None:
        name = getattr(lacking, "name", "")
        return UserError(f"this needs the package {name}: pip install 'sslt[{_EXTRAS[name]}]'")
    if _find(e, _memory_is_full):
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


def _find(e: BaseException | None, wanted: Any) -> BaseException | None:
    seen: set[int] = set()  # a chain may lead back to itself
    while e is not None and id(e) not in seen:
        if wanted(e):
            return e
        seen.add(id(e))
        e = e.__cause__ or e.__context__
    return None


class _ConsoleFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{'warning: ' if record.levelno >= logging.WARNING else ''}{record.getMessage()}"


@contextlib.contextmanager
def _logs(run: Run, console: bool = True) -> Iterator[None]:
    """Messages of sslt go to the terminal and, with times, to logs/sslt.log."""
    (run / "logs").mkdir(parents=True, exist_ok=True)
    to_file = logging.FileHandler(run / "logs" / "sslt.log")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handlers: list[logging.Handler] = [to_file]
    if console:
        to_terminal = logging.StreamHandler(sys.stderr)
        to_terminal.setFormatter(_ConsoleFormatter())
        handlers.append(to_terminal)
    log.setLevel(logging.INFO)
    before = log.handlers, log.propagate
    log.handlers, log.propagate = handlers, False
    try:
        yield
    finally:
        log.handlers, log.propagate = before
        to_file.close()


def _quiet_libraries() -> None:
    """What libraries say to their own developers is not for ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # each of its retries without a network is a warning
    os.environ.setdefault("PYTHONSAFEPATH", "1")  # Python processes that they start import nothing from the working folder
    logging.getLogger("timm").setLevel(logging.WARNING)
    for module in ("pytorch_lightning", "lightning_fabric", "torch", "timm", "transformers", "lightning_utilities"):
        warnings.filterwarnings("ignore", module=module)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
