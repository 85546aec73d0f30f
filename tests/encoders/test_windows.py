"""Protects texts that are read in windows: exact whatever stands beside them, to their last word, in every kind of use, and saved."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from sslt.data.answers import Class
from sslt.data.prepare.bag_processor import BagProcessor
from sslt.data.prepare.image_processor import ImageProcessor
from sslt.data.prepare.text_processor import SETTINGS, TextProcessor
from sslt.data.prepare.text_samples import TextSamples
from sslt.data.prepare.tokenizers import train_tokenizer
from sslt.data.views.text_views import MaskTokens
from sslt.encoders import inserted
from sslt.encoders.bag import BagEncoder
from sslt.encoders.base import FILE
from sslt.encoders.image import ImageEncoder
from sslt.encoders.load import load_encoder
from sslt.encoders.text import TextEncoder
from sslt.encoders.windows import set_windows
from sslt.errors import UserError
from sslt.evaluation import features
from sslt.objectives.base import encode_views
from sslt.objectives.latent import Data2Vec
from sslt.objectives.masked_lm import MaskedLM
from sslt.objectives.parts.layers import encode_at
from sslt.targets.classification import Classification

LENGTH, ROOM = 12, 10  # tokens of a window, and those of them that are the text's
SIZES = (0, 1, 9, 10, 11, 25, 30, 64, 3)  # of texts: of 1, 1, 1, 1, 2, 3, 3, 7 and 1 windows
WINDOWS = (1, 1, 1, 1, 2, 3, 3, 7, 1)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([f"w{i} w{i}" for i in range(60)], vocab_size=200, lowercase=True)


@pytest.fixture(params=["mean", "cls"])
def pooling(request) -> str:
    return request.param


def encoder_of(tokenizer, windows: int | None, pooling: str = "mean", family: str = "bert") -> TextEncoder:
    config = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 20}
    torch.manual_seed(0)
    return TextEncoder(TextProcessor(tokenizer, LENGTH, windows), family, config, pooling).eval()


def words(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(5, 60, n).astype(np.int32)


def samples_of(p: TextProcessor, sizes=SIZES, windows: int | None = None) -> TextSamples:
    ends, labels = np.cumsum(sizes), np.arange(len(sizes)) % 2
    tokens = np.concatenate([words(n, i) for i, n in enumerate(sizes)])
    return TextSamples(tokens, ends - sizes, np.array(sizes), Class(labels, {"classes": ["a", "b"]}), "made", p.special, LENGTH, 0, windows)


def read(encoder: TextEncoder, sizes=SIZES, index=None) -> torch.Tensor:
    """Features of texts in one batch."""
    samples = samples_of(encoder.processor, sizes, encoder.processor.windows)
    return encoder(encoder.inputs(samples.batch(np.arange(len(sizes)) if index is None else index))).pooled.detach()


def by_hand(encoder: TextEncoder, size: int, seed: int, windows: int | None) -> torch.Tensor:
    """Features of a text: of its windows one by one, as texts of their own, weighted by their tokens."""
    p, ids = encoder.processor, words(size, seed)
    parts = [ids[i : i + ROOM] for i in range(0, max(size, 1), ROOM)][:windows]
    rows = [torch.tensor([[p.cls_id, *part.tolist(), p.sep_id]]) for part in parts]
    pooled = torch.cat([encoder({"tokens": row, "mask": torch.ones_like(row, dtype=torch.bool)}).pooled for row in rows])
    weight = torch.tensor([float(row.shape[1]) for row in rows])
    return (weight @ pooled / weight.sum()).detach()


# -------------------------------------------------------------------- features
@pytest.mark.parametrize("windows", [1, 2, 3, None])
def test_features_are_the_weighted_mean_of_the_windows(tokenizer, windows, pooling):
    """Each window encoded by itself as a text, in whatever company the text is read."""
    encoder = encoder_of(tokenizer, windows, pooling)
    expected = torch.stack([by_hand(encoder, n, i, windows) for i, n in enumerate(SIZES)])
    assert torch.allclose(read(encoder), expected, atol=1e-5)
    for index in ([7, 1], [5, 4, 6], [2]):
        assert torch.allclose(read(encoder, index=index), expected[index], atol=1e-6)


@pytest.mark.parametrize("index", [[1], [2, 3, 0], [8, 3]])
def test_short_texts_are_read_as_ever(tokenizer, index, pooling):
    """Bit for bit, where no text of the batch has a second window."""
    one, every = (read(encoder_of(tokenizer, windows, pooling), index=index) for windows in (1, None))
    assert torch.equal(one, every)


def test_one_window_is_the_model_on_the_first_tokens(tokenizer):
    """Bit for bit what transformers and a mean over the mask give."""
    encoder = encoder_of(tokenizer, 1)
    batch = samples_of(encoder.processor, windows=1).batch(np.arange(len(SIZES)))
    with torch.no_grad():
        hidden = encoder.model(input_ids=batch["tokens"], attention_mask=batch["mask"].long()).last_hidden_state
        mask = batch["mask"].float().unsqueeze(-1)
        assert batch["tokens"].shape[1] == LENGTH and torch.equal(read(encoder), (hidden * mask).sum(1) / mask.sum(1))


def test_windows_without_a_token_are_not_read(tokenizer):
    """The model sees as many rows as the texts have windows, however long the longest."""
    encoder, seen = encoder_of(tokenizer, None), []
    encoder.model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True)
    read(encoder)
    assert seen == [(sum(WINDOWS), LENGTH)]


def test_tokens_stand_where_they_stood(tokenizer):
    """Features of tokens [B, T, D] over the document: those of the windows encoded by themselves; nothing behind the end counts."""
    encoder = encoder_of(tokenizer, None)
    batch = samples_of(encoder.processor).batch(np.arange(len(SIZES)))
    found = encoder(encoder.inputs(batch))
    assert found.tokens.shape[:2] == batch["tokens"].shape and torch.equal(found.mask, batch["mask"])
    assert torch.allclose(found.pooled, torch.stack([t[m].mean(0) for t, m in zip(found.tokens, found.mask, strict=True)]), atol=1e-6)
    third = {k: batch[k][5:6, 2 * LENGTH : 3 * LENGTH] for k in ("tokens", "mask")}
    assert torch.allclose(encoder(third).tokens[0, :7], found.tokens[5, 2 * LENGTH : 2 * LENGTH + 7], atol=1e-6)


def test_rows_without_a_mask_are_all_tokens(tokenizer):
    """As packed rows are."""
    encoder = encoder_of(tokenizer, None)
    tokens = torch.from_numpy(words(3 * 30, 1).astype(np.int64)).view(3, 30)
    whole = encoder({"tokens": tokens, "mask": torch.ones_like(tokens, dtype=torch.bool)})
    assert torch.equal(encoder({"tokens": tokens}).pooled, whole.pooled) and whole.tokens.shape == (3, 30, 16)


@pytest.mark.parametrize("family", ["roberta", "modernbert"])
def test_other_families(tokenizer, family):
    """Positions count anew in every window."""
    encoder = encoder_of(tokenizer, None, family=family)
    assert torch.allclose(read(encoder), torch.stack([by_hand(encoder, n, i, None) for i, n in enumerate(SIZES)]), atol=1e-5)


@pytest.mark.parametrize("spec", [{"kind": "prompt", "length": 2}, {"kind": "prefix", "length": 2}, {"kind": "adapter", "size": 3}])
def test_an_adapter_sees_windows_as_texts(tokenizer, spec):
    """Virtual tokens stand before every window."""
    encoder = encoder_of(tokenizer, None)
    before = read(encoder)
    inserted.inject(encoder, spec)
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(0.02)
    expected = torch.stack([by_hand(encoder, n, i, None) for i, n in enumerate(SIZES)])
    assert torch.allclose(read(encoder), expected, atol=1e-5) and not torch.allclose(expected, before, atol=1e-2)


# -------------------------------------------------------------------- passes over a split
def test_a_pass_holds_no_more_tokens_than_its_batch_size_allows(tokenizer):
    """Long texts go through in smaller batches, and have the same features."""
    encoder, seen = encoder_of(tokenizer, None), []
    encoder.model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True)
    found = features.encode(encoder, samples_of(encoder.processor), torch.device("cpu"), 8)
    assert max(seen) <= 8 and sum(seen) == sum(WINDOWS)
    assert torch.allclose(found, read(encoder), atol=1e-6)


def test_features_are_kept_by_how_much_is_read(tokenizer, tmp_path, monkeypatch):
    """Another number of windows, or another length of them, is another entry of the cache; the same is the same."""
    monkeypatch.setattr(features.cache, "_root", tmp_path)
    encoder, found = encoder_of(tokenizer, None), []
    for windows, length in ((None, 12), (1, 12), (2, 12), (2, 8), (None, 12)):
        encoder.processor.windows, encoder.processor.max_length = windows, length
        samples = samples_of(encoder.processor, windows=windows)
        samples.max_length = length
        found.append(features.cached_features(encoder, samples, torch.device("cpu"), 4))
    assert torch.equal(found[0], found[4])
    assert all(not torch.allclose(a, b, atol=1e-3) for i, a in enumerate(found[:4]) for b in found[:i])


# -------------------------------------------------------------------- objectives
def views_of(encoder: TextEncoder, sizes=SIZES, n: int = 1) -> dict:
    batch = samples_of(encoder.processor, sizes, encoder.processor.windows).batch(np.arange(len(sizes)))
    return {**batch, "views": {k: x.expand(n, *x.shape) for k, x in encoder.inputs(batch).items()}}


def test_the_last_window_teaches(tokenizer):
    """A classifier's gradient reaches the embeddings of words that stand in the last window alone, and only where that is read."""
    for windows, reached in ((None, True), (3, True), (2, False), (1, False)):
        encoder = encoder_of(tokenizer, windows)
        batch = views_of(encoder, [25])
        last = set(words(25, 0)[20:].tolist()) - set(words(25, 0)[:20].tolist())
        Classification(encoder, {"classes": [str(i) for i in range(2)]}, 0.0, 0.0)(encoder, batch).value.backward()
        moved = set(encoder.token_embeddings.weight.grad.abs().sum(1).nonzero().flatten().tolist())
        assert last and (last <= moved) == reached and (last.isdisjoint(moved)) != reached


def test_masked_words_count_once(tokenizer):
    """Words of all windows are chosen, marks of no window are; the loss is the mean over them, window by window."""
    encoder = encoder_of(tokenizer, None)
    objective, p = MaskedLM(encoder).eval(), encoder.processor
    torch.manual_seed(0)
    batch = MaskTokens(rate=0.3, mask_share=0.8, random_share=0.1, whole_word=False)(views_of(encoder), encoder)
    chosen = torch.zeros_like(batch["tokens"]).scatter_add(1, batch["positions"], (batch["targets"] != -100).long())
    assert chosen.max() == 1 and chosen.sum() == batch["n_targets"]
    assert not torch.isin(batch["tokens"][chosen.bool()], torch.tensor(p.special_ids)).any()
    assert chosen[7].view(-1)[: 6 * LENGTH].view(6, LENGTH).any(1).sum() > 2  # spread over the windows
    total = 0.0
    with torch.no_grad():
        for i, w in ((i, w) for i, n in enumerate(WINDOWS) for w in range(n)):
            part = slice(w * LENGTH, (w + 1) * LENGTH)
            places = chosen[i, part].bool()
            hidden = encoder({"tokens": batch["inputs"]["tokens"][i : i + 1, part], "mask": batch["mask"][i : i + 1, part]}).tokens[0]
            scores = encoder.words(hidden[places][None])[0] @ encoder.token_embeddings.weight.T + encoder.words.bias
            total -= float(scores.log_softmax(1).gather(1, batch["tokens"][i, part][places].unsqueeze(1)).sum())
        assert float(objective(encoder, batch).value) == pytest.approx(total / int(chosen.sum()), rel=1e-5)


def test_data2vec_over_windows(tokenizer):
    """The teacher's layers over a document are those over its windows: targets as of the windows as texts of their own."""
    encoder = encoder_of(tokenizer, None)
    objective = Data2Vec(encoder, 0.3, False, [0.5, 2.0], 2, 0.0, 0.9)
    inputs = {k: x[0] for k, x in views_of(encoder, [25, 4])["views"].items()}
    found = objective.targets(inputs, inputs["tokens"].shape[1])
    for w, n in enumerate((12, 12, 7)):
        part = slice(w * LENGTH, w * LENGTH + n)
        alone = objective.targets({k: x[:1, part] for k, x in inputs.items()}, n)
        assert torch.allclose(found[:1, part], alone, atol=1e-5)
    assert torch.isfinite(objective(encoder, views_of(encoder, [25, 4])).value)


def test_features_at_a_layer(tokenizer):
    """Averaged over the document's tokens, each once; behind a prompt, too, whose tokens are none of the text's."""
    for prompt in (False, True):
        encoder = encoder_of(tokenizer, None)
        if prompt:
            inserted.inject(encoder, {"kind": "prompt", "length": 2})
        assert torch.allclose(encode_at(encoder, views_of(encoder), encoder.block_names()[-1]), read(encoder), atol=1e-6)


def test_two_passes_of_whole_texts_are_compared(tokenizer):
    """SimCSE's two views, each of several windows: features of both, view by view."""
    encoder = encoder_of(tokenizer, None)
    batch = views_of(encoder, n=2)
    pooled = encode_views(encoder, batch).pooled
    assert all(torch.allclose(view, read(encoder), atol=1e-6) for view in pooled.chunk(2))


# -------------------------------------------------------------------- settings and folders
def test_what_is_read_is_saved(tokenizer, tmp_path):
    """With the encoder; a folder of before there were windows has one; a damaged one is named."""
    for windows in (1, 3, None):
        encoder = encoder_of(tokenizer, windows)
        encoder.save(tmp_path / str(windows))
        again = load_encoder(str(tmp_path / str(windows))).eval()
        assert again.processor.windows == windows and torch.equal(read(again), read(encoder))
    folder = tmp_path / "None"
    for content, expected in (
        ({"max_length": LENGTH}, 1),
        ({"max_length": LENGTH, "windows": 0}, "windows=0"),
        (
            {"max_length": LENGTH, "windows": "many"},
            "damaged: 'windows'",
        ),
    ):
        (folder / SETTINGS).write_text(json.dumps(content))
        if expected == 1:
            assert TextProcessor.load(folder).windows == 1
        else:
            with pytest.raises(UserError, match=expected):
                TextProcessor.load(folder)


def test_an_adapter_keeps_how_much_it_reads(tokenizer, tmp_path):
    """Over a base that reads something else."""
    encoder_of(tokenizer, 1).save(tmp_path / "base")
    for windows in (1, 2, None):
        encoder = load_encoder(str(tmp_path / "base"))
        encoder.processor.windows = windows
        inserted.inject(encoder, {"kind": "adapter", "size": 3})
        encoder.save(tmp_path / str(windows))
        assert load_encoder(str(tmp_path / str(windows))).processor.windows == windows
    file = tmp_path / "None" / FILE
    about = json.loads(file.read_text())
    del about["digests"]  # changed on purpose
    for windows, message in ((-1, "windows=-1"), ("many", "damaged: 'windows'")):
        about["base"]["windows"] = windows
        file.write_text(json.dumps(about))
        with pytest.raises(UserError, match=message):
            load_encoder(str(tmp_path / "None"))
    del about["base"]["windows"]
    file.write_text(json.dumps(about))
    assert load_encoder(str(tmp_path / "None")).processor.windows == 1


def test_setting_windows(tokenizer):
    """A number, all, or as it was; refused in one line where it means nothing."""
    encoder = encoder_of(tokenizer, 1)
    for given, expected in ((None, 1), (4, 4), (None, 4), ("all", None), (1, 1)):
        set_windows(encoder, given)
        assert encoder.processor.windows == expected
    for bad in (0, -2, "every"):
        with pytest.raises(UserError, match=rf"windows={bad}: give how many"):
            set_windows(encoder, bad)
    bag = BagEncoder(BagProcessor({"a": 1}, 1, 1, 50), dim=4, pairs=50, pair_weight=1.0, dropout=0.0)
    set_windows(bag, "all")  # which it reads anyway
    image = ImageEncoder(ImageProcessor(size=8, channels=1, mean=[0.5], std=[0.5]), "resnet18", {}, "small", False)
    for other, reads in ((bag, "whole texts"), (image, "images")):
        with pytest.raises(UserError, match=rf"windows=2 is for transformers .* reads {reads}"):
            set_windows(other, 2)
