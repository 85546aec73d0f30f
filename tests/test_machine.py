"""Protects what a process takes of its machine: a command's own looks for garbage seldom until its libraries are there, then as ever."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from sslt import machine


@pytest.fixture
def usual():
    """The collector as it is usually."""
    before = gc.get_threshold()
    gc.set_threshold(*machine._USUAL)
    yield machine._USUAL
    gc.set_threshold(*before)
    gc.unfreeze()


def test_rarely_and_as_usual(usual):
    """What there is by then is left out for good; who has not begun so, as a notebook, finds nothing changed."""
    before = gc.get_freeze_count()
    machine.collect_as_usual()
    assert gc.get_freeze_count() == before and gc.get_threshold() == usual
    machine.collect_rarely()
    assert gc.get_threshold()[0] > 100 * usual[0]
    there = [[] for _ in range(10_001)]  # beside what an earlier test may have left out already
    machine.collect_as_usual()
    assert gc.get_freeze_count() >= before + len(there) and gc.get_threshold() == usual


@pytest.mark.parametrize(
    ("threads", "running", "cores", "words"),
    [
        (2, 2, 2, "other work keeps 1 of 2 cores busy: 2 threads here wait for one another, and OMP_NUM_THREADS=1 "),
        (2, 1, 2, ""),  # this process alone
        (1, 5, 2, ""),  # one thread waits for nobody
        (8, 9, 16, ""),
        (16, 7, 16, "OMP_NUM_THREADS=10 "),
        (4, 40, 16, "OMP_NUM_THREADS=1 "),
    ],
)
def test_a_crowded_machine_is_named(tmp_path, monkeypatch, threads, running, cores, words):
    """Where other work has cores that threads count on, and only there; nothing is said where the system does not tell."""
    monkeypatch.setattr(machine.os, "cpu_count", lambda: cores)
    load = tmp_path / "loadavg"
    assert machine.crowded(threads, load) == ""
    load.write_text(f"9.10 8.00 7.00 {running}/431 12345\n")
    found = machine.crowded(threads, load)
    assert words in found and bool(found) == bool(words)


SHOWN = """
import gc, sys
from sslt import cli, machine
seen, own = [], machine.collect_as_usual
def settle():
    seen.append((gc.get_threshold()[0], "sslt.stages.evaluate" in sys.modules))
    own()
    sys.modules["sslt.stages.evaluate"].main = lambda cfg, run: seen.append((gc.get_threshold()[0], gc.get_freeze_count() > 100_000))
machine.collect_as_usual = settle
sys.argv = ["sslt", "evaluate", "from=anything", "data=digits"]
print({call}, seen)
"""


@pytest.mark.parametrize(("call", "own"), [("cli.main()", True), ("cli.main(sys.argv[1:])", False)])
def test_a_command_of_its_own_process(here, call, own):
    """The console script, until its stage is imported; `main` called with arguments is in somebody's process, and changes nothing."""
    made = subprocess.run([sys.executable, "-c", SHOWN.format(call=call)], capture_output=True, text=True)
    usual = machine._USUAL[0]
    seen = [(machine._RARELY[0] if own else usual, True), (usual, own)]
    assert made.stdout.splitlines()[-1] == f"0 {seen}" and "leaked" not in made.stderr, made.stderr
