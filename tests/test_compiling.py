"""Protects `trainer.compile=true`: blocks are compiled while a model trains and nowhere else, and a stopped run goes on exactly."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import TINY_TEXT, TINY_VIT
from test_resume import in_two_parts, same
from torch import nn
from vector_encoder import VectorEncoder

from sslt import compiling
from sslt.errors import UserError
from sslt.runs import Run

VIT = ["pretrain", "+task=byol", "encoder=vit_patches", *TINY_VIT, "batch_size=32", "trainer.max_steps=4", "online_probe.every_n_epochs=0"]


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch):
    """Blocks are traced and guarded as ever, and what comes out is run by torch's own operators: a compiler takes half a minute."""
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


class Doubled(nn.Module):
    """Counts how often its Python is run."""

    def __init__(self):
        super().__init__()
        self.linear, self.called = nn.Linear(4, 4), 0

    def forward(self, x):
        self.called += 1
        return 2 * self.linear(x)


def test_only_training_is_compiled():
    """A block's graph is made in training; measuring runs its Python, and afterwards there is nothing of it."""
    block = Doubled()
    encoder = VectorEncoder(block, 4)
    names, x = list(encoder.state_dict()), torch.ones(3, 4)
    expected = encoder({"x": x}).pooled
    with compiling.compiled([encoder, encoder]):
        assert torch.equal(encoder({"x": x}).pooled, expected) and graphs() == 1
        with torch.inference_mode():
            before = block.called
            encoder({"x": x})
            assert block.called == before + 1 and graphs() == 1
        assert list(encoder.state_dict()) == names
    assert block._compiled_call_impl is None and "_compiled_call_impl" not in encoder.__dict__
    encoder({"x": torch.ones(5, 4, dtype=torch.float32)})
    assert graphs() == 1


def test_an_error_leaves_nothing_behind():
    """Training that fails gives back the encoder as it was."""
    encoder = VectorEncoder(Doubled(), 4)
    with pytest.raises(ZeroDivisionError), compiling.compiled([encoder]):
        raise ZeroDivisionError
    assert encoder.layer._compiled_call_impl is None


def test_every_block_of_a_deep_encoder_is_compiled():
    """As many shapes as there are blocks: none falls back to Python, as torch does silently from the ninth on."""
    shapes = [4 + i for i in range(24)]
    block = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(shapes)))
    encoder = VectorEncoder(block, shapes[-1])
    encoder.block_names = lambda: [f"layer.{i}" for i in range(len(block))]
    with compiling.compiled([encoder]):
        encoder({"x": torch.ones(2, 4)}).pooled.sum().backward()
    assert graphs() == len(block)


def test_student_and_teacher_are_the_same_with_and_without(sslt, here):
    """Compiled to torch's own operators a run is, bit for bit, the one that is not compiled; its teacher is compiled too."""
    sslt(*VIT, "hydra.run.dir=plain")
    assert graphs() == 0
    sslt(*VIT, "trainer.compile=true", "hydra.run.dir=compiled")
    assert graphs() > 0 and same(here / "plain", here / "compiled")
    in_two_parts(sslt, [*VIT, "trainer.compile=true"], 2)
    assert Run(here / "part").config["trainer"]["compile"] and same(here / "compiled", here / "part")


def test_texts_of_many_lengths(sslt, here):
    """Rows of another length do not make another graph each, and LoRA within blocks learns as it does without."""
    tune = ["finetune", "+target=docs", "from=scratch", *TINY_TEXT, "adaptation=lora", "labels_per_class=8", "batch_size=8"]
    tune += ["trainer.max_steps=12", "baseline=false", "late_fusion=false", "dropout=0.0"]
    sslt(*tune, "hydra.run.dir=plain")
    sslt(*tune, "trainer.compile=true", "hydra.run.dir=compiled")
    assert 0 < graphs() <= 12 and same(here / "plain", here / "compiled")


def test_nothing_to_compile_is_said(sslt, here, capsys):
    """An encoder without blocks is refused in one line."""
    sslt("pretrain", "+task=crops", "encoder.dim=16", "encoder.pairs=64", "trainer.max_steps=1", "trainer.compile=true", code=2)
    assert "this one has none" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"trainer\.compile=true"), compiling.compiled([]):
        pass


def test_wrong_values_are_refused(sslt, capsys):
    """What is neither true nor false is named."""
    sslt("pretrain", "+task=simclr", "trainer.compile=fast", code=2)
    assert "trainer.compile" in capsys.readouterr().err
