"""Protects a run under SLURM, a small real one: who starts its ranks, and what becomes of it when SLURM stops the job."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TINY_IMAGES
from small_cluster import Cluster, said, script, until

from sslt.runs import Run

SSLT = [sys.executable, "-m", "sslt"]
TRAIN = ["pretrain", "+task=simclr", *TINY_IMAGES, "online_probe.every_n_epochs=0", "batch_size=128", "trainer.log_every_n_steps=1"]
SHORT = ["trainer.max_steps=3"]
HELD = ["trainer.max_steps=9", "callbacks=[{_target_: held.Held}]"]
HOLDS = """
import os, time
from pathlib import Path
from pytorch_lightning import Callback
from sslt import signals

class Held(Callback):
    def on_train_batch_end(self, trainer, *_):
        \"\"\"In a job that starts for the first time, wait after a few steps until the signal comes.\"\"\"
        if trainer.global_step == 4 and os.environ.get("SLURM_RESTART_COUNT", "0") == "0" and "SLURM_JOB_ID" in os.environ:
            Path(f"held{trainer.global_rank}").touch()
            while signals._waiting.came is None:
                time.sleep(0.05)
"""
NODES = ["--nodes=2", "--ntasks-per-node=1"]  # each starts the ranks of its node, here one


def weights(folder: Path) -> bytes:
    return (folder / "encoder" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    own = script("slurm")
    if reason := own.lacking():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm") / "cluster"
    environment = own.start(folder, cpus=2, grace=120, killwait=60, requeue=6)
    try:
        yield Cluster(environment)
    finally:
        own.stop(folder)


@pytest.fixture
def slurm(cluster: Cluster, here: Path) -> Iterator[Cluster]:
    """The cluster, with no job on it afterwards."""
    yield cluster
    script("slurm").end_jobs(cluster.environment)


def test_whoever_starts_two_ranks_gets_the_same_encoder(slurm):
    """sslt's own ranks; srun with a task a node, with a task a rank, and with torchrun on each node: one run folder each."""
    module = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1"]
    torchrun = f'exec {shlex.join([*module, "--master-port=29431"])} --node-rank=$SLURM_NODEID -m sslt "$@"'
    starters = {
        "own": [*SSLT, "ARGS", "trainer.devices=2"],
        "nodes": ["srun", *NODES, *SSLT, "ARGS"],
        "ranks": ["srun", "--nodes=1", "--ntasks-per-node=2", *SSLT, "ARGS"],
        "torchrun": ["srun", *NODES, "sh", "-c", torchrun, "sh", "ARGS"],
    }
    for name, command in starters.items():
        at = command.index("ARGS")
        slurm.run(*command[:at], *TRAIN, *SHORT, f"hydra.run.dir={name}", *command[at + 1 :])
        assert Run(name).finished and Path(f"{name}/logs/rank1.log").exists()
    assert len({weights(Path(name)) for name in starters}) == 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    """The encoder of the run that is held, where nobody stops it."""
    from killed_runs import command

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        patch.setenv("SSLT_CACHE", str(cache))
        assert command([*TRAIN, HELD[0], "trainer.devices=2", "hydra.run.dir=run"]) == 0, Path("output.txt").read_text()
        return weights(Path("run").absolute())


def submitted(slurm, *options):
    """A run on two nodes that has trained a little and waits for a signal, and its job; its folder is named by the clock."""
    Path("held.py").write_text(HOLDS)
    line = f"PYTHONPATH=$PWD:$PYTHONPATH srun {shlex.join([*SSLT, *TRAIN, *HELD])}"
    job = slurm.batch(*NODES, "--requeue", *options, line=line)
    both = [Path("held0"), Path("held1")]
    until(lambda: all(p.exists() for p in both) or slurm.about(job)["JobState"] not in ("PENDING", "RUNNING"), lambda: said(job))
    return job


def went_on(slurm, job, signal, whole):
    """The job was stopped by a signal, requeued, and ended in the same folder by the same bytes."""
    until(lambda: slurm.about(job)["Restarts"] != "0" and slurm.about(job)["JobState"] == "PENDING", lambda: said(job))
    slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=60", "StartTime=now")  # SLURM would wait for two minutes
    about = slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED")
    assert about["JobState"] == "COMPLETED" and int(about["Restarts"]) >= 1, said(job)
    (folder,) = Path().glob("runs/*/*")
    assert f"{signal} came: stopped at step" in said(job) and "is requeued, and goes on by itself" in said(job)
    assert Run(folder).finished and "resumed" in Run(folder).info and weights(folder) == whole


def test_a_preempted_job_goes_on_by_itself(whole, slurm):
    """TERM by a job of another partition; when that has ended the first is started again."""
    job = submitted(slurm, "--partition=low")
    other = slurm.batch(*NODES, "--exclusive", "--partition=high", line="sleep 1")
    slurm.wait(other, "COMPLETED")
    went_on(slurm, job, "SIGTERM", whole)


def test_a_job_whose_time_is_up_goes_on_by_itself(whole, slurm):
    """USR1 before the end that `--signal=` asks for."""
    job = submitted(slurm, "--time=60", "--signal=USR1@5")
    hours, minutes, _ = map(int, slurm.about(job)["RunTime"].split(":"))
    slurm.run("scontrol", "update", f"JobId={job}", f"TimeLimit={60 * hours + minutes + 1}")
    went_on(slurm, job, "SIGUSR1", whole)


def test_a_cancelled_job_is_not_requeued(slurm):
    """It is saved all the same, and resume= goes on with it."""
    job = submitted(slurm)
    slurm.run("scancel", job)
    until(lambda: "go on with" in said(job), lambda: said(job))
    until(lambda: not slurm.run("squeue", "-h", "-j", job).strip())
    about = slurm.about(job)
    assert about["JobState"] == "CANCELLED" and about["Restarts"] == "0" and "requeued" not in said(job)
    (folder,) = Path().glob("runs/*/*")
    assert Run(folder).info["status"] == "interrupted" and (folder / "checkpoints" / "last.ckpt").exists()


def test_a_sweep_by_submitit_is_two_jobs(slurm, here):
    """Each cell is a job of its own, whose run is where a sweep has it; the command waits for both."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs sslt[sweep]")
    launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=low", "hydra.launcher.timeout_min=30"]
    slurm.run(*SSLT, *TRAIN, *SHORT, "-m", *launcher, "seed=1,2", "hydra.sweep.dir=sweep")
    runs = sorted(Path("sweep").glob("*/run.json"))
    assert len(runs) == 2 and all(Run(path.parent).finished for path in runs)
    jobs = {Run(path.parent).info["job"] for path in runs}
    assert len(jobs) == 2 and all(job.startswith("slurm ") for job in jobs)
