"""Biases of classes and a temperature that make scores of a model into probabilities, by samples whose class is known."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CALIBRATIONS = ("none", "empty", "val")
PRIOR = 1e-3  # of squared biases, as a share of a sample's loss: a class that validation has no sample of keeps a chance


def fit_biases(scores: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    """(scale above 0, biases [C]) of which softmax(scale · scores + biases) has the least cross-entropy on scores [N, C], labels [N].

    Convex in both. The scale stays positive: a model whose words say the opposite is not turned around.
    """
    scores = scores.double()
    spread = scores - scores.mean(1, keepdim=True)
    unit = float(spread.square().mean().sqrt().clamp(min=1e-6))
    x = spread / unit
    scale, biases = torch.ones((), dtype=torch.double, requires_grad=True), torch.zeros(x.shape[1], dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([scale, biases], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(scale.clamp(min=1e-3) * x + biases, labels) + PRIOR * biases.square().sum() / 2
        value.backward()
        return value

    with torch.inference_mode(False), torch.enable_grad():
        optimizer.step(loss)  # type: ignore[arg-type]
    return float(scale.detach().clamp(min=1e-3)) / unit, biases.detach().float()
