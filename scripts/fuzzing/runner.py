"""Runs cases, each in a process forked from this one, which has imported everything already: a case costs what it does, not a start.

This process has one thread and computes nothing, or its children could inherit a lock that nobody opens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from fuzzing import case as cases
from fuzzing.case import Place, Planned
from fuzzing.outcomes import Result, judge, not_made
from fuzzing.watch import watch

CONSOLE = str(Path(sys.executable).with_name("sslt"))
UNMADE = 99  # exit code of a case that could not be made, which is a defect of the fuzzer
_MEMORY = 6 << 30  # bytes that a case may add to what this process has: what asks for more is told so and kills nobody else
_FILE = 256 << 20  # bytes of a file that a case writes
_PATIENCE = 15.0  # seconds from an interrupt to the end of a run

_LIBRARIES = (
    "hydra.main", "hydra.core.override_parser.overrides_parser", "timm", "transformers", "peft", "pyarrow.parquet", "matplotlib.pyplot",
    "matplotlib.backends.backend_agg", "sklearn.datasets", "sklearn.decomposition", "sklearn.linear_model", "sklearn.manifold",
)  # fmt: skip

Act = Callable[[list[str]], Any]


def warm_up() -> Act:
    """Import all that commands import; gives what runs a command."""
    import importlib
    import logging
    import pkgutil

    os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="offline", MPLBACKEND="agg", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
    import sslt

    names = [m.name for m in pkgutil.walk_packages(sslt.__path__, "sslt.") if not m.name.endswith("__main__")]
    for name in (*names, *_LIBRARIES):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    from hydra.core.plugins import Plugins
    from PIL import Image
    from sklearn.manifold import TSNE

    Plugins.instance()
    Image.init()
    TSNE.fit_transform = lambda self, x, y=None: x[:, :2]  # the map of features takes longest, and no mistake leads to it
    logging.getLogger("sslt").handlers.clear()
    from sslt import cli

    told = cli._defect

    def defect(e: Exception, args: list[str]) -> int:
        """As ever, but the whole traceback goes where the report of the case finds it."""
        Path(os.environ["SSLT_FUZZ_DEFECT"]).write_text("".join(traceback.format_exception(e)), errors="replace")
        return told(e, args)

    cli._defect = defect
    return cli.main


@dataclasses.dataclass
class _Running:
    planned: Planned
    place: Place
    started: float
    patience: float
    again: bool = False  # a hang is believed when it happens twice
    stopped: bool = False  # the time is up, and it was told so


class Runner:
    """Runs planned cases in folders below `root`, `jobs` at a time; a case that takes more than `timeout` seconds hangs.

    act: what runs a command; its exit code is what it returns. keep: leave the folders of all cases, not only of bad ones.
    """

    def __init__(self, root: Path, act: Act, timeout: float = 30.0, jobs: int = 1, keep: bool = False):
        self.root, self.act, self.timeout, self.jobs, self.keep = root.resolve(), act, timeout, jobs, keep
        self.root.mkdir(parents=True, exist_ok=True)

    def run(self, planned: Iterable[Planned]) -> Iterator[Result]:
        """The results, in the order in which cases end."""
        todo, running = iter(planned), dict[int, _Running]()
        try:
            while True:
                while len(running) < self.jobs and (one := next(todo, None)) is not None:
                    self._start(one, running)
                if not running:
                    return
                pid, status, used = os.wait4(-1, os.WNOHANG)
                if pid in running:
                    job = running.pop(pid)
                    _kill(pid, signal.SIGKILL)  # what it left behind
                    result = self._result(job, status, used.ru_utime + used.ru_stime)
                    if result.outcome == "hang" and not job.again:
                        self._start(job.planned, running, again=True)
                        continue
                    if not self.keep and not result.bad:
                        shutil.rmtree(job.place.root, ignore_errors=True)
                    yield result
                    continue
                for pid, job in running.items():
                    if time.monotonic() - job.started > job.patience:
                        self._stop(pid, job)
                time.sleep(0.005)
        finally:
            for pid in running:
                _kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def _start(self, planned: Planned, running: dict[int, _Running], again: bool = False) -> None:
        place = Place(self.root / planned.name)
        shutil.rmtree(place.root, ignore_errors=True)
        place.root.mkdir(parents=True)
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if not pid:
            _child(planned, place, self.act)
        running[pid] = _Running(planned, place, time.monotonic(), self.timeout * (2 if again else 1), again)

    def _stop(self, pid: int, job: _Running) -> None:
        """Interrupt a training as a user would; note where anything else stands, and kill it."""
        if not job.stopped and _may_be_long(job.place):
            job.stopped = True
            job.patience += _PATIENCE
            _kill(pid, signal.SIGINT)
            return
        if (job.place.root / "stack").exists():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGUSR2)  # faulthandler writes the stack
                time.sleep(0.2)
        (job.place.root / "hung").touch()
        _kill(pid, signal.SIGKILL)

    def _result(self, job: _Running, status: int, cpu: float) -> Result:
        place, code = job.place, os.waitstatus_to_exitcode(status)
        if code == UNMADE or not (place.root / "case.json").exists():
            return not_made(job.planned.name, _text(place.root / "unmade"))
        about, before = cases.load(place)
        told = [*_text(place.root / "events").splitlines(), *cases.changes(before, cases.snapshot(place, about))]
        if place.marker.exists():
            told.insert(0, "the marker of hostile content is there")
        return judge(
            name=job.planned.name,
            case=about,
            code=None if (place.root / "hung").exists() else code,
            seconds=time.monotonic() - job.started,
            cpu=cpu,
            told=[line.replace(f"{place.root}/", "") for line in dict.fromkeys(told)],
            out=_text(place.root / "stdout"),
            err=_text(place.root / "stderr"),
            stack=_text(place.root / "stack") or _text(place.root / "defect"),
        )


def _child(planned: Planned, place: Place, act: Act) -> None:
    """Make the case and run its command; never returns."""
    try:
        os.setsid()
        place.make()
        case = planned.make(place)
        cases.save(place, case)
    except BaseException:
        (place.root / "unmade").write_text(traceback.format_exc())
        os._exit(UNMADE)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(place.root / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.pop("SSLT_DEBUG", None)
    os.environ.update(place.environment() | case.env | {"SSLT_FUZZ_DEFECT": str(place.root / "defect")})
    os.chdir(place.work)
    tempfile.tempdir = None  # of the process that this one is forked from
    _limit()
    if case.console:
        os.execv(CONSOLE, [CONSOLE, *case.argv])
    code = 1
    try:
        faulthandler.register(signal.SIGUSR2, (place.root / "stack").open("w"))
        faulthandler.enable()
        events = os.open(place.root / "events", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        end = watch(place, lambda line: os.write(events, f"{line}\n".encode(errors="replace")) and None)
        try:
            code = act(list(case.argv))
        finally:
            end()
    except SystemExit as e:
        code = e.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:  # as the interpreter would
        traceback.print_exc()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1 if code else 0)


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 1 << 21
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _may_be_long(place: Place) -> bool:
    return (place.root / "case.json").exists() and cases.load(place)[0].long


def _kill(pid: int, number: int) -> None:
    for send in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            send(pid, number)


def _text(path: Path, most: int = 200_000) -> str:
    """A file's beginning and end; nothing of one that is not there."""
    with contextlib.suppress(OSError), path.open("rb") as f:
        whole = f.read()
        return (whole if len(whole) <= most else whole[: most // 2] + b"\n...\n" + whole[-most // 2 :]).decode(errors="replace")
    return ""
