"""BatchNorm where episodes differ: by the statistics of the batch at hand, and running statistics made anew."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from sslt.encoders.base import Encoder


def batch_norms(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Every BatchNorm inside a module."""
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@contextlib.contextmanager
def batch_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, every BatchNorm normalises by its batch, in eval mode too, and running statistics are neither read nor changed.

    So no episode leaves a trace in the next, and nothing is written in place, which differentiating through an update
    would not allow.
    """
    before = [(m, m.training, m.track_running_stats) for m in batch_norms(module)]
    try:
        for m, _, _ in before:
            m.training, m.track_running_stats = True, False
        yield
    finally:
        for m, training, tracks in before:
            m.training, m.track_running_stats = training, tracks


@torch.no_grad()
def recalibrate(encoder: Encoder, batches: Iterable[dict[str, Tensor]]) -> None:
    """Set running statistics to their plain average over `batches` of inputs (Wu & Johnson, 2021, section 3.2, "PreciseBN").

    For an encoder that was trained by `batch_statistics` and is to be used in eval mode. Norms whose weights are frozen stay as they are.
    """
    norms = [m for m in batch_norms(encoder) if m.track_running_stats and all(p.requires_grad for p in m.parameters())]
    if not norms:
        return
    modes = [(m, m.training) for m in encoder.modules()]
    momenta = [m.momentum for m in norms]
    encoder.eval()
    for m in norms:
        m.reset_running_stats()
        m.momentum, m.training = None, True  # None: each batch counts the same
    try:
        for inputs in batches:
            encoder(inputs)
    finally:
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum
        for module, training in modes:
            module.training = training
