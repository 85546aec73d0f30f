"""Protects that a machine which is gone without a word is noticed by the others, and nobody who is there is taken for gone."""

from __future__ import annotations

import threading
import time

import pytest

from sslt import ends, handing, heartbeat, processes
from sslt.places import Place
from sslt.runs import Run, read_json


class Store:
    """Counts as torch's does; `cut`: nobody is answered any more; `broken`: the connection is."""

    def __init__(self):
        self.counts: dict[str, int] = {}
        self.cut, self.broken = threading.Event(), False

    def add(self, key: str, n: int) -> int:
        if self.cut.is_set():
            time.sleep(60)
        if self.broken:
            raise RuntimeError("Connection reset by peer")
        self.counts[key] = self.counts.get(key, 0) + n
        return self.counts[key]


@pytest.fixture
def start(monkeypatch):
    hearts = []

    def begin(store, node, nodes=3):
        found = []
        hearts.append(heartbeat.Heart(lambda: store, node, nodes, 0.5, found.append))
        hearts[-1].start()
        return hearts[-1], found

    yield begin
    for heart in hearts:
        heart.stop()


def soon(true):
    until = time.monotonic() + 20
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_the_first_node_misses_the_one_that_is_silent(start):
    """The third says nothing; the second goes on, and then ends as it should, so that nobody misses it."""
    store = Store()
    (second, at_second), (_, found) = start(store, 1), start(store, 0)
    soon(lambda: found)
    assert found == [2] and at_second == [] and store.counts["beat1"] > 0
    second.stop()
    assert store.counts["beat1"] < 0


def test_a_node_that_ended_is_not_missed(start):
    """Its place among the counts is negative, for as long as the others go on."""
    store = Store()
    (second, _), (third, _), (first, found) = start(store, 1), start(store, 2), start(store, 0)
    second.stop()
    soon(lambda: first.counts[1] < 0)
    seen = first.counts[2]
    soon(lambda: first.counts[2] > seen + 2 * first.most)
    assert found == []
    third.stop()


def test_the_others_miss_the_first_when_its_store_is_silent(start):
    store = Store()
    _, found = start(store, 1)
    soon(lambda: store.counts.get("beat1", 0) > 2)
    assert found == []
    store.cut.set()
    soon(lambda: found)
    assert found == [0]


def test_a_connection_that_breaks_is_for_others_to_tell(start):
    """Whoever waits for a rank has its error at once."""
    store = Store()
    heart, found = start(store, 1)
    store.broken = True
    soon(heart.done.is_set)
    assert found == []


@pytest.mark.parametrize(
    ("variables", "threads"),
    [
        ({}, 0),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}, 0),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "3", "LOCAL_RANK": "1"}, 0),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"}, 2),
    ],
)
def test_one_rank_a_node_does_it_where_there_are_several(variables, threads, monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    before, store = threading.active_count(), Store()
    with heartbeat.beating(lambda: store, 1, lambda node: None):
        assert threading.active_count() == before + threads
    if threads:
        assert list(store.counts) == ["beat1"]


def test_what_is_said_of_a_silent_node(here, monkeypatch):
    """Each node says whom it misses, with the machine's name."""
    (here / "run" / "logs").mkdir(parents=True)
    run = Run(here / "run")
    for rank, host in enumerate("ab"):
        monkeypatch.setenv("GROUP_RANK", str(rank))
        monkeypatch.setattr(ends.socket, "gethostname", lambda host=host: host)
        ends.note(run, rank, pid=1)
    for rank in (0, 1):
        monkeypatch.setenv("GROUP_RANK", str(rank))
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        ends.note_silent(run, 1 - rank, 600)
    assert read_json(ends.file_of(run, 0))["silent"] == 1
    said = [str(ends.verdict(run, 2, {node: ends.LEFT_ALONE}, node=node)) for node in (0, 1)]
    assert said[0].startswith("node 1 (b) has not answered for 600 s: it is gone, or the network; see ")
    assert said[1].startswith("node 0 (b) has not answered")


@pytest.mark.parametrize(
    ("leader", "code", "line"),
    [
        (None, ends.LEFT_ALONE, False),  # a rank that an agent watches, or that follows
        (Place(0, 2, "a", 1, nodes=True), ends.LEFT_ALONE, False),
        (Place(0, 2, "a", 1, nodes=False), 1, True),  # a launcher's first rank, which is the command itself
    ],
)
def test_a_process_that_waits_in_vain_is_ended_from_outside(leader, code, line, here, monkeypatch, capfd):
    """Where nobody else tells it, it does, and the run has failed."""
    (here / "run" / "logs").mkdir(parents=True)
    (run := Run(here / "run")).update(status="running")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(handing, "_leader", leader and handing.Leader(leader))
    ended = []
    monkeypatch.setattr(processes.os, "_exit", ended.append)
    processes._silent(run, 1, 60)
    said = capfd.readouterr().err
    assert ended == [code] and (Run(here / "run").info["status"] == "failed") == line
    assert (said.startswith("sslt: node 1 has not answered for 60 s") and said.count("\n") == 1) if line else said == ""
    assert read_json(ends.file_of(run, 0))["silent"] == 1
