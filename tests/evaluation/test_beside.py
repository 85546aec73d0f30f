"""Protects what stands beside a result: the cheap methods, the majority and the untrained encoder, on the very same rows, in words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import TINY_IMAGES, TINY_TEXT
from vector_encoder import VectorEncoder

from sslt.data.answers import Class
from sslt.data.prepare.image_processor import ImageProcessor
from sslt.encoders.base import fingerprint
from sslt.encoders.conv4 import Conv4
from sslt.evaluation import beside
from sslt.evaluation.probes import untrained
from sslt.runs import Run
from sslt.targets import baselines
from sslt.targets.classification import Classification

TUNE = ["finetune", "+target=digits", *TINY_IMAGES, "trainer.max_steps=2", "labels_per_class=3", "batch_size=16", "late_fusion=false"]


@pytest.fixture
def seen(monkeypatch):
    """The rows that the cheap methods are given, instead of running them."""
    calls: list[tuple] = []

    def strongest(modality, train, val, test, n_classes):
        calls.append((modality, train, val, test))
        labels = np.asarray(test.labels) if hasattr(test, "labels") else np.zeros(len(test), np.int64)
        return baselines.Baseline("a method", np.where(np.arange(len(test)) % 2, labels, (labels + 1) % n_classes), 0.4)

    monkeypatch.setattr(baselines, "strongest", strongest)
    return calls


def test_fine_tuning_and_its_evaluation_show_the_same_baseline(sslt, here, seen, capsys):
    """Once computed, from the labels that were used alone; the name of the method and the majority's share beside it."""
    sslt(*TUNE, "from=scratch", "hydra.run.dir=fine", "cache_dir=c")
    ((modality, train, val, test),) = seen
    assert modality == "image" and len(train.labels) == 30 and np.bincount(train.labels).tolist() == [3] * 10
    assert len(train.items) == 30 and val is not None and len(test) > 100
    found = Run(here / "fine").metrics
    assert found["baseline/accuracy"] == pytest.approx(0.5, abs=0.01) and found["baseline/method"] == "a method"
    assert 0 < found["majority/accuracy"] < 0.2
    assert "a method" in capsys.readouterr().out
    sslt("evaluate", "from=fine", "trainer.accelerator=cpu", "hydra.run.dir=ev", "cache_dir=c")
    assert len(seen) == 1 and Run(here / "ev").metrics["baseline/accuracy"] == found["baseline/accuracy"]


def test_texts_are_the_sources_own(sslt, here, seen):
    """The rows of the label subset, as strings, with their labels."""
    tiny = [*TINY_TEXT, "trainer.max_steps=1", "labels_per_class=2", "batch_size=8", "data.test_fraction=0.5", "late_fusion=false"]
    sslt("finetune", "+target=docs", "from=scratch", *tiny, "hydra.run.dir=fine", "cache_dir=c")
    (_, train, _, test) = seen[0]
    from sslt import config

    source = config.build(config.compose("finetune", ["+target=docs", "from=x", "data.test_fraction=0.5"]).data)
    raw = source.get("train")
    whole = {raw.items[i]: int(raw.labels[i]) for i in range(len(raw))}
    assert len(train.items) == 16 and all(whole[text] == label for text, label in zip(train.items, train.labels, strict=True))
    held = source.get("test").items
    assert list(test) == [held[i] for i in range(len(test))]


def test_the_untrained_encoder_is_that_of_the_seed():
    """The same whatever was drawn before, another for another seed; of the same architecture."""
    torch.manual_seed(0)
    encoder = Conv4(ImageProcessor(8, 1, [0.5], [0.25]), width=4, blocks=2, downsample="pool", pooling="mean")
    first, again, other = (fingerprint(untrained(encoder, seed)) for seed in (3, 3, 4))
    assert first == again and len({first, other, fingerprint(encoder)}) == 3
    assert untrained(encoder, 3).args == encoder.args


def test_probes_stand_beside_the_untrained_encoder(sslt, here, seen):
    """The same architecture with fresh weights on the same rows; a fresh one by itself has nothing beside it; false leaves both out."""
    sslt("pretrain", "+task=simclr", *TINY_IMAGES, "trainer.max_steps=1", "hydra.run.dir=pre", "online_probe.every_n_epochs=0")
    measure = ["evaluate", "trainer.accelerator=cpu", "shots=[1]", "draws=1", "labels_per_class=5"]
    sslt(*measure, "from=pre", "hydra.run.dir=ev")
    found = Run(here / "ev").metrics
    assert {"untrained/linear/accuracy", "untrained/knn/accuracy", "baseline/accuracy", "majority/accuracy"} <= set(found)
    sslt(*measure, "from=scratch:pre", "seed=0", "hydra.run.dir=fresh")
    alone = Run(here / "fresh").metrics
    assert alone["linear/accuracy"] == found["untrained/linear/accuracy"] and "untrained/linear/accuracy" not in alone
    sslt(*measure, "from=pre", "baseline=false", "hydra.run.dir=without")
    left = Run(here / "without").metrics
    assert not any(k.startswith(("baseline", "untrained")) for k in left) and left["linear/accuracy"] == found["linear/accuracy"]


def test_the_comparison_in_words():
    """Ahead, behind or not to be told apart, with the interval of the paired difference."""
    space = {"classes": ["a", "b"]}
    target = Classification(VectorEncoder(torch.nn.Identity(), 2), space, 0.0, 0.0)
    base = np.arange(1000) % 2 == 0
    better, same = base | (np.arange(1000) % 10 == 1), base.copy()
    same[[0, 1]] = same[[1, 0]]
    said = {name: Class(right.astype(int), space) for name, right in {"base": base, "better": better, "same": same}.items()}
    truth = Class(np.ones(1000, int), space)
    (line,) = beside.compared(target, "this classifier", said["better"], {"pixels": said["base"]}, truth)
    assert line.startswith("this classifier is 10.0 points ahead of pixels: 60.0 % against 50.0 %")
    (line,) = beside.compared(target, "this classifier", said["base"], {"pixels": said["better"], "none": None}, truth)
    assert "10.0 points behind pixels" in line
    (line,) = beside.compared(target, "this classifier", said["same"], {"pixels": said["base"]}, truth)
    assert "cannot be told apart" in line
