"""Protects what a time is: every call counted once, none of the warm-up, in random order, side by side."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sslt.deploy import timing
from sslt.deploy.measured import operations
from sslt.deploy.variants import Variant


class Clock:
    """A clock that only calls move."""

    def __init__(self):
        self.now, self.calls = 100.0, []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, took):
        def of_round(i):
            self.now += 1000  # what is made before a call is nobody's time

            def call():
                self.calls.append((i, name))
                self.now += took(i)

            return call

        return of_round


def test_every_call_is_counted_by_its_own_time():
    clock = Clock()
    works = [clock.work("a", lambda i: 1 + i), clock.work("b", lambda i: 0.25)]
    a, b = timing.interleaved(works, 8, 3, 1e6, seed=0, clock=clock)
    assert a.tolist() == [1 + i for i in range(3, 11)] and b.tolist() == [0.25] * 8  # the three of the warm-up are left out
    rounds = [clock.calls[i : i + 2] for i in range(0, len(clock.calls), 2)]
    assert [{i for i, _ in each} for each in rounds] == [{i} for i in range(11)]
    assert {tuple(name for _, name in each) for each in rounds} == {("a", "b"), ("b", "a")}  # neither always comes first


def test_slow_calls_have_fewer_rounds():
    """Three, however long they take; of the warm-up a part."""
    clock = Clock()
    (slow,) = timing.interleaved([clock.work("a", lambda i: 50.0)], 100, 10, 60.0, seed=0, clock=clock)
    assert len(slow) == timing.LEAST and len(clock.calls) == 1 + timing.LEAST
    (brief,) = timing.interleaved([Clock().work("a", lambda i: 0.0)], 2, 0, 60.0, seed=0)
    assert len(brief) == 2


def test_percentiles_and_throughput():
    found = timing.summary(np.arange(1, 101) / 1000, 32)
    assert (found["p50_ms"], found["p95_ms"], found["p99_ms"]) == pytest.approx((50.5, 95.05, 99.01))
    assert found["per_second"] == pytest.approx(32 * 100 / 5.05)


def test_a_model_that_sleeps_takes_that_long():
    """10 ms asleep are 10 ms or more, whatever else the machine does."""
    sleeper = Variant("sleeper", None, None, None, answers=lambda batch: time.sleep(0.01))
    (seconds,) = timing.interleaved([lambda i: lambda: sleeper.predict({})], 5, 1, 10.0, seed=0)
    assert timing.summary(seconds, 1)["p50_ms"] >= 10 and timing.summary(seconds, 1)["per_second"] <= 100


def test_speed_is_of_the_same_rounds():
    """A slow minute of the machine is in both; what is not clearly faster is said to be none."""
    before = np.array([1.0, 1.0, 40.0, 1.0, 2.0] * 4)
    twice = timing.speed(before, before / 2)
    assert twice == pytest.approx((2, 2, 2)) and twice.words.startswith("faster")
    assert timing.speed(before, before).words.startswith("not faster on this machine")
    assert timing.speed(before, before * 3).ratio == pytest.approx(1 / 3)


def test_operations_are_those_of_the_products():
    """Counted by hand: a convolution, a linear map, a product of integers; half of that for each of two samples."""
    kernel, weight = torch.zeros(4, 3, 3, 3), torch.zeros(16, 32)

    def predict(batch):
        F.conv2d(batch["image"], kernel, padding=1)
        F.linear(batch["x"], weight)
        torch._int_mm(torch.zeros(24, 32, dtype=torch.int8), torch.zeros(32, 16, dtype=torch.int8))

    batch = {"image": torch.zeros(2, 3, 8, 8), "x": torch.zeros(2, 32)}
    by_hand = 2 * (2 * 8 * 8 * 4 * 3 * 9) + 2 * (2 * 32 * 16) + 2 * (24 * 32 * 16)
    assert operations(SimpleNamespace(answers=None, predict=predict), batch, 2) == by_hand // 2
