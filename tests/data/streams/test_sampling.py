"""Protects the mixing of streams: quotas are as stated, every stream goes on where it was, and an epoch is one."""

from __future__ import annotations

import pytest

from sslt.data.streams.sampling import Proportional, RoundRobin, Together
from sslt.errors import UserError

LENGTHS = {"task": 8, "large": 32}


def walk(sampling, steps, seed=0):
    return [sampling.at(g, LENGTHS, seed) for g in range(steps)]


def test_together_gives_all():
    """Every stream in every step, the first one's length the epoch's."""
    assert Together().epoch(LENGTHS) == 8
    assert walk(Together(), 9)[8] == {"task": 8, "large": 8}


@pytest.mark.parametrize("sampling", [RoundRobin(), Proportional(1.0), Proportional(2.0)])
def test_each_stream_goes_through_its_steps_in_order(sampling):
    """One stream a step; its own steps count up without a gap, over epochs too; the same at any step asked out of order."""
    epoch = sampling.epoch(LENGTHS)
    seen = walk(sampling, 3 * epoch)
    for name in LENGTHS:
        own = [s[name] for s in seen if name in s]
        assert own == list(range(len(own)))
    assert all(len(s) == 1 for s in seen)
    for g in (2 * epoch + 3, 5, epoch):
        assert sampling.at(g, LENGTHS, 0) == seen[g]


def test_round_robin_takes_turns():
    """Task, large, task, …; an epoch is one pass of the task's stream."""
    sampling = RoundRobin()
    assert sampling.epoch(LENGTHS) == 16
    assert [next(iter(s)) for s in walk(sampling, 4)] == ["task", "large", "task", "large"]


@pytest.mark.parametrize(("temperature", "quotas"), [(1.0, (8, 32)), (2.0, (13, 27)), (1e9, (20, 20))])
def test_quotas_follow_size_to_the_power_of_one_over_t(temperature, quotas):
    """1 is by size, large T is even: 8^(1/2) : 32^(1/2) is 1 : 2 of 40."""
    sampling = Proportional(temperature)
    assert sampling.epoch(LENGTHS) == 40
    seen = walk(sampling, 40)
    assert (sum("task" in s for s in seen), sum("large" in s for s in seen)) == quotas
    assert str(quotas[0]) in sampling.describe(LENGTHS)


def test_the_order_depends_on_seed_and_epoch():
    """Two epochs, and two seeds, are shuffled differently."""
    sampling = Proportional(1.0)
    first, second = walk(sampling, 80)[:40], walk(sampling, 80)[40:]
    names = lambda steps: [next(iter(s)) for s in steps]  # noqa: E731
    assert names(first) != names(second) and names(first) != names(walk(sampling, 40, seed=1))


def test_a_temperature_must_be_positive():
    """One line."""
    with pytest.raises(UserError, match=r"sampling\.temperature=0"):
        Proportional(0)
