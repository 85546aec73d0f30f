"""Protects lanes: fewer ranks than a run began with draw what those would have drawn, for views, losses and dropout."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parent))  # a rank knows nothing of pytest's paths
import two_processes
from safetensors.torch import load_file
from tiny_tasks import tiny

from sslt import lanes
from sslt.compiling import _unless_measured
from sslt.data.prepare.image_processor import ImageSamples
from sslt.lanes import Lanes
from sslt.recomputing import _again
from sslt.stages import common

ROWS = 7  # of the joint batch: the first lane has one more than the others


def apart(count: int, rows: int, draw: Callable[[Tensor], Tensor], views: int = 1) -> Tensor:
    """What `draw` makes of the joint batch x [views · rows, 3], where each lane is a rank of its own."""
    x, found = batch(rows, views), torch.empty(0)
    for lane in range(count):
        part = x.unflatten(0, (views, rows))[:, lane::count].flatten(0, 1)
        Lanes(count, lane, count).begin(1, 2)
        drawn = draw(part).unflatten(0, (views, -1))
        found = found if len(found) else drawn.new_empty((views, rows, *drawn.shape[2:]))
        found[:, lane::count] = drawn
    return found.flatten(0, 1)


def together(count: int, rows: int, draw: Callable[[Tensor], Tensor], views: int = 1) -> Tensor:
    """The same by one rank that has all lanes."""
    held = Lanes(count)
    held.begin(1, 2)
    with held.drawing(rows):
        return draw(batch(rows, views))


def batch(rows: int, views: int) -> Tensor:
    return torch.arange(views * rows * 3.0).view(views * rows, 3) / 10 + 0.05


def heads(x: Tensor) -> Tensor:
    return x[:, None, None, :].expand(-1, 2, 4, -1)


def in_place(x: Tensor) -> Tensor:
    (kept := x.new_empty(len(x), 1, 1)).bernoulli_(0.5)
    (other := torch.empty(len(x), 2)).uniform_(2, 3)
    return kept[:, :, 0] + other


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "rand by numbers": lambda x: torch.rand(len(x), 4),
    "rand by a size, without dimensions": lambda x: torch.rand((len(x),)),
    "randn by name": lambda x: torch.randn(size=(len(x), 2)),
    "randint with a bound": lambda x: torch.randint(1000, (len(x), 4)),
    "randint with two bounds": lambda x: torch.randint(-5, 1000, x.shape),
    "like a tensor": lambda x: torch.randn_like(x) + torch.rand_like(x),
    "in place": in_place,
    "by probabilities": lambda x: torch.bernoulli(x.clamp(max=1)) + torch.poisson(x),
    "multinomial": lambda x: torch.multinomial(x, 2),
    "dropout": lambda x: F.dropout(F.dropout(x, 0.5), p=0.3, training=True),
    "a module's dropout": lambda x: nn.Dropout(0.5).train()(x),
    "dropout of whole maps": lambda x: nn.Dropout2d(0.5).train()(heads(x).transpose(1, 2).contiguous()),
    "slopes": lambda x: F.rrelu(-x, 0.0, 0.5, True),
    "slopes by name": lambda x: F.rrelu(-x, lower=0.1, upper=0.5, training=True),
    "attention": lambda x: F.scaled_dot_product_attention(heads(x), heads(x), heads(x), None, 0.5),
    "attention by name": lambda x: F.scaled_dot_product_attention(heads(x), heads(x), heads(x), dropout_p=0.5),
    "attention with a mask for all": lambda x: F.scaled_dot_product_attention(*3 * [heads(x)], torch.ones(1, 1, 4, 4).bool(), 0.5),
    "after what is of no row": lambda x: torch.rand(5).new_empty(len(x)).copy_(torch.rand(len(x))),
    "after what is of no row, in place": lambda x: torch.empty(()).uniform_().new_empty(len(x)).copy_(torch.rand(len(x))),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize(("count", "views"), [(2, 1), (3, 2)])
def test_one_rank_draws_what_each_lane_would_as_a_rank(name, count, views):
    expected = apart(count, ROWS, DRAWS[name], views)
    assert torch.equal(together(count, ROWS, DRAWS[name], views), expected)
    assert not torch.equal(together(1, ROWS, DRAWS[name], views), expected)


def test_a_rank_has_every_lane_of_its_rows():
    """Row j of the joint batch is of lane j mod V, and rank r of W has the rows r, r + W, ..."""
    joint, count = np.arange(12), 4
    for world in (1, 2, 4):
        for rank in range(world):
            own = Lanes(count, rank, world).own
            assert (joint[rank::world] % count == np.resize(own, 12 // world)).all()


def test_lanes_of_two_ranks_of_four_are_those_of_four():
    draw = lambda x: torch.rand(len(x), 3)  # noqa: E731
    expected = apart(4, 8, draw)
    for rank in (0, 1):
        held = Lanes(4, rank, 2)
        held.begin(1, 2)
        with held.drawing(4):
            assert torch.equal(draw(batch(4, 1)), expected[rank::2])


def test_what_has_a_generator_of_its_own_is_left_to_it():
    of = lambda: torch.rand(ROWS, generator=torch.Generator().manual_seed(3))  # noqa: E731
    assert torch.equal(together(2, ROWS, lambda x: of()), of())


def test_no_dropout_draws_nothing():
    def draw(x: Tensor) -> Tensor:
        F.dropout(x, 0.5, training=False), F.dropout(x, 0.0), nn.Dropout(0.5).eval()(x)
        return torch.rand(len(x))

    assert torch.equal(together(2, ROWS, draw), together(2, ROWS, lambda x: torch.rand(len(x))))


def test_gradients_are_those_of_the_lanes():
    def gradient(x: Tensor) -> Tensor:
        x = x.requires_grad_()
        (F.dropout(x, 0.5) * torch.arange(3.0)).sum().backward()
        assert x.grad is not None
        return x.grad

    assert torch.equal(together(2, ROWS, gradient), apart(2, ROWS, gradient))


@pytest.mark.parametrize("wrapper", [_again, _unless_measured, lambda b, call: _again(b, _unless_measured(b, call))])
def test_a_block_that_is_called_in_another_way_has_the_same_masks(wrapper, monkeypatch):
    """One that the backward pass computes again, one that is compiled, which runs for each lane by itself, and both."""
    monkeypatch.setattr(torch, "compile", lambda plain, backend: plain)
    block = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(3, 3), nn.Dropout(0.5))

    def gradient(call: Callable[..., Any]) -> Tensor:
        block.zero_grad()
        held = Lanes(2)
        held.begin(1, 2)
        with held.drawing(ROWS):
            loss = call(batch(ROWS, 1).requires_grad_()).square().sum() + F.dropout(torch.ones(ROWS), 0.5).sum() * 0
        torch.rand(9)  # the backward pass finds the generators elsewhere
        loss.backward()
        return torch.cat([p.grad.flatten() for p in block.parameters() if p.grad is not None])

    assert torch.allclose(gradient(wrapper(block, block)), gradient(block), rtol=1e-6)
    assert lanes._now is None


def test_a_compiled_block_is_given_a_lane_at_a_time(monkeypatch):
    """What is of rows is divided, also in what comes out, and what is of none is not; no cache is handed on. Where rows know of each other
    (BatchNorm), they stay together."""
    monkeypatch.setattr(torch, "compile", lambda plain, backend: plain)

    class Cache:
        def get_seq_length(self):
            return 0

    def plain(x, table, *, mask, cache=None):
        assert len(mask) == len(x) and len(table) == 5 and cache is None
        return F.dropout(x * mask, 0.5), {"views": x[:, :1], "other": None}

    def draw(x: Tensor) -> Tensor:
        found, more = _unless_measured(nn.Dropout(), plain)(x, torch.ones(5, 2), mask=x[:, :1], cache=Cache() if lanes._now else None)
        return torch.cat([found, more["views"]], 1)

    assert torch.equal(together(2, ROWS, draw, 2), apart(2, ROWS, draw, 2))
    normed = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
    assert torch.equal(together(2, ROWS, _unless_measured(normed, normed)), together(1, ROWS, normed))


def test_rows_that_stand_together_are_of_one_lane():
    """Two lanes with three episodes of four rows: the first has the first and the last of them."""
    held, x = Lanes(2), batch(12, 2)
    held.begin(1, 2)
    with held.drawing(12, together=4):
        found = F.dropout(x, 0.5).view(2, 3, 4, 3)
    for lane in (0, 1):
        Lanes(2, lane, 2).begin(1, 2)
        assert torch.equal(found[:, lane::2], F.dropout(x.view(2, 3, 4, 3)[:, lane::2].flatten(0, 2), 0.5).view(2, -1, 4, 3))


def test_what_belongs_to_rows_is_of_their_lanes():
    """Five things of rows 0, 1, 1, 2, 3, and two of row 1 alone, which take nothing from the other lane."""

    def things(of: list[int]) -> tuple[Tensor, Tensor]:
        with lanes.rows(torch.tensor(of)):
            some = torch.rand(len(of), 2)
        return some, torch.rand(len(set(of)))

    held, found = Lanes(2), []
    held.begin(1, 2)
    with held.drawing(4):
        with lanes.rows(torch.tensor([1, 1])):
            alone = torch.rand(2), torch.rand(3)  # the second is of no thing
        with lanes.rows(torch.tensor([], dtype=torch.long)):
            assert torch.rand(0, 2).shape == (0, 2)  # of no row
        found = [*things([0, 1, 1, 2, 3]), torch.rand(4)]
    for lane, of in ((0, [0, 2]), (1, [1, 1, 3])):
        Lanes(2, lane, 2).begin(1, 2)
        if lane:
            assert torch.equal(torch.rand(2), alone[0]) and torch.equal(torch.rand(3), alone[1])
        assert torch.equal(found[0][[0, 3] if lane == 0 else [1, 2, 4]], torch.rand(len(of), 2))
        assert torch.equal(found[1][lane::2], torch.rand(2)) and torch.equal(found[2][lane::2], torch.rand(2))


def test_parts_of_a_batch_are_of_one_lane_each():
    """A batch that is gone through in parts draws as its lanes would, in parts of their own; what is of no samples stays as it is."""

    def part(x: Tensor) -> Tensor:
        assert isinstance(lanes.again(), contextlib.nullcontext)  # checkpointing restores what it drew by torch's generators
        return F.dropout(x, 0.5)

    def parts(x: Tensor) -> Tensor:
        return lanes.called(lambda rows: torch.cat([part(p) for p in rows.split(3)]), (x,), {})

    assert torch.equal(together(2, ROWS, parts, 2), apart(2, ROWS, parts, 2))
    held = Lanes(2)
    held.begin(1, 2)
    with held.drawing(4):
        assert torch.equal(lanes.called(lambda x: x, (torch.arange(3),), {}), torch.arange(3))


def test_numbers_of_a_step_that_are_of_no_row():
    """The same on every rank, others in every step and each time; outside of a step torch's own."""

    def drawn(count: int, lane: int, world: int, step: int) -> list[float]:
        held = Lanes(count, lane, world)
        held.begin(5, step)
        with held.drawing(4):
            return torch.rand(2, generator=lanes.common()).tolist() + torch.rand(1, generator=lanes.common("cpu")).tolist()

    first = drawn(4, 0, 4, 7)
    assert first == drawn(4, 3, 4, 7) == drawn(4, 1, 2, 7) == drawn(1, 0, 1, 7)
    assert len({*first, *drawn(4, 0, 4, 8)}) == 6
    assert lanes.common() is None and lanes.most(3) == lanes.least(3) == 3


def test_numbers_of_a_users_own_views_are_of_the_first_lane():
    found = []
    for held in (Lanes(4, 1, 2), Lanes(4, 1, 4)):
        held.begin(5, 6)
        found.append((np.random.rand(), random.random()))
    assert found[0] == found[1]


def test_the_streams_of_a_run_are_divided_by_its_lanes():
    samples = ImageSamples(np.zeros((41, 8, 8, 3), np.uint8), None, "black")
    made = common.stream(OmegaConf.create({"seed": 0, "trainer": {"lanes": 4}}), samples, 8, None, drop_last=False)
    assert (made.lanes, len(made)) == (4, 5)  # one row more would be no two for each lane


# views of images, masks in the loss, blocks of one size for all, words, and texts whose views are of different lengths
TASKS = ("simclr", "mae", "ijepa", "electra", "tsdae")
STEPS = ["trainer.max_steps=2", "optimizer=sgd", "optimizer.lr=0.02", "schedule.warmup=0", "online_probe.every_n_epochs=0"]


def train(task: str, size: int, held: int, folder: Path, rank: int = 0) -> None:
    overrides = [f"+task={task}", *tiny(task), *STEPS, f"batch_size={size}", f"trainer.lanes={held}"]
    two_processes.command("pretrain", overrides, folder / task, rank)


def on_two(rank: int) -> None:
    for task in TASKS:
        train(task, 16, 2, Path("two"), rank)


def weights(folder: Path) -> Tensor:
    found = load_file(folder / "encoder" / "model.safetensors").values()
    return torch.cat([x.double().flatten() for x in found if x.is_floating_point()])


@pytest.fixture(scope="module")
def runs(tmp_path_factory, cache) -> Path:
    folder = tmp_path_factory.mktemp("lanes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SSLT_CACHE", str(cache))
        two_processes.run(on_two, folder)
        for task in TASKS:
            train(task, 32, 2, Path("one"))
            train(task, 32, 1, Path("other"))
    return folder


@pytest.mark.parametrize("task", TASKS)
def test_one_rank_learns_what_two_learn(task, runs):
    """The sums of two ranks are rounded in another order; other views or masks make a difference that is a hundred times as large."""
    two, one, other = (weights(runs / name / task) for name in ("two", "one", "other"))
    assert (two - one).norm() < 0.01 * (two - other).norm()
