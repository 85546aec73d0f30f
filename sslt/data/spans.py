"""Answers to questions about a text: places in it, and words that are no place in it ("yes", or nothing at all)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sslt.data.answers import Answers, Space
from sslt.data.ragged import Ragged, objects


class Spans(Answers):
    """Answers in a context. values: ragged int64 [n, 2] of (start, end) in characters of the context, end exclusive.

    values: of the truth the places to learn from, none where no place is certain; of predictions the best one.
    kinds int64 [N]: 0 an answer in the context; 1 + i the answer space["words"][i], which is no place in it ("": there is no answer);
    -1: not known. texts: of each row all answers that would do, as they are written; a prediction has one. space["scorer"]: by whose
    rules texts are compared, squad, cmrc or coqa. Of the truth also contexts [N] (str); in dialogues turns int64 [N, 2] (dialogue, turn)
    and domains int64 [N], index into space["domains"]. scores float [N, 2], of predictions: how probable the answer is, and by how
    much the first of space["words"] is preferred to a place.
    """

    kind, words, learned_by, in_text = "spans", "answers in a text", ("extractive_qa",), True
    read_by = "qa"
    fills: ClassVar = {"spans": -1, "answer_kind": -1, "characters": 0, "turn": -1}
    columns = ("values", "kinds", "texts", "contexts", "turns", "domains")
    kinds: np.ndarray
    texts: np.ndarray
    contexts: np.ndarray | None = None
    turns: np.ndarray | None = None
    domains: np.ndarray | None = None

    def __init__(self, values: Ragged, space: Space, *, texts: Any, contexts: Any = None, **more: Any):
        contexts = None if contexts is None else objects(contexts)
        super().__init__(values, space, texts=objects([list(row) for row in texts]), contexts=contexts, **more)

    @property
    def known(self) -> np.ndarray:
        return np.asarray(self.kinds) >= 0

    @property
    def first(self) -> list[str]:
        """One text a row: what was answered, or the first that would do; "" where there is none."""
        return [row[0] if row else "" for row in self.texts]

    @classmethod
    def fits(cls, space: Space, other: Space | None) -> bool:
        """Whether there is an answer to every question does not matter: those that have none are got wrong, or right by a threshold."""
        return other is not None and {*space["words"], ""} == {*other["words"], ""}

    def batch(self, index: np.ndarray, frame: np.ndarray | None = None, size: int | None = None) -> dict[str, Tensor]:
        """`spans` int64 [B, M, 2], filled up with -1; `answer_kind` [B]; `characters` int32 [B, C] of the contexts; `turn` [B, 2]."""
        index = np.asarray(index)
        found = {"spans": self.values.padded(index, -1), "answer_kind": np.asarray(self.kinds)[index]}
        if self.contexts is not None:
            rows = [np.frombuffer(self.contexts[i].encode("utf-32-le", "surrogatepass"), np.int32) for i in index.tolist()]
            found["characters"] = Ragged.of(rows, np.int32).padded(np.arange(len(rows)), 0)
        if self.turns is not None:
            found["turn"] = np.asarray(self.turns)[index]
        return {name: torch.from_numpy(np.ascontiguousarray(column)) for name, column in found.items()}

    # ---------------------------------------------------------------- on disk
    def save(self, folder: Path, prefix: str = "answer") -> dict[str, Any]:
        """Each context once, however many questions are asked about it."""
        stored: Any = copy.copy(self)
        np.save(folder / f"{prefix}_counts.npy", np.array([len(row) for row in self.texts], np.int64))
        stored.texts = Ragged.of_texts([text for row in self.texts for text in row])
        if self.contexts is not None:
            number = {text: i for i, text in enumerate(dict.fromkeys(self.contexts))}
            np.save(folder / f"{prefix}_which.npy", np.array([number[text] for text in self.contexts], np.int64))
            stored.contexts = Ragged.of_texts(list(number))
        return super(Spans, stored).save(folder, prefix)

    @classmethod
    def _read(cls, entry: Any, about: Mapping[str, Any], prefix: str) -> Any:
        found = cls._columns(entry, about, prefix)
        texts = iter(found["texts"].texts())
        found["texts"] = [[next(texts) for _ in range(n)] for n in np.array(entry[f"{prefix}_counts"]).tolist()]
        if "contexts" in found:
            contexts = found["contexts"].texts()
            found["contexts"] = [contexts[i] for i in np.array(entry[f"{prefix}_which"]).tolist()]
        return cls(found.pop("values"), about["space"], **found)
