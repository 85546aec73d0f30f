"""Protects the embedded scenes: the same everywhere, right about what they show, and no easier than they look."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from conftest import TINY_IMAGES

from sslt.data import cache, copies
from sslt.data.answers import IGNORE, KINDS
from sslt.data.sources.images import Digits
from sslt.data.sources.scenes import ABOUT, COLOURS, COVERED, Drawn, Scene, Scenes, Thing, boxes, caption, draw, sampled
from sslt.errors import UserError

N = 60
KNOWN_CAPTIONS = ["a green 8", "a purple 4 below a white 8 above an orange 3 below a green 9", "a red 2"]
KNOWN_DIGEST = "e61dd4493cb993a0e787"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_root", tmp_path / "cache")


def scenes(answer: str = "map", count: int = N, size: int = 64, seed: int = 0, val: float = 0.5, test: float = 0.5) -> Scenes:
    return Scenes(answer, count, size, seed, val, test)


@pytest.fixture(scope="module")
def shown() -> list[tuple[Scene, Drawn]]:
    source = scenes()
    return [(s, draw(s, 64)) for s in (source.scene("train", i) for i in range(300))]


# -------------------------------------------------------------------- what a scene is a function of
def test_scenes_are_a_function_of_seed_split_and_index():
    """Two sources give the same bytes, whatever is asked of them and how many there are; another seed, split or index others."""
    a, b = scenes().read("val"), scenes("boxes", count=2 * N).read("val")
    np.testing.assert_array_equal(a.items, np.asarray(b.items)[: len(a)])
    others = [scenes(seed=1).read("val").items, scenes().read("test").items]
    assert all((np.asarray(a.items)[:20] != np.asarray(o)[:20]).reshape(20, -1).any(1).all() for o in others)
    assert len({x.tobytes() for x in np.asarray(a.items)}) == len(a)


def test_a_scene_is_the_one_written_down():
    """Content of three scenes as it was when they were made: a change of any pixel is a change of the data, and needs another FORMAT."""
    raw = scenes(count=6).read("train")
    assert [caption(scenes().scene("train", i).things) for i in (0, 1, 2)] == KNOWN_CAPTIONS
    assert cache.digest(np.asarray(raw.items)[:3], raw.answers.row(1)) == KNOWN_DIGEST


def test_what_is_another_set_has_another_fingerprint():
    """Of every setting; equal settings have equal ones."""
    made = [scenes(), scenes("boxes"), scenes(count=61), scenes(size=32), scenes(seed=1), scenes(val=0.4), scenes(test=0.4)]
    assert len({s.fingerprint() for s in made}) == len(made) and scenes().fingerprint() == made[0].fingerprint()


def test_splits_have_their_shares():
    """val and test beside train, or none; nothing is drawn from train."""
    assert [len(scenes(count=10, val=0.2, test=0.5).get(s)) for s in ("train", "val", "test")] == [10, 2, 5]
    assert scenes(val=0.0).splits() == ("train", "test")
    with pytest.raises(UserError, match="no 'val' split"):
        scenes(val=0.0).get("val")


def test_no_digit_is_in_two_splits():
    """No image of scikit-learn's set is in scenes of two splits, nor a copy of one; every class is in each, and all are used."""
    source = scenes()
    contents = {s: [copies.content_of(d) for of in by_class for d in of] for s, by_class in source._digits.items()}
    assert sum(map(len, contents.values())) == len(Digits().read("train"))
    for a, b in itertools.combinations(contents.values(), 2):
        assert not set(a) & set(b)
    assert all(len(by_class) == 10 and min(map(len, by_class)) > 10 for by_class in source._digits.values())
    for split in contents:
        inks = {copies.content_of(t.ink) for i in range(40) for t in source.scene(split, i).things}
        assert inks <= set(contents[split])


# -------------------------------------------------------------------- answers are about the pixels
def test_answers_agree_with_each_other(shown):
    """Class, object, depth and box of a pixel are of one thing; soft edges alone are left out, and never far from a thing."""
    for scene, seen in shown:
        assert 1 <= len(scene.things) <= 4
        sure = seen.classes != IGNORE
        labels = np.array([-1, *(t.label for t in scene.things)])
        np.testing.assert_array_equal(seen.classes[sure], labels[seen.objects][sure] + 1)
        depths = np.array([0, *(t.depth for t in scene.things)], np.float32)
        on = seen.objects > 0
        np.testing.assert_array_equal(seen.depth[on], depths[seen.objects][on])
        assert (seen.depth[~on] > depths.max()).all() and (np.diff(seen.depth[:, 0][~on[:, 0]]) < 0).all()
        found = boxes(seen, scene.things)
        assert len(found) == len(scene.things)  # of each something is to be seen
        for number, (left, top, right, bottom, label) in enumerate(found.astype(int), 1):
            inside = np.zeros_like(on)
            inside[top:bottom, left:right] = True
            assert label == scene.things[number - 1].label and not (seen.objects[~inside] == number).any()
            for edge in (np.s_[top, :], np.s_[bottom - 1, :], np.s_[:, left], np.s_[:, right - 1]):
                assert (seen.objects[edge] == number).any()


def test_colours_of_pixels_are_those_of_things(shown):
    """In the middle of a stroke there is the colour of the thing and nothing of the ground."""
    for scene, seen in shown[:50]:
        for number, thing in enumerate(scene.things, 1):
            at = (seen.objects == number) & (seen.classes == thing.label + 1)
            if at.any():
                near = np.abs(seen.image[at].astype(float) - thing.rgb).max(1)
                assert near.min() <= 0.5 + 1e-9 and near.max() < 60


def test_nearer_things_are_larger_and_in_front(shown):
    """Things are told the nearest first; sides follow depth; nearer ones hide at most `COVERED` of a square, and it is hidden by them."""
    hidden = 0
    for scene, seen in shown:
        depths, sides = [t.depth for t in scene.things], [t.side for t in scene.things]
        assert depths == sorted(depths) and sides == sorted(sides, reverse=True) and min(np.diff(depths), default=1) > 0.1
        np.testing.assert_allclose(np.array(depths) * sides, 32)
        for i, thing in enumerate(scene.things):
            alone = draw(Scene([thing], scene.ground), 64).objects > 0
            lost = alone & (seen.objects != i + 1)
            hidden += lost.sum()
            assert (seen.objects[lost] <= i).all() and (seen.objects[lost] > 0).all()
            assert lost.sum() <= COVERED * thing.side**2 + 4 * thing.side and (i or not lost.any())
    assert hidden > 0


def test_pixels_outside_things_are_ground(shown):
    """Where nothing covers a pixel, not even a soft edge, there is the rounded ground."""
    scene, seen = shown[0]
    clear = seen.classes == 0
    for t in scene.things:
        clear &= draw(Scene([t], np.zeros_like(scene.ground)), 64).image.max(2) == 0
    np.testing.assert_array_equal(seen.image[clear], np.floor(scene.ground[clear] + 0.5))


@pytest.mark.parametrize(("to", "by"), [((8, 8), 1), ((16, 24), 2), ((5, 40), 3)])
def test_sampling_is_bilinear(to, by):
    """As torch's, with centres of pixels at halves and a border that goes on."""
    grid = np.random.default_rng(by).random((8, 8, 3))
    rows, columns = ((np.arange(n) + 0.5) * 8 / n - 0.5 for n in to)
    known = torch.nn.functional.interpolate(torch.from_numpy(grid).permute(2, 0, 1)[None], to, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(sampled(grid, rows, columns), known[0].permute(1, 2, 0), atol=1e-12)


def test_a_digit_can_be_read_in_place():
    """A digit at 8 pixels a cell, shrunk back to 8 × 8, is the digit of scikit-learn: neither turned nor mirrored."""
    ink = np.asarray(Digits().read("train").items)[3, ..., 0] / 255 * 16
    thing = Thing(ink, 3, "white", np.full(3, 255.0), 1.0, 64.0, np.array([32.0, 32.0]), np.zeros(2))
    seen = draw(Scene([thing], np.zeros((64, 64, 3))), 64).image[..., 0].reshape(8, 8, 8, 8).mean((1, 3))
    flips = [np.corrcoef(seen.ravel(), x.ravel())[0, 1] for x in (ink, ink[::-1], ink[:, ::-1], ink.T)]
    assert flips[0] > 0.9 and flips[0] > max(flips[1:]) + 0.2


# -------------------------------------------------------------------- each kind of answer
@pytest.mark.parametrize("kind", sorted(ABOUT))
def test_every_kind_can_be_asked_for(kind):
    """The source says beforehand what its answers are; there is one for each scene, about that scene."""
    source = scenes(kind, count=8)
    raw = source.read("train")
    assert type(raw.answers) is source.answer is KINDS[kind] and raw.answers.space == source.space and len(raw) == len(raw.answers) == 8
    assert source.has_classes == (kind == "class")
    for i in range(8):
        scene, value = source.scene("train", i), raw.answers.values[i]
        seen = draw(scene, 64)
        np.testing.assert_array_equal(np.asarray(raw.items)[i], seen.image)
        if kind in ("map", "instances", "values"):
            np.testing.assert_array_equal(raw.answers.row(i), {"map": seen.classes, "instances": seen.objects, "values": seen.depth}[kind])
        elif kind == "labels":
            assert set(np.flatnonzero(value)) == {t.label for t in scene.things}
        else:
            things = scene.things
            known = {"class": things[0].label, "number": len(things), "texts": [caption(things)], "boxes": boxes(seen, things)}
            np.testing.assert_array_equal(value, known[kind])
    if kind == "map":
        assert source.space["classes"][:2] == ["background", "0"] and len(source.space["classes"]) == 11
    if kind == "instances":
        assert raw.answers.objects[0].tolist() == [t.label for t in source.scene("train", 0).things]


def test_captions_say_where_things_are():
    """From left to right; beside, above or below by the larger distance; an before a vowel."""

    def at(x: float, y: float, colour: str, label: int) -> Thing:
        return Thing(np.zeros((8, 8)), label, colour, np.zeros(3), 1.0, 10.0, np.array([x, y]), np.zeros(2))

    red, blue, orange = at(10, 10, "red", 3), at(40, 20, "blue", 7), at(45, 50, "orange", 1)
    assert caption([red]) == "a red 3"
    assert caption([blue, red]) == "a red 3 left of a blue 7"
    assert caption([orange, blue, red]) == "a red 3 left of a blue 7 above an orange 1"
    assert caption([at(30, 40, "red", 1), at(31, 10, "cyan", 2)]) == "a red 1 below a cyan 2"


def test_colour_does_not_tell_the_class():
    """No colour is of a class more than of others, and no classifier on mean colours beats chance by more than chance does."""
    from scipy.stats import chi2_contingency
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    source = scenes("class", count=1000, size=24, test=1.0)
    things = [t for i in range(1000) for t in source.scene("train", i).things]
    table = np.zeros((10, len(COLOURS)), int)
    np.add.at(table, ([t.label for t in things], [list(COLOURS).index(t.colour) for t in things]), 1)
    assert table.sum(0).min() > 150 and chi2_contingency(table).pvalue > 0.01
    train, test = source.read("train"), source.read("test")
    x, z = (np.asarray(raw.items).mean((1, 2)) for raw in (train, test))
    chance = np.bincount(test.labels).max() / len(test)
    for model in (LogisticRegression(max_iter=1000), RandomForestClassifier(50, min_samples_leaf=5, random_state=0)):
        right = float((model.fit(x, train.labels).predict(z) == test.labels).mean())
        assert right < chance + 3 * (chance * (1 - chance) / len(test)) ** 0.5


# -------------------------------------------------------------------- motion
def test_a_clip_moves_at_constant_velocity():
    """The first frame is the scene; each thing alone is where its velocity puts it, the ground stands still, and clips are repeatable."""
    source = scenes()
    clip = source.clip("train", 3, 5)
    scene = source.scene("train", 3)
    assert len(clip) == 5
    for a, b in zip(clip[0], draw(scene, 64), strict=True):
        np.testing.assert_array_equal(a, b)
    for t, again in enumerate(source.clip("train", 3, 5)):
        np.testing.assert_array_equal(again.image, clip[t].image)
    thing = scene.things[0]._replace(velocity=np.array([2.0, -1.0]), centre=np.array([30.0, 34.0]))
    alone = [draw(Scene([thing], scene.ground), 64, t).objects for t in range(5)]
    for t in range(1, 5):
        np.testing.assert_array_equal(alone[t], np.roll(alone[0], (-t, 2 * t), (0, 1)))
    assert any((clip[0].objects != clip[4].objects).ravel()) and max(np.abs(t.velocity).max() for t in scene.things) <= 0.06 * 64
    gone = draw(Scene([thing], scene.ground), 64, 60)
    assert not gone.objects.any() and boxes(gone, [thing]).shape == (0, 5)


# -------------------------------------------------------------------- mistakes, and through the command
@pytest.mark.parametrize(("setting", "said"), [({"answer": "maps"}, "did you mean 'map'"), ({"size": 8}, "16 or more pixels")])
def test_what_cannot_be_asked(setting, said):
    """One line that says what there is."""
    with pytest.raises(UserError, match=said):
        scenes(**setting)


FEW = ["data.count=80", "data.size=16", "data.val_fraction=0.5", "batch_size=20", "hydra.run.dir=out", *TINY_IMAGES]


def test_finetuning_finds_its_objective(sslt, here):
    """`+target=scenes` names no objective: the answers do. Of the largest digit it is a classifier, with predictions for each scene."""
    sslt(
        "finetune",
        "+target=scenes",
        "data.answer=class",
        "from=scratch",
        "trainer.max_steps=2",
        "late_fusion=false",
        "baseline=false",
        *FEW,
    )
    metrics = json.loads((here / "out/metrics.json").read_text())
    assert 0 <= metrics["test/accuracy"] <= 1 and (here / "out/predictions.jsonl").read_text().count("\n") == 40


@pytest.mark.parametrize("answer", ["class", "map"])
def test_scenes_can_be_pretrained_on(sslt, here, answer):
    """Whatever is asked of them, images are images; classes are probed where there are some."""
    sslt("pretrain", "+task=simclr", "data=scenes", f"data.answer={answer}", "trainer.max_steps=2", "online_probe.samples=40", *FEW)
    assert ("online/knn_accuracy" in json.loads((here / "out/metrics.json").read_text())) == (answer == "class")


def test_a_kind_that_nothing_learns_is_named(sslt, here, capsys):
    """A caption is no class: one line, exit 2, nothing left behind."""
    sslt("finetune", "+target=scenes", "data.answer=texts", "from=scratch", *FEW, code=2)
    assert "have a text to write" in capsys.readouterr().err and not (here / "out").exists()
    sslt("finetune", "+target=scenes", "data.answer=boxes", "objective=classification", "from=scratch", *FEW, code=2)
    assert "have boxes" in capsys.readouterr().err
