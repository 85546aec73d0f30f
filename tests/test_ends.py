"""Protects what is told of ranks that have ended: the one thing that the others' ends follow from."""

from __future__ import annotations

import signal

import pytest

from sslt import ends, signals
from sslt.errors import RankLost, UserError
from sslt.runs import Run

KILL, TERM, ALONE = -signal.SIGKILL, -signal.SIGTERM, ends.LEFT_ALONE


@pytest.fixture
def run(here):
    (here / "run" / "logs").mkdir(parents=True)
    return Run(here / "run")


@pytest.mark.parametrize(
    ("left", "codes", "came", "kind", "words"),
    [
        ({0: 0, 1: 0}, {}, None, type(None), "None"),
        ({0: 0, 1: 0}, {}, 15, type(None), "None"),  # a signal that came when all was done
        ({0: 1, 1: 2}, {0: 1, 1: 2}, None, UserError, "rank 1 says"),
        ({0: ALONE, 2: 4}, {1: KILL, 0: ALONE, 2: 4}, None, RankLost, "rank 1 was ended by signal 9, perhaps because memory ran out; see"),
        ({0: ALONE, 1: ALONE, 2: 1}, {}, None, RankLost, "rank 2 ended with code 1 (rank 2 says); see "),
        ({2: 1}, {2: 1, 0: TERM, 1: KILL}, None, RankLost, "rank 1 was ended by signal 9"),
        ({2: 1}, {2: 1, 0: TERM}, None, RankLost, "rank 2 ended with code 1"),
        ({0: ALONE, 1: ALONE}, {}, None, RankLost, "rank 0 lost the connection to another"),
        ({0: 130, 1: ALONE}, {1: ALONE, 0: 130}, None, signals.Interrupted, "rank 0 says"),
        ({1: 130}, {1: 130, 0: TERM}, None, signals.Interrupted, "rank 1 says"),  # it was still starting
        ({}, {0: TERM, 1: TERM}, 15, signals.Stopped, "SIGTERM"),
        ({}, {}, 10, signals.Stopped, "SIGUSR1"),  # who started them has no codes when it was told to end
        ({0: 2, 1: 130}, {}, 15, UserError, "rank 0 says"),  # the disk was full when it was to save
    ],
)
def test_one_thing_is_told_of_all(left, codes, came, kind, words, run):
    """A mistake before what was killed, that before what failed, and nobody is blamed who ended because another did, or was told to."""
    for rank, code in left.items():
        ends.note(run, rank, code=code, said=f"rank {rank} says", signal=None)
    found = ends.verdict(run, 3 if 2 in {**left, **codes} else 2, codes, came)
    assert isinstance(found, kind) and str(found).startswith(words)


def test_which_signal_it_was_is_known(run):
    """Where it came to one rank alone, the scheduler is asked by what that rank says."""
    ends.note(run, 0, code=130, said="stopped at step 3", signal=None)
    ends.note(run, 1, code=130, said="USR1 came: stopped at step 3", signal=10)
    assert ends.verdict(run, 2, {}).number == 10


def test_a_rank_that_is_gone_is_named_by_those_that_missed_it(run):
    """A launcher other than ours has the exit codes: a rank that left nothing was killed; one that says why is asked first."""
    ends.note(run, 0, pid=1)
    ends.note(run, 1, pid=1)
    assert "the connection to rank 1 was lost" in str(ends.settled(run, 2, {0: ALONE}, patience=0))
    ends.note(run, 1, code=2, said="lower batch_size")
    assert type(found := ends.settled(run, 2, {0: ALONE})) is UserError and str(found) == "lower batch_size"


@pytest.mark.parametrize(
    ("codes", "says", "words"),
    [
        ({}, 0, "the connection to rank 1 on node 1 (b) and 1 more was lost, which was killed, or its machine or network is gone; see"),
        ({1: ALONE, 2: ALONE}, 0, "rank 0 lost the connection to node 1 (b), node 2 (c): the network is gone; see"),
        ({1: ALONE, 2: ALONE}, 1, "rank 1 lost the connection to node 0 (a), node 2 (c): the network is gone; see"),
        ({1: ALONE, 2: 1}, 0, "rank 2 on node 2 (c) ended with code 1 (disk); see"),
        ({1: ALONE, 2: 1}, 2, "rank 2 ended with code 1 (disk); see"),
    ],
)
def test_what_is_gone_on_another_machine_is_named_with_it(codes, says, words, run, monkeypatch):
    """By the node that says it; its own ranks go without."""
    for rank, host in enumerate("abc"):
        monkeypatch.setenv("GROUP_RANK", str(rank))
        monkeypatch.setattr(ends.socket, "gethostname", lambda host=host: host)
        code = {0: ALONE, **codes}.get(rank)
        ends.note(run, rank, **({"pid": 1} if code is None else {"code": code, "said": "disk" if code == 1 else ""}))
    found = ends.verdict(run, 3, {}, node=says)
    assert isinstance(found, RankLost) and str(found).startswith(words)


def test_damaged_lines_are_none(run):
    """A machine that crashed may leave half a file."""
    ends.file_of(run, 0).write_text('{"code": 1')
    assert ends.records(run, range(2)) == {0: {}, 1: {}}


def test_a_full_disk_has_room_for_why(run, monkeypatch):
    """A line takes the place of the one at the start; where there is none, nobody fails by it."""

    def full(*_):
        raise OSError(28, "No space left on device")

    ends.note(run, 0, pid=1234567, longer="than what takes its place" * 2)
    monkeypatch.setattr(ends, "write_json", full)
    ends.note(run, 0, code=2, said="full")
    ends.note(run, 1, code=2, said="full")
    assert ends.records(run, range(2)) == {0: {"code": 2, "said": "full"}, 1: {}}


def test_what_to_type_can_be_typed(here):
    """A folder whose name has a space."""
    (here / "my run" / "logs").mkdir(parents=True)
    assert "resume=my run'" in str(ends.verdict(run := Run(here / "my run"), 1, {0: KILL})) and str(run) == "my run"
