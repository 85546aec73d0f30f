"""Answers that have a place: tagged spans of texts, and a class for every pixel of a picture. Needs numpy, and pillow to write maps.

Lies beside predict.py, which reads it where a model answers so: `Spans` reads `tags`, `Maps` reads `scores`.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np

MANY = 256  # classes from which on a file has 16 bits and no palette


class Spans:
    """Log-probabilities `tags` [B, L, K] of O, B-x, I-x → spans: the most probable tags that are such of spans (Viterbi's algorithm).

    inside: of the vocabulary bool [V, 2], tokens that go on with a word and those after which one may. A word of several tokens is in a
    span or not as a whole, unless `cuts_words`.
    """

    def __init__(self, folder: Path, about: dict[str, Any]):
        self.types, self.cuts_words = about["types"], about["cuts_words"]
        self.inside = np.load(folder / about["inside_words"], allow_pickle=False)

    def row(self, text: str, found: np.ndarray, places: np.ndarray, ids: np.ndarray) -> dict[str, Any]:
        """The answer to a text. found [L, K] and ids [L] of its tokens, which stand at `places` [L, 2], the first of them at 0."""
        kept = places[:, 1] > places[:, 0]
        before = read_before(places)
        opened = np.concatenate([[True], self.inside[ids[:-1], 1]])
        whole = (places[:, 0] <= before) & (before > 0) & self.inside[ids, 0] & opened & (not self.cuts_words)
        found, places, whole = found[kept], places[kept], whole[kept]
        path = best_path(found, whole | (places[:, 0] < read_before(places)))  # or two tokens of one character
        spans: list[dict[str, Any]] = []
        for i in np.flatnonzero(path % 2 == 1):
            end = i + 1
            while end < len(path) and path[end] and path[end] % 2 == 0:
                end += 1
            first, last = int(places[i, 0]), int(places[end - 1, 1])
            sure = float(np.exp(found[np.arange(i, end), path[i:end]].astype(float).mean()))
            spans.append({"start": first, "end": last, "type": self.types[path[i] // 2], "score": round(sure, 4), "text": text[first:last]})
        return {"prediction": spans}


def read_before(places: np.ndarray) -> np.ndarray:
    """How far the text before each token was read [L]: the furthest end of those before it, -1 of the first."""
    return np.concatenate([[-1], np.maximum.accumulate(places[:, 1])])[: len(places)]


def best_path(found: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """The best tags [L] of log-probabilities [L, K]: I-x stands behind B-x or I-x alone; where `whole` [L] a tag goes on."""
    n, k = found.shape
    if not n:
        return np.empty(0, np.int64)
    tags = np.arange(k)
    begins, inside = tags % 2 == 1, (tags > 0) & (tags % 2 == 0)
    total, ways = np.where(inside, -np.inf, found[0]), []
    for t in range(1, n):
        of_begin = np.roll(total, 1)  # what B-x has, at I-x
        going_on = np.where(inside, np.maximum(of_begin, total), total)
        come_from = np.where(inside & (of_begin > total), tags - 1, tags)
        if not whole[t]:
            come_from, going_on = np.where(inside, come_from, total.argmax()), np.where(inside, going_on, total.max())
        else:
            going_on = np.where(begins, -np.inf, going_on)
        ways.append(come_from)
        total = going_on + found[t]
    path = [int(total.argmax())]
    for way in reversed(ways):
        path.append(int(way[path[-1]]))
    return np.array(path[::-1])


def whole_characters(places: list[tuple[int, int]], text: str) -> np.ndarray:
    """Places of tokens [L, 2] without the space before a word, which some tokenizers count as the word's, and with the marks on its last
    letter (accents, vowel signs), which others leave out."""
    found = []
    for i, (start, end) in enumerate(places):
        following = places[i + 1][0] if i + 1 < len(places) else len(text)
        inside = text[start:end]
        if inside[:1].isspace():
            start += len(inside) - len(inside.lstrip())
        while end < following and unicodedata.category(text[end])[0] == "M":
            end += 1
        found.append((start, end))
    return np.array(found, np.int64).reshape(-1, 2)


class Maps:
    """Scores [C, h, w] of what a model saw of a picture → the class of the highest in every pixel of the picture as it was.

    folder: where maps are written, NUMBER.png each, pixels the numbers of classes; None: nowhere, and only shares are told.
    """

    def __init__(self, about: dict[str, Any], folder: Path | None):
        self.classes, self.colours, self.folder = about["classes"], np.array(about["colours"], np.uint8), folder

    def row(self, number: int, scores: np.ndarray, sides: np.ndarray, seen: np.ndarray) -> dict[str, Any]:
        """The answer to picture `number` of (height, width). seen: top, bottom, left, right edge of what was seen, as shares."""
        found = in_own_size(scores, sides, seen)
        counts = np.bincount(found.ravel(), minlength=len(self.classes))
        shares = {self.classes[c]: round(float(counts[c] / max(found.size, 1)), 4) for c in np.flatnonzero(counts)}
        if self.folder is None:
            return {"shares": shares}
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{number:05d}.png"
        self.write(found, self.folder / name)
        return {"prediction": name, "shares": shares}

    def write(self, found: np.ndarray, file: Path) -> None:
        from PIL import Image

        if len(self.classes) >= MANY:
            picture = Image.fromarray(found.astype(np.uint16))
        else:
            picture = Image.fromarray(found.astype(np.uint8), "P")
            picture.putpalette(self.colours.tobytes())
        picture.save(file)


def in_own_size(scores: np.ndarray, sides: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Classes [H, W] of scores [C, h, w]: bilinear, half-pixel centres; what was cut away is of class 0."""
    covered, found = [], scores.astype(np.float32)
    for axis, (n, start, end) in enumerate(zip(sides.tolist(), seen[0::2].tolist(), seen[1::2].tolist(), strict=True)):
        place = (np.arange(n) + 0.5) / n
        place = (place - start) / (end - start)  # in what was seen, as a share
        covered.append((place >= 0) & (place <= 1))
        of = found.shape[1 + axis]
        exact = ((place * 2 - 1).astype(np.float32) + 1) * np.float32(of) / 2 - np.float32(0.5)
        exact = np.clip(exact, 0, of - 1)
        first = np.floor(exact).astype(np.int64)
        share = (exact - first).astype(np.float32).reshape((-1, 1) if axis == 0 else (-1,))
        a, b = (np.take(found, np.minimum(first + i, of - 1), 1 + axis) for i in (0, 1))
        found = a + (b - a) * share
    return np.where(covered[0][:, None] & covered[1], found.argmax(0), 0)
