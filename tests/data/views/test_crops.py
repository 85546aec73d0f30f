"""Protects views that are parts of one document: disjoint, of words of the document only, all of it where pieces are dealt."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sslt import lanes
from sslt.data.prepare.bag_processor import BagProcessor
from sslt.data.prepare.text_processor import TextProcessor
from sslt.data.prepare.text_samples import TextSamples
from sslt.data.prepare.tokenizers import train_tokenizer
from sslt.data.views.text_views import Crops
from sslt.encoders.bag import BagEncoder
from sslt.encoders.text import TextEncoder
from sslt.errors import UserError

SIZES = [0, 1, 2, 3, 5, 16, 17, 40, 100]


@pytest.fixture(scope="module")
def bag() -> BagEncoder:
    words = {f"w{i}": 1 for i in range(1000)}
    return BagEncoder(BagProcessor(words, 10, 5, 100), dim=4, pairs=50, pair_weight=1.0, dropout=0.0)


@pytest.fixture(scope="module")
def transformer() -> TextEncoder:
    tokenizer = train_tokenizer([f"w{i} w{i}" for i in range(300)], vocab_size=1000, lowercase=True)
    config = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "max_position_embeddings": 64}
    return TextEncoder(TextProcessor(tokenizer, 18), "bert", config, "mean")


def batch_for(encoder, sizes=SIZES) -> tuple[dict, list[list[int]]]:
    """Uncut texts whose words are all different, and the words of each."""
    rows, at = [], 10
    for n in sizes:
        rows.append(list(range(at, at + n)))
        at += n
    tokens = np.array([t for row in rows for t in row], np.int32)
    ends = np.cumsum(sizes)
    samples = TextSamples(tokens, ends - sizes, np.array(sizes), None, "texts", encoder.processor.special, encoder.processor.max_length, 0)
    return samples.uncut().batch(np.arange(len(sizes))), rows


def seen(encoder, views: dict, v: int, row: int) -> list[int]:
    tokens = views["tokens"][v, row]
    tokens = tokens[views["mask"][v, row]] if "mask" in views else tokens
    special = [] if encoder.processor.special[0] is None else encoder.processor.special_ids
    return [t for t in tokens.tolist() if t and t not in special]


@pytest.mark.parametrize("kind", ["bag", "transformer"])
@pytest.mark.parametrize("piece", [None, 1, 4])
@pytest.mark.parametrize("n", [2, 3])
def test_views_are_disjoint_parts(kind, piece, n, request):
    """No word of a text is in two views; what is in one keeps its order; none is made up; no view of two or more words is empty."""
    encoder = request.getfixturevalue(kind)
    batch, rows = batch_for(encoder)
    torch.manual_seed(0)
    views = Crops(n=n, piece=piece)(batch, encoder)["views"]
    assert all(x.shape[:2] == (n, len(rows)) for x in views.values())
    for i, row in enumerate(rows):
        parts = [seen(encoder, views, v, i) for v in range(n)]
        assert all(part == sorted(set(part)) and set(part) <= set(row) for part in parts)
        if len(row) < n:
            assert all(part == row for part in parts)
            continue
        assert sum(map(len, parts)) == len({w for part in parts for w in part}) and all(parts)
        if piece is not None and (kind == "bag" or len(row) <= 16):
            assert sorted(w for part in parts for w in part) == row  # dealt out, nothing is left
            assert max(map(len, parts)) - min(map(len, parts)) < 2 * piece
        if piece is None:
            assert all(part == list(range(part[0], part[-1] + 1)) for part in parts)
            assert {len(part) for part in parts} == {min(len(row) // n, encoder.processor.room)}


def test_pieces_stay_whole(bag):
    """Words of one piece go to one view: a break lies only between pieces of so many words."""
    batch, _ = batch_for(bag)
    torch.manual_seed(0)
    views = Crops(n=2, piece=4)(batch, bag)["views"]
    whose = [int(views["tokens"][1, 8, i] > 0) for i in range(100)]
    assert all(len(set(whose[i : i + 4])) == 1 for i in range(0, 100, 4)) and 0 < sum(whose) < 100
    assert whose != [int(views["tokens"][1, 7, i] > 0) for i in range(40)] + whose[40:]  # every text is dealt by itself


def test_spans_reach_the_whole_document(transformer):
    """A text longer than the encoder takes is not read from its beginning alone: over many draws every word is seen."""
    batch, rows = batch_for(transformer, [100])
    torch.manual_seed(0)
    crops = Crops(n=2, piece=None)
    views = [crops(batch, transformer)["views"] for _ in range(100)]
    assert {w for v in views for k in (0, 1) for w in seen(transformer, v, k, 0)} == set(rows[0])
    first = [min(seen(transformer, v, 0, 0)) < min(seen(transformer, v, 1, 0)) for v in views]
    assert 20 < sum(first) < 80  # neither view is always the earlier one


def test_a_transformers_views_are_texts(transformer):
    """Each begins and ends as a text does, within the length it takes; the rest is padding."""
    batch, _ = batch_for(transformer)
    p = transformer.processor
    views = Crops(n=2, piece=4)(batch, transformer)["views"]
    tokens, mask = views["tokens"].flatten(0, 1), views["mask"].flatten(0, 1)
    ends = mask.sum(1)
    assert tokens.shape[1] <= p.max_length and (tokens[:, 0] == p.cls_id).all()
    assert (tokens[torch.arange(len(tokens)), ends - 1] == p.sep_id).all() and ((tokens == p.sep_id).sum(1) == 1).all()
    assert (tokens[~mask] == p.pad_id).all() and (mask.int().diff(dim=1) <= 0).all()


def test_views_are_as_wide_as_those_of_any_rank(transformer, monkeypatch):
    """What is drawn for their tokens (dropout) is then the same on any number of ranks."""
    kept = torch.tensor([[True, True, False, False]])[None]
    inputs = {"tokens": torch.tensor([[5, 6, 7, 8]])}
    own = transformer.pick(inputs, kept)
    monkeypatch.setattr(lanes, "most", lambda size: size + 8)
    wide = transformer.pick(inputs, kept)
    assert wide["tokens"].shape[2] == own["tokens"].shape[2] + 8 and not wide["mask"][..., -8:].any()
    assert all(torch.equal(wide[k][..., :-8], own[k]) for k in own)


def test_same_seed_same_views(bag):
    batch, _ = batch_for(bag)
    crops = Crops(n=2, piece=3)
    torch.manual_seed(5)
    a = crops(batch, bag)["views"]["tokens"]
    b = crops(batch, bag)["views"]["tokens"]
    torch.manual_seed(5)
    assert torch.equal(a, crops(batch, bag)["views"]["tokens"]) and not torch.equal(a, b)


def test_piece_of_nothing_is_refused():
    with pytest.raises(UserError, match=r"views\.piece=0"):
        Crops(n=2, piece=0)
