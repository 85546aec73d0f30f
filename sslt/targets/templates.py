"""Templates of prompts as token ids: what stands around a text, and the words that answer for each class."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sslt.data.prepare.text_processor import TextProcessor
from sslt.data.prepare.tokenizers import reader_of
from sslt.errors import UserError, nearest

log = logging.getLogger("sslt")
TEXT, LABEL = "{text}", "{label}"
_ENDS = ("a", "1", "。", ".")  # what the text before a piece may end with; one that does not run into the piece is taken


@dataclasses.dataclass(frozen=True)
class Template:
    """Token ids of a prompt, without the marks that start and end it: `before` what comes first, `between` text and label, `after`.

    label_first: whether the label stands before the text. spaced: whether there is a space before the text, which belongs to its first
    word. words: for each class, in the order of the classes, token ids of each of its words, with the space before them.
    """

    before: list[int]
    between: list[int]
    after: list[int]
    label_first: bool
    spaced: bool
    words: list[list[list[int]]]

    @property
    def longest(self) -> int:
        """Tokens of the longest word."""
        return max(len(ids) for words in self.words for ids in words)

    def around(self, label: Sequence[int]) -> tuple[list[int], list[int]]:
        """What stands before the text and behind it, with `label` in its place."""
        if self.label_first:
            return [*self.before, *label, *self.between], self.after
        return self.before, [*self.between, *label, *self.after]


def read_template(template: str, words: dict[str, list[str]], processor: TextProcessor) -> Template:
    """A template and the words of each class, as a tokenizer reads them within a prompt.

    Every piece is tokenized behind what stands before it, and a space before a word is the word's (" great", as byte-level tokenizers have
    it). Raises `UserError` for a template without one {text} and one {label}, and for words that the vocabulary does not have.
    """
    for place in (TEXT, LABEL):
        if template.count(place) != 1:
            raise UserError(f"objective.template={template!r}: it needs one {place}, such as '{{text}} It was {{label}}.'")
    label_first = template.index(LABEL) < template.index(TEXT)
    first, second = (LABEL, TEXT) if label_first else (TEXT, LABEL)
    before, rest = template.split(first)
    between, after = rest.split(second)
    tokenize = _Tokenizer(processor)
    to_label, to_text = (before, between) if label_first else (between, before)
    space = to_label[len(to_label.rstrip()) :]
    to_label, spaced = to_label.rstrip(), to_text.endswith(" ")
    to_text = to_text.rstrip(" ") if spaced else to_text
    before, between = (to_label, to_text) if label_first else (to_text, to_label)
    ends = ("",) if label_first else _ENDS
    found = Template(
        before=tokenize.all(before),
        between=tokenize.behind(_ENDS, between),
        after=tokenize.behind(_ENDS, after),
        label_first=label_first,
        spaced=spaced,
        words=[[tokenize.word([end + to_label for end in ends], space, word, name) for word in own] for name, own in words.items()],
    )
    if tokenize.unknown in (*found.before, *found.between, *found.after):
        log.warning("objective.template=%r has characters that this tokenizer does not know", template)
    _refuse_equal(list(words), words, found)
    return found


def read_joiner(text: str, processor: TextProcessor) -> list[int]:
    """The tokens of what stands between examples, without those that the tokenizer does not know (a line's end)."""
    tokenize = _Tokenizer(processor)
    return [i for i in tokenize.behind(_ENDS, text) if i != tokenize.unknown]


def label_words(classes: list[str], given: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """class → its words: those `given`, else its own name. Raises `UserError` where there is no such class."""
    words = {
        str(k): [str(w) for w in v] if isinstance(v, Sequence) and not isinstance(v, str) else [str(v)] for k, v in (given or {}).items()
    }
    for name, own in words.items():
        if name not in classes:
            there = nearest(name, classes) or f": there are {', '.join(classes[:10])}"
            raise UserError(f"objective.words: there is no class '{name}'{there}")
        if not own:
            raise UserError(f"objective.words: '{name}' has none, give at least one")
    if numbers := [c for c in classes if c not in words and c.lstrip("+-").isdigit()]:
        log.warning("class '%s' answers with its number, which says little: give objective.words={%s: [WORD], …}", numbers[0], numbers[0])
    return {c: words.get(c, [c.replace("_", " ")]) for c in classes}


def _refuse_equal(names: list[str], words: dict[str, list[str]], found: Template) -> None:
    seen: dict[tuple[int, ...], int] = {}
    for c, own in enumerate(found.words):
        for word, ids in zip(words[names[c]], own, strict=True):
            if (other := seen.setdefault(tuple(ids), c)) != c:
                raise UserError(
                    f"'{names[other]}' and '{names[c]}' have a word in common, '{word}' as the tokenizer reads it: nothing would tell them "
                    f"apart; give others, objective.words={{{names[c]}: [WORD]}}"
                )


class _Tokenizer:
    """Pieces of a text as a tokenizer reads them where they stand."""

    def __init__(self, processor: TextProcessor):
        self.backend = reader_of(processor.tokenizer)
        self.unknown = processor.tokenizer.unk_token_id

    def all(self, text: str) -> list[int]:
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def behind(self, lefts: Sequence[str], piece: str) -> list[int]:
        """The tokens of `piece` behind the first of `lefts` that no token of it reaches into."""
        for left in lefts:
            found = self.backend.encode(left + piece, add_special_tokens=False)
            if not any(start < len(left) < end for start, end in found.offsets):
                return list(found.ids[sum(end <= len(left) for _, end in found.offsets) :])
        return self.all(piece)

    def word(self, lefts: Sequence[str], space: str, word: str, name: str) -> list[int]:
        """The tokens of a label word. Raises `UserError` where it has none, or an unknown one."""
        ids = self.behind(lefts, space + word.strip())
        if not word.strip() or not ids or (self.unknown is not None and self.unknown in ids):
            raise UserError(
                f"'{word}', a word for the class '{name}', is no word of this encoder's vocabulary: give others, "
                f"objective.words={{{name}: [WORD]}}"
            )
        return ids


class Spaces:
    """Tokens of a text as they are behind a space: "This" alone is another token than " This" for byte-level tokenizers."""

    def __init__(self, processor: TextProcessor):
        self.backend = reader_of(processor.tokenizer)
        self.matters = self._ids("a") != self._ids(" a")

    def before(self, tokens: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Texts [B, N] of so many tokens [B], each as it is behind a space; they may be longer by one or more."""
        if not self.matters:
            return tokens, sizes
        rows = [self._spaced(row[:n]) for row, n in zip(tokens.tolist(), sizes.tolist(), strict=True)]
        found = tokens.new_zeros(len(rows), max(map(len, rows), default=0))
        for i, row in enumerate(rows):
            found[i, : len(row)] = torch.tensor(row, dtype=tokens.dtype)
        return found, torch.tensor([len(row) for row in rows], device=sizes.device)

    def _spaced(self, ids: list[int]) -> list[int]:
        """Tokens of another word do not change with the first one."""
        end = next((i for i in range(1, len(ids)) if self._text(ids[i : i + 1])[:1].isspace()), len(ids))
        return self._ids(" " + self._text(ids[:end])) + ids[end:]

    def _ids(self, text: str) -> list[int]:
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def _text(self, ids: list[int]) -> str:
        return str(self.backend.decode(ids, skip_special_tokens=False))


def laid_out(text: Tensor, sizes: Tensor, head: Sequence[int], tail: Sequence[int], pad: int) -> dict[str, Tensor]:
    """`tokens` [B, T] and `mask` [B, T] of rows `head`, text, `tail`: texts [B, N] of so many tokens [B], padded behind their ends."""
    rows, width, h, t = len(text), text.shape[1], len(head), len(tail)
    fixed = torch.tensor([*head, *tail], dtype=text.dtype, device=text.device).expand(rows, -1)
    parts = torch.cat([fixed[:, :h], text, fixed[:, h:]], 1)
    place, ends = torch.arange(h + width + t, device=text.device).expand(rows, -1), h + sizes[:, None]
    mask = place < ends + t
    index = torch.where(place < ends, place, (place - sizes[:, None] + width).clamp(max=h + width + t - 1))
    return {"tokens": parts.gather(1, index).masked_fill(~mask, pad), "mask": mask}
