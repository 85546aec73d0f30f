"""Protects CPC: who sees what, the loss against the loop, and the mistakes that are named."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_IMAGES
from tiny_encoders import TinyEncoder, tiny_vit, views

from sslt.errors import UserError
from sslt.objectives.cpc import CPC, patch_logits
from sslt.objectives.parts.pixels import choice


def patch_nce(predicted: torch.Tensor, targets: torch.Tensor, below: int) -> tuple[torch.Tensor, torch.Tensor]:
    """InfoNCE and how often the right patch scores highest, for one distance."""
    found = choice(*patch_logits(predicted, targets, below), True)
    return found.value, found.logs["accuracy"]


def make(encoder, rows=(2, 3), grid: int = 5, patch: int | None = None) -> CPC:
    torch.manual_seed(0)
    return CPC(encoder, grid, patch, list(rows), 8, 2, 6, 0.5)


@pytest.mark.parametrize("below", [1, 3])
def test_patch_nce_against_the_loop(below):
    """Each prediction against the patches of all images, the right one the same column, so many rows below."""
    generator = torch.Generator().manual_seed(0)
    p, t = (torch.randn(3, 4, 5, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    losses, right = [], []
    for i, y, x in np.ndindex(3, 5 - below, 5):
        scores = {(j, v, u): float(p[i, :, y, x] @ t[j, :, v, u]) for j, v, u in np.ndindex(3, 5, 5)}
        losses.append(math.log(sum(map(math.exp, scores.values()))) - scores[i, y + below, x])
        right.append(max(scores, key=scores.get) == (i, y + below, x))
    loss, accuracy = patch_nce(p, t, below)
    assert float(loss) == pytest.approx(np.mean(losses)) and float(accuracy) == pytest.approx(np.mean(right))


def test_known_points_of_the_loss():
    """Predictions that say nothing cost the logarithm of the number of patches; perfect ones next to nothing."""
    target = torch.eye(32).view(2, 4, 4, 32).permute(0, 3, 1, 2)
    assert float(patch_nce(torch.zeros_like(target), target, 1)[0]) == pytest.approx(math.log(32))
    perfect = torch.zeros_like(target)
    perfect[:, :, :3] = 50 * target[:, :, 1:]
    loss, accuracy = patch_nce(perfect, target, 1)
    assert float(loss) < 1e-6 and float(accuracy) == 1


def test_a_context_sees_no_row_below_it():
    """What changes in a row changes contexts of that row and those further down, never above; and it does reach further down."""
    objective = make(TinyEncoder(32)).double()
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    y = x.clone()
    y[:, :, 2] += 1
    changed = (objective.context(x) != objective.context(y)).any(1).any(0).any(1)
    assert changed.tolist() == [False, False, True, True, True]


@pytest.mark.parametrize("encoder", [TinyEncoder(32), tiny_vit(32)], ids=["cnn", "vit"])
def test_patches_are_encoded_alone_and_overlap(encoder):
    """grid² patches in one forward, each at its place; neighbours share half."""
    encoder = encoder.eval()
    objective = make(encoder, grid=7)
    assert objective.patch == 8 and objective.start.tolist() == [0, 4, 8, 12, 16, 20, 24]
    images = views(2, 32)["views"]["image"][0]
    with torch.no_grad():
        features = objective.features(encoder, images)
        for i, (y, x) in ((0, (0, 0)), (1, (2, 5)), (1, (6, 6))):
            patch = images[i : i + 1, :, 4 * y : 4 * y + 8, 4 * x : 4 * x + 8]
            assert torch.allclose(features[i, :, y, x], encoder({"image": patch}).pooled[0], atol=1e-5)
    assert features.shape == (2, encoder.dim, 7, 7)


def test_the_loss_is_the_mean_over_distances():
    """Of both distances, each from its own linear map of the contexts."""
    encoder = TinyEncoder(32).eval()
    objective = make(encoder)
    found = objective(encoder, views(3, 32))
    with torch.no_grad():
        features = objective.features(encoder, views(3, 32)["views"]["image"][0])
        context, target = objective.context(features), objective.target(features)
        parts = [patch_nce(0.5 * objective.predict[str(k)](context), target, k)[0] for k in (2, 3)]
    assert float(found.value.detach()) == pytest.approx(float(sum(parts)) / 2, rel=1e-5)


def test_the_order_of_the_batch_does_not_matter():
    """The same images in another order give the same loss."""
    encoder = TinyEncoder(32)
    objective, batch = make(encoder), views(6, 32)
    shuffled = {"views": {"image": batch["views"]["image"][:, torch.randperm(6)]}}
    assert float(objective(encoder, batch).value) == pytest.approx(float(objective(encoder, shuffled).value), rel=1e-4)


def test_a_few_steps_lower_the_loss():
    """Gradients reach the encoder and all that trains."""
    encoder, batch = TinyEncoder(32), views(8, 32)
    objective = make(encoder)
    optimizer = torch.optim.Adam([*encoder.parameters(), *objective.parameters()], lr=0.01)
    losses = []
    for _ in range(40):
        loss = objective(encoder, batch).value
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in [*encoder.parameters(), *objective.parameters()])
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(math.log(8 * 25), rel=0.2) and np.mean(losses[-5:]) < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"rows": [5]}, r"objective\.rows=\[5\].*1 to 4"),
        ({"rows": []}, r"objective\.rows=\[\]"),
        ({"grid": 40, "rows": [1]}, r"images of 32 pixels.*encoder\.processor\.size=82"),
        ({"patch": 40}, r"objective\.patch=40"),
    ],
)
def test_grids_that_cannot_be(args, message):
    """One line for each."""
    with pytest.raises(UserError, match=message):
        make(TinyEncoder(32), **args)


@pytest.mark.parametrize("given", [[], ["encoder=vit_small", "encoder.args.depth=1"]], ids=["resnet", "vit"])
def test_the_task_runs(given, sslt, here: Path):
    """Three steps from the command line; also with a ViT built for whole images."""
    tiny = TINY_IMAGES[2:] if given else TINY_IMAGES
    args = [*tiny, "batch_size=16", "trainer.max_steps=3", "online_probe.every_n_epochs=0", "hydra.run.dir=out"]
    sslt("pretrain", "+task=cpc", *given, *args)
    assert (here / "out" / "metrics.json").exists()
