"""Protects models of pixels, by themselves and beside an encoder that draws maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toy_maps

from sslt.data.answers import IGNORE, Map
from sslt.data.prepare.image_processor import ImageProcessor
from sslt.data.streams.subsets import in_order
from sslt.encoders.image import ImageEncoder
from sslt.evaluation.features import predicted
from sslt.runs import Run
from sslt.targets import heads, pixel_models
from sslt.targets.segmentation import Segmentation

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_folder(here) -> None:
    """With the session's cache."""


SIZES = [[24, 24], [24, 40], [33, 20]]


@pytest.fixture
def made(request):
    """An untrained encoder, training and validation samples, and a target on it."""
    torch.manual_seed(0)
    source = toy_maps.Shapes(60, ["ground", "disc", "square"], getattr(request, "param", SIZES))
    processor, shape = ImageProcessor(24, 3, [0.5] * 3, [0.25] * 3, "stretch"), {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
    encoder = ImageEncoder(processor, "resnet18", shape, "small", False)
    train, val = (processor.prepare(source, split) for split in ("train", "val"))
    return encoder, train, val, Segmentation(encoder, source.space, "fpn", 8, 2, 0.0)


def answers(encoder, target, samples) -> Map:
    return predicted(encoder, target, samples, CPU, 4)


def test_models_of_pixels_learn_what_is_where(made, tmp_path, monkeypatch):
    """Most pixels of images they have not seen; the same twice; and what is random in a run goes on as if they had not been there."""
    _, train, val, _ = made
    torch.manual_seed(5)
    before = torch.get_rng_state()
    models = pixel_models.solve(train, 3)
    assert torch.equal(torch.get_rng_state(), before)
    kept = pixel_models.solve(train, 3)
    monkeypatch.setenv("SSLT_CACHE", str(tmp_path))  # where nothing is kept yet
    again = pixel_models.solve(train, 3)
    for model, other in zip(models, kept, strict=True):
        assert all(torch.equal(other.state_dict()[k], v) for k, v in model.state_dict().items())
    for model, twin in zip(models, again, strict=True):
        right = valid = 0
        for batch in in_order(val, 4):
            scores = model.of(batch["image"].float() / 255)
            assert torch.equal(scores, twin.of(batch["image"].float() / 255))
            known = batch["map"] != IGNORE
            right, valid = right + int((scores.argmax(1) == batch["map"])[known].sum()), valid + int(known.sum())
        assert right / valid > 0.9


def test_models_of_the_same_images_are_solved_once(made, tmp_path, monkeypatch):
    monkeypatch.setenv("SSLT_CACHE", str(tmp_path))
    _, train, val, _ = made
    solved, solve = [], pixel_models._solved
    monkeypatch.setattr(pixel_models, "_solved", lambda *args: solved.append(1) or solve(*args))
    for samples, classes in ((train, 3), (train, 3), (train, 4), (val, 3)):
        assert len(pixel_models.solve(samples, classes)) == len(pixel_models.HIDDEN)
    assert len(solved) == 3


def test_one_class_teaches_no_model(made, tmp_path, monkeypatch):
    """Where all training pixels are of one."""
    monkeypatch.setenv("SSLT_CACHE", str(tmp_path))
    _, train, _, _ = made
    batch = train.batch
    train.batch = lambda index: {**batch(index), "map": torch.zeros_like(batch(index)["map"])}
    assert pixel_models.solve(train, 3) == []


def test_beside_an_encoder_that_knows_nothing(made, tmp_path):
    """Answers are better than the encoder's, as validation said; they are the same from the folder; without validation nothing changes."""
    encoder, train, val, target = made
    own = answers(encoder, target, val)
    assert target.fuse(encoder, own, train, None, CPU) == {} and not target.beside
    found = target.fuse(encoder, own, train, val, CPU)
    together = answers(encoder, target, val)
    assert found["val/encoder_miou"] == pytest.approx(target.score(own, val.answers))
    assert target.score(together, val.answers) >= found["val/pixels_miou"] > found["val/encoder_miou"] + 0.2
    run = Run(tmp_path)
    heads.save(run, target, {"_target_": "sslt.targets.segmentation.Segmentation", "head": "fpn", "width": 8, "stride": 2, "balance": 0.0})
    opened = heads.load(tmp_path / "head", encoder, [])
    assert all((a == b).all() for a, b in zip(answers(encoder, opened, val).values, together.values, strict=True))


@pytest.mark.parametrize("made", [SIZES[:1]], indirect=True)
def test_an_encoder_that_knows_all_stays_alone(made, monkeypatch):
    """Where nothing beside it makes validation better."""
    encoder, train, val, target = made
    truth = {i: torch.nn.functional.one_hot(val.batch(np.array([i]))["map"].clamp(max=2), 3)[0].permute(2, 0, 1) for i in range(len(val))}
    images = {val.batch(np.array([i]))["image"].numpy().tobytes(): i for i in range(len(val))}
    seen: list[torch.Tensor] = []
    inputs = encoder.inputs
    monkeypatch.setattr(encoder, "inputs", lambda batch: (seen.append(batch["image"]), inputs(batch))[1])
    rows = lambda: [truth[images[image[None].numpy().tobytes()]] for image in seen[-1]]  # noqa: E731
    monkeypatch.setattr(target, "scores", lambda encoder, inputs: 1e3 * torch.stack(rows()).float())
    found = target.fuse(encoder, val.answers, train, val, CPU)
    assert not target.beside and found["val/encoder_miou"] >= found["val/pixels_miou"]
