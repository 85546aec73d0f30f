"""trainer.devices=2 through the real console script: the verbs, sweeps too, with real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from conftest import TINY_IMAGES
from safetensors.torch import load_file

from sslt.cli import main
from sslt.encoders.load import fresh_like
from sslt.runs import Run

SSLT = str(Path(sys.executable).parent / "sslt")


def sslt(*args: str) -> None:
    """The console script, in a process of its own."""
    done = subprocess.run([SSLT, *args], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_two_ranks_pretrain_finetune_and_evaluate(here):
    """Each rank sees its own shard (an epoch has half the steps), results are those of one run folder, all ranks end."""
    two = ["trainer.devices=2"]
    sslt("pretrain", "+task=simclr", *TINY_IMAGES, *two, "batch_size=128", "trainer.max_epochs=1", "hydra.run.dir=pre")
    run = Run(here / "pre")
    assert run.metrics["train/steps"] == 1294 // 256 and (run / "logs" / "rank1.log").exists()
    tune = ["finetune", "+target=digits", "from=pre", *two, "trainer.max_steps=3", "trainer.accelerator=cpu", "labels_per_class=5"]
    sslt(*tune, "-m", "seed=0,1", "hydra.sweep.dir=fine")
    assert all(Run(here / "fine" / str(i)).finished for i in (0, 1))
    sslt("predict", "from=fine/0", "data=digits", *two, "trainer.accelerator=cpu", "hydra.run.dir=said")
    lines = (here / "said" / "predictions.csv").read_text().splitlines()
    assert len(lines) == 1 + 359 and [int(line.split(",")[0]) for line in lines[1:]] == list(range(359))  # every row once, in order
    shots = ["shots=[1]", "draws=2"]
    sslt("evaluate", "from=pre", *two, "trainer.accelerator=cpu", *shots, "hydra.run.dir=two")
    sslt("evaluate", "from=pre", "trainer.accelerator=cpu", *shots, "hydra.run.dir=one", "cache_dir=other")
    assert abs(Run(here / "two").metrics["knn/accuracy"] - Run(here / "one").metrics["knn/accuracy"]) < 1e-6


def test_two_ranks_move_what_one_moves(here):
    """Two processes with 16 samples each end with the weights of one with 32, while what moves changes: what is unfrozen later is
    averaged over ranks as well."""
    tune = ["finetune", "+target=digits", "from=scratch:pre", "adaptation=gradual", "adaptation.over=0.6", "views=plain"]
    tune += ["objective.dropout=0", "trainer.max_steps=8", "labels_per_class=16", *TINY_IMAGES[2:], "optimizer.lr=0.01"]
    main(["pretrain", "+task=simclr", *TINY_IMAGES, "trainer.max_steps=1", "online_probe.every_n_epochs=0", "hydra.run.dir=pre"])
    main([*tune, "batch_size=32", "hydra.run.dir=one"])
    sslt(*tune, "batch_size=16", "trainer.devices=2", "hydra.run.dir=two")
    one, two = (load_file(here / name / "encoder" / "model.safetensors") for name in ("one", "two"))
    torch.manual_seed(0)
    start = fresh_like("pre").model.state_dict()
    assert all(not torch.equal(one[k], start[k]) for k in one if k.endswith("conv1.weight"))
    apart, far = (sum(float((one[k] - other[k]).abs().sum()) for k in one if k.endswith("weight")) for other in (two, start))
    assert apart < 0.02 * far
