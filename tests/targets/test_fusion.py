"""Protects cheap methods beside a fine-tuned encoder: how they are weighed, that they help, and that every command has them afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_IMAGES, working_in
from safetensors.torch import load_file

from sslt.cli import main
from sslt.runs import Run
from sslt.targets import fusion

BAG = ["encoder.processor.vocab_size=2000", "encoder.dim=16", "encoder.pairs=512", "trainer.accelerator=cpu", "trainer.precision=32"]
TUNE = ["finetune", "+target=docs", "trainer.accelerator=cpu", "trainer.precision=32", "trainer.max_steps=3", "baseline=false"]


def test_weights_are_the_most_likely_ones():
    """Against a grid: the prior is small beside a thousand rows, and holds where there are two."""
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (1000,))
    good, bad = F.one_hot(labels, 3) * 1.5 + torch.randn(1000, 3), torch.randn(1000, 3)
    loss = fusion.CLASSES.loss
    a, b = fusion.weigh([good, bad], labels, loss)
    grid = torch.linspace(-4, 2, 61).exp()
    losses = torch.tensor([[F.cross_entropy(x * good + y * bad, labels, reduction="sum") + (x.log() ** 2 + y.log() ** 2) / 2 for y in grid]
                           for x in grid])  # fmt: skip
    i, j = np.unravel_index(int(losses.argmin()), losses.shape)
    assert a == pytest.approx(float(grid[i]), rel=0.1) and b == pytest.approx(float(grid[j]), rel=0.15) and a > 5 * b
    a, b = fusion.weigh([good[:2], bad[:2]], labels[:2], loss)
    assert 0.2 < a < 5 and 0.2 < b < 5


def test_a_class_without_labels_is_not_chosen():
    """Ids of classes are kept where some have no labels."""
    from scipy.sparse import csr_matrix

    x, y = csr_matrix(np.eye(4, dtype=np.float32)[[1, 3, 1, 3]]), np.array([1, 3, 1, 3])
    labels = torch.from_numpy(y)
    table, bias = fusion._solve(x, labels, (x, labels), 5)
    assert ((x @ table + bias).argmax(1) == y).all()


def test_what_a_term_tells_is_known():
    """By hand, for classes and for labels, and nothing of a class that no text has; a term that tells nothing has a weight all the same."""
    from scipy.sparse import csr_matrix

    x = csr_matrix(np.array([[1, 1, 0], [1, 1, 0], [1, 0, 2], [1, 0, 0.5]], np.float32))
    classes = torch.tensor([0, 0, 2, 2])
    expected = [0.01, np.log((3 / 4) / (1 / 4)), np.log((3 / 4) / (1 / 4))]
    assert fusion.telling(x, classes, 4).tolist() == pytest.approx(expected)
    labels = F.one_hot(classes, 4).float()
    labels[:, 3] = 1  # which tells nothing either, as all have it
    assert fusion.telling(x, labels, 4).tolist() == pytest.approx(expected)
    labels[0, 1] = 1  # of one text: a term that it shares with another of the rest
    assert fusion.telling(x, labels, 4)[0] == pytest.approx(np.log((4 / 5) / (2 / 3)))


def test_terms_count_by_what_they_tell_where_validation_wants_it(bag, cache, monkeypatch):
    """Two words of sixty say the class: by their rarity alone they are hardly heard. Where that is no better, weights are as they were."""
    from hydra.utils import instantiate

    from sslt.config import compose
    from sslt.encoders.load import load_encoder
    from sslt.stages.common import prepare

    found = {}
    for name, said in (("telling", True), ("noise", False)):
        rng = np.random.default_rng(0)
        path = bag.parent / f"{name}.csv"
        rows = []
        for i in range(600):
            words = [f"w{n}" for n in rng.integers(0, 400, 60)] + [f"{('a', 'b')[i % 2 if said else 0]}{n}" for n in rng.integers(0, 8, 2)]
            rows.append(f"{' '.join(rng.permutation(words))},{i % 2}")
        path.write_text("\n".join(["text,label", *rows]) + "\n")
        source = instantiate(compose("pretrain", ["+task=crops", "data=text_csv", f"data.path={path}", "data.val_fraction=0.4"]).data)
        encoder = load_encoder(str(bag))
        train, val = (prepare(encoder, source, split) for split in ("train", "val"))
        for weighed in (True, False):
            monkeypatch.setattr(fusion, "telling", fusion.telling if weighed else lambda x, answers, n: np.ones(x.shape[1]))
            monkeypatch.setattr("sslt.targets.kept.FORMAT", f"{weighed}")  # what was solved is kept
            model, scores = fusion._words(fusion.CLASSES, encoder, train, val, 2)
            found[name, weighed] = model.idf, fusion.CLASSES.measured(scores, fusion.CLASSES.truth(val))
            monkeypatch.undo()
    assert found["telling", True][1] > found["telling", False][1] + 0.05
    assert not torch.equal(found["telling", True][0], found["telling", False][0])
    assert torch.equal(found["noise", True][0], found["noise", False][0])


@pytest.fixture(scope="module")
def bag(tmp_path_factory, cache) -> Path:
    """A pretrained bag of words, which tests read and do not change."""
    steps = ["trainer.max_steps=2", "batch_size=64", "online_probe.every_n_epochs=0"]
    with working_in(tmp_path_factory.mktemp("trained"), cache) as folder:
        assert main(["pretrain", "+task=crops", "data=docs", *BAG, *steps, "hydra.run.dir=bag"]) == 0
    return folder / "bag"


def test_words_stand_beside_the_encoder_in_every_command(sslt, bag, here):
    """What was weighed is in the metrics; together they are about as good as the better one, or above; all commands measure the same."""
    sslt(*TUNE, f"from={bag}", "hydra.run.dir=both")
    found = Run(here / "both").metrics
    assert found["val/accuracy"] >= max(found["val/encoder_accuracy"], found["val/words_accuracy"]) - 0.02
    sslt(*TUNE, f"from={bag}", "late_fusion=false", "hydra.run.dir=alone")
    alone = Run(here / "alone").metrics
    assert alone["val/accuracy"] == pytest.approx(found["val/encoder_accuracy"], abs=1e-6) and "val/words_accuracy" not in alone
    assert found["test/accuracy"] > alone["test/accuracy"] + 0.1  # three steps against all words
    sslt("evaluate", "from=both", "trainer.accelerator=cpu", "baseline=false", "hydra.run.dir=measured")
    assert Run(here / "measured").metrics["test/accuracy"] == found["test/accuracy"]
    sslt("predict", "from=both", "data=docs", "split=test", "trainer.accelerator=cpu", "hydra.run.dir=predicted")
    assert Run(here / "predicted").metrics["predict/accuracy"] == pytest.approx(found["test/accuracy"])


def test_words_of_the_same_rows_are_solved_once(sslt, bag, here, monkeypatch):
    """By one command for all later ones, whatever else these change; of other labels anew."""
    solved = []
    solve = fusion._solved
    monkeypatch.setattr(fusion, "_solved", lambda *args: solved.append(1) or solve(*args))
    monkeypatch.setenv("SSLT_CACHE", str(here / "cache"))
    few = [*TUNE, f"from={bag}", "labels_per_class=6"]
    sslt(*few, "hydra.run.dir=first")
    sslt(*few, "optimizer.lr=0.01", "hydra.run.dir=second")
    assert len(solved) == 1
    first, second = Run(here / "first").metrics, Run(here / "second").metrics
    assert first["val/words_accuracy"] == second["val/words_accuracy"] and first["test/accuracy"] != second["test/accuracy"]
    words = [load_file(here / run / "head" / "model.safetensors") for run in ("first", "second")]
    assert all(torch.equal(words[0][k], words[1][k]) for k in words[0] if k.endswith(("terms", "idf")))
    sslt(*few, "seed=1", "hydra.run.dir=third")
    sslt(*few[:-1], "labels_per_class=7", "hydra.run.dir=fourth")
    assert len(solved) == 3


def test_another_task_starts_without_the_words_of_this_one(sslt, bag, here):
    """Its encoder has none; fine-tuning on from it solves for its own, with and without a validation split."""
    few = [*TUNE, "labels_per_class=3"]
    sslt(*few, f"from={bag}", "hydra.run.dir=first")
    sslt(*few, "from=first", "hydra.run.dir=second", "data.val_fraction=0")
    assert "val/words_accuracy" not in Run(here / "second").metrics
    sslt(*few, "from=first", "late_fusion=false", "hydra.run.dir=alone", "data.val_fraction=0")
    assert Run(here / "second").metrics["test/accuracy"] > Run(here / "alone").metrics["test/accuracy"] + 0.03
    sslt(*few, "from=first", "adaptation=probe", "hydra.run.dir=probe")
    assert "val/words_accuracy" not in Run(here / "probe").metrics


def test_averaged_weights_keep_what_the_last_step_left(sslt, bag, here):
    """raw/ is written before the words come, and can be read."""
    sslt(*TUNE, f"from={bag}", "ema=0.5", "hydra.run.dir=average")
    assert Run(here / "average").metrics["val/words_accuracy"] > 0
    sslt("evaluate", "from=average/raw", "data=docs", "trainer.accelerator=cpu", "baseline=false", "hydra.run.dir=raw")
    assert 0 < Run(here / "raw").metrics["test/accuracy"] < 1


IMAGES = ["finetune", "+target=digits", "from=scratch", *TINY_IMAGES, "labels_per_class=10", "trainer.max_steps=3", "baseline=false"]


def test_gradients_and_patches_stand_beside_an_encoder_of_images(sslt, here, capsys):
    """Three steps of a tiny network know less than they do; all commands measure the same; an encoder that stands still is left alone."""
    sslt(*IMAGES, "late_fusion=true", "hydra.run.dir=both")
    found = Run(here / "both").metrics
    assert {"val/encoder_accuracy", "val/gradients_accuracy", "val/patches_accuracy"} <= found.keys()
    assert "all together" in capsys.readouterr().err
    assert found["val/accuracy"] >= max(found["val/gradients_accuracy"], found["val/patches_accuracy"]) - 0.02
    sslt(*IMAGES, "late_fusion=false", "hydra.run.dir=alone")
    alone = Run(here / "alone").metrics
    assert alone["val/accuracy"] == pytest.approx(found["val/encoder_accuracy"], abs=1e-6)
    assert found["test/accuracy"] > alone["test/accuracy"] + 0.2
    sslt("evaluate", "from=both", "trainer.accelerator=cpu", "baseline=false", "hydra.run.dir=measured")
    assert Run(here / "measured").metrics["test/accuracy"] == found["test/accuracy"]
    sslt("predict", "from=both", "data=digits", "split=test", "trainer.accelerator=cpu", "hydra.run.dir=predicted")
    assert Run(here / "predicted").metrics["predict/accuracy"] == pytest.approx(found["test/accuracy"])
    sslt(*IMAGES, "late_fusion=true", "adaptation=probe", "hydra.run.dir=probe")
    assert "val/encoder_accuracy" not in Run(here / "probe").metrics


def test_nothing_stands_beside_where_validation_prefers_the_encoder_alone(sslt, here, monkeypatch):
    def wrong(solve):
        def solved(*args):
            model, scores = solve(*args)
            model.scale(-1.0)
            return model, -scores

        return solved

    for name in ("gradients", "patches"):
        monkeypatch.setitem(fusion.SOLVERS, name, wrong(fusion.SOLVERS[name]))
    monkeypatch.setattr(fusion, "weigh", lambda scores, labels, loss: [1.0, *(9.0 for _ in scores[1:])])
    sslt(*IMAGES, "late_fusion=true", "hydra.run.dir=worse")
    found = Run(here / "worse").metrics
    assert found["val/accuracy"] == pytest.approx(found["val/encoder_accuracy"], abs=1e-6)
    sslt(*IMAGES, "late_fusion=false", "hydra.run.dir=alone")
    assert found["test/accuracy"] == Run(here / "alone").metrics["test/accuracy"]


def labelled(folder: Path) -> list[str]:
    """Texts of which any number of four words say the labels, and the settings of a small bag on them."""
    rng = np.random.default_rng(0)
    for name, n in (("train", 200), ("val", 60), ("test", 60)):
        there = rng.random((n, 4)) < 0.3
        words = np.where(there, ["storm", "vote", "goal", "film"], "")
        lines = [f"{' '.join(w for w in row if w)} the day of {i}\t{';'.join(n for n, t in zip('abcd', has, strict=True) if t)}"
                 for i, (row, has) in enumerate(zip(words, there, strict=True))]  # fmt: skip
        (folder / f"{name}.tsv").write_text("text\tlabels\n" + "\n".join(lines) + "\n")
    own = [
        "+target=text_csv",
        f"data.path={folder}",
        "data.answer=labels",
        "data.label=labels",
        "data.separator=semicolon",
        "objective=multilabel",
        "encoder=bag",
        *BAG,
    ]
    return ["finetune", *own, "from=scratch", "trainer.max_steps=1", "baseline=false"]


def test_words_stand_beside_an_encoder_that_gives_labels(sslt, here, monkeypatch, capsys):
    """Weighed by their precision; thresholds are those of all together; where they alone are better than with the encoder, they answer."""
    (here / "set").mkdir()
    tune = labelled(here / "set")
    sslt(*tune, "hydra.run.dir=both")
    found = Run(here / "both").metrics
    assert found["val/words_map"] > found["val/encoder_map"] + 0.2 and found["val/map"] >= found["val/words_map"] - 0.02
    sslt(*tune, "late_fusion=false", "hydra.run.dir=alone")
    alone = Run(here / "alone").metrics
    assert alone["val/map"] == pytest.approx(found["val/encoder_map"], abs=1e-6) and "val/words_map" not in alone
    assert found["test/map"] > alone["test/map"] + 0.2 and found["test/f1"] > 0.9 > alone["test/f1"]
    sslt("evaluate", "from=both", "trainer.accelerator=cpu", "baseline=false", "hydra.run.dir=measured")
    assert Run(here / "measured").metrics["test/f1"] == found["test/f1"]
    monkeypatch.setattr(fusion, "weigh", lambda scores, truth, loss: [9.0, *(1e-3 for _ in scores[1:])])
    sslt(*tune, "hydra.run.dir=words")
    assert "TF-IDF alone is better than all together" in capsys.readouterr().err
    assert Run(here / "words").metrics["val/map"] == pytest.approx(found["val/words_map"], abs=1e-3)


def test_a_dictionary_of_patches_stands_still_with_models_beside_it(sslt, here):
    """Its head is solved, and no step taken, unless an adaptation says what moves; all commands measure the same."""
    small = ["encoder.filters=16", "encoder.width=32", "trainer.accelerator=cpu", "trainer.precision=32"]
    sslt("pretrain", "+task=patch_kmeans", *small, "trainer.max_steps=2", "online_probe.every_n_epochs=0", "hydra.run.dir=patches")
    tune = ["finetune", "+target=digits", "from=patches", "labels_per_class=10", "baseline=false", *small[2:]]
    sslt(*tune, "hydra.run.dir=still")
    found = Run(here / "still").metrics
    assert found["train/steps"] == 0 and found["val/accuracy"] >= found["val/encoder_accuracy"] - 0.05 and "val/patches_accuracy" in found
    sslt("evaluate", "from=still", "trainer.accelerator=cpu", "baseline=false", "hydra.run.dir=measured")
    assert Run(here / "measured").metrics["test/accuracy"] == found["test/accuracy"]
    sslt(*tune, "adaptation=probe", "hydra.run.dir=probe")
    probe = Run(here / "probe").metrics
    assert probe["val/accuracy"] == pytest.approx(found["val/encoder_accuracy"], abs=1e-6) and "val/patches_accuracy" not in probe
    sslt(*tune, "adaptation=partial", "adaptation.blocks=1", "trainer.max_steps=2", "hydra.run.dir=moved")
    assert Run(here / "moved").metrics["train/steps"] == 2
