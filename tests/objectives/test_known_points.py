"""Protects what losses are worth where their value is known: views that agree, samples that are orthogonal, features that have collapsed.

Also which rows each BatchNorm sees, since a mean over the wrong ones lets a network without negatives cheat or collapse.
"""

from __future__ import annotations

import math

import joint_objectives
import pytest
import torch
import torch.nn.functional as F
from joint_objectives import OBJECTIVES
from small_vit import images, small_vit
from torch import nn
from vector_encoder import VectorEncoder

from sslt.errors import UserError
from sslt.objectives.byol import BYOL, SimSiam
from sslt.objectives.clustering import SwAV
from sslt.objectives.contrastive import nt_xent
from sslt.objectives.decorrelation import WMSE, BarlowTwins, VICReg
from sslt.objectives.dino import DINO
from sslt.objectives.lejepa import LeJEPA
from sslt.objectives.moco import NNCLR, MoCoV2, MoCoV3
from sslt.objectives.msn import MSN
from sslt.objectives.supervised_contrast import decoupled, supervised

V, N, T = 2, 8, 0.5  # views, samples (as many as dimensions) and temperature


class Shown(VectorEncoder):
    """Features are the inputs, behind a BatchNorm if asked for."""

    def __init__(self, norm: bool = False, dim: int = N) -> None:
        super().__init__(nn.BatchNorm1d(dim) if norm else nn.Identity(), dim)


def bare(objective):
    """Without heads, and as it is after training."""
    return joint_objectives.bare(objective).eval()


def both(x: torch.Tensor) -> dict:
    """A batch whose two views are x [N, D]."""
    return {"views": {"x": torch.stack([x, x])}}


ORTHOGONAL = torch.eye(N)
COLLAPSED = F.normalize(torch.ones(N, N), dim=1)


# -------------------------------------------------------------------- contrast
def moco_v2(z: torch.Tensor, queue: torch.Tensor) -> float:
    objective = bare(MoCoV2(Shown(), 8, N, T, 0.9, len(queue)))
    objective.queue.features.copy_(queue)
    return float(objective(Shown(), both(z)).value)


def moco_v3(z: torch.Tensor) -> float:
    return float(bare(MoCoV3(Shown(), 8, N, T, 0.9))(Shown(), both(z)).value)


def nnclr(z: torch.Tensor) -> float:
    objective = bare(NNCLR(Shown(), 8, N, T, N))
    objective.queue.features.copy_(z)
    return float(objective(Shown(), both(z)).value)


def test_moco_v2():
    """A positive of cosine 1 against K orthogonal negatives: log(1 + K·exp(-1/τ)); against equal ones: log(1 + K)."""
    assert moco_v2(ORTHOGONAL[:3], ORTHOGONAL[3:]) == pytest.approx(math.log(1 + 5 * math.exp(-1 / T)), rel=1e-5)
    assert moco_v2(COLLAPSED, COLLAPSED) == pytest.approx(math.log(1 + N), rel=1e-5)


@pytest.mark.parametrize(("loss", "scale"), [(moco_v3, 2 * T), (nnclr, 1.0)])
def test_in_batch_contrast(loss, scale):
    """Agreeing views of orthogonal samples: log(1 + (N-1)·exp(-1/τ)); collapsed ones cannot be told apart: log N."""
    assert loss(ORTHOGONAL) == pytest.approx(scale * math.log(1 + (N - 1) * math.exp(-1 / T)), rel=1e-5)
    assert loss(COLLAPSED) == pytest.approx(scale * math.log(N), rel=1e-5)


def test_without_the_positive_in_the_sum():
    """DCL: log of the 2(N-1) negatives, each exp(0), less 1/τ; collapsed: log 2(N-1). So NT-Xent has a floor there and DCL has not."""
    orthogonal, collapsed = (both(z)["views"]["x"].double() for z in (ORTHOGONAL, COLLAPSED))
    assert float(decoupled(orthogonal, T)) == pytest.approx(math.log(V * (N - 1)) - 1 / T)
    assert float(decoupled(collapsed, T)) == pytest.approx(math.log(V * (N - 1)))
    assert float(nt_xent(collapsed, T)[0]) == pytest.approx(math.log(V * N - 1))


def test_supcon():
    """Classes that are points, orthogonal to each other: log of own and others' terms less 1/τ; collapsed: log(2N - 1)."""
    labels = torch.arange(N) % 2
    z = both(ORTHOGONAL[labels])["views"]["x"].double()
    own = V * N // 2
    expected = math.log((own - 1) * math.exp(1 / T) + own) - 1 / T
    assert float(supervised(z, labels, T)) == pytest.approx(expected)
    assert float(supervised(both(COLLAPSED)["views"]["x"].double(), labels, T)) == pytest.approx(math.log(V * N - 1))


# -------------------------------------------------------------------- agreement with a teacher, or with oneself
@pytest.mark.parametrize("make", [lambda: BYOL(Shown(), 8, N, 0.9), lambda: SimSiam(Shown(), 8, N, 4)])
def test_agreement(make):
    """0 where views agree, even collapsed ones (nothing in the value forbids it), 2 where they are orthogonal, 4 where opposed."""
    objective = bare(make())
    for other, value in ((ORTHOGONAL, 0), (ORTHOGONAL.roll(1, 0), 2), (-ORTHOGONAL, 4)):
        batch = {"views": {"x": torch.stack([ORTHOGONAL, other])}}
        assert float(objective(Shown(), batch).value) == pytest.approx(value, abs=1e-5)
    collapsed = objective(Shown(), both(COLLAPSED))
    assert float(collapsed.value) == pytest.approx(0, abs=1e-5)
    if "spread" in collapsed.logs:  # and the number beside it tells
        spread = float(objective(Shown(), both(ORTHOGONAL)).logs["spread"])
        assert float(collapsed.logs["spread"]) == pytest.approx(0, abs=1e-6) and spread > 0.9 / math.sqrt(N)


def test_byol_asks_its_teacher():
    """Student's features against a teacher's that differ, in a loop over samples and the two directions."""
    objective = bare(BYOL(Shown(norm=True), 8, N, 0.9)).train()
    encoder = Shown(norm=True)
    with torch.no_grad():
        objective.teacher["encoder"].layer.weight.copy_(torch.linspace(-1, 2, N))
        objective.teacher["encoder"].layer.bias.fill_(0.3)
    x = torch.randn(V, N, N, generator=torch.Generator().manual_seed(0))
    rows = x.flatten(0, 1).double()
    student = (rows - rows.mean(0)) / (rows.var(0, correction=0) + 1e-5).sqrt()  # over both views
    teacher = student * torch.linspace(-1, 2, N).double() + 0.3
    total = 0.0
    for i in range(N):
        for a, b in ((i, N + i), (N + i, i)):
            p, z = student[a], teacher[b]
            total += 2 - 2 * float(p @ z) / math.sqrt(float(p @ p) * float(z @ z))
    assert float(objective(encoder, {"views": {"x": x}}).value) == pytest.approx(total / (2 * N), rel=1e-5)


# -------------------------------------------------------------------- spread and decorrelation
def hadamard() -> torch.Tensor:
    """[8, 4] of ±1 whose columns have mean 0, deviation 1 and no correlation."""
    two = torch.tensor([[1.0, 1], [1, -1]])
    return torch.kron(two, torch.kron(two, two))[:, 1:5]


def test_barlow_twins_and_vicreg():
    """Nothing to gain where agreeing views are uncorrelated with deviation 1; collapsed, every dimension costs what it can."""
    z, point = hadamard() * math.sqrt(7 / 8), torch.ones(N, 4)  # VICReg divides by N - 1
    barlow, vicreg = bare(BarlowTwins(Shown(dim=4), 8, 4, 0.1, 1.0)), bare(VICReg(Shown(dim=4), 8, 4, 25.0, 50.0, 2.0))
    assert float(barlow(Shown(dim=4), both(z)).value) == pytest.approx(0, abs=1e-6)
    assert float(vicreg(Shown(dim=4), both(z)).value) == pytest.approx(0, abs=1e-6)
    assert float(barlow(Shown(dim=4), both(point)).value) == pytest.approx(4)  # Σ (1 - 0)²
    assert float(vicreg(Shown(dim=4), both(point)).value) == pytest.approx(50 * (1 - math.sqrt(1e-4)), rel=1e-5)
    one = z[:, :1].expand(N, 4)  # spread along one line: only redundancy and covariance see it
    assert float(barlow(Shown(dim=4), both(one)).value) == pytest.approx(0.1 * 12, rel=1e-3)
    assert float(vicreg(Shown(dim=4), both(one)).value) == pytest.approx(2 * 12 / 4, rel=1e-3)


def test_wmse():
    """0 where views agree, 4 where they are opposed, however wide or shifted the projections; a collapse is said, not divided by."""
    objective = bare(WMSE(Shown(dim=4), 8, 4, None, 0.0))
    z = hadamard() + 0.3 * torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
    assert float(objective(Shown(dim=4), both(z)).value) == pytest.approx(0, abs=1e-5)
    assert float(objective(Shown(dim=4), {"views": {"x": torch.stack([z, 5 - 3 * z])}}).value) == pytest.approx(4, abs=1e-4)
    with pytest.raises(UserError, match="collapsed"):
        objective(Shown(dim=4), both(z[:, :1].expand(N, 4)))


def test_lejepa():
    """Collapsed to the origin, |1 - exp(-t²/2)|² under its weight is integrated: √(2π)·(1 - 2/√2 + 1/√3) less what lies beyond ±3."""

    def integral(k: float) -> float:  # of exp(-k t²/2) over [-3, 3]
        return math.sqrt(2 * math.pi / k) * math.erf(3 * math.sqrt(k / 2))

    objective = bare(LeJEPA(Shown(dim=4), 8, 4, 0.25, 16, 400, 3.0))
    collapsed = objective(Shown(dim=4), both(torch.zeros(N, 4)))
    sigreg = N * (integral(1) - 2 * integral(2) + integral(3))
    assert float(collapsed.value) == pytest.approx(0.25 * sigreg, rel=1e-3)
    assert float(collapsed.logs["prediction"]) == 0
    x = torch.randn(V, 4000, 4, generator=torch.Generator().manual_seed(0))
    normal = objective(Shown(dim=4), {"views": {"x": x}})
    assert float(normal.logs["prediction"]) == pytest.approx(0.5, rel=0.05)  # independent views: half of their variance
    # N·E|φ_n - φ|² is ∫ (1 - exp(-t²))·exp(-t²/2) for N rows that are normal, whatever N
    assert float(normal.logs["sigreg"]) == pytest.approx(integral(1) - integral(3), rel=0.5)


# -------------------------------------------------------------------- prototypes
K = 6
_DINO = {"hidden": 8, "bottleneck": 6, "out": K, "temperature": 0.1, "teacher_temperature_start": 0.04, "teacher_temperature": 0.04}
_DINO |= {"warmup": 0.0, "freeze": 0.0, "momentum": 0.9, "centre_momentum": 0.9}


def test_dino():
    """Agreeing sharp views cost nothing, undecided ones log K; a teacher that always says one thing says nothing once it is centred."""
    objective = DINO(small_vit("token"), **_DINO).eval()
    sharp = 10 * F.one_hot(torch.arange(5) % K, K).float().expand(2, 5, K)
    undecided = torch.zeros(2, 5, K)
    assert float(objective.compare(sharp, sharp).value) == pytest.approx(0, abs=1e-4)
    assert float(objective.compare(undecided, sharp).value) == pytest.approx(math.log(K), rel=1e-5)
    assert float(objective.compare(undecided, undecided).value) == pytest.approx(math.log(K), rel=1e-5)
    one = 10 * F.one_hot(torch.zeros(5, dtype=torch.long), K).float().expand(2, 5, K)
    objective.centre.mean.copy_(one[0, 0])
    # uniform targets against -log p of 0 for one prototype and 100 for the others
    assert float(objective.compare(one, one).value) == pytest.approx(10 / 0.1 * (K - 1) / K, rel=1e-4)


def test_msn():
    """One prototype for all: 0, though all agree. Each anchor surely its own: -spread·log K. Undecided: (1 - spread)·log K."""
    objective = MSN(small_vit("token"), 0.5, 8, 6, K, 0.1, 0.025, 2.0, 0.9)

    def value(scores: torch.Tensor) -> float:
        return float(objective.compare(scores.unsqueeze(0), F.softmax(scores / 0.025, -1)).value)

    assert value(10 * F.one_hot(torch.zeros(K, dtype=torch.long), K).float()) == pytest.approx(0, abs=1e-4)
    assert value(10 * torch.eye(K)) == pytest.approx(-2 * math.log(K), rel=1e-4)
    assert value(torch.zeros(K, K)) == pytest.approx((1 - 2) * math.log(K), rel=1e-4)


# -------------------------------------------------------------------- what BatchNorm sees
JOINT = OBJECTIVES | {"swav": lambda e: SwAV(e, 8, 6, K, 0.1, 0.05, 3, 0, 0.0)}


def normalised_rows(objective: nn.Module, encoder: nn.Module, batch: dict) -> set[tuple[int, int]]:
    """Forwards of each BatchNorm in one step and the rows of each: pairs that all of them share, or more pairs."""
    seen: dict[nn.Module, list[int]] = {}
    for owner in (objective, encoder):
        for module in owner.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.register_forward_pre_hook(lambda m, x: seen.setdefault(m, []).append(len(x[0])))
    objective.train()(encoder.train(), batch)
    assert seen
    return {(len(rows), sum(rows)) for rows in seen.values()}


@pytest.mark.parametrize("name", JOINT)
def test_a_batch_norm_sees_all_views_together(name):
    """Student's and teacher's alike, once a step, in encoder and heads; the running mean is that of both views."""
    torch.manual_seed(0)
    encoder = Shown(norm=True)
    objective = JOINT[name](encoder)
    x = torch.randn(V, 16, N, generator=torch.Generator().manual_seed(1)) + torch.tensor([0.0, 4.0]).view(2, 1, 1)
    assert normalised_rows(objective, encoder, {"views": {"x": x}, "label": torch.arange(16) % 2}) == {(1, V * 16)}
    assert torch.allclose(encoder.layer.running_mean, 0.1 * x.mean((0, 1)), atol=1e-5)
    if hasattr(objective, "teacher"):  # train mode, so that its statistics are of what it sees too
        assert torch.allclose(objective.teacher["encoder"].layer.running_mean, 0.1 * x.mean((0, 1)), atol=1e-5)


def test_msns_teacher_normalises_the_target_alone():
    """Anchors in the student's heads, the one target view in the teacher's."""
    objective, encoder = MSN(small_vit("token"), 0.5, 8, 6, K, 0.1, 0.025, 2.0, 0.9), small_vit("token")
    assert normalised_rows(objective, encoder, images(4, 3)) == {(1, 2 * 4), (1, 4)}
