"""Protects the way of several labels and of numbers through the verbs: fine-tuned, measured again, predicted, refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_IMAGES, TINY_TEXT, working_in
from safetensors.torch import load_file

from sslt.cli import main
from sslt.runs import Run

CPU = ["trainer.accelerator=cpu", "trainer.precision=32"]
KINDS = {
    "multilabel": ["data.answer=labels", "data.label=[toxic,rude]", "objective=multilabel"],
    "regression": ["data.answer=number", "data.label=score", "objective=regression"],
}
PRIMARY = {"multilabel": "map", "regression": "spearman"}
SHIFT = ["+shift=coral", "data@shift.target=text_csv", "shift.target.path=a.csv"]
TEXT = ["finetune", "+target=text_csv", "data.path=a.csv", "baseline=false"]


def write_table(path: Path) -> None:
    """Texts whose words give away what there is to tell of them."""
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["text", "toxic", "rude", "score", "loud"])
        for _ in range(120):
            words = rng.choice(["one", "two", "bad", "ugly", "six"], 6)
            writer.writerow(
                [" ".join(words), int("bad" in words), int("ugly" in words), (words == "six").sum() - (words == "one").sum(), 0]
            )


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache) -> Path:
    """A table, and in pre/ a small transformer that was trained on it for a moment."""
    with working_in(tmp_path_factory.mktemp("trained"), cache) as folder:
        write_table(folder / "a.csv")
        command = ["pretrain", "+task=mlm", "data=text_csv", "data.path=a.csv", *TINY_TEXT, "batch_size=8", "trainer.max_steps=2"]
        assert main([*command, "hydra.run.dir=pre"]) == 0
    return folder


@pytest.fixture
def encoder(trained: Path, here: Path) -> Path:
    """A working folder with a copy of both, which no other test has written to."""
    return shutil.copytree(trained, here, dirs_exist_ok=True)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_learned_measured_and_predicted(sslt, encoder, kind):
    """The head, with what turns scores into answers, is in its folder: what is measured again and predicted is the same."""
    primary = PRIMARY[kind]
    sslt(*TEXT[:-1], *KINDS[kind], "from=pre", *CPU, "trainer.max_steps=3", "hydra.run.dir=run")
    metrics, head = Run(encoder / "run").metrics, load_file(encoder / "run" / "head" / "model.safetensors")
    assert {f"test/{primary}", f"val/{primary}", f"baseline/{primary}", "train/interpolated"} <= metrics.keys()
    assert metrics[f"baseline/{primary}"] > 0.8 and json.loads((encoder / "run" / "run.json").read_text())["primary"] == primary
    if kind == "multilabel":
        assert metrics["class/toxic/ap" if "class/toxic/ap" in metrics else "test/class/toxic/ap"] > 0
        assert bool((head["thresholds"] != 0).all()) and "prevalence/map" in metrics
    else:
        numbers = [float(row["score"]) for row in csv.DictReader((encoder / "a.csv").open())]
        assert float(head["mean"]) == pytest.approx(np.mean(numbers), abs=0.5) and "mean/mae" in metrics
    sslt("evaluate", "from=run", "trainer.accelerator=cpu", "baseline=false", "hydra.run.dir=ev")
    again = Run(encoder / "ev").metrics
    assert {k: again[k] for k in again if k.startswith("test/")} == {k: metrics[k] for k in metrics if k.startswith("test/")}
    rows = [json.loads(line) for line in (encoder / "ev" / "predictions.jsonl").read_text().splitlines()]
    assert [row["error"] for row in rows] == sorted((row["error"] for row in rows), reverse=True) and {"prediction", "truth"} <= rows[
        0
    ].keys()
    sslt("predict", "from=run", "input=a.csv", "trainer.accelerator=cpu", "hydra.run.dir=said")
    table = list(csv.DictReader((encoder / "said" / "predictions.csv").open()))
    assert len(table) == 120 and ("probability/rude" if kind == "multilabel" else "number") in table[0]
    sslt("predict", "from=run", "data=text_csv", "data.path=a.csv", *KINDS[kind][:2], "split=test", "trainer.accelerator=cpu",
         "hydra.run.dir=told")  # fmt: skip
    assert Run(encoder / "told").metrics[f"predict/{primary}"] == metrics[f"test/{primary}"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "how",
    [
        ["adaptation=probe"],
        ["adaptation=lora"],
        ["adaptation=partial"],
        ["+joint=mlm", "joint.batch_size=8"],
        ["report=best"],
        ["label_fraction=0.5", "compare=scratch"],
        ["optimizer.lr=auto"],
        ["ema=0.9"],
    ],
)
def test_every_way_of_fine_tuning_takes_them(sslt, encoder, kind, how):
    """And leaves a head that answers."""
    sslt(*TEXT, *KINDS[kind], "from=pre", *CPU, *how, "trainer.max_steps=2", "hydra.run.dir=run")
    metrics = Run(encoder / "run").metrics
    assert f"test/{PRIMARY[kind]}" in metrics and metrics["train/steps"] == (0 if "adaptation=probe" in how else 2)
    assert ("gain/test/" + PRIMARY[kind] in metrics) == ("compare=scratch" in how)
    tensors = load_file(encoder / "run" / "head" / "model.safetensors")
    assert all(torch.isfinite(t).all() for t in tensors.values()) and (kind != "regression" or float(tensors["std"]) != 1)


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_learned_too(sslt, here, kind):
    """From arrays: a column a label, or a number an image; the cheap methods stand beside."""
    from sklearn.datasets import load_digits

    digits = load_digits(n_class=10)
    x, target = (digits.images[:400] * (255 / 16)).astype(np.uint8), digits.target[:400]
    y = np.stack([target % 2 == 0, target > 4], 1) if kind == "multilabel" else target * 2.5 + 100
    np.savez(here / "a.npz", x=x, y=y)
    sslt("finetune", "+target=arrays", "data.path=a.npz", KINDS[kind][0], KINDS[kind][2], "from=scratch", *TINY_IMAGES,
         "trainer.max_steps=3", "hydra.run.dir=run")  # fmt: skip
    metrics = Run(here / "run").metrics
    assert metrics[f"baseline/{PRIMARY[kind]}"] > 0.85 and f"test/{PRIMARY[kind]}" in metrics
    sslt("predict", "from=run", "input=a.npz", "trainer.accelerator=cpu", "hydra.run.dir=said")
    said = Run(here / "said").metrics
    assert f"predict/{PRIMARY[kind]}" in said and said["predict/labelled"] == 288


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([*KINDS["multilabel"][:2], "objective=classification"], "several labels, and objective=classification learns a class: choose"),
        (["data.label=rude", "objective=regression"], "a class, and objective=regression learns a number: choose objective=classification"),
        (["data.answer=number", "data.label=toxic", "objective=regression", "labels_per_class=2"], "use label_fraction="),
        (["data.answer=nummer", "data.label=score"], "data.answer=nummer: give class, labels, number; did you mean 'number'"),
        ([*KINDS["multilabel"], "+episodes=protonet"], "episodes are made of classes, and the samples of a have several labels"),
        ([*KINDS["multilabel"], *SHIFT], "+shift= carries classes to another domain, and the samples of a have several labels"),
        ([*KINDS["regression"], "objective.huber=0"], "huber"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(sslt, encoder, capsys, args, message):
    """Each says what the samples have and what fits, before anything is trained."""
    sslt(*TEXT, "from=pre", *CPU, *args, "hydra.run.dir=run", code=2)
    assert message in capsys.readouterr().err
    assert not (encoder / "run").exists()


def test_a_head_of_other_answers_is_refused(sslt, encoder, capsys):
    """More labels than it knows, and another kind, by name; probes, which tell classes apart, refuse them too."""
    sslt(*TEXT, *KINDS["multilabel"], "from=pre", *CPU, "adaptation=probe", "hydra.run.dir=run")
    again = ["evaluate", "from=run", "trainer.accelerator=cpu"]
    sslt(*again, "+data_overrides.label=[toxic,rude,loud]", "hydra.run.dir=e1", code=2)
    assert "the head knows 2 (toxic, rude) classes, but a has 3 (toxic, rude, loud)" in capsys.readouterr().err
    sslt(*again, "data=text_csv", "data.path=a.csv", *KINDS["regression"][:2], "hydra.run.dir=e2", code=2)
    assert "the head answers with several labels, but the samples of a have a number" in capsys.readouterr().err
    sslt(*again, "probes=true", "hydra.run.dir=e3", code=2)
    assert "have several labels, which probes do not tell apart" in capsys.readouterr().err


@pytest.mark.parametrize("answer", ["labels", "number"])
def test_pretraining_watches_without_neighbours(sslt, here, answer):
    """The accuracy of nearest neighbours is of classes: with other answers it is not measured, and nothing fails."""
    y = np.arange(40) % 3 if answer == "number" else np.eye(2)[np.arange(40) % 2]
    np.savez(here / "a.npz", x=np.random.default_rng(0).integers(0, 255, (40, 8, 8), np.uint8), y=y)
    sslt("pretrain", "+task=simclr", "data=arrays", "data.path=a.npz", f"data.answer={answer}", *TINY_IMAGES, "trainer.max_steps=2",
         "batch_size=8", "hydra.run.dir=pre")  # fmt: skip
    metrics = Run(here / "pre").metrics
    assert "online/rankme" in metrics and not any("knn" in k for k in metrics)
