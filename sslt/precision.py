"""Which number format to compute in, where the user leaves the choice to us."""

from __future__ import annotations

import contextlib
from typing import Any

import torch


def resolve(precision: str | int, accelerator: str) -> str:
    """Lightning's name for `precision`; "auto" is bfloat16 where the device computes in it, else float32 (float16 on older GPUs)."""
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
    return contextlib.nullcontext()
