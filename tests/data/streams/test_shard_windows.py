"""Protects the order over shards: each row once an epoch, the same for any number of ranks, at random access, few shards at a time."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from sslt.data.base import Samples
from sslt.data.streams import windows
from sslt.data.streams.joined import Joined
from sslt.data.streams.streams import Stream
from sslt.data.streams.subsets import of_few_shards, some
from sslt.errors import UserError


class InShards(Samples):
    """Numbered rows over shards; notes what is fetched, and which shards a batch is of."""

    answers = None
    fingerprint = "shards"

    def __init__(self, bounds: list[int] | np.ndarray, lengths: np.ndarray | None = None):
        self._bounds, self._lengths = np.asarray(bounds), lengths
        self.fetched: list[list[int]] = []

    shards = property(lambda self: self._bounds)

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def fetch(self, shards):
        self.fetched.append(list(shards))

    def lengths_of(self, index):
        return None if self._lengths is None else self._lengths[index]

    def batch(self, index):
        return {"index": torch.from_numpy(np.asarray(index))}

    def subset(self, index):
        return Chosen(index)


class Chosen(Samples):
    answers = None
    fingerprint = "chosen"

    def __init__(self, rows):
        self.rows = np.asarray(rows)

    def __len__(self):
        return len(self.rows)

    def batch(self, index):
        raise NotImplementedError

    def subset(self, index):
        return Chosen(self.rows[index])


def uneven(n: int = 50, most: int = 40) -> np.ndarray:
    """Bounds of n shards, some of which are empty."""
    return np.concatenate([[0], np.cumsum(np.random.default_rng(0).integers(0, most, n))])


def epoch_of(samples: Samples, batch: int, world: int, epoch: int = 0, seed: int = 0, drop_last: bool = True) -> list[np.ndarray]:
    """The joint batches of an epoch, as all ranks together have them."""
    ranks = [Stream(samples, batch, seed=seed, rank=r, world=world, drop_last=drop_last) for r in range(world)]
    found = []
    for step in range(epoch * len(ranks[0]), (epoch + 1) * len(ranks[0])):
        parts = [stream.index_at(step) for stream in ranks]
        joint = np.empty(sum(map(len, parts)), np.int64)
        for r, part in enumerate(parts):
            joint[r::world] = part
        found.append(joint)
    return found


@pytest.mark.parametrize("texts", [False, True])
def test_the_same_sequence_on_any_number_of_ranks(texts):
    """A joint batch of 8 is the same on 1, 2 and 4 ranks; rows once an epoch, less than a batch left out; another epoch, another order."""
    bounds = uneven()
    samples = InShards(bounds, np.random.default_rng(1).integers(3, 99, bounds[-1]) if texts else None)
    one = epoch_of(samples, 8, 1)
    for world in (2, 4):
        assert np.array_equal(one, epoch_of(samples, 8 // world, world))
    rows = np.concatenate(one)
    assert len(set(rows.tolist())) == len(rows) == len(samples) // 8 * 8
    every = np.concatenate(epoch_of(samples, 8, 1, epoch=2, drop_last=False))
    assert sorted(every.tolist()) == list(range(len(samples)))
    assert not np.array_equal(one, epoch_of(samples, 8, 1, epoch=1)) and not np.array_equal(one, epoch_of(samples, 8, 1, seed=1))


def test_rows_and_shards_are_mixed():
    """Neighbours of a shard are spread over its window, and shards do not come in the order of the disk."""
    bounds = np.arange(65) * 100
    rows = np.concatenate(epoch_of(InShards(bounds), 16, 1))
    shards = rows // 100
    first = [s for i, s in enumerate(shards) if s not in shards[:i]]
    assert first != sorted(first)
    window = shards[: 100 * windows.WINDOW]
    assert len(set(window.tolist())) == windows.WINDOW
    places = np.flatnonzero(window == window[0])
    assert places.max() - places.min() > 90 * windows.WINDOW, "rows of one shard reach over the whole window"
    assert (np.diff(rows) == 1).mean() < 0.01


def test_random_access_is_the_sequence():
    """A step that is asked for first, or in any order, is the step of the sequence: a resumed run skips nothing."""
    samples = InShards(uneven(), np.random.default_rng(1).integers(3, 99, uneven()[-1]))
    inorder = Stream(samples, 8, seed=3)
    known = {step: inorder.index_at(step) for step in range(2 * len(inorder))}
    for step in np.random.default_rng(0).permutation(2 * len(inorder)).tolist():
        assert np.array_equal(Stream(samples, 8, seed=3).index_at(step), known[step])


def test_each_shard_is_fetched_once_an_epoch_and_a_resumed_run_fetches_one_window():
    """Asked for by its window and by no other, the next one ahead; of a run that goes on in the middle nothing before is asked for."""
    bounds = np.arange(81) * 10
    samples = InShards(bounds)
    stream = Stream(samples, 8, seed=0)
    for step in range(len(stream)):
        before = len(samples.fetched)
        shards = set((stream.at(step)["index"].numpy() // 10).tolist())
        wait(samples, before)
        asked = {s for window in samples.fetched for s in window}
        assert shards <= asked
    windows_asked = {tuple(w) for w in samples.fetched if w}
    assert sorted(s for w in windows_asked for s in w) == list(range(80)), "each shard is in one window"
    resumed = InShards(bounds)
    late = Stream(resumed, 8, seed=0)
    late.at(len(stream) // 2)
    wait(resumed, 0)
    own, ahead = resumed.fetched
    assert len(own) == len(ahead) == windows.WINDOW and not set(own) & set(ahead), "this window, and the next ahead"


def wait(samples: InShards, before: int) -> None:
    """Until what is fetched ahead was asked for."""
    import threading

    for thread in threading.enumerate():
        if thread.daemon and thread is not threading.current_thread() and thread.name.startswith("Thread"):
            thread.join(5)
    assert len(samples.fetched) >= before


def test_texts_of_a_batch_are_about_equally_long():
    """Batches are of texts of like lengths, within groups, and do not come by length."""
    lengths = np.random.default_rng(0).geometric(0.02, 4000)
    samples = InShards(np.arange(41) * 100, lengths)
    batches = epoch_of(samples, 16, 1)
    spread = np.mean([np.ptp(lengths[b]) for b in batches])
    assert spread < 0.3 * np.mean([np.ptp(lengths[b]) for b in epoch_of(InShards(np.arange(41) * 100), 16, 1)])
    means = [lengths[b].mean() for b in batches]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


def test_a_hundred_million_rows_take_the_memory_of_a_window():
    """10⁸ rows in 1,526 shards: ten steps anywhere take less than 64 MB, where a permutation of all is 800 MB."""
    samples = InShards(np.append(np.arange(0, 10**8, 65536), 10**8))
    tracemalloc.start()
    stream = Stream(samples, 256, seed=0, world=8)
    seen = np.concatenate([stream.index_at(step) for step in (0, 1, 7, 20_000, len(stream) - 1, 3 * len(stream) + 5)])
    assert tracemalloc.get_traced_memory()[1] < 64e6
    tracemalloc.stop()
    assert len(seen) == 6 * 256 and seen.max() < 10**8


def test_shards_beside_samples_in_memory():
    """Of joined sets, one without shards counts as one; a chosen part has no order of shards."""
    inner = InShards([0, 10, 30])
    joined = Joined([inner, InShards([0, 7, 12])])
    assert joined.shards.tolist() == [0, 10, 30, 37, 42]
    joined.fetch([1, 2, 3])
    assert inner.fetched == [[1]] and joined.parts[1].fetched == [[0, 1]]  # type: ignore[attr-defined]
    rows = np.concatenate(epoch_of(joined, 6, 1))
    assert sorted(rows.tolist()) == list(range(42))
    assert Joined([inner, Chosen(np.arange(4))]).shards.tolist() == [0, 10, 30, 34]


def test_a_few_rows_are_of_few_shards():
    """What is probed is drawn in few shards, spread over all; of fewer rows than asked for, all are taken."""
    samples = InShards(np.arange(1001) * 100)
    few = some(samples, 500, 0)
    assert len(few) == 500 and len(set((few.rows // 100).tolist())) <= 20  # type: ignore[attr-defined]
    assert few.rows.min() < 10_000 and few.rows.max() > 90_000  # type: ignore[attr-defined]
    assert of_few_shards(samples, 10**6) is samples


def test_batches_by_tokens_are_refused():
    with pytest.raises(UserError, match="kept as shards: give batch_size="):
        Stream(InShards([0, 10], np.ones(10)), 2, seed=0, drop_last=False, batch_tokens=100)
