"""How sure a head that was solved for may be of what training shows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sslt import distributed
from sslt.encoders.base import Encoder, evaluating
from sslt.encoders.batch_norm import batch_statistics
from sslt.objectives.base import encode_views, wide

log = logging.getLogger("sslt")
FACTORS = tuple(2.0**-k for k in range(25))  # of features that hardly differ a probe has weights of any size


def soften(
    head: nn.Linear,
    encoder: Encoder,
    batches: Iterable[dict[str, Any]],
    truth: Callable[[dict[str, Any]], Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Scale the head down to where its loss on `batches` of training views is least, over all ranks; for one of classes no answer changes.

    A probe that was solved on whole samples can be so sure of them that what views show begins at a loss beyond that of guessing, and
    training would go on to undo that alone. BatchNorm sees a batch here as it does in training. loss: the sum over rows.
    """
    with evaluating(encoder), batch_statistics(encoder):
        found = [(wide(head(encode_views(encoder, batch).pooled.to(head.weight.dtype))), truth(batch)) for batch in batches]
    logits, answers = (torch.cat(parts) for parts in zip(*found, strict=True))
    losses = torch.stack([loss(factor * logits, answers) for factor in FACTORS])
    factor = FACTORS[int(distributed.sum_over_ranks(losses).argmin())]
    if factor < 1:
        with torch.no_grad():
            head.weight.mul_(factor)
            head.bias.mul_(factor)
        log.info("training views show less than whole samples: the head's logits start %g times as large", factor)
