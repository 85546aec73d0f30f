"""Maps without an encoder: Otsu's threshold, logistic regression on what a pixel is and where, and models of its surroundings."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sslt.data.answers import Map, Space
from sslt.data.base import Samples
from sslt.data.streams.subsets import in_order
from sslt.encoders.pixel_numbers import PixelNumbers, places
from sslt.targets.base import Cheap, Rows
from sslt.targets.map_heads import in_own_size
from sslt.targets.metrics.maps import class_pixels, map_metrics
from sslt.targets.pixel_models import CHUNK, sampled, solve

LUMA = (0.299, 0.587, 0.114)
Scores = Callable[[Tensor], Tensor]  # uint8 [B, 1 or 3, H, W] → [B, C, H, W]


def strongest(train: Rows, val: Rows | None, test: Rows, space: Space) -> Cheap | None:
    """The method that is best on `val`, or on `train` without it, and what it answers on `test`; None where nothing can be learned."""
    methods = _methods(train.items, len(space["classes"]))
    if not methods:
        return None
    held = train if val is None else val
    marks = {name: map_metrics(_answers(scores, held.items, space), held.answers)["miou"] for name, scores in methods.items()}
    best = max(marks, key=lambda name: (not math.isnan(marks[name]), marks[name]))
    return Cheap(best, _answers(methods[best], test.items, space), math.nan if val is None else marks[best])


def commonest(train: Map, test: Map) -> Map:
    """The class that most pixels of `train` have, everywhere: in most sets the background."""
    common = class_pixels(train).argmax()
    return Map.of([np.full(shape, common, np.uint8) for shape in test.shapes], test.space)


def _methods(train: Samples, classes: int) -> dict[str, Scores]:
    x, y = sampled(train, _about)
    if len(y.unique()) < 2:
        return {}
    found = {f"logistic regression on colour and place{told}": _regression(x.numpy(), y.numpy(), classes, weight)
             for told, weight in (("", None), (", classes alike", "balanced"))}  # fmt: skip
    for model in solve(train, classes):
        kind = "a small network" if model.settings["hidden"] else "a linear model"
        found[f"{kind} of {model.title}"] = functools.partial(_model, model)
    if classes == 2:
        for name, sign in (("brighter", 1.0), ("darker", -1.0)):
            found[f"Otsu's threshold, {name}"] = functools.partial(_two, sign)
    return found


def _answers(scores: Scores, samples: Samples, space: Space) -> Map:
    return Map.join([in_own_size(scores(batch["image"]), batch, space) for batch in in_order(samples, CHUNK)])


# -------------------------------------------------------------------- Otsu
def otsu(grey: np.ndarray) -> int:
    """The brightness t of bytes that parts them into those up to t and those above with the least variance within (Otsu, 1979)."""
    counts = np.bincount(grey.ravel(), minlength=256).astype(float)
    below, weighed = counts.cumsum(), (counts * np.arange(256)).cumsum()
    above = below[-1] - below
    apart = (weighed * below[-1] - weighed[-1] * below) ** 2 / np.maximum(below * above, 1e-9)
    return int(np.where(below * above > 0, apart, -1).argmax())


def _grey(images: Tensor) -> Tensor:
    weights = torch.tensor(LUMA if images.shape[1] == 3 else (1.0,)).view(1, -1, 1, 1)
    return (images.float() * weights).sum(1).round().clamp(0, 255)


def _two(sign: float, images: Tensor) -> Tensor:
    grey = _grey(images)
    parts = torch.tensor([otsu(image) for image in grey.numpy().astype(np.uint8)]).view(-1, 1, 1)
    apart = sign * (grey - parts - 0.5)
    return torch.stack([-apart, apart], 1)


# -------------------------------------------------------------------- pixels
def _model(model: PixelNumbers, images: Tensor) -> Tensor:
    return model.of(images.float() / 255)


def _about(images: Tensor) -> Tensor:
    """Of every pixel its colours, its place and their products, [B, D, H, W]."""
    plain = torch.cat([images, places(images).expand(len(images), -1, -1, -1)], 1)
    i, j = torch.triu_indices(plain.shape[1], plain.shape[1])
    return torch.cat([plain, plain[:, i] * plain[:, j]], 1)


def _regression(x: np.ndarray, y: np.ndarray, classes: int, weight: str | None) -> Scores:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, class_weight=weight))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nearly converged is good enough for a baseline
        model.fit(x, y)
    known = model[-1].classes_

    def scores(images: Tensor) -> Tensor:
        b, _, h, w = images.shape
        found = model.decision_function(_about(images.float() / 255).permute(0, 2, 3, 1).flatten(0, 2).numpy())
        found = np.stack([-found, found], 1) / 2 if found.ndim == 1 else found
        out = torch.full((b, h, w, classes), float(found.min()) - 1)  # of a class that was never seen
        out[..., known] = torch.from_numpy(found).view(b, h, w, -1).to(out.dtype)
        return out.permute(0, 3, 1, 2)

    return scores
