"""Several loggers at once get hyperparameters, curves and the final table; wandb works without an account."""

from __future__ import annotations

import csv

import pytest
from conftest import TINY_IMAGES

from sslt.loggers import wandb_logger


def test_csv_and_offline_wandb_together(sslt, here):
    args = ["pretrain", "+task=simclr", *TINY_IMAGES, "trainer.max_steps=3", "trainer.log_every_n_steps=1"]
    sslt(*args, "logger=[csv,wandb]", "hydra.run.dir=logged")
    with (here / "logged" / "csv" / "metrics.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert sum(bool(r["loss"]) for r in rows) == 3 and any(r.get("train/steps") for r in rows)
    assert (here / "logged" / "csv" / "hparams.yaml").exists()
    assert list((here / "logged").glob("wandb/offline-run-*/run-*.wandb"))


@pytest.mark.parametrize(
    ("asked", "mode", "key", "netrc", "offline"),
    [
        (None, None, None, None, True),
        (None, None, "a-key", None, False),
        (None, None, None, "machine api.wandb.ai login user password a-key\n", False),
        (None, None, None, "machine elsewhere.org login user password a-key\n", True),
        (None, "offline", "a-key", None, True),
        (False, None, None, None, False),
        (True, None, "a-key", None, True),
    ],
)
def test_wandb_is_online_where_there_is_an_account(asked, mode, key, netrc, offline, tmp_path, monkeypatch):
    """By its key or by netrc, unless wandb or the setting says otherwise."""
    made = {}
    monkeypatch.setattr("pytorch_lightning.loggers.WandbLogger", lambda **settings: made.update(settings))
    for name, value in (("WANDB_MODE", mode), ("WANDB_API_KEY", key)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))
    if netrc is not None:
        (tmp_path / ".netrc").write_text(netrc)
        (tmp_path / ".netrc").chmod(0o600)
    wandb_logger("project", "run", asked, "there")
    assert made == {"project": "project", "name": "run", "offline": offline, "save_dir": "there"}
