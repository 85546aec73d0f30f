"""Protects the learning rate: it rises, falls and ends where each schedule says, by the share of the run that is used up."""

from __future__ import annotations

import math

import pytest
from conftest import TINY_IMAGES

from sslt.errors import UserError
from sslt.report.curves import MetricsCSV
from sslt.schedules import Constant, Cosine, Linear


@pytest.mark.parametrize("schedule", [Constant(0.2), Cosine(0.2, 0.0), Linear(0.2, 0.1)])
def test_warm_up_is_a_straight_line(schedule):
    """A half of the rate after a half of the warm-up, all of it at its end; the first step does move."""
    assert schedule(0.1) == pytest.approx(0.5) and schedule(0.2) == pytest.approx(1.0)
    assert schedule(0.0) == pytest.approx(1e-3)


def test_after_warm_up():
    """Known values half-way and at the end."""
    assert Constant(0.2)(1.0) == 1.0
    assert Cosine(0.2, 0.0)(0.6) == pytest.approx(0.5) and Cosine(0.0, 0.0)(0.25) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert Cosine(0.2, 0.1)(1.0) == pytest.approx(0.1)
    assert Linear(0.2, 0.1)(0.6) == pytest.approx(0.55) and Linear(0.1, 1 / 32)(1.0) == pytest.approx(1 / 32)
    assert Cosine(0.0, 0.0)(0.0) == 1.0 and Linear(1.0, 0.0)(0.5) == 0.5  # no warm-up, and nothing else


@pytest.mark.parametrize("warmup", [-0.1, 500])
def test_a_number_of_steps_is_no_warm_up(warmup):
    with pytest.raises(UserError, match="share of the run"):
        Cosine(warmup, 0.0)


@pytest.mark.parametrize("bound", ["trainer.max_epochs=2", "trainer.max_steps=10"])
def test_a_run_ends_annealed_whatever_bounds_it(bound, sslt, here):
    """Epochs and steps use up the same share; the last step's rate is next to nothing."""
    often = ["trainer.log_every_n_steps=1", "online_probe.every_n_epochs=0", "batch_size=256"]
    sslt("pretrain", "+task=simclr", *TINY_IMAGES, bound, *often, "optimizer.lr=0.01", "hydra.run.dir=run")
    rates = MetricsCSV.read(here / "run" / "metrics.csv")["lr"][1]
    assert len(rates) == 10 and max(rates) == pytest.approx(0.01, rel=0.05) and rates[-1] < 0.001
