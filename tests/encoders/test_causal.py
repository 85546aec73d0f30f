"""Protects encoders that write the next word: they see no later word, their states give the library's logits, folders open elsewhere."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM
from writers import CAUSAL, rows, writer

from sslt.encoders import inserted
from sslt.encoders.causal import CausalEncoder
from sslt.encoders.load import load_encoder
from sslt.errors import UserError


@pytest.mark.parametrize("family", CAUSAL)
def test_only_later_states_see_a_word(family):
    """Another token t changes the states from t on and none before: the shift is by exactly one."""
    encoder = writer(family)
    batch = rows(encoder, [9])
    with torch.no_grad():
        before = encoder.word_states(batch)
        batch["tokens"][0, 4] = 7 if batch["tokens"][0, 4] != 7 else 8
        after = encoder.word_states(batch)
    changed = (before != after).any(2)[0]
    assert changed.tolist() == [False] * 4 + [True] * 5


@pytest.mark.parametrize("family", CAUSAL)
def test_states_and_matrix_are_the_models_logits(family):
    encoder = writer(family)
    batch = rows(encoder, [9, 9])
    with torch.no_grad():
        ours = F.linear(encoder.word_states(batch), *encoder.output_layer())
        torch.testing.assert_close(ours, encoder.model(input_ids=batch["tokens"]).logits, rtol=1e-4, atol=1e-4)


def test_padding_is_not_read():
    """A row in a batch is the row alone: features, states, and the last token is the text's own."""
    encoder = writer("gpt2")
    batch = rows(encoder, [9, 5])
    with torch.no_grad():
        both, alone = encoder(batch), encoder({k: x[1:, :5] for k, x in batch.items()})
    torch.testing.assert_close(both.pooled[1:], alone.pooled)
    torch.testing.assert_close(both.pooled[1], both.tokens[1, 4])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_texts_apart_in_a_row(family):
    """Each text of a packed row is read as if it were alone: nothing of the one before, positions from 0."""
    encoder = writer(family)
    tokens = rows(encoder, [10])["tokens"]
    with torch.no_grad():
        row = encoder.word_states({"tokens": tokens, "documents": torch.tensor([[0] * 4 + [1] * 6])})
        for part in (slice(0, 4), slice(4, 10)):
            torch.testing.assert_close(row[:, part], encoder.word_states({"tokens": tokens[:, part]}), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "t5", "bart"])
def test_states_of_a_reply(family):
    """The state at j gives the logits of the reply's j-th word after its text, whatever rows stand beside it."""
    encoder = writer(family)
    batch = rows(encoder, [9, 5])
    outputs = torch.randint(5, 90, (2, 4), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = F.linear(encoder.reply_states(batch, outputs, torch.ones(2, 4, dtype=torch.bool)), *encoder.output_layer())
        for i, n in enumerate((9, 5)):
            text = batch["tokens"][i : i + 1, :n]
            if family == "gpt2":
                known = encoder.model(input_ids=torch.cat([text, outputs[i : i + 1]], 1)).logits[0, n - 1 : n + 3]
            else:
                known = encoder.model(input_ids=text, labels=outputs[i : i + 1]).logits[0]
            torch.testing.assert_close(ours[i], known, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", CAUSAL)
def test_folders(family, tmp_path):
    """A saved encoder comes back bit for bit, and transformers opens it with what it writes by; a plain folder of theirs is one, too."""
    encoder = writer(family)
    batch = rows(encoder, [9, 5])
    with torch.no_grad():
        known = encoder(batch).pooled
        encoder.save(tmp_path / "own")
        assert torch.equal(load_encoder(str(tmp_path / "own")).eval()(batch).pooled, known)
        opened = AutoModelForCausalLM.from_pretrained(tmp_path / "own").eval()
        logits = F.linear(encoder.word_states(batch), *encoder.output_layer())
        torch.testing.assert_close(opened(input_ids=batch["tokens"]).logits, logits, rtol=1e-4, atol=1e-4)
        opened.save_pretrained(tmp_path / "theirs")
        encoder.processor.tokenizer.save_pretrained(str(tmp_path / "theirs"))
        taken = load_encoder(str(tmp_path / "theirs"))
        assert isinstance(taken, CausalEncoder) and torch.equal(taken.eval()(batch).pooled, known)


def test_logits_that_are_more_than_a_product_are_refused():
    """A family with soft caps would be trained by another loss than its own."""
    encoder = writer("gpt2")
    inner = encoder.model.forward
    encoder.model.forward = lambda **given: _capped(inner(**given))
    with pytest.raises(UserError, match="changes its logits"):
        encoder.require_writing("causal")


def _capped(out):
    out.logits = torch.tanh(out.logits) * 0.1
    return out


def test_who_writes_what():
    """Names the encoders that could."""
    with pytest.raises(UserError, match="gpt2 has no decoder to write with: choose encoder=t5_tiny"):
        writer("gpt2").require_writing("seq2seq")


@pytest.mark.parametrize("spec", [{"kind": "adapter", "size": 3}, {"kind": "prompt", "length": 2}])
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_an_adapter_over_shared_matrices_comes_back(family, spec, tmp_path):
    """Where one matrix reads words in and out a file has it once."""
    encoder = writer(family)
    batch = rows(encoder, [9, 5])
    inserted.inject(encoder, spec)
    with torch.no_grad():
        known = encoder.eval()(batch).pooled
        encoder.save(tmp_path)
        assert torch.equal(load_encoder(str(tmp_path)).eval()(batch).pooled, known)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_a_prefix_is_for_who_reads_both_ways(family):
    """Its mask would let a word see those that follow."""
    with pytest.raises(UserError, match=f"reads both ways, and {family} does not: choose adaptation=prompt"):
        inserted.inject(writer(family), {"kind": "prefix", "length": 2})


def test_a_text_and_its_answer_that_are_longer_than_the_model_are_refused():
    """Each fits by itself, and so does the text alone."""
    encoder = writer("gpt2")
    longest = encoder.model.config.n_positions
    tokens = torch.full((1, longest), 5)
    encoder.word_states({"tokens": tokens})
    with pytest.raises(UserError, match=rf"have {longest + 1} tokens, more than the model's {longest} positions: lower encoder"):
        encoder.reply_states({"tokens": tokens}, tokens[:, :1], torch.ones(1, 1, dtype=torch.bool))
