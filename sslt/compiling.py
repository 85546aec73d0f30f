"""torch.compile while a model trains: block by block, so that equal blocks share one compilation (regional compilation).

What lies outside blocks (views, stems, embeddings, heads, losses) is called as it is. Measuring, probes and what is saved know nothing of
it: in inference mode the blocks are torch's own, and after training the model is what it was, with the same names of its weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from sslt import lanes
from sslt.encoders.base import Encoder, blocks_of
from sslt.encoders.batch_norm import batch_norms
from sslt.errors import UserError
from sslt.modules import called

BACKEND = "inductor"
VARIANTS = 256  # of one function that are kept: every block of a shape of its own is one, of the function by which torch calls modules


@contextlib.contextmanager
def compiled(encoders: Iterable[Encoder]) -> Iterator[None]:
    """Within, the blocks of `encoders` are compiled when they are first called.

    What a block draws at random (dropout) comes from the same generators in another way, so that a run is one with and another without; a
    resumed run repeats the one it goes on from, on fewer ranks by calling a block for each lane.
    Raises `UserError` where no encoder has blocks.
    """
    blocks = blocks_of(encoders)
    if not blocks:
        raise UserError("trainer.compile=true compiles the blocks of an encoder, and this one has none: leave it out")
    with _room(), called(blocks, _unless_measured):
        yield


def _unless_measured(block: nn.Module, plain: Callable[..., Any]) -> Callable[..., Any]:
    fast, mixes = torch.compile(plain, backend=BACKEND), bool(batch_norms(block))

    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.is_inference_mode_enabled():
            return plain(*args, **kwargs)
        if mixes:
            with lanes.apart():
                return fast(*args, **kwargs)
        return lanes.called(fast, args, kwargs)

    return call


@contextlib.contextmanager
def _room() -> Iterator[None]:
    """Past a limit torch silently calls a function as it is: one that all blocks of a deep encoder keep to."""
    import torch._dynamo.config as dynamo

    name = "recompile_limit" if hasattr(dynamo, "recompile_limit") else "cache_size_limit"  # before torch 2.7
    with dynamo.patch({name: VARIANTS}):  # type: ignore[attr-defined]
        yield
