"""Protects what pretraining learns from."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from sslt.runs import Run
from sslt.stages import pretrain

BAG = ["encoder.dim=4", "encoder.pairs=16", "encoder.processor.vocab_size=50", "trainer.accelerator=cpu", "trainer.precision=32"]
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@pytest.mark.parametrize(
    "fractions", [["data.val_fraction=0.25", "data.test_fraction=0.25"], ["data.val_fraction=0", "data.test_fraction=0"]]
)
def test_training_texts_are_learned_from_as_well(sslt, here, fractions):
    """Beside the unlabelled ones, without their labels; what is validated and tested on is not."""
    (here / "d").mkdir()
    rows = [f"{w} {v} {w} {v},{i % 2}" for i, w in enumerate(WORDS[:4]) for v in WORDS[4:9]]
    (here / "d" / "train.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (here / "d" / "unlabeled.csv").write_text("\n".join(["text", *(f"{w} ten {w}" for w in WORDS)]) + "\n")
    sslt("pretrain", "+task=crops", "data=text_csv", "data.path=d", *BAG, *fractions, "batch_size=5", "trainer.max_epochs=1",
         "online_probe.every_n_epochs=0", "hydra.run.dir=run")  # fmt: skip
    assert Run(here / "run").metrics["train/steps"] == (10 + (10 if "0.25" in fractions[0] else 20)) / 5


def test_what_to_expect_is_said_where_a_shallow_recipe_is_the_better_use(monkeypatch, caplog):
    """On a CPU within an hour, from fresh weights, on data of some size; not of the recipe itself. On a GPU: larger batches."""

    def said(n: int = 5000, modality: str = "text", given: bool = False, **changed: Any) -> str:
        trainer = {"max_time": None, "accelerator": "cpu", "devices": 1}
        cfg = {"name": "mlm", "from": None, "batch_size": 32, "trainer": trainer, **changed}
        caplog.clear()
        with caplog.at_level("INFO", "sslt"):
            pretrain._say_what_to_expect(OmegaConf.create(cfg), modality, n, given)
        return caplog.text

    assert "+task=crops" in said() and "+task=patch_kmeans" in said(modality="image", name="simclr")
    assert not said(name="crops") and not said(n=500) and not said(**{"from": "RUN"})
    for time, told in (("00:00:10:00", True), ("00:02:00:00", False)):
        assert bool(said(trainer={"max_time": time, "accelerator": "cpu", "devices": 1})) == told
    monkeypatch.setattr(pretrain, "accelerator", lambda trainer: "gpu")
    assert "batches of 32" in said() and not said(given=True) and not said(batch_size=256)
