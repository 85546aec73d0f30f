"""Protects episodes: what one holds, that steps and ranks never change them, which classes are kept apart, and the mistakes."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sslt.data import cache
from sslt.data.answers import Class
from sslt.data.base import Samples
from sslt.data.prepare.image_processor import ImageProcessor, ImageSamples
from sslt.data.sources.omniglot import Omniglot
from sslt.data.streams.episodes import ClassSet, Episodes, EpisodeStream, Training, split_classes, test_draws, turn
from sslt.data.streams.joined import Joined
from sslt.errors import UserError

test_draws.__test__ = False  # type: ignore[attr-defined] - pytest takes its name for a test
SHARED = os.environ.get("SSLT_TEST_DATA")


def pictures(labels: np.ndarray | list[int], size: int = 6, seed: int = 0) -> ImageSamples:
    """Noise with labels; the first pixel of image i tells i."""
    labels = np.asarray(labels)
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), size, size, 1), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels)) % 256
    return ImageSamples(
        images, Class(labels.astype(np.int64), {"classes": [f"c{i}" for i in range(max(10, labels.max() + 1))]}), f"noise{seed}"
    )


def shuffled(classes: int, each: int, first: int = 0) -> np.ndarray:
    return np.random.default_rng(1).permutation(np.repeat(np.arange(first, first + classes), each))


def stream(classes: ClassSet, *shape: int, **changed) -> EpisodeStream:
    return EpisodeStream(classes, *shape, **{"seed": 3, **changed})


def plan(**changed) -> Episodes:
    values = {"way": 2, "shot": 1, "query": 2, "test_episodes": 10, "val_classes": 0.2, "test_classes": 0.3, "split_seed": 0}
    return Episodes(**{**values, "method": None, "training": None, **changed})


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# -------------------------------------------------------------------- an episode
@pytest.mark.parametrize(("way", "shot", "query", "per_step"), [(3, 1, 2, 1), (2, 3, 4, 5), (6, 2, 1, 2)])
def test_an_episode_is_n_classes_of_k_and_q_samples(way, shot, query, per_step):
    """Support and query share no sample, each class is one true class, classes differ, labels are counted anew from 0."""
    samples = pictures(shuffled(6, 8))
    s = stream(ClassSet(samples, ""), way, shot, query, per_step)
    for step in range(4):
        batch = s.at(step)
        assert batch["support"].shape == (per_step, way, shot) and batch["query"].shape == (per_step, way, query)
        true = torch.from_numpy(samples.labels)[batch["index"]]
        for support, rest in zip(batch["support"], batch["query"], strict=True):
            rows = torch.cat([support, rest], 1)  # [way, shot + query]
            assert (batch["label"][rows] == torch.arange(way)[:, None]).all()
            assert (true[rows] == true[rows][:, :1]).all() and len(true[rows][:, 0].unique()) == way
            assert len(batch["index"][rows].unique()) == rows.numel()
        assert len(batch["label"]) == s.batch_size == per_step * way * (shot + query)


def test_any_step_by_itself():
    """Step g is the same whatever was read before, another step or seed is another: what a resumed run relies on."""
    classes = ClassSet(pictures(shuffled(6, 8)), "")
    s = stream(classes, 3, 1, 2, 2)
    read = [s.at(g) for g in range(6)]
    assert all(same(stream(classes, 3, 1, 2, 2).at(g), read[g]) for g in (5, 0, 3))
    assert len({tuple(b["index"].tolist()) for b in read}) == 6
    assert not same(stream(classes, 3, 1, 2, 2, seed=4).at(0), read[0])


def test_two_ranks_see_the_episodes_of_one():
    """Rank r of two with 2 episodes a step has half of what one process with 4 sees: the gradient is that of the large batch."""
    classes = ClassSet(pictures(shuffled(6, 8)), "")
    whole = stream(classes, 3, 1, 2, 4)
    ranks = [stream(classes, 3, 1, 2, 2, rank=r, world=2) for r in (0, 1)]
    for g in (0, 1, 7):
        of_one = whole.index_at(g).reshape(4, whole.together)
        assert all(np.array_equal(r.index_at(g).reshape(2, -1), of_one[i::2]) for i, r in enumerate(ranks))
    assert len(ranks[0]) == len(ranks[1]) == len(whole) == 48 // 36


def test_turned_classes_are_classes_of_their_own():
    """A class and its turn meet in an episode as two, each with its images turned alike; an epoch is four times as long."""
    samples = pictures(shuffled(2, 9), size=5)
    s = stream(ClassSet(samples, ""), 7, 1, 2, 1, turns=4)
    assert len(s) == 4 * 18 // 21
    seen = set()
    for step in range(6):
        batch = s.at(step)
        images = samples.batch(batch["index"].numpy())["image"]
        for rows in torch.cat([batch["support"], batch["query"]], 2)[0]:
            fits = [k for k in range(4) if torch.equal(torch.rot90(images[rows], k, (2, 3)), batch["image"][rows])]
            assert len(fits) == 1
            seen.add((int(samples.labels[batch["index"][rows[0]]]), fits[0]))
    assert len(seen) == 8


def test_turning_is_by_quarters_to_the_left():
    """An image [[1, 2], [3, 4]] turned once is [[2, 4], [1, 3]]."""
    images = torch.tensor([[1, 2], [3, 4]]).expand(4, 1, 2, 2).clone()
    turn(images, np.array([0, 1, 2, 3]))
    assert images[:, 0].tolist() == [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]]]


def test_more_test_episodes_begin_with_the_same():
    """What 10 episodes were measured on, 20 are as well, whichever method asks."""
    classes = ClassSet(pictures(shuffled(6, 8)), "")
    few, many = test_draws(classes, 3, 4, 10, seed=0), test_draws(classes, 3, 4, 20, seed=0)
    assert few.shape == (10, 3, 4) and np.array_equal(many[:10], few)
    assert not np.array_equal(few, test_draws(classes, 3, 4, 10, seed=1))
    learned = {tuple(stream(classes, 3, 1, 3, 1, seed=0).index_at(g)) for g in range(20)}
    assert not learned & {tuple(e.reshape(-1)) for e in many}


# -------------------------------------------------------------------- which classes are for what
def classes_of(sets: dict[str, ClassSet]) -> dict[str, set[int]]:
    return {s: set(c.labels.tolist()) for s, c in sets.items()}


def test_shared_classes_are_divided_by_a_seed():
    """Splits of the same classes are pooled; every class is in one part, all its samples with it; the division never changes."""
    labels = shuffled(10, 8)
    parts: dict[str, Samples] = {
        "train": pictures(labels[:50]),
        "val": pictures(labels[50:60], seed=1),
        "test": pictures(labels[60:], seed=2),
    }
    sets = split_classes(parts, plan(), "noise")
    found = classes_of(sets)
    assert {s: len(c) for s, c in found.items()} == {"train": 5, "val": 2, "test": 3}
    assert set.union(*found.values()) == set(range(10))
    assert sum(len(c.samples) for c in sets.values()) == 80 and all(len(r) == 8 for c in sets.values() for r in c.rows)
    assert classes_of(split_classes(parts, plan(way=3, query=5), "noise")) == found
    assert classes_of(split_classes(parts, plan(split_seed=1), "noise")) != found


def test_a_test_split_of_new_classes_stands():
    """As Omniglot's: its classes are the tests', validation classes come out of train's, and no sample is lost."""
    train, val = pictures(shuffled(10, 5)), pictures(np.arange(10), seed=1)
    test = pictures(shuffled(4, 6, first=10), seed=2)
    sets = split_classes({"train": train, "val": val, "test": test}, plan(), "noise")
    found = classes_of(sets)
    assert found["test"] == {10, 11, 12, 13} and len(found["val"]) == 2 and len(found["train"]) == 8
    assert all(len(r) == 6 for c in sets.values() for r in c.rows)
    assert found["train"] | found["val"] == set(range(10))


def test_a_validation_split_of_new_classes_stands():
    """As miniImageNet's three parts."""
    parts = {"train": shuffled(4, 5), "val": shuffled(2, 5, first=4), "test": shuffled(3, 5, first=6)}
    sets = split_classes({s: pictures(y, seed=i) for i, (s, y) in enumerate(parts.items())}, plan(), "noise")
    assert classes_of(sets) == {"train": {0, 1, 2, 3}, "val": {4, 5}, "test": {6, 7, 8}}


# -------------------------------------------------------------------- mistakes
def test_an_episode_larger_than_a_class_is_the_users_mistake():
    """The numbers, the class and what to lower, before anything is read."""
    classes = ClassSet(pictures([0] * 9 + [1] * 4 + [2] * 9), "to test on")
    with pytest.raises(UserError, match=r"3 \+ 2 samples.*'c1' \(to test on\) has 4"):
        classes.check(2, 3, 2)
    with pytest.raises(UserError, match=r"4-way episodes need 4 classes to test on, but there are 3"):
        classes.check(4, 1, 1)
    classes.check(3, 2, 2)
    classes.check(12, 2, 2, turns=4)
    with pytest.raises(UserError, match=r"too few classes.*1 to learn from, 1 to validate on, 1 to test on"):
        split_classes({"train": classes.samples}, plan(), "noise")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"way": 1}, r"episodes\.way=1: give at least 2"),
        ({"shot": 0}, r"episodes\.shot=0"),
        ({"query": 0}, r"episodes\.query=0"),
        ({"test_episodes": 1}, r"episodes\.test_episodes=1"),
        ({"test_classes": 1.0}, r"episodes\.test_classes=1\.0"),
        ({"training": Training(None, None, 1, 0, None, 0, 1)}, r"episodes\.training\.per_step=0"),
        ({"training": Training(1, None, 1, 1, None, 0, 1)}, r"episodes\.training\.way=1"),
    ],
)
def test_numbers_that_make_no_episode(changed, says):
    with pytest.raises(UserError, match=says):
        plan(**changed)


# -------------------------------------------------------------------- several splits as one
def test_joined_rows_are_the_parts_rows():
    """Any order of rows over the parts; subsets of subsets; labels and content follow."""
    parts = [pictures([0, 1, 2], seed=1), pictures([2, 1], seed=2), pictures([0] * 4, seed=3)]
    joined = Joined(parts)
    all_images = np.concatenate([p.images for p in parts])
    assert len(joined) == 9 and joined.labels.tolist() == [0, 1, 2, 2, 1, 0, 0, 0, 0]
    part = joined.subset(np.array([8, 0, 4, 3, 7])).subset(np.array([4, 2, 1, 0]))
    for samples, rows in ((joined, [8, 3, 0, 5, 2]), (part, [7, 4, 0, 8])):
        index = np.array(rows) if samples is joined else np.arange(4)
        batch = samples.batch(index)
        assert np.array_equal(batch["image"].permute(0, 2, 3, 1).numpy(), all_images[rows])
        assert batch["label"].tolist() == joined.labels[rows].tolist() and batch["index"].tolist() == index.tolist()
    assert joined.fingerprint != part.fingerprint != Joined(parts[:2]).fingerprint


def test_joined_texts_are_padded_to_the_longest():
    """Rows of parts whose batches differ in width keep their tokens; the rest is padding that the mask leaves out."""
    from sslt.data.prepare.text_samples import TextSamples

    def texts(sizes: list[int], first: int) -> TextSamples:
        ends = np.cumsum(sizes)
        tokens = np.arange(first, first + ends[-1], dtype=np.int32)
        return TextSamples(
            tokens, ends - sizes, np.array(sizes), Class(np.zeros(len(sizes), np.int64), {"classes": ["a"]}), str(first), (1, 2, 3), 64, 0
        )

    joined = Joined([texts([4, 20], 100), texts([2, 3], 200)])
    batch = joined.batch(np.array([3, 1, 0]))
    assert (
        batch["tokens"].shape == batch["mask"].shape and batch["mask"].sum(1).tolist() == [5, 22, 6] == joined.lengths[[3, 1, 0]].tolist()
    )
    assert batch["tokens"][0, :5].tolist() == [1, 202, 203, 204, 2]
    assert (batch["tokens"][~batch["mask"]] == 3).all()


# -------------------------------------------------------------------- Omniglot
def drawings(n: int) -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 2, (105, 105)).astype(np.uint8) * 255 for i in range(n)]


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("1").save(buffer, "PNG")
    return buffer.getvalue()


def in_folders(root: Path) -> None:
    """Two drawings of each of two background and one evaluation characters, as torchvision lays them out."""
    for i, pixels in enumerate(drawings(6)):
        half, character = [("background", "Latin/character01"), ("background", "Latin/character02"), ("evaluation", "Angelic/character01")][
            i // 2
        ]
        folder = root / "omniglot-py" / f"images_{half}" / character
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"000{i % 2}_01.png").write_bytes(png(pixels))


def in_tables(root: Path) -> None:
    """The same as tables."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (root / "omniglot").mkdir(parents=True)
    cells = [{"bytes": png(pixels), "path": None} for pixels in drawings(6)]
    for half, rows, labels in (("background", cells[:4], [0, 0, 1, 1]), ("evaluation", cells[4:], [0, 0])):
        pq.write_table(
            pa.table({"image": rows, "label": labels, "drawer": [1, 2] * (len(rows) // 2)}), root / "omniglot" / f"{half}.parquet"
        )


@pytest.mark.parametrize("layout", [in_folders, in_tables])
def test_omniglot_is_read_in_its_layouts(layout, tmp_path, monkeypatch):
    """Background characters are train, evaluation characters test with labels of their own; encoders get 28×28."""
    monkeypatch.setattr(cache, "_root", tmp_path / "cache")
    layout(tmp_path)
    source = Omniglot(str(tmp_path))
    assert source.own_splits() == ("train", "test") and len(source.classes) == 3 and source.new_classes_in_test
    train, test = source.read("train"), source.read("test")
    assert train.labels.tolist() == [0, 0, 1, 1] and test.labels.tolist() == [2, 2]
    assert all(np.array_equal(a[..., 0], b) for a, b in zip([*train.items, *test.items], drawings(6), strict=True))
    samples = ImageProcessor.fit(source).prepare(source, "test")
    assert samples.batch(np.array([0]))["image"].shape == (1, 1, 28, 28)
    assert source.fingerprint() == Omniglot(str(tmp_path / source._place.name)).fingerprint()


def test_omniglot_that_is_not_there_or_half_there(tmp_path):
    with pytest.raises(UserError, match=r"background\.parquet and evaluation\.parquet"):
        Omniglot(str(tmp_path)).read("train")
    in_tables(tmp_path)
    (tmp_path / "omniglot" / "evaluation.parquet").unlink()
    with pytest.raises(UserError, match=r"lacks evaluation\.parquet"):
        Omniglot(str(tmp_path)).read("train")


@pytest.mark.skipif(not SHARED or not Path(SHARED, "omniglot").is_dir(), reason="SSLT_TEST_DATA holds no omniglot")
def test_omniglot_itself():
    """964 background and 659 evaluation characters, 20 drawings of each, as Lake et al. (2015) describe it."""
    source = Omniglot(str(SHARED))
    train, test = source.read("train"), source.read("test")
    assert np.bincount(np.concatenate([train.labels, test.labels])).tolist() == [20] * (964 + 659)
    assert test.labels.min() == 964 and train.items[0].shape == (105, 105, 1)
