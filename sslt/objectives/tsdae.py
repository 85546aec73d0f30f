"""TSDAE: a whole text is written from the one vector that is left of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt.data.views.base import Views
from sslt.data.views.text_corruption import DeleteWords
from sslt.encoders.base import Encoder
from sslt.errors import UserError
from sslt.objectives.base import Loss, Objective, encode_views
from sslt.objectives.parts.vocabulary import IGNORED, mean_loss
from sslt.ranges import Count


class TSDAE(Objective):
    """Transformer-based sequential denoising auto-encoder (Wang et al., 2021).

    Reads what `DeleteWords` makes: `views` [1, B, ...], texts without some of their words, and the whole texts, `outputs` [B, M] with
    `outputs_mask` [B, M]. The decoder attends to nothing but the pooled feature (section 3.1). It is the encoder's own where it has one,
    else one of this objective's, of `depth` blocks with `heads` heads, whose words are the encoder's embeddings on both of its sides; the
    paper's shares all of its weights with the encoder.
    """

    modality = "text"
    advice = "train for longer, or delete fewer words (views.rate)"

    def __init__(self, encoder: Encoder, depth: Count, heads: Count):
        super().__init__()
        encoder.require_writing("masked", "causal", "seq2seq")
        self.writes = encoder.writes == "seq2seq"
        self.decoder = None if self.writes else VectorWriter(encoder, depth, heads)

    def check_views(self, views: Views) -> None:
        if not isinstance(views, DeleteWords):
            raise UserError("this objective writes deleted words again, and these views delete none: choose views=delete_words")

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        pooled, outputs, mask = encode_views(encoder, batch).pooled, batch["outputs"], batch["outputs_mask"]
        if self.decoder is None:
            states, (weight, bias) = encoder.decoded(pooled[:, None], None, outputs), encoder.output_layer()  # type: ignore[operator]
        else:
            table = encoder.token_embeddings.weight  # type: ignore[union-attr]
            states, weight, bias = self.decoder(table, pooled, outputs), table, self.decoder.bias  # type: ignore[assignment]
        targets = outputs.masked_fill(~mask, IGNORED).flatten()
        return mean_loss(states.flatten(0, 1), targets, weight, bias, self.logs_now)  # type: ignore[arg-type]

    def units(self, batch: dict) -> int | Tensor:
        return batch["outputs_mask"].sum()


class VectorWriter(nn.Module):
    """A small transformer that writes a text from one vector: word embeddings [V, E], vectors [B, D], outputs [B, M] → states [B, M, E]."""

    def __init__(self, encoder: Encoder, depth: int, heads: int):
        super().__init__()
        p = encoder.processor
        width: int = encoder.token_embeddings.embedding_dim  # type: ignore[union-attr, assignment]
        if width % heads:
            raise UserError(f"objective.heads={heads}: the encoder's words are {width} wide, which has to be a multiple of it")
        self.start_id = p.sep_id if p.cls_id is None else p.cls_id
        self.position = nn.Embedding(p.max_length, width)
        nn.init.normal_(self.position.weight, std=0.02)
        self.memory = nn.Linear(encoder.dim, width)
        self.norm = nn.LayerNorm(width)
        layer = nn.TransformerDecoderLayer(width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerDecoder(layer, depth, nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(p.vocab_size))

    def forward(self, table: Tensor, vectors: Tensor, outputs: Tensor) -> Tensor:
        m = outputs.shape[1]
        before = F.pad(outputs[:, :-1], (1, 0), value=self.start_id)
        words = self.norm(F.embedding(before, table) + self.position.weight[:m])
        later = torch.ones(m, m, dtype=torch.bool, device=outputs.device).triu(1)
        return self.layers(words, self.memory(vectors)[:, None], tgt_mask=later, tgt_is_causal=True)
