"""Protects the end by a signal: every one that would end a run saves first, is named in the log, and leaves a run to go on with."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from conftest import TINY_IMAGES
from killed_runs import command

from sslt import signals
from sslt.callbacks.checkpoint import LAST, read
from sslt.runs import Run

TRAIN = [
    "pretrain",
    "+task=simclr",
    *TINY_IMAGES,
    "batch_size=256",
    "trainer.max_epochs=2",
    "online_probe.samples=100",
    "hydra.run.dir=run",
]
TUNE = ["finetune", "+target=digits", "from=scratch", *TINY_IMAGES, "labels_per_class=20", "trainer.max_steps=2", "hydra.run.dir=run"]
TUNE += ["baseline=false", "late_fusion=false"]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGXCPU], ids=signals.name)
def test_in_training_it_saves_and_ends(here, number):
    """At the step that it came in; status, exit code and log say so."""
    assert command(TRAIN, "a step", number) == 130
    assert Run("run").info["status"] == "interrupted" and read(Path("run/checkpoints") / LAST)["batches_seen"] == 4
    log = Path("run/logs/sslt.log").read_text()
    assert f"{number.name} came: the run is saved and ends after step 4" in log
    assert f"{number.name} came: stopped at step 4; go on with: sslt pretrain resume=run" in log


@pytest.mark.parametrize(
    ("args", "point"),
    [(TRAIN, "preparing the data"), (TRAIN, "the first probe"), (TUNE, "measuring"), (TUNE, "the metrics")],
    ids=["preparing", "probe", "measuring", "metrics"],
)
def test_outside_of_training_it_ends_at_once(here, args, point):
    """Lightning's own handler, which would let the first probe and a step pass, is not asked."""
    assert command([*args, "cache_dir=own"], point, signal.SIGTERM) == 130
    assert Run("run").info["status"] == "interrupted"
    assert f"SIGTERM came: stopped at once; go on with: sslt {args[0]} resume=run" in Path("run/logs/sslt.log").read_text()
    assert not Path("run/checkpoints").exists() or args is TUNE


def test_in_the_last_probe_it_ends_before_measuring(here):
    """Training is done and saved; what comes after it is for the resumed run."""
    assert command(TRAIN, "before the last probe", signal.SIGTERM) == 130
    assert Run("run").info["status"] == "interrupted" and not Path("run/encoder").exists()
    assert read(Path("run/checkpoints") / LAST)["batches_seen"] == 10


def test_what_is_ignored_stays_ignored(here):
    """nohup sets SIGHUP to be ignored, and the run goes on."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.Watch() as watch:
            os.kill(os.getpid(), signal.SIGHUP)
            assert watch.came is None and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_does_not_cut_a_save():
    """Not while one is written, whatever comes; a second Ctrl-C ends the rest at once, a second of another kind nothing."""
    before = [signal.getsignal(n) for n in signals.ENDING]
    with signals.Watch(waits=True) as watch:
        watch.writing = True
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert watch.came == signal.SIGTERM
        watch.writing = False
        os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(signals.Stopped):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(n) for n in signals.ENDING] == before


def test_somebody_elses_handler_stays():
    """A scheduler's or a debugger's, set in this process."""
    came = []
    before = signal.signal(signal.SIGUSR1, lambda *_: came.append(1))
    try:
        with signals.Watch() as outer, signals.Watch() as inner:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert came == [1] and outer.came is inner.came is None
            with pytest.raises(signals.Stopped):
                os.kill(os.getpid(), signal.SIGUSR2)
            assert inner.came == signal.SIGUSR2 and outer.came is None
    finally:
        signal.signal(signal.SIGUSR1, before)
