"""What a model is while it trains and at no other time: other kernels, compiled blocks, activations that are not kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from sslt import compiling, cpu_kernels, recomputing
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
        if cfg.trainer.get("compile") and not short:
            stack.enter_context(compiling.compiled(encoders))
        if cfg.trainer.get("activation_checkpointing"):  # around what is compiled
            _check_weights_stay(learner)
            stack.enter_context(recomputing.recomputed(encoders))
        yield


def _check_weights_stay(learner: Learner) -> None:
    """Raise `UserError` where the backward pass would find other weights than the forward pass had."""
    if any(getattr(objective, "own_statistics", False) for objective in learner.objectives.values()):
        raise UserError(
            f"{recomputing.SETTING} computes blocks again with the weights of the run, and MAML's inner steps have others: leave it out, "
            f"or choose +episodes=anil"
        )
