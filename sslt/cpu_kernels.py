"""What torch computes slowly in bfloat16 on a CPU, computed another way while a model trains. The mathematics is torch's.

Measured on a Xeon with AMX, torch 2.15 (milliseconds on one core, torch's → here):

- attention over rows of at most `LONGEST` tokens, whose backward pass is written for long ones: on patches of small images it took half of
  a step;
- convolutions of small maps. Gradient of the weight, 64 images: 512 channels of 4×4, 77 → 15; 512 of 2×2, 63 → 2; 1×1 with stride 2 to 512
  of 4×4, 6.4 → 0.5. They are products of matrices here, over patches copied out of the map. On an EPYC with AVX-512 for bfloat16 and no AMX
  gradients of weights gain, 128 images: 256 channels of 4×4 with stride 2, 10.4 → 3.8; of 1×1, 2.9 → 0.7.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger("sslt")
LONGEST = 256  # tokens up to which attention is faster in float32 (1.2 to 5 times, forward and backward; slower at 512)
SMALL = 16  # positions of a convolution's output up to which a product is faster, whatever the channels

_FORWARD = torch.ops.aten.mkldnn_convolution.default
_BACKWARD = torch.ops.aten.convolution_backward.default
_OWN = torch._C.DispatchKey.CompositeExplicitAutograd  # torch's kernels of both


@contextlib.contextmanager
def replaced(accelerator: str, number_format: str, wanted: bool = True) -> Iterator[None]:
    """Within, what is slow for `number_format` on `accelerator` ("cpu", "gpu") is computed another way; outside it is torch's own.

    wanted: the setting `fast_kernels`. Operators are replaced through private parts of torch: where a version of it has them no more, all
    stay torch's own, and a warning says so.
    """
    with contextlib.ExitStack() as stack:
        if wanted and accelerator == "cpu" and number_format.startswith("bf16"):
            try:
                stack.enter_context(short_attention_in_float32())
                if torch.cpu._is_amx_tile_supported():
                    stack.enter_context(small_convolutions_as_products(with_amx))
                elif torch.cpu._is_avx512_bf16_supported():
                    stack.enter_context(small_convolutions_as_products(with_avx512))
            except (AttributeError, RuntimeError, TypeError) as e:
                stack.close()
                log.warning("torch %s computes all itself, perhaps slower: %s (fast_kernels=false leaves this out)", torch.__version__, e)
        yield


@contextlib.contextmanager
def _kernels(key: str, **functions: Any) -> Iterator[None]:
    """Within, `functions` are the kernels of torch's operators of these names for dispatch key `key`."""
    library = torch.library.Library("aten", "IMPL")
    for name, function in functions.items():
        library.impl(name, function, key)
    try:
        yield
    finally:
        library._destroy()  # else the operators stay ours until the garbage is collected


# ------------------------------------------------------------------ attention
def short_attention_in_float32() -> contextlib.AbstractContextManager[None]:
    """Within, bfloat16 autocast leaves attention without dropout over at most `LONGEST` tokens in float32."""
    return _kernels("AutocastCPU", scaled_dot_product_attention=_attention)


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **rest: Any,
) -> Tensor:
    short = k.shape[-2] <= LONGEST and not dropout_p  # with dropout torch has no kernel of its own, and nothing is gained
    kind = torch.float32 if short else torch.get_autocast_dtype("cpu")
    with torch.autocast("cpu", enabled=False):
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(kind)
        args = (q.to(kind), k.to(kind), v.to(kind), attn_mask, dropout_p, is_causal)
        return F.scaled_dot_product_attention(*args, **rest).to(torch.get_autocast_dtype("cpu"))


# ------------------------------------------------------------------ convolution
@dataclasses.dataclass(frozen=True)
class Faster:
    """Which parts of a convolution are faster as products: what it gives, the gradient of its input, that of its weight."""

    output: bool = False
    of_input: bool = False
    of_weight: bool = False


Rule = Callable[[int, int, int, int, int], Faster]  # by positions of the output, side of the kernel, stride, channels in and out


def with_amx(positions: int, kernel: int, stride: int, channels: int, out: int) -> Faster:
    """On a processor with AMX."""
    if kernel == 1:
        return Faster(of_input=stride > 1, of_weight=positions <= 16 * SMALL)
    small = positions <= SMALL
    return Faster(
        output=small and out >= 512,
        of_input=small and stride == 1 and min(channels, out) >= 512,
        of_weight=small or (positions <= 4 * SMALL and out >= 256),
    )


def with_avx512(positions: int, kernel: int, stride: int, channels: int, out: int) -> Faster:
    """On one with AVX-512 for bfloat16 and no AMX, whose other convolutions are near the speed of a product."""
    return Faster(of_weight=positions <= SMALL // 4 or (stride > 1 and positions <= SMALL))


def small_convolutions_as_products(rule: Rule = with_amx) -> contextlib.AbstractContextManager[None]:
    """Within, bfloat16 convolutions of small maps are products of matrices, forward and backward, where `rule` has that as faster.

    The kernels stand below autograd, so that second derivatives and torch.func work as ever.
    """
    return _kernels("CPU", mkldnn_convolution=partial(_forward, rule), convolution_backward=partial(_backward, rule))


def _forward(
    rule: Rule, x: Tensor, w: Tensor, bias: Tensor | None, padding: list[int], stride: list[int], dilation: list[int], groups: int
) -> Tensor:
    plain = bias is None and _plain(x, w, padding, stride, dilation, groups)
    if plain and rule(_out(x, w, padding, stride) ** 2, w.shape[2], stride[0], w.shape[1], w.shape[0]).output:
        return product(x, w, padding[0], stride[0])
    return _FORWARD._op_dk(_OWN, x, w, bias, padding, stride, dilation, groups)


def _backward(
    rule: Rule,
    g: Tensor,
    x: Tensor,
    w: Tensor,
    bias_sizes: list[int] | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    mask: list[bool],
) -> tuple[Tensor | None, ...]:
    faster = Faster()
    if not transposed and _plain(x, w, padding, stride, dilation, groups):
        faster = rule(g.shape[2] * g.shape[3], w.shape[2], stride[0], w.shape[1], w.shape[0])
    of_input, of_weight = faster.of_input and mask[0], faster.of_weight and mask[1]
    rest = [mask[0] and not of_input, mask[1] and not of_weight, mask[2]]
    found: list[Tensor | None] = [None, None, None]
    if any(rest):
        args = (bias_sizes, stride, padding, dilation, transposed, output_padding, groups, rest)
        found = list(_BACKWARD._op_dk(_OWN, g, x, w, *args))
    if of_input:
        found[0] = input_gradient(g, x.shape, w, padding[0], stride[0])
    if of_weight:
        found[1] = weight_gradient(g, x, w.shape[2], padding[0], stride[0])
    return tuple(found)


def _plain(x: Tensor, w: Tensor, padding: list[int], stride: list[int], dilation: list[int], groups: int) -> bool:
    """Whether it is a square bfloat16 convolution of square maps, channels last, without holes and groups."""
    square = x.dim() == 4 and x.shape[2] == x.shape[3] and w.shape[2] == w.shape[3] and len({*padding}) == len({*stride}) == 1
    kind = x.dtype == w.dtype == torch.bfloat16 and x.is_contiguous(memory_format=torch.channels_last)
    return square and kind and groups == 1 and set(dilation) == {1} and padding[0] < w.shape[2]


def _out(x: Tensor, w: Tensor, padding: list[int], stride: list[int]) -> int:
    return (x.shape[2] + 2 * padding[0] - w.shape[2]) // stride[0] + 1


def product(x: Tensor, w: Tensor, padding: int, stride: int) -> Tensor:
    """The convolution of (N, C, H, W) with (D, C, k, k) as one product."""
    patches, (n, height, width) = _patches(x, w.shape[2], padding, stride)
    return (patches @ _rows(w).flatten(1).t()).view(n, height, width, -1).permute(0, 3, 1, 2)


def weight_gradient(g: Tensor, x: Tensor, kernel: int, padding: int, stride: int) -> Tensor:
    """The gradient (D, C, k, k) of the weight, from that of the output (N, D, H', W') and the input (N, C, H, W)."""
    patches, _ = _patches(x, kernel, padding, stride)
    flat = g.permute(0, 2, 3, 1).reshape(-1, g.shape[1])
    return (flat.t() @ patches).view(g.shape[1], kernel, kernel, x.shape[1]).permute(0, 3, 1, 2)


def input_gradient(g: Tensor, shape: torch.Size, w: Tensor, padding: int, stride: int) -> Tensor:
    """The gradient of the input, whose shape is (N, C, H, W): of a 1×1 convolution of any stride, or of one of stride 1."""
    if w.shape[2] > 1:  # stride 1: a convolution of the gradient with the weight, turned around
        turned = _rows(w).flip(1).permute(1, 0, 2).reshape(-1, w.shape[1])
        patches, (n, height, width) = _patches(g, w.shape[2], w.shape[2] - 1 - padding, 1)
        return (patches @ turned).view(n, height, width, -1).permute(0, 3, 1, 2)
    read = g.permute(0, 2, 3, 1) @ w.flatten(1)
    whole = read.new_zeros((shape[0], shape[2], shape[3], shape[1]))
    whole[:, ::stride, ::stride] = read
    return whole.permute(0, 3, 1, 2)


def _rows(w: Tensor) -> Tensor:
    """(D, C, k, k) → (D, k·k, C)."""
    return w.permute(0, 2, 3, 1).flatten(1, 2)


def _patches(x: Tensor, kernel: int, padding: int, stride: int) -> tuple[Tensor, tuple[int, int, int]]:
    """What each position of the output sees of (N, C, H, W): (N·H'·W', k·k·C); and (N, H', W')."""
    x = x.permute(0, 2, 3, 1)
    x = F.pad(x, (0, 0, padding, padding, padding, padding)).contiguous() if kernel > 1 else x
    n, _, _, channels = x.shape
    height, width = ((side - kernel) // stride + 1 for side in x.shape[1:3])
    if kernel == 1:
        return x[:, ::stride, ::stride].reshape(-1, channels), (n, height, width)
    image, row, pixel, _ = x.stride()
    seen = x.as_strided((n, height, width, kernel, kernel * channels), (image, stride * row, stride * pixel, row, 1))
    return seen.reshape(-1, kernel * kernel * channels), (n, height, width)
