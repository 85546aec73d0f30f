"""Protects what the learner passes on: each group's own rate, the run's progress, a rank's own views, every batch's weight over ranks."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

sys.path.append(str(Path(__file__).parent))  # a rank knows nothing of pytest's paths
import two_processes
from test_distributed import PerSample, Ragged, Units, flat, gradients, make_learner, train_one_step
from vector_encoder import VectorEncoder

from sslt.adaptation.base import Full
from sslt.encoders.base import Features
from sslt.lanes import Lanes


class Two(VectorEncoder):
    """Two linear blocks after a linear stem."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)), 4)

    def forward(self, inputs):
        tokens = self.layer(inputs["x"])
        return Features(tokens.mean(1), tokens)

    def block_names(self):
        return ["layer.1", "layer.2"]


def test_each_group_moves_at_its_own_rate():
    """Layer-wise decay reaches the weights: under SGD a block's step is rate · decay^(blocks above it and the head) · gradient."""
    learner, _ = make_learner()
    learner.encoder, learner.adaptation = Two(), Full(0.5)
    learner.adaptation.prepare(learner.encoder)
    before = copy.deepcopy(learner.encoder)
    Units()(before, learner.streams["main"].at(0)).value.backward()
    train_one_step(learner)
    for name, p in before.named_parameters():
        scale = 0.5 ** (3 - int(name.split(".")[1]))
        moved = learner.encoder.get_parameter(name) - p
        assert torch.allclose(moved, -0.1 * scale * p.grad, rtol=1e-4, atol=1e-7), name


class Listens(Units):
    """Notes the progress that it is told in each step and after it."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[float] = []

    def forward(self, encoder, batch):
        self.told.append(self.progress)
        return super().forward(encoder, batch)

    def after_step(self, encoder):
        self.told.append(-self.progress)


def test_objectives_adaptation_terms_and_rate_are_told_the_progress(monkeypatch):
    """Of every step, before it: warm-ups, freezes, a teacher's momentum, what is unfrozen and a term's weight live by it."""
    learner, _ = make_learner(0.5, objective=Listens())
    advanced: list[tuple[float, float]] = []
    weights: list[float] = []
    learner.progress = lambda learner: learner.batches_seen / 8
    learner.schedule = lambda progress: 1 - progress
    learner.terms["side"].weight = lambda progress: weights.append(progress) or 0.5
    monkeypatch.setattr(learner.adaptation, "advance", lambda encoder, epoch, progress: advanced.append((epoch, progress)))
    rates: list[float] = []
    learner.encoder.register_forward_pre_hook(lambda *_: rates.append(learner.trainer.optimizers[0].param_groups[0]["lr"]))
    train_one_step(learner, steps=4)
    expected = [0.0, 0.125, 0.25, 0.375]
    assert learner.objectives["main"].told == [x for p in expected for x in (p, -p)]
    assert weights == expected and [p for _, p in advanced] == expected
    assert [e for e, _ in advanced] == [0.0, 0.5, 1.0, 1.5]  # two batches are an epoch
    assert rates[::2] == pytest.approx([0.1 * (1 - p) for p in expected])


def test_a_penalty_is_added_once_whatever_is_accumulated(monkeypatch):
    """The gradient of loss and penalty, with one batch to a step, with two, and with two where three were asked for."""
    for accumulate in (1, 2, 3):  # an epoch has two batches
        learner, gradient = make_learner()
        monkeypatch.setattr(learner.adaptation, "penalty", lambda encoder: 3 * encoder.layer.weight.square().sum())
        weight = learner.encoder.layer.weight.detach().clone()
        if accumulate == 1:
            twin = copy.deepcopy(learner.encoder)
            Units()(twin, learner.streams["main"].at(0)).value.backward()
            gradient = flat(gradients(twin))
        change = train_one_step(learner, accumulate_grad_batches=accumulate)
        expected = gradient + flat({"layer.weight": 6 * weight, "layer.bias": torch.zeros(4)})
        assert torch.allclose(change, -0.1 * expected, rtol=1e-4, atol=1e-6)
        assert float(learner.last["penalty"]) == pytest.approx(3 * float(weight.square().sum()))


def test_what_is_recorded_of_a_step():
    """The weighed sum of the terms, and each term's own value under its name."""
    learner, _ = make_learner(0.5)
    encoder, batch = copy.deepcopy(learner.encoder), learner.streams["main"].at(0)
    main, side = (float(objective(encoder, batch).value) for objective in (Units(), PerSample()))
    train_one_step(learner)
    said = {name: pytest.approx(value) for name, value in {"main/loss": main, "side/loss": side, "loss": main + 0.5 * side}.items()}
    assert {name: float(learner.last[name]) for name in said} == said
    assert not any(value.requires_grad for value in learner.last.values())


def test_the_first_dozen_that_the_encoder_saw_is_kept():
    """Of the first step alone: of each view, or of inputs that go in as they are; nothing of batches that hold neither."""
    views, inputs = torch.randn(2, 20, 3), torch.randn(20, 3)
    for made, kept in (({"views": {"x": views}}, views[:, :12]), ({"inputs": {"x": inputs}}, inputs[:12]), ({"features": inputs}, None)):
        learner, _ = make_learner()
        learner.trainer = SimpleNamespace(optimizers=[], accumulate_grad_batches=1)
        learner.streams["main"].views = lambda batch, encoder: batch
        learner.on_after_batch_transfer([{"main": made}], 0)
        learner.on_after_batch_transfer([{"main": {"views": {"x": views + 1}}}], 0)
        shown = learner.first_views["main"]
        assert shown is None if kept is None else torch.equal(shown["x"], kept)


class Draws(Units):
    """Draws the samples it is given."""

    def draw(self, encoder, batch):
        assert not encoder.training and not self.training
        return {"made": batch["x"] + torch.rand(())}


def test_pictures_are_of_a_dozen_samples(monkeypatch):
    """The first ones of the stream, all where there are fewer, in eval mode; named by the term where there are several."""
    learner, _ = make_learner(objective=Draws())
    samples = learner.streams["main"].samples
    assert learner.pictures()["made"].shape[0] == 11 and learner.encoder.training
    assert torch.equal(learner.pictures()["made"], learner.pictures()["made"])
    monkeypatch.setattr(samples, "x", torch.randn(40, 6, 4))
    monkeypatch.setattr(samples, "mask", torch.ones(40, 6, dtype=torch.bool))
    with monkeypatch.context() as patch:
        patch.setattr(Ragged, "__len__", lambda self: 40)
        assert learner.pictures()["made"].shape[0] == 12
    assert make_learner(0.5, objective=Draws())[0].pictures().keys() == {"main_made"} and make_learner()[0].pictures() == {}


# -------------------------------------------------------------------- two real ranks
class Shaken(nn.Module):
    """Views: the samples with noise."""

    def forward(self, batch, encoder):
        return {**batch, "inputs": {"x": batch["x"] + torch.randn(batch["x"].shape)}}


def test_rows_that_a_stream_holds_together_are_of_one_lane():
    """Two lanes of one rank, samples by twos: the views of the first and the third two are those of the first of two ranks."""
    made = []
    for held, rows in ((Lanes(2), [0, 1, 2, 3, 4, 5]), (Lanes(2, 0, 2), [0, 1, 4, 5]), (Lanes(2, 1, 2), [2, 3])):
        learner, _ = make_learner()
        learner.lanes, learner.streams["main"].views, learner.streams["main"].together = held, Shaken(), 2
        made.append(learner._make({"main": {**Ragged().batch(rows), "index": torch.tensor(rows)}}, 3)["main"]["inputs"]["x"])
    assert torch.equal(made[0][[0, 1, 4, 5]], made[1]) and torch.equal(made[0][[2, 3]], made[2])


def _on_rank(rank: int) -> dict[str, Any]:
    return {check.__name__: check(rank) for check in (_views, _unequal)}


def _views(rank: int) -> dict[str, Any]:
    """What this rank's learner makes of the same five samples in steps 3, 4 and 3 again, and a number drawn by the loss of step 3."""
    learner, _ = make_learner()
    learner.streams["main"].views = Shaken()
    batch = {"main": Ragged().batch(list(range(5)))}
    made = [learner._make(batch, step)["main"]["inputs"]["x"] for step in (3, 4, 3)]
    learner.lanes.begin(0, 3, 1)
    return {"views": made, "noise": [x - batch["main"]["x"] for x in made], "loss": torch.randn(3)}


def _unequal(rank: int) -> dict[str, torch.Tensor]:
    """The change of the weights by one step of a real Trainer under DDP, on this rank's batches of 3 and 3 or 2 samples."""
    import pytorch_lightning as pl

    from sslt.data.streams.streams import Stream

    out = {}
    for weight in (0.0, 0.7):
        learner, gradient = make_learner(weight)
        learner.streams["main"] = stream = Stream(Ragged(), 3, seed=0, rank=rank, world=2, drop_last=False)
        assert [len(stream.index_at(step)) for step in (0, 1)] == [3, 3 - rank]
        before = flat({n: p.detach().clone() for n, p in learner.encoder.named_parameters()})
        trainer = pl.Trainer(
            max_steps=1, accelerator="cpu", devices=2, strategy="ddp", accumulate_grad_batches=2, use_distributed_sampler=False,
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(learner)
        out[f"{weight}"] = flat({n: p.detach() for n, p in learner.encoder.named_parameters()}) - before
        out[f"{weight} expected"] = -0.1 * gradient
    return out


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    return two_processes.run(_on_rank, tmp_path_factory.mktemp("ranks"))


def test_each_rank_draws_views_of_its_own(ranks):
    """Noise is another on another rank and in another step, in views and in losses, and the same in the same step again."""
    first, second = (out["_views"] for out in ranks)
    for out in (first, second):
        assert torch.equal(out["views"][0], out["views"][2]) and not torch.allclose(out["noise"][0], out["noise"][1], atol=0.1)
    assert not torch.allclose(first["noise"][0], second["noise"][0], atol=0.1)
    assert not torch.allclose(first["loss"], second["loss"], atol=0.1)


@pytest.mark.parametrize("weight", ["0.0", "0.7"])
def test_a_step_of_real_ranks_with_unequal_batches_is_that_of_the_joined_batch(ranks, weight):
    """6 and 5 samples with 1 to 6 tokens each, accumulated over two batches: DDP's step is that of the mean over all of them."""
    for out in ranks:
        assert torch.allclose(out["_unequal"][weight], out["_unequal"][f"{weight} expected"], rtol=1e-4, atol=1e-6)
