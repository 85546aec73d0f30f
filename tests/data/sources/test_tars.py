"""Protects tar files as webdataset writes them: read where they lie, here and on an object store; labels, splits, what is damaged."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslt.data import cache, sharding
from sslt.data.prepare.image_processor import ImageProcessor
from sslt.data.sources import tar_index
from sslt.data.sources.tars import WebDataset, braces
from sslt.errors import UserError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (24, 9, 8, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    for name in ("_root", "_store"):
        monkeypatch.setattr(cache, name, None)
    monkeypatch.setattr(cache, "_root", tmp_path / "cache")
    monkeypatch.setattr(sharding, "_limits", None)


def png(i: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS[i]).save(file, "png")
    return file.getvalue()


def tar(path: Path, content: list[tuple[str, bytes]], style: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=style) as file:
        for name, data in content:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            file.addfile(about, io.BytesIO(data))
    return path


def samples(rows: range, *others: str) -> list[tuple[str, bytes]]:
    """A picture of each row, and members beside it: cls (row % 3), txt, json."""
    made = {
        "cls": lambda i: b"%d" % (i % 3),
        "txt": lambda i: f"kind {i % 2}".encode(),
        "json": lambda i: json.dumps({"at": i % 4}).encode(),
    }
    found = []
    for i in rows:
        key = f"some/folder/{i:05}" if i % 2 else f"{i:05}-{'long' * 40}"
        found += [(f"{key}.png", png(i)), *((f"{key}.{kind}", made[kind](i)) for kind in others)]
    return found


def source(path: object, **changed) -> WebDataset:
    return WebDataset(
        **{"path": str(path), "label": None, "on_error": "fail", "size": None, "val_fraction": 0.2, "test_fraction": 0.2, **changed}
    )


@pytest.mark.parametrize("style", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_pictures_and_classes_over_several_tars(tmp_path, style):
    """By braces and by folder: pixels as they were written, classes in the order of numbers, names, long names among them."""
    for t in range(3):
        tar(tmp_path / "set" / f"a-{t:03}.tar", samples(range(8 * t, 8 * t + 8), "cls"), style)
    for path in (tmp_path / "set" / "a-{000..002}.tar", tmp_path / "set", tmp_path / "set" / "a-*.tar"):
        found = source(path)
        raw = found.read("train")
        assert found.own_splits() == ("train",) and found.classes == ["0", "1", "2"] and found.image_shape == (8, 3)
        assert raw.labels.tolist() == [i % 3 for i in range(24)]
        for i in (0, 7, 8, 23):
            np.testing.assert_array_equal(raw.items[i], PIXELS[i])
        assert found.row_names("train")[9] == "a-001.tar/some/folder/00009.png"


@pytest.mark.parametrize(("label", "classes"), [("txt", ["kind 0", "kind 1"]), ("json:at", ["0", "1", "2", "3"])])
def test_classes_of_other_members(tmp_path, label, classes):
    found = source(tar(tmp_path / "a.tar", samples(range(8), "cls", "txt", "json")), label=label)
    assert found.classes == classes
    assert found.read("train").labels.tolist() == [i % len(classes) for i in range(8)]


def test_numbers_of_classes_may_have_gaps(tmp_path):
    """What is too large for one is told by how many pictures there are, not by how many different numbers."""
    content = [part for i in range(1101) for part in ((f"{i}.png", png(i % 24)), (f"{i}.cls", b"1100" if i == 7 else b"3"))]
    found = source(tar(tmp_path / "a.tar", content))
    assert len(found.classes) == 1101 and found.read("train").labels[:9].tolist() == [3] * 7 + [1100, 3]
    with pytest.raises(UserError, match="holds the label 1100, more than there are images"):
        assert source(tar(tmp_path / "b.tar", content[:40])).classes


def test_without_classes_it_is_unlabelled(tmp_path):
    found = source(tar(tmp_path / "a.tar", samples(range(8), "json")))
    assert found.own_splits() == ("unlabeled",) and found.classes is None and found.read("unlabeled").answers is None


def test_splits_by_name(tmp_path):
    """Tars named for val and test are these; a class that train has not is named."""
    for name, rows in (("train-0", range(8)), ("val-0", range(8, 12)), ("test-0", range(12, 20))):
        tar(tmp_path / "set" / f"{name}.tar", samples(rows, "cls"))
    found = source(tmp_path / "set")
    assert found.own_splits() == ("train", "val", "test") and len(found.get("test")) == 8 and len(found.get("train")) == 8
    tar(tmp_path / "set" / "test-0.tar", [("x.png", png(0)), ("x.cls", b"7")])
    with pytest.raises(UserError, match=r"test-0\.tar/x\.png: no class of the training data"):
        source(tmp_path / "set").get("test")


def test_the_index_is_made_once_and_the_tar_never_unpacked(tmp_path, monkeypatch):
    """A second source reads no header; the cache has no picture; another tar in its place is indexed anew."""
    path = tar(tmp_path / "a.tar", samples(range(8), "cls"))
    source(path).read("train")
    monkeypatch.setattr(tar_index, "grouped", lambda tar: pytest.fail("indexed again"))
    again = source(path, label="cls").read("train")
    np.testing.assert_array_equal(again.items[3], PIXELS[3])
    assert sum(p.stat().st_size for p in (cache.cache_dir() / "tars").rglob("*") if p.is_file()) < path.stat().st_size
    monkeypatch.undo()
    monkeypatch.setattr(cache, "_root", tmp_path / "cache")
    before = source(path).fingerprint()
    tar(path, samples(range(8, 16), "cls"))
    assert source(path).fingerprint() != before
    np.testing.assert_array_equal(source(path).read("train").items[0], PIXELS[8])


@pytest.mark.parametrize("url", ["memory://bucket/set", "file://{}/set"])
def test_tars_of_an_object_store(tmp_path, url, monkeypatch):
    """The same pictures and labels by URL; neighbours come by few requests."""
    import fsspec

    monkeypatch.setattr(tar_index, "BLOCK", 4096)
    url = url.format(tmp_path)
    local = [tar(tmp_path / f"a-{t}.tar", samples(range(8 * t, 8 * t + 8), "cls")) for t in range(2)]
    fs, root = fsspec.core.url_to_fs(url)
    fs.makedirs(root, exist_ok=True)
    for path in local:
        fs.pipe_file(f"{root}/{path.name}", path.read_bytes())
    requests: list[int] = []
    part = tar_index.Store.read_part
    monkeypatch.setattr(tar_index.Store, "read_part", lambda self, *args: (requests.append(args[1]), part(self, *args))[1])
    for where in (f"{url}/a-{{0..1}}.tar", url):
        found = source(where)
        raw = found.read("train")
        assert raw.labels.tolist() == [i % 3 for i in range(16)]
        requests.clear()
        for i in range(16):
            np.testing.assert_array_equal(raw.items[i], PIXELS[i])
        assert len(requests) <= sum(p.stat().st_size for p in local) / 4096 + 2
    with pytest.raises(UserError, match=r"no\.tar: no such file"):
        source(f"{url}/no.tar").own_splits()


def test_prepared_as_a_folder_is(tmp_path):
    """Whole, and as shards: the same samples as of the pictures themselves."""
    path = tar(tmp_path / "a.tar", samples(range(24), "cls"))
    processor = ImageProcessor(8, 3, [0.5] * 3, [0.5] * 3)
    plain = processor.prepare(source(path), "train")
    sharding.set_limits({"from_bytes": 1000, "shard_bytes": 800, "keep_bytes": 1e9})
    many = processor.prepare(source(path), "train")
    assert plain.shards is None and many.shards is not None
    index = np.arange(len(plain))
    for name, values in plain.batch(index).items():
        np.testing.assert_array_equal(values.numpy(), many.batch(index)[name].numpy())


def test_what_is_wrong_is_named(tmp_path):
    """Cut short, packed, no tar, nothing there, a sample without picture or class, a broken picture, a label that is none."""
    good = tar(tmp_path / "a.tar", samples(range(8), "cls"))
    cut = tmp_path / "cut.tar"
    cut.write_bytes(good.read_bytes()[:9000])
    (tmp_path / "no.tar").write_bytes(b"nothing of the kind" * 100)
    for path, said in (
        (cut, "cut.tar: damaged, cut short"),
        (tmp_path / "no.tar", "no.tar: damaged"),
        (tmp_path / "x.tar", "x.tar: no such"),
    ):
        with pytest.raises(UserError, match=said):
            source(path).read("train")
    with pytest.raises(UserError, match=r"there is no \.tar file"):
        source(tmp_path / "{q*,r*}.tar").own_splits()
    lacking = tar(
        tmp_path / "b.tar", [*samples(range(6), "cls"), ("x.cls", b"1"), ("y.png", png(7)), ("z.png", b"broken"), ("z.cls", b"1")]
    )
    with pytest.raises(UserError, match=r"b\.tar/y\.png: no class"):
        source(lacking).read("train")
    processor = ImageProcessor(8, 3, [0.5] * 3, [0.5] * 3)
    left = processor.prepare(source(lacking, on_error="skip", val_fraction=0, test_fraction=0), "train")
    assert len(left) == 6 and left.skipped == 3
    with pytest.raises(UserError, match=r"data\.label=csv: give cls, txt or json:KEY"):
        source(good, label="csv")


@pytest.mark.parametrize("how", ["garbage", "cut at a header", "cut in a header", "a size below nothing"])
def test_a_header_that_cannot_be_read_is_no_end(tmp_path, how):
    """tarfile takes it for one, and would leave out all that follows without a word."""
    path = tar(tmp_path / "a.tar", samples(range(6), "cls"), tarfile.GNU_FORMAT)
    with tarfile.open(path) as file:
        at = file.getmembers()[6].offset
    content = bytearray(path.read_bytes())
    if how == "garbage":
        content[at : at + 512] = b"\xff" * 512
    elif how == "a size below nothing":
        broken = tarfile.TarInfo("x.png")
        broken.size = -600
        content[at : at + 512] = broken.tobuf(tarfile.GNU_FORMAT)[:512]
    else:
        content = content[: at + (200 if how == "cut in a header" else 0)]
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tar: damaged, cut short"):
        source(path).read("train")


def test_all_that_has_no_classes_is_learned_from(tmp_path):
    """Tars by the name of unlabeled beside tars to train on."""
    tar(tmp_path / "a-0.tar", samples(range(5)))
    tar(tmp_path / "a-unlabeled-0.tar", samples(range(5, 7)))
    assert len(source(tmp_path).read("unlabeled")) == 7


def test_names_are_of_the_rows_that_are_read(tmp_path):
    """Samples without a class are left out of both; a class may look like a number among others that do not."""
    labels = [b"007", b"cat", None, b"cat", b"007"]
    content = [(f"{i}.png", png(i)) for i in range(5)] + [(f"{i}.cls", label) for i, label in enumerate(labels) if label is not None]
    path = tar(tmp_path / "a.tar", sorted(content))
    made = source(path, label="cls", on_error="skip")
    raw = made.read("train")
    assert [made.classes[i] for i in raw.labels] == ["007", "cat", "cat", "007"]
    assert [Path(name).name for name in made.row_names("train")] == ["0.png", "1.png", "3.png", "4.png"]
    np.testing.assert_array_equal(raw.items[2], PIXELS[3])


def test_braces_are_the_shells():
    assert braces("a{08..11}.tar") == ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]
    assert braces("{x,y}{1..2}") == ["x1", "x2", "y1", "y2"]
    with pytest.raises(UserError, match="backwards"):
        braces("a{3..1}")
