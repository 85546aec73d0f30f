"""Dropout of an encoder while it trains, whatever library it comes from."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from sslt.errors import UserError

_RATES = ("dropout", "activation_dropout", "attention_dropout", "attn_dropout", "dropout_p")  # rates that modules keep as numbers


def set_dropout(encoder: nn.Module, rate: float | None) -> None:
    """Give every dropout of the encoder the same rate (None: leave them as they are). Its saved config keeps its own.

    Raises `UserError` for a rate outside 0..1, and for one above 0 where there is no dropout to set.
    """
    if rate is None:
        return
    if not 0 <= rate < 1:
        raise UserError(f"dropout={rate}: give a probability, from 0 to less than 1, or null for the encoder's own")
    places = list(_places(encoder))
    if rate > 0 and not places:
        raise UserError(f"dropout={rate}: this encoder has no dropout to set; leave it null")
    for module, name in places:
        setattr(module, name, rate)


def silence(module: nn.Module) -> None:
    """No dropout and no stochastic depth in it any more, though it may stay in train mode for its BatchNorms' sake."""
    for part, name in list(_places(module)):
        setattr(part, name, 0.0)
    for part in module.modules():
        if isinstance(getattr(part, "drop_prob", None), float):
            part.drop_prob = 0.0  # type: ignore[assignment]


def has_dropout(encoder: nn.Module) -> bool:
    """Whether two passes of the same inputs can differ while the encoder trains."""
    depth = any((getattr(module, "drop_prob", None) or 0.0) > 0 for module in encoder.modules())  # timm's stochastic depth
    return depth or any(getattr(module, name) > 0 for module, name in _places(encoder))


def _places(encoder: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for module in encoder.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            yield module, "p"
        for name in _RATES:
            if isinstance(module.__dict__.get(name), (int, float)):
                yield module, name
