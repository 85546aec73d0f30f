"""Protects histories through the commands: pretrained on, measured without training, tuned, predicted, and what is refused."""

from __future__ import annotations

import json

import pytest
from conftest import TINY_ITEMS
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from sslt.encoders.load import load_encoder
from sslt.runs import Run

CPU = "trainer.accelerator=cpu"
SMALL = [*TINY_ITEMS, "data.count=200", "data.aisles=4"]
QUICK = ["batch_size=32", "trainer.max_steps=8", "baseline=false"]


def metrics(here, name: str) -> dict:
    return Run(here / name).metrics


def rows(here, name: str) -> list[dict]:
    return [json.loads(line) for line in (here / name / "predictions.jsonl").read_text().splitlines()]


def test_pretrain_measure_tune_and_predict(sslt, here, capsys):
    """What SASRec learned answers as it is; a run that was tuned from it says so again, and of new histories, whatever their items."""
    sslt("pretrain", "+task=sasrec", *SMALL, "batch_size=32", "trainer.max_epochs=12", "hydra.run.dir=pre")
    said = capsys.readouterr().out
    assert "next: sslt evaluate +target=next_item data=aisles" in said and "next: sslt finetune +target=next_item" in said
    again = ["+target=next_item", "data.count=200", "data.aisles=4", "from=pre", CPU]
    sslt("evaluate", *again, "objective.sampled=20", "hydra.run.dir=measured")
    found = metrics(here, "measured")
    assert {f"test/{k}" for k in ("hr@5", "hr@10", "ndcg@5", "ndcg@10", "mrr", "sampled/hr@10", "sampled/ndcg@10")} <= set(found)
    assert found["test/ndcg@10"] > found["popularity/ndcg@10"] > 0 and found["test/sampled/hr@10"] >= found["test/hr@10"]
    assert {"item-knn/hr@10", "popularity/hr@10", "baseline/ndcg@10", "baseline/method"} <= set(found)
    told = rows(here, "measured")
    assert told[0]["error"] == max(r["error"] for r in told) and len(told[0]["items"]) == 20 and told[0]["name"].startswith("shopper")
    sslt("finetune", *again, *QUICK, "hydra.run.dir=tuned")
    assert "val/ndcg@10" in metrics(here, "tuned") and "train/interpolated" in metrics(here, "tuned")
    sslt("evaluate", "from=tuned", CPU, "baseline=false", "hydra.run.dir=same")
    assert metrics(here, "same")["test/ndcg@10"] == metrics(here, "tuned")["test/ndcg@10"]
    (here / "new.csv").write_text("user,item\nann,aisle 0 shelf 1\nann,aisle 0 shelf 2\nbob,till 0\nbob,a thing nobody saw\n")
    sslt("predict", "from=tuned", "input=new.csv", CPU, "hydra.run.dir=told")
    new = rows(here, "told")
    assert [r["name"] for r in new] == ["ann", "bob"] and "aisle 0 shelf 1" not in new[0]["items"] and "rank" not in new[0]
    assert len((here / "told/predictions.csv").read_text().splitlines()) == 3
    assert "1 of the 4 items in histories were never seen in training: they say nothing (a thing nobody saw)" in capsys.readouterr().err
    (here / "later.csv").write_text("user,item\nann,till 0\nann,aisle 0 shelf 2\nann,aisle 0 shelf 1\nann,a thing nobody saw\n")
    sslt("evaluate", "from=tuned", "data=interactions", "data.path=later.csv", CPU, "hydra.run.dir=later", code=2)
    assert "and never saw a thing nobody saw: later has 4. Fine-tune on it first" in capsys.readouterr().err
    opened = AutoModelForCausalLM.from_pretrained(here / "pre" / "encoder")
    assert opened.lm_head.weight.shape[0] == load_encoder("pre").processor.vocab_size
    assert json.loads((here / "pre/encoder/items.json").read_text())["max_length"] == 12


def test_hidden_items_too(sslt, here):
    """BERT4Rec pretrained and tuned; few users teach, and a part of the encoder is frozen."""
    sslt("pretrain", "+task=bert4rec", *SMALL, "batch_size=32", "trainer.max_steps=4", "hydra.run.dir=pre")
    data = ["+target=next_item", "data.count=200", "data.aisles=4", CPU, *QUICK]
    sslt("finetune", *data, "from=pre", "label_fraction=0.2", "adaptation=partial", "adaptation.blocks=1", "hydra.run.dir=tuned")
    assert metrics(here, "tuned")["train/labels"] == 40 and metrics(here, "tuned")["test/hr@10"] > 0
    opened = AutoModelForMaskedLM.from_pretrained(here / "pre" / "encoder")
    assert opened.get_output_embeddings().weight.shape[0] == load_encoder("pre").processor.vocab_size


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["finetune", "+target=next_item", "from=scratch", "encoder=bert_tiny", *QUICK], "reads text, but aisles holds histories of items"),
        (["finetune", "+target=next_item", "from=scratch", "data=docs", *QUICK], "objective=next_item learns a next item"),
        (["finetune", "+target=next_item", "from=scratch", *SMALL, "views=plain", *QUICK], "leave views=histories"),
        (["finetune", "+target=next_item", "from=scratch", *SMALL, "objective.seen=no", *QUICK], "objective.seen=no: give exclude or keep"),
        (["pretrain", "+task=sasrec", "data=docs"], "makes views of items, but docs holds texts"),
        (["pretrain", "+task=sasrec", *SMALL, "encoder=bert4rec"], "writes no next word"),
        (["pretrain", "+task=simclr", "data=aisles"], "makes views of images, but aisles holds items"),
        (["finetune", "+target=next_item", "from=scratch", "data=interactions", "data.path=few.txt"], "no user has at least 3 items"),
        (["finetune", "+target=next_item", "from=scratch", "data=video", "data.root=."], "no Video.txt in"),
    ],
)
def test_mistakes_are_one_line(args, says, sslt, here, capsys):
    (here / "few.txt").write_text("a 1\na 2\nb 1\n")
    sslt(*args, code=2)
    said = capsys.readouterr().err
    assert says in said and "Traceback" not in said
