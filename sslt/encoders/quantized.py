"""Encoders whose linear maps are kept in 8 or 4 bits: as plain tensors on disk, rebuilt at load as what torchao computes with.

What is written beside the float tensors, for a layer L of N outputs and K inputs:

    int8, int8_dynamic   L.weight.codes int8 [N, K], L.weight.scale float32 [N, 1]                  w = codes · scale
    int4                 L.weight.codes uint8 [N, K / 2], two to a byte, the first in the low bits,
                         L.weight.scale, L.weight.zero bfloat16 [N, K / group]                      w = (codes - 8) · scale + zero

The layout in memory that a kernel wants hangs on the machine, and is never stored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt import stored
from sslt.encoders.files import read_tensors, write_tensors
from sslt.errors import UserError
from sslt.modules import of_kind, replaced
from sslt.stored import shown

FILE = "model.safetensors"
KINDS = ("int8", "int8_dynamic", "int4")
GROUPS = (32, 64, 128)  # inputs that share a scale, which the kernel of 4 bits knows
_PARTS = {"int8": {"codes", "scale"}, "int8_dynamic": {"codes", "scale"}, "int4": {"codes", "scale", "zero"}}


@dataclasses.dataclass(frozen=True)
class Quantization:
    """What of an encoder is kept in fewer bits.

    kind: "int8" (weights alone), "int8_dynamic" (inputs too, a scale for each row, found when they come) or "int4" (weights, computed
    in bfloat16). group: inputs that share a scale, of int4. narrow: int8_dynamic in 7 bits, for CPUs whose sums of 8 overflow.
    codes: of each layer its plain tensors, by what they are.
    """

    kind: str
    group: int | None
    narrow: bool
    codes: Mapping[str, Mapping[str, Tensor]]

    @property
    def entry(self) -> dict[str, Any]:
        """What sslt.json says of it."""
        return {"kind": self.kind, "group": self.group, "narrow": self.narrow, "layers": list(self.codes)}

    def state(self, encoder: nn.Module) -> dict[str, Tensor]:
        """Every tensor of the encoder by name, plain: of its layers the codes."""
        made = {k: v for k, v in encoder.state_dict().items() if k.removesuffix(".weight") not in self.codes}
        return made | {f"{layer}.weight.{part}": x for layer, parts in self.codes.items() for part, x in parts.items()}

    def weight(self, layer: str) -> Tensor:
        """The matrix [N, K] of a layer that its codes stand for, float32."""
        return dequantized(self.codes[layer], self.group)


class PackedLinear(nn.Linear):
    """A linear map whose weight is packed int4: computed in bfloat16, the only format in which torch's kernel is not slow."""

    def forward(self, input: Tensor) -> Tensor:
        out = F.linear(input.to(torch.bfloat16), self.weight).to(input.dtype)
        return out if self.bias is None else out + self.bias


# ------------------------------------------------------------------ which layers, and their codes
def linear_layers(encoder: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The linear maps that can be kept in fewer bits: no part of torch's own attention, which reads their matrices itself, and none whose
    matrix another layer has too."""
    shared = [p.data_ptr() for m in encoder.modules() for p in m._parameters.values() if p is not None]
    own = [name for name, m in encoder.named_modules() if isinstance(m, nn.MultiheadAttention)]
    for name, module in encoder.named_modules():
        if type(module) is nn.Linear and shared.count(module.weight.data_ptr()) == 1 and not any(name.startswith(f"{o}.") for o in own):
            yield name, module


def fits(module: nn.Linear, kind: str, group: int | None) -> bool:
    """Whether the kernel of a kind takes a matrix of this shape."""
    return kind != "int4" or (module.in_features % (group or 1) == 0 and module.out_features % 16 == 0)


def codes_of(weight: Tensor, kind: str, group: int | None, narrow: bool) -> dict[str, Tensor]:
    """The plain tensors of a matrix [N, K]. 8 bits: symmetric, a scale for each output. 4: from the least to the largest of a group."""
    weight = weight.detach().float()
    if kind != "int4":
        from torchao.quantization import Int8Tensor, PerRow

        made = Int8Tensor.from_hp(weight, granularity=PerRow(), reduce_range=narrow)
        return {"codes": made.qdata.contiguous(), "scale": made.scale.contiguous()}
    assert group is not None
    cut = weight.reshape(len(weight), -1, group)
    low, high = cut.amin(2, keepdim=True), cut.amax(2, keepdim=True)
    scale = ((high - low) / 15).clamp(min=1e-6).to(torch.bfloat16)
    zero = (low + 8 * scale.float()).to(torch.bfloat16)
    codes = ((cut - zero.float()) / scale.float() + 8).round().clamp(0, 15).to(torch.uint8).reshape(weight.shape)
    return {"codes": codes[:, ::2] | codes[:, 1::2] << 4, "scale": scale.squeeze(2), "zero": zero.squeeze(2)}


def dequantized(parts: Mapping[str, Tensor], group: int | None) -> Tensor:
    """The matrix [N, K] that codes stand for, float32."""
    if "zero" not in parts:
        return parts["codes"].float() * parts["scale"]
    assert group is not None
    codes = _unpacked(parts["codes"])
    wide = lambda x: x.float().repeat_interleave(group, 1)  # noqa: E731
    return (codes.float() - 8) * wide(parts["scale"]) + wide(parts["zero"])


def _unpacked(codes: Tensor) -> Tensor:
    return torch.stack([codes & 15, codes >> 4], 2).flatten(1)


# ------------------------------------------------------------------ in an encoder
def put(encoder: Any, found: Quantization) -> None:
    """Have the layers computed from their codes from now on; their float matrices are gone, and nothing of it can be trained."""
    packed: set[nn.Module] = set()
    for name, parts in found.codes.items():
        module = encoder.get_submodule(name)
        module.weight = nn.Parameter(computed(parts, found), requires_grad=False)
        if found.kind == "int4":
            packed.add(module)
    replaced(encoder, lambda m: of_kind(m, PackedLinear) if m in packed else m)
    encoder.requires_grad_(False)
    encoder.quantization = found


def computed(parts: Mapping[str, Tensor], found: Quantization) -> Tensor:
    """The weight of a linear map as torchao computes with it."""
    if found.kind == "int4":
        return _packed(parts, found.group)
    from torchao.quantization import Int8Tensor, PerRow
    from torchao.quantization.quantize_.workflows import QuantizeTensorToInt8Kwargs

    codes, scale = parts["codes"], parts["scale"]
    inputs = QuantizeTensorToInt8Kwargs(granularity=PerRow(), reduce_range=found.narrow) if found.kind == "int8_dynamic" else None
    return Int8Tensor(
        codes, scale, [1, codes.shape[1]], torch.float32, zero_point=torch.zeros_like(scale, dtype=torch.int8), act_quant_kwargs=inputs,
        reduce_range=found.narrow,
    )  # fmt: skip


def _packed(parts: Mapping[str, Tensor], group: int | None) -> Tensor:
    if not hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu"):
        raise UserError(f"4 bits need torch 2.6 or newer, which has a kernel for them; this is {torch.__version__}: choose method=int8")
    from torchao.prototype.quantization.int4.int4_opaque_tensor import Int4OpaqueTensor

    codes = _unpacked(parts["codes"])
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 1)
    sizes = torch.stack([parts["scale"], parts["zero"]], 2).transpose(0, 1).contiguous()
    return Int4OpaqueTensor(packed, sizes, [1, group], codes.shape)


# ------------------------------------------------------------------ in a folder
def save(encoder: nn.Module, found: Quantization, folder: Path) -> None:
    """Write the encoder's tensors, plain; a matrix that has two names is kept under the first."""
    state = found.state(encoder)
    once = {v.data_ptr(): k for k, v in reversed(state.items())}
    write_tensors(folder / FILE, {k: v for k, v in state.items() if not v.numel() or once[v.data_ptr()] == k})


def load(encoder: Any, folder: Path, entry: dict[str, Any], file: Path) -> None:
    """Fill an encoder of the same architecture with what `save` wrote. Raises `UserError` where `entry` or a tensor is not so."""
    kind, layers = stored.value(entry, "kind", str, file), stored.value(entry, "layers", list, file)
    group, narrow = entry.get("group"), stored.value(entry, "narrow", bool, file)
    if odd := entry.keys() - {"kind", "group", "narrow", "layers"}:
        raise UserError(f"{shown(file)} is damaged: nothing reads quantization.{min(odd)}")
    if kind not in KINDS or group not in (GROUPS if kind == "int4" else (None,)):
        raise UserError(f"{shown(file)} is damaged: quantization.kind={kind!r} with group={group!r} is none that sslt writes")
    linear = dict(linear_layers(encoder))
    if not layers or len(set(map(str, layers))) < len(layers) or not all(isinstance(x, str) and x in linear for x in layers):
        raise UserError(f"{shown(file)} is damaged: quantization.layers are not linear maps of this network")
    tensors = read_tensors(folder / FILE)
    codes = {layer: {part: tensors.pop(f"{layer}.weight.{part}", None) for part in sorted(_PARTS[kind])} for layer in layers}
    for layer, parts in codes.items():
        if not _fitting(parts, linear[layer], kind, group):
            raise UserError(f"{shown(folder)}: the weights do not fit the config beside them ({layer})")
    try:
        missing, unexpected = encoder.load_state_dict(tensors, strict=False)
    except RuntimeError as e:
        raise UserError(f"{shown(folder)}: the weights do not fit the config beside them ({stored.first_line(e)})") from e
    own = encoder.state_dict()
    filled = {own[name].data_ptr() for name in tensors if name in own} | {own[f"{layer}.weight"].data_ptr() for layer in layers}
    if wrong := [*(k for k in missing if own[k].numel() and own[k].data_ptr() not in filled), *unexpected]:
        raise UserError(f"{shown(folder)}: the weights do not fit the config beside them ({wrong[0]})")
    put(encoder, Quantization(kind, group, narrow, codes))  # type: ignore[arg-type]


def _fitting(parts: Mapping[str, Tensor | None], module: nn.Linear, kind: str, group: int | None) -> bool:
    """Whether plain tensors are those of this layer."""
    n, k = module.weight.shape
    if not fits(module, kind, group):
        return False
    wanted: dict[str, tuple[tuple[int, int], torch.dtype]] = {"codes": ((n, k), torch.int8), "scale": ((n, 1), torch.float32)}
    if kind == "int4":
        each = (n, k // (group or 1))
        wanted = {"codes": ((n, k // 2), torch.uint8), "scale": (each, torch.bfloat16), "zero": (each, torch.bfloat16)}
    found = {part: None if x is None else (tuple(x.shape), x.dtype) for part, x in parts.items()}
    return found == wanted and all(bool(x.float().isfinite().all()) for x in parts.values() if x is not None)
