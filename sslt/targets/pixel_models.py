"""Models of pixels, learned in seconds from the training images (`encoders/pixel_numbers.py`)."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt.data.answers import IGNORE
from sslt.data.base import Samples
from sslt.data.streams.subsets import in_order, some
from sslt.encoders.pixel_numbers import PixelNumbers, numbers
from sslt.targets.kept import kept

PIXELS, IMAGES = 40_000, 1000  # that a model learns from, at most
CHUNK = 16  # images at a time
HIDDEN = (0, 32)
STEPS, BATCH, RATE, DECAY = 400, 4096, 0.01, 1e-3


def solve(samples: Samples, classes: int) -> list[PixelNumbers]:
    """Models of pixels of the training images, one for each of `HIDDEN`. [] where fewer than two classes are seen."""
    channels = samples.batch(np.array([0]))["image"].shape[1]
    models = nn.ModuleList(PixelNumbers(channels, classes, hidden) for hidden in HIDDEN)
    found = kept("pixels", [samples.fingerprint, classes], lambda: _solved(samples, models))
    if not found:
        return []
    models.load_state_dict(found)
    return list(models)  # type: ignore[arg-type]


def _solved(samples: Samples, models: nn.ModuleList) -> dict[str, Tensor]:
    """What the models are then; nothing where there is nothing to learn."""
    x, y = sampled(samples, numbers)
    if len(y.unique()) < 2:
        return {}
    for model in models:
        model.fill(_fitted(x, y, model.settings["outputs"], model.settings["hidden"]))  # type: ignore[operator, arg-type, index]
    return models.state_dict()


def sampled(samples: Samples, of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """What `of` (grey levels 0..1 [B, C, H, W] → [B, D, H, W]) says of at most `PIXELS` pixels with a class, [N, D], and their classes.

    Drawn by a fixed seed, as many of each image.
    """
    samples = some(samples, IMAGES, 0)
    rng, each, parts = np.random.default_rng(0), max(1, PIXELS // max(len(samples), 1)), []
    for batch in in_order(samples, CHUNK):
        told, truth = of(batch["image"].float() / 255).flatten(2), batch["map"].flatten(1)
        for row, classes in zip(told, truth, strict=True):
            index = drawn(classes, each, rng)
            parts.append((row[:, index].T, classes[index].long()))
    x, y = (torch.cat(p) for p in zip(*parts, strict=True))
    return x, y


def drawn(classes: Tensor, n: int, rng: np.random.Generator) -> Tensor:
    """Places of at most `n` pixels that have a class, of classes [pixels]."""
    valid = np.flatnonzero((classes != IGNORE).cpu().numpy())
    return torch.from_numpy(rng.choice(valid, min(n, len(valid)), replace=False)).to(classes.device)


def _fitted(x: Tensor, y: Tensor, classes: int, hidden: int) -> list[tuple[Tensor, Tensor]]:
    """Layers that tell classes of pixels from numbers [N, D] as they are; what is random about them has a seed of its own."""
    mean, std = x.mean(0), x.std(0).clamp(min=1e-4)
    x = (x - mean) / std
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(0)
        sizes = [x.shape[1], *([hidden] if hidden else []), classes]
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        net = nn.Sequential(layers[0], *(part for layer in layers[1:] for part in (nn.ReLU(), layer)))
        optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
        for _ in range(STEPS):
            index = torch.randint(len(x), (min(BATCH, len(x)),))
            loss = F.cross_entropy(net(x[index]), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    found = [(layer.weight.detach(), layer.bias.detach()) for layer in layers]
    weight, bias = found[0]
    found[0] = (weight / std, bias - weight @ (mean / std))
    return found
