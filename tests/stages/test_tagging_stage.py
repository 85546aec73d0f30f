"""Protects tagging through the commands: fine-tuning own files, measuring, predicting new ones, what goes with it and what does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import TINY_TEXT

from sslt.runs import Run

CPU = "trainer.accelerator=cpu"
NAMES = ("ada", "bob", "cleo", "dora", "emil", "fritz")
PLACES = ("rome", "oslo", "new york")


def row(i: int) -> dict[str, object]:
    """A sentence with a person and a place; every other one is longer than 32 tokens."""
    person, place = NAMES[i % 6], PLACES[i % 3]
    text = f"{'well , ' * (20 * (i % 2))}today {person} {i} went to {place}"
    at, to = text.index(person), text.index(place)
    return {"text": text, "tags": [[at, at + len(person), "person"], [to, to + len(place), "place"]]}


@pytest.fixture
def own(here):
    """Files of train and test, and the settings of a tiny run on them."""
    (here / "set").mkdir()
    for name, rows in (("train", range(48)), ("test", range(48, 60))):
        (here / "set" / f"{name}.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in rows))
    return ["+target=text_tags", "data.path=set", *TINY_TEXT, "encoder.processor.vocab_size=200", "batch_size=16"]


def predictions(run: str) -> list[dict]:
    return [json.loads(line) for line in (Path(run) / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def spans(rows: list[dict], key: str = "prediction") -> list[list[tuple]]:
    return [[(s["start"], s["end"], s["type"]) for s in r[key]] for r in rows]


def test_from_files_to_spans(sslt, own, here, capsys):
    """Learned in a few steps, in windows of long texts; a saved head answers the same; new files with and without tags, of two formats."""
    sslt("finetune", *own, "from=scratch", "optimizer.lr=0.01", "trainer.max_steps=60", "hydra.run.dir=run")
    metrics, rows = Run(Path("run")).metrics, predictions("run")
    assert metrics["test/f1"] > 0.9 and metrics["test/type/place/f1"] > 0.8 and metrics["untagged/f1"] == 0 and metrics["baseline/f1"] > 0.5
    assert [r["error"] for r in rows] == sorted((r["error"] for r in rows), reverse=True) and sorted(r["row"] for r in rows) == list(
        range(12)
    )
    assert metrics["baseline/method"] == "linear tagger" and metrics["val/f1"] >= max(
        metrics["val/encoder_f1"], metrics["val/linear_tagger_f1"]
    )
    for r in rows:
        text = str(row(48 + r["row"])["text"])
        assert [s["text"] for s in r["truth"]] == [text[s["start"] : s["end"]] for s in r["truth"]] and all(
            "text" in s for s in r["prediction"]
        )
    sslt("evaluate", "from=run", CPU, "hydra.run.dir=measured")
    assert Run(Path("measured")).metrics["test/f1"] == metrics["test/f1"] and predictions("measured") == rows
    sslt("evaluate", "from=run", CPU, "windows=1", "hydra.run.dir=short")
    assert Run(Path("short")).metrics["test/recall"] < 0.7  # what was not read is missed

    sslt("predict", "from=run", "input=set/test.jsonl", CPU, "hydra.run.dir=again")
    again = predictions("again")
    by_row = sorted(rows, key=lambda r: r["row"])
    assert spans(again) == spans(by_row) and spans(again, "truth") == spans(by_row, "truth")
    assert Run(Path("again")).metrics["predict/f1"] == metrics["test/f1"]
    texts = [str(row(i)["text"]) for i in range(48, 60)]
    (here / "new.txt").write_text("\n".join(texts))
    (here / "new.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (here / "new.conll").write_text("\n\n".join("\n".join(t.split()) for t in texts))
    for i, name in enumerate(("new.txt", "new.jsonl", "new.conll")):
        sslt("predict", "from=run", f"input={name}", CPU, f"hydra.run.dir=new{i}")
        assert spans(predictions(f"new{i}")) == spans(by_row) and "truth" not in predictions(f"new{i}")[0]


def test_after_masked_words_and_with_other_parts(sslt, own):
    """From a run that learned without tags, with adapters, parts of the encoder, a share of the labels, a joint objective, from scratch
    beside.
    """
    sslt("pretrain", "+task=mlm", "data=text_tags", *own[1:-1], "batch_size=8", "pack=false", "trainer.max_steps=2", "hydra.run.dir=mlm")
    steps = ["trainer.max_steps=2", "baseline=false"]
    sslt("finetune", *own[:2], "from=mlm", "label_fraction=0.5", "compare=scratch", CPU, *steps, "hydra.run.dir=half")
    assert Run(Path("half")).metrics["train/labels"] == 22
    sslt("finetune", *own[:2], "from=mlm", "adaptation=lora", CPU, *steps, "hydra.run.dir=lora")
    sslt("evaluate", "from=lora", CPU, "baseline=false", "hydra.run.dir=measured")
    assert Run(Path("measured")).metrics["test/f1"] == Run(Path("lora")).metrics["test/f1"]
    sslt("finetune", *own[:2], "from=mlm", "adaptation=partial", "adaptation.blocks=1", CPU, *steps, "hydra.run.dir=partial")
    sslt("finetune", *own[:2], "from=mlm", "adaptation=probe", CPU, *steps, "hydra.run.dir=probe")
    sslt("finetune", *own[:2], "from=mlm", "+joint=mlm", CPU, *steps, "hydra.run.dir=joint")


@pytest.mark.parametrize(
    "settings, message",
    [
        (["encoder=bag"], "choose a transformer, encoder=bert_tiny"),
        (["objective=classification"], "have tagged spans, and objective=classification learns a class: choose objective=tagging"),
        (["labels_per_class=2"], "use label_fraction="),
        (["data.tags=tag"], "no key 'tag'"),
        (["views.n=2", "dropout=0.0"], "has no dropout"),
    ],
)
def test_refused(sslt, own, capsys, settings, message):
    """One line that says why."""
    args = own[:2] if settings[0] == "encoder=bag" else own
    sslt("finetune", *args, CPU, "from=scratch", "trainer.max_steps=1", *settings, code=2)
    err = capsys.readouterr().err
    assert message in err and len([line for line in err.splitlines() if line.startswith("sslt:")]) == 1


def test_another_head_is_refused_by_name(sslt, own, here, capsys):
    """Types that the head does not know, and data with another kind of answer."""
    sslt("finetune", *own, "from=scratch", "trainer.max_steps=1", "baseline=false", "hydra.run.dir=run")
    (here / "other.jsonl").write_text("".join(json.dumps({"text": f"{n} ran", "tags": [[0, len(n), "runner"]]}) + "\n" for n in NAMES))
    capsys.readouterr()
    sslt("evaluate", "from=run", "data=text_tags", "data.path=other.jsonl", CPU, code=2)
    assert "the head knows 2 (person, place) types, but other has 1 (runner)" in capsys.readouterr().err
    sslt("evaluate", "from=run", "data=docs", CPU, code=2)
    assert "the head answers with tagged spans, but the samples of docs have a class" in capsys.readouterr().err
    sslt("evaluate", "from=run", "probes=true", CPU, code=2)
    assert "which probes do not tell apart" in capsys.readouterr().err
