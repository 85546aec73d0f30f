"""Protects jobs in other processes: plain values come back, a mistake is one line, and a signal saves before it ends anything."""

from __future__ import annotations

import json
import os
import pickle
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import TINY_IMAGES
from omegaconf import OmegaConf

from sslt.errors import RankLost
from sslt.runs import Run
from sslt.sweeps import job as jobs
from sslt.sweeps.job import Job

IMAGES = ["pretrain", "-m", "+task=simclr", *TINY_IMAGES, "data=digits", "trainer.max_steps=2", "online_probe.samples=100"]

CFG = OmegaConf.create({"optimizer": {"lr": 0.1}})


@pytest.fixture
def hydra_job(here, monkeypatch):
    """A job that a launcher has started for the cell in cell/."""
    found = SimpleNamespace(runtime=SimpleNamespace(output_dir=str(here / "cell")), overrides=SimpleNamespace(task=["seed=0"]))
    monkeypatch.setattr("hydra.core.hydra_config.HydraConfig.get", lambda: found)
    monkeypatch.setattr("sslt.config.check", lambda *_: None)
    monkeypatch.setattr("sslt.config.note_own_rate", lambda *_: None)
    (here / "cell").mkdir()


def test_a_job_can_be_sent(hydra_job, fake):
    """It is plain data, and so is its answer."""
    made = pickle.loads(pickle.dumps(Job("pretrain", None)))
    fake.score = lambda cfg: 1.0
    assert pickle.loads(pickle.dumps(made(CFG))) == {"code": 0, "error": None, "told": True}
    fake.hook = lambda cfg, folder: (_ for _ in ()).throw(RankLost("rank 1 is gone"))
    assert made(CFG)["error"] == "rank 1 is gone" and made(CFG)["code"] == 1


def test_what_submitit_does_to_signals_is_done_after_the_run_has_saved(hydra_job, fake, monkeypatch):
    """A job that is preempted ends its run first, as one that somebody stopped; then it is put into the queue again."""
    calls = []

    class Handler:
        def bypass(self, number, frame=None):
            calls.append("bypassed")

        def checkpoint_and_try_requeue(self, number, frame=None):
            calls.append("requeued")
            raise SystemExit

    Handler.__module__ = "submitit.core.job_environment"
    theirs, before = Handler(), {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR2)}
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    made = Job("pretrain", None)
    made.pid = -1  # another process than that of the sweep
    try:
        signal.signal(signal.SIGTERM, theirs.bypass)
        signal.signal(signal.SIGUSR2, theirs.checkpoint_and_try_requeue)
        for number in (signal.SIGUSR2, signal.SIGTERM):
            fake.hook = lambda cfg, folder, number=number: os.kill(os.getpid(), number)
            with pytest.raises(SystemExit):
                made(CFG)
        assert calls == ["requeued", "requeued"] and fake.ran == [("cell", False), ("cell", True)]
        assert signal.getsignal(signal.SIGTERM) == theirs.bypass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_where_errors_are_told(hydra_job, fake, monkeypatch, capsys):
    """What a job of submitit prints goes into a file, so that the sweep itself says it."""
    fake.hook = lambda cfg, folder: 1 / 0
    assert Job("pretrain", None)(CFG)["told"] and "ZeroDivisionError" in capsys.readouterr().err
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    assert not Job("pretrain", None)(CFG)["told"] and "ZeroDivisionError" not in capsys.readouterr().err
    jobs.tell(Path("cell"), "x\x1b[2J")
    assert capsys.readouterr().err == "sslt: cell: x\\x1b[2J; the sweep goes on\n"


def test_a_launcher_that_is_not_there(sslt, here, capsys):
    """Which package has it."""
    try:
        import hydra_plugins.hydra_joblib_launcher  # noqa: F401
    except ImportError:
        sslt(*IMAGES, "seed=0,1", "hydra/launcher=joblib", code=2)
        assert "pip install 'sslt[sweep]'" in capsys.readouterr().err and not Path("runs").exists()
    sslt(*IMAGES, "seed=0,1", "hydra/launcher=jublib", code=2)
    assert "hydra/launcher" in capsys.readouterr().err


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_in_other_processes(launcher, sslt, here, capfd):
    """Two at once prepare the same data; a mistake of one comes back as a line; the same again with resume=auto runs that one alone."""
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher")
    args = [*IMAGES, "batch_size=64,5000,32", f"hydra/launcher={launcher}", "cache_dir=cache", "hydra.sweep.dir=sweep"]
    args += ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    sslt(*args, code=2)
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("sslt: ")]
    assert len(said) == 1 and said[0].startswith("sslt: sweep/1: batch_size=5000 is larger")
    rows = json.loads(Path("sweep/sweep.json").read_text())["results"]
    assert {r["number"]: r["status"] for r in rows} == {0: "finished", 1: "failed", 2: "finished"}
    before = Path("sweep/0/run.json").read_bytes()
    sslt(*args, "resume=auto", code=2)
    assert Path("sweep/0/run.json").read_bytes() == before and Run(here / "sweep" / "1").info["resumed"]
