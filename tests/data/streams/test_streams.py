"""Protects the order of samples: each once an epoch over all ranks, random access, lengths grouped, resuming in place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sslt.data.base import Samples
from sslt.data.streams.sampling import Together
from sslt.data.streams.streams import Loader, Stream
from sslt.errors import UserError


class Rows(Samples):
    """Numbered rows, with lengths or without."""

    labels = None
    classes = None
    fingerprint = "rows"

    def __init__(self, n: int, lengths: np.ndarray | None = None):
        self.n, self._lengths = n, lengths

    def __len__(self) -> int:
        return self.n

    @property
    def lengths(self):
        return self._lengths

    def batch(self, index):
        return {"index": torch.from_numpy(np.asarray(index))}

    def subset(self, index):
        raise NotImplementedError


def skewed(n: int, seed: int = 0) -> Rows:
    """Lengths of texts: many short, few long."""
    return Rows(n, np.random.default_rng(seed).geometric(0.02, n).clip(3, 512))


def stream(samples: Samples, batch_size: int, **changed) -> Stream:
    return Stream(samples, batch_size, **{"seed": 0, **changed})


def epoch_of(samples: Samples, batch_size: int, epoch: int = 0, *, world: int = 1, **changed) -> list[list[np.ndarray]]:
    """[step][rank] indices of one epoch."""
    ranks = [stream(samples, batch_size, rank=r, world=world, **changed) for r in range(world)]
    assert len({len(s) for s in ranks}) == 1, "all ranks take the same number of steps"
    return [[s.index_at(epoch * len(s) + i) for s in ranks] for i in range(len(ranks[0]))]


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("n", [48, 50, 53, 97])
def test_every_sample_once_an_epoch(n, world, grouped):
    """drop_last=False: all samples, each once, less what cannot give every rank one; no rank's batch is empty or too big."""
    samples = skewed(n) if grouped else Rows(n)
    for epoch in (0, 3):
        steps = epoch_of(samples, 8, epoch, world=world, drop_last=False)
        seen = np.concatenate([i for ranks in steps for i in ranks])
        assert len(seen) == len(set(seen.tolist()))
        left = n % (8 * world)
        assert len(seen) == (n - left if left < 2 * world else n)
        assert all(1 <= len(i) <= 8 for ranks in steps for i in ranks)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_drop_last_keeps_batches_full(world, grouped):
    """drop_last=True: only full batches, no sample twice, fewer than one joint batch left out."""
    n = 107
    steps = epoch_of(skewed(n) if grouped else Rows(n), 8, world=world, drop_last=True)
    seen = np.concatenate([i for ranks in steps for i in ranks])
    assert len(seen) == len(set(seen.tolist())) == n - n % (8 * world)
    assert all(len(i) == 8 for ranks in steps for i in ranks)


@pytest.mark.parametrize("grouped", [False, True])
def test_what_drop_last_drops_is_drawn_anew(grouped):
    """No sample is left out of every epoch: with lengths grouped, the longest ones must get their turn too."""
    n = 60
    s = stream(skewed(n) if grouped else Rows(n), 16, drop_last=True)
    seen = {int(i) for step in range(30 * len(s)) for i in s.index_at(step)}
    assert seen == set(range(n))


def test_the_world_does_not_change_the_joint_batch():
    """Two ranks of batch 8 take together what one of batch 16 takes: ranks share the batches, not the data."""
    one, two = epoch_of(Rows(64), 16), epoch_of(Rows(64), 8, world=2)
    for (single,), ranks in zip(one, two, strict=True):
        assert sorted(single.tolist()) == sorted(np.concatenate(ranks).tolist())


@pytest.mark.parametrize("settings", [{}, {"batch_tokens": 600}], ids=["rows", "tokens"])
@pytest.mark.parametrize("n", [96, 97, 103])
def test_ranks_that_share_the_lanes_of_more_have_their_batches(n, settings):
    """Four lanes: what four ranks, two or one take together at a step is the same, also in the last batch, of few rows or of tokens."""
    samples, found = Pairs(n), []
    for world in (4, 2, 1):
        given = {k: v * 4 // world for k, v in settings.items()}
        steps = epoch_of(samples, 8 * 4 // world, world=world, lanes=4, drop_last=False, **given)
        for ranks in steps:
            joint = np.empty(sum(map(len, ranks)), np.int64)
            for rank, rows in enumerate(ranks):
                joint[rank::world] = rows
            found.append((world, joint.tolist()))
    assert [j for w, j in found if w == 4] == [j for w, j in found if w == 2] == [j for w, j in found if w == 1]


def test_texts_are_as_wide_as_the_longest_of_all_ranks():
    """What is drawn for each place of a text must not depend on which other texts a rank has."""

    class Wide(Pairs):
        def batch(self, index: np.ndarray) -> dict[str, torch.Tensor]:
            shape = len(index), int(self.lengths[index].max())
            return {"tokens": torch.zeros(shape), "outputs": torch.zeros(len(index), int(self.outputs[index].max()))}

    samples = Wide(64)
    for step in range(8):
        made = [Stream(samples, 4, seed=0, rank=rank, world=2, drop_last=False) for rank in (0, 1)]
        rows = np.concatenate([s.index_at(step) for s in made])
        for s in made:
            found = s.at(step)
            assert found["tokens"].shape == (4, samples.lengths[rows].max()) and found["outputs"].shape == (4, samples.outputs[rows].max())


@pytest.mark.parametrize("grouped", [False, True])
def test_random_access_equals_sequential(grouped):
    """Batch g is the same whichever was asked for before it."""
    samples = skewed(50) if grouped else Rows(50)
    walker = stream(samples, 8)
    sequential = [walker.index_at(g) for g in range(20)]
    jumper = stream(samples, 8)
    for g in np.random.default_rng(1).permutation(20):
        assert np.array_equal(jumper.index_at(int(g)), sequential[g])
        assert np.array_equal(stream(samples, 8).at(int(g))["index"].numpy(), sequential[g])


def test_epochs_and_seeds_differ():
    """Each epoch and each seed has its own order; the same ones have the same."""
    order = lambda epoch, seed: np.concatenate([r[0] for r in epoch_of(Rows(64), 8, epoch, seed=seed)]).tolist()  # noqa: E731
    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(e, s)) for e in range(3) for s in range(3)}) == 9
    assert order(0, 0) != sorted(order(0, 0))


def waste(steps: list[np.ndarray], lengths: np.ndarray) -> float:
    """Share of padding when each batch is as wide as its longest row."""
    cells = sum(len(i) * lengths[i].max() for i in steps)
    return 1 - sum(lengths[i].sum() for i in steps) / cells


def test_grouping_by_length_wastes_little_padding():
    """At least four fifths of the padding of a random order are saved, and batches are still mixed in length over time."""
    samples = skewed(3000)
    grouped = [r[0] for r in epoch_of(samples, 16, drop_last=False)]
    random = np.array_split(np.random.default_rng(0).permutation(3000), len(grouped))
    assert waste(grouped, samples.lengths) < 0.2 * waste(random, samples.lengths)
    means = np.array([samples.lengths[i].mean() for i in grouped])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3  # no short after short, long after long


def test_ranks_get_rows_of_like_lengths():
    """Two ranks of a step have about the same work."""
    samples = skewed(3000)
    for a, b in epoch_of(samples, 16, world=2):
        assert samples.lengths[a].max() <= 1.5 * samples.lengths[b].max() + 8


def test_a_batch_larger_than_the_data_is_the_users_mistake():
    """One line with the numbers; without drop_last a small set is one small batch."""
    with pytest.raises(UserError, match=r"batch_size=16.*10 samples"):
        stream(Rows(10), 16)
    with pytest.raises(UserError, match=r"batch_size=8 × 2 ranks"):
        stream(Rows(10), 8, world=2)
    with pytest.raises(UserError):
        stream(Rows(2), 8, world=3, drop_last=False)
    assert [len(i) for (i,) in epoch_of(Rows(10), 16, drop_last=False)] == [10]


def test_loader_goes_on_at_its_position():
    """Started anew at a step inside an epoch, it yields the rest of that epoch, then whole ones."""
    main = stream(Rows(40), 8)
    at = 0
    loader = Loader({"main": main}, lambda: at, Together())
    assert len(loader) == 5
    whole = [b["main"]["index"].tolist() for (b,) in loader]
    assert len(whole) == 5
    at = 3
    assert [b["main"]["index"].tolist() for (b,) in loader] == whole[3:]
    at = 5
    later = [b["main"]["index"].tolist() for (b,) in loader]
    assert len(later) == 5 and later != whole
    at = 8
    assert [b["main"]["index"].tolist() for (b,) in loader] == later[3:]


def test_a_second_stream_goes_round():
    """The first stream defines the epoch; a shorter one starts over, with an order of its own each time round."""
    streams = {"main": stream(Rows(40), 8), "side": stream(Rows(6), 3, seed=1)}
    side = [b["side"]["index"].tolist() for at in (0, 5) for (b,) in Loader(streams, lambda at=at: at, Together())]
    assert len(side) == 10
    rounds = [sorted(side[i] + side[i + 1]) for i in range(0, 10, 2)]
    assert rounds == [list(range(6))] * 5
    assert len({tuple(side[i] + side[i + 1]) for i in range(0, 10, 2)}) > 1


class Pairs(Rows):
    """Rows with something to write, of lengths of its own."""

    def __init__(self, n: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        super().__init__(n, rng.integers(3, 60, n))
        self.outputs = np.clip(self._lengths + rng.integers(-8, 9, n), 1, None)

    @property
    def output_lengths(self):
        return self.outputs


def padded(pairs: Pairs, batches: list[np.ndarray]) -> int:
    return sum(len(b) * int(pairs.lengths[b].max() + pairs.outputs[b].max()) for b in batches)


def test_what_is_written_is_grouped_too():
    """Batches of pairs waste less than those that know the length of what is read alone; each row once an epoch."""
    pairs = Pairs(1000)
    both = [ranks[0] for ranks in epoch_of(pairs, 16, drop_last=False)]
    alone = [ranks[0] for ranks in epoch_of(Rows(1000, pairs.lengths), 16, drop_last=False)]
    real = int((pairs.lengths + pairs.outputs).sum())
    assert padded(pairs, both) - real < 0.8 * (padded(pairs, alone) - real)
    assert sorted(np.concatenate(both).tolist()) == list(range(1000))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_batches_by_tokens(world):
    """Every row once an epoch, at most so many tokens a rank, as many steps on all; epochs differ, and any step is had at once."""
    pairs = Pairs(500)
    settings = {"drop_last": False, "batch_tokens": 600}
    for epoch in (0, 2):
        steps = epoch_of(pairs, 16, epoch, world=world, **settings)
        assert sorted(np.concatenate([i for ranks in steps for i in ranks]).tolist()) == list(range(500))
        for ranks in steps:
            assert all(len(i) for i in ranks)
            joined = np.concatenate(ranks)
            width = -(-pairs.lengths[joined].max() // 8) * 8 + pairs.outputs[joined].max()
            assert max(map(len, ranks)) * width <= 600 or len(joined) < 2 * world
    made, again = (stream(pairs, 16, world=world, **settings) for _ in range(2))
    assert not np.array_equal(np.sort(made.index_at(0)), np.sort(made.index_at(2 * len(made))))
    assert np.array_equal(again.index_at(7), steps_of(made, 8)[7])


def steps_of(made: Stream, n: int) -> list[np.ndarray]:
    return [made.index_at(g) for g in range(n)]


def test_batches_by_tokens_are_full():
    """Little is left of what they may hold; a text that is longer than all of it is a batch of its own."""
    pairs = Pairs(2000)
    made = stream(pairs, 16, drop_last=False, batch_tokens=1000)
    real = int((pairs.lengths + pairs.outputs).sum())
    assert len(made) * 1000 < 1.25 * real and made.batch_size == -(-2000 // len(made))
    long = Rows(3, np.array([5, 900, 7]))
    assert sorted(map(len, steps_of(stream(long, 2, drop_last=False, batch_tokens=100), 2))) == [1, 2]


def test_batches_by_tokens_that_cannot_be():
    with pytest.raises(UserError, match="batch_tokens= counts the tokens of texts: of images give batch_size="):
        stream(Rows(50), 8, drop_last=False, batch_tokens=100)
    with pytest.raises(UserError, match="compares samples within a batch: give batch_size="):
        stream(skewed(50), 8, drop_last=True, batch_tokens=100)


@pytest.mark.parametrize(("had", "sizes"), [(3, [1, 2, 2, 2, 1]), (4, [2, 2, 2, 2]), (0, [2, 2, 2, 2, 2])])
def test_steps_end_where_the_trainer_counts_them(had, sizes):
    """Gone on with in the middle of an epoch by another number of batches a step: the first is what is left of one."""
    main = stream(Rows(80), 8)
    loader = Loader({"main": main}, lambda: 10 + had if had != 4 else 12, Together(), 2, lambda: had)
    given = list(loader)
    assert [len(window) for window in given if window] == (sizes if had != 3 else [1, 2, 2, 2])
    at = had
    for window in given:
        assert bool(window) == (at % 2 == 0 or at == had)  # all of a step come at its beginning
        at += 1
