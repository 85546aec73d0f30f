"""What of an encoder can be taken out without changing what stays: channels of convolutions, heads and hidden units of transformers.

Of a group of layers that belong together a unit is one row of some and one column of others: what a convolution gives on a channel,
what BatchNorm does to it, and what all that read it make of it. With the rows at zero the encoder computes what it computes without.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from sslt.encoders.base import Encoder
from sslt.encoders.pruned import POSITIONS, heads_of, is_conv1d, is_layer
from sslt.errors import UserError

Place = tuple[nn.Module, Tensor]  # a layer, and which of its rows (or columns) each unit is, int64 [n, k]


@dataclasses.dataclass
class Group:
    """n units that can each be taken out. rows: what gives them; columns: what reads them.

    attentions: whose heads they are. features: which of the encoder's features a unit is, int64 [n, k], where it is some.
    """

    name: str
    n: int
    rows: list[Place]
    columns: list[Place]
    attentions: tuple[nn.Module, ...] = ()
    features: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Family:
    """The parts of a family's blocks, by their names: what gives queries, keys and values, what reads the heads, what widens, what narrows.

    cross: the same of the attention of a decoder to the encoder, where a block has one. A map that gives all three has them one after the
    other, and one that widens and is gated has both halves so.
    """

    attention: str
    qkv: tuple[str, ...]
    out: str
    up: tuple[str, ...]
    down: str
    cross: tuple[str, tuple[str, ...], str] | None = None

    def is_of(self, block: nn.Module) -> bool:
        names = (self.attention, *self.qkv, self.out, *self.up, self.down)
        return all(isinstance(_part(block, name), nn.Module) for name in names)

    def attentions(self, block: nn.Module) -> list[tuple[str, tuple[str, ...], str]]:
        """(name, what gives, what reads) of each attention of a block."""
        more = [] if self.cross is None or _part(block, self.cross[0]) is None else [self.cross]
        return [(self.attention, self.qkv, self.out), *more]


def _t5(feeds: str, up: tuple[str, ...]) -> Family:
    def names(part: str) -> tuple[str, tuple[str, ...], str]:
        return part, (f"{part}.q", f"{part}.k", f"{part}.v"), f"{part}.o"

    own = names("layer.0.SelfAttention")
    cross = names("layer.1.EncDecAttention")
    return Family(*own, tuple(f"{feeds}.DenseReluDense.{name}" for name in up), f"{feeds}.DenseReluDense.wo", cross)


def _bart(part: str) -> tuple[str, tuple[str, ...], str]:
    return part, (f"{part}.q_proj", f"{part}.k_proj", f"{part}.v_proj"), f"{part}.out_proj"


# transformers': BERT, RoBERTa, ELECTRA; DistilBERT; GPT-2; ModernBERT; T5, mT5, both halves; BART, mBART, Pegasus, Marian. timm's ViTs.
_FAMILIES = (
    Family("attention.self", ("attention.self.query", "attention.self.key", "attention.self.value"), "attention.output.dense",
           ("intermediate.dense",), "output.dense"),
    Family("attention", ("attention.q_lin", "attention.k_lin", "attention.v_lin"), "attention.out_lin", ("ffn.lin1",), "ffn.lin2"),
    Family("attn", ("attn.c_attn",), "attn.c_proj", ("mlp.c_fc",), "mlp.c_proj"),
    Family("attn", ("attn.Wqkv",), "attn.Wo", ("mlp.Wi",), "mlp.Wo"),
    *(_t5(feeds, up) for feeds in ("layer.1", "layer.2") for up in (("wi",), ("wi_0", "wi_1"))),
    Family(*_bart("self_attn"), ("fc1",), "fc2", _bart("encoder_attn")),
    Family("attn", ("attn.qkv",), "attn.proj", ("mlp.fc1",), "mlp.fc2"),
)  # fmt: skip
_SHARED = "layer.0.SelfAttention"  # whose blocks add the positions that the first of them knows, head by head
KNOWN = "BERT, DistilBERT, ModernBERT, GPT-2, T5, BART and timm's ViTs"


def width_of(layer: Any, rows: bool) -> int:
    """Rows (what it gives) or columns (what it reads) of a layer."""
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return int(layer.num_features)
    if is_conv1d(layer):
        return int(layer.weight.shape[1 if rows else 0])
    return int(layer.weight.shape[0 if rows else 1])


def _part(block: nn.Module, path: str) -> Any:
    for name in path.split("."):
        block = getattr(block, name, None)  # type: ignore[assignment]
    return block


def is_transformer(encoder: Encoder) -> bool:
    """Whether its blocks are of a family whose heads and hidden units are known."""
    blocks = [encoder.get_submodule(name) for name in encoder.block_names()]
    return bool(blocks) and all(_family(block) is not None for block in blocks)


def _family(block: nn.Module) -> Any:
    return next((family for family in _FAMILIES if family.is_of(block)), None)


def has_layers_alone(encoder: Encoder) -> bool:
    """Whether its blocks are of one kind and can go one by one: T5's first has the positions of all, ModernBERT's its first norm."""
    names = encoder.block_names()
    stacks = {name.rpartition(".")[0] for name in names}
    alone = ("attn.Wqkv", _SHARED)
    return len(stacks) == 1 and not any(_part(encoder.get_submodule(name), part) is not None for name in names for part in alone)


def heads(encoder: Encoder) -> list[Group]:
    """A group for each attention of each block: its heads. Where the blocks of a stack share what they know of positions (T5), head i
    of all of them is one unit. Raises `UserError` where something spans heads."""
    found: list[Group] = []
    shared: dict[str, Group] = {}
    for name in encoder.block_names():
        block = encoder.get_submodule(name)
        for attention, qkv, out in _family(block).attentions(block):
            module, reads = _part(block, attention), _part(block, out)
            n = heads_of(module) or _counted(module, reads)
            spans = getattr(module, "gate", None) is not None or not isinstance(getattr(module, "norm", nn.Identity()), nn.Identity)
            if n is None or spans:
                raise UserError(
                    f"the heads of {name} cannot be told apart ({type(module).__name__}): choose method.what=channels or layers"
                )
            width = width_of(reads, rows=False) // n
            own = torch.arange(n * width).view(n, width)
            parts = 3 if len(qkv) == 1 else 1  # one map for all three
            rows = torch.cat([own + i * n * width for i in range(parts)], 1)
            group = Group(f"{name}.{attention}", n, [(_part(block, p), rows) for p in qkv], [(reads, own)], (module,))
            if isinstance(getattr(module, POSITIONS, None), nn.Embedding):
                group.columns.append((getattr(module, POSITIONS), torch.arange(n).view(n, 1)))
            stack = name.rpartition(".")[0]
            if attention == _SHARED and stack in shared:
                _join(shared[stack], group)
                continue
            if attention == _SHARED:
                shared[stack] = group
            found.append(group)
    return found


def _join(group: Group, other: Group) -> None:
    """Make one group of two, unit by unit."""
    group.rows += other.rows
    group.columns += other.columns
    group.attentions += other.attentions


def _counted(attention: Any, reads: nn.Module) -> int | None:
    """How many heads an attention has that says only how wide one is."""
    width = getattr(attention, "head_dim", None)
    return width_of(reads, rows=False) // width if isinstance(width, int) else None


def hidden(encoder: Encoder) -> list[Group]:
    """A group for each block: what stands between its wide maps. Raises `UserError` where something spans them."""
    found = []
    for name in encoder.block_names():
        block = encoder.get_submodule(name)
        family = _family(block)
        wide, narrow = [_part(block, part) for part in family.up], _part(block, family.down)
        n = width_of(narrow, rows=False)
        spans = not isinstance(getattr(getattr(block, "mlp", None), "norm", nn.Identity()), nn.Identity)
        if any(width_of(up, rows=True) % n for up in wide) or spans:
            raise UserError(f"the hidden units of {name} are gated or normalised together: choose method.what=heads or layers")
        rows = [(up, torch.arange(width_of(up, rows=True)).view(-1, n).T.contiguous()) for up in wide]
        found.append(Group(name, n, rows, [(narrow, torch.arange(n).view(n, 1))]))
    return found


class _Probed(nn.Module):
    """An encoder and a linear map that reads its features, so that these are channels as any others."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder, self.probe = encoder, nn.Linear(encoder.dim, 1)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.probe(self.encoder(inputs).pooled)


def channels(encoder: Encoder, inputs: dict[str, Tensor], features: bool) -> list[Group]:
    """Groups of channels of convolutions that depend on each other, found by torch-pruning (Fang et al., 2023) in a pass of `inputs`.

    Channels that a LayerNorm or GroupNorm takes together, or that are not of ordinary convolutions, linear maps and BatchNorms, are in
    none. features: whether those that are the encoder's features may go.
    """
    try:
        import torch_pruning
    except ImportError as e:
        raise UserError("pruning channels needs torch-pruning: pip install 'sslt[prune]'") from e
    graph, probed = torch_pruning.DependencyGraph(), _Probed(encoder).eval()
    moves = {p: p.requires_grad for p in encoder.parameters()}
    try:
        encoder.requires_grad_()
        with torch.enable_grad():
            graph.build_dependency(probed, inputs, forward_fn=lambda model, x: model(x), verbose=False)
        found = [
            _group(graph, items, probed) for items in graph.get_all_groups(ignored_layers=[probed.probe], root_module_types=[nn.Conv2d])
        ]
    except (RuntimeError, ValueError, KeyError, IndexError, AttributeError, TypeError) as e:
        raise UserError(f"torch-pruning cannot follow the channels of {type(encoder).__name__} ({type(e).__name__})") from e
    finally:
        for p, moved in moves.items():
            p.requires_grad_(moved)
    return [g for g in found if g is not None and (features or g.features is None)]


def _group(graph: Any, items: Any, probed: _Probed) -> Group | None:
    names = {m: name for name, m in probed.encoder.named_modules()}
    n = len(items[0].idxs)
    group = Group(names[items[0].dep.target.module], n, [], [])
    for item in items:
        module, index = item.dep.target.module, _by_unit(item.idxs, item.root_idxs, n)
        gives = graph.is_out_channel_pruning_fn(item.dep.handler)
        if module is probed.probe:
            group.features = index
        elif module in names and is_layer(module):
            if index is None or (isinstance(module, nn.Conv2d) and module.groups not in (1, module.out_channels)):
                return None
            if isinstance(module, nn.modules.batchnorm._BatchNorm) or (isinstance(module, nn.Conv2d) and module.groups > 1):
                group.rows.append((module, index))
            else:
                (group.rows if gives else group.columns).append((module, index))
        elif isinstance(module, (nn.Parameter, *_SPANNING)) or any(True for _ in getattr(module, "parameters", tuple)()):
            return None
    group.rows, group.columns = _once(group.rows), _once(group.columns)
    return group


_SPANNING = (nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)


def _by_unit(index: list[int], units: list[int], n: int) -> Any:
    """Which places of a layer each of n units has, int64 [n, k]; None where they have different numbers."""
    own: list[list[int]] = [[] for _ in range(n)]
    for place, unit in zip(index, units, strict=True):
        own[unit].append(place)
    return torch.tensor(own) if len({len(places) for places in own}) == 1 else None


def _once(places: list[Place]) -> list[Place]:
    """Depthwise convolutions and BatchNorms come once as what gives and once as what reads."""
    return list({id(module): (module, index) for module, index in places}.values())
