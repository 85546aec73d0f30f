"""Protects k-means: it finds clusters that are there, agrees with scikit-learn's Lloyd, and fills empty clusters."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.cluster import KMeans

from sslt.objectives.parts.kmeans import kmeans, nearest_centroid


def blobs(k: int, each: int = 40) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    centres = torch.randn(k, 6, generator=g) * 10
    return (centres.repeat_interleave(each, 0) + torch.randn(k * each, 6, generator=g)).float()


def test_as_scikit_learn_from_the_same_start():
    """The same centres after the same number of Lloyd's steps."""
    x = blobs(5)
    start = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(3))[:5]]
    found = kmeans(x, 5, steps=7, seed=3)
    theirs = KMeans(5, init=start.numpy(), n_init=1, max_iter=7, tol=0, algorithm="lloyd").fit(x.numpy()).cluster_centers_
    assert np.allclose(np.sort(found.numpy(), 0), np.sort(theirs, 0), atol=1e-3)


def test_nearest_is_the_smallest_distance():
    """Against the loop."""
    x, centres = blobs(3, 5), blobs(4, 1)
    expected = [min(range(4), key=lambda j: float((row - centres[j]).norm())) for row in x]
    assert nearest_centroid(x, centres).tolist() == expected


def test_same_seed_same_centres_and_unit_ones_have_length_one():
    """A function of its arguments."""
    x = torch.nn.functional.normalize(blobs(4), dim=1)
    a, b = kmeans(x, 6, steps=5, seed=0, unit=True), kmeans(x, 6, steps=5, seed=0, unit=True)
    assert torch.equal(a, b) and torch.allclose(a.norm(dim=1), torch.ones(6), atol=1e-5)


def test_no_centre_stays_empty():
    """Two far blobs and equal rows at the start: centres without rows go where rows are."""
    x = torch.cat([torch.zeros(50, 2), blobs(2)[:, :2]])
    centres = kmeans(x, 8, steps=10, seed=0)
    assert torch.isfinite(centres).all() and len(nearest_centroid(x, centres).unique()) > 3


def test_lost_centres_go_to_the_largest_cluster():
    """In turn, as long as rows were drawn of it: of a hundred equal starts all but one lose their rows in the first step."""
    for seed in range(20):
        x = torch.cat([torch.zeros(300, 2), 10 + torch.rand(100, 2, generator=torch.Generator().manual_seed(seed))])
        drawn = torch.randint(len(x), (1, 20), generator=_after_start(seed, len(x)))[0]
        start = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:20]]
        count = torch.bincount(nearest_centroid(x, start), minlength=20)
        assert count.argmax() == next(j for j in range(20) if not start[j].any())  # the largest is that at the origin
        found, lost = kmeans(x, 20, steps=1, seed=seed), count == 0
        of_largest = int((~x[drawn].any(1)).sum())
        assert lost.sum() > 1 and (~found[lost].any(1)).sum() == min(of_largest, int(lost.sum()))


def _after_start(seed: int, n: int) -> torch.Generator:
    rng = torch.Generator().manual_seed(seed)
    torch.randperm(n, generator=rng)
    return rng


def test_rows_of_half_precision_have_centres_of_full():
    """Sums over many rows would lose what bfloat16 cannot hold."""
    x = blobs(3).bfloat16()
    assert torch.equal(kmeans(x, 3, steps=4, seed=0), kmeans(x.float(), 3, steps=4, seed=0))
