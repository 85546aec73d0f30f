"""Word vectors of a fresh transformer that start from what another encoder of texts says of each word."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt.data import cache
from sslt.data.prepare.bag_processor import BagProcessor, words_in
from sslt.data.prepare.text_processor import TextProcessor, content_of, training_texts
from sslt.encoders.base import Encoder
from sslt.errors import UserError

log = logging.getLogger("sslt")

FORMAT = 1
WORDS = 50_000  # the most frequent ones are asked for
CHARACTERS = 20_000_000  # of text that words are counted in
COMMON = 1e-3  # a word of this share of all words weighs half: `a` of Arora et al., 2017
ADDED = 0.1  # so that texts that differ in length, but not in words, begin near each other
APART = 0.1  # length of the random part of a vector that no word is known of, so that training can tell it from others


def check_word_vectors(start: str | None, encoder: Encoder) -> None:
    """Raise `UserError` where `encoder`, which begins with `start`, has no fresh word vectors to set."""
    if start not in (None, "scratch"):
        raise UserError(f"word_vectors= is for a fresh transformer, and from={start} has vectors of its own: leave one of them out")
    if type(encoder.processor) is not TextProcessor:
        way = "a bag goes on with its own by from=RUN" if isinstance(encoder.processor, BagProcessor) else "choose encoder=bert_tiny"
        raise UserError(f"word_vectors= is for a transformer that reads text: {way}, or leave it out")


def start_words(student: Any, source: Any, features_of: Callable[[list[str]], Tensor]) -> float:
    """Set the token embeddings [V, D] of a fresh `student`; returns the share of its vocabulary that something is known of.

    features_of: texts → another encoder's features [N, D]. A word's vector is that of the word alone, of unit length, times a / (a + p), p
    its share of all words of `source` (smooth inverse frequency: Arora et al., 2017); a token's is the mean over the words that it is in,
    as often as they occur. Their D - 2 principal directions are kept, as Tulkens & van Dongen (2024, Model2Vec) make static vectors of a
    sentence transformer.

    A layer norm makes all vectors equally long, so what one lacks in length goes into one more direction, which all share; and all lie at
    right angles to the vector of ones, which a norm takes away. So the mean over a text's tokens, which the layers of a fresh network
    hardly change, begins as a weighted mean of word vectors. Their size is that of the vectors they replace; vectors of places and
    segments, which a fresh network adds in the same size, are made `ADDED` times as large.
    """
    words, counts = _counted(source)
    vectors = F.normalize(features_of(words).double(), dim=1).numpy()
    vectors *= (COMMON / (COMMON + counts / counts.sum()))[:, None]
    table = student.token_embeddings.weight
    rows, often = _by_token(words, counts, vectors, student.processor, len(table))
    known = often > 0
    size = float(table.detach().std()) * table.shape[1] ** 0.5
    made = size * _laid_out(rows, often, known, table.shape[1])
    ordinary = np.ones(len(table), bool)
    ordinary[student.processor.pad_id] = False  # zeros, where a family has it so
    with torch.no_grad():
        table[torch.from_numpy(ordinary)] = torch.from_numpy(made[ordinary]).to(table.dtype)
        for other in student.modules():
            if isinstance(other, nn.Embedding) and other.weight is not table and other.embedding_dim == table.shape[1]:
                other.weight *= ADDED
    return float(known.mean())


def _counted(source: Any) -> tuple[list[str], np.ndarray]:
    """The most frequent words of a source's texts, as they are written, and how often they occur; kept in the cache by content."""

    def count(folder: Path) -> dict[str, Any]:
        found: Counter[str] = Counter()
        for text in training_texts(source, CHARACTERS):
            found.update(words_in(text))
        most = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))[:WORDS]
        (folder / "words.json").write_text(json.dumps(dict(most), ensure_ascii=False))
        return {}

    key = cache.digest("words", content_of(source), WORDS, CHARACTERS, FORMAT)
    found = json.loads((cache.get_or_make("words", key, count).path / "words.json").read_text())
    if not found:
        raise UserError(f"{source.name}: there is no word in its texts, so that word_vectors= has nothing to begin from")
    return list(found), np.array(list(found.values()), np.float64)


def _by_token(
    words: Sequence[str], counts: np.ndarray, vectors: np.ndarray, processor: TextProcessor, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean vectors [V, D] of the words that each token is in, and how often it is in one; a word is read within a text and at its start."""
    rows, often = np.zeros((size, vectors.shape[1])), np.zeros(size)
    for before in (" ", ""):
        ids = [row for chunk in processor.encode([before + word for word in words]) for row in chunk]
        tokens = np.concatenate([np.asarray(row, np.int64) for row in ids])
        of = np.repeat(np.arange(len(words)), [len(row) for row in ids])
        np.add.at(rows, tokens, counts[of, None] * vectors[of])
        np.add.at(often, tokens, counts[of])
    special = sorted(processor.special_ids)
    rows[special], often[special] = 0, 0
    return rows / np.maximum(often, 1)[:, None], often


def _laid_out(rows: np.ndarray, often: np.ndarray, known: np.ndarray, width: int) -> np.ndarray:
    """Vectors [V, D] of tokens → of unit length and `width` numbers, at right angles to the vector of ones."""
    rng = np.random.default_rng(0)
    weighted = rows[known] * np.sqrt(often[known])[:, None]
    _, _, directions = np.linalg.svd(weighted, full_matrices=False)
    kept = rows @ directions[: width - 2].T
    lengths = np.linalg.norm(kept, axis=1)
    kept /= max(float(np.quantile(lengths[known], 0.99)), 1e-12)
    drawn = rng.standard_normal(kept[~known].shape)
    kept[~known] = APART * drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    lengths = np.linalg.norm(kept, axis=1, keepdims=True)
    kept /= np.maximum(lengths, 1)
    whole = np.concatenate([kept, np.sqrt(np.maximum(1 - np.square(kept).sum(1, keepdims=True), 0))], 1)
    basis = rng.standard_normal((width, whole.shape[1] + 1))
    basis[:, 0] = 1
    return whole @ np.linalg.qr(basis)[0][:, 1:].T
