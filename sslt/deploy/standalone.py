"""Answers of an exported model: python predict.py FILE_OR_FOLDER. Needs onnxruntime, numpy, pillow for pictures, tokenizers for texts.

--column=NAME says which column of a table is the text, once for each part where a sample has several; else it is the one that the model
was trained with, or one of the usual names. --maps=FOLDER says where a model that has a class for every pixel writes them, as pictures.

Reads the folder that it lies in: export.json says what the graph takes and what its numbers mean. Copy what you need of it: `Pictures`,
`Texts` and `Words` make inputs, `Lexicon` adds the scores of words, `answers` reads the outputs, located.py those that have a place.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import sys
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

AT_ONCE = 1 << 16  # words of a bag that are looked up together
NARROWEST = 32  # how many times its shorter side the longer side of a picture counts
BUCKETS = 1 << 24
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm"}
UNREAD = {".tsv", ".json", ".parquet", ".gz", ".xz"}  # whose lines are no texts
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
LETTERS = rf"[^\W_{UNSPACED}]+"
WORD = re.compile(rf"[{UNSPACED}]|{LETTERS}(?:['’]{LETTERS})*|[!?]")


class Model:
    """The graph in a folder, with what stands beside it. session: of ONNX Runtime; None: one on the CPU."""

    def __init__(self, folder: Path, session: Any = None, threads: int | None = None):
        self.folder = Path(folder)
        self.about = json.loads((self.folder / "export.json").read_text(encoding="utf-8"))
        if session is None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            if threads is not None:
                options.intra_op_num_threads = threads
            session = onnxruntime.InferenceSession(str(self.folder / self.about["file"]), options, providers=["CPUExecutionProvider"])
        self.session = session
        self.lexicon = Lexicon(self.folder, self.about["lexicon"]) if self.about["lexicon"] else None

    def outputs(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the graph gives, by name, [B, ...], with the scores of words added to its logits."""
        names, n = [x["name"] for x in self.about["outputs"]], len(next(iter(inputs.values())))
        given = {name: x for name, x in inputs.items() if name != "subwords"}  # which are for words outside the graph
        if self.about["samples"]["kind"] == "words":  # a vector for each word of each text
            widest = max(x.shape[1] for x in given.values())
            step = max(1, AT_ONCE // max(widest, 1))
        else:
            step = max(n, 1)
        parts = [self.session.run(names, {k: x[i : i + step] for k, x in given.items()}) for i in range(0, max(n, 1), step)]
        found = {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}
        if self.lexicon is not None:
            found["logits"] = found["logits"] + self.lexicon.scores(inputs)
        return found

    def rows(self, items: list[Any], batch_size: int = 32, maps: Path | None = None, first: int = 0) -> list[dict[str, Any]]:
        """What is answered to pictures (files, or uint8 [H, W, C] each) or texts (of several parts tuples), a row each.

        maps: a folder for those of pixels, whose names begin with the number `first`.
        """
        reader, found = READERS[self.about["samples"]["kind"]](self.folder, self.about["samples"]), []
        kind = self.about["answers"]["kind"]
        rows: Callable[..., list[dict[str, Any]]] = self._spans if kind == "tags" else self._maps if kind == "map" else self._plain
        for i in range(0, len(items), batch_size):
            found += rows(reader, items[i : i + batch_size], first + i, maps)
        return found

    def _plain(self, reader: Any, items: list[Any], *_: Any) -> list[dict[str, Any]]:
        return answers(self.about["answers"], self.outputs(reader.together([reader.one(item) for item in items])))

    def _spans(self, reader: Texts, items: list[str], *_: Any) -> list[dict[str, Any]]:
        located = beside("located")
        spans, inputs = located.Spans(self.folder, self.about["answers"]), reader.together([reader.one(item) for item in items])
        first, found, rows = int(self.about["samples"]["cls"] is not None), self.outputs(inputs)["tags"], []
        for text, tags, ids in zip(items, found, inputs["input_ids"], strict=True):
            places = located.whole_characters(reader.tokenizer.encode(text, add_special_tokens=False).offsets, text)
            own = slice(first, first + min(len(places), self.about["samples"]["max_length"] - first - 1))
            rows.append(spans.row(text, tags[own], places[: own.stop - first], ids[own]))
        return rows

    def _maps(self, reader: Pictures, items: list[Any], done: int, folder: Path | None) -> list[dict[str, Any]]:
        maps = beside("located").Maps(self.about["answers"], folder)
        pictures = [reader.pixels(item) for item in items]
        scores = self.outputs(reader.together([reader.one(x) for x in pictures]))["scores"]
        sides = [np.array(x.shape[:2]) for x in pictures]
        return [maps.row(done + i, s, n, reader.seen(n)) for i, (s, n) in enumerate(zip(scores, sides, strict=True))]


def beside(name: str) -> Any:
    """The module in the file NAME.py that lies in the folder of this one."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------- pictures
class Pictures:
    """Pictures of any size → `image` uint8 [B, S, S, C]: resized as in training (bilinear, antialiased, on bytes), and nothing else."""

    def __init__(self, folder: Path, about: dict[str, Any]):
        self.size, self.channels, self.fit = about["size"], about["channels"], about["fit"]

    def one(self, item: Any) -> np.ndarray:
        """A file, or pixels uint8 [H, W, C] of 1 or 3 channels."""
        x = self.pixels(item)
        if x.shape[2] == 3 and self.channels == 1:  # grey by ITU-R 601
            x = ((x.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32) + 32768) >> 16).astype(np.uint8)[..., None]
        first, kept, scaled, start = self.laid(np.array(x.shape[:2]))
        x = x[first[0] : first[0] + kept[0], first[1] : first[1] + kept[1]]
        x = resized(resized(x, int(scaled[1]), 1), int(scaled[0]), 0)
        end = scaled - start
        around = [(max(-int(s), 0), max(self.size - int(e), 0)) for s, e in zip(start, end, strict=True)]
        x = np.pad(x[max(start[0], 0) :, max(start[1], 0) :], (*around, (0, 0)))[: self.size, : self.size]
        return np.repeat(x, self.channels // x.shape[2], axis=2)

    def pixels(self, item: Any) -> np.ndarray:
        return item if isinstance(item, np.ndarray) else read(Path(item))

    def seen(self, sides: np.ndarray) -> np.ndarray:
        """Of a picture of (height, width) the top, bottom, left and right edge of what the model sees, as shares."""
        first, kept, scaled, start = self.laid(sides)
        edges = np.stack([start, start + self.size], 1) * (kept / scaled)[:, None] + first[:, None]
        return (edges / sides[:, None]).ravel()

    def laid(self, sides: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of (height, width) how much is kept and from where on, to what it is scaled, and from where on that is taken."""
        kept = np.minimum(sides, NARROWEST * sides.min()) if self.fit == "crop" else sides
        if self.fit == "stretch":
            scaled = np.full(2, self.size)
        else:
            of = kept.min() if self.fit == "crop" else kept.max()
            scaled = np.maximum(np.rint(kept * self.size / of).astype(np.int64), self.size if self.fit == "crop" else 1)
        start = np.where(scaled >= self.size, (scaled - self.size) // 2, -((self.size - scaled) // 2))
        return (sides - kept) // 2, kept, scaled, start

    def together(self, made: list[np.ndarray]) -> dict[str, np.ndarray]:
        return {"image": np.ascontiguousarray(np.stack(made))}


def resized(x: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Bytes [H, W, C] brought to `size` along an axis: bilinear, antialiased, with 16-bit weights as torch has them (Pillow's have 32)."""
    n = x.shape[axis]
    if n == size:
        return x
    scale = n / size
    support, weights = max(scale, 1.0), np.zeros((size, n))
    for i in range(size):
        centre = scale * (i + 0.5)
        first, last = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), n)
        own = np.maximum(1 - np.abs((np.arange(first, last) - centre + 0.5) * (1 / support)), 0)
        weights[i, first:last] = own / own.sum()
    bits = next(b for b in range(23) if b == 22 or int(0.5 + weights.max() * (1 << (b + 1))) >= 1 << 15)
    summed = np.moveaxis(np.tensordot(np.floor(weights * (1 << bits) + 0.5), x.astype(np.float64), (1, axis)), 0, axis)
    return np.clip((summed.astype(np.int64) + (1 << (bits - 1))) >> bits, 0, 255).astype(np.uint8)


def read(file: Path) -> np.ndarray:
    """The picture in a file. Raises ValueError, which names it, for one that cannot be read."""
    try:
        return decoded(file)
    except ImportError:
        raise
    except Exception as e:  # Pillow raises whatever a broken file makes it stumble over
        raise ValueError(f"{file} is no picture that can be read ({type(e).__name__}: {e})") from e


def decoded(file: Path) -> np.ndarray:
    """A picture as uint8 [H, W, C], upright by its EXIF tag, on white where it is transparent."""
    from PIL import Image, ImageOps

    with Image.open(file) as image:
        image.load()
        turned = "exif" in image.info or image.format in ("TIFF", "PNG")
        image = ImageOps.exif_transpose(image) if turned else image
        if image.mode.startswith("I"):
            deep = np.asarray(image).astype(np.int64)[..., None]
            return (deep if deep.max() <= 255 else np.clip(deep, 0, 65535) // 257).astype(np.uint8)
        if image.mode == "F":  # of 0..1 or 0..255
            light = np.asarray(image)[..., None]
            if not (light.min() >= 0 and light.max() <= 255):
                raise ValueError(f"values from {light.min():g} to {light.max():g}, not in 0..255 or 0..1")
            return np.rint(light * (255.0 if light.max() <= 1 else 1.0)).astype(np.uint8)
        if image.has_transparency_data:
            rgba = np.asarray(image.convert("RGBA"))
            alpha = rgba[..., 3:].astype(np.uint16)
            flat = ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
            return flat[..., :1] if image.mode in ("L", "LA", "La") else flat
        if image.mode in ("1", "L"):
            return np.array(image.convert("L"))[..., None]
        return np.array(image.convert("RGB"))


# ---------------------------------------------------------------- texts
class Texts:
    """Texts → `input_ids`, `attention_mask` (and `token_type_ids`) int64 [B, L]: marks around, cut to `max_length`, padded behind."""

    def __init__(self, folder: Path, about: dict[str, Any]):
        from tokenizers import Tokenizer

        self.about, self.tokenizer = about, Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        # of one that can be undone the name of a mark in a text is text
        self.tokenizer.encode_special_tokens = type(self.tokenizer.model).__name__ not in ("WordPiece", "WordLevel")

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def one(self, item: Any) -> list[tuple[list[int], list[int]]]:
        """Ids and segments of one row; of parts that are read by themselves one row each."""
        a = self.about
        texts = [item] if isinstance(item, str) else list(item)
        if len(texts) != max(len(a["parts"]), 1):
            raise ValueError(f"a sample has the texts {a['parts'] or ['text']}, and this one {len(texts)} of them")
        rows = [texts] if not a["apart"] else [[text] for text in texts]
        return [self.row([self.ids(text) for text in row]) for row in rows]

    def row(self, parts: list[list[int]]) -> tuple[list[int], list[int]]:
        """[CLS] a [SEP] b [SEP]; where that does not fit the longest part is cut first."""
        a = self.about
        before, between = [] if a["cls"] is None else [a["cls"]], a["marks_between"]
        room = a["max_length"] - len(before) - 1 - between * (len(parts) - 1)
        parts = [part[: a["max_length"] - len(before) - 1] for part in parts]
        ids, segments = list(before), [0] * len(before)
        for i, (part, kept) in enumerate(zip(parts, shares([len(p) for p in parts], room), strict=True)):
            marks = [a["sep"]] * (1 if i == len(parts) - 1 else between)
            ids += part[:kept] + marks
            segments += [i] * (kept + len(marks))
        return ids, segments

    def together(self, made: list[list[tuple[list[int], list[int]]]]) -> dict[str, np.ndarray]:
        found = {}
        for i, part in enumerate(self.about["parts"] if self.about["apart"] else [""]):
            rows, before = [row[i] for row in made], f"{part}_" if part else ""
            width = max(-(-max(len(ids) for ids, _ in rows) // 8) * 8, 1)
            width = min(width, self.about["max_length"])
            found[f"{before}input_ids"] = np.array([ids + [self.about["pad"]] * (width - len(ids)) for ids, _ in rows], np.int64)
            found[f"{before}attention_mask"] = np.array([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows], np.int64)
            if self.about["segments"]:
                found[f"{before}token_type_ids"] = np.array([s + [0] * (width - len(s)) for _, s in rows], np.int64)
        return found


def shares(sizes: list[int], room: int) -> list[int]:
    """How many tokens each part keeps of a row with so much room: those that are cut keep equally many, the longest what is left over."""
    level = room // len(sizes)
    for _ in sizes:
        short = [n for n in sizes if n <= level]
        if len(short) < len(sizes):
            level = max(level, (room - sum(short)) // (len(sizes) - len(short)))
    kept = [min(n, level) for n in sizes]
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], -i))[: max(room - sum(kept), 0)]:
        kept[i] += sizes[i] > kept[i]
    return kept


class Words:
    """Texts → `words` int64 [B, T], the ids of a bag of words, padded by 0; parts that are read together with a hole between them.

    Where words are spelled, also `subwords` int64 [B, S] of those outside the vocabulary, padded by -1: for `Lexicon`, not for the graph.
    """

    def __init__(self, folder: Path, about: dict[str, Any]):
        self.about = about
        documents = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))["documents"]
        self.known = {word: i for i, word in enumerate(documents, 1)}

    def words(self, text: str) -> list[str]:
        return WORD.findall((text if text.isascii() else unicodedata.normalize("NFKC", text)).lower())

    def ids(self, words: list[str]) -> list[int]:
        first, unknown = 1 + len(self.known), self.about["unknown"]
        found = [self.known.get(w) or first + zlib.crc32(w.encode("utf-8", "surrogatepass")) % unknown for w in words]
        return found[: self.about["max_length"]]

    def one(self, item: Any) -> tuple[list[list[int]], list[int]]:
        """Ids of one row, of parts that are read by themselves one row each; and the subwords of all."""
        texts = [self.words(text) for text in ([item] if isinstance(item, str) else item)]
        rows = [self.ids(words) for words in texts]
        rows = rows if self.about["apart"] or len(rows) == 1 else [[i for row in rows for i in (*row, 0)]]
        spelled = self.about.get("spelled")
        return rows, [s for words in texts for w in words if w not in self.known for s in subwords_of(w)] if spelled else []

    def together(self, made: list[tuple[list[list[int]], list[int]]]) -> dict[str, np.ndarray]:
        found = {}
        for i, part in enumerate(self.about["parts"] if self.about["apart"] else [""]):
            found[f"{part}_words" if part else "words"] = padded([rows[i] for rows, _ in made], 0)
        return {**found, "subwords": padded([subwords for _, subwords in made], -1)} if self.about.get("spelled") else found


def subwords_of(word: str) -> list[int]:
    """The parts of <word> of 3 and 4 letters, each once, hashed."""
    whole = f"<{word}>"
    spans = {whole[i : i + n] for n in (3, 4) for i in range(len(whole) - n + 1)}
    return sorted(zlib.crc32(span.encode("utf-8", "surrogatepass")) % BUCKETS for span in spans)


def padded(rows: list[list[int]], fill: int) -> np.ndarray:
    """Rows [B, M] of one length, which is 1 at least."""
    width = max(max(map(len, rows)), 1)
    return np.array([row + [fill] * (width - len(row)) for row in rows], np.int64)


READERS: dict[str, Any] = {"image": Pictures, "tokens": Texts, "words": Words}


class Lexicon:
    """TF-IDF of the words of a text, pairs of neighbours and a third kind of term, times a table (late fusion): the scores of classes."""

    def __init__(self, folder: Path, about: dict[str, Any]):
        self.about, self.arrays = about, dict(np.load(folder / about["file"], allow_pickle=False))

    def scores(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """[B, C] of what the graph takes."""
        if "words" in inputs:
            return self.of_words(inputs["words"], inputs.get("subwords"))
        tokens = inputs["input_ids"]
        return self.of_words((tokens + 1) * (~np.isin(tokens, self.about["special"]) & (inputs["attention_mask"] > 0)))

    def of_words(self, tokens: np.ndarray, subwords: np.ndarray | None = None) -> np.ndarray:
        """[B, C] of ids of words [B, T], 0 where none stands, and of the parts of unknown ones [B, S], -1 where none stands."""
        a, n, words = self.arrays, len(tokens), self.about["words"]
        out = np.repeat(a["bias"][None], n, 0)
        text, term, count = self.counts(tokens, subwords)
        place = np.searchsorted(a["terms"], term).clip(max=max(len(a["terms"]) - 1, 0))
        known = a["terms"][place] == term if len(a["terms"]) else np.zeros(len(term), bool)
        text, term, count = text[known], place[known], count[known]
        weight = (1 + np.log(count.astype(np.float32))) * a["idf"][term]
        kind = text * 2 + ((a["terms"][term] >= words + BUCKETS) & (self.about["third"] in ("spelled", "parts")))
        squares = np.bincount(kind, weight.astype(np.float64) ** 2, 2 * n)
        weight = weight / np.sqrt(squares)[kind].astype(np.float32)
        np.add.at(out, text, a["table"][term] * weight[:, None])
        return out

    def counts(self, tokens: np.ndarray, subwords: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Texts and terms, in order, and how often each text has each."""
        words, seen = self.about["words"], tokens > 0
        rows = np.broadcast_to(np.arange(len(tokens))[:, None], tokens.shape)
        ids, texts = [tokens[seen]], [rows[seen]]
        both = seen[:, 1:] & seen[:, :-1]
        ids.append(words + hashed(tokens[:, :-1][both], tokens[:, 1:][both], BUCKETS))
        texts.append(rows[:, 1:][both])
        if self.about["third"] == "triples":
            three = both[:, 1:] & both[:, :-1]
            first = hashed(tokens[:, :-2][three], tokens[:, 1:-1][three], 1 << 31)
            ids.append(words + BUCKETS + hashed(first, tokens[:, 2:][three], BUCKETS))
            texts.append(rows[:, 2:][three])
        elif self.about["third"] in ("spelled", "parts"):
            starts = self.arrays["starts"][ids[0]]
            sizes = self.arrays["starts"][ids[0] + 1] - starts
            within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            ids.append(words + BUCKETS + self.arrays["parts"][np.repeat(starts, sizes) + within])
            texts.append(np.repeat(texts[0], sizes))
            if subwords is not None and self.about["third"] == "spelled":
                ids.append(words + BUCKETS + subwords[subwords >= 0])
                texts.append(np.nonzero(subwords >= 0)[0])
        room = words + 2 * BUCKETS
        key, count = np.unique(np.concatenate(texts) * room + np.concatenate(ids), return_counts=True)
        return key // room, key % room, count


def hashed(first: np.ndarray, second: np.ndarray, rows: int) -> np.ndarray:
    """A row 0 … rows - 1 for each pair of ids."""
    a, b = first.astype(np.uint64), second.astype(np.uint64)
    h = (a * np.uint64(0x9E3779B1) + b * np.uint64(0x85EBCA77)) & np.uint64(0xFFFFFFFF)
    h = ((h ^ (h >> np.uint64(16))) * np.uint64(0x45D9F3B)) & np.uint64(0xFFFFFFFF)
    return ((h ^ (h >> np.uint64(15))) % np.uint64(rows)).astype(np.int64)


# ---------------------------------------------------------------- answers
def answers(about: dict[str, Any], outputs: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """A row for each sample: `prediction`, and scores where there are some."""
    kind = about["kind"]
    if kind == "features":
        return [{"features": x} for x in outputs["features"].astype(float).tolist()]
    if kind == "number":
        return [{"prediction": float(f"{x * about['std'] + about['mean']:.7g}")} for x in outputs["number"].astype(float).tolist()]
    if kind == "cosine":
        low, high = about["low"], about["high"]
        return [{"prediction": round(low + x * (high - low), 4)} for x in outputs["cosine"].astype(float).tolist()]
    names, logits = about["classes"], outputs["logits"].astype(float)
    found: list[dict[str, Any]]
    if kind == "labels":
        shares_of = 1 / (1 + np.exp(-logits))
        found = [
            {"prediction": [n for n, there in zip(names, row, strict=True) if there]} for row in logits > np.array(about["thresholds"])
        ]
    elif kind == "class":
        shares_of = np.exp(logits - logits.max(1, keepdims=True))
        shares_of /= shares_of.sum(1, keepdims=True)
        found = [{"prediction": names[i], "score": round(float(p.max()), 4)} for i, p in zip(logits.argmax(1), shares_of, strict=True)]
    else:
        raise ValueError(f"answers of kind '{kind}' are read by sslt alone: sslt predict from=THE_EXPORTED_RUN input=…")
    if len(names) <= 20:
        for row, each in zip(found, shares_of.tolist(), strict=True):
            row["scores"] = {c: round(p, 4) for c, p in zip(names, each, strict=True)}
    return found


def items_of(path: Path, about: dict[str, Any], columns: dict[str, Any]) -> tuple[list[Any], list[str] | None]:
    """What a file or folder holds, and names of it: pictures; a text a line; .jsonl or .csv with columns as of `chosen`."""
    if not path.exists():
        raise ValueError(f"{path}: there is no such file or folder")
    if about["kind"] == "image":
        found = (p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        seen = (p for p in found if not any(part.startswith(".") for part in p.relative_to(path).parts))  # hidden ones are none
        files = sorted(seen) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"{path}: there is no picture in this folder ({' '.join(sorted(SUFFIXES))})")
        return list(files), [str(p.relative_to(path)) if path.is_dir() else p.name for p in files]
    if path.is_dir() or path.suffix.lower() in UNREAD:
        raise ValueError(f"{path}: give a file with a text a line, or .csv or .jsonl; `sslt predict` reads more")
    try:
        items = texts_of(path, max(len(about["parts"]), 1), {"usual": [about["parts"] or ["text"]], **columns})
    except (UnicodeDecodeError, csv.Error) as e:
        raise ValueError(f"{path}: {e}") from e
    if not items:
        raise ValueError(f"{path}: there is no text in this file")
    return items, None


def texts_of(path: Path, parts: int, known: dict[str, Any]) -> list[Any]:
    """The texts of a file, of several columns tuples."""
    if path.suffix.lower() not in (".csv", ".jsonl"):
        with path.open(newline="\n", encoding="utf-8-sig") as f:  # other signs for an end of line stand inside texts
            lines = [line.rstrip("\r\n") for line in f]
        return lines if parts == 1 else [tuple(line.split("\t")) for line in lines]
    with path.open(newline="", encoding="utf-8-sig") as f:  # a byte order mark is no part of the first name
        rows = csv.DictReader(f) if path.suffix.lower() == ".csv" else objects(path, f)
        found, columns = [], None
        for i, row in enumerate(rows, 1):
            columns = columns or chosen(path, [str(name) for name in row if name is not None], known)
            texts = tuple(row.get(c) for c in columns)
            for c, text in zip(columns, texts, strict=True):
                if not isinstance(text, str):
                    there = ", ".join(str(name) for name in row if name is not None)
                    raise ValueError(f"{path}: row {i} has no text in the column `{c}`; its columns: {there}")
            found.append(texts[0] if len(columns) == 1 else texts)
    return found


def chosen(path: Path, there: list[str], known: dict[str, Any]) -> list[str]:
    """Which columns of `there` are the texts: those that were asked for or trained with (`own`), or else some of the usual names, whatever
    their case, or the only one that is no label. Raises ValueError where none is."""
    if own := known.get("own"):
        if missing := [c for c in own if c not in there]:
            raise ValueError(f"{path}: there is no column `{missing[0]}`; its columns: {', '.join(there)}; say --column=NAME")
        return list(own)
    by_lower = {c.lower(): c for c in reversed(there)}
    for names in known["usual"]:
        if all(name in by_lower for name in names):
            return [by_lower[name] for name in names]
    label = next((by_lower[name] for name in known.get("labels", ()) if name in by_lower), None)
    rest = [c for c in there if c != label]
    if len(rest) != 1 or len(known["usual"][0]) != 1:
        raise ValueError(f"{path}: which column is the text? Its columns: {', '.join(there)}; say --column=NAME")
    return rest


def objects(path: Path, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """A JSON object a line."""
    for i, line in enumerate(lines, 1):
        if line.strip():
            try:
                found = json.loads(line)
            except ValueError as e:
                raise ValueError(f"{path}, line {i}: {e}") from e
            if not isinstance(found, dict):
                raise ValueError(f"{path}, line {i}: this is no JSON object")
            yield found


def main(arguments: list[str]) -> int:
    own, folders = ([a.partition("=")[2] for a in arguments if a.startswith(f"--{name}=")] for name in ("column", "maps"))
    files = [a for a in arguments if not a.startswith(("--column=", "--maps="))]
    if not files or files[0].startswith("-"):
        asked = files[:1] in (["-h"], ["--help"])
        print(__doc__, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    try:
        model = Model(Path(__file__).resolve().parent)
        samples, columns = model.about["samples"], model.about.get("columns", {})
        if own and len(own) != max(len(samples.get("parts", ())), 1):
            raise ValueError(f"--column: a sample has {max(len(samples.get('parts', ())), 1)} texts, and so many columns, not {len(own)}")
        if folders and model.about["answers"]["kind"] != "map":
            raise ValueError("--maps: this model has no class for every pixel")
        maps, done = Path(folders[-1]) if folders else None, 0
        if maps is not None and maps.is_dir() and any(maps.iterdir()):
            raise ValueError(f"--maps={maps}: there are files in this folder already; name another")
        for argument in files:
            items, names = items_of(Path(argument), samples, {**columns, **({"own": own} if own else {})})
            rows, done = model.rows(items, maps=maps, first=done), done + len(items)
            for i, row in enumerate(rows):
                print(json.dumps({"row": i, **({"name": names[i]} if names else {}), **row}, ensure_ascii=False))
    except ImportError as e:
        print(f"{e}: pip install {'pillow' if e.name == 'PIL' else e.name}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError) as e:
        print(e, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
