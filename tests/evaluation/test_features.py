"""Protects features and logits: a row for each sample in the samples' order, the same on every rank, kept under what they depend on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[1]))  # a rank knows nothing of pytest's paths
import two_processes
from vector_encoder import VectorEncoder

from sslt.data import cache
from sslt.data.prepare.text_samples import TextSamples
from sslt.encoders.base import Features, pool_mean, put_on
from sslt.evaluation import features
from sslt.evaluation.features import cached_features, encode, predicted
from sslt.targets.classification import Classification

CPU = torch.device("cpu")
SIZES = (3, 1, 6, 2, 6, 4, 9)  # of texts: by length they come in another order


class Words(VectorEncoder):
    """Mean of word vectors, behind dropout: what a text encoder is, without its layers."""

    modality = "text"

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Embedding(40, 5), 5)
        self.dropout = nn.Dropout(0.5)
        self.passes = 0

    def inputs(self, batch):
        return {"tokens": batch["tokens"], "mask": batch["mask"]}

    def forward(self, inputs):
        self.passes += 1
        tokens = self.dropout(self.layer(inputs["tokens"]))
        return Features(pool_mean(tokens, inputs["mask"]), tokens, inputs["mask"])


SPACE = {"classes": ["a", "b", "c"]}


def head() -> Classification:
    """Logits of features, behind dropout."""
    torch.manual_seed(1)
    return Classification(Words(), SPACE, 0.5, 0.0)


def texts(shift: int = 0) -> TextSamples:
    """Texts of SIZES words, each word another number."""
    ends = np.cumsum(SIZES)
    tokens = (np.arange(ends[-1]) + 3 + shift).astype(np.int32)
    return TextSamples(tokens, ends - SIZES, np.array(SIZES), None, f"made {shift}", (0, 1, 2), 8, 0)


def one_by_one(encoder: Words, samples: TextSamples) -> torch.Tensor:
    """Means of the word vectors of each text, with start and end, cut to 8."""
    rows = []
    for start, size in zip(samples.starts, samples.sizes, strict=True):
        words = [0, *samples.tokens[start : start + min(size, 6)], 1]
        rows.append(encoder.layer.weight[words].mean(0))
    return torch.stack(rows).detach()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
def test_features_stand_in_the_order_of_the_samples(batch_size):
    """Texts are read by length, longest first, and given back as they stood; nothing is dropped out, and modes stay."""
    encoder, samples = Words().train(), texts()
    assert [list(i) for i in samples.ordered_batches(7)] != [list(range(7))]
    x = encode(encoder, samples, CPU, batch_size)
    assert torch.allclose(x, one_by_one(encoder, samples), atol=1e-6) and x.dtype == torch.float32
    assert encoder.training and encoder.dropout.training and encoder.passes == -(-7 // batch_size)


def test_a_long_pass_says_how_far_it_is(monkeypatch, caplog):
    """Now and then on the first rank, and not of a short one."""
    far = features.HowFar("features of", 12000, "samples")
    with caplog.at_level("INFO", "sslt"):
        far.tell(1500)
        monkeypatch.setattr(features, "SILENT", -1.0)
        far.tell(3000)
        monkeypatch.setattr(features.distributed, "rank", lambda: 1)
        far.tell(4500)
    assert caplog.messages == ["features of 3,000 of 12,000 samples"]


def test_answers_stand_in_the_order_of_the_samples():
    """As features do, with the head's dropout off as well."""
    encoder, target, samples = Words(), head().train(), texts()
    found = predicted(encoder, target, samples, CPU, 3)
    logits = target.head(one_by_one(encoder, samples)).detach()
    assert np.allclose(found.scores, logits, atol=1e-6) and found.values.tolist() == logits.argmax(1).tolist()
    assert target.training and target.dropout.training


def test_a_format_of_training_is_used_and_comes_back_as_float32():
    """bfloat16 for numbers shown while training, float32 for those that are reported."""
    seen = []
    encoder = VectorEncoder(nn.Linear(5, 5), 5)
    encoder.layer.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    encoder.inputs = lambda batch: {"x": batch["tokens"][:, :1].float().expand(-1, 5)}
    assert encode(encoder, texts(), CPU, 7).dtype == encode(encoder, texts(), CPU, 7, "bf16-mixed").dtype == torch.float32
    assert seen == [torch.float32, torch.bfloat16]


def test_the_encoder_is_brought_to_the_device(monkeypatch):
    """Where its batches go."""
    encoder, moved = Words(), []
    monkeypatch.setattr(features, "put_on", lambda module, device: moved.append((module, device)))
    encode(encoder, texts(), CPU, 7)
    assert moved == [(encoder, CPU)]


@pytest.mark.parametrize("part", ["weight", "buffer"])
def test_only_what_is_elsewhere_is_moved(monkeypatch, part):
    """All of a module where one of its parameters or buffers is not there; nothing is called where all are."""
    module = nn.BatchNorm1d(3)
    if part == "weight":
        module.weight = nn.Parameter(module.weight.to("meta"))
    else:
        module.running_mean = module.running_mean.to("meta")
    put_on(module, torch.device("meta"))
    assert {x.device.type for x in (*module.parameters(), *module.buffers())} == {"meta"}
    monkeypatch.setattr(module, "to", lambda device: pytest.fail("it is there"))
    put_on(module, torch.device("meta"))


def test_kept_features_depend_on_weights_samples_and_format(tmp_path, monkeypatch):
    """Read from the disk where all three are the same, computed where one is another."""
    monkeypatch.setattr(cache, "_root", tmp_path)
    encoder, samples = Words(), texts()
    x = cached_features(encoder, samples, CPU, 3)
    assert torch.equal(x, encode(encoder, samples, CPU, 3)) and len(list((tmp_path / "features").iterdir())) == 1
    passes = encoder.passes
    assert torch.equal(cached_features(encoder, samples, CPU, 3), x) and encoder.passes == passes
    assert not torch.equal(cached_features(encoder, texts(5), CPU, 3), x)
    cached_features(encoder, samples, CPU, 3, "bf16-mixed")
    assert encoder.passes == 2 * passes  # the other texts, and the other format
    assert len(list((tmp_path / "features").iterdir())) == 3
    with torch.no_grad():
        encoder.layer.weight.add_(1)
    assert torch.allclose(cached_features(encoder, samples, CPU, 3), x + 1, atol=1e-5)
    other = cached_features(encoder, samples, CPU, 3, key="the caller's own")
    assert torch.equal(cached_features(Words(), samples, CPU, 3, key="the caller's own"), other)
    monkeypatch.setattr(features, "FORMAT", features.FORMAT + 1)
    passes = encoder.passes
    cached_features(encoder, samples, CPU, 3)
    assert encoder.passes > passes


def _on_rank(rank: int) -> dict[str, Any]:
    encoder, samples = Words(), texts()
    out = {f"{size}": encode(encoder, samples, CPU, size) for size in (2, 7)}  # of one batch the other rank has none
    return {**out, "passes": encoder.passes, "logits": torch.from_numpy(predicted(encoder, head(), samples, CPU, 3).scores)}


def test_ranks_share_the_batches_and_all_have_every_row(tmp_path):
    """Four batches are two for each of two processes; one batch is the first one's."""
    expected = one_by_one(Words(), texts())
    for rank, out in enumerate(two_processes.run(_on_rank, tmp_path)):
        assert torch.allclose(out["2"], expected, atol=1e-6) and torch.allclose(out["7"], expected, atol=1e-6)
        assert out["passes"] == 2 + (rank == 0)
        assert torch.allclose(out["logits"], head().head(expected).detach(), atol=1e-6)
