"""Protects perplexity on held-out text: every token once, whatever rows it is read in; what is held out is not learned from."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "encoders"))
from writers import writer

from sslt.evaluation import features
from sslt.evaluation.language import bigram_perplexity, divided, language_metrics


def test_every_token_counts_once():
    """Against the library's own logits, row by row, a shorter last row among them."""
    encoder = writer("gpt2", length=8)
    stream = np.random.default_rng(0).integers(5, encoder.processor.vocab_size, 30)
    nats = 0.0
    with torch.no_grad():
        for i in range(0, 30, 7):
            part = torch.from_numpy(stream[i : i + 7])[None]
            row = torch.cat([torch.tensor([[encoder.processor.cls_id]]), part], 1)
            scores = encoder.model(input_ids=row).logits[:, :-1].log_softmax(2)
            nats -= float(scores.gather(2, part[..., None]).sum())
    found = language_metrics(encoder, stream, stream, torch.device("cpu"), 2)
    assert found["eval/perplexity"] == pytest.approx(math.exp(nats / 30), rel=1e-5)
    written = len(encoder.processor.decode_text(stream.tolist()).encode())
    assert found["eval/bits_per_byte"] == pytest.approx(nats / math.log(2) / written, rel=1e-5)


def test_it_says_how_far_it_is(monkeypatch, caplog):
    """Batch by batch, where it takes long."""
    monkeypatch.setattr(features, "SILENT", -1.0)
    encoder = writer("gpt2", length=8)
    caplog.clear()  # of what was said of its vocabulary
    with caplog.at_level("INFO", "sslt"):
        language_metrics(encoder, np.arange(5, 30), np.arange(5, 30), torch.device("cpu"), 2)
    assert caplog.messages == ["perplexity of 0 of 4 rows", "perplexity of 2 of 4 rows"]


def test_bigrams():
    """A count by hand, and probabilities that add up to one."""
    train = np.array([0, 1, 0, 1, 2])
    single = (np.array([2, 2, 1]) + 1) / 8
    p = {b: (max(n - 0.75, 0) / 2 + 0.75 * 1 / 2 * single[b]) for b, n in ((0, 0), (1, 2), (2, 0))}  # after 0 stands 1, twice
    assert sum(p.values()) == pytest.approx(1)
    assert bigram_perplexity(train, np.array([0, 1]), 3) == pytest.approx(math.exp(-(math.log(single[0]) + math.log(p[1])) / 2))


def test_a_models_text_is_held_out(sslt, tmp_path):
    """A text without splits: the end is left out of pretraining and is what evaluate measures."""
    lines = [f"the {a} {b} sat on the {c}." for a in ("old", "big", "red") for b in ("cat", "dog", "cow") for c in ("mat", "hill", "road")]
    (tmp_path / "book.txt").write_text("\n\n".join(lines * 40))
    tiny = ["encoder.config.hidden_size=16", "encoder.config.num_hidden_layers=1", "encoder.processor.vocab_size=400"]
    tiny += ["encoder.processor.max_length=32", "trainer.accelerator=cpu", "trainer.max_steps=30", "batch_size=8"]
    sslt("pretrain", "+task=causal_lm", "data=text_files", f"data.path={tmp_path}/book.txt", *tiny)
    run = sorted(tmp_path.glob("**/encoder/sslt.json"))[0].parents[1]
    sslt("evaluate", f"from={run}")
    found = next(m for p in tmp_path.glob("**/metrics.json") if "eval/perplexity" in (m := json.loads(p.read_text())))
    assert found["eval/perplexity"] < 200 and found["bigrams/perplexity"] > 1 and found["eval/bits_per_byte"] > 0


def test_texts_of_the_end_are_not_learned_from_either(sslt, tmp_path, monkeypatch):
    """Where they are not joined to rows: all that lie before the end that is measured, and not one more."""
    from sslt.stages import pretrain

    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text("\n".join(f"{'ab cd ef gh'[: 2 + i % 9]} number {i}" for i in range(600)))
    tiny = ["encoder.config.hidden_size=16", "encoder.config.num_hidden_layers=1", "encoder.processor.vocab_size=400", "pack=false"]
    tiny += ["encoder.processor.max_length=32", "trainer.accelerator=cpu", "trainer.max_steps=1", "batch_size=8"]
    calls, whole = [], pretrain.before_end
    monkeypatch.setattr(pretrain, "before_end", lambda *given: calls.append((*given, whole(*given))) or calls[-1][-1])
    sslt("pretrain", "+task=causal_lm", "data=text_lines", "data.path=t.txt", *tiny, "hydra.run.dir=run")
    ((texts, packed, found),) = calls
    learned, held = divided(packed)
    before, ends = len(learned) * packed.grid.shape[1], np.cumsum(texts.sizes + 1)
    assert ends[len(found) - 1] <= before < ends[len(found)] and 500 < len(found) < 600 == len(texts)
    sslt("evaluate", "from=run", "trainer.accelerator=cpu", "hydra.run.dir=ev")
    assert json.loads((tmp_path / "ev/metrics.json").read_text())["eval/tokens"] == len(held) * packed.grid.shape[1]


def test_the_end_is_apart():
    """No row is on both sides, and a short text is not divided."""
    from sslt.data.prepare.text_samples import PackedSamples

    packed = PackedSamples(np.arange(70 * 100), 71, 1, "x")
    train, held = divided(packed)
    assert len(train) + len(held) == 100 and len(held) == 5
    words = [set(part.batch(np.arange(len(part)))["tokens"][:, 1:].flatten().tolist()) for part in (train, held)]
    assert not words[0] & words[1]
    assert divided(PackedSamples(np.arange(70 * 10), 71, 1, "x"))[1] is None
