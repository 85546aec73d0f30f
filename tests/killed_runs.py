"""Commands in processes of their own that kill themselves at a named point, started from one that has imported everything already.

With `trainer.devices=2` so are both ranks, which the elastic agent would start as new programs.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

TIMES = ("train/seconds", "throughput/samples_per_second", "train/peak_memory_bytes")
OF_THE_PROCESS = ("run.json", "command.txt", "versions.json", "README.md", "config.yaml")
SOON = 120  # seconds, on a busy machine


def outputs(folder: Path) -> dict[str, object]:
    """Everything that a run leaves, by file, but for what tells of times, and of how it was started."""
    found: dict[str, object] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.name not in OF_THE_PROCESS and not name.startswith(("logs/", "checkpoints/", ".hydra/", ".lock")):
            found[name] = path.read_bytes()
    metrics = json.loads(found["metrics.json"])  # type: ignore[arg-type]
    assert all(metrics.pop(key) > 0 for key in TIMES)
    return {**found, "metrics.json": metrics}


def differing(a: dict[str, object], b: dict[str, object]) -> list[str]:
    return sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))


CONTEXT, SERVER = multiprocessing.get_context("forkserver"), forkserver._forkserver
SHARED = ("_forkserver_address", "_forkserver_authkey")  # by which a process finds the server that it came from itself
CONTEXT.set_forkserver_preload(
    [
        "sslt.stages.pretrain",
        "sslt.stages.finetune",
        "sslt.stages.evaluate",
        "sslt.cli",
        "timm",
        "matplotlib.pyplot",
        "sklearn.metrics",
        "warm",
    ]
)


def _serving(start: Callable[[], None]) -> Callable[[], None]:
    """The server finds the modules of tests, too."""

    def begin() -> None:
        places = [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]
        with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, places))):
            start()

    return begin


SERVER.ensure_running = _serving(SERVER.ensure_running)  # type: ignore[method-assign]


def command(args: list[str], point: str | None = None, sends: int = signal.SIGKILL, rank: int | None = 0) -> int:
    """Run `sslt ARGS` in the present folder; `rank` (None: each) sends itself a signal when it comes to `point`.

    Returns the exit code; what it prints is in output.txt.
    """
    process = _started(args, dict(os.environ), sys.path, point, sends, rank)
    process.join(600)
    assert process.exitcode is not None, f"{args} hangs"
    return process.exitcode


def _started(args: list[str], env: dict[str, str], path: list[str], point: str | None = None, sends: int = 0, rank: int | None = 0) -> Any:
    SERVER.ensure_running()
    server = {name: getattr(SERVER, name) for name in SHARED if hasattr(SERVER, name)}
    process = CONTEXT.Process(target=_run, args=(args, str(Path.cwd()), env, path, point, sends, rank, server))
    process.start()
    return process


class Program:
    """`sslt ARGS` in the present folder, in a process that has imported everything already; used like a `subprocess.Popen`.

    namespace: of the network that it and its ranks have. What it says is in the file `output`.
    """

    def __init__(self, args: list[str], env: dict[str, str], path: list[str], output: str, namespace: str):
        self.output = Path(output).absolute()
        self.process = _started(args, {**env, "SSLT_TEST_OUTPUT": str(self.output), "SSLT_TEST_NAMESPACE": namespace}, path)
        self.pid, self.kill = self.process.pid, self.process.kill

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        self.process.join(timeout)
        return self.output.read_text(), None


def _run(
    args: list[str], folder: str, env: dict[str, str], path: list[str], point: str | None, sends: int, rank: int | None, server: dict
) -> None:
    _become(folder, env, path)
    vars(SERVER).update(server, ensure_running=lambda: None)  # ranks come from the same server: one of its own would import it all again
    from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import SubprocessHandler

    from sslt.cli import main

    if point is not None:
        POINTS[point](lambda: os.kill(os.getpid(), sends) if rank in (None, int(os.environ.get("RANK", 0))) else None)
    SubprocessHandler._popen = lambda _, args, env: PreparedRank(env, point, sends, rank)  # type: ignore[method-assign,assignment,return-value]
    sys.exit(main(args))


def _become(folder: str, env: dict[str, str], path: list[str]) -> None:
    """Have this process look like a new program whose output goes to output.txt."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:] = path
    if namespace := env.get("SSLT_TEST_NAMESPACE"):  # as `ip netns exec` enters it
        with open(f"/run/netns/{namespace}") as f:
            assert ctypes.CDLL(None).setns(f.fileno(), 0x40000000) == 0, f"no namespace {namespace}"
    with open(env.get("SSLT_TEST_OUTPUT", "output.txt"), "a") as f:
        os.dup2(f.fileno(), 1)
        os.dup2(f.fileno(), 2)
    sys.stdout = sys.stderr = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    import quick_pictures
    import torch

    torch.set_num_threads(1)
    quick_pictures.roughly()


class PreparedRank:
    """Stands in for the `subprocess.Popen` of the elastic agent: a process that has imported everything already."""

    def __init__(self, env: dict[str, str], point: str | None, sends: int, rank: int | None):
        self.process = CONTEXT.Process(target=_rank, args=(str(Path.cwd()), env, point, sends, rank))
        self.process.start()
        self.pid = self.process.pid
        while self.process.exitcode is None and os.getpgid(self.pid) != self.pid:
            time.sleep(0.001)

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("rank", timeout)
        return self.process.exitcode


def _rank(folder: str, env: dict[str, str], point: str | None, sends: int, rank: int | None) -> None:
    os.setsid()
    _become(folder, env, env["SSLT_PATH"].split(os.pathsep))
    from sslt.worker import main

    if point is not None and rank in (None, int(env["RANK"])):
        POINTS[point](lambda: os.kill(os.getpid(), sends))
    sys.exit(main())


def _instead(owner: Any, name: str, replace: Callable[[Any], Any]) -> None:
    setattr(owner, name, replace(getattr(owner, name)))


def _at(owner: Any, name: str, when: Callable[..., bool] = lambda *_: True, after: bool = False) -> Callable[[Callable[[], None]], None]:
    """Die as a method is called (or when it is done), if `when` says so of its arguments."""

    def arm(die: Callable[[], None]) -> None:
        def replace(before: Any) -> Any:
            def changed(*args: Any, **kwargs: Any) -> Any:
                dies = when(*args)
                if dies and not after:
                    die()
                out = before(*args, **kwargs)
                if dies and after:
                    die()
                return out

            return changed

        _instead(_found(owner), name, replace)

    return arm


def _found(dotted: str) -> Any:
    from hydra.utils import get_object

    return get_object(dotted)


def _half_a_checkpoint(die: Callable[[], None]) -> None:
    def replace(before: Any) -> Any:
        def changed(self: Any, checkpoint: dict, path: Any, **kwargs: Any) -> None:
            before(self, checkpoint, path, **kwargs)
            if checkpoint["batches_seen"] == 3:
                os.truncate(path, Path(path).stat().st_size // 2)
                die()

        return changed

    _instead(_found("sslt.callbacks.checkpoint.StreamedCheckpoints"), "save_checkpoint", replace)


def _between_renames(die: Callable[[], None]) -> None:
    seen = []

    def replace(before: Any) -> Any:
        def changed(source: Any, target: Any) -> None:
            seen.extend([1] if Path(target).name == "last.ckpt" else [])
            if len(seen) == 3 and Path(target).name == "last.ckpt":
                die()
            before(source, target)

        return changed

    _instead(os, "replace", replace)


def _step(n: int) -> Callable[..., bool]:
    return lambda self, trainer, learner, *_: learner.batches_seen == n


POINTS: dict[str, Callable[[Callable[[], None]], None]] = {
    "preparing the data": _at("sslt.data.prepare.image_writing.Writing", "chunk"),
    "preparing the fourth shard": _at("sslt.data.shards.writing.Writer", "put", lambda self, number, *_: number == 3),
    "the first probe": _at("sslt.callbacks.probes.OnlineProbe", "measure", _step(0), after=True),
    "before the first step": _at("sslt.learner.Learner", "training_step"),
    "a step": _at("sslt.learner.Learner", "training_step", lambda self, *_: self.batches_seen == 3),
    "half a checkpoint": _half_a_checkpoint,
    "between two renames": _between_renames,
    "the probe after an epoch": _at("sslt.callbacks.probes.OnlineProbe", "measure", _step(5), after=True),
    "in the probe after an epoch": _at("sslt.callbacks.probes.OnlineProbe", "measure", _step(5)),
    "validation after an epoch": _at("sslt.callbacks.probes.Validation", "measure", _step(4), after=True),
    "in validation after an epoch": _at("sslt.callbacks.probes.Validation", "measure", _step(4)),
    "before the last probe": _at("sslt.callbacks.probes.OnlineProbe", "on_train_end"),
    "the last probe": _at("sslt.callbacks.probes.OnlineProbe", "on_train_end", after=True),
    "before the last validation": _at("sslt.callbacks.probes.Validation", "on_train_end"),
    "the last validation": _at("sslt.callbacks.probes.Validation", "on_train_end", after=True),
    "the last checkpoint": _at("sslt.callbacks.checkpoint.Checkpoint", "on_train_end", after=True),
    "measuring": _at("sslt.stages.measure", "measured", lambda *args: args[5] == "test"),
    "the weights of the result": _at("sslt.encoders.image.ImageEncoder", "save_weights", after=True),
    "the metrics": _at("sslt.runs.Run", "add_metrics", after=True),
    "the plots": _at("sslt.report.plots", "curves", after=True),
    "the status": _at("sslt.execute", "perform", after=True),
}


def gone(pid: int) -> bool:
    """Whether a process ends soon."""
    until = time.monotonic() + SOON
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False
