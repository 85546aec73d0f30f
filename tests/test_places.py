"""Protects how a process finds out that others were started for the same command, and which of them it is."""

from __future__ import annotations

import os

import pytest

from sslt import places
from sslt.errors import UserError
from sslt.places import Place

TORCH = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}
STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "2", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"}
STEP |= {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "gpu[03-04]"}
NODES = ["trainer.num_nodes=3", "trainer.address=10.0.0.1:29500"]
PORT = 20000 + 101 * 7 + 2


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"RANK": "3"},
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"},  # a batch script, of which there is one
        {**STEP, "SLURM_STEP_NUM_TASKS": "1"},
        {**TORCH, "RANK": "0", "WORLD_SIZE": "1"},
    ],
)
def test_a_command_that_was_typed_is_the_only_one(environ):
    assert places.found(["trainer.devices=2"], environ) is None


@pytest.mark.parametrize(
    ("environ", "overrides", "expected"),
    [
        (TORCH, [], (1, 2, "a", 29500, False)),
        ({**STEP, **TORCH}, NODES[:0], (1, 2, "a", 29500, False)),  # torchrun inside srun
        ({**TORCH, "TORCHELASTIC_RUN_ID": "x"}, NODES, (1, 2, "a", 29500, False)),
        (STEP, [], (3, 4, "gpu03", PORT, False)),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, [], (1, 2, "gpu03", PORT, True)),
        ({}, [*NODES, "trainer.node=2"], (2, 3, "10.0.0.1", 29500, True)),
        ({}, [NODES[0], "trainer.address=[fe80::1]:5", "trainer.node=0"], (0, 3, "fe80::1", 5, True)),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, ["trainer.num_nodes=2"], (1, 2, "gpu03", PORT, True)),
    ],
)
def test_each_of_several_knows_which_it_is(environ, overrides, expected):
    """torchrun's ranks; srun's tasks, which are ranks or nodes; nodes that somebody typed."""
    found = places.found(overrides, environ)
    assert (found.index, found.count, found.address, found.port, found.nodes) == expected


def test_tasks_of_srun_are_told_as_torch_reads_it():
    """Two nodes of two tasks: the place among all, on the machine, and where they meet."""
    told = places.found([], STEP).environment
    wanted = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1", "MASTER_ADDR": "gpu03"}
    assert told == {**wanted, "MASTER_PORT": str(PORT)}


@pytest.mark.parametrize(
    ("environ", "overrides", "words"),
    [
        ({**TORCH, "RANK": "2"}, [], "RANK=2 of WORLD_SIZE=2"),
        ({**TORCH, "WORLD_SIZE": "x"}, [], "WORLD_SIZE='x', which is no number"),
        ({k: v for k, v in TORCH.items() if k != "MASTER_ADDR"}, [], "no MASTER_ADDR"),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "3"}, [], "3 tasks on 2 nodes"),
        (STEP, NODES, "srun started 4 tasks: start one a node"),
        ({}, NODES[:1], "needs trainer.address=HOST:PORT"),
        ({}, [NODES[0], "trainer.address=host:0", "trainer.node=0"], "needs trainer.address=HOST:PORT"),
        ({}, NODES, "say which one this is: trainer.node=0 at trainer.address, then 1 … 2"),
        ({}, [*NODES, "trainer.node=3"], "they are 0 … 2"),
        ({}, ["trainer.num_nodes=two"], "trainer.num_nodes=two: give a whole number"),
    ],
)
def test_half_of_a_place_is_a_mistake(environ, overrides, words):
    with pytest.raises(UserError, match=words.replace("[", r"\[")):
        places.found(overrides, environ)


@pytest.mark.parametrize(
    ("names", "first"), [("gpu[003-007,12],login1", "gpu003"), ("a,b", "a"), ("n[1,3]-ib", "n1-ib"), ("127.0.0.1", "127.0.0.1")]
)
def test_the_first_host_of_a_list(names, first):
    assert places.first_host(names) == first


def test_a_command_that_is_started_again_knows_it():
    """By the count of whoever starts it, and has something in common with its former start."""
    assert not places.restarted({}) and not places.restarted({"SLURM_RESTART_COUNT": "0"})
    assert places.restarted({"SLURM_RESTART_COUNT": "1"}) and places.restarted({"TORCHELASTIC_RESTART_COUNT": "2"})
    assert places.job({}) is None and places.job({"SLURM_JOB_ID": "7"}) == "slurm 7"
    assert isinstance(places.found([], TORCH), Place)


@pytest.mark.parametrize(
    ("place", "job", "address"),
    [
        (Place(1, 2, "127.0.0.1", 5, nodes=True), True, "127.0.0.1"),
        (Place(1, 2, "no.such.name.invalid", 5, nodes=True), True, "127.0.0.3"),
        (Place(1, 2, "no.such.name.invalid", 5, nodes=False, environment={"MASTER_ADDR": "no.such.name.invalid"}), True, "127.0.0.3"),
        (Place(1, 2, "no.such.name.invalid", 5, nodes=True), False, None),
    ],
)
def test_a_node_that_has_another_name_than_its_machine_is_asked_for(place, job, address, here, monkeypatch):
    """SLURM says where it is; where nobody does, the name is told instead of waiting for it."""
    (here / "scontrol").write_text("#!/bin/sh\necho NodeName=$5 Arch=x86_64 NodeAddr=127.0.0.3 NodeHostName=a\n")
    (here / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(here), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "7") if job else monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if address is None:
        with pytest.raises(UserError, match=r"is on no.such.name.invalid, but this machine knows no address of that name"):
            places.reachable(place)
    else:
        found = places.reachable(place)
        assert found.address == address and found.environment.get("MASTER_ADDR", address) == address and found.port == 5
