"""The linear probe: multinomial logistic regression on frozen features; one class against the rest, and ridge, for other answers.

The problem is convex and small, so it is solved rather than trained: full-batch L-BFGS, no learning rate to tune. Where samples outnumber
features, it runs in coordinates in which the loss is about equally curved along all of them, and needs a fraction of the steps.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sslt.errors import UserError

L2_GRID = (1.0, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4, 1e-5)
WIDEST = 8192  # features up to which their Gram matrix is made
POWERS = (1.0, 2.0)  # of its deviation, by which a principal component may count where labels are few
CHANCE = 0.5  # standard errors of a share on validation by which that has to be better
MOST_ROWS = 2000  # from which the components are found
WORSE = 2  # weaker fits in a row below the best one, after which none weaker is tried


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """`accuracy` on test and `val_accuracy` (0..1) of the weights fitted with the chosen `l2`; `logits_test` [M, C]."""

    accuracy: float
    val_accuracy: float
    l2: float
    logits_test: Tensor


def linear_probe(
    train_x: Tensor,
    train_y: Tensor,
    val_x: Tensor,
    val_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    n_classes: int,
    l2_grid: Sequence[float] = L2_GRID,
) -> ProbeResult:
    """Fit on train for each `l2`, choose by accuracy on val, score that fit on test, once.

    Features [N, D] are standardised by the mean and deviation of train; labels [N] are class indices. The chosen
    weights are scored as they are: there is no refit on train and val together. Of equal validation accuracies the
    stronger regularisation wins. Fits go from strong to weak, each from the one before, which costs fewer iterations
    than starting afresh, until `WORSE` of them in a row are below the best. Runs on the device of `train_x`.

    Raises `UserError` for an empty split or grid and for features that are not finite.
    """
    _check_features(test_x, "test")
    weight, bias, l2 = probe_weights(train_x, train_y, (val_x, val_y), n_classes, l2_grid)
    val_accuracy = accuracy(val_x.detach().to(weight.device).float() @ weight.T + bias, val_y)
    logits = test_x.detach().to(weight.device).float() @ weight.T + bias
    return ProbeResult(accuracy(logits, test_y), val_accuracy, l2, logits)


def probe_weights(
    x: Tensor,
    y: Tensor,
    val: tuple[Tensor, Tensor] | None,
    n_classes: int,
    l2_grid: Sequence[float],
    score: Callable[[Tensor, Tensor], float] | None = None,
) -> tuple[Tensor, Tensor, float]:
    """Weights [C, D] and bias [C] of `linear_probe`, for features as they are, and the `l2` that is best on `val` (x, y).

    score: of logits and `y`, a share, in place of accuracy. Without `val` the strongest of the grid is taken. Raises `UserError` as
    `linear_probe` does.
    """
    score = score or accuracy
    if not l2_grid:
        raise UserError("the linear probe needs at least one l2 value to try")
    for split, features in (("train", x), *((("val", val[0]),) if val is not None else ())):
        _check_features(features, split)
    mean, std = feature_statistics(x)
    z = (x.detach().float() - mean) / std
    if val is None:
        weight, bias = fit_logistic(z, y, n_classes, max(l2_grid), gram=_gram(z))
        found = Fit(0.0, max(l2_grid), weight, bias)
    else:
        held = (val[0].detach().to(z.device).float() - mean) / std
        found = _best_fit(z, y, held, val[1], n_classes, l2_grid, score)
        if len(z) < z.shape[1]:
            least = beyond_chance(found.score, len(held))
            for axes in _axes(torch.cat([z, held])):
                other = _best_fit(z @ axes, y, held @ axes, val[1], n_classes, l2_grid, score)
                if other.score > least:
                    found, least = other._replace(weight=other.weight @ axes.T), other.score
    weight = found.weight / std  # standardising is linear, too
    return weight, found.bias - weight @ mean, found.l2


class Fit(NamedTuple):
    """Weights [C, D] and bias [C] fitted with `l2`, and their score on validation."""

    score: float
    l2: float
    weight: Tensor
    bias: Tensor


def _best_fit(
    x: Tensor, y: Tensor, held: Tensor, truth: Tensor, n_classes: int, l2_grid: Sequence[float], score: Callable[[Tensor, Tensor], float]
) -> Fit:
    """The fit on `x`, `y` whose score on `held`, `truth` is best; of equal ones the stronger."""
    best: Fit | None = None
    fit: tuple[Tensor, Tensor] | None = None
    gram, worse = _gram(x), 0
    for l2 in sorted(l2_grid, reverse=True):
        fit = fit_logistic(x, y, n_classes, l2, init=fit, gram=gram)
        found = score(held @ fit[0].T + fit[1], truth)
        worse = worse + 1 if best is not None and found < best.score else 0
        if best is None or found > best.score:
            best = Fit(found, l2, *fit)
        if worse == WORSE:
            break
    assert best is not None
    return best


def _gram(x: Tensor) -> Tensor | None:
    """xᵀx / N, where it is worth its while."""
    return x.T @ x / len(x) if x.shape[1] <= min(len(x), WIDEST) else None


def _axes(rows: Tensor) -> Iterator[Tensor]:
    """Matrices [D, K] after which the features `rows` [N, D] are their principal components, each times a power of its deviation.

    A penalty on weights then is least for what features differ by most, and needs no label to know it (cluster kernels: Chapelle, Weston
    & Schölkopf, 2002). Mean variances are 1, as those of standardised features are. Nothing for features that do not vary.
    """
    device, rows = rows.device, rows[:MOST_ROWS].cpu().double()  # some devices have no float64
    rows = rows - rows.mean(0)
    n, d = rows.shape
    variance, axes = torch.linalg.eigh((rows.T @ rows if d <= n else rows @ rows.T) / n)
    kept = variance > 1e-6 * variance[-1].clamp(min=1e-6)
    if not bool(kept.any()):
        return
    variance, axes = variance[kept], axes[:, kept]
    if d > n:
        axes = rows.T @ axes / (n * variance).sqrt()
    for power in POWERS:
        scales = variance ** (power / 2)
        yield (axes * scales / (scales.square() * variance).sum().div(d).sqrt()).float().to(device)


def fit_logistic(
    x: Tensor,
    y: Tensor,
    n_classes: int,
    l2: float,
    init: tuple[Tensor, Tensor] | None = None,
    max_iter: int = 100,
    gram: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Weights [C, D] and bias [C] that minimise mean cross-entropy + l2/2 · ||W||² on `x` [N, D], `y` [N].

    `y` may be bool [N, C] instead: each class is told from the rest by itself, and the loss is the sum of C binary cross-entropies.
    The bias is free. In the terms of scikit-learn's `LogisticRegression`, C = 1 / (N · l2). L-BFGS with a strong-Wolfe
    line search, from `init` or from zero, until the gradient is below 1e-5 or `max_iter` iterations are done; with weak
    `l2` the latter may come first and then acts as early stopping. `x` is used as given (standardise it first).

    gram: xᵀx / N [D, D]. With it, steps are taken on V = W L, where L Lᵀ = gram / C + l2 is the curvature of the loss at W = 0 (Böhning,
    1992; of one class against the rest gram / 4 + l2), and a rounding's worth: the way is shorter, the end is the same.
    """
    # Outside inference mode, because the optimiser needs ordinary tensors; with gradients written out, because features
    # computed in inference mode cannot enter autograd.
    with torch.inference_mode(False), torch.no_grad():
        several = y.dim() == 2
        x, y = x.detach().float(), y.detach().to(x.device, torch.float32 if several else torch.long)
        weight = torch.zeros(n_classes, x.shape[1], device=x.device)
        bias = torch.zeros(n_classes, device=x.device)
        if init is not None:
            weight.copy_(init[0])
            bias.copy_(init[1])
        root = None if gram is None else _root_of_curvature(gram, 4 if several else n_classes, l2)
        moved = weight if root is None else (weight @ root).contiguous()
        rows = torch.arange(len(x), device=x.device)

        def objective() -> Tensor:
            if root is not None:
                weight.copy_(torch.linalg.solve_triangular(root, moved, upper=False, left=False))
            scores = torch.addmm(bias, x, weight.T)
            if several:
                loss = (F.softplus(scores) - y * scores).sum(1).mean() + l2 / 2 * weight.square().sum()
                error = scores.sigmoid_().sub_(y)
            else:
                log_p = scores.log_softmax(1)
                loss = -log_p[rows, y].mean() + l2 / 2 * weight.square().sum()
                error = log_p.exp_()
                error[rows, y] -= 1
            error /= len(x)
            slope = error.T @ x + l2 * weight
            moved.grad = (slope if root is None else torch.linalg.solve_triangular(root.T, slope, upper=True, left=False)).contiguous()
            bias.grad = error.sum(0)
            return loss

        _minimise([moved, bias], objective, max_iter)
        if root is not None:
            weight = torch.linalg.solve_triangular(root, moved, upper=False, left=False)
        return weight, bias


def fit_each(x: Tensor, y: Tensor, n_classes: int, l2: float, max_iter: int = 100) -> tuple[Tensor, Tensor]:
    """`fit_logistic` of G small problems of one size at once: `x` [G, N, D], class indices `y` [G, N] → weights [G, C, D], biases [G, C].

    What is minimised is the sum of their losses, whose least value is where each is least.
    """
    with torch.inference_mode(False), torch.no_grad():
        x, hot = x.detach().float().clone(), F.one_hot(y.detach().to(x.device), n_classes).float()
        weight = torch.zeros(len(x), n_classes, x.shape[2], device=x.device)
        bias = torch.zeros(len(x), 1, n_classes, device=x.device)

        def objective() -> Tensor:
            log_p = torch.baddbmm(bias, x, weight.mT).log_softmax(2)
            error = (log_p.exp() - hot) / x.shape[1]
            weight.grad = error.mT @ x + l2 * weight
            bias.grad = error.sum(1, keepdim=True)
            return -(log_p * hot).sum() / x.shape[1] + l2 / 2 * weight.square().sum()

        _minimise([weight, bias], objective, max_iter)
        return weight, bias.squeeze(1)


def _minimise(parameters: list[Tensor], objective: Callable[[], Tensor], max_iter: int) -> None:
    """L-BFGS; `objective` gives the loss and sets gradients."""
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=max_iter, tolerance_grad=1e-5, tolerance_change=1e-9, history_size=10, line_search_fn="strong_wolfe"
    )
    optimizer.step(objective)  # type: ignore[arg-type]


def ridge_weights(x: Tensor, y: Tensor, val: tuple[Tensor, Tensor] | None, l2_grid: Sequence[float]) -> tuple[Tensor, Tensor, float]:
    """Weights [D] and bias of ridge regression of numbers `y` [N] on features `x` [N, D] as they are, and its `l2`.

    Minimises mean (y - w·x - b)² + l2 · ||w||² on features that are standardised and numbers of mean 0; in the terms of scikit-learn's
    `Ridge`, alpha = N · l2. Solved in closed form, by samples where these are fewer than features. The `l2` has the least squared error
    on `val` (x, y), and not the best order: a penalty that is too strong ranks as well, with numbers too near to their mean. Without
    `val` the grid has one value. Raises `UserError` as `linear_probe` does.
    """
    for split, features in (("train", x), *((("val", val[0]),) if val is not None else ())):
        _check_features(features, split)
    with torch.inference_mode(False), torch.no_grad():
        mean, std = feature_statistics(x)
        z, middle = (x.detach().float() - mean) / std, y.double().mean()
        target = (y.double() - middle).to(z.device, torch.float32)
        if val is None:
            _, l2, weight = _best_ridge(z, target, z, target, l2_grid)
        else:
            held, truth = (val[0].detach().to(z.device).float() - mean) / std, (val[1].double() - middle).to(z.device, torch.float32)
            wrong, l2, weight = _best_ridge(z, target, held, truth, l2_grid)
            for axes in _axes(torch.cat([z, held])) if len(z) < z.shape[1] else ():
                other, strength, along = _best_ridge(z @ axes, target, held @ axes, truth, l2_grid)
                if other < wrong:
                    wrong, l2, weight = other, strength, axes @ along
        weight = weight / std
    return weight, middle.float() - weight @ mean, l2


def _best_ridge(x: Tensor, y: Tensor, held: Tensor, truth: Tensor, l2_grid: Sequence[float]) -> tuple[float, float, Tensor]:
    """The least squared error on `held`, `truth` of ridge regression on `x`, `y`, all of them centred, its `l2` and weights [D]."""
    n, d = x.shape
    kernel, right = (x.T @ x / n, x.T @ y / n) if d <= n else (x @ x.T / n, y)
    best: tuple[float, float, Tensor] | None = None
    for l2 in sorted(l2_grid, reverse=True):
        least = 1e-6 * float(kernel.diagonal().mean())  # a rounding's worth
        root = torch.linalg.cholesky(kernel + max(l2, least) * torch.eye(len(kernel), device=x.device))
        solved = torch.cholesky_solve(right[:, None], root)[:, 0]
        weight = solved if d <= n else x.T @ solved / n
        wrong = float((held @ weight - truth).square().mean())
        if best is None or wrong < best[0]:
            best = (wrong, l2, weight)
    assert best is not None
    return best


def _root_of_curvature(gram: Tensor, n_classes: int, l2: float) -> Tensor:
    """Lower triangular L [D, D] of L Lᵀ = gram / C + l2, made safe against what float32 rounds off."""
    diagonal = gram.diagonal()
    least = 1e-6 * float(diagonal.mean()) * len(gram) / n_classes
    return torch.linalg.cholesky(gram / n_classes + max(l2, least) * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))


def feature_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and deviation [D] of the features `x` [N, D]; a feature that does not vary has deviation 1."""
    x = x.detach().float()
    std, mean = torch.std_mean(x, dim=0, correction=0)
    # Rounding gives a constant feature a tiny deviation; dividing by it would blow noise up to unit size.
    return mean, torch.where(std > 1e-6 * mean.abs() + 1e-12, std, torch.ones_like(std))


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share (0..1) of rows of `logits` [N, C] whose largest entry is at `labels` [N]."""
    return float((logits.argmax(1) == labels.to(logits.device)).float().mean())


def standard_error(share: float, n: int) -> float:
    """Of a share (0..1) that was found with `n` trials."""
    return math.sqrt(share * (1 - share) / max(n, 1))


def beyond_chance(share: float, n: int) -> float:
    """What another share of the same trials has to be above, to be taken for better."""
    return share + CHANCE * standard_error(share, n)


def _check_features(x: Tensor, split: str) -> None:
    if len(x) == 0:
        raise UserError(f"the linear probe needs labelled samples in train, val and test; '{split}' has none")
    if not bool(torch.isfinite(x).all()):
        raise UserError(
            f"the features of '{split}' are not all finite numbers: the encoder has diverged; "
            "lower the learning rate or use an earlier checkpoint"
        )
