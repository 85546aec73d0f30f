"""Peak memory of every contender, each in a process of its own: what one leaves behind is not the next one's."""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from bench.rounds import Contender, Watch

MARK = "memory:"


def report(contender: Contender) -> None:
    """Run one contender for a few steps and print its memory, for `measure_memory`. Called in the child process."""
    before = torch.cuda.memory_allocated() if torch.cuda.is_available() else _status("VmRSS")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):  # the peak of what was built before is forgotten
            Path("/proc/self/clear_refs").write_text("5")
    contender.run(Watch(1, 2))
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM")
    print(MARK, json.dumps({"peak": peak, "before": before}))


def measure_memory(script: str, arguments: list[str], names: list[str]) -> list[dict[str, Any]]:
    """Bytes of every contender of a comparison, built alone: at most, and when its training began. Loaders have no processes of their own.

    arguments: of `script`, such that --memory-of I makes it call `report` for contender I.
    """
    rows = []
    for i, name in enumerate(names):
        command = [sys.executable, script, *arguments, "--memory-of", str(i)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        said = next(line for line in reversed(done.splitlines()) if line.startswith(MARK))
        found = json.loads(said.removeprefix(MARK))
        rows.append({"name": name, **found, "training": found["peak"] - found["before"]})
        print(f"memory  {name}: {rows[-1]['training'] / 2**20:,.0f} MiB for training", file=sys.stderr)
    return rows


def _status(key: str) -> int:
    """Bytes that this process holds (VmRSS) or held at most (VmHWM). Without Linux's /proc, the most it ever held.

    What getrusage calls the most counts, on Linux, the parent's memory at the time of the fork.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])
