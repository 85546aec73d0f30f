"""Protects the bag of words: its features against plain loops, whatever padding stands beside them, and its folder."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from sslt.adaptation.adapters import LoRA
from sslt.adaptation.base import Full
from sslt.data.prepare.bag_processor import BagProcessor
from sslt.encoders.bag import TABLE_RATE, BagEncoder, hashed_pairs
from sslt.encoders.base import fingerprint
from sslt.encoders.load import fresh_like, load_encoder
from sslt.errors import UserError
from sslt.objectives.masked_lm import MaskedLM

DIM, PAIRS = 6, 37


def encoder(pairs: int = PAIRS, **changed) -> BagEncoder:
    torch.manual_seed(0)
    processor = BagProcessor({f"w{i}": 1 + i for i in range(30)}, 40, 5, 1000)
    return BagEncoder(processor, **{"dim": DIM, "pairs": pairs, "pair_weight": 0.5, "dropout": 0.0, **changed})


def slowly(e: BagEncoder, row: list[int]) -> list[float]:
    """The features of one text by dictionaries and loops in Python's own numbers; a 0 in it is a word that is not read."""
    weights: dict[tuple[str, int], float] = {}
    documents = list(e.processor.documents.values())
    for i, word in enumerate(row):
        if word == 0:
            continue
        n = documents[word - 1] if word <= len(documents) else 1
        key = ("words", word)
        weights[key] = weights.get(key, 0.0) + math.log((1 + e.processor.texts) / (1 + n)) + 1
        if i + 1 < len(row) and row[i + 1]:
            h = (word * 2654435761 + row[i + 1] * 2246822519) % 2**32
            h = ((h ^ (h >> 16)) * 73244475) % 2**32
            key = ("pairs", (h ^ (h >> 15)) % PAIRS)
            weights[key] = weights.get(key, 0.0) + 0.5
    total = [0.0] * DIM
    for (table, place), weight in weights.items():
        vector = getattr(e, table).weight[place].tolist()
        total = [t + weight * x for t, x in zip(total, vector, strict=True)]
    size = math.sqrt(sum(t * t for t in total) / DIM)
    return [t / size if size else 0.0 for t in total]


ROWS = [[3, 7, 7, 1], [12], [], [35, 0, 2, 3], [0, 0, 9, 31], list(range(1, 30))]


def padded(rows: list[list[int]], width: int) -> dict[str, torch.Tensor]:
    return {"tokens": torch.tensor([row + [0] * (width - len(row)) for row in rows])}


def test_features_are_weighted_means_of_words_and_pairs():
    """Words by rarity, pairs of neighbours that are both read by one weight, scaled to root mean square 1; nothing read gives zeros."""
    e = encoder()
    features = e(padded(ROWS, 32))
    for found, row in zip(features.pooled, ROWS, strict=True):
        assert torch.allclose(found, torch.tensor(slowly(e, row)), atol=1e-5), row
    assert features.tokens.shape == (len(ROWS), 1, DIM) and torch.equal(features.tokens[:, 0], features.pooled)
    assert not features.pooled[2].any()


def test_padding_and_neighbours_in_the_batch_do_not_matter():
    e = encoder()
    together = e(padded(ROWS, 64)).pooled
    for i, row in enumerate(ROWS):
        assert torch.allclose(e(padded([row], max(len(row), 1))).pooled[0], together[i], atol=1e-6)


def test_pairs_are_rows_of_their_own():
    """pairs=0 reads words alone; order is seen through pairs and through nothing else."""
    one, other = padded([[1, 2, 3]], 3), padded([[3, 1, 2]], 3)
    assert torch.allclose(encoder(pairs=0)(one).pooled, encoder(pairs=0)(other).pooled, atol=1e-6)
    assert not torch.allclose(encoder()(one).pooled, encoder()(other).pooled, atol=1e-3)


def test_pair_rows_are_spread_evenly():
    """Hashed pairs of frequent words collide no more than random numbers do."""
    first, second = torch.meshgrid(torch.arange(1, 201), torch.arange(1, 201), indexing="ij")
    counts = torch.bincount(hashed_pairs(first.flatten(), second.flatten(), 4096), minlength=4096).double()
    mean = 40_000 / 4096
    assert counts.mean() == mean and 0.8 * mean < counts.var() < 1.25 * mean  # Poisson's variance is its mean
    assert not torch.equal(hashed_pairs(first, second, 4096), hashed_pairs(second, first, 4096))


def test_gradients_are_those_of_the_mean():
    """Of words, pairs and nothing else, against finite differences."""
    e = encoder().double()
    e.rarity = e.rarity.double()
    inputs, w = padded(ROWS[:2], 6), torch.randn(2, DIM, dtype=torch.float64)
    (e(inputs).pooled.double() * w).sum().backward()
    for table, place in (("words", 7), ("words", 12), ("pairs", int(hashed_pairs(torch.tensor(7), torch.tensor(7), PAIRS)))):
        p = getattr(e, table).weight
        with torch.no_grad():
            values = []
            for step in (1e-3, -2e-3):
                p[place, 2] += step
                values.append(float((e(inputs).pooled.double() * w).sum()))
        assert p.grad[place, 2] == pytest.approx((values[0] - values[1]) / 2e-3, rel=2e-2, abs=1e-4)
        with torch.no_grad():
            p[place, 2] += 1e-3
    assert not e.words.weight.grad[20].any() and not e.words.weight.grad[0].any()


def test_saved_and_loaded_exactly(tmp_path):
    """The folder gives the same features, in another process too; `scratch:` gives the same words and other weights."""
    e = encoder()
    e.save(tmp_path / "encoder")
    again = load_encoder(str(tmp_path / "encoder"))
    assert fingerprint(again) == fingerprint(e) and torch.equal(again(padded(ROWS, 32)).pooled, e(padded(ROWS, 32)).pooled)
    fresh = fresh_like(str(tmp_path / "encoder"))
    assert fresh.processor.digest == e.processor.digest and not torch.equal(fresh.words.weight, e.words.weight)
    code = (
        "import sys, torch; from sslt.encoders.load import load_encoder; e = load_encoder(sys.argv[1]); "
        "print(e({'tokens': torch.tensor([next(e.processor.encode(['w3 w7 other w7']))[0]])}).pooled.tolist())"
    )
    out = subprocess.run([sys.executable, "-c", code, str(tmp_path / "encoder")], capture_output=True, text=True, check=True)
    ids = next(e.processor.encode(["w3 w7 other w7"]))
    assert np.allclose(eval(out.stdout), e(padded(ids, 4)).pooled.tolist(), atol=1e-6)


def test_damaged_weights_are_one_line(tmp_path):
    e = encoder()
    e.save(tmp_path / "encoder")
    encoder(pairs=11).save_weights(tmp_path / "encoder")
    with pytest.raises(UserError, match="damaged"):
        load_encoder(str(tmp_path / "encoder"))


def test_what_needs_a_transformer_says_so():
    """Adapters of attention, prompts, masked words: one line each instead of a traceback."""
    e = encoder()
    with pytest.raises(UserError, match="transformer"):
        LoRA(r=2, alpha=4, dropout=0.0, target_modules=None).prepare(e)
    with pytest.raises(UserError, match="bert_tiny"):
        MaskedLM(e)
    with pytest.raises(UserError, match="hides tokens"):
        e.require_tokens(pooled=True)


def test_rows_move_faster_than_heads():
    """A row moves only when its word is read: its rate is a multiple of the optimizer's, on top of which the adaptation's factors go."""
    e, head = encoder(), nn.Linear(DIM, 2)
    groups = Full(0.5).parameter_groups(e, head, 0.1)
    rates = {p: group["lr_scale"] for group in groups for p in group["params"]}
    assert rates[e.words.weight] == rates[e.pairs.weight] == 0.5 * TABLE_RATE and rates[head.weight] == 1
    assert all(group["weight_decay"] == (0.1 if group["params"][0].dim() > 1 else 0) for group in groups)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_gradients_are_sparse_where_the_optimizer_takes_them(optimizer, sslt, here):
    """On one CPU process with AdamW only the rows read are touched; with another optimizer gradients are whole, and it learns as well."""
    small = ["encoder.dim=8", "encoder.pairs=100", "encoder.processor.vocab_size=300", "trainer.precision=32", "trainer.accelerator=cpu"]
    args = ["pretrain", "+task=crops", *small, f"optimizer={optimizer}", "batch_size=16", "trainer.max_steps=2"]
    sslt(*args, "online_probe.every_n_epochs=0", "trainer.gradient_clip_val=1.0", "hydra.run.dir=run")
    state = torch.load("run/checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    assert all(("row_square" in kept) == (optimizer == "adamw") for kept in state.values()) and len(state) == 2
    if optimizer == "adamw":
        words = next(kept for kept in state.values() if len(kept["row_steps"]) > 300)
        assert {0.0, 1.0, 2.0} == set(words["row_steps"].tolist())
