"""Gradient cache (Gao et al., 2021): a large batch is encoded part by part, so that memory is that of a part.

A contrastive loss needs the embeddings of the whole batch at once, and they are small; activations are large, and each part needs only its
own. So every part is encoded without keeping them; the loss and its gradient by the embeddings are those of the joined batch; and then each
part is encoded again, with what it drew at random, to carry its share of that gradient to the weights (section 3.2). The gradient is that
of the joined batch, as long as rows do not depend on each other within the encoder: BatchNorm would have them do so.

Non-reentrant checkpointing of a part is just that. Weights get their gradient once, as from any graph, so that nothing else of training
knows of it: several ranks, accumulation, gradient scaling, clipping.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sslt import lanes
from sslt.encoders.base import Encoder, Features


class PooledOnly(Features):
    """Features of a batch that was encoded in parts: nothing was kept but `pooled`."""

    @property
    def tokens(self) -> Tensor:  # type: ignore[override]
        raise TypeError("a batch that is encoded in parts (chunk_size=) has pooled features alone; this objective reads its tokens")


def encoded(encoder: Encoder, inputs: dict[str, Tensor]) -> Features:
    """`encoder(inputs)`; where `encoder.chunk_size` says so, and there are more rows, by so many of them at a time, and pooled alone."""
    size, names = encoder.chunk_size, list(inputs)
    if size is None or len(inputs[names[0]]) <= size:
        return encoder(inputs)

    def pooled(*part: Tensor) -> Tensor:
        return encoder(dict(zip(names, part, strict=True))).pooled

    def by_parts(*rows: Tensor) -> Tensor:
        parts = zip(*(x.split(size) for x in rows), strict=True)
        return torch.cat([checkpoint(pooled, *part, use_reentrant=False, preserve_rng_state=True) for part in parts])

    found = lanes.called(by_parts, tuple(inputs.values()), {})
    return PooledOnly(found, found)
