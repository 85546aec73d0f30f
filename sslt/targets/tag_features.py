"""What a linear tagger reads of each word of a text: itself, its parts and shape, its neighbours, what was tagged like it in training.

Everything a word has is one 64-bit number (0: it has none), so that texts of any language are arrays and no vocabulary is looked up.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from sslt.data.ragged import Ragged

UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # letters of scripts without spaces between words
WORDS = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+|\S")
CHARACTERS = re.compile(r"\S")
AFFIXES = (1, 2, 3, 4)  # letters of the beginnings and ends of words
LOWER, CASED, SHAPE, BEFORE, AFTER = 0, 1, 2, 3, 3 + len(AFFIXES)  # columns of what a word has by itself
OWN = AFTER + len(AFFIXES)
LETTERS_3 = AFTER + AFFIXES.index(3)
REACH = 2  # words to either side
_PAIRS, _TRIPLES = [(-2, -1), (-1, 0), (0, 1), (1, 2), (-1, 1)], [(-2, -1, 0), (-1, 0, 1), (0, 1, 2)]
CONTEXT = [
    *((LOWER, at) for at in [(-2,), (-1,), (0,), (1,), (2,), *_PAIRS, *_TRIPLES]),
    *((SHAPE, at) for at in [(-1,), (0,), (1,), (-1, 0), (0, 1), (-1, 0, 1)]),
    *((column, (0,)) for column in (CASED, *range(BEFORE, OWN))),
    (LETTERS_3, (-1,)),
    (LETTERS_3, (1,)),
]  # columns, and places from the word's own that are read together
LONGEST = 24  # words of an entry
SHARES = (0.25, 0.5, 0.8)  # between which an entry is told apart by how often it was tagged
BEYOND = np.uint64(1)  # what stands before and behind a text
_FAR = 1 << 40  # behind any text


class Words(NamedTuple):
    """Words of N texts, one after the other: `places` int64 [W, 2] in their text, `sizes` [N], and `own` uint64 [W, OWN], what each has."""

    places: np.ndarray
    sizes: np.ndarray
    own: np.ndarray

    @property
    def texts(self) -> np.ndarray:
        """The text of each word [W]."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    @property
    def left(self) -> np.ndarray:
        """How many words of the text there are from each word on, itself counted [W]."""
        return np.repeat(np.cumsum(self.sizes), self.sizes) - np.arange(len(self.places))

    def of_spans(self, spans: Ragged) -> np.ndarray:
        """(first word, number of words, type, text) int64 [S, 4] of the spans that begin and end with words."""
        text, found = np.repeat(np.arange(len(spans)), spans.sizes), spans.flat()
        first, starts = find(self.texts * _FAR + self.places[:, 0], text * _FAR + found[:, 0])
        last, ends = find(self.texts * _FAR + self.places[:, 1], text * _FAR + found[:, 1])
        return np.stack([first, last + 1 - first, found[:, 2], text], 1)[starts & ends & (last >= first)]


def words_of(texts: Sequence[str], characters: bool) -> Words:
    """characters: each is a word, for languages whose names end inside words."""
    pattern, numbers = CHARACTERS if characters else WORDS, dict[str, int]()
    places, sizes, ids = [], [], []
    for text in texts:
        found = [m.span() for m in pattern.finditer(text)]
        places += found
        sizes.append(len(found))
        ids += [numbers.setdefault(text[a:b], len(numbers)) for a, b in found]
    own = np.array([_own(word) for word in numbers], np.uint64).reshape(-1, OWN)
    return Words(np.array(places, np.int64).reshape(-1, 2), np.array(sizes, np.int64), own[np.array(ids, np.int64)])


def context(words: Words) -> np.ndarray:
    """uint64 [W, F]: what each word and its neighbours have, one column for each of `CONTEXT`."""
    at = np.arange(len(words.own)) + REACH * (words.texts + 1)
    padded = np.full((len(words.own) + REACH * (len(words.sizes) + 1), OWN), BEYOND)
    padded[at] = words.own
    return np.stack([_joined([padded[at + k, column] for k in places], number) for number, (column, places) in enumerate(CONTEXT)], 1)


class Entries(NamedTuple):
    """What was tagged in training: `hashes` uint64 [E] of its words, sorted, how often as each type [E, C], and `found` [E] in all."""

    hashes: np.ndarray
    tagged: np.ndarray
    found: np.ndarray

    @classmethod
    def learn(cls, words: Words, spans: Ragged, n_types: int) -> Entries:
        own = words.of_spans(spans)
        own = own[own[:, 1] <= LONGEST]
        by_size = dict(_hashes(words.own[:, CASED], int(own[:, 1].max(initial=0))))
        of_span = np.array([by_size[n][i] for i, n in own[:, :2].tolist()], np.uint64)
        hashes, entry = np.unique(of_span, return_inverse=True)
        tagged = np.zeros((len(hashes), n_types), np.int64)
        np.add.at(tagged, (entry, own[:, 2]), 1)
        made = cls(hashes, tagged, np.zeros(len(hashes), np.int64))
        for _, _, found in made.places(words):
            made.found[:] += np.bincount(found, minlength=len(hashes))
        return made

    def places(self, words: Words) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """The number of words, where and which, for all that stands anywhere, the longest last."""
        left = words.left
        for n, hashes in _hashes(words.own[:, CASED], min(LONGEST, int(words.sizes.max(initial=0)))):
            entry, known = find(self.hashes, hashes)
            at = np.flatnonzero(known & (left[: len(hashes)] >= n))
            yield n, at, entry[at]

    def marks(self, words: Words, spans: Ragged | None) -> np.ndarray:
        """uint64 [W, 6]: of the longest entry over each word its most frequent type, where in it the word is, how often it was tagged.

        spans: those of training texts, of which each is read as if it had not been there; otherwise a tagger learned to believe entries
        that it has from the very place.
        """
        text, count = words.texts, len(self.hashes)
        own = None if spans is None else self._own(words, spans)
        of, place, size, share = (np.zeros(len(words.own), np.uint64) for _ in range(4))
        for n, at, entry in self.places(words):
            tagged, found = self.tagged[entry], self.found[entry]
            if own is not None:
                keys, own_tagged, own_found = own
                pair, _ = find(keys, text[at] * count + entry)  # it is there: each place was counted
                tagged, found = tagged - own_tagged[pair], found - own_found[pair]
            times = tagged.sum(1)
            at, tagged, found, times = (x[times > 0] for x in (at, tagged, found, times))
            level = np.searchsorted(SHARES, times / np.maximum(found, 1), side="right")
            for k in range(n):
                of[at + k], place[at + k] = 1 + tagged.argmax(1), 1 + (k == 0) + 2 * (k == n - 1)
                size[at + k], share[at + k] = min(n, 8), 1 + 4 * level + np.minimum(times, 3)
        both = of * np.uint64(4) + place
        before, behind = np.roll(both + BEYOND, 1), np.roll(both + BEYOND, -1)
        first = np.cumsum(words.sizes)[words.sizes > 0] - words.sizes[words.sizes > 0]
        before[first], behind[first - 1] = 0, 0  # the word before a text's first is the last of another
        kinds = [[both], [both, share], [both, share, size], [place, share], [before, both + BEYOND], [both + BEYOND, behind]]
        return np.stack([_joined(parts, len(CONTEXT) + i) for i, parts in enumerate(kinds)], 1)

    def _own(self, words: Words, spans: Ragged) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sorted numbers of pairs of text and entry, how often the text tags it as each type, and has it."""
        text, count = words.texts, len(self.hashes)
        found = np.concatenate([text[at] * count + entry for _, at, entry in self.places(words)] or [np.zeros(0, np.int64)])
        keys, times = np.unique(found, return_counts=True)
        tagged, own = np.zeros((len(keys), self.tagged.shape[1]), np.int64), words.of_spans(spans)
        for n, hashes in _hashes(words.own[:, CASED], min(LONGEST, int(words.sizes.max(initial=0)))):
            first, _, kind, row = own[own[:, 1] == n].T
            pair, _ = find(keys, row * count + find(self.hashes, hashes[first])[0])
            np.add.at(tagged, (pair, kind), 1)
        return keys, tagged, times


def _own(word: str) -> list[int]:
    low, shape = word.lower(), re.sub(r"(.)\1{2,}", r"\1\1", "".join(map(_kind, word)))
    begins = [_number(f"{n}<{low[:n]}") if len(low) > n else 0 for n in AFFIXES]
    ends = [_number(f"{n}>{low[-n:]}") if len(low) > n else 0 for n in AFFIXES]
    return [_number(low), _number(word), _number(shape), *begins, *ends]


def _kind(letter: str) -> str:
    if letter.isdigit():
        return "0"
    return "X" if letter.isupper() else "x" if letter.islower() else "c" if letter.isalpha() else letter


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") | 2


def _joined(columns: Sequence[np.ndarray], salt: int) -> np.ndarray:
    """One number for several and a salt; 0 where one of them is. 64-bit multiplicative hashing, mixed after each."""
    made, there = np.full(len(columns[0]), np.uint64(salt + 1)), np.ones(len(columns[0]), bool)
    for column in columns:
        made = _mixed(made, column)
        there &= column != 0
    return np.where(there, made | np.uint64(1), np.uint64(0))


def _mixed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    x = (a * np.uint64(0x9E3779B97F4A7C15)) ^ (b + np.uint64(0xC2B2AE3D27D4EB4F))
    x = (x ^ (x >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return x ^ (x >> np.uint64(29))


def _hashes(words: np.ndarray, longest: int) -> Iterator[tuple[int, np.ndarray]]:
    """For every number of words one of each sequence of so many, in the order of their first words."""
    made = np.zeros_like(words)
    for n in range(1, min(longest, len(words)) + 1):
        made = _mixed(made[: len(words) - n + 1], words[n - 1 :])
        yield n, made


def find(known: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where in the sorted `known` each of `wanted` is, and whether."""
    if not len(known):
        return np.zeros(wanted.shape, np.int64), np.zeros(wanted.shape, bool)
    place = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    return place, known[place] == wanted
