"""Protects what is made of pixels and labels as files hold them: layouts, ranges, classes by number and by name."""

from __future__ import annotations

import numpy as np
import pytest

from sslt.data.sources.image_files import class_names, label_indices, on_white, to_nhwc, to_uint8
from sslt.errors import UserError

CLASSES = ["ant", "bee", "cat"]


def test_labels_by_number_and_by_name():
    """Whole numbers of any type, in a column or not; names; unlabelled sets have -1 throughout."""
    for dtype in (np.int8, np.uint8, np.int64, np.float32):
        assert label_indices(np.array([2, 0, 1], dtype), CLASSES, "y").tolist() == [2, 0, 1]
    assert label_indices(np.array([True, False]), CLASSES, "y").tolist() == [1, 0]
    assert label_indices(np.array([[2], [1]]), CLASSES, "y").tolist() == [2, 1]
    assert label_indices(np.array(["cat", "ant"], object), CLASSES, "y").tolist() == [2, 0]
    assert label_indices(np.array([-1, -1]), CLASSES, "y") is None
    assert label_indices(np.array([2]), CLASSES, "y").dtype == np.int64 and len(label_indices(np.array([], int), CLASSES, "y")) == 0


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.0, 1.5], "row 1: the label"), ([0, 3], "row 1: the label"), ([0, 1, -1], "row 2: no label"),
        (["ant", "dog"], "row 1: the label"),
        ([[0, 1], [1, 2]], r"shape \[2, 2\]"), ([1 + 1j], "complex128 values"),
    ],
)  # fmt: skip
def test_what_no_label_is(values, said):
    """The first row that is wrong, or the type or shape."""
    with pytest.raises(UserError, match=said):
        label_indices(np.array(values), CLASSES, "y")


def test_class_names():
    """Those given; the strings of all splits, sorted; the numbers up to the largest."""
    assert class_names([np.array([5])], ["x", "y"], "y") == ["x", "y"]
    assert class_names([np.array(["b", None, "a"], object), np.array(["c", "a"], object)], None, "y") == ["a", "b", "c"]
    assert class_names([np.array([0, 2]), np.array([3]), np.array([], int)], None, "y") == ["0", "1", "2", "3"]
    assert class_names([], None, "y") == []


def test_layouts():
    """Grey images, channels last, and channels first, are channels last; of both readings, channels last."""
    assert to_nhwc(np.zeros((5, 6, 7)), "x").shape == (5, 6, 7, 1)
    assert to_nhwc(np.zeros((5, 6, 7, 3)), "x").shape == (5, 6, 7, 3) and to_nhwc(np.zeros((5, 3, 7, 4)), "x").shape == (5, 3, 7, 4)
    x = np.arange(5 * 3 * 6 * 7).reshape(5, 3, 6, 7)
    assert np.array_equal(to_nhwc(x, "x")[2, 4, 5], x[2, :, 4, 5])
    for shape in ((5, 6), (5, 6, 7, 2), (5, 6, 7, 3, 1)):
        with pytest.raises(UserError, match="give"):
            to_nhwc(np.zeros(shape), "x")


def test_ranges():
    """0..1 is stretched where numbers have fractions, 0..255 rounded; integers stay, however small; every row is, of many too."""
    assert to_uint8(np.array([0.0, 0.5, 1.0]), "x").tolist() == [0, 128, 255]
    assert to_uint8(np.array([0.0, 0.6, 2.0]), "x").tolist() == [0, 1, 2]
    assert to_uint8(np.array([0, 1]), "x").tolist() == [0, 1] and to_uint8(np.array([False, True]), "x").tolist() == [0, 255]
    same = np.array([7], np.uint8)
    assert to_uint8(same, "x") is same and to_uint8(np.zeros((0, 2)), "x").dtype == np.uint8
    many = np.random.default_rng(0).random((9000, 2))
    assert np.array_equal(to_uint8(many, "x"), np.rint(many * 255).astype(np.uint8))
    for values, said in (([-1, 3], "from -1 to 3"), ([0, 256], "from 0 to 256"), ([1j], "not numbers"), (["a"], "not numbers")):
        with pytest.raises(UserError, match=said):
            to_uint8(np.array(values), "x")
    with pytest.raises(UserError, match=r"first in row 1 \(2 rows\)"):
        to_uint8(np.array([[0.0, 1], [np.nan, 1], [np.inf, 1]]), "x")


def test_transparency_is_laid_on_white():
    """Seen through it is white, opaque it is itself, half of it half."""
    rgba = np.array([[10, 20, 30, 0], [10, 20, 30, 255], [10, 20, 30, 51]], np.uint8)
    assert on_white(rgba).tolist() == [[255, 255, 255], [10, 20, 30], [206, 208, 210]]
