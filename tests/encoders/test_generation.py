"""Protects writing: with a cache as without, a batch as its rows one by one, beams and samples as transformers has them."""

from __future__ import annotations

import pytest
import torch
from writers import rows, writer

from sslt.encoders.base import evaluating
from sslt.encoders.generation import Limits, _by_transformers, generate
from sslt.encoders.seq2seq import Seq2SeqEncoder
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
        alone = [
            _by_transformers(encoder, {"tokens": batch["tokens"][i : i + 1, :n]}, limits(**changed), 0)[0] for i, n in enumerate(SIZES)
        ]
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


@pytest.mark.parametrize("family", ["gpt2", "t5"])
@pytest.mark.parametrize("beams", [1, 3])
def test_what_is_drawn_for_a_row_is_its_own(family, beams):
    """In any company, in any order, alone, and padded further: as it is with texts that are not drawn."""
    encoder = writer(family)
    batch = rows(encoder, SIZES)
    how = limits(sample=True, beams=beams, seed=3)
    turned = {k: x.flip(0) for k, x in batch.items()}
    with evaluating(encoder):
        whole = generate(encoder, batch, how)
        alone = [generate(encoder, {k: x[i : i + 1, :n] for k, x in batch.items()}, how)[0] for i, n in enumerate(SIZES)]
        assert whole == alone == generate(encoder, turned, how)[::-1]
    assert len({tuple(row[:2]) for row in whole}) > 3, "rows share their draws"


@pytest.mark.parametrize("changed", [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.6}, {"min_tokens": 1}])
def test_words_are_drawn_as_often_as_they_are_probable(changed):
    """Over many seeds, the first word of a text; what top_k, top_p and min_tokens leave out never comes."""
    encoder = writer("gpt2", spread=0.1)
    batch = rows(encoder, [4])
    with evaluating(encoder):
        logits = encoder.model(input_ids=batch["tokens"]).logits[0, -1]
        end = encoder.processor.sep_id = int(logits.argmax())
        drawn = [generate(encoder, batch, limits(sample=True, max_tokens=1, seed=s, **changed))[0] for s in range(400)]
    logits = logits / changed.get("temperature", 1.0)
    if "min_tokens" in changed:
        logits[end] = float("-inf")
    probable = logits.softmax(0)
    order = probable.argsort(descending=True)
    if "top_k" in changed:
        probable[order[3:]] = 0
    if "top_p" in changed:
        probable[order[1:][probable[order].cumsum(0)[:-1] >= 0.6]] = 0
    probable = probable / probable.sum()
    count = torch.bincount(torch.tensor([row[0] if row else end for row in drawn]), minlength=len(probable)) / 400
    assert not count[probable == 0].any()
    assert (count - probable).abs().max() < 0.08 and (count - probable).abs().sum() / 2 < 0.5


def forced(first: int, last: int) -> Seq2SeqEncoder:
    """A BART as published ones are."""
    made = writer("bart", spread=0.2)
    made.model.generation_config.update(forced_bos_token_id=first, forced_eos_token_id=last, repetition_penalty=5.0, num_beams=2)
    return Seq2SeqEncoder(made.processor, "bart", made.args["config"], "mean", made.model).eval()


@pytest.mark.parametrize("beams", [1, 2])
def test_what_a_model_is_forced_to_begin_with_stands_before_what_it_writes(beams):
    """As transformers writes with the folder's forced tokens; the other settings that it recommends are not those of `limits`."""
    encoder = forced(7, 3)
    encoder.processor.sep_id = 3
    batch = rows(encoder, SIZES)
    with evaluating(encoder):
        found = generate(encoder, batch, limits(beams=beams))
        read = {"input_ids": batch["tokens"], "attention_mask": batch["mask"].long(), "repetition_penalty": 1.0}
        known = encoder.model.generate(
            **read, max_new_tokens=11, num_beams=beams, length_penalty=0.0, forced_bos_token_id=7, forced_eos_token_id=3,
            eos_token_id=3, pad_token_id=encoder.processor.pad_id, decoder_start_token_id=encoder.start_id,
        )  # fmt: skip
    assert known[:, 1].tolist() == [7] * len(SIZES)
    assert found == [row[2 : row.index(3, 1) if 3 in row[1:] else None] for row in known.tolist()]
    assert encoder.model.generation_config.repetition_penalty == 5.0, "what the folder says is lost"


def test_what_a_model_is_forced_to_begin_with_is_learned_from_and_kept(here):
    """Losses are those of texts behind it, and a folder that was written says the same."""
    from sslt.encoders.load import load_encoder

    encoder = forced(7, 3)
    batch = rows(encoder, [6, 6])
    outputs = batch["tokens"][:, :4]
    known = encoder.model(
        input_ids=batch["tokens"], decoder_input_ids=torch.cat([torch.tensor([[encoder.start_id, 7]] * 2), outputs[:, :-1]], 1)
    ).logits[:, 1:]
    found = torch.nn.functional.linear(encoder.reply_states(batch, outputs, outputs > -1), *encoder.output_layer())
    torch.testing.assert_close(found, known)
    encoder.require_writing("seq2seq")
    encoder.save(here / "encoder")
    again = load_encoder(str(here / "encoder"))
    assert again.start_ids == encoder.start_ids == [encoder.start_id, 7] and again.forced_last == 3


def test_a_prompt_that_leaves_no_room_is_refused():
    encoder = writer("gpt2", length=60)
    with evaluating(encoder), pytest.raises(UserError, match="60 tokens and 10 to write are more than the model's 64 positions"):
        generate(encoder, rows(encoder, [60]), limits())
