"""Commands of the small SLURM that `scripts/cluster/slurm.py` starts, and waiting for what becomes of jobs and runs."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

SCRIPTS = Path(__file__).parents[1] / "scripts" / "cluster"
SOON = 300  # seconds, on a busy machine


def script(name: str) -> ModuleType:
    """A module of `scripts/cluster`."""
    spec = importlib.util.spec_from_file_location(f"cluster_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


class Cluster:
    """Commands of SLURM that mean the small one."""

    def __init__(self, environment: dict[str, str]):
        self.environment = environment

    def run(self, *command: str, code: int | None = 0) -> str:
        """What a command prints, both streams."""
        env = {**os.environ, **self.environment}
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=2 * SOON)
        assert code is None or done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def batch(self, *options: str, line: str) -> str:
        """Submit a script of one line; returns the number of the job, whose output is in JOB.out."""
        Path("job.sh").write_text(f"#!/bin/sh\n{line}\n")
        asked = ["sbatch", "--parsable", "--output=%j.out", "--open-mode=append", *options, "job.sh"]
        return self.run(*asked).strip()

    def about(self, job: str) -> dict[str, str]:
        return dict(re.findall(r"(\w+)=(\S+)", self.run("scontrol", "show", "job", "-o", job)))

    def wait(self, job: str, *states: str) -> dict[str, str]:
        """What SLURM says of a job once it is in one of some states, and was not in another that is an end."""
        until(lambda: self.about(job)["JobState"] in states, lambda: f"{self.about(job)}\n{said(job)}")
        return self.about(job)


def said(job: str) -> str:
    """What a job has printed."""
    path = Path(f"{job}.out")
    return path.read_text() if path.exists() else ""


def until(true: Callable[[], object], otherwise: Callable[[], str] = str) -> None:
    end = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < end, otherwise()
        time.sleep(0.2)


class Processes:
    """Ends the sessions of all in `started` at the end."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()  # its ranks end with it
            process.communicate()
