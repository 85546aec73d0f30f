"""Protects rotation, flip, jigsaw and patch context: the questions they ask, the right answers, and the mistakes that are named."""

from __future__ import annotations

import csv
import itertools
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_IMAGES
from tiny_encoders import TinyEncoder, coordinates, tiny_vit, views

from sslt.data.prepare.image_processor import ImageProcessor
from sslt.encoders.base import evaluating
from sslt.encoders.conv4 import Conv4
from sslt.encoders.lenet import LeNet
from sslt.errors import UserError
from sslt.objectives.jigsaw import Jigsaw, PatchContext, distant_permutations
from sslt.objectives.parts.tiles import cut_tiles, drop_colour, even_out
from sslt.objectives.rotation import Flip, Rotation


def log_loss(logits: np.ndarray, truth: int) -> float:
    return math.log(sum(math.exp(x) for x in logits.tolist())) - float(logits[truth])


def plain_log_losses(encoder, head, images: list[np.ndarray], truth: list[int]) -> list[float]:
    """Each image encoded by itself, in float64."""
    with torch.no_grad():
        rows = [head(encoder({"image": torch.tensor(x[None].copy())}).pooled)[0].numpy() for x in images]
    return [log_loss(row, t) for row, t in zip(rows, truth, strict=True)]


# -------------------------------------------------------------------- rotation and flip
POSITIONS = {
    Rotation: [lambda x, k=k: np.rot90(x, k, (1, 2)) for k in range(4)],
    Flip: [lambda x: x, lambda x: x[:, :, ::-1], lambda x: x[:, ::-1], lambda x: x[:, ::-1, ::-1]],
}


@pytest.mark.parametrize("kind", POSITIONS)
def test_all_positions_are_asked_for_against_the_loop(kind):
    """The mean log loss over every image in every position, the positions made by numpy, one forward for all of them."""
    encoder, batch = TinyEncoder().double().eval(), views(v=2, b=3)
    batch["views"]["image"] = batch["views"]["image"].double()
    objective = kind(encoder).double()
    found = objective(encoder, batch)
    assert [len(x) for x in encoder.seen] == [4 * 6]
    images = batch["views"]["image"].flatten(0, 1).numpy()
    placed = [(turn(x), k) for k, turn in enumerate(POSITIONS[kind]) for x in images]
    expected = np.mean(plain_log_losses(encoder, objective.head, *map(list, zip(*placed, strict=True))))
    assert float(found.value.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", POSITIONS)
def test_a_head_that_knows_nothing_costs_log_four(kind):
    """Known value; the accuracy is then that of the first class, and is computed only where somebody reads it."""
    encoder, objective = TinyEncoder(), kind(TinyEncoder())
    torch.nn.init.zeros_(objective.head.weight)
    torch.nn.init.zeros_(objective.head.bias)
    found = objective(encoder, views())
    assert float(found.value) == pytest.approx(math.log(4), rel=1e-6) and float(found.logs["accuracy"]) == 0.25
    assert encoder.seen[-1].is_contiguous(memory_format=torch.channels_last)
    objective.logs_now = False
    assert objective(encoder, views()).logs == {}


def test_both_flips_are_half_a_turn():
    """The fourth flip is the third rotation."""
    x = torch.randn(2, 3, 5, 5)
    encoder = TinyEncoder()
    assert torch.equal(Flip(encoder).place(x, 3), Rotation(encoder).place(x, 2))


# -------------------------------------------------------------------- permutations
def distances(permutations: np.ndarray) -> np.ndarray:
    return np.array([sum(a != b) for a, b in itertools.combinations(permutations.tolist(), 2) for a, b in [(np.array(a), np.array(b))]])


def test_permutations_are_far_apart():
    """Each is one; any two differ in as many places as promised, more than random ones; nine can differ everywhere; always the same."""
    chosen = distant_permutations(9, 40, 7)
    assert (np.sort(chosen, 1) == np.arange(9)).all() and distances(chosen).min() >= 7
    generator = np.random.default_rng(1)
    random = np.stack([generator.permutation(9) for _ in range(40)])
    assert distances(random).min() < 7 and distances(chosen).mean() > distances(random).mean()
    assert distances(distant_permutations(9, 9, 9)).min() == 9
    distant_permutations.cache_clear()
    assert np.array_equal(distant_permutations(9, 40, 7), chosen)


def test_every_choice_is_the_farthest_left():
    """Greedy, against a loop over all permutations of four tiles: none left is farther from the nearest of those chosen before."""
    chosen = distant_permutations(4, 24, 2).tolist()
    assert sorted(chosen) == sorted(map(list, itertools.permutations(range(4))))
    for i in range(1, 24):
        nearest = [min(sum(a != b for a, b in zip(p, q, strict=True)) for q in chosen[:i]) for p in chosen[i:]]
        assert nearest[0] == max(nearest)


@pytest.mark.parametrize(
    ("count", "distance", "message"),
    [(400_000, 2, "362,880"), (1, 2, "2 to 362,880"), (60, 9, "only 9 permutations"), (10, 1, "min_distance=1"), (10, 10, "2 to 9 places")],
)
def test_impossible_sets_of_permutations(count, distance, message):
    """More than there are, more than can be so far apart, or no distance at all."""
    with pytest.raises(UserError, match=message):
        distant_permutations(9, count, distance)


# -------------------------------------------------------------------- tiles
def test_tiles_are_cut_where_they_are_asked_for():
    """Against slices."""
    x = torch.randn(3, 2, 9, 9)
    top, left = torch.tensor([[0, 5], [1, 2], [3, 6]]), torch.tensor([[4, 0], [6, 6], [1, 2]])
    tiles = cut_tiles(x, top, left, 3)
    for i, j in itertools.product(range(3), range(2)):
        assert torch.equal(tiles[i, j], x[i, :, top[i, j] : top[i, j] + 3, left[i, j] : left[i, j] + 3])


def test_tiles_lose_brightness_contrast_and_colour():
    """Each channel of each tile has mean 0 and deviation 1, a flat one is 0; one channel of three stays, grey ones stay as they are."""
    torch.manual_seed(0)
    tiles = torch.rand(5, 4, 3, 6, 6) * torch.rand(5, 4, 3, 1, 1) * 5 + torch.randn(5, 4, 3, 1, 1)
    tiles[0, 0, 0] = 2.5
    even = even_out(tiles).numpy()
    x = tiles.double().numpy()
    plain = (x - x.mean((3, 4), keepdims=True)) / np.sqrt(x.var((3, 4), keepdims=True) + 1e-5)
    assert np.allclose(even, plain, atol=1e-4) and (even[0, 0, 0] == 0).all()
    x = torch.randn(5, 4, 3, 6, 6) + 1
    dropped = drop_colour(x, 1.0)
    same = (dropped == x).all(-1).all(-1)
    assert (same.sum(2) == 1).all() and dropped[~same].abs().max() < 0.1
    assert same.any(0).any(0).all()  # each channel is kept somewhere
    some = (drop_colour(x.repeat(20, 1, 1, 1, 1), 0.3) == x.repeat(20, 1, 1, 1, 1)).all(-1).all(-1).all(-1).float().mean()
    assert 0.6 < float(some) < 0.8
    assert torch.equal(drop_colour(x[:, :, :1], 1.0), x[:, :, :1]) and drop_colour(x, 0.0) is x


def test_jigsaw_tiles_lie_in_their_cells_with_random_gaps():
    """Pixels that tell where they are: nine whole tiles, each within its cell of the grid, at places that vary."""
    objective = Jigsaw(TinyEncoder(32, 1), 10, 6, None, 0.0, 16)
    assert (objective.cell, objective.tile) == (10, 8)
    torch.manual_seed(0)
    tiles = objective.cut(coordinates(60, 32))[:, :, 0].long().numpy()
    y, x = tiles // 32, tiles % 32
    for i in range(9):
        assert (y[:, i] - y[:, i, :1, :1] == np.arange(8)[:, None]).all() and (x[:, i] - x[:, i, :1, :1] == np.arange(8)).all()
        for place, cell in ((y[:, i, 0, 0], i // 3), (x[:, i, 0, 0], i % 3)):
            assert set((place - 1 - 10 * cell).tolist()) == {0, 1, 2}


@pytest.mark.parametrize("make", [lambda: TinyEncoder(32), tiny_vit], ids=["cnn", "vit"])
def test_jigsaw_against_the_loop(make):
    """Each tile normalised and encoded by itself, features strung together in the permuted order, the MLP's log loss."""
    encoder = make().eval()
    objective, images = Jigsaw(encoder, 20, 6, None, 0.0, 16), views(5, 32)["views"]["image"][0]
    torch.manual_seed(3)
    tiles, truth, logits = objective.ask(encoder, images)
    torch.manual_seed(3)
    found = objective(encoder, views(5, 32))
    losses = []
    for i in range(5):
        order, features = objective.permutations[truth[i]].tolist(), []
        for k in order:
            t = tiles[i, k].double().numpy()
            t = (t - t.mean((1, 2), keepdims=True)) / np.sqrt(t.var((1, 2), keepdims=True) + 1e-5)
            with torch.no_grad():
                features.append(encoder({"image": torch.tensor(t[None], dtype=torch.float32)}).pooled[0])
        with torch.no_grad():
            row = objective.head(torch.cat(features)[None])[0]
        assert torch.allclose(row, logits[i], atol=1e-4)
        losses.append(log_loss(row.double().numpy(), int(truth[i])))
    assert float(found.value.detach()) == pytest.approx(np.mean(losses), rel=1e-4)
    assert float(found.logs["accuracy"]) == pytest.approx(float((logits.argmax(1) == truth).float().mean()))


@pytest.mark.parametrize(("given", "size"), [((None, None, None), 32), ((None, None, None), 20), ((6, 4, 2), 40), ((8, 0, 0), 24)])
def test_a_neighbour_lies_in_its_direction(given, size):
    """The second tile is in the image, apart from the first by the gap give or take the jitter, on the side the answer names."""
    objective = PatchContext(TinyEncoder(size, 1), *given, 0.0, 16)
    t, gap, jitter = objective.tile, objective.gap, objective.jitter
    torch.manual_seed(0)
    tiles, direction = objective.cut(coordinates(400, size))
    corner = tiles[:, :, 0, 0, 0].long()
    assert (tiles[:, :, 0, -1, -1] == corner + (t - 1) * (size + 1)).all()
    y, x = corner // size, corner % size
    assert int(y.min()) >= 0 and int(y.max()) + t <= size and int(x.min()) >= 0 and int(x.max()) + t <= size
    names = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b]
    seen = set()
    for i in range(400):
        a, b = names[int(direction[i])]
        dy, dx = int(y[i, 1] - y[i, 0]), int(x[i, 1] - x[i, 0])
        assert abs(dy - a * (t + gap)) <= 2 * jitter and abs(dx - b * (t + gap)) <= 2 * jitter
        assert max(abs(dy), abs(dx)) >= t  # no pixel is in both
        seen.add((dy, dx))
    assert len(direction.unique()) == 8 and (jitter == 0 or len(seen) > 40)


def test_patch_context_against_the_loop():
    """Two tiles, normalised and encoded by themselves, and the MLP's log loss."""
    encoder = TinyEncoder(32).eval()
    objective = PatchContext(encoder, None, None, None, 0.0, 16)
    torch.manual_seed(3)
    tiles, direction, _ = objective.ask(encoder, views(5, 32)["views"]["image"][0])
    torch.manual_seed(3)
    found = objective(encoder, views(5, 32))
    losses = []
    for i in range(5):
        pair = [(t - t.mean((1, 2), keepdim=True)) / (t.var((1, 2), correction=0, keepdim=True) + 1e-5).sqrt() for t in tiles[i]]
        with torch.no_grad():
            row = objective.head(torch.cat([encoder({"image": t[None]}).pooled[0] for t in pair])[None])[0]
        losses.append(log_loss(row.double().numpy(), int(direction[i])))
    assert float(found.value.detach()) == pytest.approx(np.mean(losses), rel=1e-4)


OBJECTIVES = {
    "rotation": lambda e: Rotation(e), "flip": lambda e: Flip(e), "jigsaw": lambda e: Jigsaw(e, 10, 6, None, 0.5, 32),
    "patch_context": lambda e: PatchContext(e, None, None, None, 0.5, 32),
}  # fmt: skip


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_answer_can_be_learned(name):
    """On images in which every place looks different, the loss falls well below chance, and gradients reach everything."""
    encoder = TinyEncoder(32, dim=16)
    torch.manual_seed(0)
    objective = OBJECTIVES[name](encoder)
    y, x = torch.meshgrid(torch.linspace(0, 1, 32), torch.linspace(0, 1, 32), indexing="ij")
    scene = torch.stack([torch.sin(40 * y * (y + 0.3)), torch.sin(40 * x * (x + 0.3)), torch.sin(30 * (x + y) * x)])
    batch = {"views": {"image": (scene + 0.1 * torch.randn(1, 32, 3, 32, 32))}}
    optimizer = torch.optim.Adam([*encoder.parameters(), *objective.parameters()], lr=0.01)
    losses = []
    for _ in range(60):
        loss = objective(encoder, batch).value
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in [*encoder.parameters(), *objective.parameters()])
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])


# -------------------------------------------------------------------- mistakes
def lenet():
    return LeNet(ImageProcessor(28, 1, [0.5], [0.5]), [2, 3], 8, 0.0)


def conv4():
    return Conv4(ImageProcessor(48, 1, [0.5], [0.5]), 4, 3, "pool", "flatten")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Jigsaw(TinyEncoder(8), 10, 6, None, 0.0, 8), r"images of 8 pixels.*encoder\.processor\.size=15"),
        (lambda: Jigsaw(tiny_vit(12), 10, 6, None, 0.0, 8), r"images of 12 pixels.*encoder\.processor\.size=16"),
        (lambda: Jigsaw(tiny_vit(32), 10, 6, 7, 0.0, 8), r"patches of 4 pixels: set objective\.tile=4 or 8"),
        (lambda: Jigsaw(TinyEncoder(32), 10, 6, 12, 0.0, 8), r"objective\.tile=12: three tiles"),
        (lambda: Jigsaw(TinyEncoder(32), 10, 6, 0, 0.0, 8), r"objective\.tile=0"),
        (lambda: Jigsaw(lenet(), 10, 6, None, 0.0, 8), r"tiles of 7 pixels, and LeNet"),
        (lambda: Jigsaw(conv4(), 10, 6, None, 0.0, 8), r"Conv4 makes 4 features of them instead of 144"),
        (lambda: PatchContext(TinyEncoder(8), None, None, None, 0.0, 8), r"images of 8 pixels.*encoder\.processor\.size=18"),
        (lambda: PatchContext(TinyEncoder(32), 9, 2, 1, 0.0, 8), r"need images of 33 pixels, not 32"),
        (lambda: PatchContext(TinyEncoder(32), 8, 1, 1, 0.0, 8), r"objective\.gap=1.*overlap"),
    ],
)
def test_tiles_that_cannot_be(make, message):
    """Images too small, sides that are no whole patches, encoders of one size alone: one line that says what to set."""
    with pytest.raises(UserError, match=message):
        make()


def test_what_the_message_proposes_works():
    """The sizes named above are the smallest that do."""
    assert Jigsaw(TinyEncoder(15), 10, 6, None, 0.0, 8).tile == 4 and Jigsaw(tiny_vit(16), 10, 6, None, 0.0, 8).tile == 4
    assert PatchContext(TinyEncoder(18), None, None, None, 0.0, 8).tile == 4
    assert Jigsaw(tiny_vit(32), 10, 6, 8, 0.0, 8).tile == 8


def test_permutations_want_samples():
    """Fewer images than permutations cannot be learned from."""
    encoder = TinyEncoder(32)
    with pytest.raises(UserError, match=r"12 images are too few.*objective\.permutations=12"):
        Jigsaw(encoder, 20, 6, None, 0.0, 8).prepare(encoder, range(12), 4)


def test_text_encoders_are_refused():
    """Plain views let text through, so the objective itself looks."""
    encoder = TinyEncoder()
    encoder.modality = "text"
    with pytest.raises(UserError, match="the encoder reads text"):
        Rotation(encoder)


# -------------------------------------------------------------------- pictures and the command line
@pytest.mark.parametrize("name", OBJECTIVES)
def test_pictures_say_what_was_right(name):
    """As many captions as columns; a tick exactly where the answer is the right one."""
    encoder = TinyEncoder(32)
    objective = OBJECTIVES[name](encoder)
    with evaluating(encoder), evaluating(objective):
        (picture,) = objective.draw(encoder, views(6, 32)).values()
    assert len(picture.captions) == 6 and all(("✓" in c) != ("✗" in c) for c in picture.captions)
    assert all(row.shape == (6, 3, 32, 32) for row in picture.rows.values())


@pytest.mark.parametrize("task", OBJECTIVES)
def test_tasks_run(task, sslt, here: Path):
    """Three steps from the command line; the accuracy is recorded and the picture drawn, without a missing glyph."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Glyph")
        sslt(
            "pretrain", f"+task={task}", *TINY_IMAGES, "batch_size=32", "trainer.max_steps=3", "trainer.log_every_n_steps=1",
            "online_probe.every_n_epochs=0", "hydra.run.dir=out",
        )  # fmt: skip
    assert (here / "out" / "metrics.json").exists() and (here / "out" / "pictures" / f"{task}.png").exists()
    rows = list(csv.DictReader((here / "out" / "metrics.csv").open()))
    assert sum(row["name"] == "accuracy" for row in rows) == 3
