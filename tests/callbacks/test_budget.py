"""Protects how long a run lasts: by epochs, steps or seconds, whichever ends first, over interruptions; and what `max_time` may be."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sslt.callbacks import budget
from sslt.callbacks.budget import Budget, seconds
from sslt.errors import UserError


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """Seconds that pass when the test says so."""
    now = SimpleNamespace(t=1000.0)
    monkeypatch.setattr(budget.time, "monotonic", lambda: now.t)
    return now


def learner(epochs: float = 0.0, steps: int = 0) -> SimpleNamespace:
    return SimpleNamespace(epoch_position=epochs, global_step=steps, interrupted=False, finish=lambda: None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, None), (90, 90), (1.5, 1.5), ("90", 90), ("02:30", 150), ("01:02:03", 3723), ("1:00:00:01", 86401), ("00:00:0.5", 0.5)],
)
def test_seconds(text, expected):
    """Plain numbers as they are, and days, hours, minutes and seconds between colons."""
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["soon", "1:2:3:4:5", "1::2", ""])
def test_what_no_time_is(text):
    with pytest.raises(UserError, match="HH:MM:SS"):
        seconds(text)


def test_progress_is_the_largest_share(clock):
    """Of epochs, steps and seconds, those that are bounded; never more than all."""
    b = Budget(10, 100, 50.0)
    b.on_train_start(None, None)
    clock.t += 20
    assert b.progress(learner(1, 5)) == pytest.approx(0.4)
    assert b.progress(learner(5, 5)) == 0.5
    assert b.progress(learner(1, 60)) == 0.6
    assert b.share(learner(1, 5), 45.0) == 0.9 and b.share(learner(20, 500), 500.0) == 1.0
    assert Budget(None, None, None).progress(learner(3, 3)) == 0.0
    assert Budget(None, 8, None).progress(learner(3, 2)) == 0.25 and Budget(4, None, None).progress(learner(3, 2)) == 0.75


def test_time_ends_a_run_and_not_before(clock):
    """By the time as of the last progress, so that all ranks stop at the same step."""
    b, trainer = Budget(None, None, 10.0), SimpleNamespace(should_stop=False)
    b.on_train_start(trainer, None)
    for passed, stops in ((9.9, False), (10.0, True)):
        clock.t = 1000 + passed
        b.on_train_batch_end(trainer, SimpleNamespace(batches_seen=1, steps_per_epoch=10))
        assert not trainer.should_stop
        b.progress(learner())
        b.on_train_batch_end(trainer, SimpleNamespace(batches_seen=1, steps_per_epoch=10))
        assert trainer.should_stop is stops
    unbounded, trainer = Budget(1, None, None), SimpleNamespace(should_stop=False)
    unbounded.on_train_start(trainer, None)
    clock.t += 1e9
    unbounded.progress(learner())
    unbounded.on_train_batch_end(trainer, SimpleNamespace(batches_seen=1, steps_per_epoch=10))
    assert not trainer.should_stop


def test_the_clock_goes_on_where_it_stopped(clock):
    """Seconds of earlier parts count, those between the parts and after the end do not."""
    b = Budget(None, None, 100.0)
    assert b.elapsed == 0
    clock.t += 5
    b.on_train_start(None, None)
    clock.t += 30
    state = b.state_dict()
    assert b.elapsed == 30 and state == {"elapsed": 30.0}
    b.on_train_end(None, learner())
    clock.t += 500
    assert b.elapsed == 30
    resumed = Budget(None, None, 100.0)
    resumed.load_state_dict(state)
    resumed.on_train_start(None, None)
    clock.t += 10
    assert resumed.elapsed == 40 and resumed.progress(learner()) == pytest.approx(0.4)
