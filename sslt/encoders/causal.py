"""Encoders that write the next word: GPT-2, Llama, Qwen and their like, by their config."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sslt.encoders.written import Writer
from sslt.errors import UserError

# GPT-2 warns where a row ends with padding and there is no mask; padding stands behind a text here, where no token of it looks
logging.getLogger("transformers.modeling_utils").addFilter(lambda record: "`attention_mask`" not in str(record.msg))


class CausalEncoder(Writer):
    """A transformers model `…ForCausalLM`: every token is read with those before it alone (Radford et al., 2018).

    pooling: "last", the state of the mark at the end of a text, which has read all of it, or "mean" over the tokens.
    """

    writes = "causal"
    poolings = ("last", "mean")
    auto: ClassVar[str] = "AutoModelForCausalLM"

    @property
    def network(self) -> Any:
        return self.model.base_model

    def _read(self, tokens: Tensor, mask: Tensor | None, segments: Tensor | None = None, documents: Tensor | None = None) -> Tensor:
        """Padding stands behind a text, where no token of it looks: it needs no mask.

        documents [B, T]: numbers of the texts in a row, which do not see each other, and whose positions each start at 0.
        """
        if self.virtual_tokens is not None:
            return self.virtual_tokens(self.network, tokens, mask, segments)
        if documents is None:
            return self.network(input_ids=tokens, use_cache=False).last_hidden_state
        t = torch.arange(tokens.shape[1], device=tokens.device)
        first = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
        start = torch.where(first, t, 0).cummax(1).values
        seen = (documents[:, :, None] == documents[:, None, :]) & (t[:, None] >= t)
        kind = self.token_embeddings.weight.dtype
        mask = torch.zeros(seen.shape, dtype=kind, device=seen.device).masked_fill(~seen, torch.finfo(kind).min)
        return self.network(input_ids=tokens, attention_mask=mask[:, None], position_ids=t - start, use_cache=False).last_hidden_state

    def word_states(self, inputs: dict[str, Tensor], positions: Tensor | None = None, outputs: Tensor | None = None) -> Tensor:
        """Of rows of several texts `inputs["documents"]` [B, T] says which text each token is of."""
        return self._read(inputs["tokens"], inputs.get("mask"), None, inputs.get("documents"))

    def reply_states(self, inputs: dict[str, Tensor], outputs: Tensor, outputs_mask: Tensor) -> Tensor:
        tokens, starts = prompts(inputs)
        width = int((starts + outputs_mask.sum(1)).max())
        longest = getattr(self.model.config, "max_position_embeddings", None)
        if longest and width > longest:
            raise UserError(
                f"a text and what is written of it have {width} tokens, more than the model's {longest} positions: lower "
                f"encoder.processor.max_length or encoder.processor.max_output"
            )
        place = torch.arange(width, device=tokens.device) - starts[:, None]  # among what is written
        written = outputs.gather(1, place.clamp(0, outputs.shape[1] - 1))
        row = torch.where(place >= 0, written, F.pad(tokens, (0, max(width - tokens.shape[1], 0)))[:, :width])
        states = self._read(row, None)
        at = (starts[:, None] - 1 + torch.arange(outputs.shape[1], device=tokens.device)).clamp(0, width - 1)
        return states.gather(1, at.unsqueeze(2).expand(-1, -1, states.shape[2]))

    def output_layer(self) -> tuple[Tensor, Tensor | None]:
        layer = self.model.get_output_embeddings()
        return layer.weight, getattr(layer, "bias", None)

    def _read_twice(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.word_states({"tokens": tokens}), self.model(input_ids=tokens).logits

    def unread(self) -> list[str]:
        layer = self.model.get_output_embeddings()
        tied = layer.weight is self.token_embeddings.weight
        return [] if tied else [f"model.{n}" for n, p in self.model.named_parameters() if p is layer.weight or p is layer.bias]


def prompts(inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What a text to go on from looks like: tokens [B, T] and how many of them there are [B]: the text with what starts it, and the mark
    of its end, behind which the reply begins."""
    tokens = inputs["tokens"]
    mask = inputs.get("mask")
    sizes = torch.full((len(tokens),), tokens.shape[1], device=tokens.device) if mask is None else mask.sum(1)
    return tokens, sizes
