"""Losses over items: the softmax over all of them, or over the true one and some that are drawn."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sslt import lanes
from sslt.objectives.base import wide
from sslt.objectives.parts.vocabulary import vocabulary_loss

LOSSES = ("full", "sampled", "bce", "gbce")


def item_loss(
    kind: str, states: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, own: Tensor, negatives: int, calibration: float
) -> Tensor:
    """The sum over N states [N, D] of the loss of their items, `targets` [N], rows of `weight` [V, D] and of `bias` [V].

    "full": cross-entropy over all items. The others draw `negatives` items at random, uniformly:
    "sampled": cross-entropy over the true item and those drawn, the same for all states (Jean et al., 2015).
    "bce": -log σ(true) - mean log(1 - σ(drawn)), drawn for each state (SASRec: Kang & McAuley, 2018, with one).
    "gbce": the same in one mean, the true item's probability to the power β (gSASRec: Petrov & Macdonald, 2023):
    α = negatives / (V - 1), β = α (t (1 - 1/α) + 1/α), t = `calibration`, so that 1 takes back the overconfidence that drawing brings.
    What is drawn though it is the true item, or for "bce" one that the row has, `own` [N, T], is left out.
    """
    if kind == "full":
        return vocabulary_loss(states, weight, targets, bias)
    n, total = len(targets), len(weight)
    if kind == "sampled":
        drawn = torch.randint(total, (negatives,), generator=lanes.common(states.device), device=states.device)
    else:
        drawn = torch.randint(total, (n, negatives), device=states.device)
    return drawn_loss(kind, states, weight, targets, bias, own, drawn, calibration)


def drawn_loss(
    kind: str, states: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, own: Tensor, drawn: Tensor, calibration: float
) -> Tensor:
    """`item_loss` with these items drawn: [K], or [N, K]."""
    true = (states * weight[targets]).sum(1)
    others = states @ weight[drawn].T if drawn.dim() == 1 else torch.einsum("nd,nkd->nk", states, weight[drawn])
    if bias is not None:
        true, others = true + bias[targets], others + bias[drawn]
    true, others, clash = wide(true), wide(others), drawn == targets[:, None]
    if kind == "sampled":
        scores = torch.cat([true[:, None], others.masked_fill(clash, float("-inf"))], 1)
        return F.cross_entropy(scores, torch.zeros_like(targets), reduction="sum")
    if kind == "bce":
        clash = (drawn[:, :, None] == own[:, None]).any(2) | clash
    wrong = F.softplus(others).masked_fill(clash, 0.0)
    if kind == "bce":
        return F.softplus(-true).sum() + (wrong.sum(1) / (~clash).sum(1).clamp(min=1)).sum()
    alpha = drawn.shape[1] / (len(weight) - 1)
    beta = alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)
    return (beta * F.softplus(-true) + wrong.sum(1)).sum() / (1 + drawn.shape[1])
