"""trainer.devices=2 through the real console script: every verb, sweeps too, with real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from conftest import TINY_IMAGES

from sslt.runs import Run

SSLT = str(Path(sys.executable).parent / "sslt")


def test_two_ranks_pretrain_finetune_and_evaluate(here):
    """Each rank sees its own shard (an epoch has half the steps), results are those of one run folder, all ranks end."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}

    def sslt(*args: str) -> None:
        done = subprocess.run([SSLT, *args], env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr

    two = ["trainer.devices=2"]
    sslt("pretrain", "+task=simclr", *TINY_IMAGES, *two, "batch_size=128", "trainer.max_epochs=1", "hydra.run.dir=pre")
    run = Run(here / "pre")
    assert run.metrics["train/steps"] == 1294 // 256 and (run / "logs" / "rank1.log").exists()
    tune = ["finetune", "+target=digits", "from=pre", *two, "trainer.max_steps=3", "trainer.accelerator=cpu", "labels_per_class=5"]
    sslt(*tune, "-m", "seed=0,1", "hydra.sweep.dir=fine")
    assert all(Run(here / "fine" / str(i)).finished for i in (0, 1))
    shots = ["shots=[1]", "draws=2"]
    sslt("evaluate", "from=pre", *two, "trainer.accelerator=cpu", *shots, "hydra.run.dir=two")
    sslt("evaluate", "from=pre", "trainer.accelerator=cpu", *shots, "hydra.run.dir=one", "cache_dir=other")
    assert abs(Run(here / "two").metrics["knn/accuracy"] - Run(here / "one").metrics["knn/accuracy"]) < 1e-6
