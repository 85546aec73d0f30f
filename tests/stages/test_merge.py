"""Protects the life of an adapter through the command line: tuned, measured in a fresh process, merged, misused."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from conftest import TINY_TEXT
from killed_runs import command

from sslt.runs import Run

pytest.importorskip("peft")

CPU = "trainer.accelerator=cpu"


def probabilities(run: Path) -> list[float]:
    with (run / "predictions.csv").open() as f:
        return [float(row["probability"]) for row in csv.DictReader(f)]


def test_an_adapter_from_tuning_to_merging(sslt, here):
    """The run says what it stores; a fresh process predicts the same; merged it does too; from= takes it up again."""
    sslt("pretrain", "+task=mlm", *TINY_TEXT, "trainer.max_steps=2", "hydra.run.dir=base")
    tune = ["finetune", "+target=docs", "from=base", "trainer.precision=32", CPU, "labels_per_class=8", "optimizer.lr=0.02"]
    tune += ["baseline=false"]
    sslt(*tune, "adaptation=lora", "trainer.max_steps=6", "hydra.run.dir=tuned")
    found = Run(here / "tuned").metrics
    stored = sum(p.stat().st_size for p in (here / "tuned").glob("*/*.safetensors"))
    adapter, whole = ((here / name / "encoder" / file).stat().st_size for name, file in
                      (("tuned", "adapter.safetensors"), ("base", "model.safetensors")))  # fmt: skip
    assert found["model/stored_bytes"] == stored and adapter < whole / 5
    assert 0 < found["model/moving_parameters"] < found["model/parameters"] / 10 and found["train/peak_memory_bytes"] > 1e6

    (here / "texts.txt").write_text("a list of strings\nthe socket is closed\nparse the document\n")
    sslt("predict", "from=tuned", "input=texts.txt", CPU, "hydra.run.dir=here")
    assert command(["predict", "from=tuned", "input=texts.txt", CPU, "hydra.run.dir=there"]) == 0, Path("output.txt").read_text()
    assert probabilities(here / "there") == probabilities(here / "here")
    sslt("merge", "from=tuned", "hydra.run.dir=merged")
    assert (here / "merged" / "encoder" / "model.safetensors").exists()
    sslt("evaluate", "from=tuned", CPU, "hydra.run.dir=e1")
    sslt("evaluate", "from=merged", CPU, "baseline=false", "hydra.run.dir=e2")
    one, two = (Run(here / e).metrics for e in ("e1", "e2"))
    assert two["test/nll"] == pytest.approx(one["test/nll"], abs=1e-5)
    sslt(*tune[:2], "from=tuned", *tune[3:], "trainer.max_steps=2", "hydra.run.dir=on")  # merged on the way, then fine-tuned whole
    assert (here / "on" / "encoder" / "model.safetensors").exists()

    (here / "base").rename(here / "away")
    sslt("evaluate", "from=tuned", CPU, "hydra.run.dir=e3", code=2)
    sslt("evaluate", "from=tuned", "base=away", CPU, "baseline=false", "hydra.run.dir=e4")
    assert Run(here / "e4").metrics["test/nll"] == one["test/nll"]
    sslt("merge", "from=away", "hydra.run.dir=m2", code=2)  # there is nothing to merge
