"""Protects how fine-tuning begins and how long it lasts: at the converged linear probe, for enough steps, validated at its cost."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY_IMAGES
from safetensors.torch import load_file

from sslt.runs import Run
from sslt.stages.finetune import _val_every
from sslt.stages.task import Splits

PRE = ["pretrain", "+task=simclr", *TINY_IMAGES, "trainer.max_steps=3", "online_probe.every_n_epochs=0"]
TUNE = ["finetune", "+target=digits", "from=pre", "trainer.precision=32", "trainer.accelerator=cpu", "baseline=false"]
TUNE += ["late_fusion=false"]


@pytest.fixture
def pre(sslt, here):
    sslt(*PRE, "hydra.run.dir=pre")
    return here


def test_a_probe_is_what_evaluate_measures(sslt, pre):
    """The same rows, the same solution: no rate, no steps; augment=true trains a head on views instead."""
    sslt(*TUNE, "adaptation=probe", "labels_per_class=5", "hydra.run.dir=probe")
    measure = ["evaluate", "from=pre", "trainer.accelerator=cpu", "labels_per_class=5", "shots=[1]", "draws=1", "baseline=false"]
    sslt(*measure, "hydra.run.dir=ev")
    probe, linear = Run(pre / "probe").metrics, Run(pre / "ev").metrics
    assert probe["test/accuracy"] == pytest.approx(linear["linear/accuracy"], abs=0.003) and probe["train/steps"] == 0
    assert probe["val/accuracy"] == pytest.approx(linear["linear/val_accuracy"], abs=0.007)
    sslt("evaluate", "from=probe", "trainer.accelerator=cpu", "hydra.run.dir=again", "baseline=false")
    assert Run(pre / "again").metrics["test/accuracy"] == probe["test/accuracy"]
    sslt(*TUNE, "adaptation=probe", "adaptation.augment=true", "labels_per_class=5", "trainer.max_steps=2", "hydra.run.dir=views")
    assert Run(pre / "views").metrics["train/steps"] == 2


def test_full_fine_tuning_starts_from_the_probe(sslt, pre):
    """With a rate of nothing its head is the probe's, as sure as the views allow; head=fresh and a start from scratch have another."""
    small = ["labels_per_class=5", "trainer.max_steps=1", "optimizer=sgd", "optimizer.lr=1e-12"]
    sslt(*TUNE, "adaptation=probe", "labels_per_class=5", "hydra.run.dir=probe")
    sslt(*TUNE, *small, "hydra.run.dir=full")
    sslt(*TUNE, *small, "head=fresh", "hydra.run.dir=fresh")
    heads = {name: load_file(pre / name / "head" / "model.safetensors")["head.weight"] for name in ("probe", "full", "fresh")}
    factor = float(heads["full"].norm() / heads["probe"].norm())
    assert factor < 1 and math.log2(factor) == pytest.approx(round(math.log2(factor)), abs=1e-4)
    assert torch.allclose(heads["full"], factor * heads["probe"], atol=1e-6)
    assert Run(pre / "full").metrics["train/loss"] < math.log(10) + 0.1, "no worse than guessing"
    apart = heads["fresh"] / heads["fresh"].norm() - heads["probe"] / heads["probe"].norm()
    assert apart.norm() > 0.1
    sslt(*TUNE, *small, "head=random", code=2)


def test_few_labels_still_mean_enough_steps(sslt, pre):
    """Without a bound there are at least `default_min_steps`; a bound that is given stands."""
    few = ["labels_per_class=2", "default_max_epochs=1", "default_min_steps=7"]
    sslt(*TUNE, *few, "batch_size=10", "hydra.run.dir=floor")
    assert Run(pre / "floor").metrics["train/steps"] == 8  # four epochs of two batches
    sslt(*TUNE, *few, "batch_size=10", "trainer.max_epochs=2", "hydra.run.dir=bound")
    assert Run(pre / "bound").metrics["train/steps"] == 4


def test_validation_costs_less_than_training():
    """A large validation set waits for several short epochs; what is asked for stands."""
    splits = Splits([0] * 20, [0] * 145, [0])  # type: ignore[arg-type]
    asked = lambda n: SimpleNamespace(val_every_n_epochs=n)  # noqa: E731
    assert _val_every(asked(None), splits) == 3 and _val_every(asked(1), splits) == 1 and _val_every(asked(0), splits) == 0
    assert _val_every(asked(None), Splits([0] * 1000, [0] * 145, [0])) == 1  # type: ignore[arg-type]
    assert _val_every(asked(None), Splits([0] * 1000, None, [0])) == 0  # type: ignore[arg-type]
