"""Views of text: which words are hidden, and which parts of a document are seen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sslt.data.views.base import Views
from sslt.errors import UserError
from sslt.ranges import Count, Share


class MaskTokens(Views):
    """Choose tokens to predict (Devlin et al., 2019): 15 % of a row, of these 80 % masked, 10 % random words, 10 % kept.

    Exactly K = round(rate · length) tokens a row are chosen, so that shapes are static (Geiping & Goldstein, 2023); special tokens
    and padding are never chosen; a row with fewer real tokens has its surplus targets set to -100, which no loss counts.

    whole_word: chosen tokens are taken word by word, until K; a word is a token and those that continue it.
    """

    modality = "text"

    def __init__(self, rate: Share, mask_share: Share, random_share: Share, whole_word: bool):
        super().__init__()
        self.rate, self.mask_share, self.random_share, self.whole_word = rate, mask_share, random_share, whole_word
        self._special: Tensor | None = None
        self._continues: Tensor | None = None
        self._ordinary: Tensor | None = None

    def forward(self, batch: dict[str, Tensor], encoder: Any) -> dict[str, Any]:
        tokens = batch["tokens"]
        p = encoder.processor
        if p.mask_id is None:
            raise UserError("this tokenizer has no mask token, so its encoder cannot learn by masking: +task=simcse needs none")
        special, continues, ordinary = self._tables(p, tokens.device)
        k = max(1, round(self.rate * tokens.shape[1]))
        allowed = ~special[tokens]
        if "mask" in batch:
            allowed &= batch["mask"]
            # rows are of different length: each gives its own 15 %, the widest row sets the shape
            want = (self.rate * allowed.sum(1)).round().clamp(min=1)
        else:
            want = torch.full((len(tokens),), k, device=tokens.device)
        score = torch.rand(tokens.shape, device=tokens.device)
        if self.whole_word:
            word = (~continues[tokens]).cumsum(1)
            score = score.gather(1, word.clamp(max=tokens.shape[1] - 1))  # all tokens of a word share a draw
            score = score + 1e-6 * word / tokens.shape[1]
        score = score.masked_fill(~allowed, 2.0)
        drawn, positions = score.topk(k, largest=False, sorted=True)
        targets = tokens.gather(1, positions)
        counted = (drawn < 1.5) & (torch.arange(k, device=tokens.device) < want.unsqueeze(1))
        fate = torch.rand(targets.shape, device=tokens.device)
        words = ordinary[torch.randint(0, len(ordinary), targets.shape, device=tokens.device)]
        shown = torch.where(fate < self.mask_share, p.mask_id, torch.where(fate < self.mask_share + self.random_share, words, targets))
        masked = tokens.scatter(1, positions, torch.where(counted, shown, targets))
        inputs = {"tokens": masked, **({"mask": batch["mask"]} if "mask" in batch else {})}
        return {
            **batch,
            "inputs": inputs,
            "positions": positions,
            "targets": targets.masked_fill(~counted, -100),
            "n_targets": counted.sum(),
        }

    def _tables(self, processor: Any, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Of the vocabulary [V]: which are special, which continue a word; and the ids of those that are not special."""
        if self._special is None or self._special.device != device:
            import numpy as np

            special = torch.zeros(processor.vocab_size, dtype=torch.bool)
            special[torch.as_tensor(sorted(processor.special_ids))] = True
            continues = np.zeros(processor.vocab_size, dtype=bool)
            if self.whole_word:
                from sslt.data.prepare.tokenizers import continues_word

                found = continues_word(processor.tokenizer)
                continues[: len(found)] = found
            self._special, self._continues = special.to(device), torch.from_numpy(continues).to(device)
            self._ordinary = (~self._special).nonzero().flatten()
        assert self._special is not None and self._continues is not None and self._ordinary is not None
        return self._special, self._continues, self._ordinary


class Crops(Views):
    """`n` disjoint parts of one document: `views` [n, B, ...].

    piece: None gives each view one span of neighbouring tokens, as long as the encoder takes (DeCLUTR: Giorgi et al., 2021; Contriever:
    Izacard et al., 2022). A number cuts the document into pieces of so many tokens and deals all of them out at random, to every view
    as many: for encoders that do not mind holes between them. Pieces of a short text are smaller, so that each view has one. A text of
    fewer than `n` tokens is whole in every view.
    """

    modality = "text"
    n_setting = "views.n"
    whole_texts = True

    def __init__(self, n: Count, piece: Count | None):
        super().__init__()
        if piece is not None and piece < 1:
            raise UserError(f"views.piece={piece}: give at least 1 token, or null for one span a view")
        self.n, self.piece = n, piece

    def forward(self, batch: dict[str, Tensor], encoder: Any) -> dict[str, Any]:
        inputs = encoder.inputs(batch)
        words = encoder.hideable(inputs)
        count = words.sum(1, keepdim=True)
        place = words.cumsum(1) - 1  # among the words of the text
        kept = self._spans(place, count, encoder.processor.room) if self.piece is None else self._dealt(place, count, self.piece)
        return {**batch, "views": encoder.pick(inputs, (kept | (count < self.n)) & words)}

    def _spans(self, place: Tensor, count: Tensor, longest: int) -> Tensor:
        """[n, B, T], True where a view sees a token: n spans of equal size, in random order, with random gaps."""
        size = (count // self.n).clamp(max=longest)
        gaps = (torch.rand(len(count), self.n, device=count.device) * (count - self.n * size + 1)).long().sort(1).values
        starts = gaps + size * torch.arange(self.n, device=count.device)
        order = torch.rand(starts.shape, device=count.device).argsort(1)
        starts = starts.gather(1, order).T.unsqueeze(2)
        return (place >= starts) & (place < starts + size)

    def _dealt(self, place: Tensor, count: Tensor, piece: int) -> Tensor:
        """[n, B, T], True where a view sees a token: of pieces in a random order each view takes every n-th."""
        size = ((count + self.n - 1) // self.n).clamp(min=1, max=piece)
        pieces = max(-(-place.shape[1] // piece), self.n)  # at most
        score = torch.rand(len(count), pieces, device=count.device)
        score = score.masked_fill(torch.arange(pieces, device=count.device) * size >= count, 2.0)
        view = score.argsort(1).argsort(1) % self.n
        seen_by = view.gather(1, (place.clamp(min=0) // size).clamp(max=pieces - 1))
        return seen_by == torch.arange(self.n, device=count.device).view(-1, 1, 1)
