"""Protects a run on two machines that a network joins: two namespaces of this one, and what is told when a part of it is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TINY_IMAGES
from killed_runs import Program, command
from small_cluster import Processes, script, until

from sslt.callbacks.checkpoint import LAST, read
from sslt.runs import Run, read_json

TRAIN = ["pretrain", "+task=simclr", *TINY_IMAGES, "online_probe.every_n_epochs=0", "batch_size=128", "trainer.max_steps=9"]
TRAIN += ["checkpoint.every_minutes=1e-9"]  # one after every step
HOLDS = """
import os, time
from pathlib import Path
from pytorch_lightning import Callback

class Held(Callback):
    def on_train_batch_end(self, trainer, *_):
        \"\"\"The second rank waits after a step, with the first in the midst of the next one.\"\"\"
        at = os.environ.get("HOLD")
        if trainer.global_rank == 1 and str(trainer.global_step) == at:
            Path("held" + at).touch()
            while not Path("go" + at).exists():
                time.sleep(0.05)
"""
PATIENCE = 6


@pytest.fixture
def pair() -> Iterator:
    own = script("namespaces")
    if reason := own.lacking():
        pytest.skip(reason)
    with own.two_nodes(f"sslt{os.getpid()}-") as nodes:
        yield nodes


@pytest.fixture
def start(pair, here):
    """Start a command on both nodes, the second first, that is held after a step; gives the agents, first node first.

    prepared: in processes that have imported everything already, from which ranks do not end with their agent.
    """
    with Processes() as processes:

        def begin(args: list[str], hold: int | None = None, prepared: bool = True):
            env = {**os.environ, "SSLT_PATIENCE": str(PATIENCE), "HOLD": str(hold)}
            both = [*args, "trainer.num_nodes=2", f"trainer.address={pair.addresses[0]}:29500"]

            def agent(node: int):
                command = [*both, f"trainer.node={node}"]
                if prepared:
                    output = f"said{len(processes.started)}-{node}.txt"
                    return Program(command, env, [*sys.path, str(here)], output, pair.names[node])
                own = {**env, "PYTHONPATH": f"{here}:{os.environ.get('PYTHONPATH', '')}"}
                pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "start_new_session": True}
                return pair.popen(node, [sys.executable, "-m", "sslt", *command], env=own, **pipes)

            agents = [agent(node) for node in (1, 0)][::-1]
            processes.started += agents
            if hold is not None:
                until(lambda: Path(f"held{hold}").exists() or agents[0].poll() is not None, lambda: "the second rank has not come so far")
                assert agents[0].poll() is None, agents[0].communicate()[0]
            return agents

        yield begin


def lines(agent: subprocess.Popen, code: int) -> list[str]:
    """What one of the nodes has said of a mistake or a loss."""
    text = agent.communicate(timeout=120)[0]
    assert agent.returncode == code and "Traceback" not in text, text
    return [line for line in text.splitlines() if line.startswith("sslt: ")]


def test_a_run_that_loses_a_rank_the_network_and_a_node_ends_as_one_that_did_not(start, pair, here):
    """Each loss is one line a node, which names what is gone; resume= on both goes on, and ends by the bytes of one machine's run."""
    (here / "held.py").write_text(HOLDS)
    args = [*TRAIN, "callbacks=[{_target_: held.Held}]", "hydra.run.dir=run"]
    resume = ["pretrain", "resume=run", "trust=[held]"]

    first, second = start(args, hold=2)
    os.kill(read_json(Path("run/logs/rank1.json"))["pid"], signal.SIGKILL)
    (line,) = lines(second, 1)
    assert "node 1 (" in line and "rank 1 was ended by signal 9" in line
    (line,) = lines(first, 1)
    assert "the connection to rank 1 on node 1 (" in line and "resume=run" in line

    first, second = start(resume, hold=4)
    pair.cut()
    Path("go4").touch()
    for agent, other in ((first, "node 1 ("), (second, "node 0 (")):
        (line,) = lines(agent, 1)
        assert other in line and ("lost" in line or f"has not answered for {PATIENCE} s" in line) and "network" in line
    pair.mend()
    assert read(Path("run/checkpoints") / LAST)["batches_seen"] == 3  # the first rank waited before it wrote the next

    first, second = start(resume, hold=6, prepared=False)
    os.kill(second.pid, signal.SIGKILL)
    (line,) = lines(first, 1)
    assert "the connection to rank 1 on node 1 (" in line
    second.communicate(timeout=60)  # its rank ends by itself

    for agent in start(resume):
        assert lines(agent, 0) == []
    assert Run("run").finished
    assert command([*TRAIN, "trainer.devices=2", "hydra.run.dir=whole"]) == 0, Path("output.txt").read_text()
    assert Path("run/encoder/model.safetensors").read_bytes() == Path("whole/encoder/model.safetensors").read_bytes()
