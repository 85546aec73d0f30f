"""Measures of features without labels: their spectrum, spread and collapse.

Self-supervised objectives can be met by features that say little: all samples at one point (complete collapse), or all
in a few directions (dimensional collapse; Jing et al. 2022). The loss does not show it; these numbers do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MAX_PAIRWISE = 4096  # samples compared all with all

# `feature_std` is 1 for features spread evenly over the sphere. Encoders start far below that (their features share a
# common direction), so a tenth of the start counts as collapse, and a twentieth of the even spread where it is unknown.
COMPLETE_OF_START = 0.1
COMPLETE_ALONE = 0.05
# Useful features often have a RankMe of some tens: 5% of the dimensions is suspect. Untrained encoders may lie below
# that, so where the start is known the features must also have lost half of what they had.
RANK_OF_DIM = 0.05
RANK_OF_START = 0.5


def rankme(x: Tensor) -> float:
    """Effective rank of features [N, D]: from 1 (all along one direction) to at most min(N - 1, D).

    Garrido et al. 2023, "RankMe", equation 1: the exponential of the entropy of the singular values over their sum.
    Two differences: features are centred, so that a common offset does not hide the rest; and p · log p is 0 at p = 0
    in place of an epsilon, so that the bound holds. Features that are all the same have 1.
    """
    values = _centred_spectrum(x).sqrt()
    if len(values) == 0:
        return 1.0
    p = values / values.sum()
    return float(torch.special.entr(p).sum().exp())


def alpha_req(x: Tensor) -> float:
    """Exponent a of the power law λ_i ~ i^-a that the covariance eigenvalues of features [N, D] follow.

    Agrawal et al. 2022, "α-ReQ": values near 1 go with good transfer, much larger ones with collapse. Least squares in
    log-log, over the ranks from 10 to half of all where there are 100 or more, since the first directions follow no
    power law and the last are cut off by the number of samples; over all ranks otherwise. NaN below three eigenvalues.
    """
    values = _centred_spectrum(x)
    n = len(values)
    if n < 3:
        return math.nan
    first, last = (10, n // 2) if n >= 100 else (1, n)
    log_rank = torch.arange(first, last + 1, dtype=torch.float64).log()
    log_value = values[first - 1 : last].log()
    log_rank, log_value = log_rank - log_rank.mean(), log_value - log_value.mean()
    return float(-(log_rank * log_value).sum() / log_rank.square().sum())


def feature_std(x: Tensor) -> float:
    """Spread of features [N, D] over directions: 1 if isotropic, 0 if all samples point the same way.

    Chen & He 2021, "SimSiam", figure 2: the deviation of each dimension of the L2-normalised features, averaged, and
    here multiplied by sqrt(D) so that the value does not depend on the dimension.
    """
    if len(x) == 0:
        raise ValueError("no features to measure")
    z = F.normalize(x.detach().float(), dim=1)
    return float(z.std(0, correction=0).mean()) * math.sqrt(x.shape[1])


def alignment(a: Tensor, b: Tensor) -> float:
    """Mean squared distance (0..4) of positive pairs, rows of `a` [N, D] and `b` [N, D], after L2 normalisation.

    Wang & Isola 2020, equation for L_align with exponent 2; lower is better.
    """
    a, b = F.normalize(a.detach().float(), dim=1), F.normalize(b.detach().float(), dim=1)
    return float((a - b).square().sum(1).mean())


def uniformity(x: Tensor, t: float = 2.0, seed: int = 0) -> float:
    """log of the mean of exp(-t · squared distance) over all pairs of L2-normalised features [N, D]: 0 if collapsed.

    Wang & Isola 2020, L_uniform; lower is better, about -2t for an even spread in many dimensions. Of more than 4,096
    samples a seeded subset is taken. NaN below two samples.
    """
    x = x.detach()
    if len(x) > MAX_PAIRWISE:
        x = x[np.sort(np.random.default_rng(seed).choice(len(x), MAX_PAIRWISE, replace=False))]
    n = len(x)
    if n < 2:
        return math.nan
    z = F.normalize(x.float(), dim=1)
    norm = z.square().sum(1)  # 1, but 0 for a zero vector
    distance = (norm[:, None] + norm - 2 * z @ z.T).fill_diagonal_(math.inf)  # squared; a pair needs two samples
    return float((-t * distance).flatten().logsumexp(0)) - math.log(n * (n - 1))


def class_alignment(x: Tensor, labels: Tensor, seed: int = 0) -> float:
    """`alignment` of features [N, D] with those of another random sample of the same class, `labels` [N].

    Each sample is once the first and once the second of a pair. Classes of a single sample have no pair; NaN if no
    class has one.
    """
    y = labels.detach().cpu().numpy()
    order = np.random.default_rng(seed).permutation(len(y))
    first, second = [], []
    for c in np.unique(y):
        members = order[y[order] == c]
        if len(members) > 1:
            first.append(members)
            second.append(np.roll(members, 1))
    if not first:
        return math.nan
    return alignment(x[np.concatenate(first)], x[np.concatenate(second)])


def collapse_report(x: Tensor) -> dict[str, float]:
    """The numbers of this module that need features [N, D] alone: `rankme`, `alpha_req`, `std`, `uniformity`.

    All NaN where features are not finite.
    """
    if not bool(torch.isfinite(x).all()):
        return dict.fromkeys(("rankme", "alpha_req", "std", "uniformity"), math.nan)
    return {"rankme": rankme(x), "alpha_req": alpha_req(x), "std": feature_std(x), "uniformity": uniformity(x)}


def collapse_warning(before: Mapping[str, float] | None, now: Mapping[str, float], dim: int, advice: str) -> str | None:
    """What to tell the user if the features collapsed, or None.

    `before` and `now` are `collapse_report`s of the untrained encoder (None if unknown) and of the present one; `dim`
    is the largest possible rank, min(N - 1, D); `advice` says what to try, by the objective. Complete collapse: `std` is
    below a tenth of what it was before training (0.05 if unknown). Dimensional collapse: RankMe is below 5% of `dim` and
    below half of what it was before training (if known).
    """
    std, rank = now["std"], now["rankme"]
    if not (math.isfinite(std) and math.isfinite(rank)):
        return (
            "the features are no longer finite numbers: training has diverged; "
            "lower the learning rate, lengthen the warm-up or clip gradients"
        )
    if std < _limit(before, "std", COMPLETE_OF_START, COMPLETE_ALONE):
        return f"the features have collapsed: all samples are mapped to nearly the same point (spread {std:.2g}, where 1 is even); {advice}"
    if rank < RANK_OF_DIM * dim and rank < _limit(before, "rankme", RANK_OF_START, math.inf):
        return (
            f"the features are collapsing: {dim} dimensions carry what {max(1, round(rank))} could "
            f"(RankMe {rank:.1f}{_was(before)}); {advice}"
        )
    return None


def _limit(before: Mapping[str, float] | None, name: str, share: float, alone: float) -> float:
    """`share` of the value before training, or `alone` where there is none."""
    value = math.nan if before is None else before.get(name, math.nan)
    return share * value if math.isfinite(value) else alone


def _was(before: Mapping[str, float] | None) -> str:
    value = math.nan if before is None else before.get("rankme", math.nan)
    return f", {value:.1f} before training" if math.isfinite(value) else ""


def _centred_spectrum(x: Tensor) -> Tensor:
    """Eigenvalues of the centred scatter matrix of [N, D], largest first, without those that are only rounding.

    In float64, through the smaller of the two Gram matrices, on the CPU where the device has no float64.
    """
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(f"features must be [N, D] with N > 0, not {list(x.shape)}")
    x = x.detach()
    x = (x.cpu() if x.device.type == "mps" else x).double()
    centred = x - x.mean(0)
    gram = centred.T @ centred if len(x) >= x.shape[1] else centred @ centred.T
    values = torch.linalg.eigvalsh(gram).flip(0).cpu()
    # Rounding to float32 adds noise with singular values of about eps · |x|_F / sqrt(12 D): features that are constant
    # but for rounding would otherwise seem to have full rank. Eigenvalues are squares.
    eps = torch.finfo(torch.float32).eps
    floor = max((eps**2) * float(x.square().sum()) / min(x.shape), 1e-14 * float(values[0]))
    return values[values > floor]
