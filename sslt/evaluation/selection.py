"""Judging a model on a domain whose labels are not known: criteria that pick an epoch, and how far domains are apart.

Features are [N, D], logits [N, C], labels [N] class indices; everything runs on the CPU and is a function of its arguments.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslt.targets.linear import feature_statistics, fit_logistic

L2 = 1e-2  # of the classifiers that tell domains apart, on standardised features


def information_maximisation(logits: Tensor) -> float:
    """H(mean p) - mean H(p) in nats: high where predictions are sure one by one and use all classes together.

    The mutual information of input and predicted label (Bridle et al., 1992; Krause et al., 2010); from 0 to log C.
    """
    p = logits.detach().double().softmax(1)
    return float(torch.special.entr(p.mean(0)).sum() - torch.special.entr(p).sum(1).mean())


def density_ratio(source: Tensor, target: Tensor, at: Tensor) -> Tensor:
    """p_target(x) / p_source(x) [M] at features `at` [M, D], by a logistic regression that tells the two apart (Bickel et al., 2007)."""
    weight, bias, mean, std = _domain_classifier(source, target)
    score = ((at.float() - mean) / std) @ (weight[1] - weight[0]) + (bias[1] - bias[0])
    return torch.exp(score.double()) * (len(source) / len(target))


def weighted_risk(losses: Tensor, ratio: Tensor, control: bool) -> float:
    """The mean loss on the target, estimated from losses [M] on the source and `density_ratio` [M] there.

    Importance-weighted validation (Sugiyama et al., 2007); control: with the control variate that lowers its variance,
    mean(w·l) + η mean(w) - η with η = -cov(w·l, w) / var(w) (DEV, You et al., 2019).
    """
    losses, ratio = losses.double(), ratio.double()
    weighted = losses * ratio
    risk = float(weighted.mean())
    if not control or len(ratio) < 2:
        return risk
    variance = float(ratio.var())
    if variance == 0:
        return risk
    eta = -float(((weighted - weighted.mean()) * (ratio - ratio.mean())).sum() / (len(ratio) - 1)) / variance
    return risk + eta * float(ratio.mean()) - eta


def target_risk(source: Tensor, target: Tensor, held_out: Tensor, logits: Tensor, labels: Tensor) -> float:
    """Cross-entropy on the target in nats, estimated by DEV from `logits` and `labels` of held-out source samples.

    source, target: features of training samples of both domains; held_out: features of the held-out ones.
    """
    losses = F.cross_entropy(logits.float(), labels.long(), reduction="none")
    return weighted_risk(losses, density_ratio(source, target, held_out), control=True)


def proxy_a_distance(source: Tensor, target: Tensor, seed: int) -> float:
    """2 (1 - 2ε), where ε is the error of a linear classifier that tells the domains apart (Ben-David et al., 2010).

    Trained on one seeded half of each domain, measured on the other; of the larger domain as many rows are used as the smaller
    has. 0: not told apart (an error above a half counts as a half), 2: told apart always.
    """
    n = min(len(source), len(target))
    if n < 2:
        raise ValueError("a distance between domains needs at least two samples of each")
    rng = np.random.default_rng([seed, 0xAD])
    s, t = (x[torch.from_numpy(rng.permutation(len(x))[:n])] for x in (source, target))
    half = n // 2
    weight, bias, mean, std = _domain_classifier(s[:half], t[:half])
    held = (torch.cat([s[half:], t[half:]]).float() - mean) / std
    truth = torch.arange(len(held)) >= n - half
    error = float(((held @ weight.T + bias).argmax(1).bool() != truth).double().mean())
    return 2 * (1 - 2 * min(error, 0.5))


def distance_weights(distances: list[float], temperature: float) -> list[float]:
    """Shares of several sources by their distance to the target: softmax of -distance / temperature."""
    return torch.tensor([-d / temperature for d in distances], dtype=torch.float64).softmax(0).tolist()


def _domain_classifier(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights [2, D] and biases [2] of a logistic regression on features standardised by the mean and deviation that follow."""
    x = torch.cat([source, target]).detach().float()
    mean, std = feature_statistics(x)
    label = (torch.arange(len(x)) >= len(source)).long()
    weight, bias = fit_logistic((x - mean) / std, label, 2, L2)
    return weight, bias, mean, std
