"""Several loggers at once get hyperparameters, curves and the final table; wandb works without an account."""

from __future__ import annotations

import csv

from conftest import TINY_IMAGES


def test_csv_and_offline_wandb_together(sslt, here):
    args = ["pretrain", "+task=simclr", *TINY_IMAGES, "trainer.max_steps=3", "trainer.log_every_n_steps=1"]
    sslt(*args, "logger=[csv,wandb]", "hydra.run.dir=logged")
    with (here / "logged" / "csv" / "metrics.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert sum(bool(r["loss"]) for r in rows) == 3 and any(r.get("train/steps") for r in rows)
    assert (here / "logged" / "csv" / "hparams.yaml").exists()
    assert list((here / "logged").glob("wandb/offline-run-*/run-*.wandb"))
