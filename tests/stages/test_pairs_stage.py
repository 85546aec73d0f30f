"""Protects pairs through the commands: tuned, measured without training, classified, pretrained on, predicted, and what is refused."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from conftest import TINY_IMAGES, TINY_TEXT
from safetensors.torch import load_file

from sslt.runs import Run

WORDS = ["cat", "dog", "sun", "rain", "book", "tree", "fish", "song", "road", "lamp", "snow", "wind"]
CPU = "trainer.accelerator=cpu"
BAG = ["+target=text_pairs", "data.path=pairs.csv", "encoder.dim=16", "encoder.pairs=256", "trainer.precision=32", CPU, "baseline=false"]
BERT = [*BAG[:2], *TINY_TEXT, "encoder.processor.vocab_size=100", "baseline=false"]
STEPS = ["trainer.max_steps=6", "batch_size=16"]


def write(name: str, n: int = 120, seed: int = 0, label: str = "score") -> None:
    """Pairs of sentences that share some of four words: the score is how many, the class whether any."""
    rng = np.random.default_rng(seed)
    with open(name, "w", newline="", encoding="utf-8") as f:
        out = csv.writer(f)
        out.writerow(["a", "b", label] if label else ["a", "b"])
        for _ in range(n):
            words = rng.permutation(WORDS)
            shared = int(rng.integers(0, 5))
            a, b = words[:4], [*words[:shared], *words[4 : 8 - shared]]
            truth = {"score": [shared], "relation": ["some" if shared else "none"], "": []}[label]
            out.writerow([" ".join(a), " ".join(rng.permutation(b)), *truth])


@pytest.fixture
def pairs(here):
    write("pairs.csv")


def metrics(here, name: str) -> dict:
    return Run(here / name).metrics


def test_tune_measure_and_predict(sslt, here, pairs):
    """A run, its weights measured again, the untrained encoder beside it without training, a file with and without scores."""
    sslt("finetune", *BAG[:-1], "from=scratch", *STEPS, "hydra.run.dir=run")
    found = metrics(here, "run")
    assert found["test/spearman"] > 0.5 and found["baseline/spearman"] > 0.9 and "baseline/method" in found
    assert "train/interpolated" in found  # what has no weights answers from the start, which validation may prefer
    assert json.loads((here / "run/head/head.json").read_text())["space"] == {"low": 0.0, "high": 4.0}
    rows = [json.loads(line) for line in (here / "run/predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 24 and rows[0]["error"] == max(r["error"] for r in rows) and {"prediction", "truth"} <= set(rows[0])
    sslt("evaluate", "from=run", CPU, "hydra.run.dir=again")
    assert metrics(here, "again")["test/spearman"] == found["test/spearman"]
    sslt("evaluate", "from=scratch:run", "+target=text_pairs", "data.path=pairs.csv", CPU, "hydra.run.dir=untrained")
    assert metrics(here, "untrained")["baseline/spearman"] == found["baseline/spearman"]
    write("other.csv", 30, seed=1)
    sslt(
        "evaluate", "from=run", "data=text_pairs", "data.path=other.csv", CPU, "hydra.run.dir=other"
    )  # another range of scores is no matter
    sslt("predict", "from=run", "input=other.csv", CPU, "hydra.run.dir=told")
    assert metrics(here, "told")["predict/rows"] == 30
    write("new.csv", 7, seed=2, label="")
    sslt("predict", "from=run", "input=new.csv", CPU, "hydra.run.dir=new")
    assert len((here / "new/predictions.csv").read_text().splitlines()) == 8
    sslt("evaluate", "from=run", "+corruption=dropped_words", "corruption.severity=5", CPU, "hydra.run.dir=worse")
    assert metrics(here, "worse")["test/spearman"] < found["test/spearman"]


def test_pretraining_sees_single_sentences(sslt, here, pairs):
    """SimCSE on pairs has every sentence of train once; what it left is measured on pairs, and beside them while they are tuned."""
    tiny = [*TINY_TEXT, "encoder.processor.vocab_size=100", "data=text_pairs", "data.path=pairs.csv"]
    sslt("pretrain", "+task=simcse", *tiny, "batch_size=16", "trainer.max_steps=2", "hydra.run.dir=pre")
    seen = next(line for line in (here / "pre/logs/sslt.log").read_text().splitlines() if "batches of 16" in line)
    assert 96 < int(seen.split(" INFO ")[1].split()[0]) <= 2 * 96  # both sides of the pairs that are not tested on
    sslt("evaluate", "from=pre", "+target=text_pairs", "data.path=pairs.csv", CPU, "baseline=false", "hydra.run.dir=measured")
    assert np.isfinite(metrics(here, "measured")["test/spearman"])
    sslt("finetune", *BERT[:2], "from=pre", "+joint=simcse", *STEPS, CPU, "trainer.precision=32", "baseline=false", "hydra.run.dir=joint")
    assert "test/spearman" in metrics(here, "joint")


@pytest.mark.parametrize(
    "settings",
    [
        ["objective.loss=cosent"],
        ["adaptation=lora"],
        ["adaptation=partial", "adaptation.blocks=1"],
        ["adaptation=prompt"],
        ["label_fraction=0.3", "report=best"],
        ["windows=all", "encoder.processor.max_length=4"],
        ["compare=scratch", "from=START"],
    ],
)
def test_ways_to_tune_a_bi_encoder(settings, sslt, here, pairs):
    if "from=START" in settings:
        sslt("finetune", *BERT, "from=scratch", "trainer.max_steps=1", "hydra.run.dir=start")
        settings = ["compare=scratch", "from=start"]
    sslt("finetune", *BERT, *([] if "from=start" in settings else ["from=scratch"]), *STEPS, *settings, "hydra.run.dir=run")
    assert np.isfinite(metrics(here, "run")["test/spearman"])


def test_parts_of_documents_beside_a_bag(sslt, here, pairs):
    """+joint=crops contrasts parts of single sentences."""
    sslt("finetune", *BAG, "from=scratch", "+joint=crops", *STEPS, "hydra.run.dir=run")
    assert "test/spearman" in metrics(here, "run")


def test_classes_of_pairs_are_cross_encoded(sslt, here):
    """Classification reads both texts as one row, solved on features and trained, with cheap methods beside it."""
    write("pairs.csv", label="relation")
    own = [*BERT[:-1], "data.label=relation", "data.answer=class", "objective=classification", "from=scratch"]
    sslt("finetune", *own, "adaptation=probe", "hydra.run.dir=probe")
    sslt("finetune", *own, *STEPS, "hydra.run.dir=run")
    for name in ("probe", "run"):
        assert metrics(here, name)["test/accuracy"] > 0.5 and "baseline/accuracy" in metrics(here, name)
    sslt("evaluate", "from=run", CPU, "hydra.run.dir=again")
    assert metrics(here, "again")["test/accuracy"] == metrics(here, "run")["test/accuracy"]
    sslt("predict", "from=run", "input=pairs.csv", CPU, "hydra.run.dir=told")
    assert metrics(here, "told")["predict/rows"] == 120


def test_two_ranks_are_one(sslt, here, pairs):
    """The same weights and metrics from two processes with half of a batch each."""
    from killed_runs import command

    common = ["finetune", *BERT, "from=scratch", "objective.loss=cosent", "trainer.max_steps=3", "dropout=0", "interpolate=[]"]
    assert command([*common, "batch_size=8", "trainer.devices=2", "hydra.run.dir=two"]) == 0
    sslt(*common, "batch_size=16", "hydra.run.dir=one")
    one, two = (load_file(here / name / "encoder/model.safetensors") for name in ("one", "two"))
    assert all(np.allclose(one[k], two[k], atol=2e-5) for k in one)
    assert metrics(here, "two")["test/spearman"] == pytest.approx(metrics(here, "one")["test/spearman"], abs=0.02)


def test_retrieval_needs_no_training(sslt, here, pairs):
    """Images and texts of classes; the rows found are written, and pixels or words stand beside."""
    sslt("finetune", "+target=digits", "from=scratch", *TINY_IMAGES, "trainer.max_steps=2", "baseline=false", "hydra.run.dir=run")
    sslt("evaluate", "from=run", "data=digits", "+objective=retrieval", CPU, "hydra.run.dir=found")
    found = metrics(here, "found")
    assert 0.1 < found["test/map"] < 1 and found["test/recall@1"] <= found["test/recall@5"] <= found["test/recall@10"] <= 1
    assert found["baseline/map"] > 0.4 and found["baseline/method"] == "pixels"
    rows = [json.loads(line) for line in (here / "found/predictions.jsonl").read_text().splitlines()]
    assert len(rows[0]["prediction"]) == 10 and rows[0]["row"] not in rows[0]["prediction"] and "truth" in rows[0]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["finetune", *BAG, "from=scratch", "adaptation=probe"], "nothing would be trained"),
        (["finetune", *BAG, "from=scratch", "objective=classification"], "choose objective=regression or objective=pairs"),
        (["finetune", *BAG, "from=scratch", "data.answer=class", "data.label=score"], "choose objective=classification"),
        (["finetune", *BAG, "from=scratch", "views=crops"], "leave views=plain"),
        (["finetune", *BAG, "from=scratch", "data.b=bb"], "no column 'bb' (data.b); did you mean 'b'"),
        (
            ["finetune", "+target=docs", "from=scratch", "objective=pairs"],
            "objective=pairs learns a number: choose objective=classification",
        ),
        (["finetune", "+target=digits", "from=scratch", *TINY_IMAGES, "objective=retrieval"], "has nothing to train"),
        (["finetune", "+target=stsb", "from=scratch", "data.language=fr"], "data.language=fr: give en, de, zh"),
        (["finetune", "+target=stsb", "from=scratch", "data.root=."], "no STS benchmark in"),
    ],
)
def test_mistakes(args, words, sslt, here, pairs, capfd):
    """One or two lines each, and no folder."""
    sslt(*args, "hydra.run.dir=run", code=2)
    err = capfd.readouterr().err
    assert words in err and "Traceback" not in err and not (here / "run").exists()
