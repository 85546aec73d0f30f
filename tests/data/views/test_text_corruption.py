"""Protects what is hidden from a text and what is to be written: counted against the papers, and text for text against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sslt.config import build, compose
from sslt.data.prepare.reversible import train_reversible
from sslt.data.prepare.text_processor import TextProcessor
from sslt.data.prepare.tokenizers import train_tokenizer
from sslt.data.views.text_corruption import DeleteWords, Infill, Prefix, T5Spans, full_stops, permuted, sentinels
from sslt.encoders.causal import CausalEncoder
from sslt.encoders.seq2seq import Seq2SeqEncoder
from sslt.encoders.text import TextEncoder
from sslt.errors import UserError

TEXTS = [
    "The runner was running unbelievably fast. Was he? Yes!",
    "Jumping foxes outjumped the fastest dogs... and cats.",
    "好的。再见！",
] * 5
CONFIGS = {
    "t5": (Seq2SeqEncoder, {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}, "mean"),
    "gpt2": (CausalEncoder, {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}, "last"),
    "bert": (TextEncoder, {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}, "mean"),
}


def encoder_of(kind: str, tokenizer: str, n_sentinels: int = 0, max_length: int = 64, words: int = 150):
    made = train_tokenizer(TEXTS, words, True) if tokenizer == "wordpiece" else train_reversible(tokenizer, TEXTS, 400, False, n_sentinels)
    cls, config, pooling = CONFIGS[kind]
    torch.manual_seed(0)
    return cls(TextProcessor(made, max_length), kind, config, pooling)


@pytest.fixture(scope="module")
def t5():
    return encoder_of("t5", "bpe", 60)


@pytest.fixture(scope="module")
def plain():
    """An encoder whose texts begin with a mark and whose tokenizer has no sentinels."""
    return encoder_of("t5", "bpe")


def rows(p: TextProcessor, sizes: list[int], packed: bool = False) -> tuple[dict[str, torch.Tensor], list[list[int]]]:
    """A batch of texts of so many tokens, no two of a text alike, and the texts. packed: full rows without a mark of an end behind."""
    ordinary = [i for i in range(p.vocab_size) if i not in set(p.special_ids) | set(full_stops(p.tokenizer))]
    rng = np.random.default_rng(0)
    texts = [rng.permutation(ordinary)[:n].tolist() for n in sizes]
    before = [] if p.cls_id is None else [p.cls_id]
    full = [before + text + ([] if packed else [p.sep_id]) for text in texts]
    width = max(map(len, full))
    tokens = torch.tensor([row + [p.pad_id] * (width - len(row)) for row in full])
    return {"tokens": tokens} | ({} if packed else {"mask": torch.arange(width) < torch.tensor([[len(row)] for row in full])}), texts


def read_of(made: dict, p: TextProcessor) -> list[list[int]]:
    """What is read, row by row, without the mark before it."""
    found = [row[mask].tolist() for row, mask in zip(made["inputs"]["tokens"], made["inputs"]["mask"], strict=True)]
    if p.cls_id is not None:
        assert all(row[0] == p.cls_id for row in found)
        found = [row[1:] for row in found]
    return found


def written_of(made: dict) -> list[list[int]]:
    return [row[mask].tolist() for row, mask in zip(made["outputs"], made["outputs_mask"], strict=True)]


# -------------------------------------------------------------------- T5
def reference_mask(length: int, rate: float, mean: float, rng: np.random.Generator) -> np.ndarray:
    """`random_spans_noise_mask` of T5's preprocessors, line for line."""
    original, length = length, max(length, 2)
    noise = min(max(int(np.round(length * rate)), 1), length - 1)
    spans = max(int(np.round(noise / mean)), 1)

    def segments(items: int, parts: int) -> np.ndarray:
        first = rng.permutation(np.arange(items - 1) < parts - 1)
        return np.bincount(np.cumsum(np.concatenate([[0], first])), minlength=parts)

    interleaved = np.stack([segments(length - noise, spans), segments(noise, spans)], 1).reshape(-1)
    starts = np.zeros(length, int)
    starts[np.cumsum(interleaved)[:-1]] = 1
    return (np.cumsum(starts) % 2 == 1)[:original]


@pytest.mark.parametrize("packed", [False, True])
def test_t5_restores_the_text(t5, packed):
    """What is read, with what is written after each sentinel in its place, is the text; sentinels come in T5's order."""
    p = t5.processor
    sizes = [40] * 6 if packed else [60, 41, 20, 7, 3, 2]
    batch, texts = rows(p, sizes, packed)
    torch.manual_seed(0)
    made = T5Spans(0.15, 3.0)(batch, t5)
    names = sentinels(p.tokenizer)
    assert names == [p.tokenizer.convert_tokens_to_ids(f"<extra_id_{i}>") for i in range(60)]
    assert names == sorted(names, reverse=True) and names[0] == p.vocab_size - 1
    for text, read, written in zip(texts, read_of(made, p), written_of(made), strict=True):
        assert read[-1] == written[-1] == p.sep_id
        spans: dict[int, list[int]] = {}
        for token in written[:-1]:
            if token in names:
                spans[token] = []
            else:
                spans[list(spans)[-1]].append(token)
        assert list(spans) == names[: len(spans)] == [token for token in read if token in names]
        assert all(spans.values())
        assert [t for token in read[:-1] for t in spans.get(token, [token])] == text
        assert sum(map(len, spans.values())) == max(1, int(np.round(0.15 * len(text))))


@pytest.mark.parametrize(("rate", "mean"), [(0.15, 3.0), (0.5, 3.0), (0.3, 8.0)])
def test_t5_hides_as_its_code_does(rate, mean):
    """For every length as many tokens in as many spans as T5's own code, which never differ; and every place as often."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    view, sizes = T5Spans(rate, mean), list(range(2, 70))
    _, hidden = view.hidden(torch.tensor(sizes), 70)
    for n, row in zip(sizes, hidden.numpy(), strict=True):
        expected = reference_mask(n, rate, mean, rng)
        count = lambda x: (int(x.sum()), int((np.diff(x.astype(int), prepend=0) == 1).sum()))  # noqa: E731
        assert count(row[:n]) == count(expected) and not row[n:].any()
        assert not row[0] and row[n - 1]
    n = 24
    _, hidden = view.hidden(torch.full((4000,), n), n)
    expected = np.mean([reference_mask(n, rate, mean, rng) for _ in range(4000)], axis=0)
    assert np.abs(hidden.float().mean(0).numpy() - expected).max() < 0.04  # three and a half standard deviations of a difference


def test_a_text_of_one_token_has_nothing_to_write(t5):
    """It is shown as it is, and counts nothing."""
    batch, texts = rows(t5.processor, [9, 1, 0])
    made = T5Spans(0.15, 3.0)(batch, t5)
    assert made["outputs_mask"].any(1).tolist() == [True, False, False]
    assert [row[:-1] for row in read_of(made, t5.processor)[1:]] == texts[1:]


def test_t5_is_refused_where_it_cannot_be(t5, plain):
    """No sentinels, too few, no decoder, several windows: a line each."""
    for view, encoder, says in [
        (T5Spans(0.15, 3.0), plain, "no sentinels"),
        (T5Spans(0.5, 1.0), encoder_of("t5", "bpe", 10), "has 32 hidden spans .* has 10 sentinels"),
        (T5Spans(0.15, 3.0), encoder_of("gpt2", "bpe", 60), "has no decoder to write with: choose encoder=t5_tiny"),
        (Infill(0.3, 3.0, 0.0, True), encoder_of("bert", "wordpiece"), "has no decoder to write with"),
        (Prefix(), encoder_of("bert", "wordpiece"), "has no decoder"),
    ]:
        with pytest.raises(UserError, match=says):
            view.check(encoder)
    with pytest.raises(UserError, match="more than 0 and less than 1"):
        T5Spans(1.0, 3.0)
    t5.processor.windows = 2
    try:
        with pytest.raises(UserError, match="windows=2"):
            Prefix().check(t5)
    finally:
        t5.processor.windows = 1


# -------------------------------------------------------------------- BART
def reference_spans(n: int, rate: float, mean: float, rng: np.random.Generator) -> list[int]:
    """Lengths of spans drawn one by one until so many tokens are covered."""
    wanted, found = max(1, round(rate * n)), []
    while sum(found) < wanted:
        found.append(min(int(rng.poisson(mean)), wanted - sum(found)))
    return found


def test_infilling_is_the_papers(plain):
    """The whole text is to be written; what stays of it is in order; 30 % is covered to the token; one mask a span, of no length too."""
    p, rng = plain.processor, np.random.default_rng(0)
    batch, texts = rows(p, [50] * 1500 + [3, 2, 1])
    torch.manual_seed(0)
    made = Infill(0.3, 3.0, 0.0, False)(batch, plain)
    masks, empty, gaps = [], 0, []
    for text, read, written in zip(texts, read_of(made, p), written_of(made), strict=True):
        assert written == [*text, p.sep_id] and read[-1] == p.sep_id
        kept = [token for token in read[:-1] if token != p.mask_id]
        assert len(text) - len(kept) == max(1, round(0.3 * len(text)))
        places = [text.index(token) for token in kept]
        assert places == sorted(places)
        masks.append(read.count(p.mask_id))
        last, run = -1, 0
        for token in [*read[:-1], None]:
            if token == p.mask_id:
                run += 1
                continue
            gap = (len(text) if token is None else text.index(token)) - last - 1
            assert run >= (gap > 0)  # what is gone has a mask
            empty += gap == 0 and run > 0
            gaps += [gap] if run == 1 else []
            last, run = (last if token is None else text.index(token)), 0
    expected = [reference_spans(50, 0.3, 3.0, rng) for _ in range(1500)]
    assert np.mean(masks[:1500]) == pytest.approx(np.mean([len(x) for x in expected]), rel=0.03)
    assert empty > 0.02 * sum(masks)
    alone = [n for spans in expected for n in spans]
    assert np.mean(gaps) == pytest.approx(np.mean(alone), rel=0.04) and np.std(gaps) == pytest.approx(np.std(alone), rel=0.05)


def test_the_last_span_is_nowhere_in_particular(plain):
    """The span that is cut to fit is not always the last in the text: what is covered is spread evenly over it."""
    p = plain.processor
    batch, texts = rows(p, [30] * 2000)
    torch.manual_seed(0)
    made = Infill(0.3, 6.0, 0.0, False)(batch, plain)
    gone = np.zeros(30)
    for text, read in zip(texts, read_of(made, p), strict=True):
        gone += [token not in read for token in text]
    assert np.abs(gone[:15].mean() - gone[15:].mean()) < 0.02 * 2000


def test_some_masks_are_random_words(plain):
    """A tenth, of words that stand for text."""
    p = plain.processor
    batch, _ = rows(p, [50] * 200)
    torch.manual_seed(0)
    shares = [sum(row.count(p.mask_id) for row in read_of(Infill(0.3, 3.0, s, False)(batch, plain), p)) for s in (0.0, 0.4)]
    assert shares[1] / shares[0] == pytest.approx(0.6, abs=0.05)


def test_sentences_are_dealt_out_anew():
    """Every order as often as another; a sentence stays whole, dots in a row are one stop, and the mark of a text's end stays with it."""
    a, b, c, stop, end = 10, 11, 12, 1, 2
    text = [a, a, stop, b, stop, stop, stop, end, c]
    stops = torch.zeros(20, dtype=torch.bool)
    stops[[stop, end]] = True
    torch.manual_seed(0)
    tokens = torch.tensor([[*text, 15, 15]]).repeat(3000, 1)
    made = permuted(tokens, torch.full((3000,), len(text)), stops)
    assert (made[:, len(text) :] == 15).all()
    sentences = {"a": [a, a, stop], "b": [b, stop, stop, stop, end], "c": [c]}
    orders = {"".join(order): [t for s in order for t in sentences[s]] for order in ("abc", "acb", "bac", "bca", "cab", "cba")}
    found = [next(k for k, v in orders.items() if v == row) for row in made[:, : len(text)].tolist()]
    assert all(abs(found.count(order) - 500) < 90 for order in orders)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "characters"])
def test_full_stops_are_the_tokenizers(kind):
    """Of Latin and Chinese texts, whatever the ids are and wherever the tokenizer puts them."""
    tokenizer = train_reversible(kind, TEXTS * 3, 500, False, 0)
    stops, ids = full_stops(tokenizer), lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    for text in ("dogs.", "he?", "Yes!", *(["好的。", "再见！"] if kind != "bpe" else [])):  # bytes of rare ones are not joined
        assert ids(text)[-1] in stops
    assert not set(stops) & {*ids("The runner"), *tokenizer.all_special_ids}


# -------------------------------------------------------------------- a text in two
@pytest.mark.parametrize(("kind", "packed"), [("t5", False), ("t5", True), ("gpt2", False), ("gpt2", True)])
def test_prefix_and_rest_are_the_text(kind, packed):
    """The cut is drawn evenly with a token on both sides; a decoder beside the encoder reads a mark of an end, one row does not."""
    encoder = encoder_of(kind, "bpe")
    p = encoder.processor
    sizes = [8] * 700 if packed else [8] * 700 + [2, 1, 0]
    batch, texts = rows(p, sizes, packed)
    torch.manual_seed(0)
    made = Prefix()(batch, encoder)
    cuts = []
    for text, read, written in zip(texts, read_of(made, p), written_of(made), strict=True):
        if kind == "t5":
            assert read.pop() == p.sep_id
        if len(text) < 2:
            assert read == text and not written
            continue
        assert read + written == text + ([] if packed else [p.sep_id])
        assert 1 <= len(read) < len(text)
        cuts.append(len(read))
    assert all(abs(cuts[:700].count(n) - 100) < 40 for n in range(1, 8))


def test_the_end_that_also_pads_is_learned():
    """GPT-2's padding is its mark of an end: lengths say which is which."""
    encoder = encoder_of("gpt2", "bpe")
    tokenizer = encoder.processor.tokenizer
    tokenizer.pad_token = tokenizer.eos_token
    encoder.processor = p = TextProcessor(tokenizer, 64)
    assert p.pad_id == p.sep_id
    batch, texts = rows(p, [20, 9, 3])
    made = Prefix()(batch, encoder)
    for text, read, written in zip(texts, read_of(made, p), written_of(made), strict=True):
        assert read + written == [*text, p.sep_id]


@pytest.mark.parametrize("view", [Infill(1.0, 0.1, 0.0, True), Prefix(), T5Spans(0.9, 1.0)])
def test_no_row_is_longer_than_the_encoder_reads(view):
    """Where full rows have no place for a mark of an end, or masks are more than the words they stand for; 30 is no multiple of 8."""
    encoder = encoder_of("t5", "bpe", 60, max_length=30)
    made = view(rows(encoder.processor, [30, 30], packed=True)[0], encoder)
    assert made["inputs"]["tokens"].shape[1] <= 30
    assert isinstance(view, T5Spans) or made["outputs"].shape[1] <= 30
    assert (made["outputs_mask"].sum(1) > 0).all()


# -------------------------------------------------------------------- deleted words
def test_words_are_deleted_whole():
    """Each with its own draw of 0.6, all tokens of a word together, in order, and never all of them; the whole text is to be written."""
    encoder = encoder_of("bert", "wordpiece", words=80)
    p = encoder.processor
    texts = ["the runner was running unbelievably fast", "jumping foxes outjumped the fastest dogs", "he"] * 300
    ids = [p.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    words = [[p.tokenizer(word, add_special_tokens=False)["input_ids"] for word in text.split()] for text in texts]
    assert any(len(word) > 1 for row in words for word in row)
    width = max(map(len, ids)) + 2
    tokens = torch.tensor([[p.cls_id, *row, p.sep_id] + [p.pad_id] * (width - 2 - len(row)) for row in ids])
    batch = {"tokens": tokens, "mask": tokens != p.pad_id}
    torch.manual_seed(0)
    made = DeleteWords(0.6, True)(batch, encoder)
    left = total = 0
    for i, (written, parts) in enumerate(zip(written_of(made), words, strict=True)):
        assert written == [*ids[i], p.sep_id]
        row = made["views"]["tokens"][0, i][made["views"]["mask"][0, i]].tolist()
        assert row[0] == p.cls_id and row[-1] == p.sep_id
        row, kept = row[1:-1], 0
        for word in parts:  # words of a text differ, so that those which are left are found from the left
            if row[: len(word)] == word:
                row, kept = row[len(word) :], kept + 1
        assert not row and kept >= 1
        if len(parts) > 1:
            left, total = left + kept, total + len(parts)
    assert left / total == pytest.approx(0.4 + 0.6**6 / 6, abs=0.02)
    alone = DeleteWords(1.0, False)(batch, encoder)["views"]["mask"].sum(2)
    assert (alone == 3).all()  # its start, one token and its end


def test_the_first_word_has_its_own_draw(t5):
    """Also where it does not say that it starts a word, and no mark stands before it."""
    p = t5.processor
    ids = p.tokenizer("The runner", add_special_tokens=False)["input_ids"]
    second = len(p.tokenizer("The", add_special_tokens=False)["input_ids"])
    torch.manual_seed(0)
    made = DeleteWords(0.5, True)({"tokens": torch.tensor([[*ids, p.sep_id]] * 400)}, t5)
    rows = [row[mask].tolist()[:-1] for row, mask in zip(made["views"]["tokens"][0], made["views"]["mask"][0], strict=True)]
    counts = [sum(row == kept for row in rows) for kept in (ids, ids[:second], ids[second:])]
    assert sum(counts) == 400 and min(counts) > 60


def test_settings_are_those_of_the_papers():
    """What the recipes hide: T5 15 % by 3, BART 30 % by 3 with sentences permuted, ELECTRA 15 % of which 85 % masked, TSDAE 60 %."""
    views = lambda task: build(compose("pretrain", [f"+task={task}"]).views)  # noqa: E731
    assert (views("t5_spans").rate, views("t5_spans").mean_span) == (0.15, 3)
    assert (views("bart").rate, views("bart").mean_span, views("bart").permute) == (0.3, 3, True)
    assert (views("electra").rate, views("electra").mask_share, views("electra").random_share) == (0.15, 0.85, 0)
    assert views("tsdae").rate == 0.6
