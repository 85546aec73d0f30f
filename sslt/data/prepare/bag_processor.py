"""From texts to batches of word ids for a bag of words: a vocabulary, and the words of a split stored once as flat arrays."""

from __future__ import annotations

import json
import logging
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sslt import stored
from sslt.data import cache
from sslt.data.base import Source
from sslt.data.prepare.text_processor import CHUNK, TRAINING_CHARACTERS, TokenProcessor, content_of, training_texts
from sslt.errors import UserError

log = logging.getLogger("sslt")

FORMAT = 1
SUBWORDS = (3, 4)  # letters of the parts of words, whose ends count as letters
BUCKETS = 1 << 24  # numbers that all parts of words share
VOCABULARY = "vocabulary.json"
# Scripts that put no spaces between words: each character counts as a word, and pairs of neighbours do what words do elsewhere.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"  # kana, Chinese characters
)
_LETTERS = rf"[^\W_{_UNSPACED}]+"
_WORD = re.compile(rf"[{_UNSPACED}]|{_LETTERS}(?:['’]{_LETTERS})*|[!?]")  # an apostrophe joins; of all other signs ! and ? are read


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, its characters in Unicode's compatible form (NFKC)."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return words_in(text.lower())


def words_in(text: str) -> list[str]:
    """The words of a text as they are written there."""
    return _WORD.findall(text)


def subwords_of(word: str) -> list[int]:
    """The parts of <word> of 3 and 4 letters, each once, hashed by their CRC-32 into `BUCKETS`: the same in every process."""
    whole = f"<{word}>"
    spans = {whole[i : i + n] for n in SUBWORDS for i in range(len(whole) - n + 1)}
    return sorted(zlib.crc32(part.encode("utf-8", "surrogatepass")) % BUCKETS for part in spans)


class BagProcessor(TokenProcessor):
    """Turns a source's splits into `TextSamples` of word ids, whole documents up to `max_length` words.

    A word of `documents` (word → in how many of `texts` documents it is) has the id of its place, from 1; any other one of the
    `unknown` ids that follow, by its CRC-32, the same in every process. 0 is padding, and a word that is not to be read. As an id of
    several words does not say how they are spelled, samples have the `subwords` of their unknown words beside it, once asked to `spell`.
    """

    special = (None, None, 0)
    unknown_id = 0
    mask_id = None

    def __init__(self, documents: dict[str, int], texts: int, unknown: int, max_length: int):
        if max_length < 1:
            raise UserError(f"max_length={max_length}: give at least 1, the words of a text that are read")
        if unknown < 1:
            raise UserError(f"unknown={unknown}: give at least 1, the ids that words outside the vocabulary share")
        self.documents, self.texts, self.unknown, self.max_length = documents, texts, unknown, max_length
        self.digest = cache.digest("bag", list(documents), unknown, FORMAT)
        self.vocab_size = 1 + len(documents) + unknown
        self._words = ["", *documents]
        self._ids = {word: i for i, word in enumerate(self._words) if i}

    @classmethod
    def fit(cls, source: Source, vocab_size: int, unknown: int, max_length: int) -> BagProcessor:
        """A processor with the `vocab_size` most frequent words of the source's unlabeled (or training) texts that occur twice.

        Kept in the cache by content and settings. Of very much text a seeded sample is used.
        """
        if vocab_size < 1:
            raise UserError(f"vocab_size={vocab_size}: give at least 1, a few ten thousand for a language with spaces")

        def learn(folder: Path) -> dict[str, Any]:
            texts = training_texts(source, TRAINING_CHARACTERS)
            log.info("learning words from %d texts", len(texts))
            counts: Counter[str] = Counter()
            documents: Counter[str] = Counter()
            for text in texts:
                words = words_of(text)
                counts.update(words)
                documents.update(set(words))
            kept = [word for word, n in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])) if n > 1]
            if not kept:
                raise UserError(f"{source.name}: no word occurs twice in its texts, so that there is nothing to learn from")
            _write(folder, {word: documents[word] for word in kept[:vocab_size]}, len(texts))
            return {}

        key = cache.digest("bag", content_of(source), vocab_size, TRAINING_CHARACTERS, FORMAT)
        return cls.load(cache.get_or_make("vocabularies", key, learn).path, {"unknown": unknown, "max_length": max_length})

    def save(self, folder: Path) -> dict[str, int]:
        """Write the vocabulary; returns the settings, which `load` takes."""
        _write(folder, self.documents, self.texts)
        return {"unknown": self.unknown, "max_length": self.max_length}

    @classmethod
    def load(cls, folder: Path, settings: dict[str, int]) -> BagProcessor:
        """What `save` wrote. Raises `UserError` where it is not there or damaged."""
        path = Path(folder) / VOCABULARY
        try:
            found = stored.json_object(path)
            documents, texts = found["documents"], found["texts"]
            if not all(isinstance(n, int) for n in (texts, *documents.values())):
                raise TypeError
            return cls(documents, texts, **settings)
        except FileNotFoundError as e:
            raise UserError(f"{folder}: no vocabulary saved there ({VOCABULARY} is missing)") from e
        except (KeyError, TypeError, AttributeError) as e:
            raise UserError(f"{path} is damaged: it is no vocabulary; copy it again") from e

    def encode(self, texts: Sequence[Any] | np.ndarray) -> Iterator[list[list[int]]]:
        for chunk in _chunks(texts):
            yield [self._ids_of(words) for words in chunk]

    def spell(self) -> None:
        self.spells = True

    def encode_spelled(self, texts: Sequence[Any] | np.ndarray) -> Iterator[list[tuple[list[int], list[int] | None]]]:
        spelled = lru_cache(1 << 16)(subwords_of)
        for chunk in _chunks(texts):
            yield [(self._ids_of(words), [s for w in words if w not in self._ids for s in spelled(w)]) for words in chunk]

    def _ids_of(self, words: list[str]) -> list[int]:
        known, first, unknown = self._ids, 1 + len(self.documents), self.unknown
        hashed = lambda word: first + zlib.crc32(word.encode("utf-8", "surrogatepass")) % unknown  # noqa: E731
        return [known.get(word) or hashed(word) for word in words]

    def decode(self, ids: Sequence[int]) -> str:
        """The words of ids; … for words outside the vocabulary, _ where nothing is read."""
        return " ".join("_" if i == 0 else self._words[i] if i < len(self._words) else "…" for i in ids)

    def read_out(self, ids: Sequence[int]) -> str:
        return " ".join(word for i in ids if i < len(self._words) and (word := self._words[i]))

    @property
    def vocabulary(self) -> list[str]:
        """The word of every id; "" for padding and the ids that unknown words share."""
        return self._words + [""] * self.unknown

    def rarity(self) -> np.ndarray:
        """float32 [vocab_size]: inverse document frequency ln((1 + texts) / (1 + documents)) + 1 of every id, that of one document
        for the ids that unknown words share; 0 for padding."""
        counts = np.ones(self.vocab_size)
        counts[1 : 1 + len(self.documents)] = list(self.documents.values())
        found = np.log((1 + self.texts) / (1 + np.minimum(counts, self.texts))) + 1
        found[0] = 0
        return found.astype(np.float32)


def _chunks(texts: Sequence[Any] | np.ndarray) -> Iterator[list[list[str]]]:
    """The words of `CHUNK` texts at a time."""
    for i in range(0, len(texts), CHUNK):
        yield [words_of(texts[j]) for j in range(i, min(i + CHUNK, len(texts)))]


def _write(folder: Path, documents: dict[str, int], texts: int) -> None:
    cache.write_atomic(folder / VOCABULARY, json.dumps({"texts": texts, "documents": documents}, ensure_ascii=False))
