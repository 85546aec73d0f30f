"""Protects the way to a new domain: the target's labels change nothing but what is reported, and every number is what it says."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_IMAGES, TINY_TEXT
from safetensors.torch import load_file

from sslt.data.sources.images import Digits
from sslt.report.curves import MetricsCSV
from sslt.runs import Run

CLASSES = [str(i) for i in range(10)]


def inverted(path: Path, *, labels: str = "true", classes: list[str] = CLASSES, splits: tuple[str, ...] = ("train", "test")) -> Path:
    """Digits as ink on a paler ground; labels true, permuted within each split, or none."""
    raw = Digits().read("train")
    pixels, rng = (255 - np.asarray(raw.items)[..., 0] // 2).astype(np.uint8), np.random.default_rng(0)
    order = rng.permutation(len(pixels))
    parts = {"train": order[:400], "test": order[400:600], "val": order[600:650]}
    arrays = {}
    for split in splits:
        arrays[f"x_{split}"] = pixels[parts[split]]
        y = raw.labels[parts[split]] % len(classes)
        if labels != "none":
            arrays[f"y_{split}"] = y if labels == "true" else rng.permutation(y)
    np.savez(path, **arrays, **({"classes": np.array(classes)} if labels != "none" else {}))
    return path


@pytest.fixture
def there(here) -> Path:
    return inverted(here / "there.npz")


BASE = [
    "finetune",
    "+target=digits",
    "from=scratch",
    *TINY_IMAGES,
    "labels_per_class=20",
    "batch_size=64",
    "shift.samples=200",
    "optimizer.lr=0.01",
]
TO = ["data@shift.target=arrays", "shift.target.path=there.npz"]


def shift(kind: str, *more: str, epochs: int = 2, baseline: bool = False) -> list[str]:
    return [*BASE, f"+shift={kind}", *TO, f"trainer.max_epochs={epochs}", f"baseline={str(baseline).lower()}", *more]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "encoder" / "model.safetensors") | load_file(folder / "head" / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    x, y = weights(a), weights(b)
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


# -------------------------------------------------------------------- the protocol
def test_the_targets_labels_change_nothing_but_the_report(sslt, there, here):
    """Permuted within train and test: the same weights bit for bit, the same epoch, the same criteria; another test score."""
    args = shift("cdan", epochs=3)
    sslt(*args, "hydra.run.dir=one")
    inverted(there, labels="permuted")
    sslt(*args, "hydra.run.dir=permuted")
    assert same(here / "one", here / "permuted")
    a, b = Run(here / "one").metrics, Run(here / "permuted").metrics
    for key in ("shift/selected_epoch", "shift/entropy", "shift/importance", "shift/source_val_accuracy", "shift/proxy_a_distance_after"):
        assert a[key] == b[key], key
    assert a["test/nll"] != b["test/nll"]


def test_numbers_are_what_they_say(sslt, there, here):
    """test/… is the target's, of the epoch that the criterion picked; the oracle is the best there was; both domains are there."""
    sslt(*shift("dann", "shift.select=importance", epochs=3, baseline=True), "hydra.run.dir=run")
    found, curves = Run(here / "run").metrics, MetricsCSV.read(here / "run" / "metrics.csv")
    scores = curves["shift/importance"][1]
    best = int(np.argmax(scores))
    assert len(scores) == 3 and found["shift/selected_epoch"] == best + 1
    assert found["shift/importance"] == pytest.approx(scores[best], abs=1e-6)
    oracle = curves["oracle/test/accuracy"][1]
    assert found["oracle/test/accuracy"] == pytest.approx(max(oracle)) and found["test/accuracy"] == pytest.approx(oracle[best])
    assert found["shift/accuracy/there"] == pytest.approx(found["test/accuracy"]) and "shift/accuracy/digits" in found
    for when in ("before", "after"):
        assert 0 <= found[f"shift/proxy_a_distance_{when}"] <= 2
        assert {f"shift/knn_accuracy_{when}/{d}" for d in ("digits", "there")} <= found.keys()
    sslt("evaluate", "from=run", "data=arrays", "data.path=there.npz", "trainer.accelerator=cpu", "hydra.run.dir=again")
    assert Run(here / "again").metrics["test/accuracy"] == pytest.approx(found["test/accuracy"])


def test_the_source_may_pick_the_epoch(sslt, there, here):
    """The best source validation accuracy, with nothing aligned."""
    sslt(*shift("source_only", "shift.select=source_val"), "hydra.run.dir=run")
    found, curves = Run(here / "run").metrics, MetricsCSV.read(here / "run" / "metrics.csv")
    assert found["shift/selected_epoch"] == int(np.argmax(curves["val/accuracy"][1])) + 1
    assert found["train/labels"] == 200 and "align/loss" not in curves


def test_the_ceiling_learns_from_the_targets_labels(sslt, there, here):
    """Its training set is the target's, and the source is still measured."""
    sslt(*shift("target_supervised", "shift.target_samples=150"), "hydra.run.dir=run")
    found = Run(here / "run").metrics
    assert found["train/labels"] == 150 and found["shift/selected_epoch"] == 2 and "shift/accuracy/digits" in found


def test_a_target_without_labels(sslt, here, capsys):
    """As in earnest: everything but the target's accuracy is there, and one line says so."""
    inverted(here / "there.npz", labels="none", splits=("train",))
    sslt(*shift("mmd", epochs=1, baseline=True), "hydra.run.dir=run")
    found = Run(here / "run").metrics
    assert not [k for k in found if "oracle" in k or k.endswith("/there")] and "shift/entropy" in found
    assert "there has no labels" in capsys.readouterr().err


# -------------------------------------------------------------------- several sources, several losses
MORE = ["+data@shift.sources.third=arrays", "shift.sources.third.path=third.npz"]


@pytest.mark.parametrize("pooling", ["pooled", "weighted"])
def test_several_sources(pooling, sslt, there, here, capsys):
    """One stream of all labels, or a stream and a critic for each source, at a named layer; the same number of labels a step."""
    inverted(here / "third.npz")
    sslt(*shift("dann", *MORE, f"shift.pooling={pooling}", "shift.layer=model.layer2", epochs=1), "hydra.run.dir=run")
    found, said = Run(here / "run").metrics, capsys.readouterr().err
    curves = MetricsCSV.read(here / "run" / "metrics.csv")
    assert found["train/labels"] == 400 and {"shift/accuracy/digits", "shift/accuracy/third", "shift/accuracy/there"} <= found.keys()
    assert {"shift/proxy_a_distance_before/digits", "shift/proxy_a_distance_after/third"} <= found.keys()
    critics = {k: curves[k][1][0] for k in curves if k.endswith("/critic_accuracy")}
    names = {"align"} if pooling == "pooled" else {"align", "align_source_third"}
    assert {k.partition("/")[0] for k in critics} == names and found["train/steps"] == 6  # 400 by 64, or 200 by 32
    if pooling == "weighted":
        shares = {name: float(share) for name, share in re.findall(r"source (\w+): distance .* weight ([\d.]+)", said)}
        assert shares.keys() == {"digits", "third"} and sum(shares.values()) == pytest.approx(1, abs=0.02)
        each = {
            "finetune": shares["digits"],
            "align": shares["digits"],
            "source_third": shares["third"],
            "align_source_third": shares["third"],
        }
        assert curves["loss"][1][0] == pytest.approx(sum(w * curves[f"{k}/loss"][1][0] for k, w in each.items()), rel=0.02)


def test_a_joint_objective_learns_from_both_domains(sslt, there, here, capsys):
    """Contrast on all images without their labels, beside the source's task and the alignment."""
    sslt(*shift("coral", "+joint=simclr", "joint.weight=0.5", epochs=1), "hydra.run.dir=run")
    curves = MetricsCSV.read(here / "run" / "metrics.csv")
    assert {"joint/loss", "align/loss", "finetune/loss"} <= curves.keys()
    loss = {k: curves[k][1][0] for k in ("joint/loss", "align/loss", "finetune/loss", "loss")}
    assert loss["loss"] == pytest.approx(0.5 * loss["joint/loss"] + 0.5 * (loss["align/loss"] + loss["finetune/loss"]), rel=1e-4)
    batches = (1294 + 400) // 64
    assert f"{3 / batches:.2g} of 'joint'" in capsys.readouterr().err


def test_texts(sslt, here):
    """A pair of tables, with a vocabulary of both: words of the target alone are in the tokenizer."""
    rng = np.random.default_rng(0)
    for name, words in (("books", ["novel", "chapter", "plot"]), ("kitchen", ["saucepan", "kettle", "spoon"])):
        with (here / f"{name}.tsv").open("w") as f:
            out = csv.writer(f, delimiter="\t")
            out.writerow(["label", "text"])
            for i in range(120):
                mood = ["awful", "bad", "poor"] if i % 2 else ["great", "good", "fine"]
                out.writerow([1 - i % 2, " ".join([*rng.choice(words, 4), *rng.choice(mood, 3)])])
    args = ["finetune", "+target=text_csv", "data.path=books.tsv", "+shift=coral", "data@shift.target=text_csv"]
    sslt(*args, "shift.target.path=kitchen.tsv", "from=scratch", *TINY_TEXT, "batch_size=16", "trainer.max_epochs=1", "hydra.run.dir=run")
    found = Run(here / "run").metrics
    assert {"shift/accuracy/books", "shift/accuracy/kitchen", "oracle/test/accuracy"} <= found.keys()
    assert "saucepan" in (here / "run" / "encoder" / "tokenizer.json").read_text()


# -------------------------------------------------------------------- mistakes
MISTAKES = [
    (["+shift=dann"], "data@shift.target=usps"),
    (["+shift=dann", "shift.target=usps"], "data@shift.target=usps"),
    (["+shift=dann", *TO, "shift.select=entrpy"], "did you mean 'entropy'"),
    (["+shift=dann", *TO, "shift.pooling=pool"], "did you mean 'pooled'"),
    (["+shift=dann", *TO, "shift.weight=0"], "shift.weight=0"),
    (["+shift=dann", *TO, "shift.layer=model.layr2"], "did you mean 'model.layer2'"),
    (["+shift=dann", *TO, "adaptation=probe"], "the encoder is frozen"),
    (["+shift=dann", *TO, "sampling=round_robin"], "sampling=together"),
    (["+shift=dann", *TO, "report=best"], "shift.select"),
    (["+shift=dann", "data@shift.target=docs"], "docs holds texts, but digits holds images"),
    (["+shift=dann", *TO, "shift.taget=x"], "did you mean 'target'"),
    (["+shift=dann", *TO, "+shift.wieght=2"], "did you mean 'weight'"),
    (["+shift=dan", *TO], "did you mean 'dann'"),
]


@pytest.mark.parametrize(("args", "says"), MISTAKES, ids=[a[-1] for a, _ in MISTAKES])
def test_a_mistake_is_one_line_before_training(args, says, sslt, there, here, capsys):
    sslt(*BASE[:-2], *args, code=2)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sslt: ")]
    assert len(said) == 1 and says in said[0], said
    assert not list(here.glob("runs/*/*/checkpoints"))


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        (CLASSES[:8], "there lacks 8, 9 (digits has 10, there 8)"),
        ([*CLASSES[:8], "eight", "nine"], "there lacks 8, 9; only there has eight, nine"),
        (CLASSES[::-1], "there has them in another order"),
    ],
)
def test_other_classes_are_named(classes, says, sslt, here, capsys):
    """What the target lacks, and what it alone has."""
    inverted(here / "there.npz", classes=classes)
    sslt(*shift("source_only"), code=2)
    assert says in capsys.readouterr().err
