"""How long it takes until something happens: processor seconds of commands, and from Enter to the first training step."""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_LIMIT = 300.0  # seconds after which a first step is given up


def measure_start(rounds: int, folder: Path) -> list[dict[str, Any]]:
    """Wall and CPU seconds of each command, in turns, medians. One unmeasured round fills the caches first.

    A training is over, for this purpose, when the first step's loss stands in the run's metrics.csv, which sslt writes at the
    end of that step; it is then killed.
    """
    sslt = str(Path(sys.executable).with_name("sslt"))
    simclr = [sslt, "pretrain", "+task=simclr"]
    commands = {
        'python -c "import torch, pytorch_lightning"': [sys.executable, "-c", "import torch, pytorch_lightning"],
        "sslt --help": [sslt, "--help"],
        "sslt pretrain +task=simclr --cfg job": [*simclr, "--cfg", "job"],
        "sslt pretrain +task=simclr data=digits, to its first step": [*simclr, "data=digits", "trainer.max_steps=1"],
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for r in range(rounds + 1):
        for name, command in commands.items():
            first_step = command[-1] == "trainer.max_steps=1"
            seconds = _train(command, folder / f"start{r}", folder) if first_step else _whole(command, folder)
            if r > 0:
                taken[name].append(seconds)
                print(f"round {r}/{rounds}  start  {name}: {seconds[0]:.2f} s, CPU {seconds[1]:.2f} s", file=sys.stderr)
    walls = [wall for wall, _ in next(iter(taken.values()))]
    return [
        {
            "name": name,
            "wall_seconds": statistics.median(wall for wall, _ in pairs),
            "cpu_seconds": statistics.median(cpu for _, cpu in pairs),
            "wall_of_imports": statistics.median(wall / base for (wall, _), base in zip(pairs, walls, strict=True)),
            "rounds": pairs,
        }
        for name, pairs in taken.items()
    ]


def _whole(command: list[str], folder: Path) -> tuple[float, float]:
    """(wall, CPU) seconds of a command that ends by itself."""
    cpu, started = _children(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_environment(folder), cwd=folder)
    return time.perf_counter() - started, _children() - cpu


def _train(command: list[str], run: Path, folder: Path) -> tuple[float, float]:
    """(wall, CPU) seconds until the first step is recorded."""
    cpu, started = _children(), time.perf_counter()
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": _environment(folder), "cwd": folder}
    process = subprocess.Popen([*command, f"hydra.run.dir={run}"], **quiet)
    try:
        while not _stepped(run / "metrics.csv"):
            if process.poll() is not None or time.perf_counter() - started > _LIMIT:
                raise RuntimeError(f"no first step: {' '.join(command)} hydra.run.dir={run}")
            time.sleep(0.005)
        wall = time.perf_counter() - started
    finally:
        process.kill()
        process.wait()
    shutil.rmtree(run, ignore_errors=True)
    return wall, _children() - cpu


def _stepped(curves: Path) -> bool:
    """Whether the loss of a step is recorded; numbers of the untrained encoder stand there before."""
    return curves.exists() and ",loss," in curves.read_text()


def _children() -> float:
    """CPU seconds, user and system, of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "SSLT_CACHE": str(folder / "cache")}
