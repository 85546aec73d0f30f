"""Protects segmentation on several ranks: two processes with unequal shares are one with all images, in gradients and in answers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))  # a rank knows nothing of pytest's paths
import toy_maps
import two_processes

from sslt import distributed
from sslt.data.prepare.image_processor import ImageProcessor
from sslt.data.views.base import Plain
from sslt.encoders.image import ImageEncoder
from sslt.evaluation.features import predicted
from sslt.targets.segmentation import Segmentation

SHARES = (slice(0, 5), slice(5, 8))


def found(rank: int | None) -> dict[str, Any]:
    """Gradients as the learner weighs them, by units; the map of every image, and what it measures."""
    torch.manual_seed(0)
    source = toy_maps.Shapes(13, ["ground", "disc", "square"], [[24, 24], [24, 40]])
    processor = ImageProcessor(24, 3, [0.5] * 3, [0.25] * 3, "stretch")
    encoder = ImageEncoder(processor, "resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}, "small", False)
    target = Segmentation(encoder, source.space, "fpn", 8, 1, 0.5)
    samples = processor.prepare(source, "train")
    target.prepare(encoder, samples, 8)
    for module in (encoder, target):
        distributed.span_batch_norm(module)
    answers = predicted(encoder, target, samples, torch.device("cpu"), 2)
    batch = Plain(1)(samples.batch(np.arange(8)[slice(None) if rank is None else SHARES[rank]]), encoder)
    for module in (encoder.double().train(), target.double().train()):
        module.zero_grad()
    batch["views"] = {"image": batch["views"]["image"].double()}
    units = torch.as_tensor(target.units(batch), dtype=torch.float64)
    (target(encoder, batch).value * units / distributed.sum_over_ranks(units)).backward()
    grads = torch.cat([p.grad.flatten() for m in (encoder, target) for p in m.parameters()])
    values = torch.from_numpy(answers.values.flat().copy())
    return {"grads": distributed.sum_over_ranks(grads), "maps": values, "miou": target.measure(answers, samples.answers)["miou"]}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    return two_processes.run(found, tmp_path_factory.mktemp("ranks"), 120)


def test_two_ranks_are_one(ranks):
    """By valid pixels, not by images; predictions meet in the order of the rows."""
    whole = found(None)
    for part in ranks:
        assert torch.allclose(part["grads"], whole["grads"], rtol=1e-4, atol=1e-7) and whole["grads"].any()
        assert torch.equal(part["maps"], whole["maps"]) and part["miou"] == whole["miou"]
