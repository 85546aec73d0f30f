"""Protects the similarity of pairs: cosines of parts read by themselves, both losses, their gradients over ranks, metrics, word overlap."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

sys.path.append(str(Path(__file__).parents[1]))  # a rank knows nothing of pytest's paths
import two_processes

from sslt.data.answers import Number
from sslt.data.base import Raw, Source
from sslt.data.prepare.bag_processor import BagProcessor
from sslt.data.views.base import Plain
from sslt.encoders.bag import BagEncoder
from sslt.errors import UserError
from sslt.targets.base import Rows
from sslt.targets.overlap import jaccard
from sslt.targets.pairs import Pairs, cosent

SPACE = {"low": 1.0, "high": 5.0}
N = 6  # pairs of a rank


def encoder(dtype=torch.float64) -> BagEncoder:
    torch.manual_seed(0)
    return BagEncoder(BagProcessor({f"w{i}": 1 + i % 3 for i in range(20)}, 30, 8, 100), 8, 64, 1.0, 0.0).to(dtype)


def batch(rows=slice(None), n: int = 2 * N) -> dict[str, torch.Tensor]:
    """Pairs of bags of different widths, as a stream has them."""
    g = torch.Generator().manual_seed(1)
    a, b = torch.randint(0, 20, (n, 9), generator=g), torch.randint(0, 20, (n, 4), generator=g)
    scores = torch.randint(2, 11, (n,), generator=g) / 2  # some are equal
    made = {"a.tokens": a, "a.mask": a > 0, "b.tokens": b, "b.mask": b > 0, "index": torch.arange(n), "number": scores}
    return {k: x[rows] for k, x in made.items()}


def target(loss: str = "mse", scale: float = 20.0) -> Pairs:
    return Pairs(encoder(), SPACE, loss, scale)


def cosines(made: dict) -> np.ndarray:
    """By hand: each row of each part alone."""
    e, found = encoder().eval(), []
    for a, b in zip(made["a.tokens"], made["b.tokens"], strict=True):
        x, y = (e({"tokens": t[None]}).pooled[0].detach().numpy() for t in (a, b))
        found.append(float(x @ y / np.sqrt((x @ x) * (y @ y))))
    return np.array(found)


def test_predictions_are_cosines_on_the_scale_of_scores():
    made = batch()
    found = target().predict(encoder(), made)
    assert isinstance(found, Number) and found.space == SPACE
    assert found.values == pytest.approx(1 + 4 * cosines(made))


def test_the_losses_equal_the_loop():
    """MSE against the score scaled to 0..1 (Reimers & Gurevych, 2019); CoSENT over all pairs of different score."""
    made = batch()
    c, s = cosines(made), made["number"].numpy()
    mse = np.mean([(x - (y - 1) / 4) ** 2 for x, y in zip(c, s, strict=True)])
    assert target()(encoder(), made).value.item() == pytest.approx(mse)
    total = 1.0
    for i in range(len(c)):
        for j in range(len(c)):
            if s[i] > s[j]:
                total += math.exp(7 * (c[j] - c[i]))
    found = target("cosent", 7.0)(encoder(), made)
    assert found.value.item() == pytest.approx(math.log(total)) and found.logs["mse"].item() == pytest.approx(mse)


def test_cosent_of_equal_scores_is_nothing():
    """No order is asked for; and the gradient is a number."""
    c = torch.randn(5, requires_grad=True)
    loss = cosent(c, torch.ones(5), 20.0)
    loss.backward()
    assert loss.item() == 0 and torch.equal(c.grad, torch.zeros(5))


def test_an_empty_text_has_a_number():
    """Features of zeros give a cosine of 0 and a finite gradient."""
    made = batch()
    made["a.tokens"][0] = 0
    e, t = encoder(), target()
    t(e, made).value.backward()
    assert t.predict(e, made).values[0] == 1 and all(torch.isfinite(p.grad).all() for p in e.parameters())


def gradient(loss: str, made: dict) -> torch.Tensor:
    e = encoder()
    target(loss)(e, made).value.backward()
    return torch.cat([p.grad.flatten() for p in e.parameters()])


def _of_rank(rank: int) -> dict[str, torch.Tensor]:
    from sslt import distributed

    made = batch(slice(rank * N, (rank + 1) * N))
    return {loss: distributed.all_sum(gradient(loss, made)) / 2 for loss in ("mse", "cosent")}


def test_two_ranks_give_the_gradient_of_one(tmp_path):
    """Pairs of both ranks are compared with one another."""
    found = two_processes.run(_of_rank, tmp_path)
    for loss in ("mse", "cosent"):
        whole = gradient(loss, batch())
        for rank in found:
            assert torch.allclose(rank[loss], whole, atol=1e-10), loss
    assert not torch.allclose(gradient("cosent", batch(slice(0, N))), gradient("cosent", batch()), atol=1e-3)


def number(values) -> Number:
    return Number(np.asarray(values, np.float64), SPACE)


def test_measures_equal_scipy_and_know_the_best():
    """Spearman with ties, Pearson; the truth itself is best, shuffled it is clearly worse, a constant is worth nothing."""
    rng = np.random.default_rng(0)
    t = target()
    for n in (2, 3, 50):
        truth, told = number(np.round(rng.uniform(1, 5, n) * 2) / 2 + np.arange(n)), number(rng.integers(0, 4, n) + np.arange(n) % 2)
        found = t.measure(told, truth)
        if len(set(told.values)) > 1:
            assert found["spearman"] == pytest.approx(stats.spearmanr(told.values, truth.values)[0])
            assert found["pearson"] == pytest.approx(stats.pearsonr(told.values, truth.values)[0])
        assert t.measure(truth, truth) == {"spearman": pytest.approx(1), "pearson": pytest.approx(1)}
    assert abs(t.measure(number(rng.permutation(truth.values)), truth)["spearman"]) < 0.5
    assert t.measure(number(np.full(50, 2.5)), truth) == {"spearman": 0, "pearson": 0}
    assert t.primary == next(iter(t.measure(truth, truth))) == "spearman"
    with pytest.raises(UserError, match="not numbers for 1 of 50"):
        t.measure(number([math.nan, *range(49)]), truth)
    with pytest.raises(UserError, match="nothing to evaluate"):
        t.measure(number([]), number([]))


def test_errors_are_of_the_order():
    """Right rows have none, whatever the scale; the row whose place is furthest off comes first."""
    truth = number([1, 2, 3, 4, 5])
    assert target().errors(number([-0.2, 0.1, 0.15, 0.7, 0.9]), truth).tolist() == [0] * 5
    assert target().errors(number([0.8, 0.1, 0.15, 0.7, 0.9]), truth).argmax() == 0
    assert target().rows(number([2.123456])) == [{"prediction": 2.1235}]


PAIRS = [("the cat sleeps", "The cat, asleep"), ("one two", "three four"), ("a b c", "c b a"), ("你好吗", "你好"), ("!", "?")]


def test_word_overlap_by_hand():
    """Words in common out of all; characters where a script has no spaces; order and capitals do not matter."""
    assert jaccard(PAIRS).tolist() == pytest.approx([2 / 4, 0, 1, 2 / 3, 0])
    assert jaccard([("...", ",")]).tolist() == [0]


def test_the_baseline_is_chosen_on_validation():
    """Test rows are answered by the method that orders validation better; they have no say in it."""
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in rng.zipf(1.3, 400) if i < 1000]
    pairs = [(" ".join(rng.choice(words, 6)), " ".join(rng.choice(words, 6))) for _ in range(80)]
    train, test = Rows(pairs, number(np.zeros(80))), Rows(pairs[:10], number(np.zeros(10)))
    overlap = jaccard(pairs)
    best = target().cheapest("text", train, Rows(pairs, number(overlap)), test)
    assert best.method == "word overlap (Jaccard)" and best.val_score == pytest.approx(1)
    assert best.predictions.values == pytest.approx(1 + 4 * overlap[:10])
    other = target().cheapest("text", train, Rows(pairs, number(-overlap)), test)
    assert other.method == "word overlap (TF-IDF)" and math.isnan(target().cheapest("text", train, None, test).val_score)


class Made(Source):
    modality, name, answer, classes = "text", "made", Number, None

    def __init__(self, parts, space):
        self.parts, self.space = parts, space

    space = None

    def own_splits(self):
        return ("train",)

    def fingerprint(self):
        return "made"

    def read(self, split):
        return Raw([], None)


def test_mistakes():
    """Single texts, scores that are all one number, an unknown loss, views that would go unseen."""
    Pairs.check(Made(("a", "b"), SPACE))
    with pytest.raises(UserError, match="compares two parts of a sample, and those of made have one"):
        Pairs.check(Made((), SPACE))
    with pytest.raises(UserError, match="all pairs of made have the score 3"):
        Pairs.check(Made(("a", "b"), {"low": 3.0, "high": 3.0}))
    with pytest.raises(UserError, match=r"objective\.loss=cosnet: give mse or cosent"):
        target("cosnet")
    target().check_views(Plain(1))
    with pytest.raises(UserError, match="leave views=plain"):
        target().check_views(Plain(2))
    assert target("cosent").needs_full_batches and not target().needs_full_batches and not list(target().parameters())
