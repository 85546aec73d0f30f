"""Biases of classes and a temperature that make scores of a model into probabilities, by samples whose class is known."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CALIBRATIONS = ("none", "empty", "val")
PRIOR = 1e-3  # of squared biases beyond those that centre each class's scores: a class that no sample is of keeps a chance


def fit_biases(scores: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    """(scale above 0, biases [C]) of which softmax(scale · scores + biases) has the least cross-entropy on scores [N, C], labels [N].

    The scale is kept positive by its logarithm: a model whose words say the opposite is not turned around.
    """
    x = scores.double() - scores.double().mean(1, keepdim=True)
    centre = x.mean(0)
    x = x - centre
    unit = float(x.square().mean().sqrt().clamp(min=1e-6))
    x = x / unit
    scale, biases = (torch.zeros(size, dtype=torch.double, requires_grad=True) for size in ((), x.shape[1]))
    optimizer = torch.optim.LBFGS([scale, biases], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(scale.exp() * x + biases, labels) + PRIOR * biases.square().sum() / 2
        value.backward()
        return value

    with torch.inference_mode(False), torch.enable_grad():
        optimizer.step(loss)  # type: ignore[arg-type]
    found = float(scale.detach().exp()) / unit
    return found, (biases.detach() - found * centre).float()
