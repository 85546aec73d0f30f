"""Protects prompting through the commands: measured without training, tuned on few labels, measured again, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import TINY_TEXT

from sslt.runs import Run

CPU = "trainer.accelerator=cpu"
WORDS = "objective.words={pos:[great,good],neg:bad}"
PROMPT = ["+target=prompt", "data=text_csv", "data.path=films.csv", WORDS, CPU]
GPT = ["encoder=gpt_tiny", *(s for s in TINY_TEXT[1:] if "intermediate" not in s)]


@pytest.fixture
def films(here):
    said = {"pos": "lovely and so great", "neg": "poor and bad"}
    rows = [f"film {i} was {said[k]} . it was good,{k}" for i in range(80) for k in (("neg", "pos")[i % 2],)]
    (here / "films.csv").write_text("\n".join(["text,label", *rows]) + "\n")


def metrics(name: str) -> dict:
    return Run(name).metrics


def test_a_masked_encoder_is_asked_then_tuned(sslt, films, here):
    """Zero-shot from a pretrained run, the head of the words kept; learned from 8 labels of a class; the saved run answers the same."""
    own = ["data=text_csv", "data.path=films.csv", "pack=false", "trainer.max_steps=1"]
    sslt("pretrain", "+task=mlm", *TINY_TEXT, *own, "hydra.run.dir=pre")
    sslt("evaluate", *PROMPT, "from=pre", "hydra.run.dir=zero")
    assert {"test/accuracy", "test/f1", "majority/accuracy", "baseline/accuracy"} <= set(metrics("zero"))
    tuned = ["from=pre", "labels_per_class=8", "trainer.max_steps=25", "optimizer.lr=0.01", "baseline=false"]
    sslt("finetune", *PROMPT, *tuned, "hydra.run.dir=tuned")
    assert metrics("tuned")["test/accuracy"] > 0.9 and metrics("tuned")["train/labels"] == 16
    sslt("evaluate", "from=tuned", CPU, "baseline=false", "hydra.run.dir=again")
    assert metrics("again")["test/accuracy"] == metrics("tuned")["test/accuracy"]
    assert metrics("again")["test/nll"] == pytest.approx(metrics("tuned")["test/nll"], abs=1e-5)


def test_a_causal_encoder_reads_examples(sslt, films, here):
    """They are drawn from the training split, without training and when a run is tuned, and go with its head."""
    shots = ["objective.shots=2", "objective.max_length=100", "objective.calibrate=empty", "baseline=false"]
    sslt("finetune", *PROMPT, *GPT, *shots, "from=scratch", "trainer.max_steps=2", "hydra.run.dir=tuned")
    sslt("evaluate", "from=tuned", CPU, "baseline=false", "hydra.run.dir=again")
    assert metrics("again")["test/nll"] == pytest.approx(metrics("tuned")["test/nll"], abs=1e-5)
    sslt("evaluate", *PROMPT, *shots, "from=scratch:tuned", "hydra.run.dir=few")
    sslt("evaluate", *PROMPT, *shots[1:], "from=scratch:tuned", "hydra.run.dir=zero")
    assert metrics("few")["test/nll"] != metrics("zero")["test/nll"]
    (here / "new.txt").write_text("a good film\n")
    sslt("predict", "from=tuned", "input=new.txt", CPU, "hydra.run.dir=told")
    assert "pos" in (here / "told/predictions.csv").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["encoder=bag"], "reads no hidden words out: choose encoder=bert_tiny or encoder=gpt_tiny"),
        (TINY_TEXT, "pretrain it by +task=mlm"),
        (["data.path=scores.csv", "data.answer=number"], "choose objective=regression"),
        ([*GPT, "adaptation=probe"], "nothing would be trained"),
        ([*GPT, "views.n=2"], "leave views=plain with views.n=1"),
        ([*GPT, "objective.words={good:[a]}"], "there is no class 'good'"),
    ],
)
def test_what_cannot_be_asked_is_said_in_a_line(settings, message, sslt, films, capsys):
    Path("scores.csv").write_text("\n".join(["text,label", *(f"film {i} was good,{i % 2}.5" for i in range(80))]) + "\n")
    named = {s.partition("=")[0] for s in settings}
    own = [s for s in PROMPT if s.partition("=")[0] not in named]
    sslt("finetune", *own, *settings, "from=scratch", "trainer.max_steps=1", code=2)
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
