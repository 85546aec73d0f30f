"""Which number format to compute in, where the user leaves the choice to us."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LONGEST = 256  # tokens up to which attention is faster in float32 on a CPU (1.2 to 5 times, forward and backward; slower at 512)


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


@contextlib.contextmanager
def short_attention_in_float32() -> Iterator[None]:
    """Within, bfloat16 autocast on a CPU leaves attention over at most `LONGEST` tokens in float32; outside it is torch's own.

    torch's backward pass of attention in bfloat16 is written for long rows: on patches of small images it takes half of a step.
    """
    kernels = torch.library.Library("aten", "IMPL")
    kernels.impl("scaled_dot_product_attention", _attention, "AutocastCPU")
    try:
        yield
    finally:
        kernels._destroy()  # else its operator stays ours until the garbage is collected


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **rest: Any,
) -> Tensor:
    kind = torch.float32 if k.shape[-2] <= LONGEST else torch.get_autocast_dtype("cpu")
    with torch.autocast("cpu", enabled=False):
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(kind)
        args = (q.to(kind), k.to(kind), v.to(kind), attn_mask, dropout_p, is_causal)
        return F.scaled_dot_product_attention(*args, **rest).to(torch.get_autocast_dtype("cpu"))
