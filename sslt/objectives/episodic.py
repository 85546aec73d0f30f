"""Learning from few-shot episodes: prototypical networks, MAML (second and first order), ANIL.

All read what `EpisodeStream` gives: one view, and the rows `support` [E, N, K] and `query` [E, N, Q] of E episodes of N
classes. Each is a classifier as well, measured by `evaluation/episodes.py`: on features, or by adapting an encoder.
"""

from __future__ import annotations

import abc

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from sslt import lanes
from sslt.encoders.base import Encoder
from sslt.encoders.batch_norm import batch_statistics
from sslt.errors import UserError
from sslt.objectives.base import Loss, Objective, encode_views, full_precision, wide
from sslt.objectives.parts.inner import Inputs, WithHead, descend, descend_head, take
from sslt.ranges import Count, Positive


class FeatureClassifier(abc.ABC):
    """Tells the classes of episodes apart by features alone: every sample is encoded once, for all episodes."""

    on_features = True

    @abc.abstractmethod
    def classify(self, support: Tensor, query: Tensor) -> Tensor:
        """Logits [E, M, N] of queries [E, M, D] by support features [E, N, K, D], class by class."""


class AdaptingClassifier(abc.ABC):
    """Adapts the encoder to every episode."""

    on_features = False

    @abc.abstractmethod
    def solve(self, encoder: Encoder, support: Inputs, labels: Tensor, query: Inputs) -> Tensor:
        """Logits [M, N] of the inputs `query` by the inputs `support` and their `labels`; the encoder stays as it is.

        Works where gradients are switched off, in inference mode too.
        """


class EpisodicObjective(Objective):
    """Cross-entropy over the queries of all episodes of a batch."""

    one_way = False  # whether episodes must have as many classes as it was made for
    own_statistics = False  # whether it normalises by an episode's own batches and leaves running statistics alone

    def units(self, batch: dict) -> int:
        return batch["query"].numel()


class Prototypes(EpisodicObjective, FeatureClassifier):
    """Prototypical networks: a softmax over squared Euclidean distances to the classes' means (Snell et al., 2017, eq. 1, 2)."""

    def __init__(self, encoder: Encoder, n_classes: int):
        super().__init__()

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        support, query, labels = episode_features(encoder, batch)
        with full_precision():
            return episode_loss(self.classify(support, query), labels)

    def classify(self, support: Tensor, query: Tensor) -> Tensor:
        return prototype_logits(support, query)


def prototype_logits(support: Tensor, query: Tensor) -> Tensor:
    """-‖q - c‖² [E, M, N] for queries q [E, M, D] and the means c of support [E, N, K, D], less -‖q‖², the same for all c."""
    centres = support.mean(2)
    return torch.baddbmm(-centres.square().sum(-1).unsqueeze(1), query, centres.transpose(1, 2), alpha=2)


class _Inner(EpisodicObjective):
    """A linear head of which, with the encoder or alone, a few gradient steps are taken on the support."""

    one_way = True

    def __init__(self, encoder: Encoder, n_classes: int, inner_steps: Count, test_steps: Count, inner_lr: Positive, first_order: bool):
        super().__init__()
        for key, value in (("inner_steps", inner_steps), ("test_steps", test_steps)):
            if value < 1:
                raise UserError(f"episodes.method.{key}={value}: give at least 1")
        if inner_lr <= 0:
            raise UserError(f"episodes.method.inner_lr={inner_lr}: give more than 0")
        self.inner_steps, self.test_steps, self.inner_lr, self.first_order = inner_steps, test_steps, inner_lr, first_order
        self.head = nn.Linear(encoder.dim, n_classes)


class MAML(_Inner, AdaptingClassifier):
    """Model-agnostic meta-learning (Finn et al., 2017, algorithm 2): weights from which `inner_steps` of gradient descent on an
    episode's support lead to a small loss on its queries.

    The outer gradient goes through the inner steps; `first_order` takes theirs as constants (section 5.2, "first order").
    What an adaptation freezes stands still inside, too. test_steps: inner steps when measured.

    Episodes are gone through one by one: on a CPU that is faster than `torch.func.vmap`, which text encoders' control flow does
    not go through. BatchNorm takes the statistics of the support, and then of the queries, at hand, in tests too, as in the
    original: queries are classified together ("transductive"). Running statistics are left alone. Computed in float32.
    """

    own_statistics = True

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        model = WithHead(encoder, self.head)
        weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        inputs = {name: x.flatten(0, 1) for name, x in batch["views"].items()}
        labels, queries = batch["label"], batch["query"].flatten(1)
        logits = []
        with full_precision(), batch_statistics(encoder):
            for support, query in zip(batch["support"].flatten(1), queries, strict=True):
                known = take(inputs, support), labels[support]
                with lanes.rows(support):
                    adapted = descend(model, weights, *known, self.inner_steps, self.inner_lr, not self.first_order)
                with lanes.rows(query):
                    logits.append(functional_call(model, adapted, (take(inputs, query),)))
            return episode_loss(torch.stack(logits), labels[queries])

    def solve(self, encoder: Encoder, support: Inputs, labels: Tensor, query: Inputs) -> Tensor:
        model = WithHead(encoder, self.head)
        with torch.inference_mode(False), torch.enable_grad(), full_precision(), batch_statistics(encoder):
            weights = {name: p.detach().requires_grad_() for name, p in model.named_parameters() if p.requires_grad}
            ordinary = {name: x.clone() for name, x in support.items()}  # what inference mode made cannot be differentiated
            for _ in range(self.test_steps):
                moved = descend(model, weights, ordinary, labels.clone(), 1, self.inner_lr, second_order=False)
                weights = {name: w.detach().requires_grad_() for name, w in moved.items()}
            with torch.no_grad():
                return functional_call(model, weights, (query,))


class ANIL(_Inner, FeatureClassifier):
    """Almost no inner loop (Raghu et al., 2020): MAML whose inner steps move the head alone.

    The features of all episodes are then those of one forward, the head's gradient is written out, and the steps of all
    episodes are products of matrices. So BatchNorm is as everywhere: the step's batch in training, running statistics in tests.
    """

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        support, query, labels = episode_features(encoder, batch)
        with full_precision():
            return episode_loss(self._logits(support, query, self.inner_steps), labels)

    def classify(self, support: Tensor, query: Tensor) -> Tensor:
        return self._logits(support, query, self.test_steps)

    def _logits(self, support: Tensor, query: Tensor, steps: int) -> Tensor:
        weight, bias = descend_head(support, self.head.weight, self.head.bias, steps, self.inner_lr, not self.first_order)
        return torch.baddbmm(bias.unsqueeze(1), query, weight.transpose(1, 2))


def episode_features(encoder: Encoder, batch: dict) -> tuple[Tensor, Tensor, Tensor]:
    """Support features [E, N, K, D], query features [E, N·Q, D] and query labels [E, N·Q], from one forward of the batch."""
    x = encode_views(encoder, batch).pooled
    x = wide(x)
    query = batch["query"].flatten(1)
    return x[batch["support"]], x[query], batch["label"][query]


def episode_loss(logits: Tensor, labels: Tensor) -> Loss:
    """Mean cross-entropy and accuracy of logits [E, M, N] of labels [E, M]."""
    logits, labels = logits.flatten(0, 1), labels.flatten()
    with torch.no_grad():
        accuracy = (logits.argmax(-1) == labels).float().mean()
    return Loss(F.cross_entropy(logits, labels), {"accuracy": accuracy})
