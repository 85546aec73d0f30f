"""Gradient descent that can itself be differentiated: the inner loop of meta-learning."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from sslt.encoders.base import Encoder

Inputs = dict[str, Tensor]
Weights = Mapping[str, Tensor]


class WithHead(nn.Module):
    """An encoder and a head on its pooled features, under the names `encoder.…` and `head.…`."""

    def __init__(self, encoder: Encoder, head: nn.Module):
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, inputs: Inputs) -> Tensor:
        return self.head(self.encoder(inputs).pooled)


def take(inputs: Inputs, rows: Tensor) -> Inputs:
    """The rows [B] of inputs."""
    return {name: x[rows] for name, x in inputs.items()}


def descend(
    model: nn.Module, weights: Weights, inputs: Inputs, labels: Tensor, steps: int, lr: float, second_order: bool
) -> dict[str, Tensor]:
    """`weights` of `model` after steps w ← w - lr·∇CE(model_w(inputs), labels), as functions of those given.

    second_order: gradients are functions of the weights as well; otherwise they are constants.
    """
    for _ in range(steps):
        with sdpa_kernel(SDPBackend.MATH) if second_order else contextlib.nullcontext():  # the others have no second derivative
            loss = F.cross_entropy(functional_call(model, dict(weights), (inputs,)), labels)
        grads = torch.autograd.grad(loss, list(weights.values()), create_graph=second_order, allow_unused=True, materialize_grads=True)
        weights = {name: w - lr * g for (name, w), g in zip(weights.items(), grads, strict=True)}
    return dict(weights)


def descend_head(support: Tensor, weight: Tensor, bias: Tensor, steps: int, lr: float, second_order: bool) -> tuple[Tensor, Tensor]:
    """As `descend` for a linear head alone, from weight [C, D] and bias [C], for E episodes of support features [E, N, K, D].

    Returns weights [E, C, D] and biases [E, C], C ≥ N.
    """
    episodes, ways, shots, _ = support.shape
    x = support.flatten(1, 2)  # [E, S, D]
    targets = torch.eye(ways, len(weight), dtype=x.dtype, device=x.device).repeat_interleave(shots, 0)  # [S, C]
    weights, biases = weight.expand(episodes, -1, -1), bias.expand(episodes, -1)
    for _ in range(steps):
        error = (torch.baddbmm(biases.unsqueeze(1), x, weights.transpose(1, 2)).softmax(-1) - targets) / (ways * shots)
        grad_weight, grad_bias = error.transpose(1, 2) @ x, error.sum(1)
        if not second_order:
            grad_weight, grad_bias = grad_weight.detach(), grad_bias.detach()
        weights, biases = weights - lr * grad_weight, biases - lr * grad_bias
    return weights, biases
