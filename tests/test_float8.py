"""Protects `trainer.precision=fp8-mixed`: what is multiplied in eight bits and what is not, and that a stopped run goes on exactly."""

from __future__ import annotations

import pytest
import torch
from conftest import TINY_IMAGES, TINY_TEXT, TINY_VIT
from safetensors.torch import load_file
from test_resume import in_two_parts, same
from torch import Tensor, nn
from vector_encoder import VectorEncoder

from sslt import compiling, float8
from sslt.errors import UserError
from sslt.runs import Run

FLOAT8 = "trainer.precision=fp8-mixed"
VIT = ["pretrain", "+task=byol", "encoder=vit_patches", *TINY_VIT, "batch_size=32", "trainer.max_steps=4", "online_probe.every_n_epochs=0"]


@pytest.fixture
def emulated(monkeypatch):
    """The numbers of eight bits on any device."""
    pytest.importorskip("torchao")
    monkeypatch.setattr(float8, "EMULATED", True)


def rounded(x: Tensor, kind: torch.dtype) -> Tensor:
    """What eight bits leave of a matrix whose largest value is the largest that they can hold."""
    scale = torch.finfo(kind).max / x.abs().max()
    return (x * scale).to(kind).float() / scale


@pytest.mark.parametrize("rows", [16, 5])
def test_products_are_those_of_rounded_matrices(emulated, rows):
    """Forward in e4m3, what comes back in e5m2; an independent rounding gives the same, to what bfloat16 would change."""
    torch.manual_seed(0)
    layer = nn.Linear(32, 16)
    x, coming = torch.randn(rows, 32, requires_grad=True), torch.randn(rows, 16)
    plain = layer(x).detach()
    with float8.multiplied([VectorEncoder(layer, 16)], "cpu"):
        y = layer(x)
        y.backward(coming)
    a, w, g = (
        rounded(x.detach(), torch.float8_e4m3fn),
        rounded(layer.weight.detach(), torch.float8_e4m3fn),
        rounded(coming, torch.float8_e5m2),
    )
    torch.testing.assert_close(y.detach(), a @ w.t() + layer.bias.detach())
    torch.testing.assert_close(x.grad, g @ w)
    torch.testing.assert_close(layer.weight.grad, g.t() @ a)
    torch.testing.assert_close(layer.bias.grad, coming.sum(0))
    assert 0 < float((y.detach() - plain).norm() / plain.norm()) < 0.1


def test_only_training_is_in_eight_bits(emulated):
    """Measuring is torch's own, other layers and what ends in another size too, and afterwards there is nothing of it."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 10))
    encoder, x = VectorEncoder(block, 10), torch.randn(4, 32)
    expected, names = [m(x) if i == 0 else m(x[:, :16]) for i, m in enumerate(block)], list(encoder.state_dict())
    with float8.multiplied([encoder, encoder], "cpu"):
        assert not torch.equal(block[0](x), expected[0]) and torch.equal(block[1](x[:, :16]), expected[1])
        with torch.inference_mode():
            assert torch.equal(block[0](x), expected[0])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert block[0](x).dtype == torch.bfloat16
        assert list(encoder.state_dict()) == names
    assert torch.equal(block[0](x), expected[0]) and block[0]._compiled_call_impl is None


def test_runs_go_on_exactly(emulated, sslt, here):
    """Student and teacher; near what bfloat16 learns and not the same; the saved encoder is an ordinary one."""
    sslt(*VIT, FLOAT8, "hydra.run.dir=whole")
    in_two_parts(sslt, [*VIT, FLOAT8], 2)
    assert same(here / "whole", here / "part")
    sslt(*VIT, "trainer.precision=bf16-mixed", "hydra.run.dir=wider")
    a, b = (Run(name).metrics["train/loss"] for name in ("whole", "wider"))
    assert a != b and a == pytest.approx(b, rel=0.05)
    one, other = (load_file(here / name / "encoder" / "model.safetensors") for name in ("whole", "wider"))
    assert one.keys() == other.keys() and all(v.dtype == torch.float32 for v in one.values())
    sslt("evaluate", "from=whole", "trainer.accelerator=cpu", "baseline=false", "hydra.run.dir=measured")


def test_it_goes_with_what_else_changes_training(emulated, sslt, here, monkeypatch):
    """Compiled blocks, blocks that are computed twice (the same numbers), texts of many lengths."""
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    torch._dynamo.reset()
    sslt(*VIT, FLOAT8, "hydra.run.dir=plain")
    sslt(*VIT, FLOAT8, "trainer.activation_checkpointing=true", "hydra.run.dir=again")
    assert same(here / "plain", here / "again")
    sslt(*VIT, FLOAT8, "trainer.compile=true", "hydra.run.dir=compiled")
    assert Run("compiled").metrics["train/loss"] == pytest.approx(Run("plain").metrics["train/loss"], rel=0.01)
    sslt("pretrain", "+task=mlm", *TINY_TEXT, "batch_size=6", "trainer.max_steps=3", FLOAT8, "hydra.run.dir=texts")


def test_where_it_cannot_be_it_is_refused(sslt, here, capsys, monkeypatch):
    """Processors, and encoders of convolutions, in one line that says what to choose."""
    sslt(*VIT, FLOAT8, code=2)
    assert "a CPU does not multiply in eight bits: choose bf16-mixed" in capsys.readouterr().err
    monkeypatch.setattr(float8, "EMULATED", True)
    sslt("pretrain", "+task=simclr", *TINY_IMAGES, FLOAT8, "trainer.max_steps=1", code=2)
    assert "is for linear layers in an encoder's blocks: choose bf16-mixed" in capsys.readouterr().err
    with (
        pytest.raises(UserError, match="none of 1 has both its sizes a multiple of 16"),
        float8.multiplied([VectorEncoder(nn.Linear(4, 4), 4)], "cpu"),
    ):
        pass


@pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.get_device_capability() < float8.CAPABILITY, reason="no such GPU")
def test_a_gpu_multiplies_what_is_emulated(monkeypatch):
    pytest.importorskip("torchao")
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 32).cuda(), torch.randn(5, 64, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        with float8.multiplied([VectorEncoder(layer, 32)], "gpu"):
            found = layer(x)
        monkeypatch.setattr(float8, "EMULATED", True)
        with float8.multiplied([VectorEncoder(layer, 32)], "gpu"):
            torch.testing.assert_close(found, layer(x), rtol=0.02, atol=0.02)
