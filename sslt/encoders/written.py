"""Encoders whose model in the library writes: what it says is what sslt trains."""

from __future__ import annotations

import abc
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslt.data.prepare.text_processor import TextProcessor
from sslt.encoders.text import TextEncoder
from sslt.errors import UserError


class Writer(TextEncoder):
    """A transformers model that writes; a subclass says how words are read out of it."""

    _known = False  # whether its logits are what `output_layer` makes of states

    @classmethod
    def _config(cls, processor: TextProcessor, model_type: str, config: dict[str, Any]) -> Any:
        marks = {"bos_token_id": processor.cls_id, "eos_token_id": processor.sep_id}  # the family's own may be beyond this vocabulary
        return super()._config(processor, model_type, {**config, **marks})

    def require_writing(self, *kinds: str) -> None:
        """Asked for the first time, it also raises `UserError` for a family whose logits are more than states times a matrix (soft caps,
        scales that are not known here)."""
        super().require_writing(*kinds)
        if self._known:
            return
        mark = self.processor.unknown_id if self.processor.sep_id is None else self.processor.sep_id
        tokens = torch.tensor([[mark, self.processor.unknown_id, mark]], device=self.model.device)
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                states, known = self._read_twice(tokens)
                ours, known = F.linear(states, *self.output_layer()).float(), known.float()
        finally:
            self.train(training)
        if known.shape != ours.shape or not torch.allclose(known, ours, rtol=1e-2, atol=1e-2 * float(known.abs().max().clamp(min=1e-3))):
            raise UserError(
                f"{self.args['model_type']} changes its logits in a way that sslt does not know: choose a family such as gpt2, llama or t5"
            )
        self._known = True

    @abc.abstractmethod
    def _read_twice(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """`word_states` of tokens [1, T], and the logits that the library's model has of the same."""
