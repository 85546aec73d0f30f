"""Protects the bits of a row: they are the same in whatever company it is computed, and shapes that give others are not used."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import TINY_TEXT
from torch import nn

from sslt.config import build, compose
from sslt.data.answers import Class
from sslt.data.cache import digest
from sslt.data.offered import Offered
from sslt.data.prepare.image_processor import ImageProcessor
from sslt.encoders.image import ImageEncoder
from sslt.encoders.load import build_encoder
from sslt.encoders.text import TextEncoder
from sslt.evaluation.alike import CANON, SIZES, Alike, not_narrow, widened, widths_of
from sslt.evaluation.features import encode, predicted
from sslt.targets.classification import Classification

CPU = torch.device("cpu")


class Odd(nn.Module):
    """An encoder whose last bits hang on the size of its batch, as those of some kernels do: from `many` rows on, and for two; or on
    where in a batch a row is."""

    def __init__(self, many: int, places: bool = False):
        super().__init__()
        self.many, self.places, self.sizes = many, places, list[int]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        odd = torch.arange(len(x)) % 2 == 1 if self.places else torch.full((len(x),), len(x) >= self.many or len(x) == 2)

        class Output:
            pooled = torch.where(odd[:, None], x * (1 + 2**-20), x)

        self.sizes.append(len(x))
        return Output.pooled if not self._forward_hooks else Output  # type: ignore[return-value]


def computed(encoder: Odd, alike: Alike, rows: list[int]) -> torch.Tensor:
    def of(index: np.ndarray) -> torch.Tensor:
        found = encoder(torch.from_numpy(index).float()[:, None] + 1)
        return found if isinstance(found, torch.Tensor) else found.pooled

    return alike.compute(encoder, of, (), np.array(rows))  # type: ignore[arg-type]


@pytest.mark.parametrize("many", [8, 16, 64, 1000])
def test_sizes_that_give_other_bits_are_not_used(many):
    """What comes out is what `CANON` rows give, for any number of rows, and a size that was found out is not tried again."""
    encoder, alike = Odd(many), Alike()
    for n in (*range(1, 20), 33, 64):
        assert torch.equal(computed(encoder, alike, list(range(n)))[:, 0], torch.arange(n) + 1.0)
    encoder.sizes.clear()
    computed(encoder, alike, list(range(64)))
    assert max(encoder.sizes) == max(n for n in SIZES if n < many) and 2 not in encoder.sizes
    assert alike.known[(), 2] is False and alike.known[(), CANON] is True


def test_rows_whose_bits_hang_on_their_place_are_computed_by_themselves():
    """As the first of a batch of nothing else, whatever they are asked for with."""
    encoder, alike = Odd(1000, places=True), Alike()
    for n in (1, 2, 3, 4, 9, 64, 5):
        assert torch.equal(computed(encoder, alike, list(range(n)))[:, 0], torch.arange(n) + 1.0)
    assert not any(alike.known.values()) and encoder.sizes[-5:] == [CANON] * 5


@pytest.mark.parametrize("outputs", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("bias", [True, False])
def test_narrow_products_are_what_they_were(outputs, bias):
    """Products are made wider only on the way: as many numbers, of the same values, also by keyword."""
    torch.manual_seed(0)
    layer, x = nn.Linear(32, outputs, bias=bias), torch.randn(7, 5, 32)
    with not_narrow():
        found, again = layer(x), torch.nn.functional.linear(x, layer.weight, bias=layer.bias)
        with not_narrow():
            pass
        assert torch.equal(layer(x), found), "one that ends within another leaves that as it is"
    assert torch.nn.functional.linear is torch._C._nn.linear
    assert found.shape == (7, 5, outputs) and torch.equal(found, again)
    torch.testing.assert_close(found, layer(x))


@pytest.fixture
def texts(here) -> tuple[TextEncoder, list[str]]:
    """A small BERT, and texts of 1 to 90 words, beyond what it reads."""
    cfg = compose("pretrain", ["+task=mlm", *TINY_TEXT, "encoder.processor.max_length=64"])
    torch.manual_seed(0)
    encoder = build_encoder(cfg.encoder, build(cfg.data))
    rng, words = (
        np.random.default_rng(0),
        ["the", "mail", "of", "a", "request", "is", "read", "by", "an", "event", "loop", "that", "waits", "for", "it"],
    )
    assert isinstance(encoder, TextEncoder)
    return encoder, [" ".join(rng.choice(words, n)) for n in rng.integers(1, 90, 40)]


def test_a_text_has_the_same_bits_in_any_company(texts):
    """Alone, among others, in another order and with other sizes of batches."""
    encoder, items = texts
    target = Classification(encoder, {"classes": ["a", "b", "c"]}, 0.0, 0.0)
    samples = encoder.processor.at_once(Offered("text", items))
    found = predicted(encoder, target, samples, CPU, 256, alike=Alike()).scores
    alike = Alike()
    for rows in ([3], [5, 5], list(range(7)), list(range(39, -1, -1)), [0, 39, 1]):
        some = encoder.processor.at_once(Offered("text", [items[i] for i in rows]))
        assert (predicted(encoder, target, some, CPU, 16, alike=alike).scores == found[rows]).all()
    plain = predicted(encoder, target, samples, CPU, 256).scores
    assert np.abs(plain - found).max() < 1e-5


def test_texts_grow_by_less_than_half_and_the_rest_is_padding(texts):
    """Texts of one key are filled up to one length, no further than is read, by what a mask leaves out."""
    encoder, items = texts
    samples = encoder.processor.at_once(Offered("text", items))
    found = []
    for key, rows in Alike().batches(encoder, samples, 8, 64):
        batch = samples.batch(rows)
        wide = widened(batch, key, samples.padding)
        width = batch["tokens"].shape[1]
        assert wide["tokens"].shape == wide["mask"].shape == (len(rows), key[0]) and width <= key[0] <= min(64, max(8, 1.5 * width))
        assert torch.equal(wide["tokens"][:, :width], batch["tokens"]) and not wide["mask"][:, width:].any()
        assert (wide["tokens"][:, width:] == encoder.processor.pad_id).all()
        found += rows.tolist()
    assert sorted(found) == list(range(len(items))) and widened(batch, (), {}) is batch


def test_an_image_has_the_same_bits_in_any_company(here):
    """Features of a small ResNet."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    processor = ImageProcessor(16, 3, [0.5] * 3, [0.25] * 3)
    encoder = ImageEncoder(processor, "resnet18", {}, "small", False)
    items = list(rng.integers(0, 256, (20, 20, 24, 3), np.uint8))
    found = encode(encoder, processor.at_once(Offered("image", items)), CPU, 256, alike=Alike())
    for rows in ([3], list(range(5)), list(range(19, 3, -1))):
        some = processor.at_once(Offered("image", [items[i] for i in rows]))
        assert torch.equal(encode(encoder, some, CPU, 16, alike=Alike()), found[rows])


def test_pairs_are_alike_by_their_parts_and_their_sum(texts):
    """Rows of one key are padded to one length however they are read: part by part, or as one row."""
    encoder, items = texts
    samples = encoder.processor.at_once(Offered("text", list(zip(items, items[::-1], strict=True)), Class, ("a", "b")))
    alone: dict[tuple[int, ...], dict[str, torch.Size]] = {}
    for i, key in enumerate(widths_of(samples)):
        shape = {k: v.shape[1:] for k, v in encoder.inputs(samples.batch(np.array([i]))).items()}
        assert alone.setdefault(key, shape) == shape
    for _, rows in Alike().batches(encoder, samples, 64):  # and those that are computed together are padded as each is alone
        together = {k: v.shape[1:] for k, v in encoder.inputs(samples.batch(rows)).items()}
        assert all(
            together == {k: v.shape[1:] for k, v in encoder.inputs(samples.batch(rows[i : i + 1])).items()} for i in range(len(rows))
        )
    found = encode(encoder, samples, CPU, 256, alike=Alike())
    some = encoder.processor.at_once(Offered("text", [(items[i], items[39 - i]) for i in (8, 2)], Class, ("a", "b")))
    assert torch.equal(encode(encoder, some, CPU, 16, alike=Alike()), found[[8, 2]])


class Kept(Offered):
    """The same, as a data set that can be told from others."""

    def fingerprint(self) -> str:
        return digest("kept", self.modality, [str(np.asarray(item).tolist()) for item in self.items])


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_images_made_ready_at_once_are_those_of_the_cache(here, fit):
    """Images of several sizes and shapes that never were on a disk."""
    rng = np.random.default_rng(0)
    items = [rng.integers(0, 256, (*rng.integers(5, 60, 2), 3), np.uint8) for _ in range(9)]
    processor = ImageProcessor(12, 1, [0.5], [0.25], fit)
    assert_alike(processor, "image", items)


def test_texts_made_ready_at_once_are_those_of_the_cache(texts):
    """Tokens, marks and padding; of pairs, too."""
    encoder, items = texts
    assert_alike(encoder.processor, "text", ["", *items])
    pairs = list(zip(items, items[::-1], strict=True))
    index = np.arange(len(items))
    found = encoder.processor.at_once(Offered("text", pairs, Class, ("a", "b"))).batch(index)
    theirs = encoder.processor.prepare(Kept("text", items), "unlabeled").batch(index)
    assert torch.equal(found["a.tokens"], theirs["tokens"]) and torch.equal(found["b.tokens"], theirs["tokens"].flip(0))


def assert_alike(processor, modality, items):
    index = np.arange(len(items))
    ours = processor.at_once(Offered(modality, items)).batch(index)
    theirs = processor.prepare(Kept(modality, items), "unlabeled").batch(index)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
