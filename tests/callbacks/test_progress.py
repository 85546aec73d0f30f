"""Protects the progress line: no time left is told before it can be known, and a budget of few steps is warned of."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from conftest import TINY_IMAGES

from sslt.callbacks.budget import Budget
from sslt.callbacks.progress import Progress
from sslt.learner import Learner


def test_the_first_steps_say_nothing_of_the_time_left(monkeypatch):
    """A first step of 60 s (it compiles), then 1 s each: at step 20 of 100, 80 s are left, and nothing is said before 8 steps."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    budget = Budget(None, 100, None)
    curves = SimpleNamespace(shown={}, throughput=0.0, busy=0.0, counted=0)
    bar = Progress(budget, curves, "x")  # type: ignore[arg-type]
    learner = SimpleNamespace(global_step=0, batches_seen=0, epoch_position=0.0, last={"loss": 1.0}, optimizer_steps=0)
    trainer = SimpleNamespace(is_global_zero=True)
    budget.on_train_start(trainer, learner)  # type: ignore[arg-type]
    bar.on_train_start(trainer, learner)  # type: ignore[arg-type]
    left = {}
    for step in range(1, 21):
        now[0] += 60 if step == 1 else 1
        learner.global_step = learner.batches_seen = step
        bar.on_train_batch_end(trainer, learner)  # type: ignore[arg-type]
        left[step] = bar.left(learner)
    assert all(left[step] is None for step in range(1, 8))
    assert left[8] == pytest.approx(92) and left[20] == pytest.approx(80)


def test_a_budget_of_few_steps_is_warned_of(sslt, monkeypatch, capsys):
    """Once, with how many there will be."""
    step = Learner.training_step

    def slow(self, batch, batch_idx):
        time.sleep(0.2)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Learner, "training_step", slow)
    args = ["+task=simclr", *TINY_IMAGES, "batch_size=32", "online_probe.every_n_epochs=0"]
    sslt("pretrain", *args, "trainer.max_time=2")
    warned = capsys.readouterr().err
    assert warned.count("too few to learn much from") == 1 and "max_image_size=" in warned
    sslt("pretrain", *args, "trainer.max_time=60", "trainer.max_steps=6")  # it is the steps that end it
    assert "too few" not in capsys.readouterr().err
