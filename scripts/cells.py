"""What the scripts that fill docs/results share: cells that are run once and taken up again, and how numbers are written."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

from sslt.cli import main as sslt
from sslt.evaluation.few_shot import mean_interval
from sslt.runs import Run, read_json

SEEDS = (0, 1, 2)


class Cells:
    """Runs `sslt` commands into folders below `root`: a finished one is not run again, an interrupted one goes on."""

    def __init__(self, root: Path, data: str):
        self.root, self.data = root, data
        os.environ["SSLT_DATA"] = str(Path(data).resolve())

    def run(self, name: str, verb: str, *args: str, may_fail: bool = False, alone: bool = False) -> Run:
        """One command in the folder `name`. may_fail: a mistake (exit code 2) is a result, kept in `error.txt`.

        alone: in a process of its own, so that its peak memory is its own.
        """
        folder = self.root / name
        run = Run(folder)
        if run.finished or (folder / "error.txt").exists():
            return run
        print("$ sslt", shlex.join([verb, *args]), flush=True)
        command = [verb, *args, f"hydra.run.dir={folder}", "resume=auto"]
        code = subprocess.run([sys.executable, "-m", "sslt", *command]).returncode if alone else sslt(command)
        if code and not (may_fail and code == 2):
            sys.exit(f"{name} ended with code {code}")
        if code:
            (folder / "error.txt").write_text(str(run.info.get("error", "")))
        return run


def numbers(root: Path, pattern: str, key: str = "test/accuracy") -> list[float]:
    """`key` of every finished run that matches."""
    found = [read_json(p / "metrics.json").get(key) for p in sorted(root.glob(pattern)) if Run(p).finished]
    return [v for v in found if v is not None]


def percent(values: list[float]) -> str:
    """mean ± 95 % interval (Student's t), in percent."""
    if not values:
        return "–"
    if len(values) == 1:
        return f"{100 * values[0]:.1f} (1 seed)"
    mean, half = mean_interval(values)
    return f"{100 * mean:.1f} ± {100 * half:.1f}" + ("" if len(values) >= len(SEEDS) else f" ({len(values)} seeds)")


def about() -> str:
    """The day, the machine and how much of it a command has, in a line."""
    import time

    import torch

    gpu = f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
    cores = f"{torch.get_num_threads()} of {os.cpu_count()} CPU cores ({cpu_name()}) for each command"
    return f"{time.strftime('%Y-%m-%d')}, {cores}{gpu}, torch {torch.__version__}"


def cpu_name() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
