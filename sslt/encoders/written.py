"""Whether the words an encoder reads out are those of the library's model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslt.errors import UserError


def as_logits(encoder: Any, states: Callable[[], Tensor], logits: Callable[[], Tensor]) -> None:
    """Raise `UserError` for a family whose logits are more than states times a matrix (soft caps, scales that are not known here)."""
    training = encoder.training
    encoder.eval()
    try:
        with torch.no_grad():
            known, ours = logits().float(), F.linear(states(), *encoder.output_layer()).float()
    finally:
        encoder.train(training)
    if known.shape != ours.shape or not torch.allclose(known, ours, rtol=1e-2, atol=1e-2 * float(known.abs().max().clamp(min=1e-3))):
        raise UserError(
            f"{encoder.args['model_type']} changes its logits in a way that sslt does not know: choose a family such as gpt2, llama or t5"
        )
