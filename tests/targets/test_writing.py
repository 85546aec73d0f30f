"""Protects writing: the loss against torch's own, units, what is decoded, one row alone as in a batch, who can write."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sslt.data.answers import Texts
from sslt.data.base import Raw, Source
from sslt.data.prepare.reversible import train_reversible
from sslt.data.prepare.text_processor import TextProcessor
from sslt.data.prepare.tokenizers import train_tokenizer
from sslt.data.views.base import Plain
from sslt.encoders.causal import CausalEncoder
from sslt.encoders.seq2seq import Seq2SeqEncoder
from sslt.encoders.text import TextEncoder
from sslt.errors import UserError
from sslt.evaluation.features import predicted
from sslt.targets.summarization import Summarization
from sslt.targets.translation import Translation

WORDS = ["ada", "went", "to", "rome", "and", "bob", "stayed", "home"]
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
GPT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 128}
BART = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
BART |= {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 64, "dropout": 0.0}
MBART = BART | {"init_std": 0.06, "scale_embedding": True}
GPT |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
KINDS = {
    "t5": (Seq2SeqEncoder, T5, "mean"),
    "bart": (Seq2SeqEncoder, BART, "mean"),
    "mbart": (Seq2SeqEncoder, MBART, "mean"),
    "gpt2": (CausalEncoder, GPT, "last"),
}
CPU = torch.device("cpu")


class Copies(Source):
    """Texts of a few words, to be written backwards."""

    modality, name, answer, space, classes = "text", "copies", Texts, {"language": "en"}, None

    def own_splits(self):
        return ("train",)

    def fingerprint(self):
        return "copies"

    def read(self, split):
        rng = np.random.default_rng(0)
        texts = [list(rng.permutation(WORDS)[: rng.integers(1, 7)]) for _ in range(40)]
        return Raw([" ".join(t) for t in texts], Texts([[" ".join(t[::-1]), "another"] for t in texts], self.space))


def encoder(kind: str, max_output: int | None = None):
    torch.manual_seed(0)
    cls, config, pooling = KINDS[kind]
    processor = TextProcessor(train_reversible("bpe", [" ".join(WORDS)] * 5, 400, False, 0), 32, max_output=max_output)
    return cls(processor, kind, config, pooling)


def target(enc, kind=Translation, **changed):
    settings = {"label_smoothing": 0.1, "max_tokens": 12, "min_tokens": 0, "beams": 1, "length_penalty": 1.0, "sample": False}
    settings |= {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 0}
    return kind(enc, {"language": "en"}, **{**settings, **changed})


@pytest.fixture
def samples(here):
    return encoder("t5").processor.prepare(Copies(), "train")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_the_librarys_model(kind, smoothing, samples):
    """Logits of the whole model, cross-entropy by torch over the tokens of the answers alone; units are these tokens."""
    enc = encoder(kind).eval()
    made = target(enc, label_smoothing=smoothing)
    batch = Plain(1)(samples.batch(np.arange(9)), enc)
    outputs, mask = batch["outputs"], batch["outputs_mask"]
    labels = outputs.masked_fill(~mask, -100)
    if kind == "gpt2":  # row by row: the text with its marks, the answer behind it
        rows = []
        for tokens, seen, out, wanted in zip(batch["tokens"], batch["mask"], outputs, mask, strict=True):
            row = torch.cat([tokens[seen], out[wanted]])[None]
            rows.append(enc.model(input_ids=row).logits[0, int(seen.sum()) - 1 : -1])
        logits, labels = torch.cat(rows), outputs[mask]
    else:
        start = F.pad(outputs[:, :-1], (1, 0), value=enc.start_id)
        read = {"input_ids": batch["tokens"], "attention_mask": batch["mask"].long()}
        logits = enc.model(**read, decoder_input_ids=start).logits.flatten(0, 1)
    expected = F.cross_entropy(logits, labels.flatten(), ignore_index=-100, label_smoothing=smoothing)
    found = made(enc, batch)
    assert found.value.item() == pytest.approx(expected.item(), rel=1e-4) and int(made.units(batch)) == int(mask.sum())
    found.value.backward()
    assert not [n for n, p in enc.named_parameters() if p.grad is None]  # several ranks need all, `leaves_out` says none is
    assert not made.leaves_out(enc)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{}, {"beams": 3}])
def test_a_batch_is_its_rows_one_by_one(kind, settings, samples):
    """What is written, and how probable the reference is."""
    enc = encoder(kind).eval()
    made = target(enc, **settings)
    with torch.no_grad():
        whole = made.predict(enc, samples.batch(np.arange(12)))
        alone = [made.predict(enc, samples.batch(np.array([i]))) for i in range(12)]
    assert [row for p in alone for row in p.values] == list(whole.values)
    assert np.allclose(np.concatenate([p.scores for p in alone]), whole.scores, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_learned_is_written(kind, samples):
    """A few texts by heart: read, written backwards, ended; then perplexity is near 1."""
    enc = encoder(kind)
    made, few = target(enc, label_smoothing=0.0), samples.subset(np.arange(8))
    optimizer = torch.optim.Adam(enc.parameters(), lr=0.02)
    batch = Plain(1)(few.batch(np.arange(8)), enc)
    for _ in range(150):
        optimizer.zero_grad()
        made(enc, {**batch}).value.backward()
        optimizer.step()
    found = predicted(enc, made, few, CPU, 3)
    measured = made.measure(found, few.answers)
    assert [row[0] for row in found.values] == [row[0] for row in few.answers.values]
    assert measured["bleu"] == pytest.approx(1) and measured["exact_match"] == 1 and measured["perplexity"] < 1.2
    judged = made.judged(predicted(enc, made, few, CPU, 5, how=made.judge))
    assert judged == {"perplexity": pytest.approx(measured["perplexity"], rel=1e-4)}


def test_samples_are_drawn_by_their_seed(samples):
    enc = encoder("t5").eval()
    drawn = [target(enc, sample=True, seed=s).predict(enc, samples.batch(np.arange(6))).values.tolist() for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_texts_without_answers_are_written_to(samples):
    """What is new has no reference: nothing is known of its probability."""
    enc = encoder("t5").eval()
    batch = {k: x for k, x in samples.batch(np.arange(3)).items() if not k.startswith("outputs")}
    found = target(enc).predict(enc, batch)
    assert len(found) == 3 and found.scores is None and "perplexity" not in target(enc).measure(found, found)


def test_references_are_shown_and_counted(samples):
    """The first is learned, each may be met; rows with one are plain texts."""
    made = target(encoder("t5"), Summarization)
    answers = Texts([["a b", "c d"], ["e"]], {"language": "en"})
    assert made.rows(answers) == [{"prediction": ["a b", "c d"]}, {"prediction": "e"}]
    assert made.measure(Texts([["c d"], ["e"]], {}), answers)["rougeL"] == 1
    assert made.notes(answers) == {"rouge/signature": "nrefs:up to 2, best|F|mean|tok:rouge-score|stem:porter|Lsum:by sentences"}
    assert Texts.fits({"language": "en"}, {})


def test_who_cannot_write_is_refused():
    """An encoder without a decoder, with the names of those that have one; a tokenizer that loses spaces; views that change the text."""
    plain = TextProcessor(train_tokenizer(["ada went"] * 5, 50, True), 16)
    bert = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    with pytest.raises(UserError, match="bert has no decoder to write with: choose encoder=t5_tiny or encoder=gpt_tiny"):
        made = TextEncoder(plain, "bert", bert, "mean")
        target(made).check_encoder(made)
    lossy = Seq2SeqEncoder(plain, "t5", T5, "mean")
    with pytest.raises(UserError, match=r"loses spaces.*encoder\.processor\.tokenizer=bpe"):
        target(lossy).check_encoder(lossy)
    with pytest.raises(UserError, match="leave views=plain"):
        target(encoder("t5")).check_views(Plain(2))
    with pytest.raises(UserError, match="all 3 training texts of copies have the same answer"):
        Translation.check(Copies(), Texts([["x"]] * 3, {}))
