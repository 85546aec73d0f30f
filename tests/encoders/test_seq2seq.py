"""Protects encoders with a decoder: features of the encoder half, the library's logits, blocks of both halves, folders."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForSeq2SeqLM
from writers import SEQ2SEQ, rows, writer

from sslt.encoders.load import load_encoder
from sslt.encoders.seq2seq import Seq2SeqEncoder


@pytest.mark.parametrize("family", SEQ2SEQ)
def test_features_are_the_encoder_halfs(family):
    encoder = writer(family)
    batch = rows(encoder, [9, 5])
    with torch.no_grad():
        known = encoder.model.get_encoder()(input_ids=batch["tokens"], attention_mask=batch["mask"].long()).last_hidden_state
        found = encoder(batch)
    torch.testing.assert_close(found.tokens, known)
    torch.testing.assert_close(found.pooled[1], known[1, :5].mean(0))


@pytest.mark.parametrize("family", SEQ2SEQ)
def test_teacher_forcing_is_the_librarys(family):
    """Decoder start, scale and bias are the family's own: logits as transformers has them of labels."""
    encoder = writer(family)
    if family == "bart":
        encoder.model.final_logits_bias.normal_()
    batch = rows(encoder, [9, 5])
    outputs = rows(encoder, [6, 6], seed=1)["tokens"]
    with torch.no_grad():
        ours = F.linear(encoder.word_states(batch, outputs=outputs), *encoder.output_layer())
        theirs = encoder.model(input_ids=batch["tokens"], attention_mask=batch["mask"].long(), labels=outputs).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", SEQ2SEQ)
def test_blocks_are_those_of_both_halves(family):
    """Encoder first, then decoder; embeddings before all, and every weight in a group."""
    encoder = writer(family)
    names = encoder.block_names()
    assert len(names) == 4 and all("encoder" in n for n in names[:2]) and all("decoder" in n for n in names[2:])
    groups = encoder.group_of()
    assert groups["model.shared.weight" if family == "t5" else "model.model.shared.weight"] == 0
    assert groups[f"{names[3]}"] == 4 and {groups[n] for n, _ in encoder.named_parameters()} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("family", SEQ2SEQ)
def test_what_features_do_not_read(family):
    """Exactly the weights that get no gradient from pooled features."""
    encoder = writer(family)
    encoder(rows(encoder, [9, 5])).pooled.sum().backward()
    assert {n for n, p in encoder.named_parameters() if p.grad is None} == set(encoder.unread())


@pytest.mark.parametrize("family", SEQ2SEQ)
def test_folders(family, tmp_path):
    """A saved encoder comes back bit for bit, and transformers opens it with its decoder; a plain folder of theirs is one, too."""
    encoder = writer(family)
    batch, outputs = rows(encoder, [9, 5]), rows(encoder, [6, 6], seed=1)["tokens"]
    with torch.no_grad():
        known = encoder.word_states(batch, outputs=outputs)
        encoder.save(tmp_path / "own")
        assert torch.equal(load_encoder(str(tmp_path / "own")).eval().word_states(batch, outputs=outputs), known)
        opened = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "own").eval()
        logits = opened(input_ids=batch["tokens"], attention_mask=batch["mask"].long(), labels=outputs).logits
        torch.testing.assert_close(F.linear(known, *encoder.output_layer()), logits, rtol=1e-4, atol=1e-4)
        opened.save_pretrained(tmp_path / "theirs")
        encoder.processor.tokenizer.save_pretrained(str(tmp_path / "theirs"))
        taken = load_encoder(str(tmp_path / "theirs"))
        assert isinstance(taken, Seq2SeqEncoder) and torch.equal(taken.eval().word_states(batch, outputs=outputs), known)
