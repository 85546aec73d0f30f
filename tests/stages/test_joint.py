"""Protects the joint loss: both terms learn, α weighs them, and users' mistakes are one line."""

from __future__ import annotations

import csv

import pytest
from conftest import TINY_IMAGES, TINY_TEXT

from sslt.runs import Run
from sslt.stages.joint import Mix

SHORT = ["trainer.max_steps=4", "baseline=false"]
TEXT = ["finetune", "+target=docs", "+joint=mlm", "from=scratch", *TINY_TEXT, "labels_per_class=8", *SHORT]
IMAGES = ["finetune", "+target=digits", "+joint=simclr", "from=scratch", *TINY_IMAGES, "labels_per_class=10", *SHORT]


def logged(run: Run) -> dict[str, float]:
    """The first value of every curve."""
    out: dict[str, float] = {}
    with (run / "metrics.csv").open() as f:
        for row in csv.DictReader(f):
            out.setdefault(row["name"], float(row["value"]))
    return out


@pytest.mark.parametrize(("args", "loss"), [(TEXT, "loss"), (IMAGES, "loss")], ids=["text", "images"])
def test_the_loss_is_the_weighted_sum(args, loss, sslt, here):
    """α·L_pretrain + (1-α)·L_finetune, of the values that are logged beside it."""
    sslt(*args, "joint.weight=0.3", "hydra.run.dir=run")
    values = logged(Run(here / "run"))
    assert values["loss"] == pytest.approx(0.3 * values["joint/loss"] + 0.7 * values["finetune/loss"], rel=1e-4)
    assert Run(here / "run").metrics["test/accuracy"] >= 0


def test_alpha_may_follow_the_run():
    """A straight line from weight to final_weight; the task gets the rest."""
    assert [Mix(0.5, 0.1)(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.5, 0.3, 0.1])
    assert Mix(0.5, 0.1, of_task=True)(1.0) == pytest.approx(0.9)


def test_streams_may_take_turns(sslt, here, capfd):
    """One stream a step, and the epoch that this makes is stated."""
    sslt(*TEXT, "sampling=proportional", "hydra.run.dir=run")
    assert "an epoch is" in capfd.readouterr().err
    assert {"joint/loss", "finetune/loss"} & logged(Run(here / "run")).keys()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([*TEXT, "joint.weight=1.5"], "joint.weight=1.5"),
        ([*TEXT, "joint.final_weight=-1"], "joint.final_weight=-1"),
        ([*IMAGES[:2], "+joint=mlm", *IMAGES[3:]], "views of text"),
        ([*TEXT, "data@joint.data=digits"], "joint.data holds images"),
        ([*TEXT, "joint.weigth=0.1"], "joint.weigth"),
    ],
)
def test_mistakes(args, words, sslt, here, capfd):
    """One line, exit code 2, before training begins."""
    sslt(*args, "hydra.run.dir=run", code=2)
    err = capfd.readouterr().err
    assert words in err and "Traceback" not in err
