"""Protects linear models on descriptions of images: the same rows are solved once, and what is kept is what was found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import TINY_IMAGES
from pictures import Pictures
from sklearn.datasets import load_digits

from sslt.encoders.descriptions import DESCRIPTIONS
from sslt.targets import described
from sslt.targets.baselines import of_classes
from sslt.targets.described import DescribedRows, Solver
from sslt.targets.linear import probe_weights


def pictures(n: int, seed: int) -> tuple[Pictures, torch.Tensor]:
    """Grey ones with a brighter half, and which half it is."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (n,), generator=g)
    x = torch.randint(0, 120, (n, 1, 12, 12), generator=g, dtype=torch.uint8)
    for image, half in zip(x, y, strict=True):
        image[:, :, 6 * half : 6 * half + 6] += 60
    return Pictures(x), y


@pytest.mark.parametrize("name", DESCRIPTIONS)
@pytest.mark.parametrize("validated", [True, False])
def test_what_is_kept_is_what_was_found(here, name, validated):
    """Weights, and what the description learned, for which others ask later; of the strengths the best on validation, or a middle one."""
    (train, y), (val, truth) = pictures(40, 0), pictures(30, 1)
    val, truth = (val, truth) if validated else (None, None)
    first = DescribedRows(DESCRIPTIONS[name](1, 12), train, val)
    weight, bias = first.linear(of_classes(2), (y, truth))
    held, strengths = (None, described.L2[1:2]) if val is None else ((first.val, truth), described.L2)
    expected = probe_weights(first.train, y, held, 2, strengths)
    assert torch.equal(weight, expected[0]) and torch.equal(bias, expected[1])
    never = Solver(of_classes(2).name, lambda *_: pytest.fail("solved again"))
    again = DescribedRows(DESCRIPTIONS[name](1, 12), train, val)
    assert all(map(torch.equal, again.linear(never, (y, truth)), (weight, bias)))
    assert torch.equal(again.train, first.train) and (val is None) == (again.val is None)
    assert again.val is None or torch.equal(again.val, first.val)


def test_other_rows_truths_and_solvers_are_solved_anew(here):
    (train, y), (val, truth) = pictures(40, 0), pictures(30, 1)
    asked = []

    def solver(name: str) -> Solver:
        return Solver(name, lambda x, *_: asked.append(name) or (torch.zeros(2, x.shape[1]), torch.zeros(2), 1.0))

    def solve(name: str, train: Pictures, y: torch.Tensor, val: Pictures | None, truth: torch.Tensor | None, kind: str = "pixels") -> None:
        DescribedRows(DESCRIPTIONS[kind](1, 12), train, val).linear(solver(name), (y, truth))

    solve("a", train, y, val, truth)
    solve("a", train, y.double(), val, truth)  # the same truth
    assert asked == ["a"]
    solve("a", train, 1 - y, val, truth)
    solve("a", train, y, val, 1 - truth)
    solve("a", train, y, None, None)
    solve("a", pictures(40, 2)[0], y, val, truth)
    solve("a", train, y, pictures(30, 2)[0], truth)
    solve("a", train, y, val, truth, "gradients")
    solve("b", train, y, val, truth)
    assert len(asked) == 8


@pytest.mark.parametrize("answer", ["classes", "labels"])
def test_cheap_methods_and_what_stands_beside_an_encoder_share_them(sslt, here, monkeypatch, answer):
    """Three descriptions are three problems, once; the next command with the same rows has none."""
    monkeypatch.setenv("SSLT_CACHE", str(here / "cache"))  # other tests have the same rows
    solved = []
    solve = DescribedRows._solve
    monkeypatch.setattr(DescribedRows, "_solve", lambda self, *args: solved.append(self.describe.name) or solve(self, *args))
    own = ["+target=digits", "labels_per_class=4"]
    if answer == "labels":
        digits = load_digits()
        y = np.stack([digits.target % 2 == 0, digits.target > 4], 1)[:200]
        np.savez(here / "a.npz", x=(digits.images[:200] * (255 / 16)).astype(np.uint8), y=y)
        own = ["+target=arrays", "data.path=a.npz", "data.answer=labels", "objective=multilabel"]
    tune = ["finetune", *own, "from=scratch", *TINY_IMAGES, "late_fusion=true"]
    sslt(*tune, "trainer.max_steps=1", "hydra.run.dir=first")
    assert sorted(solved) == sorted(kind.name for kind in DESCRIPTIONS.values())
    sslt(*tune, "trainer.max_steps=2", "hydra.run.dir=second")
    assert len(solved) == len(DESCRIPTIONS)
