"""Protects writing through the commands: learned, measured again with other settings, predicted from files, on two ranks, refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import TINY_TEXT
from safetensors.torch import load_file

from sslt.runs import Run

pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")
WORDS = ["cat", "dog", "sun", "rain", "book", "tree", "fish", "song"]
CPU = "trainer.accelerator=cpu"
SMALL = ["encoder.config.d_model=16", "encoder.config.encoder_ffn_dim=32", "encoder.config.decoder_ffn_dim=32"]
SMALL += ["encoder.processor.vocab_size=400", "objective.max_tokens=12", "trainer.precision=32", CPU]
OWN = ["data=text_to_text", "data.path=pairs.csv", *SMALL]


@pytest.fixture
def pairs(here):
    """Texts of words and the same in capitals, some with two references."""
    rng = np.random.default_rng(0)
    rows = [" ".join(rng.permutation(WORDS)[: rng.integers(2, 6)]) for _ in range(90)]
    text = "".join(
        f"{a},{a.upper() if i % 2 else json.dumps(json.dumps([a.upper(), a])).replace(chr(92), chr(34))}\n" for i, a in enumerate(rows)
    )
    (here / "pairs.csv").write_text("source,target\n" + text.replace('""[', '"[').replace(']""', ']"'))


def metrics(here, name: str) -> dict:
    return Run(here / name).metrics


def lines(here, name: str) -> list[dict]:
    return [json.loads(line) for line in (here / name / "predictions.jsonl").read_text().splitlines()]


def test_translate_measure_and_predict(sslt, here, pairs, capfd):
    """One run: metrics with their signatures, baselines, every answer a text; again by beams; new texts with and without answers."""
    sslt("finetune", "+target=translate", *OWN, "from=scratch", "batch_tokens=200", "trainer.max_steps=40", "hydra.run.dir=run")
    found = metrics(here, "run")
    for name in ("bleu", "chrf", "bleu_tokenized", "exact_match", "perplexity"):
        assert np.isfinite(found[f"test/{name}"]) and np.isfinite(found[f"val/{name}"] if name in ("bleu", "perplexity") else 0)
    assert found["test/bleu/signature"].startswith("nrefs:var|case:mixed") and "nc:6" in found["test/chrf/signature"]
    assert 0 <= found["baseline/bleu"] <= 1 and found["baseline/method"]
    assert "test/bleu/signature: nrefs" in capfd.readouterr().err
    rows = lines(here, "run")
    assert len(rows) == 18 and all(isinstance(r["prediction"], str) for r in rows) and rows[0]["error"] == max(r["error"] for r in rows)
    assert any(isinstance(r["truth"], list) for r in rows)
    sslt("evaluate", "from=run", "baseline=false", CPU, "hydra.run.dir=again")
    assert {k: metrics(here, "again")[k] for k in found if k.startswith("test/")} == {
        k: v for k, v in found.items() if k.startswith("test/")
    }
    sslt(
        "evaluate",
        "from=run",
        "+objective=translation",
        "objective.beams=3",
        "objective.max_tokens=5",
        "baseline=false",
        CPU,
        "hydra.run.dir=beams",
    )
    assert metrics(here, "beams")["test/perplexity"] == pytest.approx(found["test/perplexity"])
    assert max(len(r["prediction"]) for r in lines(here, "beams")) < max(len(r["prediction"]) for r in rows)
    (here / "new.txt").write_text("cat dog\nsun\n")
    sslt("predict", "from=run", "input=new.txt", CPU, "hydra.run.dir=new")
    plain = [r["prediction"] for r in lines(here, "new")]
    sslt(
        "predict",
        "from=run",
        "input=new.txt",
        "objective.sample=true",
        "objective.temperature=5",
        "objective.seed=3",
        CPU,
        "hydra.run.dir=drawn",
    )
    assert len(plain) == 2 and plain != [r["prediction"] for r in lines(here, "drawn")]
    for wrong in ("objective.beams=0", "objective.temperature=0", "objective.top_p=2"):  # as composed configs refuse them
        sslt("predict", "from=run", "input=new.txt", wrong, CPU, "hydra.run.dir=asked", code=2)
        assert not (here / "asked").exists()
    sslt("predict", "from=run", "input=pairs.csv", CPU, "hydra.run.dir=told")
    assert metrics(here, "told")["predict/labelled"] == 90 and "predict/bleu" in metrics(here, "told") and "truth" in lines(here, "told")[0]


def test_sentences_stand_in_for_a_summarizer_that_is_behind_them(sslt, here, capfd):
    """Picked by a linear model where validation prefers that; the same by all commands; never without a validation split or if refused."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(150):
        sentences = [f"{rng.choice(WORDS)} {rng.choice(WORDS)}." for _ in range(4)]
        sentences[rng.integers(4)] = cue = f"we see {rng.choice(WORDS)} {rng.choice(WORDS)}."
        rows.append({"source": " ".join(sentences), "target": cue})
    (here / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = [
        "+target=summarize",
        "data=text_to_text",
        "data.path=pairs.jsonl",
        *SMALL,
        "from=scratch",
        "trainer.max_steps=2",
        "baseline=false",
    ]
    sslt("finetune", *own, "hydra.run.dir=run")
    found = metrics(here, "run")
    assert found["test/rougeL"] > 0.9 > 0.3 > found["val/encoder_rougeL"] and found["val/sentences_rougeL"] == found["val/rougeL"] > 0.9
    assert "sentences that a linear model picks" in capfd.readouterr().err
    sslt("evaluate", "from=run", "baseline=false", CPU, "hydra.run.dir=again")
    assert metrics(here, "again")["test/rougeL"] == found["test/rougeL"]
    (here / "new.txt").write_text("cat dog. we see the sun. rain.\n")
    sslt("predict", "from=run", "input=new.txt", CPU, "hydra.run.dir=new")
    assert [r["prediction"] for r in lines(here, "new")] == ["we see the sun."]
    sslt("finetune", *own, "late_fusion=false", "hydra.run.dir=alone")
    alone = metrics(here, "alone")
    assert alone["val/rougeL"] == found["val/encoder_rougeL"] and "val/sentences_rougeL" not in alone
    sslt("finetune", *own, "data.val_fraction=0", "hydra.run.dir=unseen")
    assert metrics(here, "unseen")["test/rougeL"] < 0.3


def test_what_was_pretrained_on_both_sides_is_carried_on(sslt, here, pairs):
    """A causal encoder learns the words of texts and answers, then to write one after the other; the measured one has no training."""
    gpt = ["encoder=gpt_tiny", "encoder.config.hidden_size=16", "encoder.processor.vocab_size=400", "encoder.processor.max_length=32", CPU]
    sslt(
        "pretrain",
        "+task=causal_lm",
        "data=text_to_text",
        "data.path=pairs.csv",
        *gpt,
        "pack=false",
        "batch_size=8",
        "trainer.max_steps=3",
        "hydra.run.dir=pre",
    )
    own = ["data=text_to_text", "data.path=pairs.csv", "from=pre", "objective.max_tokens=8", CPU]
    sslt("finetune", "+target=summarize", *own, "trainer.max_steps=3", "batch_size=8", "trainer.precision=32", "hydra.run.dir=run")
    found = metrics(here, "run")
    assert {"test/rougeL", "test/rouge1", "test/rouge2", "test/rougeLsum", "best_sentence/rougeL"} <= found.keys()
    assert found["baseline/method"] == "the first sentence" and found["best_sentence/rougeL"] >= found["baseline/rougeL"]
    sslt("evaluate", "from=pre", "+target=summarize", *own[:2], "objective.max_tokens=8", "baseline=false", CPU, "hydra.run.dir=untrained")
    assert np.isfinite(metrics(here, "untrained")["test/perplexity"])


def test_replies_in_dialogues(sslt, here):
    rows = [
        {"turns": [f"hello {i} {WORDS[i % 8]}", f"hi, this is the {WORDS[i % 8]} speaking", f"bye {i}", "see you again very soon"]}
        for i in range(40)
    ]
    (here / "d.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    own = ["data=dialogues", "data.path=d.jsonl", *SMALL, "trainer.max_steps=3", "batch_size=8"]
    sslt("finetune", "+target=dialogue", *own, "from=scratch", "hydra.run.dir=run")
    found = metrics(here, "run")
    assert {"test/bleu", "test/distinct1", "test/distinct2", "test/perplexity", "most_frequent/bleu"} <= found.keys()
    assert found["baseline/bleu"] > 0.5 and found["baseline/method"].startswith("the answer to the nearest last turn")
    going_on = [{"messages": [{"role": "user", "content": f"hello {word}"}]} for word in WORDS[:3]]
    (here / "new.jsonl").write_text("\n".join(json.dumps(r) for r in going_on))
    sslt("predict", "from=run", "input=new.jsonl", CPU, "hydra.run.dir=replies")
    assert [set(r) for r in lines(here, "replies")] == [{"row", "prediction"}] * 3


def test_two_ranks_are_one(sslt, here, pairs):
    """The same weights and the same texts from two processes with half of a batch each."""
    from killed_runs import command

    common = [
        "finetune",
        "+target=translate",
        *OWN,
        "from=scratch",
        "trainer.max_steps=3",
        "dropout=0",
        "baseline=false",
        "batch_tokens=null",
    ]
    assert command([*common, "batch_size=8", "trainer.devices=2", "hydra.run.dir=two"]) == 0
    sslt(*common, "batch_size=16", "hydra.run.dir=one")
    one, two = (load_file(here / name / "encoder/model.safetensors") for name in ("one", "two"))
    assert all(np.allclose(one[k], two[k], atol=2e-5) for k in one)
    assert [r["prediction"] for r in lines(here, "one")] == [r["prediction"] for r in lines(here, "two")]
    assert metrics(here, "two")["test/perplexity"] == pytest.approx(metrics(here, "one")["test/perplexity"], rel=1e-3)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            ["+target=translate", "data=text_to_text", "data.path=pairs.csv", *TINY_TEXT],
            "has no decoder to write with: choose encoder=t5_tiny",
        ),
        (["+target=summarize", "data=docs"], "objective=summarization learns a text to write: choose objective=classification"),
        (["+target=translate", *OWN, "data.target=gole"], "no column 'gole' (data.target)"),
        (["+target=translate", *OWN, "views=mask_tokens"], "leave views=plain"),
        (["+target=translate", *OWN, "adaptation=probe"], "nothing would be trained"),
        (
            ["data=text_to_text", "data.path=pairs.csv", *OWN[2:-3], "encoder=mbart_tiny"],
            "choose objective=summarization or objective=response",
        ),
        (["+target=translate", "data.root=."], "no multi30k data in"),
        (["+target=services", "data.root=."], "no Schema-Guided Dialogue in"),
    ],
)
def test_mistakes(args, words, sslt, here, pairs, capfd):
    """One or two lines each, and no folder."""
    sslt("finetune", *args, "from=scratch", "hydra.run.dir=run", code=2)
    err = capfd.readouterr().err
    assert words in err and "Traceback" not in err and not (here / "run").exists()
