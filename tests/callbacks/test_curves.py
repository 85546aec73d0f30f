"""Protects what is recorded of a run: when, at which step, by whom, and the samples a second."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sslt.callbacks import curves, progress
from sslt.callbacks.budget import Budget
from sslt.callbacks.curves import Clock, Curves
from sslt.callbacks.progress import Progress
from sslt.report.curves import MetricsCSV
from sslt.runs import Run


class Logger:
    def __init__(self) -> None:
        self.said: list[tuple[dict, int]] = []

    def log_metrics(self, values, step):
        self.said.append((values, step))


def trainer() -> Any:
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.25}, {"lr": 7.0}])
    return SimpleNamespace(callback_metrics={}, loggers=[Logger()], optimizers=[optimizer], is_global_zero=True)


def learner(seen: int = 0, every: int = 3) -> Any:
    last = {"loss": torch.tensor(2.5)}
    return SimpleNamespace(
        batches_seen=seen, epoch_position=seen / 8, log_every=every, last=last, device=torch.device("cpu"), global_step=seen,
        scalars=lambda: {k: float(v) for k, v in last.items()},
    )  # fmt: skip


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path)


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    now = SimpleNamespace(t=0.0)
    monkeypatch.setattr(curves.time, "perf_counter", lambda: now.t)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now.t)
    return now


def test_the_first_step_and_every_third(run):
    """Loss and rate go to the file, the loggers and Lightning, each at its step; the steps between are not written."""
    t, c = trainer(), Curves(run, 16)
    for seen in range(1, 8):
        c.on_train_batch_end(t, learner(seen), None)
    found = MetricsCSV.read(run / "metrics.csv")
    assert found == {"loss": ([1, 3, 6], [2.5] * 3), "lr": ([1, 3, 6], [0.25] * 3)}
    assert t.loggers[0].said == [({"loss": 2.5, "lr": 0.25, "epoch": n / 8}, n) for n in (1, 3, 6)]
    assert float(t.callback_metrics["loss"]) == 2.5 and c.shown == {"loss": 2.5, "lr": 0.25}


def test_only_the_first_rank_writes(run, monkeypatch):
    """Others keep the numbers for themselves."""
    monkeypatch.setattr(curves.distributed, "rank", lambda: 1)
    t, c = trainer(), Curves(run, 16)
    c.record(t, learner(1), {"x": 1.0})
    assert not (run / "metrics.csv").exists() and not t.loggers[0].said and c.shown == {"x": 1.0}


def test_a_resumed_run_drops_what_it_repeats(run):
    """Lines after the step it goes on from."""
    c = Curves(run, 16)
    for seen in (1, 2, 3, 4):
        c.record(trainer(), learner(seen), {"x": float(seen)})
    Curves(run, 16).on_train_start(trainer(), learner(2))
    assert MetricsCSV.read(run / "metrics.csv") == {"x": ([1, 2], [1.0, 2.0])}


def test_samples_a_second(run, clock):
    """Of steps alone, without the first two and without what callbacks take between them."""
    t, c = trainer(), Curves(run, 16)
    after = Clock(c)
    c.on_train_start(t, learner())
    assert c.throughput == 0
    for seen, seconds in enumerate((100.0, 50.0, 2.0, 4.0, 2.0), 1):
        clock.t += seconds
        c.on_train_batch_end(t, learner(seen), None)
        clock.t += 1000  # a probe
        after.on_train_batch_end()
    assert c.throughput == pytest.approx(3 * 16 / 8)
    clock.t += 1000
    after.on_train_epoch_end()
    clock.t += 8
    c.on_train_batch_end(t, learner(6), None)
    assert c.throughput == pytest.approx(4 * 16 / 16)


def test_a_line_now_and_then(run, clock, capsys):
    """Share, epoch, step, loss, probes and speed (`test_progress.py` has the time left); none before its time, none by other ranks."""
    c, b = Curves(run, 16), Budget(None, 8, None)
    line = Progress(b, c, "pretrain")
    c.shown = {"online/knn_accuracy": 0.5, "val/accuracy": 0.25}
    c.busy, c.counted = 4.0, 4
    clock.t = 100.0
    line.on_train_start(trainer(), learner())
    line.on_train_batch_end(trainer(), learner(2), None)
    first = capsys.readouterr().err
    assert first.startswith("pretrain  25%  ")
    for part in ("epoch 0.2", "step 2", "loss 2.500", "kNN 50.0%", "val 25.0%", "16 samples/s"):
        assert part in first, part
    clock.t += 19
    line.on_train_batch_end(trainer(), learner(3), None)
    assert capsys.readouterr().err == ""
    clock.t += 1
    line.on_train_batch_end(trainer(), learner(4), None)
    assert "pretrain  50%" in capsys.readouterr().err
    other = trainer()
    other.is_global_zero = False
    clock.t += 100
    line.on_train_batch_end(other, learner(5), None)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("seconds", "said"), [(0, "0:00"), (59.9, "0:59"), (61, "1:01"), (3600, "1:00:00"), (7325, "2:02:05")])
def test_time_in_words(seconds, said):
    assert progress._clock(seconds) == said
