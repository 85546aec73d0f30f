"""In which order samples come: batches by random access, so that a resumed run starts where it stopped at no cost.

The order of an epoch is a function of (seed, epoch) alone and a rank's share one of (rank, world). Nothing of it has to be
saved: step g of any run is the same batch, and skipping to it reads nothing.

Samples of shards have an order by windows of these (`windows.py`): what comes at a step is known without the order of the whole epoch, all
ranks read of the same few shards, and those of the next window are fetched meanwhile.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from sslt import distributed
from sslt.data.base import Samples
from sslt.data.streams.sampling import Sampling
from sslt.data.streams.windows import ShardedOrder
from sslt.errors import UserError

_MULTIPLE = 8  # of tokens, to which the rows of a batch are filled up
_GROUP = 32  # batches sorted by length together: enough to halve padding, few enough to keep batches random


def of_this_rank(
    samples: Samples,
    batch_size: int,
    *,
    seed: int,
    drop_last: bool,
    views: Any = None,
    batch_tokens: int | None = None,
    lanes: int | None = None,
) -> Stream:
    """This process's share of `samples`, texts uncut where the views need them so."""
    samples = samples.uncut() if getattr(views, "whole_texts", False) else samples
    place: dict[str, Any] = {"rank": distributed.rank(), "world": distributed.world_size(), "lanes": lanes}
    return Stream(samples, batch_size, seed=seed, drop_last=drop_last, views=views, batch_tokens=batch_tokens, **place)


def most_of_a_rank(samples: Samples, lanes: int | None) -> int:
    """How many samples a batch of each rank can have at most, as many for every lane; at least one."""
    world = distributed.world_size()
    lanes = lanes or world
    return max(len(samples) // lanes * (lanes // world), 1)


class Stream:
    """Batches of `samples` for one rank.

    `batch_size` is per rank. `drop_last=True` keeps every batch full (objectives that compare samples within a batch);
    otherwise the last one of an epoch is smaller. `views`, applied on the device by the learner, makes of a batch what the
    objective reads.

    With `batch_tokens` a batch has as many texts as come to so many tokens per rank, padding and what is to be written counted: all
    samples, ordered by lengths, are cut into the same batches' worth of rows in every epoch; which of equally long ones lie in which batch,
    and the order of batches, are drawn anew. `batch_size` is then how many there are on average.

    lanes: a multiple of `world` (None: `world`), on which alone depends how rows are divided into joint batches. Texts are filled up to the
    longest of the joint batch, so that what is drawn for each of their places does not depend on the number of ranks.
    """

    together = 1  # rows of a batch that stand one behind the other and belong to one lane

    def __init__(
        self,
        samples: Samples,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        lanes: int | None = None,
        drop_last: bool = True,
        views: torch.nn.Module | None = None,
        batch_tokens: int | None = None,
    ):
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.rank, self.world, self.lanes = rank, world, lanes or world
        self.drop_last, self.views = drop_last, views
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}: give at least 1")
        n, whole = len(samples), batch_size * world
        if n < whole and (drop_last or n < self.lanes):
            ranks = f" × {world} ranks" if world > 1 else ""
            raise UserError(f"batch_size={batch_size}{ranks} is larger than the data set ({n} samples): lower batch_size")
        self.length = n // whole if drop_last else -(-n // whole)
        if not drop_last and self.length > 1 and 0 < n % whole < 2 * self.lanes:
            self.length -= 1  # too few left to give every lane two, which batch statistics need
        self._order: tuple[int, list[np.ndarray]] | None = None
        self._sharded = None if (shards := samples.shards) is None else ShardedOrder(shards, seed)
        self._group: tuple[tuple[int, int], list[np.ndarray]] | None = None
        self._fetched: tuple[int, int] | None = None
        self._ends: np.ndarray | None = None
        if batch_tokens is not None:
            self._ends = self._cut(batch_tokens)
            self.length = len(self._ends)
            self.batch_size = -(-n // (self.length * world))

    def __len__(self) -> int:
        """Batches per epoch."""
        return self.length

    def index_at(self, step: int) -> np.ndarray:
        """Rows of this rank's batch at global step `step`."""
        return self._joint(step)[self.rank :: self.world]

    def _joint(self, step: int) -> np.ndarray:
        """Rows of all ranks' batch at global step `step`."""
        epoch, position = divmod(step, self.length)
        if self._sharded is not None:
            return self._in_windows(self._sharded, epoch, position)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, self._epoch(epoch)
        return self._order[1][position]

    def at(self, step: int) -> dict[str, torch.Tensor]:
        """This rank's batch at global step `step`."""
        self._fetch(step)
        joint = self._joint(step)
        rows = joint[self.rank :: self.world]
        if self.world == 1 or (lengths := self.samples.lengths_of(joint)) is None:
            return self.samples.batch(rows)
        longest = [joint[lengths.argmax()]]  # is read with the others, so that they are filled up to it, and left out
        if (outputs := self.samples.output_lengths) is not None:
            longest.append(joint[outputs[joint].argmax()])
        return {name: values[: len(rows)] for name, values in self.samples.batch(np.append(rows, longest)).items()}

    def _in_windows(self, order: ShardedOrder, epoch: int, position: int) -> np.ndarray:
        """Rows of the joint batch at a place of an epoch: of texts, out of a group of batches that was sorted by length."""
        number, place = divmod(position, _GROUP)
        if self._group is None or self._group[0] != (epoch, number):
            whole = self.batch_size * self.world
            start = number * _GROUP * whole
            rows = order.rows(epoch, start, min(start + _GROUP * whole, self.length * whole, len(self.samples)))
            lengths, drawn = self.samples.lengths_of(rows), np.arange(-(-len(rows) // whole))
            if lengths is not None:
                rows = rows[np.argsort(lengths, kind="stable")]
                drawn = np.random.default_rng([self.seed, epoch, number, 0x6209]).permutation(drawn)
            self._group = (epoch, number), [rows[i * whole : (i + 1) * whole] for i in drawn]
        return self._group[1][place]

    def _fetch(self, step: int) -> None:
        """Have the shards of the window that step reads of, and begin to fetch those of the next."""
        if self._sharded is None:
            return
        epoch, position = divmod(step, self.length)
        window = self._sharded.window_of(epoch, position * self.batch_size * self.world)
        if self._fetched != (epoch, window):
            self._fetched = epoch, window
            self.samples.fetch(self._sharded.shards(epoch, window).tolist())
            ahead = self._sharded.shards(epoch, window + 1).tolist()
            threading.Thread(target=_quietly, args=(self.samples.fetch, ahead), daemon=True).start()

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng([self.seed, epoch, 0x57E4])
        whole = self.batch_size * self.world
        order = rng.permutation(len(self.samples))[: self.length * whole]  # cut before sorting, so that any sample may be left out
        lengths = self.samples.lengths
        if self._ends is not None:
            order = rng.permutation(len(self.samples))
            order = order[self._by_lengths(order)]
            batches = np.split(order, self._ends[:-1])
            return [batches[i] for i in rng.permutation(self.length)]
        if lengths is not None:
            for i in range(0, len(order), whole * _GROUP):
                part = order[i : i + whole * _GROUP]
                order[i : i + whole * _GROUP] = part[self._by_lengths(part)]
        batches = [order[i * whole : (i + 1) * whole] for i in range(self.length)]
        if lengths is not None:
            batches = [batches[i] for i in rng.permutation(self.length)]
        return batches

    def _by_lengths(self, part: np.ndarray) -> np.ndarray:
        """The places of the rows `part`, short ones first: by what is read and, of about equally long ones, by what is to be written."""
        lengths, outputs = self.samples.lengths, self.samples.output_lengths
        assert lengths is not None
        if outputs is None:
            return np.argsort(lengths[part], kind="stable")
        return np.lexsort((outputs[part], -(-lengths[part] // _MULTIPLE)))

    def _cut(self, tokens: int) -> np.ndarray:
        """Where batches end, of all rows in the order of `_by_lengths`: as late as they have at most `tokens` tokens on each rank."""
        lengths, outputs = self.samples.lengths, self.samples.output_lengths
        if self._sharded is not None:
            raise UserError("batch_tokens= orders all samples by length, and these are kept as shards: give batch_size=")
        if lengths is None:
            raise UserError("batch_tokens= counts the tokens of texts: of images give batch_size=")
        if not isinstance(tokens, int) or tokens < 1:
            raise UserError(f"batch_tokens={tokens}: give a whole number of tokens, a few thousand")
        if self.drop_last:
            raise UserError(
                "batch_tokens= makes batches of many sizes, and this objective compares samples within a batch: give batch_size="
            )
        order = self._by_lengths(np.arange(len(lengths)))
        read = (-(-lengths[order] // _MULTIPLE) * _MULTIPLE).tolist()
        written = [0] * len(read) if outputs is None else outputs[order].tolist()
        ends, start, widest, longest = [], 0, 0, 0
        for i, (a, b) in enumerate(zip(read, written, strict=True)):
            both = max(widest, a) + max(longest, b)
            rows = -(-(i + 1 - start) // self.lanes)
            if rows * both > tokens * self.world // self.lanes and i - start >= self.lanes:
                ends.append(i)
                start, widest, longest = i, 0, 0
            widest, longest = max(widest, a), max(longest, b)
        if len(read) - start < self.lanes and ends:  # too few to give every lane one
            ends.pop()
        return np.array([*ends, len(read)])


def _quietly(fetch: Callable[[list[int]], None], shards: list[int]) -> None:
    """Fetch ahead; what fails is tried again, and told, when it is read."""
    with contextlib.suppress(UserError, OSError):
        fetch(shards)


class Loader:
    """What the Trainer iterates: at the first batch of an optimizer step the list of all its batches, `{stream: batch}` each;
    an empty list at the others, which are accumulated with it. So the size of the whole step is known before its first loss.

    `position` gives the global step to go on from, `accumulate` the batches of an optimizer step; one ends at an epoch's end. `ready`:
    how many batches of the epoch the Trainer has had, which it counts steps by; gone on with by another `accumulate`, the first is shorter.
    """

    def __init__(
        self, streams: dict[str, Stream], position: Callable[[], int], sampling: Sampling, accumulate: int = 1,
        ready: Callable[[], int] = lambda: 0,
    ):  # fmt: skip
        self.streams, self.position, self.sampling, self.accumulate, self.ready = streams, position, sampling, accumulate, ready
        self.lengths = {name: len(stream) for name, stream in streams.items()}
        self.seed = next(iter(streams.values())).seed

    def __len__(self) -> int:
        return self.sampling.epoch(self.lengths)

    def __iter__(self) -> Iterator[list[dict[str, dict[str, torch.Tensor]]]]:
        step = self.position()
        end = step - step % len(self) + len(self)
        first = step - self.ready() % self.accumulate
        windows = [range(max(g, step), min(g + self.accumulate, end)) for g in range(first, end, self.accumulate)]
        if not torch.cuda.is_available():
            for window in windows:
                yield from self._padded([self._at(g) for g in window])
            return
        with ThreadPoolExecutor(1) as pool:  # the next batches are read and pinned while the GPU works on these
            pending = pool.submit(self._pinned, windows[0])
            for i in range(len(windows)):
                batches = pending.result()
                if i + 1 < len(windows):
                    pending = pool.submit(self._pinned, windows[i + 1])
                yield from self._padded(batches)

    def _padded(self, batches: list[Any]) -> list[list[Any]]:
        return [batches, *([] for _ in batches[1:])]

    def _at(self, step: int) -> dict[str, dict[str, torch.Tensor]]:
        return {name: self.streams[name].at(g) for name, g in self.sampling.at(step, self.lengths, self.seed).items()}

    def _pinned(self, window: range) -> list[dict[str, dict[str, torch.Tensor]]]:
        return [{name: {k: v.pin_memory() for k, v in part.items()} for name, part in self._at(g).items()} for g in window]
