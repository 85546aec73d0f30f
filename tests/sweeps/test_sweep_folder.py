"""Protects what a sweep leaves: the same command goes on with it, repeats no finished cell and mixes with no other."""

from __future__ import annotations

import concurrent.futures
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY_IMAGES
from fake_runs import Died

from sslt.errors import UserError
from sslt.runs import Run
from sslt.sweeps import folder as folders
from sslt.sweeps.sweeper import Cells

TUNE = ["finetune", "-m", "+target=digits", "from=scratch"]
SSLT = str(Path(sys.executable).parent / "sslt")


def killed(sslt, fake, at, *args):
    """A sweep that dies in its cell `at`."""

    def hook(cfg, folder):
        if folder.name == str(at):
            raise Died

    fake.hook = hook
    with pytest.raises(Died):
        sslt(*args)
    fake.hook = lambda cfg, folder: None


def sweeps():
    return sorted(p.parent for p in Path("runs").glob("**/sweep.json"))


def test_the_same_command_goes_on(sslt, here, fake, capsys):
    """In the same folder: what is finished is left alone, what was interrupted goes on, the rest is run."""
    command = [*TUNE, "seed=0,1,2,3"]
    killed(sslt, fake, 2, *command)
    assert fake.ran == [("0", False), ("1", False), ("2", False)]
    fake.ran.clear()
    sslt(*command)
    assert fake.ran == [("2", True), ("3", False)] and len(sweeps()) == 1
    assert "going on with the sweep runs/" in capsys.readouterr().out
    assert [r["status"] for r in json.loads((sweeps()[0] / "sweep.json").read_text())["results"]] == ["finished"] * 4
    fake.ran.clear()
    sslt(*command)  # that sweep is over
    assert len(sweeps()) == 2 and len(fake.ran) == 4


def test_a_folder_that_was_named_is_gone_on_with(sslt, here, fake, capsys):
    """By the same command, and by no other."""
    command = [*TUNE, "seed=0,1", "hydra.sweep.dir=mine"]
    killed(sslt, fake, 1, *command)
    before = Path("mine/sweep.json").read_text()
    sslt(*TUNE, "seed=0,2", "hydra.sweep.dir=mine", code=2)
    assert "already holds files" in capsys.readouterr().err and Path("mine/sweep.json").read_text() == before
    sslt(*command, "resume=null", code=2)
    sslt(*TUNE, "seed=0,2", "hydra.sweep.dir=mine", "hydra.sweep.subdir=other${hydra.job.num}", code=2)
    assert "holds another sweep" in capsys.readouterr().err and Path("mine/sweep.json").read_text() == before
    fake.ran.clear()
    sslt(*command)
    assert fake.ran == [("1", True)]


def test_which_sweep_is_gone_on_with(sslt, here, fake):
    """The newest that is of the same command and not over; resume=null takes none, a changed value is another command."""
    command = [*TUNE, "seed=0,1"]
    killed(sslt, fake, 1, *command)
    killed(sslt, fake, 0, *command, "resume=null")
    (first, second), ran = sweeps(), len(fake.ran)
    sslt(*TUNE, "seed=0,2")
    assert len(sweeps()) == 3 and len(fake.ran) == ran + 2
    sslt(*command)
    assert Run(second / "1").finished and not Run(first / "1").finished
    sslt(*command)
    assert Run(first / "1").finished and len(sweeps()) == 3


def test_failed_jobs_are_tried_again_when_that_is_asked_for(sslt, here, fake, capsys):
    """resume=auto and resume=FOLDER take up a sweep in which jobs failed; the same command alone begins another."""

    def hook(cfg, folder):
        if cfg.seed == 1:
            raise UserError("the disk is full")

    command = [*TUNE, "seed=0,1"]
    fake.hook = hook
    sslt(*command, code=2)
    sslt(*command, code=2)
    assert len(sweeps()) == 2
    fake.hook = lambda cfg, folder: None
    fake.ran.clear()
    sslt(*command, "resume=auto")
    sslt(*command, f"resume={sweeps()[0]}")
    assert fake.ran == [("1", True), ("1", True)] and len(sweeps()) == 2
    sslt(*command, f"resume={sweeps()[0]}")  # finished: the table once more
    assert len(fake.ran) == 2
    sslt(*command, "resume=auto")  # nothing to go on with: a new one
    assert len(sweeps()) == 3


def test_a_sweep_at_work_is_left_alone(sslt, here, fake, capsys):
    """Its command in another terminal begins another one, and in its folder is refused."""
    command = [*TUNE, "seed=0,1"]
    killed(sslt, fake, 1, *command)
    with (sweeps()[0] / ".lock").open("w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        sslt(*command, f"resume={sweeps()[0]}", code=2)
        assert "another process" in capsys.readouterr().err
        sslt(*command)
    assert len(sweeps()) == 2 and not Run(sweeps()[0] / "1").finished


def test_a_folder_from_elsewhere_writes_nowhere_else(sslt, here, fake, capsys):
    """Cells that its sweep.json puts outside of it, and links that lead out."""
    command = [*TUNE, "seed=0,1", "hydra.sweep.dir=mine"]
    killed(sslt, fake, 1, *command)
    note = json.loads(Path("mine/sweep.json").read_text())
    note["cells"][1]["folder"] = "../elsewhere"
    Path("mine/sweep.json").write_text(json.dumps(note))
    sslt(*command, code=2)
    assert "lies outside" in capsys.readouterr().err
    note["cells"][1]["folder"] = "1"
    Path("mine/sweep.json").write_text(json.dumps(note))
    Path("mine/2").symlink_to(here)
    sslt(*command, code=2)
    assert "leads out" in capsys.readouterr().err


def test_other_launchers_and_more_trials_make_no_other_sweep():
    """They say who runs the cells and how many are wanted."""
    same = ["seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=a", "resume=auto", "hydra.sweeper.n_trials=9"]
    assert folders.comparable(same) == ["seed=0,1"]
    assert folders.comparable(["hydra/sweeper=optuna", "seed=0,1"]) == ["hydra/sweeper=optuna", "seed=0,1"]


def test_a_job_that_is_killed_costs_no_other(sslt, here, fake, monkeypatch, capsys):
    """A pool of processes breaks as a whole: what it had begun is tried once more, and what had not is run."""
    real, calls = Cells._launch, []

    def launch(self, cells):
        calls.append([c.number for c in cells])
        for cell in cells:
            if cell.number == 1:  # it kills the process that it is in
                cell.folder.mkdir(parents=True, exist_ok=True)
                Run(cell.folder).update(status="running", verb="finetune")
                raise concurrent.futures.BrokenExecutor("a worker is gone")
            real(self, [cell])
        raise AssertionError

    def through(self, cells):
        try:
            return launch(self, cells)
        except AssertionError:
            return [{"code": 0, "error": None, "told": True} for _ in cells]

    monkeypatch.setattr(Cells, "_launch", through)
    sslt(*TUNE, "seed=0,1,2", "hydra.sweep.dir=sweep", code=1)
    assert calls == [[0, 1, 2], [1, 2], [2]] and [n for n, _ in fake.ran] == ["0", "2"]
    assert "sweep/1: its process ended without an answer" in capsys.readouterr().err
    states = {r["number"]: r["status"] for r in json.loads(Path("sweep/sweep.json").read_text())["results"]}
    assert states == {0: "finished", 1: "failed", 2: "finished"}


def test_a_refused_sweep_leaves_nothing(sslt, here, fake):
    sslt(*TUNE, "optimizer.lr=interval(0,1)", code=2)
    sslt(*TUNE, "optimizer=sgd,nonsense", code=2)
    assert not Path("runs").exists()


def test_every_cell_has_a_folder_of_its_own(sslt, here, fake, capsys):
    """In the sweep's: a name that leaves out what varies would have one cell go on with the run of another."""
    for name, said in (("lr${optimizer.lr}", "two cells the folder lr0.1"), ("../${seed}", "is not within mine")):
        sslt(*TUNE, "optimizer.lr=0.1,0.2", "seed=0,1", "hydra.sweep.dir=mine", f"hydra.sweep.subdir={name}", code=2)
        assert said in capsys.readouterr().err and not fake.ran and not any(here.iterdir())
    sslt(*TUNE, "seed=0,1", "hydra.sweep.dir=mine", "hydra.sweep.subdir=lr${optimizer.lr}/${seed}")
    assert [name for name, _ in fake.ran] == ["0", "1"]


def test_what_to_type_can_be_typed(sslt, here, fake, capsys):
    """A folder whose name has a space."""
    sslt(*TUNE, "seed=0", "hydra.sweep.dir='my sweep'")
    assert "next: sslt predict \"from='my sweep/0'\" input=FILE" in capsys.readouterr().out


def test_killed_in_the_middle(here):
    """SIGKILL through the console script: the finished cell stays, the interrupted one ends bit for bit like one that was not."""
    args = ["pretrain", "-m", "+task=simclr", *TINY_IMAGES, "data=digits", "batch_size=64", "trainer.max_steps=24", "seed=0,1",
            "checkpoint.every_minutes=0.0001", "online_probe.samples=100"]  # fmt: skip
    process = subprocess.Popen([SSLT, *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))
    deadline = time.time() + 120
    while not list(Path("runs").glob("*/*/1/checkpoints/last.ckpt")) and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (sweep,) = sweeps()
    first = (sweep / "0" / "run.json").read_bytes(), (sweep / "0" / "metrics.json").stat().st_mtime_ns
    assert Run(sweep / "0").finished and not Run(sweep / "1").finished
    done = subprocess.run([SSLT, *args], check=True, capture_output=True, text=True, env=dict(os.environ))
    assert "1 of 2 cells are finished" in done.stdout and "best by online/knn_accuracy" in done.stdout
    assert first == ((sweep / "0" / "run.json").read_bytes(), (sweep / "0" / "metrics.json").stat().st_mtime_ns)
    assert Run(sweep / "1").finished and Run(sweep / "1").info["resumed"] and sweeps() == [sweep]
    one = [a for a in args if a not in ("-m", "seed=0,1")]
    from sslt.cli import main

    assert main([*one, "seed=1", "hydra.run.dir=whole"]) == 0
    weights = Path("encoder/model.safetensors")
    assert (sweep / "1" / weights).read_bytes() == ("whole" / weights).read_bytes()
