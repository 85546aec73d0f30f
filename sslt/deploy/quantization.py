"""Linear maps in 8 or 4 bits (torchao), with the error that this makes in each of them."""

from __future__ import annotations

import csv
import fnmatch
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sslt.data.base import Samples
from sslt.deploy.method import Method
from sslt.encoders import quantized
from sslt.encoders.base import Encoder, evaluating
from sslt.encoders.quantized import GROUPS, KINDS, Quantization, codes_of, computed, linear_layers
from sslt.errors import UserError, nearest
from sslt.ranges import Natural
from sslt.runs import Run
from sslt.targets.base import Target

log = logging.getLogger("sslt")
LOOKED_AT = 64  # training samples on which the error of layers is measured
NAMED = 3  # of the worst layers, at the end of a run


class LayerError(NamedTuple):
    """How far the output of a layer moves, relative to its size (Frobenius norms), with the inputs that it had before."""

    layer: str
    outputs: int
    inputs: int
    error: float


class Quantize(Method):
    """The linear maps of the encoder in fewer bits; all else, the head and what stands beside it stay in float32.

    kind: int8 (weights alone; one scale for each output), int8_dynamic (inputs too, as they come) or int4 (weights alone, one scale for
    each `group` of inputs; computed in bfloat16 on a CPU). keep: patterns of names of layers that stay in float. keep_blocks: so
    many of the first blocks do, too.
    """

    reads_train = True

    def __init__(self, kind: str, group: int | None, keep: list[str], keep_blocks: Natural):
        super().__init__()
        if kind not in KINDS:
            raise UserError(f"method.kind={kind}: give {', '.join(KINDS)}{nearest(kind, KINDS)}")
        if (kind == "int4" and group not in GROUPS) or (kind != "int4" and group is not None):
            raise UserError(f"method.group={group}: of int4 give {', '.join(map(str, GROUPS))}, of others null")
        self.kind, self.group, self.keep, self.keep_blocks = kind, group, list(keep), keep_blocks

    def check(self, encoder: Encoder, target: Target) -> None:
        import torchao  # noqa: F401  named by the error where it is missing

        self.layers(encoder)

    def layers(self, encoder: Encoder) -> dict[str, nn.Linear]:
        """Those that are quantized, by name. Raises `UserError` where there are none."""
        linear, group_of = dict(linear_layers(encoder)), encoder.group_of()
        for pattern in self.keep:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in linear):
                raise UserError(f"method.keep={pattern} names no linear layer{nearest(pattern, linear) or '; this encoder has none'}")
        unread = {name.rpartition(".")[0] for name in encoder.unread()}
        found = {
            name: module
            for name, module in linear.items()
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in self.keep)
            and group_of[name] > (self.keep_blocks if encoder.block_names() and self.keep_blocks else -1)
            and name not in unread
            and quantized.fits(module, self.kind, self.group)
        }
        if not found:
            name = encoder.args.get("name") or encoder.args.get("model_type") or type(encoder).__name__
            why = "has no linear layers" if not linear else "keeps all its linear layers in float, by these settings or their sizes"
            others = "method=half, prune or distill, and for convolutions method=onnx_int8_static"
            raise UserError(f"method={self.kind} is for linear layers, and {name} {why}: choose {others}")
        return found

    def apply(
        self, encoder: Encoder, target: Target, train: Samples | None, val: Samples | None, cfg: Any, run: Run
    ) -> tuple[Encoder, Target]:
        if train is None or not len(train):
            raise UserError(f"method={self.kind} measures its error on training samples, and there are none")
        layers = self.layers(encoder)
        narrow = self.kind == "int8_dynamic" and _sums_overflow()
        codes = {name: codes_of(module.weight, self.kind, self.group, narrow) for name, module in layers.items()}
        found = Quantization(self.kind, self.group, narrow, codes)
        errors = layer_errors(encoder, found, some_batch(train, int(cfg.seed)))
        if run.is_main:
            write_layers(run / "layers.csv", errors)
        before = sum(module.weight.numel() * 4 for module in layers.values())
        after = sum(x.nbytes for parts in codes.values() for x in parts.values())
        quantized.put(encoder, found)
        self.found = {"quantized/layers": len(layers), "quantized/bytes_before": before, "quantized/bytes": after}
        self.found |= {"quantized/worst_error": errors[0].error} if errors else {}
        self.remarks.append(f"{len(layers)} linear layers in {self.kind}: {before:,} → {after:,} bytes, ÷ {before / after:.2f}")
        if errors:
            named = ", ".join(f"{e.layer} {100 * e.error:.2g} %" for e in errors[:NAMED])
            self.remarks.append(f"largest relative errors of layers' outputs: {named} (all: layers.csv; method.keep= leaves some in float)")
        return encoder, target


def _sums_overflow() -> bool:
    """Whether this CPU adds products of 8 bits in 16, which overflow."""
    from torchao.utils import should_reduce_range

    return bool(should_reduce_range(torch.device("cpu")))


def some_batch(samples: Samples, seed: int) -> dict[str, Tensor]:
    """A few of the samples, drawn by the seed."""
    index = np.sort(np.random.default_rng([seed, 0x0B1]).permutation(len(samples))[:LOOKED_AT])
    return samples.batch(index)


def layer_errors(encoder: Encoder, found: Quantization, batch: Mapping[str, Tensor]) -> list[LayerError]:
    """The error of each layer of an encoder that is still in float, on its own inputs in a pass over `batch`; the worst first."""
    sums: dict[str, list[float]] = {}
    hooks = [encoder.get_submodule(name).register_forward_hook(_compare(name, found, sums)) for name in found.codes]
    try:
        with evaluating(encoder):
            encoder(encoder.inputs(dict(batch)))
    finally:
        for hook in hooks:
            hook.remove()
    rows = []
    for name, (off, size) in sums.items():
        outputs, inputs = found.weight(name).shape
        rows.append(LayerError(name, outputs, inputs, (off / max(size, 1e-30)) ** 0.5))
    return sorted(rows, key=lambda row: -row.error)


def _compare(name: str, found: Quantization, sums: dict[str, list[float]]) -> Any:
    weight = computed(found.codes[name], found)

    def hook(module: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> None:
        x = args[0].to(torch.bfloat16) if found.kind == "int4" else args[0]
        made = nn.functional.linear(x, weight).to(output.dtype)
        if module.bias is not None:
            made = made + module.bias
        old = sums.get(name, [0.0, 0.0])
        sums[name] = [old[0] + float((made - output).square().sum()), old[1] + float(output.square().sum())]

    return hook


def write_layers(path: Path, errors: Sequence[LayerError]) -> None:
    """A line for each layer, the worst first."""
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(("layer", "outputs", "inputs", "relative_error"))
        writer.writerows((e.layer, e.outputs, e.inputs, f"{e.error:.6g}") for e in errors)
