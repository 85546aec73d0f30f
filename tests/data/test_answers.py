"""Protects the kinds of answers: rows taken, joined, stored and moved are the rows they were, and what belongs together stays together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslt.data import cache, frames
from sslt.data.answers import IGNORE, KINDS, Answers, Boxes, Class, Instances, Labels, Map, Number, Tags, Texts, Values
from sslt.data.base import Raw, Source, stratified
from sslt.data.prepare.image_processor import ImageProcessor
from sslt.data.ragged import Ragged
from sslt.data.streams.subsets import label_rows

RNG = np.random.default_rng(0)
NAMES = {"classes": ["a", "b", "c"]}
SIZES = [(4, 6), (5, 5), (6, 4), (4, 4), (3, 8), (8, 8)]
N = len(SIZES)
GROUPS = np.array([3, 3, 9, 1, 9, 1])


def maps(dtype: Any = np.uint8, high: int = 3) -> list[np.ndarray]:
    return [RNG.integers(0, high, shape).astype(dtype) for shape in SIZES]


def made(kind: str) -> Answers:
    """Six rows of a kind, the first of those that can be empty without anything."""
    if kind == "class":
        return Class(np.array([2, 0, 1, 1, 0, 2]), NAMES, scores=RNG.normal(size=(N, 3)), groups=GROUPS)
    if kind == "labels":
        return Labels(RNG.random((N, 3)) < 0.5, NAMES, groups=GROUPS)
    if kind == "number":
        return Number(RNG.normal(size=N), {"low": 0.0, "high": 5.0}, groups=GROUPS)
    if kind == "tags":
        rows = [np.empty((0, 3)), [[0, 2, 1]], [[1, 3, 0], [5, 9, 2]], [[0, 1, 0]], np.empty((0, 3)), [[2, 4, 1]] * 3]
        return Tags(Ragged.of(rows, np.int64, 3), {"types": ["PER", "ORG", "LOC"]}, groups=GROUPS)
    if kind == "texts":
        return Texts([[], ["one", "two"], ["é 中 \ud800"], [""], ["a", "b", "c"], ["last\nline"]], {}, groups=GROUPS)
    shapes = np.array(SIZES)
    if kind == "boxes":
        rows = [
            np.empty((0, 5)),
            [[0, 0, 2, 3, 1]],
            [[1, 1, 3.5, 4, 0], [0, 2, 4, 6, 2]],
            [[0, 0, 4, 4, 1]],
            [[2, 1, 7, 3, 0]],
            [[1, 1, 2, 2, 2]],
        ]
        return Boxes(Ragged.of(rows, np.float64, 5), NAMES, shapes=shapes, groups=GROUPS)
    if kind == "map":
        return Map.of(maps(), NAMES, groups=GROUPS)
    if kind == "instances":
        return Instances.of(maps(np.uint16), NAMES, objects=Ragged.of([[0, 1], [2, 2], [1, 0], [0, 0], [1, 1], [2, 0]], np.int64))
    return Values.of([m.astype(np.float32) / 7 for m in maps()], {}, groups=GROUPS)


def same(a: Any, b: Any) -> None:
    """Every column of both is the same, row by row, in type too."""
    assert type(a) is type(b) and a.space == b.space and len(a) == len(b) and a.present() == b.present()
    for name in a.present():
        x, y = getattr(a, name), getattr(b, name)
        assert type(x) is type(y) or isinstance(x, np.ndarray)
        for i in range(len(a)):
            if isinstance(x[i], list):
                assert x[i] == y[i]
            else:
                np.testing.assert_array_equal(x[i], y[i])
                assert np.asarray(x[i]).dtype == np.asarray(y[i]).dtype


def stored(answers: Answers, folder: Path, prefix: str = "answer") -> Answers:
    """Through real files, and what is told beside them through JSON."""
    folder.mkdir()
    about = json.loads(json.dumps(answers.save(folder, prefix)))
    (folder / "meta.json").write_text("{}")
    return Answers.load(cache.Entry(folder), about, prefix)


every = pytest.mark.parametrize("kind", sorted(KINDS))


# -------------------------------------------------------------------- rows
@every
def test_rows_are_taken_in_order(kind):
    """Any rows, more than once, none, and of what was taken again."""
    whole = made(kind)
    part = whole.take(np.array([4, 1, 1, 5]))
    assert len(part) == 4 and len(whole.take(np.array([], int))) == 0
    for i, row in enumerate((4, 1, 1, 5)):
        np.testing.assert_array_equal(part.values[i], whole.values[row])
    same(part.take(np.array([3, 0])), whole.take(np.array([5, 4])))
    same(whole.take(np.arange(N) % 2 == 0), whole.take(np.array([0, 2, 4])))
    same(whole, made_again := whole.take(np.arange(N)))
    assert made_again is not whole


@every
def test_parts_join_to_the_whole(kind):
    """Also of parts of which some have no rows, and some were taken out of order."""
    whole = made(kind)
    parts = [whole.take(np.array(rows, int)) for rows in ([0, 1], [], [2], [3, 4, 5])]
    same(Answers.join(parts), whole)
    order = np.array([5, 2, 0, 4, 3, 1])
    same(Answers.join([whole.take(order[:3]), whole.take(order[3:])]).take(np.argsort(order)), whole)


def test_what_some_parts_lack_the_whole_lacks():
    """Scores and groups are of all rows or of none."""
    a, b = made("class"), made("class")
    b.scores = b.groups = None
    joined = Answers.join([a, b])
    assert joined.scores is None and joined.groups is None and len(joined) == 2 * N and a.scores is not None


def test_other_kinds_and_spaces_do_not_join():
    """A number beside a class, or a class of other names, is a defect of the caller."""
    for other in (
        made("number"),
        Class(np.array([0]), {"classes": ["x", "y"]}),
        Instances.of(maps(), NAMES, objects=Ragged.of([[]] * N, int)),
    ):
        with pytest.raises(ValueError, match="do not join"):
            Answers.join([made("class"), other])
    with pytest.raises(ValueError, match="do not join"):
        Answers.join([made("map"), made("instances")])


@every
def test_rows_survive_the_disk(kind, tmp_path):
    """All columns, in their types; of a part only the part."""
    whole = made(kind)
    same(stored(whole, tmp_path / "whole"), whole)
    part = whole.take(np.array([5, 0, 2]))
    same(stored(part, tmp_path / "part", "second"), part)
    same(stored(whole.take(np.array([], int)), tmp_path / "none"), whole.take(np.array([], int)))


@pytest.mark.parametrize("rows", [[["a"]], [["a"], ["b"]], [["a", "b"], ["c", "d"]], [[], []], []])
def test_texts_are_lists_whatever_their_number(rows, tmp_path):
    """Rows with as many texts each are no matrix; a row is a list of strings."""
    texts = Texts(rows, {})
    assert [list(r) for r in texts.values] == rows and all(isinstance(r, list) for r in texts.values)
    same(stored(texts, tmp_path / "x"), texts)


def test_maps_of_several_types_lose_nothing():
    """Numbers above 255 beside a map of bytes stay what they are."""
    deep = np.full((2, 2), 300, np.uint16)
    assert Map.of([np.ones((1, 3), np.uint8), deep], NAMES).row(1).tolist() == deep.tolist()


def test_an_unknown_column_is_a_defect():
    """Only columns that the kind names are kept, stored and taken."""
    with pytest.raises(TypeError, match="no column shapes"):
        Class(np.array([0]), NAMES, shapes=np.array([[1, 1]]))


# -------------------------------------------------------------------- ragged rows
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [1, 2], [3, 0, 0], [2], [], [0, 2]])
def test_ragged_rows_lie_flat(order):
    """Whatever was taken, flat rows are the rows one after the other; rows that lie so are not copied."""
    rows = [np.arange(3), np.arange(0), np.arange(5) + 10, np.arange(1) + 20]
    ragged = Ragged.of(rows, np.int64)
    part = ragged.take(np.array(order, int))
    np.testing.assert_array_equal(part.flat(), np.concatenate([np.empty(0, int), *(rows[i] for i in order)]))
    np.testing.assert_array_equal(
        Ragged.from_flat(part.flat(), part.sizes).padded(np.arange(len(order)), -1), part.padded(np.arange(len(order)), -1)
    )
    assert ragged.take(np.arange(1, 4)).flat().base is ragged.values


def test_padding_fills_up():
    """[B, M] to the longest of the batch, at least one wide."""
    ragged = Ragged.of([[1, 2], [], [3]], np.int64)
    assert ragged.padded(np.array([2, 0, 1]), -1).tolist() == [[3, -1], [1, 2], [-1, -1]]
    assert ragged.padded(np.array([1]), -1).tolist() == [[-1]]


# -------------------------------------------------------------------- batches and views
@every
def test_a_batch_has_what_is_promised(kind):
    """What `fills` names, a row for each sample, and V times as many rows for V views."""
    answers = made(kind)
    batch = answers.batch(np.array([3, 0]), frames.whole(2).numpy(), 4)
    assert batch.keys() == answers.fills.keys() and all(len(x) == 2 for x in batch.values())
    if batch:
        moved = type(answers).moved({**batch, "views": {"x": torch.zeros(3, 2, 1, 4, 4)}})
        assert moved.keys() == batch.keys()
        for name, x in moved.items():
            torch.testing.assert_close(x, torch.cat([batch[name]] * 3), equal_nan=True)


def test_boxes_in_a_batch():
    """Shares of what is seen, and -1 where there is none, before and after they are moved."""
    batch = made("boxes").batch(np.array([2, 0]), frames.whole(2).numpy())
    assert batch["box_class"].tolist() == [[0, 2], [-1, -1]]
    torch.testing.assert_close(batch["boxes"][0], torch.tensor([[1 / 4, 1 / 6, 3.5 / 4, 4 / 6], [0, 2 / 6, 1, 1]]))
    assert (batch["boxes"][1] == -1).all()
    moved = Boxes.moved({**batch, "views": {"image": torch.zeros(2, 2, 1, 4, 4)}, "frame": torch.tensor([0.0, 1, 1, 0]).expand(2, 2, 4)})
    torch.testing.assert_close(moved["boxes"][2, 0], torch.tensor([0.5 / 4, 1 / 6, 3 / 4, 4 / 6]))
    assert (moved["boxes"][[1, 3]] == -1).all() and moved["box_class"].tolist() == batch["box_class"].tolist() * 2


def test_a_map_of_its_own_size():
    """Without a frame and a size maps are as they are; numbers are int64, depths float32, unknown ones NaN."""
    m = Map.of([np.array([[0, 1], [IGNORE, 2]], np.uint8)] * 2, NAMES)
    assert m.batch(np.array([1]))["map"].tolist() == [[[0, 1], [IGNORE, 2]]] and m.batch(np.array([0]))["map"].dtype == torch.int64
    deep = Instances.of([np.full((2, 2), 40000, np.uint16)], NAMES, objects=Ragged.of([[0]], np.int64))
    assert deep.batch(np.array([0]))["instances"].tolist() == [[[40000] * 2] * 2]
    depth = Values.of([np.array([[1.5, np.nan]], np.float32)], {}).batch(np.array([0]))["pixel_values"]
    assert depth.dtype == torch.float32 and depth[0, 0, 0] == 1.5 and depth[0, 0, 1].isnan()


@pytest.mark.parametrize(("kind", "beside"), [("map", IGNORE), ("instances", 0), ("values", np.nan)])
def test_beside_the_picture_nothing_is_known(kind, beside):
    """A border that a view or the processor adds is ignored, of no object, of no depth."""
    moved = made(kind).batch(np.array([3]), np.array([[-1.0, 1.0, 0.0, 1.0]]), 4)
    (seen,) = moved.values()
    np.testing.assert_array_equal(seen[0, :2].numpy(), np.full((2, 4), beside))


class Pictures(Source):
    """Pictures whose pixels are their maps."""

    modality, name, answer = "image", "pictures", Map
    space = {"classes": [str(i) for i in range(250)]}  # noqa: RUF012 - as a source with fixed names has it
    classes = None

    def __init__(self, shapes: list[tuple[int, int]]):
        self.maps = [RNG.permutation(np.arange(h * w) % 249 + 1).reshape(h, w).astype(np.uint8) for h, w in shapes]

    def own_splits(self):
        return ("train", "val", "test")

    def fingerprint(self):
        return cache.digest(*self.maps)

    def read(self, split):
        return Raw([m[..., None] for m in self.maps], Map.of(self.maps, self.space))


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_maps_come_with_their_pixels(fit, tmp_path, monkeypatch):
    """What the processor shows of a picture it shows of its map; then a view's flip and shift move both alike."""
    monkeypatch.setattr(cache, "_root", tmp_path / "cache")
    shapes = {"crop": [(8, 11), (8, 8), (13, 8)], "pad": [(11, 8), (11, 11), (5, 11), (10, 11)], "stretch": [(9, 9)]}[fit]
    source = Pictures(shapes)
    size = {"crop": 8, "pad": 11, "stretch": 9}[fit]
    samples = ImageProcessor(size, 1, [0.0], [1.0], fit).prepare(source, "train")
    batch = samples.subset(np.arange(len(shapes))[::-1]).batch(np.arange(len(shapes)))
    pixels = batch["image"][:, 0].long()
    border = pixels == 0
    assert torch.equal(batch["map"][~border], pixels[~border]) and (batch["map"][border] == IGNORE).all()
    assert border.any() == (fit == "pad")
    views = torch.stack([pixels.flip(2), pixels])
    seen = torch.tensor([[0.0, 1, 1, 0], [0.0, 1, 0, 1]])[:, None].expand(2, len(shapes), 4)
    moved = Map.moved({"map": batch["map"], "views": {"image": views[:, :, None]}, "frame": seen})["map"]
    assert torch.equal(moved.where(moved != IGNORE, 0), views.flatten(0, 1))


# -------------------------------------------------------------------- shares and groups
def test_strata():
    """By class; by the rarest of what a row has; by tenths of a range; nothing to go by is one stratum."""
    assert made("class").strata.tolist() == [2, 0, 1, 1, 0, 2]
    assert Labels(np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]], bool), NAMES).strata.tolist() == [0, 1, 1, 0, 3]
    assert made("tags").strata.tolist() == [3, 1, 2, 0, 3, 1]
    assert made("boxes").strata.tolist() == [3, 1, 0, 1, 0, 2]
    m = Map.of(
        [
            np.array([[0, 0], [0, IGNORE]], np.uint8),
            np.array([[0, 2]], np.uint8),
            np.array([[IGNORE]], np.uint8),
            np.array([[0]], np.uint8),
        ],
        NAMES,
    )
    assert m.strata.tolist() == [0, 2, 3, 0]
    assert made("instances").strata.tolist() == [1, 2, 1, 0, 1, 2]
    assert set(made("values").strata) == {0} == set(made("texts").strata)
    numbers = Number(np.arange(1000.0)[RNG.permutation(1000)], {})
    assert np.bincount(numbers.strata).tolist() == [100] * 10
    assert np.bincount(Number(np.zeros(7), {}).strata).max() == 7


@every
def test_no_rows_have_no_strata(kind):
    """An empty split is divided into nothing."""
    assert made(kind).take(np.array([], int)).strata.shape == (0,)


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_never_divided(seed):
    """Rows of a group are all drawn or all left, and what is drawn is about the share that was asked for."""
    rng = np.random.default_rng(seed)
    groups, labels = rng.integers(0, 40, 300), rng.integers(0, 3, 300)
    for index in (
        stratified(labels, fraction=0.3, seed=seed, together=groups),
        stratified(labels, per_class=25, seed=seed, together=groups),
    ):
        taken = np.isin(np.arange(300), index)
        assert all(len(set(taken[groups == g])) == 1 for g in range(40))
        assert 40 < taken.sum() <= 90


@pytest.mark.parametrize("ask", [{"fraction": 0.5, "per_class": None}, {"fraction": 1, "per_class": 20}])
def test_a_part_of_the_labels_divides_no_group(ask):
    """`label_fraction=` and `labels_per_class=` alike."""
    groups = np.repeat(np.arange(30), 4)
    index = label_rows(Class(np.arange(120) % 3, NAMES, groups=groups), **ask, seed=0)
    assert index is not None and 30 < len(index) < 120 and (np.bincount(groups[index]) % 4 == 0).all()


def test_drawn_splits_divide_no_group():
    """val and test of a source hold whole articles, and rows that hang together over a copy in another article go with both."""
    groups = np.repeat(np.arange(50), 4)
    items = [f"text {i}" for i in range(200)]
    items[7] = items[100]  # a copy: articles 1 and 25 hang together

    class Articles(Source):
        modality, name, classes = "text", "articles", NAMES["classes"]

        def own_splits(self):
            return ("train",)

        def read(self, split):
            return Raw(items, Class(np.arange(200) % 3, NAMES, groups=groups))

        def fingerprint(self):
            return "articles"

    parts = {s: Articles().get(s) for s in ("train", "val", "test")}
    held = {s: set(raw.answers.groups.tolist()) for s, raw in parts.items()}
    assert sum(map(len, parts.values())) == 200 and sum(map(len, held.values())) == 50 and all(held.values())
    assert any({1, 25} <= h for h in held.values())
