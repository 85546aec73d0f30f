"""Prompts of samples: a template around each text, cut to what the encoder reads, behind a few examples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sslt.data.base import Samples
from sslt.encoders.base import Encoder
from sslt.encoders.published import positions
from sslt.errors import UserError
from sslt.targets.templates import Spaces, Template, laid_out

LEAST = 4  # tokens of its text that an example has


class Prompts:
    """Prompts of one template for one encoder, of at most `limit` tokens. Raises `UserError` where an encoder cannot be asked."""

    def __init__(self, encoder: Encoder, template: Template, max_length: int | None):
        p = self.processor = encoder.processor
        self.template, self.masked = template, encoder.writes == "masked"
        if self.masked and encoder.words is None:
            raise UserError(
                "this encoder has no head that reads hidden words out, and would answer at random: pretrain it by +task=mlm, or take a "
                "Hugging Face folder that has one"
            )
        if self.masked and p.mask_id is None:
            raise UserError("this tokenizer has no mask token for {label}: choose another encoder, such as encoder=bert_tiny")
        if template.label_first and not self.masked:
            raise UserError("objective.template: a causal encoder goes on with {label}, which has to stand behind {text}")
        longest = positions(encoder.model.config)  # type: ignore[union-attr]
        self.limit: int = max_length or p.max_length
        if longest is not None and self.limit > longest:
            raise UserError(f"objective.max_length={self.limit} is more than the model's {longest} positions")
        if self.limit > p.max_length and p.windows != 1:
            raise UserError(f"objective.max_length={self.limit} is more than a window of {p.max_length}: leave it null, or set windows=1")
        self.spaces = Spaces(p)
        self.start = [] if p.cls_id is None else [p.cls_id]
        self.room(0)

    def room(self, shown: int) -> int:
        """Tokens that are left for a text, behind examples of so many. Raises `UserError` where none is."""
        around = sum(map(len, self.template.around([0] * self.template.longest)))
        fixed = len(self.start) + shown + around + self.masked
        if fixed >= self.limit:
            raise UserError(
                f"a prompt has {fixed} tokens without its text, and {self.limit} are read: shorten objective.template or the label words, "
                f"or raise objective.max_length"
            )
        return self.limit - fixed

    def texts(self, inputs: dict[str, Tensor], room: int) -> tuple[Tensor, Tensor]:
        """Tokens [B, N] of texts and how many [B], at most `room` from their start, without marks; of several windows the first."""
        p, before = self.processor, len(self.start)
        sizes = inputs["mask"].sum(1).clamp(max=p.max_length) - before - 1
        text = inputs["tokens"][:, before:]
        if self.template.spaced:
            text, sizes = self.spaces.before(text, sizes)
        sizes = sizes.clamp(max=room)
        return text[:, : int(sizes.max())], sizes

    def of(self, inputs: dict[str, Tensor], shown: list[int]) -> Callable[[list[int]], tuple[dict[str, Tensor], Tensor]]:
        """Prompts of texts, as a function of the ids in the label's place: rows, and where the label begins [B].

        A causal encoder's end before the label, whatever is in its place.
        """
        text, sizes = self.texts(inputs, self.room(len(shown)))
        t = self.template

        def rows(label: list[int]) -> tuple[dict[str, Tensor], Tensor]:
            before, after = t.around(label)
            head = [*self.start, *shown, *before]
            tail = [*after, self.processor.sep_id] if self.masked else t.between
            at = torch.full_like(sizes, len(head) - len(label) - len(t.between)) if t.label_first else sizes + len(head) + len(t.between)
            return laid_out(text, sizes, head, tail, self.processor.pad_id), at

        return rows

    def empty(self, device: torch.device) -> dict[str, Tensor]:
        """A text without a word, as a sample."""
        marks = torch.tensor([[*self.start, self.processor.sep_id]], device=device)
        return {"tokens": marks, "mask": torch.ones_like(marks, dtype=torch.bool)}

    def examples(self, samples: Samples, shots: int, seed: int, joiner: list[int]) -> list[int]:
        """The ids of examples with their classes' first words, one behind the other, so that as much is left for a text as each has.

        Raises `UserError` where these are too many.
        """
        rows = balanced(np.asarray(samples.labels), shots, seed)
        batch, t = samples.batch(rows), self.template
        label = [t.words[c][0] for c in batch["label"].tolist()]
        around = [t.around(ids) for ids in label]
        fixed = sum(len(before) + len(after) + len(joiner) for before, after in around)
        share = (self.room(0) - fixed) // (shots + 1)
        if share < LEAST:
            raise UserError(
                f"objective.shots={shots}: of {self.limit} tokens, templates leave {max(share, 0)} for each text: take fewer, "
                f"or raise objective.max_length"
            )
        text, sizes = self.texts(batch, share)
        ids: list[int] = []
        for (before, after), row, n in zip(around, text.tolist(), sizes.tolist(), strict=True):
            ids += [*before, *row[:n], *after, *joiner]
        return ids


def balanced(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` rows of classes [N], of each as many as of the others, or one more; shuffled. Raises `UserError` where there are too few."""
    if count > len(labels):
        raise UserError(f"objective.shots={count}, and there are {len(labels)} training samples")
    rng = np.random.default_rng([seed, 0x5407])
    order = rng.permutation(len(labels))
    classes = rng.permutation(np.unique(labels))
    turn = np.zeros(len(labels), np.int64)  # which of its class a row is
    for c in classes:
        turn[order[labels[order] == c]] = np.arange((labels == c).sum())
    place = np.empty(int(labels.max()) + 1, np.int64)
    place[classes] = np.arange(len(classes))
    return rng.permutation(np.lexsort((place[labels], turn))[:count])
