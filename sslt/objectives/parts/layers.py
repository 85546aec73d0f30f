"""Features at a named layer of an encoder, out of the forward that all objectives on a stream share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from sslt.encoders.base import Encoder, evaluating, pool_mean
from sslt.errors import UserError, nearest
from sslt.objectives.base import encode_views


def encode_at(encoder: Encoder, batch: dict, layer: str | None) -> Tensor:
    """Features [V·B, D] of `batch["views"]`: the pooled ones, or the output of the module named `layer`, averaged over positions.

    The forward is that of `encode_views` and stays with the batch as well, provided that the objective which reads a layer
    comes before those which do not: a forward that is over cannot be listened to, and is done again.
    """
    if layer is None:
        return encode_views(encoder, batch).pooled
    known = batch.setdefault("encoded", {})
    if (encoder, layer) not in known:
        known.pop(encoder, None)
        with _output_of(encoder, layer) as caught:
            features = encode_views(encoder, batch)
        inputs = {name: x.flatten(0, 1) for name, x in batch["views"].items()}
        known[encoder, layer] = _average(caught[-1] if caught else None, encoder, inputs, features.mask, layer)
    return known[encoder, layer]


def check_layer(encoder: Encoder, layer: str | None) -> None:
    """Raise `UserError` if the encoder has no module of this name, naming the nearest."""
    names = [n for n, _ in encoder.named_modules() if n]
    if layer is not None and layer not in names:
        near = nearest(layer, names) or f"; its blocks are {', '.join(encoder.block_names())}"
        raise UserError(f"layer={layer}: the encoder has no module of this name{near}")


def layer_width(encoder: Encoder, inputs: dict[str, Tensor], layer: str | None) -> int:
    """D of `encode_at`, found by encoding a few `inputs`; the encoder's modes and statistics stay as they were."""
    check_layer(encoder, layer)
    device = next(encoder.parameters()).device
    with evaluating(encoder):
        return encode_at(encoder, {"views": {k: x.unsqueeze(0).to(device) for k, x in inputs.items()}}, layer).shape[1]


@contextlib.contextmanager
def _output_of(encoder: Encoder, layer: str) -> Iterator[list[Any]]:
    caught: list[Any] = []
    handle = encoder.get_submodule(layer).register_forward_hook(lambda module, inputs, output: caught.append(output))
    try:
        yield caught
    finally:
        handle.remove()


def _average(output: Any, encoder: Encoder, inputs: dict[str, Tensor], mask: Tensor | None, layer: str) -> Tensor:
    """[B, D] of a module's output: [B, D] itself, tokens [B, T, D] or maps [B, D, H, W]; of a tuple, its first."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    if isinstance(output, Tensor):
        if output.dim() == 2:
            return output
        if output.dim() == 3:
            output = encoder.in_rows(output, inputs)
            return pool_mean(output, mask if mask is not None and mask.shape == output.shape[:2] else None)
        if output.dim() == 4:
            return output.mean((2, 3))
    kind = f"a tensor of {output.dim()} axes" if isinstance(output, Tensor) else type(output).__name__
    raise UserError(f"layer={layer} gives {kind}: choose one whose output is vectors, tokens or maps, such as a block")
