"""From texts to batches of token ids: a tokenizer, and the tokens of a split stored once as flat arrays."""

from __future__ import annotations

import abc
import contextlib
import json
import logging
import os
import shutil
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from sslt import stored
from sslt.data import cache, copies, sharding
from sslt.data.answers import Answers, Texts
from sslt.data.base import Samples, Source
from sslt.data.prepare import text_shards
from sslt.data.prepare.parts import PartSamples, PartView, prepared
from sslt.data.prepare.reversible import require_reversible, train_reversible
from sslt.data.prepare.text_samples import TextSamples, as_characters
from sslt.data.prepare.tokenizers import backend_spec, continues_word, inside_words, marks_of, reader_of, special_ids, train_tokenizer
from sslt.data.ragged import Ragged
from sslt.data.shards.ragged import RaggedShards
from sslt.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("sslt")

FORMAT = 1
SPLITS_FORMAT = 6  # of the tokens of a split: raise it when what is written, or how splits are drawn, changes
CHUNK = 1000  # texts tokenized at a time
TRAINING_CHARACTERS = 50_000_000  # a tokenizer learned from more text than this is no better
SETTINGS = "text_processor.json"
_SETTINGS: dict[str, Any] = {"max_length": None, "windows": 1, "max_output": None}


class TokenProcessor(abc.ABC):
    """Turns a source's splits into `TextSamples`, through the cache; a subclass says which token ids a text has.

    Attributes: `max_length`, the tokens of a window, and `windows`, how many of them are read of a text at most (None: all), when it is
    batched; `digest` of all that the ids depend on; `special`: the ids that start a text, end it (None: nothing does) and pad it.
    """

    modality = "text"
    max_length: int
    windows: int | None = 1
    max_output: int | None = None
    digest: str
    special: tuple[int | None, int | None, int]
    unknown_id: int  # what a word is replaced by that must not be read
    spells = False  # whether samples have the subwords of words that their ids do not tell

    @abc.abstractmethod
    def encode(self, texts: Sequence[Any] | np.ndarray) -> Iterator[list[list[int]]]:
        """Ids of `CHUNK` texts at a time: whole texts, without the ids that start and end them."""

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """What ids stand for, to be looked at."""

    def read_out(self, ids: Sequence[int]) -> str:
        """The text of ids as well as they tell, for another tokenizer to read: without marks, perhaps without case and signs."""
        return self.decode(ids)

    def encode_with_places(self, texts: Sequence[Any] | np.ndarray) -> Iterator[list[tuple[list[int], list[tuple[int, int]]]]]:
        """Ids as `encode` gives them, and where each stands in its text: (start, end) in characters, end exclusive."""
        raise UserError("this encoder's words do not know their place in a text: choose a transformer, encoder=bert_tiny")

    def encode_spelled(self, texts: Sequence[Any] | np.ndarray) -> Iterator[list[tuple[list[int], list[int] | None]]]:
        """Ids as `encode` gives them, and the subwords of words that these do not tell; where it `spells`."""
        raise NotImplementedError

    def spell(self) -> None:
        """Have samples say how words are spelled that their ids do not tell, from now on; nothing where every id says it."""

    @property
    def room(self) -> int:
        """Tokens of a text that a row of `max_length` holds."""
        return self.max_length - sum(mark is not None for mark in self.special[:2])

    def prepare(self, source: Source, split: str) -> Samples:
        """The tokens of a split, from the cache or put there. Raises what reading the source raises."""
        if source.parts and split != "unlabeled":
            return prepared(self, source, split)
        spelled = self._spelled(source)
        key = cache.digest(content_of(source), split, self.digest, source.answer.in_text, SPLITS_FORMAT, *(["spelled"] if spelled else []))
        if text_shards.are_many(source, split):
            return self._in_shards(source, split, key)
        entry = cache.get_or_make("text", key, lambda folder: self._tokenize(source, split, folder))
        if skipped := entry.meta["skipped"]:
            log.warning("%s, %s: %d rows left out, the first: %s", source.name, split, len(skipped), skipped[0])
        copies.tell(entry.meta["remarks"])
        copies.tell_shared(source.of if isinstance(source, PartView) else source, split, np.asarray(entry["contents"]))
        offsets = np.asarray(entry["offsets"])
        return TextSamples(
            tokens=entry["tokens"],
            starts=offsets[:-1],
            sizes=np.diff(offsets),
            answers=None if entry.meta["answers"] is None else Answers.load(entry, entry.meta["answers"]),
            fingerprint=key,
            special=self.special,
            max_length=self.max_length,
            skipped=len(skipped),
            windows=self.windows,
            places=entry["places"] if source.answer.in_text else None,
            outputs=Ragged.from_flat(entry["outputs"], np.array(entry["outputs_sizes"])) if "outputs" in entry else None,
            max_output=self.max_output or self.max_length,
            characters=Ragged.from_flat(entry["characters"], np.asarray(entry["lengths"])) if source.answer.in_text else None,
            subwords=Ragged.from_flat(entry["subwords"], np.asarray(entry["subwords_sizes"])) if spelled else None,
        )

    def _in_shards(self, source: Source, split: str, key: str) -> Samples:
        """A split that is read text by text."""
        limits = sharding.limits()
        assert limits is not None
        key = cache.digest(key, "shards", text_shards.FORMAT, limits.shard_bytes)
        read: text_shards.Read = self.encode_spelled if self._spelled(source) else partial(_with_nothing, self.encode)
        entry = cache.get_or_make("text", key, lambda folder: text_shards.write(folder, source, split, read), resumable=True)
        if skipped := entry.meta["skipped"]:
            log.warning("%s, %s: %d rows left out, the first: %s", source.name, split, len(skipped), skipped[0])
        how: dict[str, Any] = {"special": self.special, "max_length": self.max_length, "windows": self.windows}
        subwords = RaggedShards(entry, "subwords") if "subwords" in entry.meta["shards"] else None
        return text_shards.ShardedTexts(RaggedShards(entry, "tokens"), key, len(skipped), subwords=subwords, **how)

    def at_once(self, source: Source) -> Samples:
        """The one split of a source that is in memory (`offered.Offered`), made ready as `prepare` does it, and kept nowhere."""
        if source.parts:
            return PartSamples({name: self.at_once(PartView(source, i)) for i, name in enumerate(source.parts)})
        raw, placed, spelled = source.read(source.own_splits()[0]), source.answer.in_text, self._spelled(source)
        beside: list[np.ndarray] = []
        ids = [row for chunk in self._encoded(raw.items, placed, spelled, beside) for row in chunk]
        sizes = np.array([len(row) for row in ids], np.int64)
        return TextSamples(
            tokens=np.fromiter(chain.from_iterable(ids), dtype=np.int32),
            starts=np.cumsum(sizes) - sizes,
            sizes=sizes,
            answers=raw.answers,
            fingerprint="",
            special=self.special,
            max_length=self.max_length,
            skipped=0,
            windows=self.windows,
            places=np.concatenate(beside) if placed else None,
            max_output=self.max_output or self.max_length,
            characters=Ragged.of([as_characters(text) for text in raw.items], np.int32) if placed else None,
            subwords=Ragged.of(beside, np.int32) if spelled else None,
        )

    def _tokenize(self, source: Source, split: str, folder: Path) -> dict[str, Any]:
        raw = source.get(split)
        if not len(raw):
            raise UserError(f"{source.name}: the {split} split is empty")
        sizes: list[int] = []
        beside: list[np.ndarray] = []
        placed, spelled = source.answer.in_text, self._spelled(source)
        with (folder / "tokens.raw").open("wb") as f, _progress(f"tokenizing {source.name} {split}", len(raw)) as done:
            for ids in self._encoded(raw.items, placed, spelled, beside):
                sizes.extend(map(len, ids))
                np.fromiter(chain.from_iterable(ids), dtype=np.int32).tofile(f)
                done(len(ids))
        _raw_to_npy(folder / "tokens.raw", folder / "tokens.npy", sum(sizes))
        np.save(folder / "offsets.npy", np.cumsum([0, *sizes], dtype=np.int64))
        if placed:
            np.save(folder / "places.npy", np.concatenate(beside))
            characters = [as_characters(text) for text in raw.items]
            np.save(folder / "characters.npy", np.concatenate(characters))
            np.save(folder / "lengths.npy", np.array([len(text) for text in characters], np.int64))
        if spelled:
            np.save(folder / "subwords.npy", np.concatenate(beside))
            np.save(folder / "subwords_sizes.npy", np.array([len(found) for found in beside], np.int64))
        answers = None if raw.answers is None else raw.answers.save(folder)
        if isinstance(raw.answers, Texts):
            written = [ids for chunk in self.encode([row[0] for row in raw.answers.values]) for ids in chunk]
            np.save(folder / "outputs.npy", np.fromiter(chain.from_iterable(written), dtype=np.int32))
            np.save(folder / "outputs_sizes.npy", np.array([len(ids) for ids in written], np.int64))
        np.save(folder / "contents.npy", copies.contents_of(raw.items) if raw.contents is None else raw.contents)
        return {"answers": answers, "skipped": raw.skipped, "remarks": raw.remarks}

    def _spelled(self, source: Source) -> bool:
        return self.spells and not source.answer.in_text

    def _encoded(
        self, texts: Sequence[Any] | np.ndarray, placed: bool, spelled: bool, beside: list[np.ndarray]
    ) -> Iterator[list[list[int]]]:  # fmt: skip
        """What `encode` gives; adds to `beside` for each text the places of its ids, int32 [n, 2], or the subwords that it spells [m]."""
        if not placed and not spelled:
            yield from self.encode(texts)
            return
        done = 0
        for chunk in self.encode_with_places(texts) if placed else self.encode_spelled(texts):
            for i, (_, found) in enumerate(chunk):
                beside.append(_whole_characters(found, texts[done + i]) if placed else np.array(found, np.int32))  # type: ignore[arg-type]
            done += len(chunk)
            yield [ids for ids, _ in chunk]


class TextProcessor(TokenProcessor):
    """Turns a source's splits into `TextSamples` of one tokenizer, which are read in windows of `max_length` tokens.

    Attributes: `cls_id` (None where nothing starts a text), `sep_id`, `pad_id`; `mask_id` (None where there is no mask token);
    `special_ids` (sorted ids of tokens that stand for no text); `vocab_size` (largest id + 1); `max_output` (tokens of a text that is to
    be written, its end among them; None: `max_length`). Raises `UserError` for a tokenizer without a fast backend, or without a token to
    end a text with.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, windows: int | None = 1, max_output: int | None = None):
        if max_length < 3:
            raise UserError(f"max_length={max_length}: give at least 3, a text's start, one token and its end")
        if windows is not None and windows < 1:
            raise UserError(f"windows={windows}: give at least 1, or null for all of a text")
        if max_output is not None and max_output < 2:
            raise UserError(f"max_output={max_output}: give at least 2, a token and its end, or null for max_length")
        self.tokenizer, self.max_length, self.windows, self.max_output = tokenizer, max_length, windows, max_output
        self.digest = cache.digest(backend_spec(tokenizer))
        tokenizer.model_max_length = max_length
        self.cls_id, self.sep_id, self.pad_id = marks_of(tokenizer)
        self.special = self.cls_id, self.sep_id, self.pad_id
        # RoBERTa and its like put two ends between a pair
        self.marks_between = max(1, cast(Any, tokenizer).backend_tokenizer.num_special_tokens_to_add(True) - 2)
        self.unknown_id = tokenizer.unk_token_id or 0
        self.mask_id: int | None = tokenizer.mask_token_id
        self.special_ids = special_ids(tokenizer)
        self.vocab_size = max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1)

    @classmethod
    def fit(
        cls, source: Source, vocab_size: int, max_length: int, lowercase: bool,
        tokenizer: str = "wordpiece", sentinels: int = 0, max_output: int | None = None,
    ) -> TextProcessor:  # fmt: skip
        """A processor with a tokenizer trained on the source's unlabeled (or training) texts: "wordpiece" (Devlin et al., 2019), or one of
        `reversible.KINDS`, with so many `sentinels` at its end.

        Kept in the cache by content and settings. Of very much text a seeded sample is used.
        """

        def train(folder: Path) -> dict[str, Any]:
            texts = training_texts(source, TRAINING_CHARACTERS)
            log.info("training a tokenizer on %d texts", len(texts))
            if tokenizer == "wordpiece":
                made = train_tokenizer(texts, vocab_size, lowercase)
            else:
                made = train_reversible(tokenizer, texts, vocab_size, lowercase, sentinels)
            made.save_pretrained(str(folder))
            return {"texts": len(texts)}

        if tokenizer == "wordpiece" and sentinels:
            raise UserError("encoder.processor.sentinels are for texts that are written: choose encoder.processor.tokenizer=unigram or bpe")
        more = [] if tokenizer == "wordpiece" else [tokenizer, sentinels]
        key = cache.digest(content_of(source), vocab_size, lowercase, TRAINING_CHARACTERS, FORMAT, *more)
        return cls(_load_tokenizer(cache.get_or_make("tokenizers", key, train).path), max_length, max_output=max_output)

    def save(self, folder: Path) -> None:
        """Write the tokenizer as transformers does, and how much of a text is read beside it."""
        self.tokenizer.save_pretrained(str(folder))
        cache.write_atomic(Path(folder) / SETTINGS, json.dumps({name: getattr(self, name) for name in _SETTINGS}))

    @classmethod
    def load(cls, folder: Path) -> TextProcessor:
        """What `save` wrote. Raises `UserError` where it is not there."""
        folder = Path(folder)
        missing = [name for name in ("tokenizer.json", SETTINGS) if not (folder / name).is_file()]
        if missing:
            raise UserError(f"{stored.shown(folder)}: no text processor saved there ({', '.join(missing)} missing)")
        stored.require_plain(folder)  # transformers reads whichever it knows
        settings = {**_SETTINGS, **stored.json_object(folder / SETTINGS)}  # folders of before there were all of them do not name them
        read: dict[str, Any] = {
            name: None if settings[name] is None else stored.value(settings, name, int, folder / SETTINGS) for name in _SETTINGS
        }
        if read["max_length"] is None:
            raise UserError(f"{stored.shown(folder / SETTINGS)}: max_length is missing")
        stored.json_object(folder / "tokenizer.json")
        with stored.blaming(folder / "tokenizer.json"):
            return cls(_load_tokenizer(folder), **read)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens among it."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def read_out(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def decode_text(self, ids: Sequence[int]) -> str:
        """The text that ids were made of. Raises `UserError` for a tokenizer that loses some of it (`reversible.require_reversible`)."""
        require_reversible(self.tokenizer)
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def continues_word(self) -> np.ndarray:
        """bool [vocab_size]: entries that continue the word before them (see `tokenizers.continues_word`)."""
        return continues_word(self.tokenizer)

    def inside_words(self) -> np.ndarray:
        """bool [vocab_size, 2]: entries that go on with a word, and those after which one may (see `tokenizers.inside_words`)."""
        return inside_words(self.tokenizer)

    def encode(self, texts: Sequence[Any] | np.ndarray) -> Iterator[list[list[int]]]:
        """Ids of `CHUNK` texts at a time: whole texts, without special tokens."""
        # Said explicitly, so that worker processes forked later do not warn about threads they never use.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        backend = reader_of(self.tokenizer)
        encode = getattr(backend, "encode_batch_fast", backend.encode_batch)  # without character offsets
        for i in range(0, len(texts), CHUNK):
            chunk = [texts[j] for j in range(i, min(i + CHUNK, len(texts)))]
            yield [encoding.ids for encoding in encode(chunk, add_special_tokens=False)]

    def encode_with_places(self, texts: Sequence[Any] | np.ndarray) -> Iterator[list[tuple[list[int], list[tuple[int, int]]]]]:
        backend = reader_of(self.tokenizer)
        for i in range(0, len(texts), CHUNK):
            chunk = [texts[j] for j in range(i, min(i + CHUNK, len(texts)))]
            yield [(found.ids, found.offsets) for found in backend.encode_batch(chunk, add_special_tokens=False)]


def _whole_characters(places: Sequence[tuple[int, int]], text: str) -> np.ndarray:
    """Places of tokens, int32 [n, 2], without the space before a word, which some tokenizers count as the word's, and with the marks on
    its last letter (accents, vowel signs), which others leave out and no token has."""
    found = []
    for i, (start, end) in enumerate(places):
        following = places[i + 1][0] if i + 1 < len(places) else len(text)
        inside = text[start:end]
        if inside[:1].isspace():
            start += len(inside) - len(inside.lstrip())
        while end < following and unicodedata.category(text[end])[0] == "M":
            end += 1
        found.append((start, end))
    return np.array(found, np.int32).reshape(-1, 2)


def _with_nothing(
    encode: Callable[..., Iterator[list[list[int]]]], texts: Sequence[Any]
) -> Iterator[list[tuple[list[int], list[int] | None]]]:
    """What `encode` gives, as `encode_spelled` does, without subwords."""
    for chunk in encode(texts):
        yield [(ids, None) for ids in chunk]


def content_of(source: Source) -> list[Any]:
    """What the rows of a split depend on: the content, and how much of train is held out."""
    return [source.fingerprint(), source.val_fraction, source.test_fraction]


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder as its tokenizer.json says, whatever class wrote it: no code of a model is run."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)


def training_texts(source: Source, characters: int) -> list[str]:
    """A source's unlabeled (or training) texts, or of very much text a seeded random choice of about so many `characters`."""
    if text_shards.are_many(source, "unlabeled"):
        return some_of_stream(source.stream("unlabeled", []), source.text_bytes("unlabeled") or 1, characters)
    return some_texts(source.get("unlabeled").items, characters)


def some_texts(texts: Sequence[Any] | np.ndarray, characters: int) -> list[str]:
    """The texts, or a seeded random choice of about `characters` in all, in their order."""
    sizes = np.array([len(text) for text in texts])
    if sizes.sum() <= characters:
        return list(texts)
    order = np.random.default_rng(0).permutation(len(texts))
    count = max(1, int(np.searchsorted(np.cumsum(sizes[order]), characters)))
    return [texts[i] for i in np.sort(order[:count])]


def some_of_stream(texts: Iterable[str], about: int, characters: int) -> list[str]:
    """A seeded random choice of about `characters` in all, in their order, of texts that come to about so many bytes.

    Where they come to more, some of what was taken goes again, so that at most twice as many characters are held.
    """
    rng, share = np.random.default_rng(0), min(1.0, characters / about)
    taken: list[str] = []
    held = 0
    for text in texts:
        if rng.random() >= share:
            continue
        taken.append(text)
        held += len(text)
        if held > 2 * characters:
            taken = [text for text, stays in zip(taken, rng.random(len(taken)) < 0.5, strict=True) if stays]
            held, share = sum(map(len, taken)), share / 2
    return taken


def _raw_to_npy(raw: Path, npy: Path, count: int) -> None:
    """Put the header of an int32 array before numbers that were written as they came."""
    with npy.open("wb") as f, raw.open("rb") as numbers:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.int32)), "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(f, header)
        shutil.copyfileobj(numbers, f, 1 << 20)
    raw.unlink()


@contextlib.contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, from the second second on; gives the function to report finished items to."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        progress = Progress(console=Console(stderr=True), transient=True)
        task = progress.add_task(what, total=total)

        def done(count: int) -> None:
            progress.advance(task, count)
            if not progress.live.is_started and time.monotonic() - started > 1:
                stack.enter_context(progress)

        yield done
