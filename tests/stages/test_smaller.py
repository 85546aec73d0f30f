"""Protects pruning and distillation as commands: what they make is an ordinary run, taught by its parent's recipe; mistakes are a line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import TINY_IMAGES, TINY_TEXT

from sslt.encoders.base import fingerprint
from sslt.encoders.load import load_encoder
from sslt.runs import Run

FEW = ["trainer.max_steps=2", "trainer.precision=32", "trainer.accelerator=cpu", "batch_size=64"]
# what is measured of variants is other tests' concern
QUICK = ["batch_sizes=[1]", "rounds=1", "warmup=0", "raw=false", "fresh=false"]


@pytest.fixture(scope="module")
def images(tmp_path_factory, cache) -> Path:
    """A tiny fine-tuned classifier of digits, without late fusion."""
    return made(tmp_path_factory.mktemp("runs"), cache, "+target=digits", "encoder=resnet_small", *TINY_IMAGES)


@pytest.fixture(scope="module")
def texts(tmp_path_factory, cache) -> Path:
    return made(tmp_path_factory.mktemp("runs"), cache, "+target=docs", *TINY_TEXT)


def made(folder: Path, cache: Path, *args: str) -> Path:
    from sslt.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSLT_CACHE", str(cache))
        patch.setattr("sslt.data.cache._root", None)
        patch.setenv("SSLT_DEBUG", "1")
        more = ["from=scratch", "late_fusion=false", "baseline=false", "optimizer.lr=0.003", f"hydra.run.dir={folder / 'run'}"]
        assert main(["finetune", *args, "trainer.max_steps=3", "batch_size=32", *more]) == 0
    return folder / "run"


def one_line(capsys) -> str:
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sslt: ")]
    assert len(err) == 1
    return err[0]


def test_pruned_twice(images, sslt, here):
    """Half of the parameters go in two rounds and again; the result is measured, predicts, and is known by its parent."""
    sslt("compress", f"from={images}", "method=prune", "method.rounds=2", "method.multiple=1", *FEW, *QUICK, "hydra.run.dir=small")
    small, before = load_encoder("small"), load_encoder(str(images))
    sizes = [sum(p.numel() for p in e.parameters()) for e in (before, small)]
    assert 0.45 <= 1 - sizes[1] / sizes[0] <= 0.65
    run = Run(here / "small")
    assert run.metrics["pruned/parameters_share"] == pytest.approx(1 - sizes[1] / sizes[0])
    assert run.info["parent"]["fingerprint"] == fingerprint(before) and run.metrics["train/steps"] == 2
    head = torch.nn.Linear(small.dim, 10).weight.shape
    from sslt.encoders.files import read_tensors

    assert read_tensors(here / "small" / "head" / "model.safetensors")["head.weight"].shape == head
    again = ["method.criterion=taylor", "method.of=operations", "method.share=0.2", "method.multiple=1", "method.finetune=false"]
    sslt("compress", "from=small", "method=prune", *again, *FEW, *QUICK, "hydra.run.dir=smaller")
    assert sum(p.numel() for p in load_encoder("smaller").parameters()) < sizes[1]


@pytest.mark.parametrize("what", ["heads", "channels", "layers"])
def test_pruned_transformers(what, texts, sslt, here):
    """Heads, hidden units and layers of a BERT; its folder opens, and evaluates as it was measured."""
    share = {"heads": 0.02, "channels": 0.05, "layers": 0.05}[what]
    given = ["method=prune", f"method.what={what}", f"method.share={share}", "method.multiple=1", "method.criterion=taylor"]
    sslt("compress", f"from={texts}", *given, *FEW, *QUICK, "hydra.run.dir=small")
    sslt("evaluate", "from=small", "baseline=false", "trainer.accelerator=cpu", "hydra.run.dir=measured")
    assert Run(here / "measured").metrics["test/accuracy"] == Run(here / "small").metrics["test/accuracy"]


def test_pruned_by_movement(images, texts, sslt, here):
    """Channels of a ResNet and layers of a BERT go in one training, of which the steps are those that were asked for."""
    given = ["method=prune", "method.criterion=movement", *FEW, "trainer.max_steps=8", *QUICK]
    sslt("compress", f"from={images}", *given, "method.multiple=1", "hydra.run.dir=small")
    sizes = [sum(p.numel() for p in load_encoder(str(run)).parameters()) for run in (images, "small")]
    assert 0.5 <= 1 - sizes[1] / sizes[0] <= 0.65 and Run(here / "small").metrics["train/steps"] == 8
    sslt("compress", f"from={texts}", *given, "method.what=layers", "method.share=0.05", "hydra.run.dir=shallow")
    assert load_encoder("shallow").depth == load_encoder(str(texts)).depth - 1
    sslt("evaluate", "from=small", "baseline=false", "trainer.accelerator=cpu", "hydra.run.dir=measured")
    assert Run(here / "measured").metrics["test/accuracy"] == Run(here / "small").metrics["test/accuracy"]


def test_zeros_stay_zeros(images, sslt, here, capsys):
    """The share of weights that were put to zero are zeros after training, and the plain word on what that is good for is said."""
    sslt("compress", f"from={images}", "method=prune_unstructured", "method.share=0.7", *FEW, *QUICK, "hydra.run.dir=zeros")
    assert "nothing faster here" in capsys.readouterr().out
    weights = [m.weight for m in load_encoder("zeros").modules() if isinstance(m, torch.nn.Conv2d)]
    zeros, n = sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)
    assert zeros / n == pytest.approx(0.7, abs=0.01)


def test_distilled(images, sslt, here):
    """A student of another kind is an ordinary run of the same answers; the teacher is known by its fingerprint and not in its folder."""
    student = ["encoder=conv4", "encoder.width=4", "encoder.blocks=2", "method.pseudo=1", "method.tokens=1"]
    sslt("compress", f"from={images}", "method=distill", *student, *FEW, *QUICK, "hydra.run.dir=student")
    run = Run(here / "student")
    assert run.info["teacher"]["fingerprint"] == fingerprint(load_encoder(str(images)))
    assert type(load_encoder("student")).__name__ == "Conv4"
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert not any("teacher" in k for k in state) and any("taught_by" in k for k in state)


def test_a_student_of_texts_reads_its_teachers_words(texts, sslt, here):
    """Without labels: a fresh student has the teacher's tokenizer, whatever its own settings; goes on with another teacher: refused."""
    student = [*TINY_TEXT, "encoder.config.num_hidden_layers=1", "encoder.processor.vocab_size=500", "online_probe.every_n_epochs=0"]
    taught = ["+task=distill", "data=docs", *student, f"objective.teacher={texts}", "objective.tokens=1", "objective.logits=1"]
    sslt("pretrain", *taught, "trainer.max_steps=2", "batch_size=16", "hydra.run.dir=student")
    ours, theirs = load_encoder("student"), load_encoder(str(texts))
    assert ours.processor.digest == theirs.processor.digest and ours.depth == 1
    assert Run(here / "student").info["teacher"]["fingerprint"] == fingerprint(theirs)
    assert not (here / "student" / "teacher").exists()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["method=distill"], "which student?"),
        (["method=distill", "encoder=bert_tiny"], "reads text"),
        (["method=prune", "method.share=1"], "leaves nothing"),
        (["method=prune", "method.share=0.999"], "of its parameters can go"),
        (["method=prune", "method.what=heads"], "no transformer"),
        (["method=prune", "method.criterion=movement", "method.finetune=false"], "ranks while it trains"),
        (["method=prune", "method.criterion=movement", "method.share=0.999"], "of its parameters can go"),
        (["method=prune", "method.what=chanels"], "did you mean"),
        (["method=prune_unstructured", "method.share=1.0"], "leaves nothing"),
    ],
)
def test_mistakes(args, says, images, sslt, here, capsys):
    """One line, exit code 2, and no folder left."""
    sslt("compress", f"from={images}", *args, *FEW, "hydra.run.dir=wrong", code=2)
    assert says in one_line(capsys)
    assert not (here / "wrong").exists()


def test_a_bag_and_a_transformer_teach_each_other(texts, sslt, here, capsys):
    """Tokenizers may differ, tokens then are not compared: the student's text is read out to its teacher. A fresh transformer starts with
    its teacher's words. Samples of another kind are refused by name.
    """
    few = ["trainer.max_steps=2", "trainer.accelerator=cpu", "online_probe.every_n_epochs=0", "batch_size=16"]
    bag = ["encoder=bag", "encoder.dim=16", "encoder.pairs=64"]
    sslt("pretrain", "+task=distill", "data=docs", *bag, f"objective.teacher={texts}", *few, "hydra.run.dir=bag")
    student = [*TINY_TEXT, "online_probe.every_n_epochs=0", "objective.teacher=bag", "data=docs"]
    capsys.readouterr()
    sslt("pretrain", "+task=distill", *student, *few, "hydra.run.dir=student")
    assert "word vectors start from what bag says" in capsys.readouterr().err
    assert type(load_encoder("student")).__name__ == "TextEncoder"
    sslt("pretrain", "+task=distill", *student, *few, "objective.tokens=1", code=2)
    assert "another tokenizer" in one_line(capsys)
    sslt("pretrain", "+task=distill", f"objective.teacher={texts}", *few, code=2)
    assert "reads text" in one_line(capsys)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["pretrain", "+task=mlm", "from=words", "word_vectors=words"], "vectors of its own"),
        (["pretrain", "+task=crops", "data=docs", "word_vectors=words"], "from=RUN"),
        (["pretrain", "+task=simclr", "data=digits", "word_vectors=words"], "transformer that reads text"),
        (["finetune", "+target=docs", "from=scratch", *TINY_TEXT, "word_vectors=pictures"], "reads images"),
    ],
)
def test_word_vectors_are_for_fresh_transformers(args, says, texts, images, sslt, here, capsys):
    """One line, exit code 2, and no folder left."""
    given = [a.replace("=words", f"={texts}").replace("=pictures", f"={images}") for a in args]
    sslt(*given, "trainer.max_steps=1", "trainer.accelerator=cpu", "hydra.run.dir=wrong", code=2)
    assert says in one_line(capsys)
    assert not (here / "wrong").exists()


def test_fine_tuning_starts_with_given_words(texts, sslt, here, capsys):
    """The vectors are there before training, whose head starts at the linear probe as from an encoder that learned; the run's folder holds
    them. What it is compared with has neither.
    """
    given = ["+target=docs", "from=scratch", *TINY_TEXT, "baseline=false", "late_fusion=false", "optimizer.lr=0", "trainer.max_steps=1"]
    sslt("finetune", *given, f"word_vectors={texts}", "compare=scratch", "trainer.accelerator=cpu", "hydra.run.dir=tuned")
    assert capsys.readouterr().err.count("the head starts as the linear probe") == 1
    table, plain = (load_encoder(name).token_embeddings.weight for name in ("tuned", "tuned/scratch"))
    assert table.sum(1).abs().max() < 1e-4 < plain.sum(1).abs().max()
    assert "gain/test/accuracy" in Run(here / "tuned").metrics
