"""Protects the maths of domain alignment (against plain float64 loops and known values) and where its features come from."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from sslt.encoders.base import Encoder, Features, pool_mean
from sslt.errors import UserError
from sslt.objectives.adversarial import CDAN, DANN, certainty, multilinear, reverse_gradient
from sslt.objectives.alignment import CORAL, MMD, coral, mmd
from sslt.objectives.base import encode_views
from sslt.objectives.parts.layers import check_layer, encode_at, layer_width
from sslt.targets.classification import Classification

FACTORS = [0.5, 1.0, 2.0]


def rows(n: int, d: int = 3, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d)) + shift)


class Toy(nn.Module):
    """Vectors through one linear map and one block of tokens; counts its forwards."""

    chunk_size = None

    dim = 4

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, 6)
        self.norm = nn.BatchNorm1d(6)
        self.last = nn.Linear(6, 4)
        self.calls = 0

    def forward(self, inputs):
        self.calls += 1
        pooled = self.last(self.norm(self.first(inputs["x"])).relu())
        return Features(pooled, pooled.unsqueeze(1))

    def block_names(self):
        return ["first", "last"]


def batches(n: int = 8, m: int = 6) -> dict:
    source = {"views": {"x": rows(n).float().unsqueeze(0)}, "label": torch.arange(n) % 3}
    return {"finetune": source, "target": {"views": {"x": rows(m, seed=1, shift=1.0).float().unsqueeze(0)}}}


def adversary(kind=DANN, **changed):
    """Without dropout, at full strength, so that it can be computed by hand."""
    torch.manual_seed(1)
    encoder = Toy()
    task = Classification(encoder, {"classes": [str(i) for i in range(3)]}, 0.0, 0.0)
    nn.init.normal_(task.head.weight)
    settings = {"layer": None, "hidden": 5, "dropout": 0.0, "gamma": 10.0, "ceiling": 1.0, **changed}
    made = kind(encoder, 4, task, **settings, **({"entropy": True} if kind is CDAN and "entropy" not in changed else {}))
    made.progress = 0.3
    return encoder, task, made


# -------------------------------------------------------------------- MMD
def mmd_by_loops(x: np.ndarray, y: np.ndarray, factors: list[float], unbiased: bool, median: float | None = None) -> float:
    """Gretton et al. (2012), eq. 3 and 5, pair by pair; the bandwidth is the lower median of all squared distances."""
    z = np.concatenate([x, y])
    pairs = sorted(float(((z[i] - z[j]) ** 2).sum()) for i in range(len(z)) for j in range(i))
    m = pairs[(len(pairs) - 1) // 2] if median is None else median

    def k(a, b):
        return sum(math.exp(-float(((a - b) ** 2).sum()) / (f * m)) for f in factors) / len(factors)

    def within(a):
        total = sum(k(a[i], a[j]) for i in range(len(a)) for j in range(len(a)) if i != j or not unbiased)
        return total / (len(a) * (len(a) - 1) if unbiased else len(a) ** 2)

    return within(x) + within(y) - 2 * sum(k(a, b) for a in x for b in y) / (len(x) * len(y))


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize(("n", "m"), [(5, 5), (7, 4)])
def test_mmd_equals_the_double_sums(n, m, unbiased):
    x, y = rows(n), rows(m, seed=1, shift=0.5)
    assert float(mmd(x, y, FACTORS, unbiased)) == pytest.approx(mmd_by_loops(x.numpy(), y.numpy(), FACTORS, unbiased), rel=1e-10)


def test_mmd_of_known_sets():
    """The same rows: 0 (biased). One row each: 2 - 2 mean exp(-1/f), whatever their distance, which is the median."""
    x = rows(6)
    assert float(mmd(x, x.clone(), FACTORS, False)) == pytest.approx(0, abs=1e-12)
    expected = 2 - 2 * sum(math.exp(-1 / f) for f in FACTORS) / len(FACTORS)
    assert float(mmd(x[:1], x[1:2], FACTORS, False)) == pytest.approx(expected, rel=1e-10)


def test_the_unbiased_estimate_has_a_mean_of_zero_where_domains_agree():
    """Over draws from one distribution; the biased one does not, and both see a shift."""
    same = [(rows(12, seed=2 * i), rows(12, seed=2 * i + 1)) for i in range(60)]
    unbiased, biased = (np.mean([float(mmd(x, y, FACTORS, u)) for x, y in same]) for u in (True, False))
    shifted = np.mean([float(mmd(x, y + 2, FACTORS, True)) for x, y in same])
    assert abs(unbiased) < 0.02 < 0.05 < biased and shifted > 0.3


@pytest.mark.parametrize("unbiased", [True, False])
def test_mmds_gradient_is_that_of_the_sums_at_a_fixed_bandwidth(unbiased):
    """Central differences of the loops; no gradient through the median."""
    x, y = rows(4, 2), rows(3, 2, seed=1, shift=0.5)
    z = np.concatenate([x, y])
    pairs = sorted(float(((z[i] - z[j]) ** 2).sum()) for i in range(7) for j in range(i))
    median, step = pairs[(len(pairs) - 1) // 2], 1e-5
    x.requires_grad_()
    mmd(x, y, FACTORS, unbiased).backward()
    base = x.detach().numpy()
    for i in range(4):
        for j in range(2):
            up, down = base.copy(), base.copy()
            up[i, j] += step
            down[i, j] -= step
            numeric = (
                mmd_by_loops(up, y.numpy(), FACTORS, unbiased, median) - mmd_by_loops(down, y.numpy(), FACTORS, unbiased, median)
            ) / (2 * step)
            assert float(x.grad[i, j]) == pytest.approx(numeric, abs=1e-7)


def test_mmd_of_features_far_from_zero():
    """float32 features around 100: distances do not drown in their squares."""
    x, y = rows(8) + 100, rows(8, seed=1) + 100.5
    assert float(mmd(x.float(), y.float(), FACTORS, True)) == pytest.approx(float(mmd(x, y, FACTORS, True)), abs=1e-4)


def test_bandwidths_must_be_positive():
    with pytest.raises(UserError, match=r"shift\.objective\.factors"):
        MMD(Toy(), 4, None, None, [1.0, 0.0], True)


# -------------------------------------------------------------------- CORAL
def test_coral_equals_its_formula():
    """Sun & Saenko (2016), eq. 1, with numpy's covariances."""
    x, y = rows(9, 4), rows(6, 4, seed=1) * torch.tensor([1.0, 2.0, 3.0, 0.5])
    difference = np.cov(x.numpy(), rowvar=False) - np.cov(y.numpy(), rowvar=False)
    assert float(coral(x, y)) == pytest.approx((difference**2).sum() / (4 * 16), rel=1e-10)


def test_coral_of_known_sets():
    """Equal or merely moved rows: 0; variances 2 and 0 in one dimension: (2 - 0)² / 4."""
    x = rows(6)
    assert float(coral(x, x + 5)) == pytest.approx(0, abs=1e-12)
    assert float(coral(torch.tensor([[0.0], [2.0]]), torch.tensor([[7.0], [7.0]]))) == pytest.approx(1.0)


@pytest.mark.parametrize("make", [lambda e: MMD(e, 4, None, None, FACTORS, True), lambda e: CORAL(e, 4, None, None)], ids=["mmd", "coral"])
def test_statistics_are_of_the_two_streams_features(make):
    """The objective computes its formula on pooled features, the first stream's against the second's, and trains the encoder."""
    encoder, made = Toy(), batches()
    loss = make(encoder)(encoder, made).value
    x, y = (next(iter(part["encoded"].values())).pooled for part in made.values())
    expected = mmd(x, y, FACTORS, True) if isinstance(make(encoder), MMD) else coral(x, y)
    assert torch.equal(loss, expected)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in (encoder.first.weight, encoder.last.weight))


# -------------------------------------------------------------------- gradient reversal
def test_reversal_is_the_identity_with_a_negative_gradient():
    x = rows(4).requires_grad_()
    y = reverse_gradient(x, 0.7)
    assert torch.equal(x, y)
    weights = rows(4, seed=3)
    (y * weights).sum().backward()
    assert torch.equal(x.grad, -0.7 * weights)


def test_the_strength_follows_progress():
    """λ = 2 / (1 + exp(-10 p)) - 1 (Ganin et al., 2016): 0 at the start, near 1 at the end; `ceiling` scales it."""
    _, _, made = adversary()
    for p in (0.0, 0.1, 0.5, 1.0):
        made.progress = p
        assert made.strength == pytest.approx(2 / (1 + math.exp(-10 * p)) - 1)
    assert adversary(ceiling=0.1)[2].strength == pytest.approx(0.1 * (2 / (1 + math.exp(-3)) - 1))


def critic_by_hand(made: DANN, x: np.ndarray) -> np.ndarray:
    """The critic's scores in float64."""
    for layer in [m for m in made.critic if isinstance(m, nn.Linear)]:
        x = x @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()
        x = np.maximum(x, 0) if layer.out_features > 1 else x
    return x[:, 0]


def cross_entropy(scores: np.ndarray, source: bool, weights: np.ndarray) -> float:
    """Binary cross-entropy, row by row, source being 1."""
    total = 0.0
    for score, weight in zip(scores, weights, strict=True):
        p = 1 / (1 + math.exp(-score))
        total -= weight * math.log(p if source else 1 - p)
    return total / weights.sum()


def test_danns_loss_equals_the_sum_over_rows():
    encoder, _, made = adversary()
    parts = batches()
    loss = made(encoder, parts).value
    x, y = (next(iter(part["encoded"].values())).pooled.detach().double().numpy() for part in parts.values())
    s = cross_entropy(critic_by_hand(made, x), True, np.ones(len(x)))
    t = cross_entropy(critic_by_hand(made, y), False, np.ones(len(y)))
    assert float(loss) == pytest.approx((s + t) / 2, rel=1e-5)


@pytest.mark.parametrize("kind", [DANN, CDAN])
def test_the_critic_descends_where_the_encoder_ascends(kind):
    """The encoder's gradient is -λ times that of the plain loss; the critic's is untouched."""
    encoder, _, made = adversary(kind)
    made(encoder, batches()).value.backward()
    reversed_, own = encoder.last.weight.grad.clone(), made.critic[0].weight.grad.clone()
    encoder.zero_grad()
    made.zero_grad()

    class Straight(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, strength):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, *grads):
            return grads[0], None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sslt.objectives.adversarial._Reverse", Straight)
        made(encoder, batches()).value.backward()
    assert torch.allclose(reversed_, -made.strength * encoder.last.weight.grad, rtol=1e-4, atol=1e-7)
    assert torch.allclose(own, made.critic[0].weight.grad)


# -------------------------------------------------------------------- CDAN
def test_the_multilinear_map_is_every_product():
    f, p = rows(3, 4), rows(3, 2, seed=1).softmax(1)
    expected = [[float(f[i, d]) * float(p[i, c]) for d in range(4) for c in range(2)] for i in range(3)]
    assert np.allclose(multilinear(f, p).numpy(), expected, rtol=1e-12)


def test_certainty_of_known_predictions():
    """A sure prediction counts 2, one of C equals 1 + 1/C."""
    p = torch.tensor([[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    assert certainty(p).tolist() == pytest.approx([2.0, 1.25])


@pytest.mark.parametrize("entropy", [True, False])
def test_cdans_loss_equals_the_sum_over_rows(entropy):
    """The critic sees features ⊗ softmax of the classifier; with `entropy`, rows weigh 1 + exp(-H)."""
    encoder, task, made = adversary(CDAN, entropy=entropy)
    parts, total = batches(), 0.0
    loss = made(encoder, parts).value
    w, b = task.head.weight.detach().double().numpy(), task.head.bias.detach().double().numpy()
    for part, source in zip(parts.values(), (True, False), strict=True):
        x = next(iter(part["encoded"].values())).pooled.detach().double().numpy()
        scores = np.exp(x @ w.T + b)
        p = scores / scores.sum(1, keepdims=True)
        maps = np.stack([np.outer(f, q).ravel() for f, q in zip(x, p, strict=True)])
        weights = np.array([1 + math.exp(sum(v * math.log(v) for v in q)) for q in p]) if entropy else np.ones(len(p))
        total += cross_entropy(critic_by_hand(made, maps), source, weights)
    assert float(loss) == pytest.approx(total / 2, rel=1e-5)


def test_cdan_leaves_the_classifier_to_its_own_objective():
    """Its parameters are registered once, and no gradient of the critic reaches them."""
    encoder, task, made = adversary(CDAN)
    assert not {id(p) for p in made.parameters()} & {id(p) for p in task.parameters()}
    assert not any(k.startswith("_task") for k in made.state_dict())
    made(encoder, batches()).value.backward()
    assert task.head.weight.grad is None and encoder.first.weight.grad is not None


# -------------------------------------------------------------------- features at a layer
class Text(nn.Module):
    """A block that gives tokens in a tuple, as transformers' do, and one that gives a number."""

    chunk_size = None

    dim = 4
    in_rows = Encoder.in_rows

    class Block(nn.Module):
        def forward(self, x):
            return x * 2, "attention"

    class Odd(nn.Module):
        def forward(self, x):
            return 7

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([self.Block(), self.Block()])
        self.odd, self.scale = self.Odd(), nn.Parameter(torch.ones(()))

    def forward(self, inputs):
        x = inputs["x"] * self.scale
        for layer in self.layers:
            x = layer(x)[0]
        self.odd(x)
        return Features(pool_mean(x, inputs["mask"]), x, inputs["mask"])

    def block_names(self):
        return ["layers.0", "layers.1"]


def test_a_layers_tokens_are_averaged_where_they_count():
    """Padding is left out, tuples give their first part; another kind of output is refused in one line."""
    x, mask = torch.randn(2, 3, 5, 4), torch.tensor([[True] * 5, [True] * 2 + [False] * 3, [True] * 4 + [False]]).expand(2, 3, 5)
    part = {"views": {"x": x, "mask": mask}}
    got = encode_at(Text(), part, "layers.0")
    expected = [2 * x[v, b, : int(mask[v, b].sum())].mean(0) for v in range(2) for b in range(3)]
    assert torch.allclose(got, torch.stack(expected), atol=1e-6)
    with pytest.raises(UserError, match=r"layer=odd gives int"):
        encode_at(Text(), {"views": {"x": x, "mask": mask}}, "odd")


def test_maps_are_averaged_over_places():
    class Conv(nn.Module):
        chunk_size = None
        dim = 2

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, inputs):
            pooled = self.conv(inputs["image"]).amax((2, 3))
            return Features(pooled, pooled.unsqueeze(1))

    encoder, image = Conv(), torch.randn(1, 4, 1, 6, 6)
    assert torch.allclose(encode_at(encoder, {"views": {"image": image}}, "conv"), encoder.conv(image[0]).mean((2, 3)))


@pytest.mark.parametrize("layer", [None, "first"])
def test_nothing_is_encoded_twice(layer):
    """Alignment first, then classification: one forward a stream, and no hook stays behind."""
    encoder = Toy()
    parts, task = batches(), Classification(encoder, {"classes": [str(i) for i in range(3)]}, 0.0, 0.0)
    width = layer_width(encoder, {"x": torch.zeros(2, 3)}, layer)
    assert width == (6 if layer else 4)
    encoder.calls = 0
    aligned = CORAL(encoder, width, task, layer)(encoder, parts).value
    both = aligned + task(encoder, parts["finetune"]).value
    assert encoder.calls == 2
    both.backward()
    assert not encoder.first._forward_hooks


def test_a_layer_asked_for_too_late_is_encoded_again():
    """Classification first: the numbers are right all the same."""
    encoder = Toy().eval()
    early, late = batches(), batches()
    Classification(encoder, {"classes": [str(i) for i in range(3)]}, 0.0, 0.0)(encoder, late["finetune"])
    objective = CORAL(encoder, 6, None, "first")
    assert torch.equal(objective(encoder, early).value, objective(encoder, late).value)


def test_measuring_a_width_changes_nothing():
    """Modes and running statistics are as before."""
    encoder = Toy()
    encoder.last.eval()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    layer_width(encoder, {"x": torch.randn(2, 3)}, "norm")
    assert encoder.training and encoder.norm.training and not encoder.last.training
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_a_layer_that_is_not_there_names_the_nearest():
    with pytest.raises(UserError, match=r"layer=frist.*did you mean 'first'"):
        check_layer(Toy(), "frist")
    check_layer(Toy(), None)


def test_another_encoder_on_the_same_batch_has_features_of_its_own():
    """What one gave stays with the batch for that one alone, of a layer as of the whole."""
    one, other = Toy(), Toy()
    for p in other.parameters():
        torch.nn.init.constant_(p, 0.5)
    batch = next(iter(batches().values()))
    first = encode_views(one, batch).pooled
    assert torch.equal(encode_views(one, batch).pooled, first) and not torch.equal(encode_views(other, batch).pooled, first)
