"""ELECTRA: which words of a text a small masked language model has put there."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt import distributed
from sslt.data.views.base import Views
from sslt.data.views.text_views import MaskTokens
from sslt.encoders.base import Encoder
from sslt.encoders.text import no_pooler
from sslt.errors import UserError
from sslt.objectives.base import Loss, Objective, wide
from sslt.objectives.parts.masking import take
from sslt.objectives.parts.vocabulary import IGNORED, hits, vocabulary_loss, vocabulary_samples
from sslt.ranges import Fraction, NonNegative


class Electra(Objective):
    """Replaced token detection (Clark et al., 2020).

    Reads what `MaskTokens` makes (`tokens`, `inputs`, `positions` and `targets` [B, K]; the authors' code masks 85 % of the chosen and
    keeps the rest). A `Generator` learns the chosen words; from what it gives one word is drawn at each of their places, without gradient,
    and the encoder says of every token that stands for text whether it is another than it was: a right draw is none. Loss: the
    generator's mean over the chosen words, plus weight times the mean over the text's tokens of the binary cross-entropy (section 2).

    The encoder is the discriminator. Units are tokens of text; over ranks the generator's mean is that of all their chosen words.
    """

    modality = "text"
    advice = "try a lower learning rate or a narrower generator (objective.width), whose words are easier to tell"

    def __init__(self, encoder: Encoder, width: Fraction, weight: NonNegative):
        super().__init__()
        encoder.require_writing("masked")
        if encoder.processor.windows != 1:
            raise UserError(f"windows={encoder.processor.windows or 'all'}: the generator reads one window, so leave windows= out")
        self.weight = weight
        self.generator = Generator(encoder, width)
        self.register_buffer("special", torch.as_tensor(encoder.processor.special_ids), persistent=False)
        self.told = nn.Sequential(nn.Linear(encoder.dim, encoder.dim), nn.GELU(), nn.Linear(encoder.dim, 1))

    def check_views(self, views: Views) -> None:
        if not isinstance(views, MaskTokens):
            raise UserError("this objective replaces masked words, and these views mask none: choose views=mask_tokens")

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        inputs, positions, targets = batch["inputs"], batch["positions"], batch["targets"].flatten()
        table = cast(nn.Embedding, encoder.token_embeddings)  # type: ignore[attr-defined]
        each = self.generator(table(inputs["tokens"]), inputs.get("mask"), positions)
        weight, bias, states = table.weight, self.generator.bias, each.flatten(0, 1)
        learned = vocabulary_loss(states, weight, targets, bias)

        drawn = vocabulary_samples(each, weight, bias).view_as(positions)
        drawn = torch.where(batch["targets"] != IGNORED, drawn, inputs["tokens"].gather(1, positions))
        shown = inputs["tokens"].scatter(1, positions, drawn)
        text, replaced = self._text(batch), shown != batch["tokens"]
        told = wide(self.told(encoder({**inputs, "tokens": shown}).tokens).squeeze(2))
        wrong = F.binary_cross_entropy_with_logits(told, replaced.to(told.dtype), reduction="none")

        n, chosen = text.sum().clamp(min=1), (targets != IGNORED).sum()
        all_n, all_chosen = distributed.sum_over_ranks(torch.stack([n, chosen]).double()).to(learned.dtype)
        generator = learned / n * (all_n / all_chosen.clamp(min=1))  # weighed by this rank's tokens, the mean over all chosen words
        discriminator = (wrong * text).sum() / n
        logs = {}
        if self.logs_now:
            logs = {
                "generator_loss": generator.detach(),
                "generator_accuracy": hits(states, weight, targets, bias) / chosen.clamp(min=1),
                "discriminator_loss": discriminator.detach(),
                "discriminator_accuracy": (((told > 0) == replaced) & text).sum() / n,
                "replaced": (replaced & text).sum() / n,
            }
        return Loss(generator + self.weight * discriminator, logs)

    def _text(self, batch: dict) -> Tensor:
        """[B, T], True where a token stands for text; of the texts as they were."""
        text = ~torch.isin(batch["tokens"], cast(Tensor, self.special))
        return text & batch["mask"] if "mask" in batch else text

    def units(self, batch: dict) -> int | Tensor:
        return self._text(batch).sum()


class Generator(nn.Module):
    """A masked language model of the encoder's family, as deep and `width` times as wide (section 3.2), over the encoder's word embeddings.

    Embeddings [B, T, E] of what is shown go through a linear map to its width, and so does its output back, to be compared with all of them
    (the head of the authors' code: linear, GELU, LayerNorm, a bias of its own). Positions are its own.
    """

    def __init__(self, encoder: Any, width: float):
        super().__init__()
        outer = encoder.token_embeddings.embedding_dim
        self.model = narrowed(encoder.model.config, width)
        self.model.set_input_embeddings(nn.Identity())  # it is given embeddings
        inner = int(self.model.config.hidden_size)
        self.narrow = nn.Linear(outer, inner)
        self.head = nn.Sequential(nn.Linear(inner, outer), nn.GELU(), nn.LayerNorm(outer))
        self.bias = nn.Parameter(torch.zeros(encoder.processor.vocab_size))

    def forward(self, embeddings: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
        """States [B, K, E] of the tokens at `positions` [B, K]."""
        mask = None if mask is None else mask.long()
        tokens = self.model(inputs_embeds=self.narrow(embeddings), attention_mask=mask).last_hidden_state
        return self.head(take(tokens, positions))


def narrowed(config: Any, width: float) -> Any:
    """An untrained network of a family's config, `width` times as wide: heads, their outputs and the layers within blocks alike.

    Raises `UserError` where the family does not say how wide these are.
    """
    from transformers import AutoModel

    small = copy.deepcopy(config)
    heads = max(1, round(config.num_attention_heads * width))
    small.num_attention_heads = heads
    small.hidden_size = max(2, round(config.hidden_size * width / heads / 2) * 2) * heads
    if getattr(config, "num_key_value_heads", None):
        small.num_key_value_heads = heads
    if getattr(config, "embedding_size", None):  # families whose words are narrower than their blocks
        small.embedding_size = small.hidden_size
    inner = next((name for name in ("intermediate_size", "hidden_dim") if getattr(config, name, None)), None)
    if inner is None:
        raise UserError(f"the width of {config.model_type} is nothing that sslt knows how to narrow: choose encoder=bert_tiny")
    setattr(small, inner, max(1, round(getattr(config, inner) * width)))
    return AutoModel.from_config(small, **no_pooler(small))
