"""Protects the mixture of weights before and after fine-tuning: which one is taken, and that training cannot end below the probe."""

from __future__ import annotations

import pytest
from conftest import TINY_IMAGES
from torch import nn

from sslt.runs import Run
from sslt.stages.between import Between

PRE = ["pretrain", "+task=simclr", *TINY_IMAGES, "batch_size=256", "trainer.max_steps=3", "online_probe.every_n_epochs=0"]
TUNE = ["finetune", "+target=digits", "from=pre", "trainer.precision=32", "trainer.accelerator=cpu", "baseline=false", "labels_per_class=5"]
TUNE += ["late_fusion=false"]


def moved() -> tuple[nn.BatchNorm1d, Between]:
    """A module that was at 0, and is at 1 now, after five batches."""
    module = nn.BatchNorm1d(1)
    nn.init.zeros_(module.weight), nn.init.zeros_(module.running_mean)
    between = Between({"m": module})
    nn.init.ones_(module.weight), nn.init.ones_(module.running_mean)
    module.num_batches_tracked.fill_(5)
    return module, between


@pytest.mark.parametrize("wanted", [0.0, 0.25, 0.75, 1.0])
def test_the_best_point_on_the_way_is_taken(wanted):
    """Weights and running statistics lie there; counts are those of the end."""
    module, between = moved()
    assert between.choose([0.0, 0.25, 0.5, 0.75], lambda: -abs(float(module.weight) - wanted)) == wanted
    assert float(module.weight) == float(module.running_mean) == wanted and int(module.num_batches_tracked) == 5


def test_of_equal_points_the_one_nearest_to_the_end_is_taken():
    module, between = moved()
    assert between.choose([0.0, 0.5], lambda: 1.0) == 1.0 and float(module.weight) == 1.0
    assert between.choose([0.0, 0.25, 0.5], lambda: float(module.weight) <= 0.5) == 0.5 and float(module.weight) == 0.5


def test_fine_tuning_that_goes_wrong_is_no_worse_than_the_probe(sslt, here):
    """A rate that destroys the encoder: validation prefers the start, unless nobody may ask it."""
    sslt(*PRE, "hydra.run.dir=pre")
    wild = ["optimizer=sgd", "optimizer.lr=0.1", "trainer.max_steps=4", "trainer.gradient_clip_val=null"]
    sslt(*TUNE, "adaptation=probe", "hydra.run.dir=probe")
    sslt(*TUNE, *wild, "hydra.run.dir=between")
    sslt(*TUNE, *wild, "interpolate=[]", "hydra.run.dir=end")
    probe, between, end = (Run(here / name).metrics for name in ("probe", "between", "end"))
    assert end["val/accuracy"] < probe["val/accuracy"] - 0.05 and "train/interpolated" not in end
    assert between["val/accuracy"] >= probe["val/accuracy"] - 0.01 and between["train/interpolated"] < 1
    sslt("evaluate", "from=between", "trainer.accelerator=cpu", "baseline=false", "hydra.run.dir=again")
    assert Run(here / "again").metrics["test/accuracy"] == between["test/accuracy"]


def test_adapters_go_part_of_the_way(sslt, here):
    """An adapter that was put in after the start was known: at its start it does nothing, and the probe stands."""
    sslt(*PRE, "hydra.run.dir=pre")
    wild = ["optimizer.lr=0.1", "trainer.max_steps=4"]
    sslt(*TUNE, "adaptation=probe", "hydra.run.dir=probe")
    sslt(*TUNE, "adaptation=lora", *wild, "hydra.run.dir=lora")
    probe, lora = Run(here / "probe").metrics, Run(here / "lora").metrics
    assert lora["val/accuracy"] >= probe["val/accuracy"] - 0.01 and lora["train/interpolated"] < 1


def test_head_fresh_has_no_start_to_go_back_to(sslt, here):
    sslt(*PRE, "hydra.run.dir=pre")
    sslt(*TUNE, "head=fresh", "trainer.max_steps=2", "hydra.run.dir=fresh")
    assert "train/interpolated" not in Run(here / "fresh").metrics
