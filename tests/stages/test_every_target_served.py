"""Protects what a worker answers for every target: what `sslt predict` says of the same samples, with nothing known of their truth."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_every_target_whole import CASES, SHORT

from sslt.config import build
from sslt.data.answers import Map
from sslt.deploy.serving.inputs import Limits, checked
from sslt.deploy.serving.model import Model
from sslt.encoders.load import load_encoder
from sslt.evaluation.alike import alike_on
from sslt.evaluation.features import predicted
from sslt.report.answers import answer_rows
from sslt.runs import Run
from sslt.stages.predict import parts_of_run
from sslt.targets import heads

CPU, LIMITS = torch.device("cpu"), Limits(1 << 20, 64, 10_000, 10_000, 30.0)
FUSED = ("classification", "multilabel", "tagging", "pairs")  # late fusion stands beside these


def as_sent(item: Any, kind: str) -> Any:
    """A source's item as a request has it."""
    if kind == "image":
        file = io.BytesIO()
        Image.fromarray(item.squeeze()).save(file, "PNG")
        return base64.b64encode(file.getvalue()).decode()
    if kind == "question":
        question, context, *before = item
        turns = [turn for turn in zip(before[::2], before[1::2], strict=True) if any(turn)]
        return {"question": question, "context": context, **({"history": turns[::-1]} if turns else {})}
    return list(item) if kind in ("parts", "history") else item


@pytest.mark.parametrize("name", CASES)
def test_a_served_answer_is_the_predicted_one(name, sslt, here):
    """A few rows at a time, in another order, through the form in which they are sent."""
    short = [s for s in SHORT if name not in FUSED or "late_fusion" not in s]
    sslt("finetune", *CASES[name](here), *short, "trainer.max_steps=1", "baseline=false", "hydra.run.dir=made")
    run, encoder = Run(here / "made"), load_encoder("made")
    target, source = heads.load(here / "made" / "head", encoder, []), build(run.config.data)
    cfg = run.config
    cfg["from"] = "made"
    model = Model(encoder, target, parts_of_run(cfg, target), CPU, 4, LIMITS)
    samples, items = encoder.processor.prepare(source, "test"), source.get("test").items
    found = predicted(encoder, target, samples, CPU, 256, alike=alike_on(CPU))
    wanted = answer_rows(target, found, samples, None, None)
    first = [i for i in range(len(items)) if name != "dialogues" or not any(items[i][2:])]  # later turns hear other answers here
    for rows in (first[:1], first[5:1:-1], first[-3:]):
        sent = [checked(as_sent(items[i], model.reads.kind), model.reads, LIMITS)[0] for i in rows]
        for i, row in zip(rows, model.answers("predict", sent), strict=True):
            assert "error" not in row, row
            if isinstance(found, Map):
                picture = Image.open(io.BytesIO(base64.b64decode(row["prediction"].partition(",")[2])))
                assert (np.asarray(picture) == found.row(i)).all()
            else:
                assert row["prediction"] == wanted[i]["prediction"]
            known = {k: v for k, v in row.items() if k not in ("row", "prediction")}
            assert known == {k: wanted[i][k] for k in known}
        assert all(len(row["features"]) == encoder.dim for row in model.answers("features", sent))
