"""Features from which a critic cannot tell the domain: DANN and CDAN, by reversed gradients."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt import distributed
from sslt.encoders.base import Encoder
from sslt.objectives.alignment import Alignment
from sslt.objectives.base import Loss, encode_views, full_precision, wide
from sslt.ranges import Count, NonNegative, Share


class DANN(Alignment):
    """Domain-adversarial training (Ganin et al., 2016): a critic learns which domain features are from, and the encoder, by the
    critic's reversed gradient, to leave nothing to learn from.

    The loss is the critic's binary cross-entropy, the mean of both domains' means. On its way to the encoder the gradient is
    multiplied by -λ, λ = ceiling · (2 / (1 + exp(-gamma·p)) - 1) for the share p of the run that is over (section 5.2.2).
    hidden, dropout: of the critic, an MLP with two hidden layers. Under DDP the critic is one, by averaged gradients.
    """

    def __init__(
        self,
        encoder: Encoder,
        width: Count,
        task: Any,
        layer: str | None,
        hidden: Count,
        dropout: Share,
        gamma: NonNegative,
        ceiling: NonNegative,
    ):
        super().__init__(layer)
        self.critic = critic(width, hidden, dropout)
        self.gamma, self.ceiling = gamma, ceiling

    @property
    def strength(self) -> float:
        """λ at the present progress of the run."""
        return self.ceiling * (2 / (1 + math.exp(-self.gamma * self.progress)) - 1)

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        source, target = self.features(encoder, batch)
        return self.play(source, target)

    def play(self, source: Tensor, target: Tensor, source_weight: Tensor | None = None, target_weight: Tensor | None = None) -> Loss:
        """The critic's loss on what it is shown of both domains, [N, W] and [M, W], rows weighed by [N] and [M] (None: alike)."""
        shown = reverse_gradient(torch.cat([source, target]), self.strength)
        scores = self.critic(shown).squeeze(1)
        with full_precision():
            scores = wide(scores)
            s, t = scores[: len(source)], scores[len(source) :]
            loss = 0.5 * (_weighed(F.softplus(-s), source_weight) + _weighed(F.softplus(t), target_weight))
        with torch.no_grad():
            accuracy = 0.5 * ((s > 0).float().mean() + (t <= 0).float().mean())
        return Loss(loss, {"critic_accuracy": accuracy})


class CDAN(DANN):
    """Conditional adversarial training (Long et al., 2018): the critic sees the outer product of features and predictions.

    task: the classification objective; its predictions are softmax of `task.logits` on the pooled features, and no gradient
    flows through them. entropy: weigh a row by 1 + exp(-H) of its prediction, so that the sure ones count more (CDAN+E);
    weights have a mean of 1 over a domain's rows on all ranks. The rest is DANN's.
    """

    def __init__(
        self,
        encoder: Encoder,
        width: Count,
        task: Any,
        layer: str | None,
        hidden: Count,
        dropout: Share,
        gamma: NonNegative,
        ceiling: NonNegative,
        entropy: bool,
    ):
        with torch.no_grad():
            n_classes = task.logits(torch.zeros(1, encoder.dim, device=next(task.parameters()).device)).shape[1]
        super().__init__(encoder, width * n_classes, task, layer, hidden, dropout, gamma, ceiling)
        self._task = (task,)  # in a tuple: its parameters are its own, not this objective's too
        self.entropy = entropy

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        features = self.features(encoder, batch)
        with torch.no_grad(), full_precision():
            source, target = (self._task[0].logits(wide(encode_views(encoder, part).pooled)).softmax(1) for part in batch.values())
        weights = (certainty(source), certainty(target)) if self.entropy else (None, None)
        return self.play(multilinear(wide(features[0]), source), multilinear(wide(features[1]), target), *weights)


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * grads[0], None


def reverse_gradient(x: Tensor, strength: float) -> Tensor:
    """x itself, whose gradient comes back multiplied by -strength (the gradient reversal layer of Ganin et al., 2016)."""
    return cast(Tensor, _Reverse.apply(x, strength))


def multilinear(features: Tensor, probability: Tensor) -> Tensor:
    """The outer products [N, D·C] of features [N, D] and predictions [N, C] (Long et al., 2018)."""
    return (features.unsqueeze(2) * probability.unsqueeze(1)).flatten(1)


def certainty(probability: Tensor) -> Tensor:
    """1 + exp(-H(p)) [N] of predictions [N, C], H in nats."""
    return 1 + torch.exp(torch.special.entr(probability).sum(1).neg())


def critic(width: int, hidden: int, dropout: float) -> nn.Sequential:
    """[N, width] → one score [N, 1]: above 0 for the source."""
    layers = [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(hidden, 1))


def _weighed(losses: Tensor, weights: Tensor | None) -> Tensor:
    """The mean of `losses` [N] under `weights` [N], which are brought to a mean of 1 over the rows of all ranks."""
    if weights is None:
        return losses.mean()
    mean = distributed.sum_over_ranks(weights.sum()) / (distributed.world_size() * len(weights))
    return (losses * weights).mean() / mean
