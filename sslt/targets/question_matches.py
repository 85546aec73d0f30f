"""What can be seen of a context without having learned anything: where words of the question stand, names, and numbers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt.data.base import Samples
from sslt.encoders.base import Encoder
from sslt.objectives.base import wide
from sslt.targets.passages import Passages, Text, text_of

WIDTHS = (5, 15, 45)  # tokens around one in which words of the question are counted
NEAR = 8  # tokens before one, and after it
LOOKED_AT = 2000  # contexts in which it is counted how common a word is
FEATURES = 10 + len(WIDTHS)


class Matches(nn.Module):
    """A vector for each token that is added to its embedding: whether it is in the question, how rare, what is around, how it is written.

    "Exact match" is what small readers live on (Chen et al., 2017, section 3.2). The map starts at 0, so that a pretrained encoder
    reads at first what it always did.
    """

    idf: Tensor

    def __init__(self, encoder: Encoder):
        super().__init__()
        words, width = encoder.token_embeddings.weight.shape  # type: ignore[union-attr, misc]
        self.weight = nn.Linear(FEATURES, width, bias=False)
        nn.init.zeros_(self.weight.weight)
        self.register_buffer("idf", torch.ones(words))

    def fit(self, encoder: Encoder, samples: Samples) -> None:
        """Count in how many contexts each token is: rare ones say more."""
        n = min(len(samples), LOOKED_AT)
        counts = torch.zeros(len(self.idf))
        for index in np.array_split(np.linspace(0, len(samples) - 1, n).astype(int), -(-n // 100)):
            context = text_of(samples.batch(index), "context", encoder.processor)
            for row, size in zip(context.tokens, context.sizes.tolist(), strict=True):
                counts[row[:size].unique()] += 1
        idf = ((1 + n) / (1 + counts)).log() / math.log(1 + n)
        idf[[i for i in (*encoder.processor.special_ids, encoder.processor.unknown_id) if i < len(idf)]] = 0.0
        self.idf.copy_(idf)

    def forward(self, windows: Passages, context: Text, asked: tuple[Tensor, Tensor], characters: Tensor) -> Tensor:
        """[N, W, D]."""
        shown = self.of_context(context, asked, characters)
        question, sizes = asked
        inside = torch.arange(question.shape[1], device=sizes.device) < sizes[:, None]
        same = ((question[:, :, None] == context.tokens[:, None]) & context.inside[:, None]).any(2) & inside
        rare = self.idf[question] * same
        told = F.pad(torch.stack([(rare > 0).to(rare.dtype), rare], 2), (0, FEATURES - 2))
        return self.weight(windows.gathered(shown, told))

    def of_context(self, context: Text, asked: tuple[Tensor, Tensor], characters: Tensor) -> Tensor:
        """Of each token of a context, [B, T, FEATURES]: in the question or not, its rarity if so, with a neighbour of it in the question,
        rarity around it as shares of the question's, capital letter, digit, start of a word."""
        question, sizes = asked
        start = context.places[..., 0].clamp(min=0)
        letter = characters.gather(1, start.clamp(max=characters.shape[1] - 1)).long()
        inside = torch.arange(question.shape[1], device=sizes.device) < sizes[:, None]
        same = (context.tokens[:, :, None] == question[:, None]) & (context.inside[:, :, None] & inside[:, None])
        rare = self.idf[context.tokens] * same.any(2)
        two = (same[:, :-1, :-1] & same[:, 1:, 1:]).any(2)
        pairs = (F.pad(two, (0, 1)) | F.pad(two, (1, 0))).to(rare.dtype) * (rare > 0)
        whole = (self.idf[question] * inside).sum(1, keepdim=True).clamp(min=1e-3)
        sides = [beside(rare, NEAR, left) / whole for left in (True, False)]
        in_sentence = sentences(rare, letter, context) / whole
        best = (in_sentence >= in_sentence.amax(1, keepdim=True)) & (in_sentence > 0)
        around = [F.avg_pool1d(rare[:, None], n, 1, n // 2)[:, 0] * n / whole for n in WIDTHS]
        capital = ((letter >= 65) & (letter <= 90)) | ((letter >= 192) & (letter <= 222)) | ((letter >= 1040) & (letter <= 1071))
        digit = ((letter >= 48) & (letter <= 57)) | ((letter >= 0xFF10) & (letter <= 0xFF19))
        begins = start != F.pad(context.places[:, :-1, 1], (1, 0), value=-1)
        flags = [x.to(rare.dtype) for x in (capital, digit, begins, best)]
        return torch.stack([(rare > 0).to(rare.dtype), rare, pairs, *around, *flags, *sides, in_sentence], 2) * context.inside[..., None]


def beside(x: Tensor, n: int, left: bool) -> Tensor:
    """Sum of x [B, T] over the n tokens before each one, or after it."""
    total = F.pad(x.cumsum(1), (n + 1, n), mode="constant")
    total[:, -n:] = total[:, -n - 1 : -n]
    at = torch.arange(x.shape[1], device=x.device) + n + 1  # of a token's own sum
    return total[:, at - 1] - total[:, at - 1 - n] if left else total[:, at + n] - total[:, at]


def sentences(x: Tensor, letter: Tensor, context: Text) -> Tensor:
    """Sum of x [B, T] over the sentence of each token; a full stop ends one where something else than a letter follows."""
    after = F.pad(context.places[:, 1:, 0], (0, 1), value=-1) != context.places[..., 1]
    ends = torch.isin(letter, torch.tensor([46, 33, 63], device=x.device)) & after
    ends |= torch.isin(letter, torch.tensor([0x3002, 0xFF01, 0xFF1F], device=x.device))
    number = F.pad(ends[:, :-1].long().cumsum(1), (1, 0))
    return torch.zeros_like(x).scatter_add(1, number, x).gather(1, number)


@contextlib.contextmanager
def added(embeddings: nn.Module, extra: Tensor | None) -> Iterator[None]:
    """Within, `extra` [N, W, D] is added to what `embeddings` give."""
    if extra is None:
        yield
        return
    handle = embeddings.register_forward_hook(lambda module, given, found: wide(found) + extra)
    try:
        yield
    finally:
        handle.remove()
