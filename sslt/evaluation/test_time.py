"""Adapting to the test stream itself, without labels: BatchNorm statistics and TENT."""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sslt.errors import UserError
from sslt.modules import of_kind, replaced
from sslt.ranges import Count, NonNegative


class BatchStatistics(nn.modules.batchnorm._BatchNorm):
    """BatchNorm by a mix of the source's statistics and the present batch's: (1-w)·source + w·batch, w = n / (prior + n).

    Schneider et al. (2020), section 3: `prior` is how many samples the source's statistics count for; 0 takes the batch's alone
    (Nado et al., 2020). `keep`: the mix becomes the source of the next batch, so that statistics follow the stream.
    """

    prior: float
    keep: bool

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        x = input.float()
        dims = [0, *range(2, x.dim())]
        shape = [1, -1, *([1] * (x.dim() - 2))]
        var, mean = torch.var_mean(x, dims, correction=0)
        if self.running_mean is not None and self.running_var is not None:
            w = len(x) / (self.prior + len(x))
            mean, var = w * mean + (1 - w) * self.running_mean, w * var + (1 - w) * self.running_var
            if self.keep:
                with torch.no_grad():
                    self.running_mean.copy_(mean)
                    self.running_var.copy_(var)
        out = (x - mean.view(shape)) * torch.rsqrt(var.view(shape) + self.eps)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(input.dtype)


class ActivatedBatchStatistics(BatchStatistics):
    """The same for timm's BatchNorm that is followed by an activation."""

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))  # type: ignore[operator]


class TestTime(abc.ABC):
    """Adapts a copy of the encoder while it classifies a stream of unlabelled batches.

    reset: True starts every batch from the source model; False goes on with what the stream taught.
    """

    __test__ = False  # no test class, whatever its name begins with

    def __init__(self, reset: bool):
        self.reset = reset

    def start(self, encoder: nn.Module, logits: Callable[[Any, Any], Tensor]) -> None:
        """Take a copy of the encoder. `logits(encoder, inputs)` → [B, C]. Raises `UserError` for one without what is adapted."""
        self.encoder, self.logits = copy.deepcopy(encoder).eval().requires_grad_(False), logits
        self.prepare()
        self.source = copy.deepcopy(self.encoder.state_dict())

    def predict(self, inputs: Any) -> Tensor:
        """Logits [B, C] of the next batch."""
        if self.reset:
            self.encoder.load_state_dict(self.source)
            self.restart()
        return self.step(inputs)

    def restart(self) -> None:
        """Forget what is not in the weights."""

    @abc.abstractmethod
    def prepare(self) -> None:
        """Make ready the copy."""

    @abc.abstractmethod
    def step(self, inputs: Any) -> Tensor:
        """Adapt to a batch and classify it."""

    def _batch_statistics(self, prior: float) -> int:
        found = 0

        def of_batches(module: nn.Module) -> nn.Module:
            nonlocal found
            if not isinstance(module, nn.modules.batchnorm._BatchNorm):
                return module
            found += 1
            activated = hasattr(module, "act") and hasattr(module, "drop")
            made = of_kind(module, ActivatedBatchStatistics if activated else BatchStatistics)
            made.prior, made.keep = prior, not self.reset and prior > 0
            return made

        self.encoder = replaced(self.encoder, of_batches)
        return found


class BatchNormStatistics(TestTime):
    """The test batches' statistics in place of the training set's; nothing is learned. prior: as in `BatchStatistics`."""

    def __init__(self, prior: NonNegative, reset: bool):
        super().__init__(reset)
        if not reset and prior == 0:
            raise UserError(
                "test_time.reset=false follows the stream, which test_time.prior=0 forgets at every batch: set test_time.prior=16"
            )
        self.prior = prior

    def prepare(self) -> None:
        if not self._batch_statistics(self.prior):
            raise UserError("+test_time=bn adapts BatchNorm statistics, and this encoder has none: +test_time=tent adapts any norm layer")

    @torch.no_grad()
    def step(self, inputs: Any) -> Tensor:
        return self.logits(self.encoder, inputs)


class Tent(TestTime):
    """Entropy minimisation on the scales and shifts of the norm layers (Wang et al., 2021, algorithm 1).

    BatchNorm uses the batch's own statistics; LayerNorm and GroupNorm need none. A batch is classified by the forward pass
    that its own update comes from, so a step costs one forward and one backward. lr, steps: of Adam on each batch.
    """

    def __init__(self, lr: NonNegative, steps: Count, reset: bool):
        super().__init__(reset)
        if steps < 1 or lr <= 0:
            raise UserError(f"test_time.lr={lr}, test_time.steps={steps}: give more than 0")
        self.lr, self.steps = lr, steps

    def prepare(self) -> None:
        self._batch_statistics(0.0)
        norms = [m for m in self.encoder.modules() if isinstance(m, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm))]
        self.moving = [p for m in norms for p in m.parameters()]
        if not self.moving:
            raise UserError("+test_time=tent moves the scales and shifts of norm layers, and this encoder has none")
        for p in self.moving:
            p.requires_grad_(True)
        self.restart()

    def restart(self) -> None:
        self.optimizer = torch.optim.Adam(self.moving, lr=self.lr)

    def step(self, inputs: Any) -> Tensor:
        with torch.enable_grad():
            for _ in range(self.steps):
                logits = self.logits(self.encoder, inputs)
                entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
                self.optimizer.zero_grad()
                entropy.backward()
                self.optimizer.step()
        if self.steps == 1:
            return logits.detach()
        with torch.no_grad():
            return self.logits(self.encoder, inputs)
