"""A bag of words and word pairs as an encoder: a vector for each, and their mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt.data.prepare.bag_processor import BagProcessor
from sslt.data.prepare.parts import part_names
from sslt.encoders.base import Encoder, Features, require
from sslt.encoders.files import fill
from sslt.encoders.lexicon import hashed_pairs
from sslt.errors import UserError

WEIGHTS = "model.safetensors"
TABLE_RATE = 20.0  # rates are those of layers that every sample moves; a row moves only when its word is read


class BagEncoder(Encoder):
    """The mean of learned vectors of a text's words and pairs of neighbouring words (fastText: Joulin et al., 2017; as features that
    were learned without labels: Arora et al., 2017).

    Words have the ids of the processor, pairs are hashed into `pairs` rows (0: no pairs). A word counts by its inverse document
    frequency, a pair by `pair_weight`. Features [B, dim] have root mean square 1, so that neither a text's length nor how long
    training went on shows in their size; an empty text has zeros. The text as a whole is their only token.
    """

    modality = "text"
    offers = frozenset({"pooled"})
    side_models = ("words",)
    Processor = BagProcessor

    def __init__(self, processor: BagProcessor, dim: int, pairs: int, pair_weight: float, dropout: float):
        super().__init__(processor, dim=dim, pairs=pairs, pair_weight=pair_weight, dropout=dropout)
        if dim < 1 or pairs < 0:
            raise UserError(f"encoder.dim={dim} encoder.pairs={pairs}: give at least 1 number and 0 pairs")
        self.dim, self.pair_weight = dim, pair_weight
        self.words = nn.Embedding(processor.vocab_size, dim)
        self.pairs = nn.Embedding(pairs, dim) if pairs else None
        for table in self.tables():
            nn.init.normal_(table.weight, std=0.1)
        self.dropout = nn.Dropout(dropout)
        self.rarity: Tensor
        self.register_buffer("rarity", torch.from_numpy(processor.rarity()), persistent=False)  # the vocabulary's, which is saved

    @classmethod
    def build(cls, source: Any, processor: dict[str, Any], **args: Any) -> BagEncoder:
        """An encoder of the words of `source`."""
        require("text", source, "encoder bag")
        return cls(BagProcessor.fit(source, **processor), **args)

    def inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Samples of several parts are one bag, in which no word of one is beside one of another; what is of which part is lost, so that
        each had better be encoded by itself (`objective=pairs`). Subwords of unknown words are for what stands beside it."""
        if names := part_names(batch):
            hole = torch.zeros_like(batch[f"{names[0]}.tokens"][:, :1])
            found = {"tokens": torch.cat([x for name in names for x in (batch[f"{name}.tokens"], hole)], 1)}
            spelled = [batch[f"{name}.subwords"] for name in names if f"{name}.subwords" in batch]
            return {**found, "subwords": torch.cat(spelled, 1)} if spelled else found
        return {name: batch[name] for name in ("tokens", "subwords") if name in batch}

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        tokens = inputs["tokens"]
        seen = tokens > 0
        ids = tokens[seen]
        summed = _sum(self.words, ids, self.rarity[ids], seen.sum(1))
        if self.pairs is not None:
            both = seen[:, 1:] & seen[:, :-1]
            ids = hashed_pairs(tokens[:, :-1][both], tokens[:, 1:][both], self.pairs.num_embeddings)
            summed = summed + _sum(self.pairs, ids, torch.full_like(ids, self.pair_weight, dtype=summed.dtype), both.sum(1))
        pooled = self.dropout(F.rms_norm(summed, (self.dim,), eps=1e-12))
        return Features(pooled, pooled.unsqueeze(1))

    def rate_of(self, parameter: str) -> float:
        return TABLE_RATE

    def tables(self) -> list[nn.Embedding]:
        return [self.words] if self.pairs is None else [self.words, self.pairs]

    def word_ids(self, inputs: dict[str, Tensor]) -> Tensor:
        return inputs["tokens"]

    def word_list(self) -> list[str]:
        return self.processor.vocabulary

    def hideable(self, inputs: dict[str, Tensor]) -> Tensor:
        return inputs["tokens"] > 0

    def pick(self, inputs: dict[str, Tensor], kept: Tensor) -> dict[str, Tensor]:
        return {**inputs, "tokens": inputs["tokens"] * kept}

    def block_names(self) -> list[str]:
        return []

    def save_weights(self, folder: Path) -> None:
        from safetensors.torch import save_file

        save_file({k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}, folder / WEIGHTS)

    def load_weights(self, folder: Path) -> None:
        fill(self, folder / WEIGHTS)

    def processor_config(self, folder: Path) -> dict[str, Any]:
        return self.processor.save(folder)

    @classmethod
    def load_processor(cls, folder: Path, config: dict[str, Any]) -> BagProcessor:
        return BagProcessor.load(folder, config)


def _sum(table: nn.Embedding, ids: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    """Σ weight · row [B, D] over the ids of each text, which stand one text after the other, `counts` [B] of them."""
    offsets = counts.cumsum(0) - counts
    rows = table.weight
    return F.embedding_bag(ids, rows, offsets, mode="sum", per_sample_weights=weights.to(rows.dtype), sparse=table.sparse)
