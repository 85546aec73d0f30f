"""Protects `trainer.activation_checkpointing=true`: the same training, bit for bit, with fewer activations alive."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import TINY_IMAGES, TINY_TEXT, TINY_VIT
from live_memory import Live
from test_resume import in_two_parts, same
from torch import nn
from vector_encoder import VectorEncoder

from sslt import compiling, recomputing
from sslt.config import build, compose
from sslt.encoders.inserted import inject
from sslt.errors import UserError
from sslt.runs import Run
from sslt.stages.common import starting_encoder

AGAIN = "trainer.activation_checkpointing=true"
QUIET = ["trainer.max_steps=4", "batch_size=32", "online_probe.every_n_epochs=0"]
VIT = ["pretrain", "+task=byol", "encoder=vit_patches", *TINY_VIT, "+encoder.args.drop_path_rate=0.2", *QUIET]
DROPS = ["+encoder.args.drop_path_rate=0.2", "+encoder.args.proj_drop_rate=0.1", "+encoder.args.attn_drop_rate=0.1"]
GPT = ["encoder=gpt_tiny", "encoder.config.hidden_size=32", *(o for o in TINY_TEXT if "bert" not in o and "config" not in o)]
ENCODERS = {
    "ViT": ["+task=simclr", "encoder=vit_patches", *TINY_VIT, "encoder.args.depth=8", *DROPS],
    "ResNet": ["+task=simclr", *TINY_IMAGES, "encoder.args.layers=[2,2,2,2]"],
    "BERT": ["+task=simcse", *TINY_TEXT, "dropout=0.1"],
    "GPT": ["+task=causal_lm", *GPT],
}


def made(name: str):
    cfg = compose("pretrain", ENCODERS[name])
    torch.manual_seed(0)
    return starting_encoder(cfg, build(cfg.data)).train()


def inputs_of(encoder, n: int = 8):
    g, p = torch.Generator().manual_seed(0), encoder.processor
    if encoder.modality == "image":
        return {"image": torch.randn(n, p.channels, p.size, p.size, generator=g)}
    mask = torch.arange(24) < torch.randint(1, 25, (n, 1), generator=g)
    return {"tokens": torch.randint(5, 900, (n, 24), generator=g) * mask, "mask": mask}


def step(encoder, n: int = 8) -> dict:
    """One forward and backward pass: what came out, gradients, buffers, the next random number, and bytes alive at most."""
    torch.manual_seed(1)
    with Live() as live:
        out = encoder(inputs_of(encoder, n))
        (out.pooled.square().sum() + out.tokens.sin().sum()).backward()
    grads = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    buffers = {name: b.clone() for name, b in encoder.named_buffers()}
    return {"pooled": out.pooled.detach(), "next": torch.rand(3), **grads, **buffers}, live.peak


def alike(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def both(encoder: Any) -> tuple[dict, dict, Any]:
    """What a step with blocks computed again leaves, and one without; and the copy that had the former."""
    again = copy.deepcopy(encoder)
    expected, _ = step(encoder)
    with recomputing.recomputed([again]):
        found, _ = step(again)
    return found, expected, again


@pytest.mark.parametrize("name", ENCODERS)
def test_a_step_is_the_same_bit_for_bit(name):
    """Dropout, stochastic depth, gradients; running statistics move once; the generators stand where they stood."""
    encoder = made(name)
    found, expected, again = both(encoder)
    assert alike(found, expected) and len(expected) > 10
    assert all(m._compiled_call_impl is None for m in again.modules())


@pytest.mark.parametrize("spec", [{"kind": "lora", "r": 2, "lora_alpha": 4, "lora_dropout": 0.3}, {"kind": "adapter", "size": 4}])
def test_adapters_learn_the_same(spec):
    """What is put into a block, or hangs behind it, is computed again with it."""
    encoder = made("ViT")
    inject(encoder, spec)
    for name, p in encoder.named_parameters():
        p.requires_grad_("lora_" in name or "added_" in name)
    found, expected, _ = both(encoder)
    assert alike(found, expected)


def test_a_prompt_before_a_model_that_fills_a_cache():
    """GPT's layers add their keys to a cache whenever they are called: twice would be twice as many."""
    encoder = made("GPT")
    inject(encoder, {"kind": "prompt", "length": 3})
    found, expected, _ = both(encoder)
    assert alike(found, expected)


def test_memory_of_a_deep_network():
    """Eight blocks need little more than one."""
    encoder = made("ViT")
    _, whole = step(encoder, 32)
    with recomputing.recomputed([encoder]):
        _, once = step(encoder, 32)
    assert once < whole / 4


class Block(nn.Module):
    """Counts its calls; `writes`: on its own input."""

    def __init__(self, writes: bool = False):
        super().__init__()
        self.linear, self.writes, self.calls = nn.Linear(4, 4), writes, 0

    def forward(self, x):
        self.calls += 1
        return self.linear(x.mul_(2) if self.writes else 2 * x).tanh()


def test_only_where_a_gradient_is():
    """Measuring, teachers and what is frozen below all that moves are computed once; a second backward pass computes once more."""
    encoder, x = VectorEncoder(Block(), 4), torch.ones(3, 4)
    with recomputing.recomputed([encoder, encoder]):
        with torch.no_grad():
            encoder({"x": x})
        with torch.inference_mode():
            encoder({"x": x})
        assert encoder.layer.calls == 2
        loss = encoder({"x": x}).pooled.sum()
        loss.backward(retain_graph=True)
        first = encoder.layer.linear.weight.grad.clone()
        loss.backward()
        assert encoder.layer.calls == 5 and torch.equal(encoder.layer.linear.weight.grad, 2 * first)
        encoder.requires_grad_(False)
        (encoder({"x": x}).pooled * torch.ones(4, requires_grad=True)).sum().backward()
        assert encoder.layer.calls == 6


def test_what_writes_on_its_input_is_refused():
    """Its input would be another one the second time; and an error leaves nothing behind."""
    encoder = VectorEncoder(Block(writes=True), 4)
    with pytest.raises(UserError, match="writes on its input"), recomputing.recomputed([encoder]):
        encoder({"x": torch.ones(3, 4)})
    assert encoder.layer._compiled_call_impl is None


def test_runs_end_alike_and_go_on_exactly(sslt, here, monkeypatch):
    """With a teacher and stochastic depth: with, without, compiled, and interrupted."""
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    sslt(*VIT, "hydra.run.dir=plain")
    sslt(*VIT, AGAIN, "hydra.run.dir=again")
    sslt(*VIT, AGAIN, "trainer.compile=true", "hydra.run.dir=compiled")
    assert same(here / "plain", here / "again") and same(here / "plain", here / "compiled")
    in_two_parts(sslt, [*VIT, AGAIN], 2)
    assert Run(here / "part").config["trainer"]["activation_checkpointing"] and same(here / "again", here / "part")


def test_gradual_unfreezing(sslt, here):
    """Blocks that begin to move within a run, BatchNorm among them, and LoRA's search of a learning rate, whose trials are the same."""
    tune = ["finetune", "+target=digits", "from=scratch", *TINY_IMAGES, "labels_per_class=8", "batch_size=16", "baseline=false"]
    tune += ["trainer.max_steps=10", "adaptation=gradual", "optimizer.lr=auto", "late_fusion=false"]
    sslt(*tune, "hydra.run.dir=plain")
    sslt(*tune, AGAIN, "hydra.run.dir=again")
    assert same(here / "plain", here / "again")


def test_what_cannot_be_is_said(sslt, here, capsys):
    """No blocks, inner steps of MAML, a prefix, and a value that is none: one line each."""
    steps = ["trainer.max_steps=1", "trainer.accelerator=cpu", AGAIN]
    tune = ["finetune", "+target=docs", "from=scratch", *TINY_TEXT, "labels_per_class=8", "baseline=false", *steps]
    cases = [
        (["pretrain", "+task=crops", "encoder.dim=16", "encoder.pairs=64", *steps], "this one has none"),
        (["finetune", "+target=digits", "+episodes=maml", "episodes.way=2", "from=scratch", *TINY_IMAGES, *steps], "MAML's inner steps"),
        ([*tune, "adaptation=prefix", "adaptation.length=2"], "choose adaptation=prompt or lora"),
        (["pretrain", "+task=simclr", "trainer.activation_checkpointing=blocks"], "takes a single bool"),
    ]
    for command, words in cases:
        sslt(*command, code=2)
        said = capsys.readouterr().err
        assert words in said and "Traceback" not in said
