"""Protects what is asked of SLURM when a run was stopped: to start it again where it was not the user who stopped it."""

from __future__ import annotations

import os
import signal
import time

import pytest

from sslt import scheduler


@pytest.fixture
def asked(here, monkeypatch):
    """An scontrol that says of the job what `says` holds, and takes requeueing for what `takes` holds; gives what it was asked."""

    def make(says: str, takes: bool = True):
        state = f"echo 'JobId=7 {says}'" if says else "exit 1"
        requeue = "kill -TERM $PPID" if takes else "exit 1"
        script = f"#!/bin/sh\necho $* >> {here}/asked\ncase $1 in show) {state};; requeue) {requeue};; esac\n"
        (here / "scontrol").write_text(script)
        (here / "scontrol").chmod(0o755)
        return lambda: (here / "asked").read_text().split("\n")[:-1]

    monkeypatch.setenv("PATH", str(here), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # as while a run is being ended
    yield make
    signal.signal(signal.SIGTERM, before)


REQUEUED = ["show job -o 7", "requeue 7"]


@pytest.mark.parametrize(
    ("says", "number", "code", "done"),
    [
        ("JobState=RUNNING", signal.SIGUSR1, 75, REQUEUED),  # --signal=USR1@60
        ("JobState=RUNNING", signal.SIGTERM, 75, REQUEUED),  # grace time before it is preempted
        ("JobState=COMPLETING RunTime=00:02:01 TimeLimit=00:02:00", signal.SIGTERM, 75, REQUEUED),
        ("JobState=COMPLETING RunTime=1-00:02:01 TimeLimit=2-00:00:00", signal.SIGTERM, 130, REQUEUED[:1]),
        ("JobState=COMPLETING RunTime=00:02:01 TimeLimit=UNLIMITED", signal.SIGTERM, 130, REQUEUED[:1]),
        ("JobState=CANCELLED", signal.SIGTERM, 130, REQUEUED[:1]),  # scancel
        ("", signal.SIGTERM, 75, REQUEUED[:1]),
    ],
)
def test_a_job_is_requeued_unless_somebody_ended_it(says, number, code, done, asked, monkeypatch):
    """The code says whether it is to be started again; until SLURM ends it nothing is done."""
    monkeypatch.setattr(scheduler, "_WAIT", 0.2)
    questions = asked(says)
    assert scheduler.code_of(number) == code and questions() == done


def test_where_it_cannot_be_requeued_the_code_says_so(asked):
    questions = asked("JobState=RUNNING", takes=False)
    began = time.monotonic()
    assert scheduler.code_of(signal.SIGTERM) == 75 and questions() == REQUEUED and time.monotonic() - began < 60


@pytest.mark.parametrize(("number", "job"), [(signal.SIGINT, "7"), (None, "7"), (signal.SIGTERM, None)])
def test_others_than_a_scheduler_ask_for_nothing(number, job, monkeypatch):
    """Ctrl-C, and any signal where there is no job."""
    monkeypatch.setattr(scheduler, "_scontrol", lambda *_: pytest.fail("nobody is to be asked"))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if job:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    assert scheduler.code_of(number) == 130


def test_handlers_are_given_back(asked):
    """After the wait as before it."""
    asked("JobState=RUNNING")
    before = [signal.getsignal(n) for n in scheduler.signals.ENDING]
    scheduler.code_of(signal.SIGTERM)
    assert [signal.getsignal(n) for n in scheduler.signals.ENDING] == before
