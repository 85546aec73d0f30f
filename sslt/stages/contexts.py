"""What a model is while it trains and at no other time: other kernels, compiled blocks, activations that are not kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from sslt import compiling, cpu_kernels, float8, precision, recomputing
from sslt.encoders.base import Encoder
from sslt.errors import UserError
from sslt.learner import Learner


@contextlib.contextmanager
def training(cfg: Any, learner: Learner, accelerator: str, number_format: str, short: bool = False) -> Iterator[None]:
    """Within, all that learns or teaches computes as the settings have it. short: compiling would take longer than what is trained.

    Raises `UserError` where a setting and what is trained do not go together.
    """
    encoders = [m for m in learner.modules() if isinstance(m, Encoder)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(cpu_kernels.replaced(accelerator, number_format, cfg.fast_kernels))
        if cfg.trainer.precision == precision.FLOAT8:
            stack.enter_context(float8.multiplied(encoders, accelerator))
        if cfg.trainer.get("compile") and not short:
            stack.enter_context(compiling.compiled(encoders))
        if cfg.trainer.get("activation_checkpointing"):  # around what is compiled
            _check_weights_stay(learner)
            stack.enter_context(recomputing.recomputed(encoders))
        if cfg.get("chunk_size"):
            _check_parts(learner, cfg.chunk_size)
            stack.enter_context(_in_parts(encoders, cfg.chunk_size))
        yield


@contextlib.contextmanager
def _in_parts(encoders: list[Encoder], size: int) -> Iterator[None]:
    """Within, views are encoded `size` at a time (`encoders/chunks.py`)."""
    try:
        for encoder in encoders:
            encoder.chunk_size = size
        yield
    finally:
        for encoder in encoders:
            encoder.chunk_size = None


def _check_parts(learner: Learner, size: int) -> None:
    """Raise `UserError` where the gradient by parts would not be that of the whole batch."""
    for objective in learner.objectives.values():
        if not objective.only_pooled:
            raise UserError(
                f"chunk_size={size}: {type(objective).__name__} reads more of a batch than its pooled features, which alone are there "
                f"where it is encoded in parts: leave it out ({recomputing.SETTING} saves memory, too)"
            )
    encoder, adaptation = learner.encoder, learner.adaptation
    groups, depth = encoder.group_of(), encoder.depth
    for name, module in encoder.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            own = [f"{name}.{n}" for n, _ in module.named_parameters(recurse=False)]
            if all(adaptation.ever_moves(n, groups[n], depth) for n in own):
                raise UserError(
                    f"chunk_size={size}: BatchNorm in the encoder ({name}) would take a part for the batch: choose one without, such as "
                    f"encoder=vit_small, or one with +encoder.args.norm_layer=groupnorm"
                )


def _check_weights_stay(learner: Learner) -> None:
    """Raise `UserError` where the backward pass would find other weights than the forward pass had."""
    if any(getattr(objective, "own_statistics", False) for objective in learner.objectives.values()):
        raise UserError(
            f"{recomputing.SETTING} computes blocks again with the weights of the run, and MAML's inner steps have others: leave it out, "
            f"or choose +episodes=anil"
        )
