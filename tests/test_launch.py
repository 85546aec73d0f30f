"""Protects the start of ranks: what each is told, and that the process which starts them is as before afterwards."""

from __future__ import annotations

import json
import os
import sys

import pytest
from omegaconf import OmegaConf

from sslt import ends, launch, signals
from sslt.errors import RankLost, UserError
from sslt.places import Place
from sslt.runs import Run

CPU = OmegaConf.create({"seed": 3, "trainer": {"accelerator": "cpu"}})


@pytest.fixture
def run(here):
    (here / "run").mkdir()
    return Run(here / "run")


def agent(monkeypatch, end=lambda run: None, codes=None, came=None):
    """Have an agent that starts nothing; gives what it is called with, and in which environment."""
    called = []

    def started(*args):
        called.append((args, dict(os.environ)))
        end(args[-1])
        return codes or {}, came

    monkeypatch.setattr(launch, "_agent", started)
    return called


@pytest.mark.parametrize(("cores", "threads"), [(8, "2"), (2, "1"), (None, "1")])
def test_ranks_are_told_what_to_run_and_share_the_cores(cores, threads, run, monkeypatch):
    """The verb, the composed config and the folder, where modules are found, and a third of the threads for each of three."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    called, before = agent(monkeypatch), dict(os.environ)
    launch.launch_or_raise("pretrain", CPU, run, 3)
    assert dict(os.environ) == before
    ((args, environment),) = called
    assert args == (3, 1, 0, "127.0.0.1:0", run)
    verb, config, folder = json.loads(environment["SSLT_RUN"])
    assert (verb, folder) == ("pretrain", str(run.path)) and OmegaConf.load(config).seed == 3
    assert environment["SSLT_PATH"].split(os.pathsep) == sys.path and environment["OMP_NUM_THREADS"] == threads


def test_ends_of_before_count_for_nothing(run, monkeypatch):
    """What ranks of an earlier start have left is gone before the next one, and after one that ended well."""
    (run / "logs").mkdir()
    ends.note(run, 1, code=2, said="of before")
    agent(monkeypatch, lambda run: ends.note(run, 0, code=0))
    launch.launch_or_raise("pretrain", CPU, run, 2)
    assert not list((run / "logs").glob("rank*.json"))


@pytest.mark.parametrize(
    ("left", "codes", "came", "raised", "words"),
    [
        ({"code": 2, "said": "no room"}, {1: 1}, None, UserError, "^no room$"),
        ({}, {1: -9}, None, RankLost, r"^node 1 \(.*\): rank 3 was ended by signal 9"),
        ({"code": 130, "said": "stopped at step 4", "signal": 15}, {0: 130}, 15, signals.Interrupted, "^stopped at step 4$"),
    ],
)
def test_another_node_tells_its_own_ranks(left, codes, came, raised, words, run, monkeypatch):
    """Ranks are counted over all nodes, and a lost one is told with the node that it was on."""
    agent(monkeypatch, lambda run: left and ends.note(run, 2, **left), codes, came)
    with pytest.raises(raised, match=words):
        launch.launch_or_raise("pretrain", CPU, run, 2, Place(1, 2, "127.0.0.1", 1, nodes=True), 5)


@pytest.mark.parametrize(("raised", "code"), [(UserError("x"), 2), (RankLost("x"), 1), (signals.Stopped(15), 130), (None, 0)])
def test_another_node_ends_by_a_code(raised, code, run, monkeypatch, capsys):
    """A mistake is told by the first node alone; a lost rank by the node that it was on."""

    def started(*_):
        if raised is not None:
            raise raised

    monkeypatch.setattr(launch, "launch_or_raise", started)
    cfg = OmegaConf.merge(CPU, {"cache_dir": str(run.path)})
    assert launch.launch("pretrain", cfg, run, 2, Place(1, 2, "127.0.0.1", 1, nodes=True), 5) == code
    assert ("sslt: x" in capsys.readouterr().err) == (code == 1)


def test_a_rank_that_is_gone_is_closed():
    """It ended between the agent's look at it and the agent's signal; afterwards torch is as it was."""
    import signal

    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

    rank = SubprocessHandler(sys.executable, ("-c", "pass"), dict(os.environ), None, None, 0, None)
    rank.proc.wait()
    with launch._gone_is_closed():
        rank.close(signal.SIGTERM)
    with pytest.raises(ProcessLookupError):
        rank.close(signal.SIGTERM)
