"""trainer.devices=2 through the real console script: the verbs, sweeps too, with real processes; and how they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY_IMAGES
from safetensors.torch import load_file

from sslt import execute
from sslt.cli import main
from sslt.encoders.load import fresh_like
from sslt.report.curves import MetricsCSV
from sslt.runs import Run

SSLT = str(Path(sys.executable).parent / "sslt")


def sslt(*args: str) -> None:
    """The console script, in a process of its own."""
    done = subprocess.run([SSLT, *args], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_two_ranks_pretrain_finetune_and_evaluate(here):
    """Each rank sees its own shard (an epoch has half the steps), results are those of one run folder, all ranks end."""
    two = ["trainer.devices=2"]
    sslt("pretrain", "+task=simclr", *TINY_IMAGES, *two, "batch_size=128", "trainer.max_epochs=1", "hydra.run.dir=pre")
    run = Run(here / "pre")
    assert run.metrics["train/steps"] == 1294 // 256 and (run / "logs" / "rank1.log").exists()
    tune = ["finetune", "+target=digits", "from=pre", *two, "trainer.max_steps=3", "trainer.accelerator=cpu", "labels_per_class=5"]
    sslt(*tune, "-m", "seed=0,1", "hydra.sweep.dir=fine")
    assert all(Run(here / "fine" / str(i)).finished for i in (0, 1))
    sslt("predict", "from=fine/0", "data=digits", *two, "trainer.accelerator=cpu", "hydra.run.dir=said")
    lines = (here / "said" / "predictions.csv").read_text().splitlines()
    assert len(lines) == 1 + 359 and [int(line.split(",")[0]) for line in lines[1:]] == list(range(359))  # every row once, in order
    shots = ["shots=[1]", "draws=2"]
    sslt("evaluate", "from=pre", *two, "trainer.accelerator=cpu", *shots, "hydra.run.dir=two")
    sslt("evaluate", "from=pre", "trainer.accelerator=cpu", *shots, "hydra.run.dir=one", "cache_dir=other")
    assert abs(Run(here / "two").metrics["knn/accuracy"] - Run(here / "one").metrics["knn/accuracy"]) < 1e-6


def test_two_ranks_move_what_one_moves(here):
    """Two processes with 16 samples each end with the weights of one with 32, while what moves changes: what is unfrozen later is
    averaged over ranks as well."""
    tune = ["finetune", "+target=digits", "from=scratch:pre", "adaptation=gradual", "adaptation.over=0.6", "views=plain"]
    tune += ["objective.dropout=0", "trainer.max_steps=8", "labels_per_class=16", *TINY_IMAGES[2:], "optimizer.lr=0.01", "ema=0.5"]
    main(["pretrain", "+task=simclr", *TINY_IMAGES, "trainer.max_steps=1", "online_probe.every_n_epochs=0", "hydra.run.dir=pre"])
    tune += ["trainer.log_every_n_steps=1"]
    main([*tune, "batch_size=32", "hydra.run.dir=one"])
    sslt(*tune, "batch_size=16", "trainer.devices=2", "hydra.run.dir=two")
    one, two = (load_file(here / name / "encoder" / "model.safetensors") for name in ("one", "two"))
    torch.manual_seed(0)
    start = fresh_like("pre").model.state_dict()
    assert all(not torch.equal(one[k], start[k]) for k in one if k.endswith("conv1.weight"))
    apart, far = (sum(float((one[k] - other[k]).abs().sum()) for k in one if k.endswith("weight")) for other in (two, start))
    assert apart < 0.02 * far
    raw = load_file(here / "two" / "raw" / "model.safetensors")
    assert apart < 0.2 * sum(float((one[k] - raw[k]).abs().sum()) for k in one if k.endswith("weight"))  # averages of both
    curves = [MetricsCSV.read(here / name / "metrics.csv")["loss"] for name in ("one", "two")]
    assert curves[1] == (curves[0][0], pytest.approx(curves[0][1], rel=1e-2)) and len(curves[0][0]) == 8
    assert curves[1][1][0] == pytest.approx(curves[0][1][0], rel=1e-5)
    assert Run(here / "two").metrics["train/loss"] == pytest.approx(curves[1][1][-1])


# -------------------------------------------------------------------- how ranks end
ENDS = """
import json, os, signal, sys, time
from pathlib import Path

import pytorch_lightning as pl


class Ends(pl.Callback):
    def __init__(self, rank, way, busy=False):
        self.rank, self.way, self.busy = rank, way, busy

    def on_train_start(self, trainer, learner):
        Path(f"rank{trainer.global_rank}.json").write_text(json.dumps([os.getpid(), sys.path]))

    def on_train_batch_end(self, trainer, learner, *_):
        if learner.batches_seen != 3:
            return
        if trainer.global_rank == self.rank:
            Path("ended").touch()
            if self.way == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError(self.way)
        if self.busy:
            time.sleep(200)
"""
TWO = ["pretrain", "+task=simclr", *TINY_IMAGES, "online_probe.every_n_epochs=0", "batch_size=32", "trainer.devices=2"]
SOON = 60  # seconds, on a busy machine


@pytest.fixture
def ends(here, monkeypatch):
    """Runs two ranks of which one ends in the third step; returns the exit code and what was said last."""
    (here / "own").mkdir()
    (here / "own" / "ends_of_ranks.py").write_text(ENDS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(here / "own"), os.environ.get("PYTHONPATH")])))

    def run(rank: int, way: str, busy: bool = False) -> tuple[int, str]:
        callback = f"callbacks=[{{_target_:ends_of_ranks.Ends,rank:{rank},way:'{way}',busy:{busy}}}]"
        args = [*TWO, callback, "trainer.max_steps=6", "checkpoint.every_minutes=0.0001", "hydra.run.dir=run"]
        done = subprocess.run([SSLT, *args], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
        assert time.time() - (here / "ended").stat().st_mtime < SOON
        return done.returncode, done.stderr.splitlines()[-1] if done.stderr else ""

    return run


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


def places(here: Path) -> list[tuple[int, list[str]]]:
    """Of each rank, its process and where it looks for modules."""
    return [tuple(json.loads((here / f"rank{r}.json").read_text())) for r in (0, 1)]


def test_a_killed_rank_is_named_and_the_run_goes_on(ends, here):
    """One line with the rank, the signal and its log, exit code 1; resumed on one device it says how large a step was. Both ranks
    had looked for modules in the same places, PYTHONPATH among them."""
    code, said = ends(1, "kill")
    assert code == 1 and Run(here / "run").info["status"] == "failed"
    assert "rank 1 was ended by signal 9" in said and "memory" in said and "run/logs/rank1.log" in said and "resume=run" in said
    (_, first), (_, second) = places(here)
    assert first == second and str(here / "own") in first and str(here) not in first
    alone = [*TWO[:-1], "trainer.max_steps=6", "resume=run"]
    done = subprocess.run([SSLT, *alone], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and Run(here / "run").finished
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("warning: a step has")]
    assert "32 samples (1 rank × 32)" in told and "64 samples (2 ranks × 32)" in told and "batch_size=64" in told


def test_rank_0_does_not_work_on_for_a_killed_one(ends, here):
    """While it computes by itself no connection tells it."""
    code, said = ends(1, "kill", busy=True)
    assert code == 1 and "rank 1 was ended by signal 9" in said and Run(here / "run").info["status"] == "failed"


@pytest.mark.parametrize(
    ("way", "code", "words"),
    [("boom", 1, "rank 1 ended with code 1 (RuntimeError: boom); see run/logs/rank1.log"), ("CUDA out of memory", 2, "lower batch_size")],
)
def test_a_rank_that_fails_says_why(ends, here, way, code, words):
    """Its error, not the broken connection that it leaves; its log has the traceback."""
    found, said = ends(1, way)
    assert found == code and words in said and Run(here / "run").info["status"] == "failed"
    log = (here / "run" / "logs" / "rank1.log").read_text()
    assert "Traceback" in log and "ends_of_ranks.py" in log and f"RuntimeError: {way}" in log


def test_ranks_end_with_rank_0(ends, here):
    """Rank 0 is killed: nobody is left who could end the others."""
    code, _ = ends(0, "kill")
    assert code == -9 and gone(places(here)[1][0])


def test_an_error_of_rank_0_is_its_own(ends):
    """The others fail by the broken connection, and are not blamed for it."""
    code, said = ends(0, "boom")
    assert code == 1 and "rank 1" not in said


# -------------------------------------------------------------------- what lies in the working folder
def test_nothing_in_the_working_folder_is_imported(here):
    """`python -m sslt` and the ranks it starts, in a folder with files that are called like modules."""
    names = (
        "yaml torch numpy omegaconf hydra antlr4 pytorch_lightning safetensors sklearn wandb sitecustomize usercustomize json socket ast"
    )
    for name in names.split():
        (here / f"{name}.py").write_text(f"open({str(here / 'ran')!r}, 'a').write('{name} ')\n")
    args = [*TWO, "trainer.max_steps=1", "hydra.run.dir=run"]
    done = subprocess.run([sys.executable, "-m", "sslt", *args], capture_output=True, text=True, timeout=300)
    assert not (here / "ran").exists(), (here / "ran").read_text()
    assert done.returncode == 0 and Run(here / "run").finished, done.stderr


@pytest.mark.skipif(sys.version_info < (3, 11), reason="older Pythons have no such setting")
def test_processes_of_libraries_import_nothing_there_either(here, monkeypatch):
    """What a library starts once a run has begun."""
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    (here / "yaml.py").write_text("raise SystemExit('ran')")
    execute._quiet_libraries()
    assert subprocess.run([sys.executable, "-c", "import yaml"]).returncode == 0
