"""Protects that whoever starts the ranks gets the same run: sslt itself, torchrun, srun, two nodes by hand; and how they end.

Real processes, nothing of them prepared. `srun` is its variables in two plain processes.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TINY_IMAGES
from killed_runs import gone

from sslt.runs import Run

BIN = Path(sys.executable).parent
SSLT = [str(BIN / "sslt")]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "sslt"]
TRAIN = ["pretrain", "+task=simclr", *TINY_IMAGES, "online_probe.every_n_epochs=0", "batch_size=128"]
LONG = [*TRAIN, "trainer.max_steps=100000", "trainer.log_every_n_steps=1", "hydra.run.dir=run"]


def start(*command: str, **env: str) -> subprocess.Popen:
    return subprocess.Popen(command, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(*processes: subprocess.Popen) -> list[tuple[int, str]]:
    """Exit codes and outputs."""
    found = [(p.communicate(timeout=600)[0], p.returncode) for p in processes]
    return [(code, said) for said, code in found]


def port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def tasks(*command: str, **more: str) -> list[subprocess.Popen]:
    """Two tasks of one SLURM step on one node, the second started first."""
    step = {"SLURM_JOB_ID": port(), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
    step |= {"SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NODEID": "0", **more}
    return [start(*command, **step, SLURM_PROCID=r, SLURM_LOCALID=r) for r in "10"]


def nodes(*command: str) -> list[subprocess.Popen]:
    """Two agents of one rank each, as on two machines."""
    both = ["trainer.num_nodes=2", f"trainer.address=127.0.0.1:{port()}"]
    return [start(*command, *both, f"trainer.node={node}") for node in "10"]


def test_whoever_starts_two_ranks_gets_the_same_encoder(here):
    """The same bytes, one run folder each, of which nobody complains; the folder may be named by the clock."""
    short = [*TRAIN, "trainer.max_steps=3"]
    starters = {
        "own": lambda: [start(*SSLT, *short, "trainer.devices=2", "hydra.run.dir=own")],
        "torchrun": lambda: [start(*TORCHRUN, *short, "hydra.run.dir=torchrun/${now:%S%f}")],
        "srun": lambda: tasks(*SSLT, *short, "hydra.run.dir=srun"),
        "nodes": lambda: nodes(*SSLT, *short, "hydra.run.dir=nodes"),
    }
    found = {}
    for name, begin in starters.items():
        for code, said in ended(*begin()):
            assert code == 0, f"{name}: {said}"
        (weights,) = here.glob(f"{name}/**/encoder/model.safetensors")
        assert Run(weights.parents[1]).finished and "rank1.log" in os.listdir(weights.parents[1] / "logs")
        found[name] = weights.read_bytes()
    assert len(set(found.values())) == 1


@pytest.fixture
def long_run(here) -> Iterator[tuple[subprocess.Popen, list[int]]]:
    """A run of two ranks that has trained a little, and its ranks' process ids."""
    process = start(*SSLT, *LONG, "trainer.devices=2")
    yield process, pids(process)
    process.kill()


def pids(process: subprocess.Popen) -> list[int]:
    until = time.monotonic() + 300
    while not (Path("run/metrics.csv").exists() and "loss" in Path("run/metrics.csv").read_text()):
        assert process.poll() is None and time.monotonic() < until, process.communicate()[0]
        time.sleep(0.1)
    return [json.loads(Path(f"run/logs/rank{r}.json").read_text())["pid"] for r in (0, 1)]


def test_a_killed_rank_is_one_line(long_run):
    """kill -9 under the agent."""
    process, (_, second) = long_run
    os.kill(second, signal.SIGKILL)
    ((code, said),) = ended(process)
    lines = [line for line in said.splitlines() if line.startswith("sslt: ")]
    assert code == 1 and len(lines) == 1 and "Traceback" not in said and Run("run").info["status"] == "failed"
    assert "rank 1 was ended by signal 9, perhaps because memory ran out; see run/logs/rank1.log; go on with: sslt" in lines[0]


def test_ranks_end_with_the_command(long_run):
    """Nobody is left who could end them when that is killed."""
    process, ranks = long_run
    process.kill()
    assert all(gone(pid) for pid in ranks)


def test_signals_come_to_the_command_alone(long_run):
    """It passes the first on, and waits while its ranks save; more change nothing."""
    process, ranks = long_run
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP):
        process.send_signal(number)
    ((code, said),) = ended(process)
    assert (
        code == 130
        and re.search(r"SIG(USR1|TERM|HUP) came: stopped at step \d+; go on with", said)
        and Run("run").info["status"] == "interrupted"
    )
    assert Path("run/checkpoints/last.ckpt").exists() and all(gone(pid) for pid in ranks)


def test_a_mistake_is_one_line_whoever_starts_it(here):
    """Of the first rank, in composing and later; every process ends by the same code, and no folder is left."""
    for wrong in ("trainer.max_epoch=1", "batch_size=0"):
        (_, said) = ended(start(*TORCHRUN, *TRAIN, wrong, "hydra.run.dir=run"))[0]
        assert [line.startswith("sslt: ") for line in said.splitlines()].count(True) == 1, said
        assert "exitcode  : 2 " in said and "exitcode  : 1 " not in said  # the other rank may be ended before it ends by itself
        assert not Path("run").exists()


def test_a_requeued_job_goes_on_in_its_folder(here):
    """Under SLURM the tasks save at a signal to one of them and have the job requeued; started again, they go on."""
    (here / "scontrol").write_text(
        f"#!/bin/sh\necho $* >> {here}/asked\ncase $1 in show) echo JobId=7 JobState=RUNNING;; requeue) kill -TERM $PPID;; esac\n"
    )
    (here / "scontrol").chmod(0o755)
    job = {"PATH": f"{here}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": port()}
    args = [a for a in LONG if not a.startswith("hydra.run.dir")]
    second, first = tasks(*SSLT, *args, **job)
    until = time.monotonic() + 300
    while not (found := list(here.glob("runs/*/*/metrics.csv"))) and time.monotonic() < until:
        time.sleep(0.1)
    second.send_signal(signal.SIGUSR1)
    assert [code for code, _ in ended(first, second)] == [75, 75]
    assert (here / "asked").read_text().splitlines() == ["show job -o 7", "requeue 7"]
    run = Run(found[0].parent)
    assert run.info["status"] == "interrupted" and run.info["job"] == "slurm 7"
    started, seen = run.info["started"], found[0].stat().st_size
    again = tasks(*SSLT, *args, **job, SLURM_RESTART_COUNT="1")
    while found[0].stat().st_size <= seen and time.monotonic() < until + 300:  # until both have taken a step
        time.sleep(0.1)
    assert "resumed" in run.info
    again[1].send_signal(signal.SIGINT)
    assert 130 in [code for code, _ in ended(*again)]
    assert list(here.glob("runs/*/*")) == [run.path] and run.info["started"] == started
