"""Every pretraining task that is shipped takes real steps, and goes on after a stop with all its state, bit for bit."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import TINY_IMAGES, TINY_TEXT, TINY_VIT
from test_resume import StopAt, same

from sslt import groups
from sslt.config import compose
from sslt.runs import Run

TASKS = sorted(groups.options("task"))


def tiny(task: str) -> list[str]:
    """Overrides that make a task's own encoder small."""
    encoder = compose("pretrain", [f"+task={task}"]).encoder
    kind = encoder["_target_"].rpartition(".")[2]
    if kind == "TextEncoder":
        return TINY_TEXT
    if kind == "ImageEncoder":
        return TINY_VIT if encoder.name.startswith("vit") else TINY_IMAGES
    return {"UNetEncoder": TINY_UNET, "RBMEncoder": ["encoder.hidden=16"]}[kind] + ["trainer.precision=32", "trainer.accelerator=cpu"]


TINY_UNET = ["encoder.channels=[8,16]"]
SMALLER = {
    "beit": ["objective.words=16", "objective.patches=400"],
    "data2vec": ["objective.layers=1"],
    "deepcluster_v2": ["objective.clusters=[10,20]"],
    "moco_v2": ["objective.queue=64"],
    "nnclr": ["objective.queue=64"],
    "swav": ["objective.queue=32"],
    "wmse": ["objective.out=16"],
}


def state(run: Run) -> dict[str, torch.Tensor]:
    """Everything that a run's last checkpoint holds of the model: heads, teachers, queues, centres, memories."""
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("task", TASKS)
def test_task_takes_steps_and_resumes(task, sslt, here):
    """Three steps in one go, and stopped after the second, end with the same encoder and the same objective."""
    args = ["pretrain", f"+task={task}", *tiny(task), *SMALLER.get(task, []), "batch_size=32", "trainer.max_steps=3"]
    args += ["online_probe.every_n_epochs=0", "checkpoint.every_minutes=100"]
    sslt(*args, "hydra.run.dir=whole")
    with pytest.MonkeyPatch.context() as patch:
        StopAt(2, patch)
        sslt(*args, "hydra.run.dir=part", code=130)
    sslt("pretrain", "resume=part")
    whole, part = Run(here / "whole"), Run(here / "part")
    assert math.isfinite(whole.metrics["train/loss"]) and whole.metrics["train/loss"] == part.metrics["train/loss"]
    assert same(whole.path, part.path)
    a, b = state(whole), state(part)
    assert a.keys() == b.keys() and [k for k in a if not torch.equal(a[k], b[k])] == []
