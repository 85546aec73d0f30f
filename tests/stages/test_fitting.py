"""Protects small things that every stage uses: memory in bytes, the batch of measuring."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import TINY_IMAGES

from sslt.runs import Run
from sslt.stages import fitting
from sslt.stages.common import eval_batch_size
from sslt.stages.fitting import peak_memory


def test_peak_memory_is_in_bytes_and_never_falls():
    """More than Python with torch needs, less than a large machine has; at least what is held at once, after it is gone too."""
    before = peak_memory("cpu")
    assert 50e6 < before < 1e12
    held = np.ones(300 << 20, np.uint8)
    now = peak_memory("cpu")
    del held
    assert now >= max(before, 300 << 20) and peak_memory("cpu") > now - (8 << 20)  # the kernel counts a little late


@pytest.mark.parametrize(("batch", "measured"), [(16, 64), (64, 256), (100, 256), (256, 256), (1000, 1000)])
def test_small_batches_are_measured_in_larger_ones(batch, measured):
    """Four times as large, up to 256; larger ones as they are."""
    assert eval_batch_size(SimpleNamespace(batch_size=batch)) == measured


def test_time_alone_is_bounded_by_what_a_recipe_can_use(sslt, here, capsys):
    """`most_epochs` ends a run that has trainer.max_time and nothing else, with a line; epochs and steps that are asked for stand."""
    args = ["pretrain", "+task=simclr", *TINY_IMAGES, "batch_size=512", "online_probe.every_n_epochs=0", "most_epochs=1"]
    sslt(*args, "trainer.max_time=600", "hydra.run.dir=time")
    assert Run(here / "time").metrics["train/epochs"] == 1 and "nothing from more than 1 epochs" in capsys.readouterr().err
    sslt(*args, "trainer.max_time=600", "trainer.max_epochs=2", "hydra.run.dir=epochs")
    assert Run(here / "epochs").metrics["train/epochs"] == 2
    sslt(*args, "trainer.max_steps=4", "hydra.run.dir=steps")
    assert Run(here / "steps").metrics["train/steps"] == 4


def test_what_an_encoder_brings_is_not_typed(tmp_path, monkeypatch):
    """How long texts are is said of what other libraries have made; of a run, or of its architecture, it would do nothing."""
    said: list[str] = []
    monkeypatch.setattr(fitting.log, "warning", lambda text, *args: said.append(text % args))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{}")
    (tmp_path / "theirs").mkdir()
    typed = SimpleNamespace(info={"overrides": ["encoder.processor.max_length=16", "lr=1"]})
    there = str(tmp_path)
    for start, told in ((f"{there}/theirs", False), (f"{there}/run", True), (f"scratch:{there}/theirs", True), ("scratch", False)):
        said.clear()
        fitting._tell_unused({"from": start}, typed)
        assert bool(said) == told and all("encoder.processor.max_length=16 does nothing" in text for text in said), start
