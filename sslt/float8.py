"""`trainer.precision=fp8-mixed`: products of matrices in eight bits while a model trains (Micikevicius et al., 2022), by torchao.

Every `nn.Linear` of an encoder's blocks casts its input and weight to e4m3 and the gradient that comes to e5m2, each with one scale, its
largest value of now; all else is bfloat16, weights and moments float32. Measuring, probes and what is saved know nothing of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sslt.encoders.base import Encoder, blocks_of
from sslt.errors import UserError
from sslt.modules import called
from sslt.precision import FLOAT8

EMULATED = False  # in float32, for devices that have no such products: slow, and for tests alone
CAPABILITY = (8, 9)  # of an NVIDIA GPU (Ada, Hopper, Blackwell)
_MULTIPLE = 16  # of what is multiplied in eight bits, along each side


@contextlib.contextmanager
def multiplied(encoders: Iterable[Encoder], accelerator: str) -> Iterator[None]:
    """Within, linear layers of the blocks of `encoders` compute in eight bits. accelerator: "cpu" or "gpu".

    Raises `UserError` where the device cannot, or no encoder has such layers.
    """
    if not EMULATED and (accelerator != "gpu" or torch.cuda.get_device_capability() < CAPABILITY):
        where = "a CPU" if accelerator == "cpu" else torch.cuda.get_device_name()
        raise UserError(f"trainer.precision={FLOAT8}: {where} does not multiply in eight bits: choose bf16-mixed, or leave it out")
    blocks = blocks_of(encoders)
    linear = [m for block in blocks for m in block.modules() if type(m) is nn.Linear]
    fitting = [m for m in linear if m.in_features % _MULTIPLE == m.out_features % _MULTIPLE == 0]
    if not fitting:
        sizes = f", and none of {len(linear)} has both its sizes a multiple of {_MULTIPLE}" if linear else ""
        raise UserError(f"trainer.precision={FLOAT8} is for linear layers in an encoder's blocks{sizes}: choose bf16-mixed for this one")
    with called(fitting, _in_eight_bits()):
        yield


def _in_eight_bits() -> Callable[[nn.Module, Callable[..., Any]], Callable[..., Any]]:
    from torchao.float8.config import Float8LinearConfig
    from torchao.float8.float8_linear import Float8Linear, matmul_with_hp_or_float8_args

    # The gradient of a weight multiplies along rows, which are as many as a batch has tokens: filled up where that is no multiple.
    configs = [Float8LinearConfig(emulate=EMULATED, pad_inner_dim=padded) for padded in (False, True)]
    products = [Float8Linear(_MULTIPLE, _MULTIPLE, bias=False, config=c, device="meta").linear_mm_config for c in configs]

    def other(linear: nn.Module, plain: Callable[..., Any]) -> Callable[..., Any]:
        assert isinstance(linear, nn.Linear)

        def call(x: Tensor) -> Tensor:
            if torch.is_inference_mode_enabled() or not x.numel():
                return plain(x)
            kind = x.device.type
            if torch.is_autocast_enabled(kind):
                x = x.to(torch.get_autocast_dtype(kind))
            padded = x.shape[:-1].numel() % _MULTIPLE > 0
            with torch.autocast(kind, enabled=False):
                out = matmul_with_hp_or_float8_args.apply(x, linear.weight.t(), products[padded], configs[padded])
                return out if linear.bias is None else out + linear.bias.to(out.dtype)

        return call

    return other
