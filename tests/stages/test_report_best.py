"""Protects report=best: the weights that are reported are those of the epoch with the best validation accuracy."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import TINY_IMAGES

from sslt import precision
from sslt.report.curves import MetricsCSV
from sslt.runs import Run


def test_the_best_epochs_weights_are_reported(sslt, here, monkeypatch):
    """A rate that rises until training falls apart: the last epoch is worse than an earlier one, which is what is reported.

    Which seeds fall apart in time depends on how a processor rounds, so the first that does is taken.
    """
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: False)  # epochs are watched in float32, too, as what is reported is measured
    args = ["finetune", "+target=digits", "from=scratch", *TINY_IMAGES, "labels_per_class=40", "batch_size=50", "trainer.max_epochs=5"]
    args += ["late_fusion=false", "interpolate=[]"]
    for seed in range(6):
        run = Run(here / f"run{seed}")
        sslt(*args, "optimizer.lr=0.5", "schedule=constant", "schedule.warmup=1.0", "report=best", f"seed={seed}", f"hydra.run.dir={run}")
        scores = MetricsCSV.read(run / "metrics.csv")["val/accuracy"][1]
        assert len(scores) == 5
        if scores[-1] < max(scores):
            break
    assert scores[-1] < max(scores), "the case is one where it matters"
    assert run.metrics["val/accuracy"] == pytest.approx(scores[int(np.argmax(scores))])
