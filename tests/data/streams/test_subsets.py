"""Protects which samples and labels are used where not all are: so many of each class, drawn by the seed, nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from sslt.data.answers import Class
from sslt.data.prepare.image_processor import ImageSamples
from sslt.data.streams.subsets import label_subset, some
from sslt.errors import UserError

LABELS = np.repeat([0, 1, 2], [30, 20, 10])[np.random.default_rng(0).permutation(60)]


def pictures() -> ImageSamples:
    """60 images; the first pixel of image i is i."""
    images = np.zeros((60, 4, 4, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(60)
    return ImageSamples(images, Class(LABELS.astype(np.int64), {"classes": ["a", "b", "c"]}), "made")


def rows(samples: ImageSamples) -> list[int]:
    return samples.batch(np.arange(len(samples)))["image"][:, 0, 0, 0].tolist()


def test_a_share_or_a_number_of_labels():
    """In class proportions, or so many of each; labels go with their images; all of them are the samples themselves."""
    samples = pictures()
    assert label_subset(samples, 1, None, 0) is samples
    tenth, two = label_subset(samples, 0.1, None, 0), label_subset(samples, 1, 2, 0)
    assert np.bincount(tenth.labels).tolist() == [3, 2, 1] and np.bincount(two.labels).tolist() == [2, 2, 2]
    for part in (tenth, two):
        assert LABELS[rows(part)].tolist() == part.labels.tolist()
    for change in ({"fraction": 0.1, "per_class": None}, {"fraction": 1, "per_class": 2}):
        assert rows(label_subset(samples, **change, seed=0)) == rows(label_subset(samples, **change, seed=0))
        assert rows(label_subset(samples, **change, seed=0)) != rows(label_subset(samples, **change, seed=1))


@pytest.mark.parametrize(("per_class", "fraction", "said"), [(0, 1, "whole number"), (1.5, 1, "whole number"), (2, 0.5, "one of the two")])
def test_what_no_subset_is(per_class, fraction, said):
    """A line that says what to give."""
    with pytest.raises(UserError, match=said):
        label_subset(pictures(), fraction, per_class, 0)


def test_some_rows():
    """So many different ones, in order, another choice by another seed; all where there are no more."""
    samples = pictures()
    assert some(samples, 60, 0) is samples and some(samples, 100, 0) is samples
    found = rows(some(samples, 59, 0))
    assert len(found) == 59 and (np.diff(found) > 0).all()
    assert rows(some(samples, 10, 0)) == rows(some(samples, 10, 0)) != rows(some(samples, 10, 1))
