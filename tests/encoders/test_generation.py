"""Protects writing: with a cache as without, a batch as its rows one by one, beams and samples as transformers has them."""

from __future__ import annotations

import pytest
import torch
from writers import rows, writer

from sslt.encoders.base import evaluating
from sslt.encoders.generation import Limits, _by_transformers, generate
from sslt.errors import UserError

SIZES = [9, 5, 5, 7, 9, 3]
FAMILIES = ["gpt2", "llama", "t5", "bart"]


def limits(**changed) -> Limits:
    kept = {"max_tokens": 10, "min_tokens": 0, "beams": 1, "sample": False, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    return Limits(**{**kept, "length_penalty": 0.0, "seed": 0, **changed})


def ending(family: str):
    """A writer and texts, after which it writes more or less: the word that the replies first have at most different places ends them."""
    encoder = writer(family, spread=0.2 if family == "bart" else 0.3)
    batch = rows(encoder, SIZES)
    with evaluating(encoder):
        written = generate(encoder, batch, limits())
    places = lambda word: {row.index(word) if word in row else -1 for row in written}  # noqa: E731
    encoder.processor.sep_id = max(sorted({i for row in written for i in row}), key=lambda word: len(places(word)))
    return encoder, batch


def token_by_token(encoder, text: torch.Tensor, most: int) -> list[int]:
    """The most probable word at each step, everything read anew."""
    out: list[int] = []
    while len(out) < most:
        so_far = torch.tensor([out], dtype=torch.long)
        if encoder.writes == "causal":
            logits = encoder.model(input_ids=torch.cat([text, so_far], 1), use_cache=False).logits
        else:
            start = torch.tensor([[encoder.start_id]])
            logits = encoder.model(input_ids=text, decoder_input_ids=torch.cat([start, so_far], 1), use_cache=False).logits
        word = int(logits[0, -1].argmax())
        if word == encoder.processor.sep_id:
            break
        out.append(word)
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_token_by_token(family):
    """Cache, groups of equal length and dropped rows change nothing, rows that end early among them."""
    encoder, batch = ending(family)
    with evaluating(encoder):
        found = generate(encoder, batch, limits())
        known = [token_by_token(encoder, batch["tokens"][i : i + 1, :n], 10) for i, n in enumerate(SIZES)]
    assert found == known
    assert len({len(row) for row in found}) > 1, "all end at once: nothing was dropped"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("changed", [{"beams": 3}, {"beams": 3, "length_penalty": 1.0}, {"min_tokens": 6}])
def test_a_batch_is_its_rows_one_by_one(family, changed):
    encoder, batch = ending(family)
    with evaluating(encoder):
        found = generate(encoder, batch, limits(**changed))
        alone = [_by_transformers(encoder, {"tokens": batch["tokens"][i : i + 1, :n]}, limits(**changed))[0] for i, n in enumerate(SIZES)]
    assert found == alone
    assert all(len(row) >= changed.get("min_tokens", 0) for row in found)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_samples_have_a_seed(family):
    """The same seed writes the same, another one something else; the generators of a run are left as they were."""
    encoder = writer(family)
    batch = rows(encoder, SIZES)
    before = torch.random.get_rng_state()
    with evaluating(encoder):
        first, again, other = (generate(encoder, batch, limits(sample=True, seed=s)) for s in (0, 0, 1))
        assert generate(encoder, batch, limits(sample=True, top_k=1)) == generate(encoder, batch, limits())
    assert first == again != other
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_prompt_that_leaves_no_room_is_refused():
    encoder = writer("gpt2", length=60)
    with evaluating(encoder), pytest.raises(UserError, match="60 tokens and 10 to write are more than the model's 64 positions"):
        generate(encoder, rows(encoder, [60]), limits())
