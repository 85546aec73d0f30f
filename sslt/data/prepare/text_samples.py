"""Tokenized texts, ready for an encoder: rows of their own length, or running text in full rows."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from sslt.data import cache
from sslt.data.answers import Answers
from sslt.data.base import Samples
from sslt.data.ragged import Ragged
from sslt.errors import UserError

FORMAT = 1  # of packed texts
CHUNK = 1000  # texts laid one after the other at a time


class TextSamples(Samples):
    """Tokenized texts of different lengths, in one flat array.

    `tokens` int32 [T]; row i is `tokens[starts[i] : starts[i] + sizes[i]]`, without special tokens and not cut;
    `special`: the ids that start a text, end it (None: nothing does), and pad it; `max_length`: tokens of a window, its own start
    and end among them (None: a text is one window of any length); `windows`: how many of a text are read (None: all); `places` int32
    [T, 2]: where in its text each token stands, in characters, where answers are such places, and then `characters`, ragged int32: the
    texts themselves; `subwords`, ragged int32: of words that their ids do not tell; `outputs`: the tokens of what is to be written after
    each text, of which a batch has `max_output` at most, the mark of the end among them.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        starts: np.ndarray,
        sizes: np.ndarray,
        answers: Answers | None,
        fingerprint: str,
        special: tuple[int | None, int | None, int],
        max_length: int | None,
        skipped: int,
        windows: int | None = 1,
        places: np.ndarray | None = None,
        outputs: Ragged | None = None,
        max_output: int | None = None,
        characters: Ragged | None = None,
        subwords: Ragged | None = None,
    ):
        self.tokens, self.starts, self.sizes, self.places, self.characters = tokens, starts, sizes, places, characters
        self.answers, self.fingerprint, self.skipped = answers, fingerprint, skipped
        self.special, self.max_length, self.windows = special, max_length, windows
        self.outputs, self.max_output, self.subwords = outputs, max_output, subwords
        self.marks = sum(mark is not None for mark in special[:2])  # tokens of a window that are not the text's

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row [N] in a batch, with the start and end of each window; at most `windows` · `max_length`."""
        return self._read(self.sizes)

    def lengths_of(self, index: np.ndarray) -> np.ndarray:
        return self._read(self.sizes[index])

    def _read(self, sizes: np.ndarray) -> np.ndarray:
        """`lengths` of rows that have so many tokens of their own: of a batch's alone, since there may be millions of others."""
        if self.max_length is None:
            return sizes + self.marks
        room = self.max_length - self.marks
        read = sizes if self.windows is None else np.minimum(sizes, self.windows * room)
        return read + self.marks * np.maximum(-(-read // room), 1)

    @property
    def padding(self) -> dict[str, int]:
        return {"tokens": self.special[2], "places": -1, "text": -1, "subwords": -1, "outputs": self.special[2]}

    @property
    def output_lengths(self) -> np.ndarray | None:
        """Tokens per row [N] of what is to be written, the mark of the end among them; None where nothing is."""
        if self.outputs is None:
            return None
        sizes = np.asarray(self.outputs.sizes) + 1
        return sizes if self.max_output is None else np.minimum(sizes, self.max_output)

    def batch(self, index: np.ndarray) -> dict[str, torch.Tensor]:
        """`tokens` int64 [B, L], `mask` bool [B, L] (False on padding), `index` int64 [B], what there is of the answers.

        A row is one window after the other, each `max_length` tokens with its own start and end, but for the last, which is as long as
        what is left of the text. L is the longest row of the batch rounded up to a multiple of 8, but no further than to a window's end.
        With `places`: `places` int64 [B, L, 2], -1 where nothing of the text stands. With `outputs`: `outputs` int64 [B, M], each cut to
        `max_output` (and then without the mark of an end), and `outputs_mask` bool [B, M]. With `characters`: `text` int32 [B, C], the
        code points of whole texts, -1 behind each. With `subwords`: `subwords` int32 [B, S] of whole texts, -1 behind each.
        """
        index = np.asarray(index, dtype=np.int64)
        cls, sep, pad = self.special
        before = int(cls is not None)
        lengths = self.lengths_of(index)
        width = -(-int(lengths.max(initial=3)) // 8) * 8
        span = width if self.max_length is None else self.max_length
        width = min(width, -(-int(lengths.max(initial=1)) // span) * span)
        place = np.arange(width)
        within = place % span
        number = place // span * (span - self.marks) + within - before  # among the tokens of the text
        mask = place < lengths[:, None]
        ends = np.zeros_like(mask)
        if sep is not None:
            ends[:, span - 1 :: span] = mask[:, span - 1 :: span]
            ends[np.arange(len(index)), lengths - 1] = True
        inner = mask & (within >= before) & ~ends
        tokens = np.full((len(index), width), pad, dtype=np.int64)
        tokens[inner] = self.tokens[(self.starts[index, None] + number)[inner]]
        if cls is not None:
            tokens[:, ::span][mask[:, ::span]] = cls
        if sep is not None:
            tokens[ends] = sep
        result = {"tokens": tokens, "mask": mask, "index": index}
        if self.places is not None:
            result["places"] = np.full((*tokens.shape, 2), -1, dtype=np.int64)
            result["places"][inner] = self.places[(self.starts[index, None] + number)[inner]]
        if self.outputs is not None:
            result |= self._written(index)
        if self.characters is not None:
            result["text"] = self.characters.padded(index, -1)
        if self.subwords is not None:
            result["subwords"] = self.subwords.padded(index, -1)
        found = {name: torch.from_numpy(array) for name, array in result.items()}
        return found if self.answers is None else found | self.answers.batch(index)

    def _written(self, index: np.ndarray) -> dict[str, np.ndarray]:
        assert self.outputs is not None and self.output_lengths is not None
        end, pad = self.special[1:]
        sizes, lengths = self.outputs.sizes[index, None], self.output_lengths[index, None]
        place = np.arange(int(lengths.max(initial=1)))
        mask = place < lengths
        text = mask & (place < sizes)
        rows = np.full(mask.shape, pad, dtype=np.int64)
        rows[text] = self.outputs.values[(self.outputs.starts[index, None] + place)[text]]
        rows[mask & ~text] = cast(int, end)
        return {"outputs": rows, "outputs_mask": mask}

    def text(self, i: int) -> str | None:
        return None if self.characters is None else as_text(self.characters[i])

    def subset(self, index: np.ndarray) -> TextSamples:
        part = copy.copy(self)
        part.outputs = None if self.outputs is None else self.outputs.take(np.asarray(index))
        part.starts, part.sizes = self.starts[index], self.sizes[index]
        part.characters = None if self.characters is None else self.characters.take(np.asarray(index))
        part.subwords = None if self.subwords is None else self.subwords.take(np.asarray(index))
        part.answers = None if self.answers is None else self.answers.take(np.asarray(index))
        part.fingerprint = cache.digest(self.fingerprint, np.asarray(index))
        return part

    def uncut(self) -> TextSamples:
        whole = copy.copy(self)
        whole.max_length = None
        return whole

    def packed(self, length: int) -> PackedSamples:
        """All texts one after the other, in rows of exactly `length` tokens (see `PackedSamples`)."""
        cls, sep, _ = self.special
        if sep is None:
            raise UserError("pack=true joins texts into rows for a transformer, and this encoder reads each text whole: set pack=false")
        key = cache.digest(self.fingerprint, "packed", sep, FORMAT)
        stream = cache.get_or_make("packed", key, self._write_stream)["stream"]
        packed = PackedSamples(stream, length, cls, cache.digest(key, cls, length))
        packed.skipped = self.skipped
        return packed

    def _write_stream(self, folder: Path) -> dict[str, Any]:
        """`stream.npy`: the tokens of every row, each row followed by the token that ends a text."""
        total = int(self.sizes.sum()) + len(self)
        with (folder / "stream.npy").open("wb") as f:  # not a memory map: on a full disk a store into one kills the process
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.int32)), "fortran_order": False, "shape": (total,)}
            np.lib.format.write_array_header_1_0(f, header)
            for i in range(0, len(self), CHUNK):
                starts, sizes = self.starts[i : i + CHUNK], self.sizes[i : i + CHUNK]
                ends = np.cumsum(sizes)
                within = np.arange(ends[-1]) - np.repeat(ends - sizes, sizes)
                tokens = self.tokens[np.repeat(starts, sizes) + within]
                f.write(np.insert(tokens, ends, cast(int, self.special[1])).astype(np.int32).data)
        return {"tokens": total}


class PackedSamples(Samples):
    """Running text in full rows: texts joined by the token that ends one, cut every `length` - 1 tokens.

    A row is the token that starts a text and the next `length` - 1 of the stream (all `length` where nothing starts a text); nothing is
    padding, and the last partial row is dropped. Raises `UserError` where the stream does not fill one row.
    """

    answers = None

    def __init__(self, stream: np.ndarray, length: int, cls_id: int | None, fingerprint: str, rows: np.ndarray | None = None):
        step = length - (cls_id is not None)
        count = len(stream) // step if step > 0 else 0
        if count == 0:
            raise UserError(f"the texts have {len(stream)} tokens in all, less than one row of length {length}")
        self.stream, self.length, self.cls_id, self.fingerprint = stream, length, cls_id, fingerprint
        self.grid = stream[: count * step].reshape(count, step)
        self.rows = np.arange(count) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, index: np.ndarray) -> dict[str, torch.Tensor]:
        """`tokens` int64 [B, length] and `index` int64 [B]."""
        index = np.asarray(index, dtype=np.int64)
        tokens = np.full((len(index), self.length), -1 if self.cls_id is None else self.cls_id, dtype=np.int64)
        tokens[:, self.length - self.grid.shape[1] :] = self.grid[self.rows[index]]
        return {"tokens": torch.from_numpy(tokens), "index": torch.from_numpy(index)}

    def subset(self, index: np.ndarray) -> PackedSamples:
        fingerprint = cache.digest(self.fingerprint, np.asarray(index))
        return PackedSamples(self.stream, self.length, self.cls_id, fingerprint, self.rows[index])


def as_characters(text: str) -> np.ndarray:
    """The code points of a text, int32 [n]."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<i4")


def as_text(characters: np.ndarray) -> str:
    """The text of code points; those below 0, which fill up a batch, stand for nothing."""
    return np.asarray(characters)[characters >= 0].astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
