"""Protects segmentation: the loss, answers in each image's own size, what is refused, the cheap methods, and the verbs."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toy_maps
from conftest import TINY_IMAGES
from PIL import Image

from sslt.data import frames
from sslt.data.answers import IGNORE, Map
from sslt.data.prepare.image_processor import ImageProcessor
from sslt.data.views.base import Plain
from sslt.encoders.image import ImageEncoder
from sslt.errors import UserError
from sslt.evaluation.features import predicted
from sslt.targets import map_baselines, map_pictures
from sslt.targets.base import Rows
from sslt.targets.map_heads import class_weights, in_own_size
from sslt.targets.metrics.maps import class_pixels
from sslt.targets.segmentation import Segmentation

SIZES = [[24, 24], [24, 40], [33, 20]]


@pytest.fixture(autouse=True)
def _own_folder(here) -> None:
    """With the session's cache."""


def shapes(n: int = 12, classes: tuple[str, ...] = ("ground", "disc", "square")) -> toy_maps.Shapes:
    return toy_maps.Shapes(n, list(classes), SIZES)


def made(head: str = "fpn", fit: str = "stretch", source=None):
    """An encoder, its samples and a target on it."""
    torch.manual_seed(0)
    source = source or shapes()
    processor = ImageProcessor(24, 3, [0.5] * 3, [0.25] * 3, fit)
    encoder = ImageEncoder(processor, "resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}, "small", False)
    return encoder, processor.prepare(source, "train"), Segmentation(encoder, source.space, head, 8, 2, 0.0)


@pytest.mark.parametrize("head", ["fpn", "linear"])
def test_the_loss_is_the_mean_over_valid_pixels(head):
    """Ignored ones neither count nor are units of it; every weight of the head gets a gradient."""
    encoder, samples, target = made(head)
    batch = Plain(2)(samples.batch(np.arange(4)), encoder)
    target.eval(), encoder.eval()
    loss = target(encoder, batch)
    logits = torch.nn.functional.interpolate(
        target.scores(encoder, {"image": batch["views"]["image"].flatten(0, 1)}), (24, 24), mode="bilinear"
    )
    truth = batch["map"].repeat(2, 1, 1)
    each = torch.nn.functional.cross_entropy(logits, truth.clamp(max=2), reduction="none")
    assert loss.value.item() == pytest.approx(each[truth != IGNORE].mean().item(), rel=1e-5)
    assert int(target.units(batch)) == int((truth != IGNORE).sum()) < truth.numel()
    loss.value.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in target.parameters())


def test_rare_classes_weigh_more():
    """By their share to the power of -balance, with mean 1 over pixels; units follow, so that joined batches weigh right."""
    encoder, samples, target = made()
    pixels = class_pixels(samples.answers)
    for balance, ratio in ((0.0, 1.0), (0.5, (pixels[0] / pixels[1]) ** 0.5), (1.0, pixels[0] / pixels[1])):
        weight = class_weights(pixels, balance)
        assert (weight[1] / weight[0]).item() == pytest.approx(ratio, rel=1e-5)
        assert float((weight.double() * torch.from_numpy(pixels)).sum() / pixels.sum()) == pytest.approx(1, rel=1e-5)
    assert class_weights(np.array([5, 0, 5]), 0.5).tolist() == [1, 0, 1]
    target.balance = 0.5
    target.prepare(encoder, samples, 4)
    target.eval(), encoder.eval()
    first, second, both = (Plain(1)(samples.batch(np.array(rows)), encoder) for rows in ([0], [1, 2], [0, 1, 2]))
    parts = [(target(encoder, b).value.item(), float(target.units(b))) for b in (first, second)]
    assert target(encoder, both).value.item() == pytest.approx(sum(v * n for v, n in parts) / sum(n for _, n in parts), rel=1e-5)


def test_a_batch_without_a_valid_pixel_teaches_nothing():
    """Its loss and gradients are 0, not NaN."""
    encoder, samples, target = made()
    batch = Plain(1)(samples.batch(np.arange(2)), encoder)
    batch["map"] = torch.full_like(batch["map"], IGNORE)
    loss = target(encoder, batch)
    loss.value.backward()
    assert loss.value.item() == 0 and int(target.units(batch)) == 0
    assert not any(p.grad.any() for p in target.parameters())


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_answers_are_of_the_images_own_size(fit):
    """Scores that are the prepared map lead back to the true map, but for its edges; what was cut away is of class 0."""
    source = shapes(30)
    _, samples, _ = made(fit=fit, source=source)
    raw, batch = source.get("train"), samples.batch(np.arange(len(samples)))
    truth = samples.answers
    scores = torch.nn.functional.one_hot(batch["map"].clamp(max=3), 4).permute(0, 3, 1, 2).float()[:, :3]
    found = in_own_size(scores, batch, source.space)
    assert np.array_equal(found.shapes, truth.shapes) and len({tuple(s) for s in found.shapes.tolist()}) == 3
    assert np.array_equal(found.shapes, [i.shape[:2] for i in raw.items])
    kept = frames.covered(frames.inverse(batch["seen"]), (40, 40))
    right = np.mean([np.mean((found.row(i) == truth.row(i))[truth.row(i) != IGNORE]) for i in range(len(found))])
    assert right > (0.85 if fit == "crop" else 0.97)
    if fit == "crop":
        wide = next(i for i in range(len(found)) if tuple(found.shapes[i]) == (24, 40))
        assert not found.row(wide)[:, :8].any() and not found.row(wide)[:, 32:].any() and not kept[wide].all()


def test_prediction_does_not_depend_on_the_batch():
    """Batches of another size give the same maps."""
    encoder, samples, target = made()
    one, many = (predicted(encoder, target, samples, torch.device("cpu"), b) for b in (1, 5))
    assert np.array_equal(one.values.flat(), many.values.flat()) and np.array_equal(one.shapes, samples.answers.shapes)


def test_truth_is_best_and_errors_are_per_image():
    """As its own prediction it has no error; shifted by an image it is clearly worse, and nothing predicted counts as wrong."""
    _, samples, target = made()
    flat = samples.subset(np.flatnonzero((samples.answers.shapes == [24, 24]).all(1)))
    truth = flat.answers
    assert target.measure(truth, truth)["miou"] == 1 and not target.errors(truth, truth).any()
    other = truth.take(np.roll(np.arange(len(truth)), 1))
    assert target.measure(other, truth)["miou"] < 0.7 and target.errors(other, truth).min() > 0
    empty = Map.of([np.full(s, IGNORE, np.uint8) for s in truth.shapes], truth.space)
    assert target.measure(empty, truth)["miou"] == 0 == target.measure(empty, truth)["accuracy"]
    mean, low, high = target.difference(truth, other, truth)
    assert 0 < low <= mean <= high


@pytest.mark.parametrize(("head", "words"), [("lineal", "did you mean 'linear'"), ("x", "give fpn or linear")])
def test_heads_are_refused_by_name(head, words):
    """With the ones there are."""
    with pytest.raises(UserError, match=words):
        made(head)


def test_views_that_do_not_say_what_they_show_are_refused():
    """Maps could not follow multi-crop, or views of a user's own that say nothing."""
    _, _, target = made()
    target.check_views(Plain(1))
    with pytest.raises(UserError, match="do not say which part of an image they show"):
        target.check_views(SimpleNamespace(tells_frames=False))


def test_one_class_is_nothing_to_learn():
    """In the names, or in all pixels of the training maps."""
    with pytest.raises(UserError, match="one class, 'ground'"):
        Segmentation.check(shapes(classes=("ground",)))
    blank = Map.of([np.zeros((4, 4), np.uint8), np.full((2, 2), IGNORE, np.uint8)], shapes().space)
    with pytest.raises(UserError, match="of 2 training images"):
        Segmentation.check(shapes(), blank)


# -------------------------------------------------------------------- the cheap methods
@pytest.mark.parametrize("seed", range(4))
def test_otsu_parts_with_least_variance(seed):
    """Against a search through all thresholds."""
    rng = np.random.default_rng(seed)
    grey = np.concatenate([rng.normal(60, 20, 300), rng.normal(150 + 20 * seed, 25, 100)]).clip(0, 255).astype(np.uint8)

    def within(t: int) -> float:
        parts = [part for part in (grey[grey <= t], grey[grey > t]) if len(part)]
        return sum(len(part) * part.astype(float).var() for part in parts) if len(parts) == 2 else math.inf

    assert within(map_baselines.otsu(grey)) == pytest.approx(min(within(t) for t in range(256)))
    assert map_baselines.otsu(np.full(9, 7, np.uint8)) in range(256)


@pytest.mark.parametrize("dark", [False, True])
def test_otsu_takes_the_side_that_validation_says(dark):
    """Bright objects on a dark ground, and the other way round."""
    source = shapes(40, ("ground", "disc"))
    _, samples, _ = made(source=source)
    if dark:
        samples.images = 255 - np.asarray(samples.images)
    x = samples.batch(np.arange(len(samples)))["image"]
    scores = map_baselines._two(-1.0 if dark else 1.0, x)
    found = in_own_size(scores, samples.batch(np.arange(len(samples))), source.space)
    _, _, target = made(source=source)
    assert target.measure(found, samples.answers)["miou"] > 0.95


def test_the_cheapest_is_chosen_on_validation():
    """It beats the commonest class by far, says how well it did where it was chosen, and is None where nothing can be learned."""
    source = shapes(40)
    _, samples, target = made(source=source)
    parts = [
        Rows(p, p.answers) for p in (samples.subset(np.arange(0, 12)), samples.subset(np.arange(12, 20)), samples.subset(np.arange(20, 28)))
    ]
    best = target.cheapest("image", *parts)
    miou = target.measure(best.predictions, parts[2].answers)["miou"]
    assert miou > 0.8 > target.trivial(parts[0].answers, parts[2].answers)["majority/miou"] + 0.3 and best.val_score > 0.8
    assert math.isnan(target.cheapest("image", parts[0], None, parts[2]).val_score)
    one = samples.subset(np.arange(3))
    one.answers = Map.of([np.zeros(s, np.uint8) for s in one.answers.shapes], source.space)
    assert target.cheapest("image", Rows(one, one.answers), None, parts[2]) is None


# -------------------------------------------------------------------- files and pictures
def test_files_hold_the_classes(tmp_path):
    """Pixels of a PNG are the numbers of classes, `IGNORE` too, in the map's size; colours of classes differ."""
    maps = Map.of([np.array([[0, 1, 2], [IGNORE, 2, 0]], np.uint8)], shapes().space)
    [name] = map_pictures.write_maps(tmp_path / "predictions", maps)
    assert np.array_equal(np.array(Image.open(tmp_path / "predictions" / name)), maps.row(0))
    assert len({tuple(c) for c in map_pictures.palette(20)[:20].tolist()}) == 20


def test_pictures_go_from_the_worst_to_the_best():
    """Image, truth and prediction, of the same shape."""
    encoder, samples, target = made()
    picture = target.show(encoder, samples, predicted(encoder, target, samples, torch.device("cpu"), 4))["segmentation"]
    assert list(picture.rows) == ["image", "truth", "prediction"] and len({x.shape for x in picture.rows.values()}) == 1
    shown = [int(c.removesuffix(" %")) for c in picture.captions]
    assert shown == sorted(shown)


# -------------------------------------------------------------------- the verbs
@pytest.fixture
def own_data(here, monkeypatch) -> list[str]:
    (here / "own" / "data").mkdir(parents=True)
    (here / "own" / "data" / "shapes.yaml").write_text(toy_maps.CONFIG)
    assert "toy_maps" in sys.modules
    return ["--config-dir", "own", "data=shapes"]


RUN = ["encoder=resnet_small", "objective=segmentation", "objective.width=8", "batch_size=16", "optimizer.lr=0.01", *TINY_IMAGES]


def numbers(run: str) -> dict:
    return json.loads(Path(run, "metrics.json").read_text())


def test_finetune_evaluate_and_predict(sslt, own_data):
    """Learns, names its files in the images' own sizes, and measures the same in a fresh evaluation."""
    sslt("finetune", *own_data, "from=scratch", "views=light", *RUN, "trainer.max_steps=80", "hydra.run.dir=a")
    found = numbers("a")
    assert found["test/miou"] > found["majority/miou"] + 0.2 and "baseline/miou" in found and "test/class/disc/iou" in found
    assert json.loads(Path("a/encoder/sslt.json").read_text())["processor"]["fit"] == "stretch"
    rows = [json.loads(line) for line in Path("a/predictions.jsonl").read_text().splitlines()]
    assert [r["error"] for r in rows] == sorted((r["error"] for r in rows), reverse=True)
    sizes = {(Image.open(f"a/{r['prediction']}").size, Image.open(f"a/{r['truth']}").size) for r in rows}
    assert sizes == {((24, 24),) * 2, ((40, 24),) * 2, ((20, 33),) * 2}
    assert Path("a/pictures/segmentation.png").exists()
    sslt("evaluate", "--config-dir", "own", "from=a", "trust=[toy_maps]", "baseline=false", "trainer.accelerator=cpu", "hydra.run.dir=b")
    assert numbers("b")["test/miou"] == found["test/miou"]
    Path("pics").mkdir()
    for i, image in enumerate(shapes(3).read("train").items):
        Image.fromarray(image).save(f"pics/{i}.png")
    sslt("predict", "from=a", "input=pics", "trainer.accelerator=cpu", "hydra.run.dir=c")
    names = [json.loads(line)["prediction"] for line in Path("c/predictions.jsonl").read_text().splitlines()]
    assert [Image.open(f"c/{n}").size for n in names] == [(24, 24), (40, 24), (20, 33)]


@pytest.mark.parametrize(
    "more",
    [
        ["adaptation=lora"],
        ["adaptation=probe", "objective.head=linear"],
        ["label_fraction=0.5", "adaptation=partial", "report=best"],
        ["+joint=simclr", "joint.batch_size=8"],
    ],
    ids=lambda more: more[0],
)
def test_it_goes_with_the_rest(sslt, own_data, more):
    """Adaptations, fewer labels, a joint loss."""
    sslt("finetune", *own_data, "from=scratch", *RUN, "trainer.max_steps=2", "baseline=false", "hydra.run.dir=r", *more)
    assert 0 <= numbers("r")["test/miou"] <= 1


def test_an_encoder_without_maps_is_refused(sslt, own_data, capsys):
    """In one line that names it."""
    sslt("finetune", *own_data, "from=scratch", "encoder=lenet", "objective=segmentation", "hydra.run.dir=r", code=2)
    assert "LeNet gives none" in capsys.readouterr().err
