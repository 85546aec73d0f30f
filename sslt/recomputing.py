"""Activation checkpointing (Chen et al., 2016): a block keeps its inputs alone, and is computed again when its gradient is.

One way for all encoders, by torch's non-reentrant checkpointing around the call of each block, with its hooks. Dropout draws again what it
drew, and autocast is as it was, so that gradients are, bit for bit, those of a run without it. What is compiled (`compiling.py`) lies
within, so that it is the compiled block that is computed again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from sslt import lanes
from sslt.encoders.base import Encoder, blocks_of
from sslt.encoders.batch_norm import batch_norms
from sslt.encoders.inserted import InsertedPrefix
from sslt.errors import UserError
from sslt.modules import called, without_caches

SETTING = "trainer.activation_checkpointing=true"


@contextlib.contextmanager
def recomputed(encoders: Iterable[Encoder]) -> Iterator[None]:
    """Within, the blocks of `encoders` are computed again in the backward pass. Without gradients, and afterwards, they are as ever.

    Raises `UserError` where no encoder has blocks, where blocks get more than they can be given twice, or when one writes on its input.
    """
    encoders = list(encoders)
    if any(isinstance(getattr(e, "virtual_tokens", None), InsertedPrefix) for e in encoders):
        raise UserError(f"{SETTING} computes blocks twice, and a prefix can be handed to them once: choose adaptation=prompt or lora")
    blocks = blocks_of(encoders)
    if not blocks:
        raise UserError(f"{SETTING} computes the blocks of an encoder again, and this one has none: leave it out")
    with called(blocks, _again):
        yield


def _again(block: nn.Module, call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` of a block, whose activations are not kept."""

    def computed(*args: Any, **kwargs: Any) -> Any:
        leaves, form = tree_flatten((args, kwargs))
        if not torch.is_grad_enabled() or not _has_gradient(block, leaves):
            return call(*args, **kwargs)
        leaves = without_caches(leaves)

        def run(*given: Any) -> Any:
            again, named = tree_unflatten(list(given), form)
            return call(*again, **named)

        written = [x._version for x in leaves if isinstance(x, Tensor)]
        # tensors one by one: torch looks among them for the devices whose generators it restores
        out = checkpoint(
            run, *leaves, use_reentrant=False, preserve_rng_state=True, context_fn=lambda: (_Nothing(), _Unchanged(block, lanes.again()))
        )
        if written != [x._version for x in leaves if isinstance(x, Tensor)]:
            raise UserError(f"{SETTING}: a block ({type(block).__name__}) of this encoder writes on its input, which is needed once more")
        return out

    return computed


def _has_gradient(block: nn.Module, leaves: list[Any]) -> bool:
    """Whether the backward pass comes to the block at all: not where it and all before it are frozen."""
    return any(isinstance(x, Tensor) and x.requires_grad for x in leaves) or any(p.requires_grad for p in block.parameters())


class _Nothing:
    """A context that can be entered again, as a second backward pass over one graph does."""

    def __enter__(self) -> None: ...

    def __exit__(self, *error: Any) -> None: ...


class _Unchanged(_Nothing):
    """Within, BatchNorms count on copies of their running statistics: a batch that is computed twice counts once. drawing: a context
    within it."""

    def __init__(self, block: nn.Module, drawing: contextlib.AbstractContextManager[Any]):
        self.block, self.drawing = block, drawing

    def __enter__(self) -> None:
        self.drawing.__enter__()
        self.before = [(m, dict(m._buffers)) for m in batch_norms(self.block)]
        for m, buffers in self.before:
            m._buffers.update({name: None if b is None else b.clone() for name, b in buffers.items()})

    def __exit__(self, *error: Any) -> None:
        for m, buffers in self.before:
            m._buffers.update(buffers)
        self.drawing.__exit__(*error)
