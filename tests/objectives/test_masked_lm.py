"""Protects masked language modelling: which tokens are chosen and shown, and the loss over the whole vocabulary."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sslt.data.prepare.image_processor import ImageProcessor
from sslt.data.prepare.text_processor import TextProcessor
from sslt.data.prepare.tokenizers import continues_word, train_tokenizer
from sslt.data.views.text_views import MaskTokens
from sslt.encoders.image import ImageEncoder
from sslt.encoders.text import TextEncoder
from sslt.errors import UserError
from sslt.objectives.masked_lm import MaskedLM

TEXTS = ["the runner was running unbelievably fast", "jumping foxes outjumped the fastest dogs", "unhappy dogs ran"] * 4


@pytest.fixture(scope="module")
def processor() -> TextProcessor:
    return TextProcessor(train_tokenizer(TEXTS, 70, True), 64)


def encoder_for(processor: TextProcessor, dropout: float = 0.0) -> TextEncoder:
    config = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "max_position_embeddings": 64, "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout,
    }  # fmt: skip
    torch.manual_seed(0)
    return TextEncoder(processor, "bert", config, "mean")


def views(**changed) -> MaskTokens:
    return MaskTokens(**{"rate": 0.15, "mask_share": 0.8, "random_share": 0.1, "whole_word": False, **changed})


def packed(processor: TextProcessor, rows: int, length: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Full rows as `PackedSamples` gives them: a start token, words, here and there the end of a text."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(len(processor.special_ids), processor.vocab_size, (rows, length), generator=generator)
    tokens[:, 0] = processor.cls_id
    tokens[:, length // 2] = processor.sep_id
    return {"tokens": tokens}


def padded(processor: TextProcessor, lengths: list[int], width: int) -> dict[str, torch.Tensor]:
    batch = packed(processor, len(lengths), width)
    mask = torch.arange(width) < torch.tensor(lengths).unsqueeze(1)
    tokens = batch["tokens"].masked_fill(batch["tokens"] == processor.sep_id, processor.vocab_size - 1)
    tokens[torch.arange(len(lengths)), torch.tensor(lengths) - 1] = processor.sep_id
    return {"tokens": tokens.masked_fill(~mask, processor.pad_id), "mask": mask}


def chosen_of(made: dict, shape: torch.Size) -> torch.Tensor:
    """bool [B, L]: which places have a target."""
    chosen = torch.zeros(shape, dtype=torch.bool)
    return chosen.scatter(1, made["positions"], made["targets"] != -100)


# -------------------------------------------------------------------- which tokens
@pytest.mark.parametrize(("rows", "length"), [(5, 32), (3, 64), (2, 128), (4, 5)])
def test_packed_rows_choose_exactly_their_share(processor, rows, length):
    """K = round(0.15 · L) different places in every row, none of them special, each with its true id as target."""
    batch = packed(processor, rows, length)
    made = views()(batch, SimpleNamespace(processor=processor))
    k = max(1, round(0.15 * length))
    assert made["positions"].shape == made["targets"].shape == (rows, k)
    assert made["n_targets"] == rows * k
    assert all(len(set(row.tolist())) == k for row in made["positions"])
    assert torch.equal(batch["tokens"].gather(1, made["positions"]), made["targets"])
    assert not np.isin(made["targets"].numpy(), processor.special_ids).any()


def test_tokens_that_were_not_chosen_are_shown_as_they_are(processor):
    """Only chosen places change, and the batch's own tokens are not written to (they may be a memory map)."""
    batch = packed(processor, 16, 64)
    before = batch["tokens"].clone()
    made = views()(batch, SimpleNamespace(processor=processor))
    assert torch.equal(batch["tokens"], before) and torch.equal(made["tokens"], before)
    assert made["inputs"]["tokens"].data_ptr() != batch["tokens"].data_ptr()
    untouched = ~chosen_of(made, before.shape)
    assert torch.equal(made["inputs"]["tokens"][untouched], before[untouched])


def test_eighty_ten_ten(processor):
    """Of the chosen tokens 80 % are masked, 10 % replaced by any word, 10 % kept, within five standard errors."""
    torch.manual_seed(0)
    made = views()(packed(processor, 1500, 64), SimpleNamespace(processor=processor))
    targets = made["targets"].flatten()
    shown = made["inputs"]["tokens"].gather(1, made["positions"]).flatten()
    n, v = targets.numel(), processor.vocab_size - len(processor.special_ids)
    expected = {"masked": 0.8, "kept": 0.1 + 0.1 / v, "other": 0.1 * (v - 1) / v}  # a random word is now and then the true one
    masked, kept = shown == processor.mask_id, shown == targets
    found = {"masked": masked.float().mean(), "kept": kept.float().mean(), "other": (~masked & ~kept).float().mean()}
    for name, p in expected.items():
        assert float(found[name]) == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / n)), name


def test_random_words_are_words(processor):
    """What stands for a word by chance is never a special token, and every word may."""
    made = views(mask_share=0.0, random_share=1.0)(packed(processor, 4000, 64), SimpleNamespace(processor=processor))
    shown = made["inputs"]["tokens"].gather(1, made["positions"])[made["targets"] != -100]
    drawn = np.unique(shown.numpy())
    assert not np.isin(drawn, processor.special_ids).any()
    assert len(drawn) > 0.9 * (processor.vocab_size - len(processor.special_ids))


def test_every_place_is_chosen_equally_often(processor):
    """No place of a row is favoured: 15 % of L over the places that may be chosen."""
    torch.manual_seed(0)
    rows, length = 4000, 20
    made = views()(packed(processor, rows, length), SimpleNamespace(processor=processor))
    share = chosen_of(made, torch.Size((rows, length))).float().mean(0)
    free = torch.ones(length, dtype=torch.bool)
    free[[0, length // 2]] = False
    p = 3 / (length - 2)
    assert share[~free].sum() == 0
    assert (share[free] - p).abs().max() < 5 * math.sqrt(p * (1 - p) / rows)


def test_shares_can_be_set(processor):
    """mask_share=1 masks all that is chosen; 0 and 0 shows everything as it is."""
    batch = packed(processor, 8, 32)
    all_masked = views(mask_share=1.0, random_share=0.0)(batch, SimpleNamespace(processor=processor))
    shown = all_masked["inputs"]["tokens"].gather(1, all_masked["positions"])
    assert (shown == processor.mask_id).all()
    kept = views(mask_share=0.0, random_share=0.0)(batch, SimpleNamespace(processor=processor))
    assert torch.equal(kept["inputs"]["tokens"], batch["tokens"])


def test_the_seed_decides(processor):
    """The same generator state makes the same views, the next draw others."""
    batch = packed(processor, 8, 64)
    make = lambda: views()(batch, SimpleNamespace(processor=processor))["positions"]  # noqa: E731
    torch.manual_seed(1)
    first, second = make(), make()
    torch.manual_seed(1)
    assert torch.equal(first, make()) and not torch.equal(first, second)


def test_padded_rows_choose_their_own_share(processor):
    """A short row gives 15 % of its own words, at least one, and neither padding nor special tokens."""
    lengths = [64, 40, 22, 9, 3]
    batch = padded(processor, lengths, 64)
    made = views()(batch, SimpleNamespace(processor=processor))
    chosen = chosen_of(made, batch["tokens"].shape)
    words = torch.tensor([n - 2 for n in lengths])
    assert chosen.sum(1).tolist() == [max(1, round(0.15 * int(n))) for n in words]
    assert made["n_targets"] == int(chosen.sum()) == int((made["targets"] != -100).sum())
    assert not (chosen & ~batch["mask"]).any()
    assert not np.isin(batch["tokens"][chosen].numpy(), processor.special_ids).any()
    counted = made["targets"] != -100
    assert torch.equal(batch["tokens"].gather(1, made["positions"])[counted], made["targets"][counted])
    assert torch.equal(made["inputs"]["tokens"][~chosen], batch["tokens"][~chosen])
    assert torch.equal(made["inputs"]["mask"], batch["mask"])


def test_a_row_without_words_has_no_target(processor):
    """An empty text (start and end only) is left as it is and counts nothing."""
    batch = padded(processor, [32, 2], 32)
    made = views()(batch, SimpleNamespace(processor=processor))
    assert (made["targets"][1] == -100).all()
    assert torch.equal(made["inputs"]["tokens"][1], batch["tokens"][1])


def test_a_packed_row_of_few_words_counts_those_it_has(processor):
    """Where a full row holds fewer words than K, the count is that of the targets, which weighs the batch."""
    batch = packed(processor, 2, 32)
    batch["tokens"][1, 2:] = processor.sep_id  # one word, between ends of empty texts
    made = views()(batch, SimpleNamespace(processor=processor))
    assert made["n_targets"] == int((made["targets"] != -100).sum())


def words_of(tokens: torch.Tensor, continues: np.ndarray, special: list[int]) -> list[list[int]]:
    """Places of each word of one row, by a plain walk."""
    words: list[list[int]] = []
    for place, token in enumerate(tokens.tolist()):
        if token in special:
            continue
        if continues[token] and words and words[-1][-1] == place - 1:
            words[-1].append(place)
        else:
            words.append([place])
    return words


def test_whole_words_are_chosen_whole(processor):
    """All tokens of a word are chosen or none; only the word that fills up the K places may be cut."""
    continues = continues_word(processor.tokenizer)
    assert continues.sum() > 10
    torch.manual_seed(0)
    batch = packed(processor, 200, 64)
    made = views(whole_word=True)(batch, SimpleNamespace(processor=processor))
    chosen = chosen_of(made, batch["tokens"].shape)
    assert (chosen.sum(1) == round(0.15 * 64)).all()
    whole = several = 0
    for tokens, row in zip(batch["tokens"], chosen, strict=True):
        words = words_of(tokens, continues, processor.special_ids)
        cut = [w for w in words if row[w].any() and not row[w].all()]
        assert len(cut) <= 1
        taken = [w for w in words if row[w].all()]
        whole += len(taken)
        several += sum(len(w) > 1 for w in taken)
    assert several > 0.1 * whole  # words of several tokens do get chosen


def test_single_tokens_are_drawn_one_by_one(processor):
    """Without whole_word the tokens of a word are independent: many words are chosen in part."""
    continues = continues_word(processor.tokenizer)
    torch.manual_seed(0)
    batch = packed(processor, 50, 64)
    made = views()(batch, SimpleNamespace(processor=processor))
    chosen = chosen_of(made, batch["tokens"].shape)
    cut = [
        w
        for tokens, row in zip(batch["tokens"], chosen, strict=True)
        for w in words_of(tokens, continues, processor.special_ids)
        if row[w].any() and not row[w].all()
    ]
    assert len(cut) > 50


# -------------------------------------------------------------------- the loss
def full_logits_loss(encoder: TextEncoder, made: dict) -> tuple[float, float]:
    """Loss and accuracy as transformers' BertForMaskedLM computes them: all logits, labels -100 off the chosen places."""
    labels = torch.full_like(made["tokens"], -100)
    for row, (places, targets) in enumerate(zip(made["positions"], made["targets"], strict=True)):
        for place, target in zip(places.tolist(), targets.tolist(), strict=True):
            if target != -100:
                labels[row, place] = target
    with encoder.words.whole(encoder.model) as model:
        scores = model(input_ids=made["inputs"]["tokens"], attention_mask=made["inputs"].get("mask")).logits
    loss = F.cross_entropy(scores.reshape(-1, scores.shape[-1]), labels.reshape(-1))
    counted = labels != -100
    return loss.item(), (scores.argmax(-1) == labels)[counted].float().mean().item()


@pytest.mark.parametrize("kind", ["packed", "padded"])
def test_value_is_that_of_full_logits(processor, kind):
    """Logits at the K chosen places give the loss, the gradient and the accuracy of logits everywhere."""
    encoder = encoder_for(processor)
    head = MaskedLM(encoder)
    torch.nn.init.normal_(encoder.words.bias)
    batch = packed(processor, 4, 32) if kind == "packed" else padded(processor, [32, 20, 11, 5], 32)
    made = views()(batch, encoder)
    loss = head(encoder, made)
    expected, accuracy = full_logits_loss(encoder, made)
    assert loss.value.item() == pytest.approx(expected, rel=1e-5)
    assert loss.logs["masked_accuracy"].item() == pytest.approx(accuracy, abs=1e-6)
    assert head.units(made) == int((made["targets"] != -100).sum())


def test_output_matrix_is_the_token_embedding(processor):
    """There is no second vocabulary matrix, and the embedding gets the gradient of both its uses."""
    encoder = encoder_for(processor)
    head = MaskedLM(encoder)
    embedding = encoder.token_embeddings.weight
    assert not list(head.parameters())
    assert all(p.shape != embedding.shape for p in encoder.words.parameters())
    made = views(mask_share=1.0, random_share=0.0)(packed(processor, 4, 32), encoder)
    head(encoder, made).value.backward()
    seen = torch.zeros(processor.vocab_size, dtype=torch.bool)
    seen[made["inputs"]["tokens"].flatten()] = True
    assert (embedding.grad[~seen].abs().sum(1) > 0).all()  # rows that only the output side uses


def test_surplus_targets_do_not_change_the_loss(processor):
    """Targets of -100 count neither in value nor in count, whatever stands at their places."""
    encoder = encoder_for(processor)
    head = MaskedLM(encoder)
    made = views()(packed(processor, 3, 32), encoder)
    more = {
        **made,
        "positions": torch.cat([made["positions"], made["positions"][:, :2]], 1),
        "targets": torch.cat([made["targets"], torch.full((3, 2), -100)], 1),
    }
    assert head(encoder, more).value.item() == pytest.approx(head(encoder, made).value.item(), rel=1e-6)


def test_an_image_encoder_is_refused():
    """There are no words to predict in an image: one clear line."""
    args = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
    encoder = ImageEncoder(ImageProcessor(8, 1, [0.5], [0.5]), "resnet18", args, "small", False)
    with pytest.raises(UserError, match="reads no hidden words out: choose encoder=bert_tiny"):
        MaskedLM(encoder)
