"""Protects reading comprehension through the commands: learned from own files, measured, predicted, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import toy_reading as toy
from conftest import TINY_TEXT

from sslt.runs import Run

CPU = "trainer.accelerator=cpu"
TINY = [*TINY_TEXT, "encoder.processor.vocab_size=200", "batch_size=16"]


def predictions(run: str) -> list[dict]:
    return [json.loads(line) for line in (Path(run) / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def test_from_a_file_to_answers(sslt, here, capsys):
    """Learned where the answer stands and when there is none; the head answers alike, the worst come first; new questions are answered."""
    file = toy.squad(here / "own.json", n=60, impossible=True)
    sslt("finetune", "+target=qa", f"data.path={file}", *TINY, "from=scratch", "trainer.max_steps=80", "optimizer.lr=0.005",
         "encoder.processor.max_length=24", "hydra.run.dir=run")  # fmt: skip
    found, rows = Run(Path("run")).metrics, predictions("run")
    assert {
        "test/exact_match",
        "test/part/has_answer/f1",
        "test/part/no_answer/f1",
        "baseline/f1",
        "whole_context/f1",
        "no_answer/f1",
    } <= set(found)
    assert found["test/f1"] > 0.55 and found["val/f1"] > 0.5
    assert [r["error"] for r in rows] == sorted((r["error"] for r in rows), reverse=True) and {"prediction", "truth", "score"} <= set(
        rows[0]
    )
    sslt("evaluate", "from=run", CPU, "hydra.run.dir=again")
    assert Run(Path("again")).metrics["test/f1"] == found["test/f1"] and predictions("again") == rows

    new = toy.squad(here / "new.json", n=5, answers=False)
    capsys.readouterr()
    sslt("predict", "from=run", f"input={new}", CPU, "hydra.run.dir=new")
    rows = predictions("new")
    assert [r["name"] for r in rows] == [f"q{i}.{k}" for i in range(5) for k in range(2)] and not any("truth" in r for r in rows)
    contexts = [a["paragraphs"][0]["context"] for a in json.loads(new.read_text())["data"] for _ in range(2)]
    assert all(r["prediction"] == c[r["start"] : r["end"]] for r, c in zip(rows, contexts, strict=True) if "start" in r)
    assert "predict/f1" not in Run(Path("new")).metrics
    sslt("predict", "from=run", f"input={file}", CPU, "hydra.run.dir=known")
    assert Run(Path("known")).metrics["predict/f1"] > 0.5 and "truth" in predictions("known")[0]


def test_texts_to_read_are_texts_to_pretrain_on(sslt, here):
    """Contexts and questions, each once, without their answers; what was learned is where reading starts from."""
    file = toy.squad(here / "own.json", n=24)
    sslt("pretrain", "+task=mlm", "data=qa", f"data.path={file}", *TINY_TEXT, "batch_size=8", "pack=false", "trainer.max_steps=2",
         "hydra.run.dir=pre")  # fmt: skip
    sslt("finetune", "+target=qa", f"data.path={file}", "from=pre", CPU, "trainer.max_steps=2", "adaptation=lora", "hydra.run.dir=run")
    sslt("evaluate", "from=run", CPU)  # whose questions all have an answer in their text
    assert 0 <= Run(Path("run")).metrics["test/f1"] <= 1


def test_dialogues_are_answered_turn_by_turn(sslt, here):
    """Places, yes, no and unknown; a file of dialogues without answers is read with the reader's own."""
    file = toy.coqa(here / "own.json", n=40, additional=True)
    sslt("finetune", "+target=qa", f"data.path={file}", *TINY, "from=scratch", "trainer.max_steps=60", "optimizer.lr=0.005",
         "encoder.processor.max_length=64", "baseline=false", "hydra.run.dir=run")  # fmt: skip
    found = Run(Path("run")).metrics
    assert found["test/f1"] > 0.6 and {"test/domain/cnn/f1", "test/domain/mctest/f1"} <= set(found)
    new = toy.coqa(here / "new.json", n=2, answers=False)
    sslt("predict", "from=run", f"input={new}", CPU, "hydra.run.dir=new")
    rows = predictions("new")
    assert len(rows) == 12 and {"unknown", "yes"} & {r["prediction"] for r in rows}
    assert rows[0]["name"] == "s0, turn 1" and not any("truth" in r for r in rows)


@pytest.mark.parametrize(
    "settings, said",
    [
        (["data.on_error=fail"], "own.json, question q0.0: the answer 'Nowhere' is not in its context"),
        (["views.n=2", "data.on_error=skip"], "which only views=plain with views.n=1 leaves as it is"),
        (["encoder=bag", "data.on_error=skip"], "choose"),
        (["objective=classification", "data.on_error=skip"], "choose objective=extractive_qa"),
        (["objective.history=mine", "data.on_error=skip"], "objective.history=mine: give predicted or gold"),
        (["data.scorer=rouge", "data.on_error=skip"], "data.scorer=rouge: give squad, cmrc, coqa"),
    ],
)
def test_mistakes_are_one_line(sslt, here, capsys, settings, said):
    file = toy.squad(here / "own.json", n=12)
    found = json.loads(file.read_text())
    found["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["text"] = "Nowhere"
    file.write_text(json.dumps(found))
    start = [*TINY, *settings] if "encoder=bag" not in settings else settings
    sslt("finetune", "+target=qa", f"data.path={file}", *start, "from=scratch", "trainer.max_steps=1", code=2)
    told = capsys.readouterr().err
    assert said in told and "Traceback" not in told
