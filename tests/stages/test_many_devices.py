"""trainer.devices=2 with real processes: the verbs, sweeps too; how ranks end, and go on; what they import."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY_IMAGES
from killed_runs import SOON, command, differing, gone, outputs
from safetensors.torch import load_file

from sslt import processes
from sslt.callbacks.checkpoint import LAST, read
from sslt.cli import main
from sslt.encoders.load import fresh_like
from sslt.report.curves import MetricsCSV
from sslt.runs import Run


def sslt(*args: str, code: int = 0) -> str:
    """The command in a process of its own; returns the line that it said last."""
    assert command(list(args)) == code, Path("output.txt").read_text()
    return said()


def said() -> str:
    return Path("output.txt").read_text().splitlines()[-1]


def test_two_ranks_pretrain_finetune_and_evaluate(here):
    """Each rank sees its own shard (an epoch has half the steps), results are those of one run folder, all ranks end."""
    two = ["trainer.devices=2"]
    pretrain = ["pretrain", "+task=simclr", *TINY_IMAGES, *two, "batch_size=256", "trainer.max_epochs=1", "online_probe.samples=100"]
    sslt(*pretrain, "hydra.run.dir=pre")
    run = Run(here / "pre")
    assert run.metrics["train/steps"] == 1294 // 512 and (run / "logs" / "rank1.log").exists()
    tune = ["finetune", "+target=digits", "from=pre", *two, "trainer.max_steps=2", "trainer.accelerator=cpu", "labels_per_class=5"]
    tune += ["baseline=false", "late_fusion=false"]
    sslt(*tune, "-m", "seed=0,1", "hydra.sweep.dir=fine")
    assert all(Run(here / "fine" / str(i)).finished for i in (0, 1))
    sslt("predict", "from=fine/0", "data=digits", *two, "trainer.accelerator=cpu", "hydra.run.dir=said")
    lines = (here / "said" / "predictions.csv").read_text().splitlines()
    assert len(lines) == 1 + 359 and [int(line.split(",")[0]) for line in lines[1:]] == list(range(359))  # every row once, in order
    shots = ["shots=[1]", "draws=2", "baseline=false"]
    sslt("evaluate", "from=pre", *two, "trainer.accelerator=cpu", *shots, "hydra.run.dir=two")
    sslt("evaluate", "from=pre", "trainer.accelerator=cpu", *shots, "hydra.run.dir=one", "cache_dir=other")
    assert abs(Run(here / "two").metrics["knn/accuracy"] - Run(here / "one").metrics["knn/accuracy"]) < 1e-6


def test_two_ranks_move_what_one_moves(here):
    """Two processes with 16 samples each end with the weights of one with 32, while what moves changes: what is unfrozen later is
    averaged over ranks as well."""
    tune = ["finetune", "+target=digits", "from=scratch:pre", "adaptation=gradual", "adaptation.over=0.6", "views=plain"]
    tune += ["objective.dropout=0", "trainer.max_steps=8", "labels_per_class=16", *TINY_IMAGES[2:], "optimizer.lr=0.01", "ema=0.5"]
    main(["pretrain", "+task=simclr", *TINY_IMAGES, "trainer.max_steps=1", "online_probe.every_n_epochs=0", "hydra.run.dir=pre"])
    tune += ["trainer.log_every_n_steps=1", "baseline=false"]
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
            time.sleep(290)
"""
TWO = ["pretrain", "+task=simclr", *TINY_IMAGES, "online_probe.every_n_epochs=0", "batch_size=32", "trainer.devices=2"]


@pytest.fixture
def ends(own_code):
    """Runs two ranks of which one ends in the third step; returns the exit code and what was said last."""
    Path("ends_of_ranks.py").write_text(ENDS)

    def run(rank: int, way: str, busy: bool = False) -> tuple[int, str]:
        callback = f"callbacks=[{{_target_:ends_of_ranks.Ends,rank:{rank},way:'{way}',busy:{busy}}}]"
        code = command([*TWO, callback, "trainer.max_steps=6", "checkpoint.every_minutes=1e-9", "hydra.run.dir=run"])
        assert time.time() - Path("ended").stat().st_mtime < SOON
        return code, said()

    return run


def test_a_killed_rank_is_named_and_the_run_goes_on(ends, here):
    """One line with the rank, the signal and its log, exit code 1; resumed on one device its steps have as many samples."""
    code, last = ends(1, "kill")
    assert code == 1 and Run(here / "run").info["status"] == "failed"
    assert "rank 1 was ended by signal 9" in last and "memory" in last and "run/logs/rank1.log" in last and "resume=run" in last
    assert read(here / "run" / "checkpoints" / LAST)["batches_seen"] == 2
    Path("output.txt").unlink()
    sslt(*TWO[:-1], "trainer.max_steps=6", "resume=run")
    assert Run(here / "run").finished
    assert "batch_size=64 on 1 rank was 32 on 2: a step has as many samples" in Path("output.txt").read_text()
    assert read(here / "run" / "checkpoints" / LAST)["step_size"] == [1, 1, 64]


def test_rank_0_does_not_work_on_for_a_killed_one(ends, here):
    """While it computes by itself no connection tells it."""
    code, last = ends(1, "kill", busy=True)
    assert code == 1 and "rank 1 was ended by signal 9" in last and Run(here / "run").info["status"] == "failed"


@pytest.mark.parametrize(
    ("way", "code", "words"),
    [("boom", 1, "rank 1 ended with code 1 (RuntimeError: boom); see run/logs/rank1.log"), ("CUDA out of memory", 2, "lower batch_size")],
)
def test_a_rank_that_fails_says_why(ends, here, way, code, words):
    """Its error, not the broken connection that it leaves; its log has the traceback."""
    found, last = ends(1, way)
    assert found == code and words in last and Run(here / "run").info["status"] == "failed"
    log = (here / "run" / "logs" / "rank1.log").read_text()
    assert "Traceback" in log and "ends_of_ranks.py" in log and f"RuntimeError: {way}" in log


def test_ranks_end_with_rank_0(ends, here):
    """Rank 0 is killed: the other is busy and has no use for its connection, and ends soon all the same."""
    code, last = ends(0, "kill", busy=True)
    assert code == 1 and "rank 0 was ended by signal 9" in last and Run(here / "run").info["status"] == "failed"
    assert gone(json.loads((here / "rank1.json").read_text())[0])


def test_an_error_of_rank_0_is_its_own(ends):
    """The others fail by the broken connection, and are not blamed for it."""
    code, last = ends(0, "boom")
    assert code == 1 and "rank 0 ended with code 1 (RuntimeError: boom); see run/logs/rank0.log" in last and "rank 1" not in last


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    """Outputs of two ranks that nobody stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        patch.setenv("SSLT_CACHE", str(cache))
        sslt(*STOPPED, "hydra.run.dir=run")
        return outputs(Path("run"))


STOPPED = [*TWO[:-2], "batch_size=128", "trainer.devices=2", "trainer.max_steps=7", "checkpoint.every_minutes=1e-9"]  # 5 steps an epoch


@pytest.mark.parametrize(
    ("rank", "number", "point", "step"),
    [
        (0, signal.SIGTERM, "a step", 4),
        (1, signal.SIGHUP, "a step", 4),
        (0, signal.SIGINT, "the last checkpoint", 7),
        (1, signal.SIGTERM, "the last checkpoint", 7),
    ],
)
def test_a_signal_to_one_rank_saves_and_ends_both(rank, number, point, step, whole, here):
    """Whichever it comes to, in training or at its very end; the run that goes on leaves what one leaves that never stopped."""
    assert command([*STOPPED, "hydra.run.dir=run"], point, number, rank) == 130, Path("output.txt").read_text()
    assert Run("run").info["status"] == "interrupted" and read(Path("run/checkpoints") / LAST)["batches_seen"] == step
    log = Path("run/logs/sslt.log").read_text()
    assert f"stopped at step {step}; go on with: sslt pretrain resume=run" in log
    told = Path("run/logs", f"rank{rank}.log").read_text() if rank else log  # by the one that it came to
    assert step == 7 or f"{number.name} came: the run is saved and ends after step 4" in told
    sslt("pretrain", "resume=run")
    assert differing(whole, outputs(here / "run")) == [] and "a step has" not in Path("output.txt").read_text()


def test_a_signal_to_all_ranks_in_a_probe_ends_them(here):
    """Ctrl-C comes to every process of a terminal; the others' ends by it are no failures."""
    args = [a for a in STOPPED if not a.startswith("online_probe")]
    assert command([*args, "online_probe.samples=100", "hydra.run.dir=run"], "the first probe", signal.SIGINT, None) == 130
    assert Run("run").info["status"] == "interrupted" and "rank 1" not in Path("output.txt").read_text()
    assert "SIGINT came: stopped at once" in Path("run/logs/sslt.log").read_text()


def test_a_signal_to_one_rank_in_a_probe_has_both_leave_it(here):
    """The other one is told where they meet; saved before the probe, which is made up for."""
    args = [a for a in STOPPED if not a.startswith("online_probe")]
    assert command([*args, "online_probe.samples=100", "hydra.run.dir=run"], "in the probe after an epoch", signal.SIGTERM, 1) == 130
    assert read(Path("run/checkpoints") / LAST)["batches_seen"] == 5
    sslt("pretrain", "resume=run")
    assert Run("run").finished and MetricsCSV.read("run/metrics.csv")["online/knn_accuracy"][0] == [0, 5, 7]


@pytest.mark.parametrize("point", ["half a checkpoint", "between two renames"])
def test_a_rank_0_that_is_killed_in_saving_loses_nothing_of_before(point, whole, here):
    """The other rank waits for it; both go on from the checkpoint of the step before."""
    assert command([*STOPPED, "hydra.run.dir=run"], point) == 1 and "rank 0 was ended by signal 9" in said()
    sslt("pretrain", "resume=run")
    assert differing(whole, outputs(here / "run")) == []


# -------------------------------------------------------------------- what lies in the working folder
def test_nothing_in_the_working_folder_is_imported(here):
    """`python -m sslt` and the rank it starts, in a folder with files that are called like modules; both look for modules in the same
    places, $PYTHONPATH among them."""
    names = (
        "yaml torch numpy omegaconf hydra antlr4 pytorch_lightning safetensors sklearn wandb sitecustomize usercustomize json socket ast"
    )
    for name in names.split():
        (here / f"{name}.py").write_text(f"open({str(here / 'ran')!r}, 'a').write('{name} ')\n")
    (here / "own").mkdir()
    (here / "own" / "ends_of_ranks.py").write_text(ENDS)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(here / "own"), os.environ.get("PYTHONPATH")]))}
    args = [*TWO, "trainer.max_steps=1", "hydra.run.dir=run", "callbacks=[{_target_:ends_of_ranks.Ends,rank:-1,way:none}]"]
    done = subprocess.run([sys.executable, "-m", "sslt", *args], env=env, capture_output=True, text=True, timeout=300)
    assert not (here / "ran").exists(), (here / "ran").read_text()
    assert done.returncode == 0 and Run(here / "run").finished, done.stderr
    first, second = (json.loads((here / f"rank{r}.json").read_text())[1] for r in (0, 1))
    assert first == second and str(here / "own") in first and str(here) not in first


@pytest.mark.skipif(sys.version_info < (3, 11), reason="older Pythons have no such setting")
def test_processes_of_libraries_import_nothing_there_either(here, monkeypatch):
    """What a library starts once a run has begun."""
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    (here / "yaml.py").write_text("raise SystemExit('ran')")
    processes.quiet_libraries()
    assert subprocess.run([sys.executable, "-c", "import yaml"]).returncode == 0
