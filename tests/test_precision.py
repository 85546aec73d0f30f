"""Protects the number format that is computed in: what "auto" is on each device, and that measuring changes nothing for others."""

from __future__ import annotations

import pytest
import torch

from sslt import precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(("has", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_on_a_processor(monkeypatch, has, expected):
    """bfloat16 where it computes in it, by either of two kinds of instructions; a format that is given stays."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has, raising=False)
    assert precision.resolve("auto", "cpu") == expected
    assert precision.resolve("32-true", "cpu") == "32-true" and precision.resolve(32, "cpu") == "32"
    with precision.autocast(CPU, "auto"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (torch.bfloat16 if has else torch.float32)


@pytest.mark.parametrize(("has", "expected"), [(True, "bf16-mixed"), (False, "16-mixed")])
def test_auto_on_a_gpu(monkeypatch, has, expected):
    """float16 where bfloat16 would be emulated."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has or including_emulation)
    assert precision.resolve("auto", "gpu") == expected


def test_formats_of_a_context():
    """Each format's own type of products; float32 is left alone on a processor."""
    for name, dtype in (("bf16-mixed", torch.bfloat16), ("16-mixed", torch.float16), ("32-true", torch.float32)):
        with precision.autocast(CPU, name):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_float32_is_whole_on_a_gpu_and_as_it_was_afterwards():
    """All bits within, even when something fails there; the settings of training after."""
    before, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        with pytest.raises(ZeroDivisionError), precision.autocast(torch.device("cuda"), "32-true"):
            assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
            raise ZeroDivisionError
        assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = convolutions
