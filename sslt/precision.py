"""Which number format to compute in, where the user leaves the choice to us."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

FLOAT8 = "fp8-mixed"  # bfloat16 but for the layers that `float8.py` sees to


def resolve(precision: str | int, accelerator: str) -> str:
    """Lightning's name for `precision`; "auto" is bfloat16 where the device computes in it, else float32 (float16 on older GPUs)."""
    if str(precision) == FLOAT8:
        return "bf16-mixed"
    if str(precision) != "auto":
        return str(precision)
    if accelerator == "gpu":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    return "bf16-mixed" if _cpu_has_bf16() else "32-true"


def _cpu_has_bf16() -> bool:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        probe = getattr(torch.cpu, name, None)
        if probe is not None and probe():
            return True
    return False


def autocast(device: torch.device, precision: str = "auto") -> Any:
    """The autocast context for inference on `device`."""
    name = resolve(precision, "gpu" if device.type == "cuda" else "cpu")
    if name.startswith("bf16"):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    if name.startswith("16"):
        return torch.autocast(device.type, dtype=torch.float16)
    return _whole_float32() if device.type == "cuda" else contextlib.nullcontext()


@contextlib.contextmanager
def _whole_float32() -> Iterator[None]:
    """Within, a GPU multiplies float32 with all its 24 bits; training takes TF32's 11."""
    before, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = convolutions
