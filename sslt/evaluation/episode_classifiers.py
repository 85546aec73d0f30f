"""Classifiers of an episode for any encoder, with nothing learned beforehand: centroids, logistic regression, fine-tuning."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from sslt.encoders.base import Encoder
from sslt.errors import UserError, nearest
from sslt.objectives.base import full_precision
from sslt.objectives.episodic import AdaptingClassifier, FeatureClassifier, prototype_logits
from sslt.objectives.parts.inner import Inputs, WithHead
from sslt.ranges import Count, NonNegative
from sslt.targets.linear import fit_each


class Centroid(FeatureClassifier):
    """The class whose mean support feature is nearest (SimpleShot: Wang et al., 2019).

    normalize: features are brought to length 1 first (theirs: "L2N"); without it the rule of prototypical networks.
    """

    def __init__(self, encoder: Encoder, n_classes: int, normalize: bool):
        self.normalize = normalize

    def classify(self, support: Tensor, query: Tensor) -> Tensor:
        if self.normalize:
            support, query = F.normalize(support, dim=-1), F.normalize(query, dim=-1)
        return prototype_logits(support, query)


class Logistic(FeatureClassifier):
    """Logistic regression on the support features, brought to length 1 (Tian et al., 2020).

    l2: of mean cross-entropy + l2/2 · ‖W‖².
    """

    def __init__(self, encoder: Encoder, n_classes: int, l2: float):
        if l2 < 0:
            raise UserError(f"episodes.method.l2={l2}: give 0 or more")
        self.l2 = l2

    def classify(self, support: Tensor, query: Tensor) -> Tensor:
        support, query = F.normalize(support, dim=-1), F.normalize(query, dim=-1)
        episodes, ways, shots, _ = support.shape
        labels = torch.arange(ways, device=support.device).repeat_interleave(shots).expand(episodes, -1)
        weight, bias = fit_each(support.flatten(1, 2), labels, ways, self.l2)
        return torch.baddbmm(bias[:, None], query, weight.mT)


class FineTune(FeatureClassifier, AdaptingClassifier):
    """Steps of Adam on the support, from a head that is the classes' mean features (Dhillon et al., 2020, section 3.1).

    Features have length 1, and so have the rows of the head at the start: before the first step it is the cosine to the centroid.
    moves: "head" (then features are made once for all episodes), or "encoder" for both. BatchNorm uses running statistics and
    dropout is off.
    """

    def __init__(self, encoder: Encoder, n_classes: int, moves: str, steps: Count, lr: NonNegative):
        if moves not in ("head", "encoder"):
            raise UserError(f"episodes.method.moves={moves}: give head or encoder{nearest(moves, ('head', 'encoder'))}")
        if steps < 1 or lr <= 0:
            raise UserError(f"episodes.method.steps={steps}, lr={lr}: give at least 1 step and a learning rate above 0")
        self.on_features = moves == "head"
        self.steps, self.lr = steps, lr

    def classify(self, support: Tensor, query: Tensor) -> Tensor:
        episodes, ways, shots, _ = support.shape
        with torch.inference_mode(False), torch.enable_grad():
            labels = torch.arange(ways, device=support.device).repeat_interleave(shots).repeat(episodes)
            support, query = F.normalize(support.clone(), dim=-1), F.normalize(query.clone(), dim=-1)
            weight = F.normalize(support.mean(2), dim=-1).requires_grad_()  # [E, N, D]
            bias = support.new_zeros(episodes, 1, ways).requires_grad_()
            x = support.flatten(1, 2)

            def loss() -> Tensor:  # the sum over episodes, for Adam's steps of one then do not depend on the others
                logits = torch.baddbmm(bias, x, weight.transpose(1, 2)).flatten(0, 1)
                return F.cross_entropy(logits, labels, reduction="sum") / (ways * shots)

            self._minimise(loss, [weight, bias])
            return torch.baddbmm(bias, query, weight.transpose(1, 2)).detach()

    def solve(self, encoder: Encoder, support: Inputs, labels: Tensor, query: Inputs) -> Tensor:
        ways = int(labels.max()) + 1
        with torch.inference_mode(False), torch.enable_grad(), full_precision():
            labels, support = labels.clone(), {name: x.clone() for name, x in support.items()}
            head = _Cosine(encoder.dim, ways).to(labels.device)
            model = WithHead(encoder, head)
            with torch.no_grad():
                features = F.normalize(encoder(support).pooled, dim=-1)
                centres = torch.stack([features[labels == c].mean(0) for c in range(ways)])
                head.weight.copy_(F.normalize(centres, dim=-1))
            weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters() if p.requires_grad}
            self._minimise(lambda: F.cross_entropy(functional_call(model, weights, (support,)), labels), list(weights.values()))
            with torch.no_grad():
                return functional_call(model, weights, (query,))

    def _minimise(self, loss: Callable[[], Tensor], weights: list[Tensor]) -> None:
        optimizer = torch.optim.Adam(weights, self.lr)
        for _ in range(self.steps):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()


class _Cosine(nn.Module):
    """A linear head on features of length 1."""

    def __init__(self, dim: int, ways: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(ways, dim))
        self.bias = nn.Parameter(torch.zeros(ways))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x, dim=-1), self.weight, self.bias)
