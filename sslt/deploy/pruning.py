"""Structured pruning: which units matter least, and the encoder without them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt.data.views.base import Plain
from sslt.deploy.units import Group, width_of
from sslt.encoders.base import Encoder, evaluating
from sslt.encoders.pruned import describe, is_conv1d, put, refit, set_heads, set_width
from sslt.errors import UserError

LEAST = 0.1  # of a group's channels or hidden units stay
TOLERANCE = 1e-4  # by how much features may differ from the masked encoder's, relative to their size
# What configs of transformers call what stands between a block's wide maps
_HIDDEN = ("intermediate_size", "hidden_dim", "n_inner", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim")
_DEPTH = ("num_hidden_layers", "n_layers", "n_layer")
Batch = dict[str, Any]


# -------------------------------------------------------------------- how much a unit matters
def by_magnitude(groups: list[Group], share_of_mean: bool = True) -> list[Tensor]:
    """Root of the sum of squares of a unit's weights, rows and columns (Li et al., 2017; over groups: Fang et al., 2023), [n] each.

    share_of_mean: relative to the mean of the group, so that wide layers and narrow ones can be compared.
    """
    scores = [_sums(group, lambda p: p.detach().square()).sqrt() for group in groups]
    return [s / s.mean().clamp(min=1e-12) if share_of_mean else s for s in scores]


def by_taylor(groups: list[Group], encoder: Encoder, target: nn.Module, batches: Iterable[Batch]) -> list[Tensor]:
    """(Σ gradient · weight)² over a unit, the mean over batches (Molchanov et al., 2019, eq. 8): how much the loss would change.

    batches: prepared samples with their answers. No dropout, and BatchNorm by its running statistics.
    """
    scores, count = [torch.zeros(group.n) for group in groups], 0
    modes = [(m, m.training) for module in (encoder, target) for m in module.modules()]
    moves = {p: p.requires_grad for p in encoder.parameters()}
    views, device = Plain(1), next(encoder.parameters()).device
    try:
        encoder.eval().requires_grad_()
        target.eval()
        for batch in batches:
            encoder.zero_grad()
            with torch.enable_grad():
                target(encoder, views({k: v.to(device) for k, v in batch.items()}, encoder)).value.backward()
            for score, group in zip(scores, groups, strict=True):
                score += _sums(group, lambda p: torch.zeros_like(p) if p.grad is None else p.grad * p.detach()).cpu().square()
            count += 1
    finally:
        encoder.zero_grad()
        target.zero_grad()
        for m, training in modes:
            m.training = training
        for p, moved in moves.items():
            p.requires_grad_(moved)
    return [score / max(count, 1) for score in scores]


def _sums(group: Group, value: Callable[[nn.Parameter], Tensor]) -> Tensor:
    """Of each unit, the sum of `value` over its rows (weights and biases) and columns, [n]."""
    total = torch.zeros(group.n)
    for places, rows in ((group.rows, True), (group.columns, False)):
        for module, index in places:
            for name, p in module.named_parameters(recurse=False):
                if rows or name == "weight":
                    each = value(p).movedim(_axis(module, rows, p), 0).flatten(1).sum(1) if p.dim() > 1 else value(p)
                    total += each.cpu()[index].sum(1)
    return total


def _axis(module: nn.Module, rows: bool, tensor: Tensor) -> int:
    """Along which axis of a layer's tensor its rows (or columns) lie."""
    if tensor.dim() == 1:
        return 0
    return int(rows) if is_conv1d(module) else int(not rows)


# -------------------------------------------------------------------- which units go
def choose(
    encoder: Encoder, groups: list[Group], scores: list[Tensor], share: float, of: str, inputs: dict[str, Tensor], *, even: bool,
    multiple: int, what: str,
) -> list[Tensor]:  # fmt: skip
    """Which units of each group stay, int64, so that at least `share` of the encoder's parameters or operations goes.

    The least that matter go first, among all groups; even: as many of each group. What stays of one is a multiple of `multiple`, and at
    least `LEAST` of it. Operations: multiplications of convolutions and linear maps for one sample.
    Raises `UserError` where so much cannot go.
    """
    times = _positions(encoder, inputs) if of == "operations" else {}
    whole = _cost(encoder, {}, {}, times, of)
    ranked = [s.argsort(stable=True) for s in scores]
    order = [g for _, g in sorted(((float(s[i]), g) for g, s in enumerate(scores) for i in ranked[g]), key=lambda pair: pair[0])]

    def kept(k: int) -> list[Tensor]:
        gone = torch.bincount(torch.tensor(order[:k], dtype=torch.long), minlength=len(groups)).tolist()
        if even:
            gone = [-(-group.n * k // len(order)) for group in groups]
        found = []
        for g, group in enumerate(groups):
            least = max(1, -(-int(group.n * LEAST * 100) // 100))
            stay = max(group.n - gone[g], least)
            stay = min(-(-stay // multiple) * multiple, group.n)
            found.append(ranked[g][group.n - stay :].sort().values)
        return found

    def gone_share(k: int) -> float:
        return 1 - _cost(encoder, *_gone(groups, kept(k)), times, of) / whole

    most = gone_share(len(order))
    if not groups or most < share:
        has = f"at most {most:.0%} of its {of} can go with {what}" if groups else f"it has no {what} that can go"
        raise UserError(f"method.share={share:g}: {has}: give less, or another method.what")
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if gone_share(middle) >= share else (middle + 1, high)
    return kept(low)


def _gone(groups: list[Group], kept: list[Tensor]) -> tuple[dict[nn.Module, int], dict[nn.Module, int]]:
    """How many rows, and how many columns, each layer loses."""
    rows: dict[nn.Module, int] = {}
    columns: dict[nn.Module, int] = {}
    for group, stay in zip(groups, kept, strict=True):
        for places, lost in ((group.rows, rows), (group.columns, columns)):
            for module, index in places:
                lost[module] = lost.get(module, 0) + (group.n - len(stay)) * index.shape[1]
    return rows, columns


def _cost(encoder: Encoder, rows: dict[nn.Module, int], columns: dict[nn.Module, int], times: dict[nn.Module, int], of: str) -> float:
    """Parameters, or multiplications by `times` (how often a layer's matrix is used), with so many rows and columns less."""
    total = 0.0
    for module in encoder.modules():
        own = list(module.named_parameters(recurse=False))
        if of == "operations":
            own = [(name, p) for name, p in own if module in times and name == "weight"]
        for _, p in own:
            n = float(p.numel())
            if module in rows:
                n *= 1 - rows[module] / width_of(module, rows=True)
            if module in columns and p.dim() > 1:
                n *= 1 - columns[module] / width_of(module, rows=False)
            total += n * times.get(module, 1)
    return total


@torch.no_grad()
def _positions(encoder: Encoder, inputs: dict[str, Tensor]) -> dict[nn.Module, int]:
    """How many places of one sample each convolution and linear map is applied to."""
    found: dict[nn.Module, int] = {}

    def count(module: Any, given: Any, made: Tensor) -> None:
        wide = made.shape[1] if isinstance(module, nn.Conv2d) else made.shape[-1]
        found[module] = found.get(module, 0) + made.numel() // wide // samples

    layers = [m for m in encoder.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) or is_conv1d(m)]
    hooks = [m.register_forward_hook(count) for m in layers]
    samples = len(next(iter(inputs.values())))
    try:
        with evaluating(encoder):
            encoder(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


# -------------------------------------------------------------------- the encoder without them
@torch.no_grad()
def mask(groups: list[Group], kept: list[Tensor]) -> None:
    """Put zeros where the units stand that would go; the layers of the groups are changed in place."""
    for group, stay in zip(groups, kept, strict=True):
        gone = torch.ones(group.n, dtype=torch.bool)
        gone[stay] = False
        for module, index in group.rows:
            for p in module.parameters(recurse=False):
                p.movedim(_axis(module, True, p), 0)[index[gone].flatten().to(p.device)] = 0


@torch.no_grad()
def cut(encoder: Encoder, groups: list[Group], kept: list[Tensor]) -> Tensor | None:
    """Take all units but `kept` out, in place. Returns which features stay, int64; None where that is all of them.

    Afterwards it is an ordinary encoder, which says by `args` or `pruned` what it is (`encoders/pruned.py`).
    """
    drops: dict[tuple[nn.Module, bool], Tensor] = {}
    features: Tensor | None = None
    for group, stay in zip(groups, kept, strict=True):
        gone = torch.ones(group.n, dtype=torch.bool)
        gone[stay] = False
        for places, rows in ((group.rows, True), (group.columns, False)):
            for module, index in places:
                known = drops.setdefault((module, rows), torch.zeros(width_of(module, rows), dtype=torch.bool))
                known[index[gone].flatten()] = True
        for attention in group.attentions:
            set_heads(attention, len(stay))
        if group.features is not None:
            features = group.features[stay].flatten().sort().values
    for (module, rows), lost in drops.items():
        stay = (~lost).nonzero().flatten()
        for name, x in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if x.dim() == 0 or (not rows and name != "weight"):
                continue
            put(module, name, x.index_select(_axis(module, rows, x), stay.to(x.device)))
    for module in {module: None for module, _ in drops}:
        refit(module)
    if features is not None and len(features) < encoder.dim:
        set_width(encoder, len(features))
    else:
        features = None
    _say(encoder, groups)
    encoder.origin, encoder.pruned = None, describe(encoder)
    return features


def _say(encoder: Encoder, groups: list[Group]) -> None:
    """Where all blocks are equally wide, have `args` say so: then the folder is an ordinary one of its library too."""
    config = getattr(getattr(encoder, "model", None), "config", None)
    if config is None or not isinstance(encoder.args.get("config"), dict):
        return
    widths = {width_of(group.columns[0][0], rows=False) for group in groups if not group.attentions}
    if len(widths) == 1:
        (width,) = widths
        named = {key: width for key in _HIDDEN if key in config.to_dict()}
        for key in named:
            setattr(config, key, width)
        encoder.args = {**encoder.args, "config": {**encoder.args["config"], **named}}


def same(pruned: Tensor, masked: Tensor, features: Tensor | None) -> bool:
    """Whether what the encoder gives without the units [B, D'] is what it gives with zeros in their places [B, D]."""
    wanted = masked if features is None else masked[:, features]
    return pruned.shape == wanted.shape and bool((pruned - wanted).abs().max() <= TOLERANCE * masked.abs().max().clamp(min=1e-6))


def without(encoder: Encoder, groups: list[Group], kept: list[Tensor], inputs: dict[str, Tensor]) -> Tensor | None:
    """`cut`, and make sure on `inputs` that it computes what it computes with zeros there. Raises `UserError` where it does not."""
    whole = {k: v.clone() for k, v in encoder.state_dict().items()}
    mask(groups, kept)
    masked, written = _computed(encoder, inputs)
    encoder.load_state_dict(whole)
    features = cut(encoder, groups, kept)
    try:
        found, states = _computed(encoder, inputs)
        fits = same(found, masked, features) and same(states, written, None)
    except RuntimeError:
        fits = False
    if not fits:
        raise UserError(f"{_name(encoder)} does not compute the same without what was to go: method.what=channels cannot prune it")
    return features


def _computed(encoder: Encoder, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Features [B, D], and the states [B, T, D] of what a decoder beside the encoder writes: here, what it reads; [0] without one."""
    with evaluating(encoder):
        written = encoder.word_states(inputs, outputs=inputs["tokens"]) if encoder.writes == "seq2seq" else torch.zeros(1)
        return encoder(inputs).pooled, written


def narrow_head(target: nn.Module, features: Tensor) -> None:
    """Have a target's linear head read these features alone."""
    head: Any = target.head
    put(head, "weight", head.weight.detach().index_select(1, features.to(head.weight.device)))
    refit(head)


def takes_fewer(target: Any, dim: int) -> bool:
    """Whether features can be taken from a target: all that it has of its own is one linear head on them."""
    own = [name for name, _ in target.named_parameters() if not name.startswith(("head.", "beside."))]
    return isinstance(getattr(target, "head", None), nn.Linear) and target.head.in_features == dim and not own


# -------------------------------------------------------------------- whole layers
def influence(encoder: Encoder, batches: Iterable[dict[str, Tensor]]) -> list[float]:
    """How much each block turns its tokens: 1 - the mean cosine between what goes in and what comes out (Men et al., 2024, eq. 1).

    batches: inputs of the encoder.
    """
    blocks = [encoder.get_submodule(name) for name in encoder.block_names()]
    total, count = [0.0] * len(blocks), 0
    seen: dict[int, float] = {}

    def listen(i: int) -> Callable[..., None]:
        def hook(module: Any, given: Any, named: Any, made: Any) -> None:
            before = given[0] if given else next(iter(named.values()))
            after = made[0] if isinstance(made, tuple) else made
            seen[i] = 1 - float(F.cosine_similarity(before.float(), after.float(), dim=-1).mean())

        return hook

    hooks = [block.register_forward_hook(listen(i), with_kwargs=True) for i, block in enumerate(blocks)]
    try:
        for inputs in batches:
            with evaluating(encoder):
                encoder(inputs)
            total = [a + seen[i] for i, a in enumerate(total)]
            count += 1
    finally:
        for hook in hooks:
            hook.remove()
    return [a / max(count, 1) for a in total]


def drop_layers(encoder: Encoder, gone: list[int]) -> None:
    """Take whole blocks out of a transformer, in place; `args` then say how many it has."""
    names = encoder.block_names()
    owner, _, _ = names[0].rpartition(".")
    stay = [encoder.get_submodule(name) for i, name in enumerate(names) if i not in gone]
    parent: Any = encoder.get_submodule(owner.rpartition(".")[0])
    made = nn.ModuleList(stay) if isinstance(encoder.get_submodule(owner), nn.ModuleList) else nn.Sequential(*stay)
    setattr(parent, owner.rpartition(".")[2], made)
    for i, block in enumerate(stay):
        for module in block.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = i  # type: ignore[assignment]
    config: Any = getattr(encoder.model, "config", None)
    if config is None:
        encoder.args = {**encoder.args, "args": {**encoder.args["args"], "depth": len(stay)}}
    else:
        key = next(k for k in _DEPTH if k in config.to_dict())
        setattr(config, key, len(stay))
        encoder.args = {**encoder.args, "config": {**encoder.args["config"], key: len(stay)}}
    encoder.origin, encoder.pruned = None, describe(encoder)


def layers_to_drop(encoder: Encoder, scores: list[float], share: float) -> list[int]:
    """The fewest blocks, those that change least first, that hold `share` of the parameters. Raises `UserError` where none would stay."""
    blocks = [encoder.get_submodule(name) for name in encoder.block_names()]
    whole, gone, lost = sum(p.numel() for p in encoder.parameters()), [], 0
    for i in sorted(range(len(blocks)), key=lambda i: scores[i]):
        if lost >= share * whole:
            break
        gone.append(i)
        lost += sum(p.numel() for p in blocks[i].parameters())
    if lost < share * whole or len(gone) == len(blocks):
        most = (sum(sum(p.numel() for p in b.parameters()) for b in blocks) / whole) * (len(blocks) - 1) / max(len(blocks), 1)
        raise UserError(f"method.share={share:g}: its {len(blocks)} layers hold less, or none would stay: give at most {most:.2f}")
    return gone


def _name(encoder: Encoder) -> str:
    return str(encoder.args.get("name") or encoder.args.get("model_type") or type(encoder).__name__)
