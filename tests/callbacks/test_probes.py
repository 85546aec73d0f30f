"""Protects numbers while training: when they are measured, on what, which is the best, and that a warning is said once."""

from __future__ import annotations

import contextlib
import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from vector_encoder import VectorEncoder

from sslt.callbacks import episodes, probes
from sslt.callbacks.episodes import EpisodeValidation
from sslt.callbacks.probes import OnlineProbe, Validation, _epoch_due, _subset
from sslt.data.answers import Class
from sslt.data.base import Samples


class Points(Samples):
    """Vectors [N, 4] around one point a class."""

    fingerprint = "points"

    def __init__(self, n: int, seed: int = 0, labelled: bool = True):
        g = torch.Generator().manual_seed(seed)
        y = torch.arange(n) % 2
        self.x = torch.randn(n, 4, generator=g) + 6 * y[:, None] * torch.tensor([1.0, 0, 0, 0])
        self.answers = Class(y.numpy(), {"classes": ["a", "b"]}) if labelled else None

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, index):
        return {"x": self.x[torch.as_tensor(index)]}

    def subset(self, index):
        part = Points(0)
        part.x, part.answers = self.x[torch.as_tensor(index)], None if self.answers is None else self.answers.take(index)
        return part


class Kept:
    """Stands for `Curves`."""

    def __init__(self) -> None:
        self.said: list[tuple[int, dict]] = []

    def record(self, trainer, learner, values):
        self.said.append((learner.batches_seen, values))


IDENTITY = VectorEncoder(nn.Identity(), 4)


def learner(seen: int, steps: int = 5, **more: Any) -> Any:
    encoder = VectorEncoder(nn.Identity(), 4)
    main = SimpleNamespace(advice="more", trouble=lambda: None)
    return SimpleNamespace(
        batches_seen=seen, steps_per_epoch=steps, epoch_position=seen / steps, interrupted=False, encoder=encoder,
        measured=encoder, device=torch.device("cpu"), objectives={"main": main}, as_saved=contextlib.nullcontext, **more,
    )  # fmt: skip


def test_when_an_epoch_is_due():
    """At the end of every second epoch of 5 steps, never with 0."""
    assert [n for n in range(1, 31) if _epoch_due(learner(n), 2)] == [10, 20, 30]
    assert [n for n in range(1, 11) if _epoch_due(learner(n), 1)] == [5, 10]
    assert not any(_epoch_due(learner(n), 0) for n in range(11))


def test_a_subset_is_stratified_where_there_are_labels():
    """So many, the same each time; all where there are no more."""
    points = Points(60)
    assert _subset(points, 60) is points
    part = _subset(points, 10)
    assert len(part) == 10 and np.bincount(part.labels).tolist() == [5, 5] and torch.equal(part.x, _subset(points, 10).x)
    bare = _subset(Points(60, labelled=False), 10)
    assert len(bare) == 10 and len(bare.x.unique(dim=0)) == 10
    rows = [int((points.x == row).all(1).nonzero()) for row in bare.x]
    assert rows == sorted(rows)


def test_online_probe():
    """Features of the bank, spectrum and kNN of other samples, at the start, after due epochs and at an end within an epoch."""
    kept = Kept()
    probe = OnlineProbe(kept, IDENTITY, Points(60), Points(60, seed=1), 2, 40, 8)
    assert (len(probe.bank), len(probe.queries)) == (40, 20)
    probe.on_train_start(None, learner(0))
    assert torch.allclose(probe.features, probe.bank.x, atol=0.05)
    for n in range(1, 13):
        if n % 5 == 0:
            probe.on_train_epoch_end(None, learner(n))
    probe.on_train_end(None, learner(12))
    assert [step for step, _ in kept.said] == [0, 10, 12]
    assert kept.said[0][1].keys() == {"online/rankme", "online/std", "online/knn_accuracy"} and probe.last == kept.said[-1][1]
    assert kept.said[0][1]["online/knn_accuracy"] > 0.9
    for seen, interrupted in ((12, False), (13, True)):  # measured at this step already, or stopped
        stopped = learner(seen)
        stopped.interrupted = interrupted
        probe.on_train_end(None, stopped)
    assert len(kept.said) == 3
    bare = OnlineProbe(kept, IDENTITY, Points(60, labelled=False), None, 1, 40, 8)
    bare.measure(None, learner(0))
    assert kept.said[-1][1].keys() == {"online/rankme", "online/std"}


def test_a_probe_watches_what_the_time_allows(caplog):
    """All that was asked for, silently, where a run is long; the fewest samples, with a line, where it is short."""
    for seconds, sizes, lines in ((1e9, [200, 100], 0), (None, [200, 100], 0), (1e-9, [64, 64], 1)):
        caplog.clear()
        probe = OnlineProbe(Kept(), IDENTITY, Points(200), Points(200, seed=1), 1, 200, 8, seconds)
        with caplog.at_level(logging.INFO, "sslt"):
            probe.on_train_start(None, learner(0))
        assert [len(probe.bank), len(probe.queries)] == sizes
        assert len(caplog.messages) == lines and all("the probes watch 64 samples" in m for m in caplog.messages)


def test_probes_take_a_small_share_of_a_run_of_short_epochs(monkeypatch):
    """A probe of 8 seconds, epochs of one: two are nothing to speak of, the next comes when five times as much has passed."""
    clock = [0.0]
    monkeypatch.setattr(probes.time, "monotonic", lambda: clock[0])
    curves = Kept()
    probe = OnlineProbe(curves, IDENTITY, Points(20), Points(10, 1), 1, 20, 16)
    encode = probe._encode
    slow = lambda *args: (clock.__setitem__(0, clock[0] + 4), encode(*args))[1]  # noqa: E731
    monkeypatch.setattr(probe, "_encode", slow)  # bank and queries
    probe.on_train_start(None, learner(0))
    for epoch in range(1, 150):
        clock[0] += 1
        probe.on_train_epoch_end(None, learner(5 * epoch))
    assert [step // 5 for step, _ in curves.said] == [0, 1, 64, 96, 128]


def test_collapse_and_trouble_are_said_once(caplog):
    """Each by itself, in a resumed run too; an older checkpoint only knows whether features were warned of."""
    probe = OnlineProbe(Kept(), IDENTITY, Points(60), None, 1, 40, 8)
    trouble = SimpleNamespace(trouble=lambda: "no prototype", advice="more")
    with caplog.at_level(logging.WARNING, "sslt"):
        probe.on_train_start(None, learner(0))
        assert not caplog.messages
        flat = learner(5)
        flat.encoder.layer = nn.Linear(4, 4)
        nn.init.zeros_(flat.encoder.layer.weight)
        flat.objectives = {"main": trouble}
        probe.encoder = flat.encoder
        probe.measure(None, flat)
        assert len(caplog.messages) == 2 and all(m.startswith("step 5: ") for m in caplog.messages)
        probe.measure(None, flat)
        resumed = OnlineProbe(Kept(), flat.encoder, Points(60), None, 1, 40, 8)
        resumed.load_state_dict(probe.state_dict())
        assert resumed.last == probe.last
        resumed.on_train_start(None, flat)
        resumed.measure(None, flat)
        assert len(caplog.messages) == 2
    for warned, expected in ((True, {"features"}), (False, set()), (["main"], {"main"})):
        resumed.load_state_dict({**probe.state_dict(), "warned": warned})
        assert resumed.warned == expected


def test_validation_keeps_the_best():
    """The epoch with the highest `key`, the first of equal ones; other numbers keep their own highest; when it is due, and at the end."""
    kept, keep, values = Kept(), [], iter([0.2, 0.5, 0.5, 0.4])
    validation = Validation(
        kept, lambda form: {"val/accuracy": next(values), "x": -len(kept.said)}, 1, "val/accuracy", lambda: keep.append(1)
    )
    for n in (4, 5, 10, 15):
        validation.on_train_epoch_end(None, learner(n))
    assert [step for step, _ in kept.said] == [5, 10, 15] and len(keep) == 2 and validation.best_epoch == 2.0
    validation.on_train_end(None, learner(15))
    assert len(kept.said) == 3
    validation.on_train_end(None, learner(18))
    assert len(kept.said) == 4 and len(keep) == 2 and validation.highest == {"val/accuracy": 0.5, "x": 0}
    stopped = learner(19)
    stopped.interrupted = True
    validation.on_train_end(None, stopped)
    resumed = Validation(kept, lambda form: {"val/accuracy": 0.45}, 1, "val/accuracy", lambda: keep.append(1))
    resumed.load_state_dict(validation.state_dict())
    resumed.on_train_epoch_end(None, learner(20))
    assert len(keep) == 2 and resumed.best_epoch == 2.0
    none = Validation(kept, lambda form: {"val/accuracy": 0.9}, 1, None, lambda: keep.append(1))
    none.on_train_epoch_end(None, learner(5))
    assert len(keep) == 2 and none.best_epoch is None


@pytest.fixture
def accuracies(monkeypatch) -> list[float]:
    """What the next measurements find."""
    values: list[float] = []
    monkeypatch.setattr(episodes, "episode_accuracies", lambda *args, **given: np.array([values.pop(0)] * 2))
    return values


def test_validation_on_episodes(accuracies):
    """Every 4 steps when a whole optimizer step is done, and at the end where it was not just measured; the best is kept."""
    accuracies += [0.5, 0.4, 0.6]
    kept, best = Kept(), []
    given = SimpleNamespace(accumulate_grad_batches=1)
    validation = EpisodeValidation(kept, None, None, None, 1, 4, 8, lambda: best.append(1))
    for n in range(1, 10):
        validation.on_train_batch_end(given, learner(n), None)
    assert [step for step, _ in kept.said] == [4, 8] and len(best) == 1 and validation.best == 0.5
    validation.on_train_end(given, learner(8))
    stopped = learner(9)
    stopped.interrupted = True
    validation.on_train_end(given, stopped)
    assert len(kept.said) == 2
    validation.on_train_end(given, learner(9))
    assert validation.best == 0.6 and len(best) == 2 and validation.last == {"val/accuracy": 0.6}
    resumed = EpisodeValidation(kept, None, None, None, 1, 4, 8)
    resumed.load_state_dict(validation.state_dict())
    resumed.on_train_end(given, learner(9))
    assert len(kept.said) == 3 and resumed.best == 0.6
    accuracies += [0.1]
    halves = EpisodeValidation(kept, None, None, None, 1, 4, 8)
    for n in (4, 8, 12):  # steps are of 3 batches, and begin anew with an epoch of 7: they end at 3, 6, 7, 10, 13, 14
        halves.on_train_batch_end(SimpleNamespace(accumulate_grad_batches=3), learner(n, 7), None)
    assert [step for step, _ in kept.said][3:] == []
    halves.on_train_batch_end(SimpleNamespace(accumulate_grad_batches=3), learner(20, 7), None)
    assert [step for step, _ in kept.said][3:] == [20]
    never = EpisodeValidation(kept, None, None, None, 1, 0, 8)
    never.on_train_batch_end(given, learner(4), None)
    never.on_train_end(given, learner(9))
    assert len(kept.said) == 4
