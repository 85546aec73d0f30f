"""Causal language modelling: the next word."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslt.encoders.base import Encoder
from sslt.objectives.base import Loss, Objective, n_views
from sslt.objectives.parts.vocabulary import IGNORED, mean_loss


class CausalLM(Objective):
    """Cross-entropy of every token given those before it in its row (Bengio et al., 2003; Radford et al., 2018).

    Reads `views` [V, B, ...] as `Plain` makes them. The mark of a text's end is learned like a word; padding, known by the length of a text
    and not by its id, is not. apart: whether the texts in a packed row do not see each other, each with positions that start at 0.
    """

    modality = "text"
    writes = holds_out = True
    advice = "train for longer: the next word teaches late what a whole text means; where time is short, +task=crops compares whole texts"

    def __init__(self, encoder: Encoder, apart: bool):
        super().__init__()
        encoder.require_writing("causal")
        self.apart = apart
        self.end_id = encoder.processor.special[1]

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        inputs = {k: x.flatten(0, 1) for k, x in batch["views"].items()}
        if self.apart and "mask" not in inputs:  # a packed row
            ended = F.pad((inputs["tokens"] == self.end_id).long(), (1, 0))[:, :-1]
            inputs["documents"] = ended.cumsum(1)
        states = encoder.word_states(inputs)[:, :-1].flatten(0, 1)
        return mean_loss(states, next_tokens(inputs).flatten(), *encoder.output_layer(), self.logs_now)

    def units(self, batch: dict[str, Any]) -> int | Tensor:
        views = batch["views"]
        tokens = views["tokens"]
        if "mask" not in views:
            return n_views(views) * tokens.shape[1] * (tokens.shape[2] - 1)
        return views["mask"][:, :, 1:].sum()


def next_tokens(inputs: dict[str, Tensor]) -> Tensor:
    """What stands at each place's next, int64 [B, T - 1] of tokens [B, T]; `IGNORED` behind a text's end."""
    following = inputs["tokens"][:, 1:]
    return following if "mask" not in inputs else torch.where(inputs["mask"][:, 1:], following, IGNORED)
