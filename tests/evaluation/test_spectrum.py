"""Spectra with known answers, and when the warning about collapse is given."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sslt.evaluation import spectrum


def _gaussian(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def _with_eigenvalues(values: torch.Tensor, n: int) -> torch.Tensor:
    """Centred features [n, D] whose scatter matrix has exactly these eigenvalues."""
    x = _gaussian(n, len(values)).double()
    u, _, vh = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    return (u * values.sqrt()) @ vh


def test_rankme_against_the_definition():
    """Entropy of the singular values of centred features, for N above and below D."""
    for shape in ((50, 12), (9, 30)):
        x = _gaussian(*shape).numpy() * np.arange(1, shape[1] + 1) + 3
        s = np.linalg.svd(x - x.mean(0), compute_uv=False)
        p = s / s.sum()
        expected = math.exp(-sum(v * math.log(v) for v in p if v > 1e-12))
        assert spectrum.rankme(torch.from_numpy(x)) == pytest.approx(expected, rel=1e-5)


def test_rankme_bounds():
    """At most D and N - 1; equal eigenvalues reach D; k equal ones give k; a common offset does not count."""
    assert 480 < spectrum.rankme(_gaussian(5000, 512)) <= 512
    assert spectrum.rankme(_gaussian(20, 512)) <= 19
    assert spectrum.rankme(_with_eigenvalues(torch.ones(16), 64)) == pytest.approx(16, rel=1e-6)
    low = _with_eigenvalues(torch.tensor([1.0] * 3 + [0.0] * 13), 64)
    assert spectrum.rankme(low) == pytest.approx(3, rel=1e-5)
    assert spectrum.rankme((low + 100).float()) == pytest.approx(3, rel=1e-2)


def test_constant_features_have_rank_one_despite_rounding():
    """The noise of float32 is no information."""
    constant = _gaussian(1, 256) * 1000 + torch.zeros(300, 256)
    rounded = torch.nextafter(constant, constant + torch.sign(_gaussian(300, 256)))
    for x in (constant, torch.zeros(10, 4), _gaussian(1, 8)):
        assert spectrum.rankme(x) == 1
        assert math.isnan(spectrum.alpha_req(x))
    assert spectrum.collapse_report(rounded)["std"] < 1e-5


@pytest.mark.parametrize("shape", [(0, 4), (4,), (2, 3, 4)])
def test_what_has_no_spectrum(shape):
    """No row, or no matrix: said with the shape."""
    with pytest.raises(ValueError, match=r"\[N, D\] with N > 0, not \[" + ", ".join(map(str, shape))):
        spectrum.rankme(torch.zeros(shape))


@pytest.mark.parametrize(("d", "exponent"), [(40, 1.0), (256, 1.0), (256, 2.0)])
def test_alpha_of_a_power_law(d, exponent):
    """Eigenvalues i^-a give a."""
    values = torch.arange(1, d + 1, dtype=torch.float64) ** -exponent
    assert spectrum.alpha_req(_with_eigenvalues(values, 2 * d)) == pytest.approx(exponent, abs=1e-4)


def test_feature_std_of_even_and_of_collapsed_features():
    """1 on an even sphere in any dimension, 0 at one point, whatever the length."""
    assert spectrum.feature_std(_gaussian(5000, 64)) == pytest.approx(1, abs=0.02)
    assert spectrum.feature_std(100 * _gaussian(5000, 16)) == pytest.approx(1, abs=0.02)
    same = _gaussian(1, 64) * torch.linspace(1, 9, 100)[:, None]
    assert spectrum.feature_std(same) < 1e-5


def test_alignment_and_uniformity_against_loops():
    """Wang & Isola's two measures by their definitions, and their extremes."""
    a, b = _gaussian(20, 5), _gaussian(20, 5, seed=1)
    za, zb = (z / z.norm(dim=1, keepdim=True) for z in (a, b))
    expected = np.mean([float(((p - q) ** 2).sum()) for p, q in zip(za, zb, strict=True)])
    assert spectrum.alignment(a, b) == pytest.approx(expected, rel=1e-5)
    assert spectrum.alignment(a, -a) == pytest.approx(4)
    pairs = [math.exp(-2 * float(((p - q) ** 2).sum())) for i, p in enumerate(za) for q in za[:i]]
    assert spectrum.uniformity(a) == pytest.approx(math.log(np.mean(pairs)), rel=1e-5)
    assert spectrum.uniformity(torch.ones(10, 3)) == pytest.approx(0, abs=1e-5)
    assert math.isnan(spectrum.uniformity(a[:1]))


def test_uniformity_of_many_samples_is_of_a_seeded_subset(monkeypatch):
    """Bounded work, the same number for the same seed."""
    monkeypatch.setattr(spectrum, "MAX_PAIRWISE", 50)
    x = _gaussian(500, 6)
    assert spectrum.uniformity(x) == spectrum.uniformity(x)
    assert spectrum.uniformity(x) != spectrum.uniformity(x, seed=1)


def test_class_alignment_pairs_within_classes_only():
    """Classes at single points have distance 0; lonely samples are left out, never paired with themselves."""
    labels = torch.tensor([0, 1, 0, 1, 2, 0])
    assert spectrum.class_alignment(torch.eye(3)[labels], labels) == pytest.approx(0)
    assert spectrum.class_alignment(torch.eye(6), torch.tensor([0, 0, 1, 1, 1, 2])) == pytest.approx(2)
    assert math.isnan(spectrum.class_alignment(torch.eye(3), torch.arange(3)))


def test_warning_tells_the_kinds_of_collapse_apart():
    """One point, few directions, not a number; and silence for sound features."""
    sound = spectrum.collapse_report(_gaussian(2000, 128))
    point = spectrum.collapse_report(_gaussian(1, 128) + 1e-3 * _gaussian(2000, 128))
    few = spectrum.collapse_report(_gaussian(2000, 3) @ _gaussian(3, 128))
    lost = spectrum.collapse_report(_gaussian(20, 8) * math.nan)
    assert spectrum.collapse_warning(None, sound, 128, "try it") is None
    assert spectrum.collapse_warning(sound, sound, 128, "try it") is None
    for before in (None, sound):
        said = str(spectrum.collapse_warning(before, point, 128, "try it"))
        assert "the same point" in said and said.endswith("try it")
        assert "128 dimensions carry what 3 could" in str(spectrum.collapse_warning(before, few, 128, "try it"))
        assert "diverged" in str(spectrum.collapse_warning(before, lost, 128, "try it"))


def test_no_warning_where_features_started_as_low():
    """An untrained encoder of low rank and little spread that has got better is not collapsing."""
    start = {"std": 0.04, "rankme": 4.0}
    assert spectrum.collapse_warning(start, {"std": 0.045, "rankme": 6.0}, 512, "try it") is None
    assert spectrum.collapse_warning(start, {"std": 0.045, "rankme": 1.5}, 512, "try it") is not None
