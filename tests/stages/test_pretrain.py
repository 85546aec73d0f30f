"""Protects what pretraining learns from."""

from __future__ import annotations

import pytest

from sslt.runs import Run

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
