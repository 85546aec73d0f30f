"""Image sources: every layout and format that is promised, and what they say where something is wrong."""

from __future__ import annotations

import gzip
import inspect
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslt.data import cache
from sslt.data.sources import image_files
from sslt.data.sources import images as sources
from sslt.data.sources.images import Arrays, Digits, HuggingFaceImages, ImageFolder, ImageSet
from sslt.errors import UserError

CONFIGS = Path(__file__).parents[3] / "configs/data"
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_root", tmp_path / "cache")


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, pixels: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(9, 7, 3) if pixels is None else pixels).save(path)
    return path


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path: Path, images: list, labels: list, names: list[str] | None = None, **columns: list) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": png(i) if isinstance(i, np.ndarray) else i, "path": None} for i in images]
    table = pa.table({"img": cells, "label": labels, **columns})
    if names:
        features = {"img": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=3)


def folder(path: Path, on_error: str = "fail") -> ImageFolder:
    return ImageFolder(str(path), on_error, None, 0.25, 0.25)


def hf(name: object, **options: object) -> HuggingFaceImages:
    given = {
        "image": None,
        "label": None,
        "answer": "class",
        "separator": None,
        "root": "none",
        "subset": None,
        "revision": None,
        "on_error": "fail",
    }
    return HuggingFaceImages(str(name), **given | options)  # type: ignore[arg-type]


# Digits


def test_digits_are_scikit_learns() -> None:
    """The file read directly holds the images and labels that scikit-learn gives."""
    from sklearn.datasets import load_digits

    raw, known = Digits().read("train"), load_digits()
    np.testing.assert_array_equal(raw.items[..., 0], np.rint(known.images * 255 / 16))  # type: ignore[call-overload]
    np.testing.assert_array_equal(raw.labels, known.target)


def test_digits_splits_are_disjoint_and_complete() -> None:
    """val and test are drawn from train: together they are all digits, once."""
    source = Digits()
    parts = [source.get(s) for s in ("train", "val", "test")]
    rows = sorted(bytes(np.asarray(image)) for part in parts for image in part.items)
    assert rows == sorted(bytes(image) for image in source.read("train").items)


def test_import_is_light() -> None:
    """Importing the sources imports none of the heavy libraries, on which every command would wait."""
    heavy = "{'PIL', 'torchvision', 'sklearn', 'pyarrow', 'datasets'}"
    code = f"import sys, sslt.data.sources.images; print(*({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


# Sets with a name


def write_idx(path: Path, array: np.ndarray, zipped: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()
    path.with_name(path.name + ".gz" * zipped).write_bytes(gzip.compress(data) if zipped else data)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("below", ["MNIST/raw", "mnist/raw", "MNIST", ""])
def test_mnist_is_found_in_its_layouts(tmp_path: Path, zipped: bool, below: str) -> None:
    """idx files are found where torchvision or a user puts them, gzipped or not."""
    images, labels = noise(5, 28, 28), np.arange(5, dtype=np.uint8)
    for part, n in (("train", 5), ("t10k", 2)):
        write_idx(tmp_path / below / f"{part}-images-idx3-ubyte", images[:n], zipped)
        write_idx(tmp_path / below / f"{part}-labels-idx1-ubyte", labels[:n], zipped)
    source = ImageSet("mnist", str(tmp_path), False)
    np.testing.assert_array_equal(source.read("train").items, images[..., None])
    np.testing.assert_array_equal(source.read("test").labels, [0, 1])
    assert source.splits() == ("train", "val", "test") and source.image_shape == (28, 1)


def test_fashion_mnist_is_not_taken_for_mnist(tmp_path: Path) -> None:
    """The two sets name their files alike: the folder decides."""
    for part in ("train", "t10k"):
        write_idx(tmp_path / "FashionMNIST/raw" / f"{part}-images-idx3-ubyte", noise(3, 28, 28), True)
        write_idx(tmp_path / "FashionMNIST/raw" / f"{part}-labels-idx1-ubyte", noise(3) % 10, True)
    assert len(ImageSet("fashion_mnist", str(tmp_path / "FashionMNIST"), False).read("train")) == 3
    for root in (tmp_path, tmp_path / "FashionMNIST", tmp_path / "FashionMNIST/raw"):
        with pytest.raises(UserError, match="mnist is not in"):
            ImageSet("mnist", str(root), False).own_splits()


def test_damaged_idx_is_named(tmp_path: Path) -> None:
    """A truncated download says which file it is."""
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(noise(1000).tobytes())[:-20])
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz: damaged"):
        image_files.read_idx(path)


def test_cifar_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR's official pickles give [N, H, W, C] and labels; damaged ones a clear error."""
    from torchvision.datasets import cifar

    home = tmp_path / "cifar-10-batches-py"
    home.mkdir()
    data = noise(12, 3, 32, 32)
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        rows = {"data": data[2 * i : 2 * i + 2].reshape(2, -1), "labels": [i, i + 1]}
        (home / name).write_bytes(pickle.dumps(rows))
    (home / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    source = ImageSet("cifar10", str(tmp_path), False)
    with pytest.raises(UserError, match="damaged"):
        source.read("train")
    monkeypatch.setattr(cifar, "check_integrity", lambda *a: True)
    np.testing.assert_array_equal(source.read("train").items, data[:10].transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(ImageSet("CIFAR-10", str(home), False).read("test").labels, [5, 6])


def test_svhn_and_usps_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SVHN's matrices (10 stands for 0) and USPS's text give images upright and labels from 0."""
    import bz2

    from scipy.io import savemat
    from torchvision.datasets import SVHN

    images = noise(3, 32, 32, 3)
    for part in ("train", "test"):
        savemat(tmp_path / f"{part}_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": np.array([[1], [10], [9]])})
    monkeypatch.setattr(SVHN, "_check_integrity", lambda self: True)
    raw = ImageSet("svhn", str(tmp_path), False).read("test")
    np.testing.assert_array_equal(raw.items, images)
    np.testing.assert_array_equal(raw.labels, [1, 0, 9])

    line = "3 " + " ".join(f"{i + 1}:{1 if i == 17 else -1}" for i in range(256))
    for name in ("usps.bz2", "usps.t.bz2"):
        (tmp_path / name).write_bytes(bz2.compress(f"{line}\n{line}\n".encode()))
    raw = ImageSet("usps", str(tmp_path), False).read("train")
    np.testing.assert_array_equal(np.argwhere(np.asarray(raw.items)), [[0, 1, 1, 0], [1, 1, 1, 0]])
    np.testing.assert_array_equal(raw.labels, [2, 2])


def test_stl10_is_read_by_columns(tmp_path: Path) -> None:
    """STL-10 stores its images column by column, labels from 1, and has unlabelled images of its own."""
    images = noise(4, 96, 96, 3)
    (tmp_path / "stl10_binary").mkdir()
    for split in ("train", "test", "unlabeled"):
        (tmp_path / f"stl10_binary/{split}_X.bin").write_bytes(images.transpose(0, 3, 2, 1).tobytes())
    for split in ("train", "test"):
        (tmp_path / f"stl10_binary/{split}_y.bin").write_bytes(bytes([1, 10, 2, 3]))
    source = ImageSet("stl10", str(tmp_path), False)
    np.testing.assert_array_equal(source.read("unlabeled").items, images)
    assert source.read("unlabeled").labels is None
    np.testing.assert_array_equal(source.read("train").labels, [0, 9, 1, 2])


def test_set_from_parquet(tmp_path: Path) -> None:
    """A set's parquet layout is read with its class names, over several row groups."""
    images = [noise(16, 16) for _ in range(8)]
    write_parquet(tmp_path / "usps/train.parquet", images, [0, 1] * 4, names=["zero", "one"])
    write_parquet(tmp_path / "usps/test.parquet", images[:2], [1, 0], names=["zero", "one"])
    source = ImageSet("usps", str(tmp_path), False)
    raw = source.read("train")
    assert source.classes == ["zero", "one"] and source.own_splits() == ("train", "test")
    for item, image in zip(raw.items, images, strict=True):
        np.testing.assert_array_equal(item[..., 0], image)


def test_a_set_from_parquet_whose_classes_are_numbers(tmp_path: Path) -> None:
    """All of the set's own numbers are its classes by name; fewer stay the numbers they are."""
    for name, n in (("ten", 10), ("nine", 9)):
        write_parquet(tmp_path / name / "cifar10/train.parquet", [noise(32, 32, 3) for _ in range(n)], list(range(n)))
    assert ImageSet("cifar10", str(tmp_path / "ten"), False).classes == list(sources.SETS["cifar10"].classes)
    assert ImageSet("cifar10", str(tmp_path / "nine"), False).classes == [str(i) for i in range(9)]


def test_missing_set_says_which_files_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absent and offline sets, and misspelt names, tell the user what to do."""
    with pytest.raises(UserError, match=r"(?s)cifar10 is not in .*data_batch_1.*cifar-10-batches-py.*data.download=true"):
        ImageSet("cifar10", str(tmp_path), False).own_splits()
    with pytest.raises(UserError, match="did you mean 'cifar10'"):
        ImageSet("cifar_1", str(tmp_path), False)

    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.USPS", offline)
    with pytest.raises(UserError, match=r"(?s)cannot download usps: no route to host.*usps.bz2"):
        ImageSet("usps", str(tmp_path), True).own_splits()


# Folders


def test_folder_of_classes(tmp_path: Path) -> None:
    """Class folders give sorted classes and their labels; other files and hidden ones are passed over."""
    for name in ("dog/a.png", "cat/b.JPG", "cat/c.bmp", "cat/d.webp", "dog/e.tif", "dog/f.gif", "cat/g.ppm"):
        save(tmp_path / name)
    (tmp_path / "dog/notes.txt").write_text("x")
    (tmp_path / "cat/._b.jpg").write_text("x")
    source = folder(tmp_path)
    raw = source.read("train")
    assert source.classes == ["cat", "dog"] and source.splits() == ("train", "val", "test")
    assert raw.labels is not None and raw.labels.tolist() == [0] * 4 + [1] * 3
    assert all(item.shape == (9, 7, 3) and item.dtype == np.uint8 for item in raw.items)
    assert source.image_shape == (7, 3)


@pytest.mark.parametrize("names", [["a.png", "b.png"], ["2020/01/a.png", "2021/02/b.png"], ["all/a.png", "all/b.png"]])
def test_folder_without_labels(tmp_path: Path, names: list[str]) -> None:
    """Flat, deep and single folders are unlabelled."""
    for name in names:
        save(tmp_path / name)
    source = folder(tmp_path)
    assert source.own_splits() == ("unlabeled",) and source.classes is None
    assert len(source.get("unlabeled")) == 2
    with pytest.raises(UserError, match="no 'train' split"):
        source.get("train")


def test_folder_with_splits(tmp_path: Path) -> None:
    """Split folders are splits, under each of their usual names; test takes train's labels."""
    for name in ("train/x/a.png", "train/y/b.png", "validation/x/c.png", "validation/y/d.png", "unlabeled/e.png"):
        save(tmp_path / name)
    for name in ("test/y/f.png", "test/x/g.png"):
        save(tmp_path / name)
    source = folder(tmp_path)
    assert source.own_splits() == ("train", "val", "test", "unlabeled")
    labels = source.get("test").labels
    assert labels is not None and labels.tolist() == [0, 1]
    save(tmp_path / "test/z/h.png")
    with pytest.raises(UserError, match="class folder 'z'"):
        folder(tmp_path).read("test")


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    """One of them would be left out without a word."""
    for name in ("train/x/a.png", "train/y/b.png", "val/x/c.png", "valid/y/d.png"):
        save(tmp_path / name)
    with pytest.raises(UserError, match="has val and valid, which both name the split val"):
        folder(tmp_path).own_splits()


def test_folder_errors(tmp_path: Path) -> None:
    """A wrong path, an empty folder and a wrong option are told apart."""
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match="did you mean 'photos'"):
        folder(tmp_path / "photo").own_splits()
    with pytest.raises(UserError, match="no images in"):
        folder(tmp_path / "photos").own_splits()
    with pytest.raises(UserError, match="did you mean 'skip'"):
        folder(tmp_path / "photos", on_error="skipp")


def test_unreadable_image_is_named(tmp_path: Path) -> None:
    """Truncated and foreign files raise with their path below the folder."""
    data = save(tmp_path / "x/good.png", noise(40, 40, 3)).read_bytes()
    for name, content in (("x/cut.png", data[: len(data) // 2]), ("y/empty.jpg", b""), ("y/text.gif", b"hello")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    items = folder(tmp_path).read("train").items
    for i, name in ((0, "x/cut.png"), (2, "y/empty.jpg"), (3, "y/text.gif")):
        with pytest.raises(image_files.Unreadable, match=name):
            items[i]


def test_folder_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    """The same pictures elsewhere have the same digest; one changed pixel another."""
    import shutil

    save(tmp_path / "a/x/1.ppm", np.zeros((4, 4, 3), np.uint8))
    save(tmp_path / "a/y/2.ppm")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first = folder(tmp_path / "a").fingerprint()
    assert first == folder(tmp_path / "b").fingerprint()
    save(tmp_path / "b/x/1.ppm", np.full((4, 4, 3), 1, np.uint8))
    assert first != folder(tmp_path / "b").fingerprint()


# Pictures


def test_decode_modes(tmp_path: Path) -> None:
    """Bilevel, 16-bit, palette, CMYK and transparent pictures become bytes of 1 or 3 channels, on white."""
    grey = noise(5, 6)
    deep = save(tmp_path / "deep.png", grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(image_files.decode(deep, "deep")[..., 0], grey)
    assert image_files.decode(png(grey > 127), "bilevel").tolist() == ((grey > 127) * 255)[..., None].tolist()
    rgba = np.dstack([noise(5, 6, 3), np.full((5, 6), 255, np.uint8)])
    rgba[0, 0, 3] = 0
    out = image_files.decode(png(rgba), "rgba")
    assert out[0, 0].tolist() == [255, 255, 255]
    np.testing.assert_array_equal(out[1:], rgba[1:, :, :3])
    assert image_files.decode(png(np.dstack([grey, np.full((5, 6), 255, np.uint8)])), "la").shape == (5, 6, 1)
    for mode in ("CMYK", "P"):
        Image.fromarray(noise(5, 6, 3)).convert(mode).save(tmp_path / f"{mode}.tif")
        assert image_files.decode(tmp_path / f"{mode}.tif", mode).shape == (5, 6, 3)


def test_pictures_that_do_not_fill_their_bits_are_told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 bits in 16 are all but black: said of the first, not of each; what fills 16, or fits 8, is said nothing of."""
    monkeypatch.setattr(image_files, "_told_dark", [])
    for most in (255, 65535):
        image_files.decode(png(np.array([[0, most]], np.uint16)), "good")
    assert not caplog.records
    for name in ("one", "two"):
        image_files.decode(png(np.array([[0, 4095]], np.uint16)), name)
    (record,) = caplog.records
    assert record.getMessage().startswith("one has 16 bits a pixel and none above 4095, ")


def test_decode_turns_photos_upright() -> None:
    """A phone's photo lies on its side in the file; its EXIF tag says so."""
    image, exif = Image.fromarray(noise(8, 4, 3)), Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    assert image_files.decode(buffer.getvalue(), "photo").shape == (4, 8, 3)


# Arrays


LAYOUTS = {
    "keras": ("x_train", "y_train", "x_test", "y_test"),
    "medmnist": ("train_images", "train_labels", "test_images", "test_labels"),
}


@pytest.mark.parametrize("keys", LAYOUTS.values(), ids=LAYOUTS)
def test_array_names(tmp_path: Path, keys: tuple[str, ...]) -> None:
    """Both namings of split arrays are understood, labels [N, 1] too."""
    x, y = noise(6, 8, 8), np.array([[0], [1], [2]] * 2)
    np.savez(tmp_path / "a.npz", **dict(zip(keys, (x, y, x[:3], y[:3]), strict=True)))  # type: ignore[arg-type]
    source = Arrays(str(tmp_path / "a.npz"), "class")
    assert source.own_splits() == ("train", "test") and source.classes == ["0", "1", "2"]
    assert source.image_shape == (8, 1) and source.read("test").labels.tolist() == [0, 1, 2]  # type: ignore[union-attr]
    np.testing.assert_array_equal(source.read("train").items, x[..., None])


@pytest.mark.parametrize("layout", ["NHW", "NHWC", "NCHW", "RGBA"])
@pytest.mark.parametrize("dtype", ["uint8", "int64", "float255", "float1"])
def test_array_layouts_and_types(tmp_path: Path, layout: str, dtype: str) -> None:
    """Every promised layout and range gives the same bytes [N, H, W, C]."""
    x = noise(4, 8, 6) if layout == "NHW" else noise(4, 8, 6, 3)
    x.flat[0] = 255
    want = x[..., None] if layout == "NHW" else x
    if layout == "NCHW":
        x = x.transpose(0, 3, 1, 2)
    if layout == "RGBA":
        x = np.concatenate([x, np.full((4, 8, 6, 1), 255, np.uint8)], axis=3)
    stored = {"uint8": x, "int64": x.astype(np.int64), "float255": x.astype(np.float32), "float1": x / np.float32(255)}
    np.savez(tmp_path / "a.npz", images=stored[dtype], labels=np.array(["b", "a", "b", "a"]))
    source = Arrays(str(tmp_path / "a.npz"), "class")
    np.testing.assert_array_equal(source.read("train").items, want)
    assert source.classes == ["a", "b"] and source.read("train").labels.tolist() == [1, 0, 1, 0]  # type: ignore[union-attr]


def test_array_errors(tmp_path: Path) -> None:
    """What is wrong with an array is said with its name and row."""

    def read(**arrays: object) -> None:
        np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
        Arrays(str(tmp_path / "a.npz"), "class").read("train")

    x = noise(4, 8, 8)
    bad = x.astype(float)
    bad[2, 0, 0] = np.nan
    for arrays, message in (
        ({"images": bad, "labels": np.zeros(4, int)}, "'images' holds values that are not finite, first in row 2"),
        ({"images": x.astype(float) - 128, "labels": np.zeros(4, int)}, "values from -1"),
        ({"images": x, "labels": np.zeros(3, int)}, "4 images.*3 labels"),
        ({"images": x, "labels": np.array([0, 1, -2, 0])}, "row 2: the label"),
        ({"images": x, "labels": np.zeros((4, 5), int)}, "one class per image"),
        ({"images": x.reshape(4, 64), "labels": np.zeros(4, int)}, "has shape"),
        ({"pictures": x}, "has the arrays pictures"),
        ({"images": np.array([None] * 4), "labels": np.zeros(4, int)}, "cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            read(**arrays)
    (tmp_path / "b.npz").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"not a \.npz file"):
        Arrays(str(tmp_path / "b.npz"), "class").own_splits()
    with pytest.raises(UserError, match=r"did you mean 'a\.npz'"):
        Arrays(str(tmp_path / "aa.npz"), "class").own_splits()


def test_arrays_without_labels(tmp_path: Path) -> None:
    """Images alone are the unlabelled split."""
    np.savez(tmp_path / "a.npz", x=noise(4, 8, 8))
    source = Arrays(str(tmp_path / "a.npz"), "class")
    assert source.own_splits() == ("unlabeled",) and source.classes is None


# Hugging Face


def test_hf_parquet_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Sharded parquet files become splits; the columns found are logged; text labels become classes."""
    images = [noise(6, 6, 3) for _ in range(8)]
    write_parquet(tmp_path / "data/train-00000-of-00002.parquet", images[:5], list("abcab"))
    write_parquet(tmp_path / "data/train-00001-of-00002.parquet", images[5:], list("cab"))
    write_parquet(tmp_path / "data/validation-00000-of-00001.parquet", images[:2], list("ba"))
    caplog.set_level("INFO", "sslt")
    source = hf(tmp_path)
    raw = source.read("train")
    assert source.own_splits() == ("train", "val") and source.classes == ["a", "b", "c"]
    assert "images 'img', labels 'label'" in caplog.text
    assert raw.labels is not None and raw.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    np.testing.assert_array_equal(raw.items[6], images[6])
    assert source.image_shape == (6, 3)


def test_hf_columns(tmp_path: Path) -> None:
    """A column is named by the nearest one that exists; others than the usual can be chosen; -1 is no label."""
    write_parquet(tmp_path / "a.parquet", [noise(6, 6)] * 2, [0, 1], kind=[1, 0], none=[-1, -1])
    with pytest.raises(UserError, match="no column 'imgs'; did you mean 'img'"):
        hf(tmp_path, image="imgs").read("train")
    labels = hf(tmp_path / "a.parquet", label="kind").read("train").labels
    assert labels is not None and labels.tolist() == [1, 0]
    assert hf(tmp_path, label="none").read("train").labels is None


def test_hf_categories_and_truths_are_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As pandas writes them; what is passed over for its kind is told."""
    import pyarrow as pa

    for values, classes in ((pa.array(["dog", "cat"]).dictionary_encode(), ["cat", "dog"]), ([True, False], ["0", "1"])):
        write_parquet(tmp_path / "a.parquet", [noise(6, 6)] * 2, values)
        raw = hf(tmp_path).read("train")
        assert hf(tmp_path).classes == classes and raw.labels is not None and raw.labels.tolist() == [1, 0]
    assert "is not taken for classes" not in caplog.text
    write_parquet(tmp_path / "a.parquet", [noise(6, 6)] * 2, [0.0, 1.0])
    assert hf(tmp_path).classes is None and "the column 'label' of" in caplog.text
    assert hf(tmp_path, label="label").classes == ["0", "1"]


def test_hf_what_skips_rows_is_another_set(tmp_path: Path) -> None:
    """Else a set that was prepared without the rows that have no label would be taken where they are refused."""
    write_parquet(tmp_path / "a.parquet", [noise(6, 6)] * 3, [0, 1, -1])
    skipping, failing = (hf(tmp_path, on_error=on_error) for on_error in ("skip", "fail"))
    assert skipping.fingerprint() != failing.fingerprint() == hf(tmp_path).fingerprint()
    assert len(skipping.read("train")) == 2


def test_hf_files_of_other_classes_are_not_mixed(tmp_path: Path) -> None:
    """Files whose class names differ are not one split: label 0 would mean two things."""
    write_parquet(tmp_path / "background.parquet", [noise(6, 6)], [0], names=["a"])
    write_parquet(tmp_path / "evaluation.parquet", [noise(6, 6)], [0], names=["b"])
    with pytest.raises(UserError, match="not parts of one split"):
        hf(tmp_path).read("train")


def test_hf_damaged_cell_is_named(tmp_path: Path) -> None:
    """A broken image in a table is named by file and row."""
    write_parquet(tmp_path / "a.parquet", [noise(6, 6)] * 4 + [b"broken", None], [0] * 6)
    items = hf(tmp_path).read("train").items
    for row in (4, 5):
        with pytest.raises(image_files.Unreadable, match=f"a.parquet, row {row}"):
            items[row]


def test_hf_saved_to_disk(tmp_path: Path) -> None:
    """A `save_to_disk` folder gives the same images, labels and class names."""
    import datasets

    images = [noise(6, 6, 3) for _ in range(4)]
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["u", "v"])})
    cells = [{"bytes": png(i), "path": None} for i in images]
    rows = datasets.Dataset.from_dict({"picture": cells, "kind": [1, 0, 1, 0]}, features=features)
    datasets.DatasetDict({"train": rows, "validation": rows.select([0])}).save_to_disk(tmp_path / "saved")
    source = hf(tmp_path / "saved")
    raw = source.read("train")
    assert source.own_splits() == ("train", "val") and source.classes == ["u", "v"]
    assert raw.labels is not None and raw.labels.tolist() == [1, 0, 1, 0]
    np.testing.assert_array_equal(raw.items[3], images[3])
    assert source.fingerprint() == hf(tmp_path / "saved").fingerprint()


def test_hf_hub_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the hub, the message names the folder to fill and the cache that is looked in."""

    def offline(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(UserError, match=f"(?s)no route to host.*{tmp_path}/some/set.*HF_HOME"):
        hf("some/set", root=str(tmp_path)).own_splits()


# Configurations


IMAGE_CONFIGS = [path for path in sorted(CONFIGS.glob("*.yaml")) if "sslt.data.sources.images." in path.read_text()]


@pytest.mark.parametrize("path", IMAGE_CONFIGS, ids=lambda path: path.stem)
def test_config_lists_every_parameter(path: Path) -> None:
    """Each image config says what it is, and names the parameters of its source, all and no other."""
    from omegaconf import OmegaConf

    config = OmegaConf.load(path)
    name = str(config._target_).rpartition(".")[2]
    assert path.read_text().startswith("# ")
    assert list(config)[1:] == list(inspect.signature(getattr(sources, name)).parameters)


# Real data


@pytest.mark.skipif(not os.environ.get("SSLT_TEST_DATA"), reason="SSLT_TEST_DATA is not set")
@pytest.mark.parametrize(("name", "n"), [("mnist", 60000), ("fashion_mnist", 60000), ("usps", 7291), ("cifar10", 50000)])
def test_real_sets(name: str, n: int) -> None:
    """The sets as they are distributed have their known sizes and classes."""
    source = ImageSet(name, os.environ["SSLT_TEST_DATA"], False)
    raw = source.read("train")
    assert len(raw) == n and raw.labels is not None and set(raw.labels.tolist()) == set(range(10))
    assert raw.items[n - 1].shape[0] == source.image_shape[0]


def test_hf_classes_are_those_of_the_labelled_splits(tmp_path: Path) -> None:
    """Labels of the unlabelled split, which may be anything, are none; a split may lack the column; names must agree."""
    images = [noise(6, 6)] * 3
    write_parquet(tmp_path / "data" / "train.parquet", images, ["b", "a", "b"])
    write_parquet(tmp_path / "data" / "unlabeled.parquet", images, ["?", "?", "?"])
    source = hf(tmp_path)
    assert source.classes == ["a", "b"] and source.read("unlabeled").labels is None and source.read("train").labels.tolist() == [1, 0, 1]
    bare = tmp_path / "bare"
    write_parquet(bare / "train.parquet", images, [0, 1, 0], names=["x", "y"])
    write_parquet(bare / "test.parquet", images, [0, 1, 1], names=["x", "z"])
    with pytest.raises(UserError, match="differently"):
        hf(bare).classes  # noqa: B018
