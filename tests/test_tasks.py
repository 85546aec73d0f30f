"""Every pretraining task that is shipped takes real steps, and goes on after a stop with all its state, bit for bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_resume import in_two_parts, same
from tiny_tasks import TASKS, tiny

from sslt.runs import Run


def state(run: Run) -> dict[str, torch.Tensor]:
    """Everything that a run's last checkpoint holds of the model: heads, teachers, queues, centres, memories."""
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


VARIANTS = [["rbm", "objective.persistent=true"], ["deepcluster_v2", "batch_size=600"]]  # chains; clusters found anew after two steps


@pytest.mark.parametrize("case", [*([task] for task in TASKS), *VARIANTS], ids=" ".join)
def test_task_takes_steps_and_resumes(case, sslt, here):
    """Three steps in one go, and stopped after the second, end with the same encoder and the same objective."""
    task, *settings = case
    args = ["pretrain", f"+task={task}", *tiny(task), "batch_size=32", "trainer.max_steps=3", *settings]
    args += ["online_probe.every_n_epochs=0", "checkpoint.every_minutes=100"]
    if task == "colorization":  # the one that the embedded images are too grey for
        np.savez(here / "colours.npz", x_train=np.random.default_rng(0).integers(0, 255, (96, 16, 16, 3), dtype=np.uint8))
        args += ["data=arrays", "data.path=colours.npz"]
    sslt(*args, "hydra.run.dir=whole")
    in_two_parts(sslt, args, 2)
    whole, part = Run(here / "whole"), Run(here / "part")
    assert math.isfinite(whole.metrics["train/loss"]) and whole.metrics["train/loss"] == part.metrics["train/loss"]
    assert same(whole.path, part.path)
    a, b = state(whole), state(part)
    assert a.keys() == b.keys() and [k for k in a if not torch.equal(a[k], b[k])] == []
