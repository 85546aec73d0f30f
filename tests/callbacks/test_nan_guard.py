"""Protects the end of a run whose loss is not finite: at once beside the processor, every few steps on a GPU, the first bad one named."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sslt.callbacks.checkpoint import NaNGuard
from sslt.errors import UserError

ADVICE = SimpleNamespace(advice=lambda: "lower optimizer.lr")
NAN = float("nan")


class Elsewhere(str):
    """A device that is not the processor, by what it says."""

    type = "cuda"


class Loss(torch.Tensor):
    device = Elsewhere("cpu")  # type: ignore[assignment]


def steps(guard: NaNGuard, losses: list[float], elsewhere: bool, stop: bool = False) -> None:
    for step, value in enumerate(losses, 1):
        loss = torch.tensor(value)
        last = {"loss": loss.as_subclass(Loss) if elsewhere else loss}
        trainer = SimpleNamespace(should_stop=stop and step == len(losses))
        guard.on_train_batch_end(trainer, SimpleNamespace(last=last, batches_seen=step))


@pytest.mark.parametrize("value", [NAN, float("inf"), -float("inf")])
def test_beside_the_processor_at_once(value):
    """With what it became, and what to do."""
    guard = NaNGuard(ADVICE, every=50)
    steps(guard, [1.0, 2.0], elsewhere=False)
    with pytest.raises(UserError, match=f"became {value} at step 2; lower optimizer.lr".replace(".", r"\.")):
        steps(guard, [1.0, value], elsewhere=False)


def test_on_a_gpu_every_few_steps():
    """The first bad one is named, though it is only then that one looks; finite losses go on."""
    steps(NaNGuard(ADVICE, every=4), [1.0] * 9, elsewhere=True)
    steps(NaNGuard(ADVICE, every=4), [1.0, NAN, NAN], elsewhere=True)
    for losses, first in (([1.0, NAN, 1.0, NAN], 2), ([NAN, NAN, NAN, 1.0], 1), ([1.0] * 4 + [1.0, NAN, 1.0, 1.0], 6)):
        with pytest.raises(UserError, match=f"at step {first};"):
            steps(NaNGuard(ADVICE, every=4), losses, elsewhere=True)


def test_on_a_gpu_at_the_end_of_a_run():
    """The last steps are looked at too."""
    with pytest.raises(UserError, match="at step 2;"):
        steps(NaNGuard(ADVICE, every=50), [1.0, NAN, 1.0], elsewhere=True, stop=True)
