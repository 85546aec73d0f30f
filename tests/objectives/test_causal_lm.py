"""Protects causal language modelling: the loss of the next word, what counts, and texts apart in a row."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

sys.path.append(str(Path(__file__).parents[1] / "encoders"))
from writers import rows, writer

from sslt.errors import UserError
from sslt.objectives.causal_lm import CausalLM


def views_of(inputs: dict[str, torch.Tensor]) -> dict:
    return {"views": {k: x[None] for k, x in inputs.items()}}


def test_value_is_the_librarys():
    """The loss that transformers computes of labels, padding left out; the mark of the end is learned though padding has its id."""
    encoder = writer("gpt2")
    encoder.processor.pad_id = encoder.processor.sep_id
    batch = rows(encoder, [9, 5])
    labels = batch["tokens"].masked_fill(~batch["mask"], -100)
    known = encoder.model(input_ids=batch["tokens"], attention_mask=batch["mask"].long(), labels=labels)
    objective = CausalLM(encoder, apart=False)
    loss = objective(encoder, views_of(batch))
    torch.testing.assert_close(loss.value, known.loss)
    assert objective.units(views_of(batch)) == 8 + 4
    right = (known.logits[:, :-1].argmax(2) == labels[:, 1:]).sum() / 12
    torch.testing.assert_close(loss.logs["accuracy"], right)
    torch.testing.assert_close(loss.logs["perplexity"], known.loss.exp())


def test_packed_rows():
    """All words but the first are learned; with apart=true each text is as if it were alone, but for its first word, which is not."""
    encoder = writer("gpt2")
    tokens = rows(encoder, [12, 12])["tokens"]
    tokens[:, 5] = encoder.processor.sep_id
    batch = views_of({"tokens": tokens})
    together, apart = CausalLM(encoder, apart=False), CausalLM(encoder, apart=True)
    logits = encoder.model(input_ids=tokens).logits
    known = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(together(encoder, batch).value, known)
    assert together.units(batch) == 22
    second = encoder.model(input_ids=tokens[:, 6:]).logits
    logits = torch.cat([logits[:, :6], second], 1)
    known = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(apart(encoder, batch).value, known)


def test_another_encoder_is_refused():
    with pytest.raises(UserError, match="t5 writes no next word: choose encoder=gpt_tiny"):
        CausalLM(writer("t5"), apart=False)
