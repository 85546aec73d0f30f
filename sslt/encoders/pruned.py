"""Encoders whose layers are narrower than their `args` say: what is written down of that, and how it is built again.

`args` describe the parent's architecture. Of a pruned one `sslt.json` has beside them, as plain data, the shape of every tensor that
differs (`shapes`), how many heads attentions have left (`heads`), and the width of its features (`dim`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslt.encoders.base import Encoder, evaluating
from sslt.errors import UserError
from sslt.stored import shown

# What an attention calls its number of heads, the width of one, and all of them together
HEADS = (
    ("num_heads", "head_dim", ("attn_dim", "split_size")),
    ("num_attention_heads", "attention_head_size", ("all_head_size",)),
    ("n_heads", "attention_head_size", ()),
    ("n_heads", "key_value_proj_dim", ("inner_dim",)),
)
POSITIONS = "relative_attention_bias"  # T5's table of what to add for each distance [buckets, heads]
_KEYS = {"shapes", "heads", "dim"}


def heads_of(module: nn.Module) -> int | None:
    """How many heads an attention has; None of any other module, and of one that does not say how wide they are."""
    found = _heads(module)
    return None if found is None else int(getattr(module, found[0]))


def _heads(module: nn.Module) -> tuple[str, str, tuple[str, ...]] | None:
    return next((names for names in HEADS if isinstance(getattr(module, names[0], None), int) and hasattr(module, names[1])), None)


def set_heads(module: nn.Module, n: int) -> None:
    """Tell an attention that it has `n` heads of the same width as before; one that counts them by its matrices knows."""
    found = _heads(module)
    if found is not None:
        name, width, together = found
        setattr(module, name, n)
        for other in together:
            if hasattr(module, other):
                setattr(module, other, n * getattr(module, width))


def describe(encoder: Encoder) -> dict[str, Any] | None:
    """How an encoder differs from what its class builds by its `args`; None where it does not."""
    with torch.random.fork_rng(devices=[]):
        parent = type(encoder)(encoder.processor, **encoder.args)
    theirs, ours = parent.state_dict(), encoder.state_dict()
    assert theirs.keys() == ours.keys(), "its layers are others than those of its args"
    shapes = {name: list(x.shape) for name, x in ours.items() if x.shape != theirs[name].shape}
    attentions = {name: heads_of(m) for name, m in encoder.named_modules()}
    heads = {name: n for name, n in attentions.items() if n is not None and n != heads_of(parent.get_submodule(name))}
    if not shapes and not heads:
        return None
    return {"shapes": shapes, "heads": heads, "dim": encoder.dim}


def resize(encoder: Encoder, about: dict[str, Any], file: Path) -> None:
    """Make an encoder as its parent is what `describe` said in `file`; its weights are then parts of the parent's.

    Raises `UserError` where that does not fit the parent.
    """
    shapes, heads, dim = _read(about, file)
    for name, shape in shapes.items():
        _narrow(encoder, name, shape, file)
    for owner in dict.fromkeys(name.rpartition(".")[0] for name in shapes):
        refit(encoder.get_submodule(owner))
    modules = dict(encoder.named_modules())
    for name, n in heads.items():
        own = heads_of(modules[name]) if name in modules else None
        if own is None or not 1 <= n <= own:
            raise _damaged(file, f"'{name[:80]}' has no {n} heads")
        set_heads(modules[name], n)
    set_width(encoder, dim)
    encoder.pruned = about
    try:
        width = _try(encoder)
    except (RuntimeError, ValueError, IndexError) as e:
        raise _damaged(file, "its layers do not fit each other") from e
    if width != dim:
        raise _damaged(file, f"its features are {width} wide, not {dim}")


def set_width(encoder: Encoder, dim: int) -> None:
    """Say how wide the features of an encoder are, wherever that is said; what was known of its maps is forgotten."""
    model = getattr(encoder, "model", None)
    for name in ("num_features", "head_hidden_size"):  # the former is that of the last maps, where these are not what is pooled
        if getattr(model, name, None) == encoder.dim:
            setattr(model, name, dim)
    encoder.dim = dim
    for name in ("grid", "pyramid_shapes"):
        encoder.__dict__.pop(name, None)


def put(module: nn.Module, name: str, value: Tensor) -> None:
    """Give a module another tensor in the place of its parameter or buffer `name`, laid out in memory as that was."""
    before = getattr(module, name)
    last = before.dim() == 4 and before.is_contiguous(memory_format=torch.channels_last)
    value = value.detach().clone(memory_format=torch.channels_last if last else torch.contiguous_format)
    if name in module._parameters:
        own = module._parameters[name]
        module._parameters[name] = nn.Parameter(value, requires_grad=own is None or own.requires_grad)
    else:
        module._buffers[name] = value


def refit(module: nn.Module) -> None:
    """Set what a layer says of its widths to what its tensors have."""
    weight: Any = getattr(module, "weight", None)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.Conv2d):
        if module.groups == module.out_channels and module.groups > 1:  # depthwise
            module.groups = weight.shape[0]
        module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.num_features = len(module.running_mean if weight is None else weight)  # type: ignore[arg-type]
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = weight.shape[1]
    elif is_conv1d(module):
        module.nf, module.nx = weight.shape[1], weight.shape[0]  # type: ignore[assignment]


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is transformers' linear map of GPT-2, whose matrix is [in, out]."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_layer(module: nn.Module) -> bool:
    """Whether `refit` knows such a layer."""
    return isinstance(module, (nn.Linear, nn.Conv2d, nn.modules.batchnorm._BatchNorm)) or is_conv1d(module)


def _read(about: dict[str, Any], file: Path) -> tuple[dict[str, list[int]], dict[str, int], int]:
    def whole(x: Any) -> bool:
        return isinstance(x, int) and not isinstance(x, bool) and x >= 1

    shapes, heads = about.get("shapes"), about.get("heads")
    if set(about) != _KEYS or not isinstance(shapes, dict) or not isinstance(heads, dict) or not whole(about["dim"]):
        raise _damaged(file, "it holds shapes, heads and dim")
    if not all(isinstance(s, list) and s and all(map(whole, s)) for s in shapes.values()) or not all(map(whole, heads.values())):
        raise _damaged(file, "shapes are lists of whole numbers from 1, heads such numbers")
    return shapes, heads, about["dim"]


def _narrow(encoder: Encoder, name: str, shape: list[int], file: Path) -> None:
    own = encoder.state_dict().get(name)
    fits = own is not None and own.dim() == len(shape) and all(n <= m for n, m in zip(shape, own.shape, strict=True))
    owner = name.rpartition(".")[0]
    positions = owner.endswith(f".{POSITIONS}") and own is not None and len(shape) == 2 and shape[0] == own.shape[0]
    if own is None or not fits or not (positions or is_layer(encoder.get_submodule(owner))):
        raise _damaged(file, f"'{name[:80]}' is no tensor of this architecture that can have the shape {shape}")
    put(encoder.get_submodule(owner), name.rpartition(".")[2], own[tuple(slice(n) for n in shape)])


def _try(encoder: Encoder) -> int:
    """The width of the features of one sample."""
    p = encoder.processor
    with evaluating(encoder), torch.random.fork_rng(devices=[]):
        if encoder.modality == "image":
            return encoder({"image": torch.zeros(1, p.channels, p.size, p.size)}).pooled.shape[1]
        given = {"tokens": torch.zeros(1, 4, dtype=torch.long), "mask": torch.ones(1, 4, dtype=torch.bool)}
        if encoder.writes == "seq2seq":
            encoder.word_states(given, outputs=given["tokens"])
        return encoder(given).pooled.shape[1]


def _damaged(file: Path, why: str) -> UserError:
    return UserError(f"{shown(file)} is damaged: 'pruned' describes no encoder ({why})")
