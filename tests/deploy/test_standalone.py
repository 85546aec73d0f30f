"""Protects the script beside an exported graph: it makes the inputs that the run's processor makes, and its words score as the run's."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from sslt.data.answers import Class, Labels, Number
from sslt.data.prepare.bag_processor import BagProcessor
from sslt.data.prepare.image_processor import resize
from sslt.data.prepare.parts import one_row
from sslt.data.prepare.reversible import train_reversible
from sslt.data.prepare.text_processor import TextProcessor, _whole_characters
from sslt.data.prepare.text_samples import TextSamples
from sslt.data.prepare.tokenizers import train_tokenizer
from sslt.data.sources.image_files import decode
from sslt.deploy import standalone
from sslt.encoders.lexicon import NONE, SPELLED, TRIPLES, Lexicon, hashed_pairs, parts_of

TEXTS = ["", "Ada went to Rome!", "ﬁne don't 北京 x" * 9, "w " * 40, "the lake and the lake and the lake", "\ud800 broken"]


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_pictures_are_resized_as_in_training(fit):
    """Bit for bit, up and down, colours and grey, from one pixel to a strip of which most is cut away."""
    rng = np.random.default_rng(0)
    for shape in [(8, 8, 3), (13, 29, 3), (29, 13, 1), (64, 64, 3), (1, 1, 1), (3, 200, 3), (200, 2, 1), (8, 9, 3), (7, 7, 1)]:
        image = rng.integers(0, 256, shape, dtype=np.uint8)
        for size, channels in ((8, 3), (8, 1), (17, 3)):
            ours = standalone.Pictures(None, {"size": size, "channels": channels, "fit": fit}).one(image)
            assert np.array_equal(ours, resize(image[None], size, channels, fit)[0]), (shape, size, channels)


def test_picture_files_are_decoded_as_in_training(tmp_path):
    """Palettes, transparency, 16 bits, grey and a turned photograph."""
    rng = np.random.default_rng(1)
    rgba = Image.fromarray(rng.integers(0, 256, (6, 9, 4), dtype=np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    made = {
        "rgba.png": (rgba, {}), "la.png": (rgba.convert("LA"), {}), "palette.png": (rgba.convert("RGB").quantize(8), {}),
        "grey.bmp": (rgba.convert("L"), {}), "bits.png": (rgba.convert("1"), {}), "photo.jpg": (rgba.convert("RGB"), {"exif": turned}),
        "deep.png": (Image.fromarray(rng.integers(0, 65536, (6, 9), dtype=np.uint16)), {}),
        "share.tif": (Image.fromarray(rng.random((6, 9), dtype=np.float32)), {}),
        "float.tif": (Image.fromarray(255 * rng.random((6, 9), dtype=np.float32)), {}),
    }  # fmt: skip
    for name, (image, more) in made.items():
        image.save(tmp_path / name, **more)
        assert np.array_equal(standalone.decoded(tmp_path / name), decode(tmp_path / name, name)), name


def test_hidden_files_are_no_pictures(tmp_path):
    """A Mac writes ._NAME beside each."""
    for name in ("a.png", "._a.png", ".thumbs/b.png", "c/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert standalone.items_of(tmp_path, {"kind": "image"}, {})[1] == ["a.png", "c/d.png"]


@pytest.mark.parametrize(
    ("name", "content", "parts", "wanted"),
    [
        ("lines.txt", "\ufeffone\n\ntwo\n", [], ["one", "", "two"]),
        ("odd.txt", "one\u2028\x0cone\r\ntwo", [], ["one\u2028\x0cone", "two"]),
        ("table.CSV", '\ufefftext,n\r\n"a\nb",1\r\n,2\r\n', [], ["a\nb", ""]),
        ("pairs.csv", "b,a\nx,y\n", ["a", "b"], [("y", "x")]),
        ("rows.jsonl", '{"text": "a\u2028b"}\n\n{"text": "c"}\n', [], ["a\u2028b", "c"]),
    ],
)
def test_files_of_texts_are_read(tmp_path, name, content, parts, wanted):
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert standalone.items_of(tmp_path / name, {"kind": "words", "parts": parts}, {}) == (wanted, None)


@pytest.mark.parametrize(
    ("header", "named", "asked"),
    [
        ("text,n", {}, []), ("n,Review,label", {}, []), ("label,anything", {}, []), ("anything", {}, []), ("title,body", {}, []),
        ("x,story,text", {"text": "story"}, []), ("x,story,text", {"text": "story"}, ["x"]), ("x,y", {}, []),
        ("x,Text", {"text": "gone"}, []),
    ],
)  # fmt: skip
def test_columns_are_those_of_predict(header, named, asked, tmp_path):
    """The one that was asked for, or that the run was made with, or a usual name, or the only one: as `sslt predict` finds it."""
    from sslt.data.sources import tables
    from sslt.deploy.description import columns
    from sslt.errors import UserError

    names = header.split(",")
    (tmp_path / "t.csv").write_text(f"{header}\n{','.join(f'of {n}' for n in names)}\n")
    known = columns(named, []) | ({"own": asked} if asked else {})
    about = {"kind": "words", "parts": []}
    try:
        given = asked[0] if asked else named.get("text")
        text, _ = tables.choose_columns(tables.open_table(tmp_path / "t.csv", None, True), given, "")
    except UserError:
        with pytest.raises(ValueError, match=r"--column=NAME"):
            standalone.items_of(tmp_path / "t.csv", about, known)
        return
    assert standalone.items_of(tmp_path / "t.csv", about, known) == ([f"of {text}"], None)


def test_columns_of_pairs(tmp_path):
    """By the usual names of two, whatever their case, or those that were named."""
    from sslt.deploy.description import columns

    (tmp_path / "t.csv").write_text("Premise,hypothesis,b,a\n1,2,3,4\n")
    about = {"kind": "words", "parts": ["a", "b"]}
    for named, wanted in (({}, ("1", "2")), ({"a": "b", "b": "a"}, ("3", "4"))):
        assert standalone.items_of(tmp_path / "t.csv", about, columns(named, ["a", "b"])) == ([wanted], None)


@pytest.mark.parametrize(
    ("kind", "name", "content", "said"),
    [
        ("words", "nowhere.txt", None, "there is no such file or folder"),
        ("words", "empty.txt", b"", "there is no text in this file"),
        ("words", "latin.txt", b"\xe9t\xe9", "codec can't decode"),
        ("words", "table.tsv", b"text\nx\n", "`sslt predict` reads more"),
        ("words", "table.csv", b"body,team\nx,a\n", "no column `text`; its columns: body, team; say --column=NAME"),
        ("words", "short.csv", b"team,text\na,x\nb\n", "row 2 has no text in the column `text`"),
        ("words", "rows.jsonl", b'{"text": "a"}\n{"text": 1}\n', "row 2 has no text in the column `text`"),
        ("words", "broken.jsonl", b'{"text": "a"}\n{', "broken.jsonl, line 2: "),
        ("words", "list.jsonl", b"[1]\n", "line 1: this is no JSON object"),
        ("image", "photos", None, "there is no such file or folder"),
        ("image", ".", None, "there is no picture in this folder"),
        ("image", "broken.png", b"\x89PNG\r\n\x1a\nxxxx", "broken.png is no picture that can be read"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_line(tmp_path, monkeypatch, capsys, kind, name, content, said):
    """By the program, which ends by 1 and has no traceback."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    about = {"kind": kind, "parts": [], "size": 8, "channels": 3, "fit": "crop", "unknown": 7, "max_length": 6}
    (tmp_path / "vocabulary.json").write_text('{"documents": {}}')

    class Model(standalone.Model):
        def __init__(self, folder):
            self.folder, self.about = tmp_path, {"samples": about, "answers": {"kind": "class"}, "columns": {"own": ["text"]}}

    monkeypatch.setattr(standalone, "Model", Model)
    assert standalone.main([str(tmp_path / name)]) == 1
    told = capsys.readouterr()
    assert said in told.err and told.err.count("\n") == 1 and not told.out


def test_help_is_no_mistake(capsys):
    assert standalone.main(["--help"]) == 0 and "python predict.py" in capsys.readouterr().out
    assert standalone.main([]) == 2 and "python predict.py" in capsys.readouterr().err


def test_words_are_those_of_the_bag(tmp_path):
    processor = BagProcessor({"ada": 2, "the": 9, "don't": 1, "京": 1}, 12, 7, 6)
    processor.save(tmp_path)
    reader = standalone.Words(tmp_path, {"unknown": 7, "max_length": 6, "parts": [], "apart": False})
    assert [reader.ids(reader.words(text)) for text in TEXTS] == [ids[:6] for ids in next(processor.encode(TEXTS))]
    made = reader.together([reader.one(text) for text in TEXTS])
    assert made.keys() == {"words"} and made["words"].shape == (len(TEXTS), 6) and not made["words"][0].any()


def test_unknown_words_are_spelled_as_in_the_bag(tmp_path):
    """Also those of parts that are read together."""
    processor = BagProcessor({"ada": 2, "the": 9, "don't": 1, "京": 1}, 12, 7, 6)
    processor.save(tmp_path)
    reader = standalone.Words(tmp_path, {"unknown": 7, "max_length": 6, "parts": [], "apart": False, "spelled": True})
    wanted = [subwords for _, subwords in next(processor.encode_spelled(TEXTS))]
    made = reader.together([reader.one(text) for text in TEXTS])["subwords"]
    assert [row[row >= 0].tolist() for row in made] == wanted and not wanted[0] and all(wanted[1:])
    assert reader.one((TEXTS[1], TEXTS[4]))[1] == wanted[1] + wanted[4]


@pytest.fixture(scope="module")
def processor() -> TextProcessor:
    return TextProcessor(train_tokenizer(["ada went to rome and saw the lake"] * 5, 60, True), 12)


def tokens_of(processor: TextProcessor, texts: list[str]) -> dict[str, torch.Tensor]:
    ids = next(processor.encode(texts))
    sizes = np.array([len(row) for row in ids])
    samples = TextSamples(
        tokens=np.array([i for row in ids for i in row], np.int32), starts=np.cumsum(sizes) - sizes, sizes=sizes, answers=None,
        fingerprint="x", special=processor.special, max_length=processor.max_length, skipped=0,
    )  # fmt: skip
    return samples.batch(np.arange(len(texts)))


def reader_of(processor: TextProcessor, folder, **more) -> standalone.Texts:
    processor.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    marks = {"cls": processor.cls_id, "sep": processor.sep_id, "pad": processor.pad_id, "marks_between": processor.marks_between}
    return standalone.Texts(folder, {**marks, "max_length": processor.max_length, "parts": [], "apart": False, "segments": False, **more})


def test_texts_are_rows_of_the_processor(processor, tmp_path):
    """Empty ones, and ones that are cut."""
    texts, reader = TEXTS[:-1], reader_of(processor, tmp_path)
    made, wanted = reader.together([reader.one(text) for text in texts]), tokens_of(processor, texts)
    assert np.array_equal(made["input_ids"], wanted["tokens"].numpy()) and np.array_equal(made["attention_mask"], wanted["mask"].numpy())
    with pytest.raises(ValueError, match="the texts"):
        reader.one(("a", "b"))


def test_pairs_are_rows_of_the_processor(processor, tmp_path):
    """Of all lengths: the longest part is cut first."""
    lengths = [(a, b) for a in (0, 1, 3, 5, 9, 30) for b in (0, 2, 4, 5, 8, 31)]
    pairs = [("ada " * a, "rome " * b) for a, b in lengths]
    reader = reader_of(processor, tmp_path, parts=["a", "b"], segments=True)
    made = reader.together([reader.one(pair) for pair in pairs])
    wanted = one_row([tokens_of(processor, [pair[i] for pair in pairs]) for i in (0, 1)], processor)
    for ours, name in (("input_ids", "tokens"), ("attention_mask", "mask")):
        assert np.array_equal(made[ours], wanted[name].numpy()), ours
    assert np.array_equal(made["token_type_ids"] * made["attention_mask"], (wanted["segments"] * wanted["mask"]).numpy())


@pytest.mark.parametrize("third", [TRIPLES, SPELLED, NONE])
def test_words_score_as_beside_the_encoder(third, tmp_path):
    """Repeated, unknown and missing words, texts without any."""
    words = ["", *(f"w{i}" for i in range(1, 12)), "", ""]
    made = Lexicon(len(words), third, 3, parts_of(words) if third == SPELLED else None)
    rng = torch.Generator().manual_seed(0)
    seen = torch.randint(0, len(words), (20, 9), generator=rng)
    terms, documents = made.counts(seen).term.unique(return_counts=True)
    made.learn(terms[::2], (21 / (1 + documents[::2])).log() + 1)
    made.table, made.bias = torch.randn(len(made.terms), 3, generator=rng), torch.randn(3, generator=rng)
    names = ("terms", "idf", "table", "bias", "parts", "starts")
    np.savez(tmp_path / "lexicon.npz", **{name: getattr(made, name).numpy() for name in names})
    ours = standalone.Lexicon(tmp_path, {"file": "lexicon.npz", "words": len(words), "third": third, "special": [1, 2]})
    new = torch.randint(0, len(words), (30, 7), generator=rng)
    new[0] = 0
    new[1] = 3
    beside = SimpleNamespace(word_ids=lambda inputs: inputs["tokens"])
    wanted = made(beside, {"tokens": new})
    assert ours.of_words(new.numpy()) == pytest.approx(wanted.numpy(), abs=1e-5)
    found = made.parts[torch.randint(0, len(made.parts) or 1, (30, 5), generator=rng)] if third == SPELLED else torch.zeros(30, 5).long()
    spelled = torch.where(torch.rand(30, 5, generator=rng) < 0.5, found, -1)
    wanted = made(beside, {"tokens": new, "subwords": spelled})
    assert ours.of_words(new.numpy(), spelled.numpy()) == pytest.approx(wanted.numpy(), abs=1e-5)
    tokens, mask = new.numpy(), np.ones_like(new.numpy())
    mask[:, 5:] = 0
    read = (tokens + 1) * ~np.isin(tokens, [1, 2]) * mask
    read[read >= len(words)] = 0
    given = np.where(read > 0, tokens, 1)
    assert np.array_equal(ours.scores({"input_ids": given, "attention_mask": mask}), ours.of_words((given + 1) * (read > 0)))


def test_pairs_are_hashed_alike():
    """Ids up to 2^31, whose products leave 64 bits."""
    first, second = (np.array(x, np.int64) for x in ([1, 2**31 - 1, 123456, 0], [2, 2**31 - 1, 99, 2**30]))
    for rows in (37, 1 << 24, 1 << 31):
        wanted = hashed_pairs(torch.from_numpy(first), torch.from_numpy(second), rows).numpy()
        assert np.array_equal(standalone.hashed(first, second, rows), wanted)


def test_answers_are_the_rows_of_the_targets():
    """Classes, labels by their thresholds, numbers: as `sslt predict` writes them."""
    from torch import nn
    from vector_encoder import VectorEncoder

    from sslt.targets.classification import Classification
    from sslt.targets.multilabel import Multilabel
    from sslt.targets.regression import Regression

    encoder, space, rng = VectorEncoder(nn.Identity(), 2), {"classes": ["a", "b", "c"]}, torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(9, 3, generator=rng)
    classes, labels, number = Classification(encoder, space, 0, 0), Multilabel(encoder, space, 0), Regression(encoder, {}, 0, None)
    labels.thresholds.copy_(torch.tensor([0.5, -1.0, 0.0]))
    number.mean.fill_(3.0)
    number.std.fill_(0.1)
    cases = [
        (classes, {"logits": logits}, {"kind": Class.kind, **space}),
        (labels, {"logits": logits}, {"kind": Labels.kind, **space, "thresholds": labels.thresholds.tolist()}),
        (number, {"number": logits[:, 0]}, {"kind": Number.kind, "mean": float(number.mean), "std": float(number.std)}),
    ]
    for target, outputs, about in cases:
        assert standalone.answers(about, {k: x.numpy() for k, x in outputs.items()}) == target.rows(target.read(outputs, {}))


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_maps_are_those_of_the_target(fit, tmp_path):
    """Pixel by pixel in the picture's own size, cut or padded or stretched, and the files that are written of them."""
    from types import SimpleNamespace as Of

    from sslt.data import frames
    from sslt.data.prepare.image_processor import NARROWEST
    from sslt.deploy import located
    from sslt.targets.map_heads import in_own_size
    from sslt.targets.map_pictures import described, palette, write_maps

    space, rng = {"classes": ["none", "left", "right"]}, np.random.default_rng(0)
    about, maps = {"kind": "map", **space, "colours": palette(3).tolist()}, []
    reader = standalone.Pictures(None, {"size": 16, "channels": 3, "fit": fit})
    sizes = np.array([(16, 16), (9, 30), (41, 12), (1, 5), (3, 200)])
    scores = torch.from_numpy(rng.normal(size=(len(sizes), 3, 4, 4)).astype(np.float32))
    seen = torch.from_numpy(frames.fitted(sizes, 16, fit, NARROWEST))
    wanted = in_own_size(scores, {"seen": seen, "size": torch.from_numpy(sizes)}, space)
    reading = located.Maps(about, tmp_path / "ours")
    for i, sides in enumerate(sizes):
        assert np.allclose(reader.seen(sides), seen[i])
        maps.append(reading.row(i, scores[i].numpy(), sides, reader.seen(sides)))
        ours = np.asarray(Image.open(tmp_path / "ours" / maps[-1]["prediction"]))
        assert np.array_equal(ours, wanted.row(i)), (fit, sides)
    assert maps == described(wanted) and located.Maps(about, None).row(0, scores[0].numpy(), sizes[0], seen[0].numpy()) == {
        "shares": maps[0]["shares"]
    }
    for name in write_maps(tmp_path / "theirs", wanted):
        assert (tmp_path / "theirs" / name).read_bytes() == (tmp_path / "ours" / name).read_bytes()
    session = Of(run=lambda names, given: [scores.numpy()[: len(given["image"])]])
    model = standalone.Model.__new__(standalone.Model)
    model.folder, model.session, model.lexicon = tmp_path, session, None
    model.about = {"samples": {"kind": "image", "size": 16, "channels": 3, "fit": fit}, "answers": about, "outputs": [{"name": "scores"}]}
    pictures = [rng.integers(0, 256, (*sides, 3), dtype=np.uint8) for sides in sizes]
    assert model.rows(pictures, maps=tmp_path / "more") == described(wanted)
    assert (tmp_path / "more" / "00002.png").read_bytes() == (tmp_path / "ours" / "00002.png").read_bytes()


SPANS = ["Ada Lovelace met Zoë in Rome.", "", "New York, New York!", "ſtraße ünder naïve नमस्ते दुनिया", "  spaced   out  ", "w " * 40]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
@pytest.mark.parametrize("cuts_words", [False, True])
def test_spans_are_those_of_the_target(kind, cuts_words, tmp_path):
    """Of texts that fit and one that is cut, whatever tags are likely; by tokenizers that mark where words begin, and where they go on."""
    from sslt.deploy import located
    from sslt.targets import bio

    texts = SPANS * 20
    processor = TextProcessor(
        train_tokenizer(texts, 90, False) if kind == "wordpiece" else train_reversible(kind, texts, 300, False, 0), 24
    )
    entries = processor.inside_words()
    np.save(tmp_path / "inside_words.npy", entries)
    reader, rng = reader_of(processor, tmp_path), np.random.default_rng(0)
    first, types = int(processor.special[0] is not None), ["x", "y"]
    spans = located.Spans(tmp_path, {"types": types, "cuts_words": cuts_words, "inside_words": "inside_words.npy"})
    placed = [where for chunk in processor.encode_with_places(SPANS) for _, where in chunk]
    for _ in range(20):
        for text, where in zip(SPANS, placed, strict=True):
            ids = reader.together([reader.one(text)])["input_ids"][0]
            own = slice(first, first + min(len(where), processor.max_length - first - 1))
            found = torch.from_numpy(rng.normal(size=(len(ids), 5))).log_softmax(1)
            places = torch.full((1, len(ids), 2), -1)
            ours = located.whole_characters(where, text)
            assert np.array_equal(ours, _whole_characters(where, text))
            places[0, own] = torch.from_numpy(ours[: own.stop - first])
            whole = bio.continuing(places, torch.from_numpy(ids)[None], torch.from_numpy(entries)) & (not cuts_words)
            (rows, sure) = bio.decode(found[None], places, whole)
            wanted = [
                {"start": a, "end": b, "type": types[t], "score": round(p, 4), "text": text[a:b]}
                for (a, b, t), p in zip(rows[0].tolist(), sure[0].ravel().tolist(), strict=True)
            ]
            assert spans.row(text, found[own].numpy(), ours[: own.stop - first], ids[own]) == {"prediction": wanted}, text
