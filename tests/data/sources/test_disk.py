"""Protects a run from data that is no data: pipes, devices, bombs, circles of links, names that cannot be; each one line, at once."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import socket
import zipfile

import numpy as np
import pytest
from PIL import Image

from sslt.data import cache
from sslt.data.prepare.image_processor import ImageProcessor
from sslt.data.sources import disk, parquet
from sslt.data.sources.image_files import Unreadable, decode, read_idx
from sslt.data.sources.images import Arrays, HuggingFaceImages, ImageFolder
from sslt.data.sources.running_text import TextFiles, TextLines
from sslt.data.sources.texts import TextTable
from sslt.errors import UserError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_root", tmp_path / "cache")


def table(path, on_error="fail"):
    return TextTable(str(path), None, None, None, None, "class", None, on_error, 0.1, 0.2)


READERS = {
    "t.csv": table,
    "t.jsonl": table,
    "t.parquet": table,
    "t.csv.gz": table,
    "f.txt": lambda path: TextFiles(str(path), "fail"),
    "lines.txt": lambda path: TextLines(str(path)),
    "a.npz": lambda path: Arrays(str(path), "class"),
    "i.parquet": lambda path: HuggingFaceImages(str(path), None, None, "class", None, "none", None, None, "fail"),
}


def read(source):
    source.fingerprint()
    return source.read(source.own_splits()[0])


# -------------------------------------------------------------------- what is no regular file
@pytest.mark.parametrize("name", READERS)
def test_a_pipe_is_refused_by_every_reader(tmp_path, name):
    """Opening one waits for a writer that never comes."""
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name} is a pipe, a socket or a device"):
        read(READERS[name](tmp_path / name))


def test_devices_and_sockets(tmp_path):
    """/dev/zero never ends."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.csv"))
        for path in ("/dev/zero", tmp_path / "s.csv"):
            with pytest.raises(UserError, match="is a pipe, a socket or a device"):
                read(TextLines(str(path)))


def test_members_of_a_folder(tmp_path):
    """Among pictures and texts too; on_error=skip leaves it out and goes on."""
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / "p.png")
    (tmp_path / "a" / "dangling.png").symlink_to("nowhere")
    Image.new("L", (4, 4)).save(tmp_path / "a" / "q.png")
    os.mkfifo(tmp_path / "a" / "p.txt")
    (tmp_path / "a" / "dangling.md").symlink_to("nowhere")
    (tmp_path / "a" / "q.txt").write_text("words")
    processor = ImageProcessor(4, 1, [0.0], [1.0])
    with pytest.raises(UserError, match=r"dangling\.png: no such file, perhaps a link to nothing"):
        processor.prepare(ImageFolder(str(tmp_path / "a"), "fail", None, 0, 0), "unlabeled")
    with pytest.raises(Unreadable, match=r"p\.png is a pipe"):
        decode(tmp_path / "a" / "p.png", "p.png")
    assert len(processor.prepare(ImageFolder(str(tmp_path / "a"), "skip", None, 0, 0), "unlabeled")) == 1
    for pattern, name in ((tmp_path / "a", "dangling.md: no such"), (tmp_path / "a" / "*.txt", "p.txt is a pipe")):
        with pytest.raises(UserError, match=name):
            read(TextFiles(str(pattern), "fail"))
    raw = read(TextFiles(str(tmp_path / "a"), "skip"))
    assert list(raw.items) == ["words"] and len(raw.skipped) == 2


def test_a_pipe_where_a_folder_holds_tables(tmp_path):
    """`train.csv` in a folder may be one as well."""
    os.mkfifo(tmp_path / "train.csv")
    with pytest.raises(UserError, match=r"train\.csv is a pipe"):
        read(table(tmp_path))


# -------------------------------------------------------------------- links
def files(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"text of {name}")


def test_a_link_back_is_refused_by_name(tmp_path):
    """`ln -s .. a/loop` made 492 pictures of 12; also over two folders that link to each other, and to one above the data."""
    files(tmp_path, "s/a/1.txt", "s/b/2.txt")
    (tmp_path / "s" / "a" / "loop").symlink_to("..")
    with pytest.raises(UserError, match=r"a/loop is a link back to .*/s"):
        list(disk.walk(tmp_path / "s"))
    with pytest.raises(UserError, match="link back"):
        disk.matching(tmp_path / "s" / "**" / "*.txt")
    with pytest.raises(UserError, match="link back"):
        _ = TextFiles(str(tmp_path / "s"), "fail").files
    (tmp_path / "s" / "a" / "loop").unlink()
    (tmp_path / "s" / "a" / "up").symlink_to(tmp_path)
    with pytest.raises(UserError, match="a/up is a link back"):
        list(disk.walk(tmp_path / "s"))
    (tmp_path / "s" / "a" / "up").unlink()
    (tmp_path / "s" / "a" / "x").symlink_to("../b")
    (tmp_path / "s" / "b" / "y").symlink_to("../a")
    with pytest.raises(UserError, match="is a link back"):
        list(disk.walk(tmp_path / "s"))


def test_pictures_of_a_folder_with_a_link_back(tmp_path):
    """The data set of the loop is refused, not multiplied."""
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / "s" / name).parent.mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / "s" / name)
    (tmp_path / "s" / "a" / "loop").symlink_to("..")
    with pytest.raises(UserError, match="a/loop is a link back"):
        ImageFolder(str(tmp_path / "s"), "fail", None, 0, 0).own_splits()


def test_links_elsewhere_are_followed(tmp_path):
    """To a file, to a folder outside, to a sibling, and to a folder whose name only begins alike."""
    files(tmp_path, "s/a/1.txt", "elsewhere/2.txt", "s2/3.txt", "s/.hidden/4.txt", "s/b/c/5.txt")
    (tmp_path / "s" / "far").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "s" / "near").symlink_to(tmp_path / "s2")
    (tmp_path / "s" / "b" / "sibling").symlink_to("../a")
    (tmp_path / "s" / "one.txt").symlink_to(tmp_path / "elsewhere" / "2.txt")
    found = ["a/1.txt", "b/c/5.txt", "b/sibling/1.txt", "far/2.txt", "near/3.txt", "one.txt"]
    assert sorted(f.relative_to(tmp_path / "s").as_posix() for f in disk.walk(tmp_path / "s")) == found
    assert [f.relative_to(tmp_path / "s").as_posix() for f in disk.matching(tmp_path / "s" / "**" / "*.txt")] == found


@pytest.mark.parametrize("pattern", ["*", "a/*.txt", "**/*.txt", "**", "*/**/5.*", "b/**/5.txt", "**/c/*", "?/[0-9].txt"])
def test_patterns_mean_what_they_do_in_glob(tmp_path, pattern):
    """Python's own glob is the reference, of files."""
    import glob

    files(tmp_path, "0.txt", "a/1.txt", "b/c/5.txt", "b/c/d/5.md", "b/5.txt", "c/c/6")
    known = sorted(f for f in glob.glob(str(tmp_path / pattern), recursive=True) if os.path.isfile(f))
    assert [str(f) for f in disk.matching(tmp_path / pattern)] == known and known


# -------------------------------------------------------------------- names and places
@pytest.mark.parametrize("path", ["x" * 3000, "a\0b", "~nobody-of-this-name/x"])
@pytest.mark.parametrize("make", [table, READERS["a.npz"], lambda p: ImageFolder(str(p), "fail", None, 0, 0), READERS["f.txt"]])
def test_what_can_be_no_path(path, make):
    """One short line, not an OSError from where it is first looked at."""
    with pytest.raises(UserError, match="cannot be read") as caught:
        make(path)
    assert len(str(caught.value)) < 200


def test_a_circle_of_links(tmp_path):
    """A link to itself is no file."""
    (tmp_path / "x.csv").symlink_to("x.csv")
    with pytest.raises(UserError, match=r"x\.csv: cannot be read"):
        table(tmp_path / "x.csv")


def test_an_error_of_the_system_names_the_file(tmp_path, monkeypatch):
    """A disk that fails, a file that is locked: whatever OSError there is."""
    (tmp_path / "t.csv").write_text("text,label\na,b\n")

    def fail(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(disk, "open", fail, raising=False)
    with pytest.raises(UserError, match=r"t\.csv: cannot be read \(Permission denied\)"):
        read(table(tmp_path / "t.csv"))


def test_names_that_are_not_utf8(tmp_path):
    """Classes and rows get names that can be printed and stored."""
    for folder in (b"caf\xe9", b"th\xe9"):
        os.makedirs(os.fsencode(tmp_path) + b"/s/" + folder)
        Image.new("L", (4, 4)).save(os.fsdecode(os.fsencode(tmp_path) + b"/s/" + folder + b"/\xff.png"))
    source = ImageFolder(str(tmp_path / "s"), "fail", None, 0, 0)
    assert source.classes == ["caf\\xe9", "th\\xe9"] and source.row_names("train")[0] == "caf\\xe9/\\xff.png"
    assert len(ImageProcessor(4, 1, [0.0], [1.0]).prepare(source, "train")) == 2


# -------------------------------------------------------------------- bombs
@pytest.mark.parametrize(("name", "pack"), [("t.csv.gz", gzip.open), ("t.txt.xz", lzma.open), ("x-ubyte.gz", gzip.open)])
def test_a_file_that_unpacks_without_end(tmp_path, monkeypatch, name, pack):
    """Refused after a bound, whichever reader unpacks it."""
    monkeypatch.setattr(disk, "UNPACKED", 1 << 16)
    with pack(tmp_path / name, "wb") as f:
        f.write(b"text,label\n" + b"a line of text,b\n" * 100_000)
    with pytest.raises(UserError, match="unpack to more than"):
        {"t.csv.gz": lambda p: read(table(p)), "t.txt.xz": disk.read_text, "x-ubyte.gz": read_idx}[name](tmp_path / name)


def test_real_text_packs_less_than_the_bound(tmp_path, monkeypatch):
    """Words that repeat, but as words do, are read."""
    monkeypatch.setattr(disk, "UNPACKED", 0)
    words = np.random.default_rng(0).choice(["good", "bad", "film", "plot", "the", "of"], 20_000)
    (tmp_path / "t.txt.xz").write_bytes(lzma.compress(" ".join(words).encode()))
    assert disk.read_text(tmp_path / "t.txt.xz").split() == words.tolist()


def test_an_archive_of_zeros(tmp_path, monkeypatch):
    """Told from the archive's own directory, before an array is made."""
    monkeypatch.setattr(disk, "UNPACKED", 1 << 16)
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((3000, 16, 16), np.uint8))
    with pytest.raises(UserError, match=r"a\.npz: its .* bytes unpack to more"):
        read(READERS["a.npz"](tmp_path / "a.npz"))


def test_an_array_that_says_it_is_huge(tmp_path):
    """A header of petabytes over no content."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**15, 8, 8)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue())
    with pytest.raises(UserError, match=r"a\.npz"):
        read(READERS["a.npz"](tmp_path / "a.npz"))


def test_a_line_without_end(tmp_path, monkeypatch):
    """A file of one line fills no memory."""
    monkeypatch.setattr(disk, "LONGEST_LINE", 1000)
    for name in ("t.csv", "t.tsv", "t.jsonl", "t.txt"):
        (tmp_path / name).write_text("text\n" + "x" * 5000 if name != "t.jsonl" else '{"text": "' + "x" * 5000)
        with pytest.raises(UserError, match=r"line \d: longer than 1,000 characters"):
            read(table(tmp_path / name))


def test_a_picture_that_says_it_is_huge(tmp_path):
    """PIL's bound holds: 3 GB of pixels in a few bytes are no picture; and a strip is not enlarged as a whole."""
    Image.new("1", (40_000, 30_000)).save(tmp_path / "big.png")
    with pytest.raises(Unreadable, match=r"big\.png.*limit"):
        decode(tmp_path / "big.png", "big.png")
    (tmp_path / "s").mkdir()
    Image.new("L", (200_000, 1), 7).save(tmp_path / "s" / "strip.png")
    samples = ImageProcessor(64, 1, [0.0], [1.0]).prepare(ImageFolder(str(tmp_path / "s"), "fail", None, 0, 0), "unlabeled")
    assert (samples.images == 7).all()


def test_more_rows_than_bytes(tmp_path, monkeypatch):
    """Run lengths can say billions of rows in a few bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a"] * 5000}), tmp_path / "t.parquet")
    monkeypatch.setattr(parquet, "ROWS_PER_BYTE", 1)
    with pytest.raises(UserError, match=r"t\.parquet: damaged: it says it has 5,000 rows"):
        read(table(tmp_path / "t.parquet"))
