"""Protects pictures with masks of a user's own: every layout and kind of file that is promised, and one line for what is wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_IMAGES
from PIL import Image

from sslt import config
from sslt.data import cache
from sslt.data.answers import IGNORE, Instances, Map
from sslt.data.prepare.image_processor import ImageProcessor
from sslt.data.sources.image_files import decode
from sslt.data.sources.masks import Masks
from sslt.errors import UserError

RNG = np.random.default_rng(0)
SHAPE = (6, 9)
PLAIN: dict[str, Any] = {
    "images": "images", "masks": "masks", "answer": "map", "holds": "classes", "classes": None, "colours": None, "ignore": 255,
    "on_error": "fail", "size": None, "val_fraction": 0.25, "test_fraction": 0.25,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_root", tmp_path / "cache")


def masks(path: Path, **settings: Any) -> Masks:
    return Masks(str(path), **PLAIN | settings)


def save(path: Path, pixels: np.ndarray | None = None, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(RNG.integers(0, 256, (*SHAPE, 3), np.uint8) if pixels is None else pixels)
    (picture.convert(mode) if mode else picture).save(path)
    return path


def pair(place: Path, name: str, mask: np.ndarray, suffix: str = "png", split: str = "") -> None:
    save(place / "images" / split / f"{name}.{suffix}")
    save(place / "masks" / split / f"{name}.png", mask)


def some(high: int = 3, dtype: Any = np.uint8, seed: int = 0) -> np.ndarray:
    """A map in which every class from 0 to high - 1 is found."""
    return np.random.default_rng(seed).permutation(np.arange(SHAPE[0] * SHAPE[1]) % high).reshape(SHAPE).astype(dtype)


@pytest.fixture
def three(tmp_path: Path) -> Path:
    for i, name in enumerate("abc"):
        pair(tmp_path / "own", name, some(seed=i), "jpg" if name == "b" else "png")
    return tmp_path / "own"


# -------------------------------------------------------------------- layouts
def test_masks_belong_to_images_by_name(three: Path) -> None:
    """Whatever the suffix of the image; classes are the values; images stay closed until they are asked for."""
    source = masks(three)
    raw = source.read("train")
    assert source.classes == ["0", "1", "2"] and source.row_names("train") == ["images/a.png", "images/b.jpg", "images/c.png"]
    assert isinstance(raw.answers, Map) and raw.answers.space == source.space == {"classes": ["0", "1", "2"]}
    for i in range(3):
        np.testing.assert_array_equal(raw.answers.row(i), some(seed=i))
        assert raw.items[i].shape == (*SHAPE, 3)
    os.remove(three / "images/b.jpg")
    np.testing.assert_array_equal(raw.items[0], decode(three / "images/a.png", "a"))


@pytest.mark.parametrize("above", [True, False])
def test_folders_are_splits(tmp_path: Path, above: bool) -> None:
    """train/ and valid/ above images/ and masks/, or in both; test/ may be without masks."""
    for split, names in (("train", "abcd"), ("valid", "e"), ("test", "f")):
        for name in names:
            pair(tmp_path / split if above else tmp_path, name, some(), split="" if above else split)
    source = masks(tmp_path)
    assert source.own_splits() == ("train", "val", "test") and [len(source.read(s)) for s in source.own_splits()] == [4, 1, 1]
    place = tmp_path / "test/masks" if above else tmp_path / "masks/test"
    (place / "f.png").unlink()
    place.rmdir()
    assert masks(tmp_path).read("test").answers is None


@pytest.mark.parametrize("place", ["", "splits"])
def test_lists_are_splits(three: Path, place: str) -> None:
    """Names with suffix or without; what is not listed is left out, a split without a list is drawn from train."""
    for name in "defgh":
        pair(three, name, some())
    (three / place).mkdir(exist_ok=True)
    (three / place / "train.txt").write_text("a\nb.jpg\n\nd\ne\nf\n")
    (three / place / "test.txt").write_text("c\n")
    source = masks(three)
    assert source.row_names("test") == ["images/c.png"] and len(source.read("train")) == 5
    assert len(source.get("val")) == 1 and len(source.get("train")) == 4
    (three / place / "test.txt").write_text("c\nbb\n")
    with pytest.raises(UserError, match=r"test\.txt, line 2: there is no image 'bb'"):
        masks(three).own_splits()
    (three / place / "test.txt").write_text("c\na\n")
    with pytest.raises(UserError, match=r"a\.png is listed in .*(train|test)\.txt and .*(train|test)\.txt"):
        masks(three).own_splits()
    (three / place / "test.txt").write_text("\n")
    with pytest.raises(UserError, match="lists no image"):
        masks(three).own_splits()


def test_splits_are_drawn_by_a_fixed_seed(tmp_path: Path) -> None:
    """Without any, val and test come from train: disjoint, whole, the same every time."""
    for i in range(16):
        pair(tmp_path, f"{i:02}", some(seed=i))
    parts = {s: [m.tobytes() for m in (masks(tmp_path).get(s).answers.row(i) for i in range(n))] for s, n in SIZES.items()}
    assert {s: len(masks(tmp_path).get(s)) for s in SIZES} == SIZES and len({m for part in parts.values() for m in part}) == 16
    assert parts["val"] == [masks(tmp_path).get("val").answers.row(i).tobytes() for i in range(3)]


SIZES = {"train": 9, "val": 3, "test": 4}


# -------------------------------------------------------------------- what masks hold
@pytest.mark.parametrize(
    "written",
    [
        lambda m: Image.fromarray(m),
        lambda m: Image.fromarray(m.astype(np.uint16)),
        lambda m: Image.fromarray(np.repeat(m[..., None], 3, 2)),
        lambda m: Image.fromarray(np.dstack([m, m, m, np.full_like(m, 255)])),
        lambda m: Image.fromarray(np.dstack([m, np.full_like(m, 255)])),
        lambda m: _palette(m),
    ],
    ids=["grey", "16 bits", "equal colours", "transparent", "grey, transparent", "palette"],
)
def test_values_are_classes_in_every_mode(three: Path, written: Any) -> None:
    """A palette says how a class is shown, not which it is."""
    written(some(seed=7)).save(three / "masks/b.png")
    np.testing.assert_array_equal(masks(three).read("train").answers.row(1), some(seed=7))


def _palette(m: np.ndarray) -> Image.Image:
    image = Image.fromarray(m, "P")
    image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    return image


def test_one_bit_is_two_classes(tmp_path: Path) -> None:
    """PNGs of one bit a pixel."""
    for name in "ab":
        pair(tmp_path, name, some(2).astype(bool))
    source = masks(tmp_path)
    np.testing.assert_array_equal(source.read("train").answers.row(0), some(2))
    assert source.classes == ["0", "1"]


COLOURS = {"road": [128, 64, 128], "car": [0, 0, 142], "sky": [255, 0, 0]}


def test_colours_stand_for_classes(three: Path) -> None:
    """As RGB, with transparency, or through a palette; a colour may be ignored; classes can have another order than the colours."""
    table = np.array([*COLOURS.values(), [0, 0, 0]], np.uint8)
    wanted = [some(4, seed=i) for i in range(3)]
    palette = Image.fromarray(wanted[1], "P")
    palette.putpalette(table.ravel().tolist())
    save(three / "masks/a.png", table[wanted[0]])
    palette.save(three / "masks/b.png")
    save(three / "masks/c.png", np.dstack([table[wanted[2]], np.full(SHAPE, 255, np.uint8)]))
    source = masks(three, colours=COLOURS, ignore=[0, 0, 0])
    raw = source.read("train")
    assert source.classes == ["road", "car", "sky"]
    for i, m in enumerate(wanted):
        np.testing.assert_array_equal(raw.answers.row(i), np.where(m == 3, IGNORE, m))
    turned = masks(three, colours=COLOURS, ignore=0, classes=["sky", "tree", "road", "car"])
    np.testing.assert_array_equal(turned.read("train").answers.row(0), np.array([2, 3, 0, IGNORE])[wanted[0]])
    with pytest.raises(UserError, match=r"a\.png: the colour \[0, 0, 0\] at row \d, column \d is none of the 3 in data.colours"):
        masks(three, colours=COLOURS).read("train")
    with pytest.raises(UserError, match=r"'rood', which is no class of own.*did you mean 'road'"):
        masks(three, colours={"rood": [1, 1, 1]}, classes=["road"]).read("train")


def test_grey_values_stand_for_classes(three: Path) -> None:
    """0 and 255, as drawing programs write them: 255 is ignored unless it is named, and that is said."""
    for i, name in enumerate("abc"):
        save(three / f"masks/{name}.png", some(2, seed=i) * 255)
    with pytest.raises(UserError, match=r"all pixels of the masks of own are of '0' or ignored \(data.ignore=255\)"):
        masks(three).read("train")
    source = masks(three, colours={"background": 0, "thing": 255})
    np.testing.assert_array_equal(source.read("train").answers.row(2), some(2, seed=2))
    assert source.classes == ["background", "thing"]
    with pytest.raises(UserError, match=r"data.colours: .* is no colour"):
        masks(three, colours={"background": 0, "thing": [1, 2]}).read("train")


def test_names_of_classes(three: Path) -> None:
    """A setting comes before classes.txt, and that before the values; names beyond the values are classes that do not occur."""
    (three / "classes.txt").write_text("sky\n\n tree \nroad\nnever\n", encoding="utf-8")
    assert masks(three).classes == ["sky", "tree", "road", "never"]
    assert masks(three, classes=["x", "y", "z"]).classes == ["x", "y", "z"]
    (three / "classes.txt").unlink()
    assert masks(three).classes == ["0", "1", "2"]


def test_ignored_values(three: Path) -> None:
    """255 by default, another one by setting, or none, so that 255 is a mistake where it is no class."""
    save(three / "masks/a.png", np.where(some() == 2, 255, some()).astype(np.uint8))
    np.testing.assert_array_equal(masks(three).read("train").answers.row(0), np.where(some() == 2, IGNORE, some()))
    save(three / "masks/a.png", some())
    np.testing.assert_array_equal(masks(three, ignore=1).read("train").answers.row(1), np.where(some(seed=1) == 1, IGNORE, some(seed=1)))
    save(three / "masks/a.png", np.where(some() == 2, 255, some()).astype(np.uint8))
    with pytest.raises(UserError, match=r"a\.png: the value 255 at row \d, column \d is none of the 3 classes"):
        masks(three, ignore=None, classes=["x", "y", "z"]).read("train")


def test_numbers_of_objects(tmp_path: Path) -> None:
    """Whatever numbers there are, also above 255 or as colours: an object each, from 1 on; or inside and outside."""
    numbers = np.array([0, 7, 300, 40000])[some(4)]
    pair(tmp_path, "a", numbers.astype(np.uint16))
    pair(tmp_path, "b", np.array([[0, 0, 0], [1, 2, 3], [3, 2, 1]], np.uint8)[some()])
    pair(tmp_path, "c", np.full(SHAPE, 255, np.uint8))
    pair(tmp_path, "d", np.zeros(SHAPE, np.uint8))
    source = masks(tmp_path, holds="objects", answer="instances", classes=["cell"])
    raw = source.read("train")
    assert isinstance(raw.answers, Instances) and source.space == {"classes": ["cell"]}
    np.testing.assert_array_equal(raw.answers.row(0), some(4))
    assert len(np.unique(raw.answers.row(1))) == 3 and ((raw.answers.row(1) == 0) == (some() == 0)).all()
    assert raw.answers.row(2).tolist() == np.ones(SHAPE).tolist() and not raw.answers.row(3).any()
    assert [o.tolist() for o in raw.answers.objects] == [[0, 0, 0], [0, 0], [0], []]
    inside = masks(tmp_path, holds="objects")
    np.testing.assert_array_equal(inside.read("train").answers.row(0), some(4) > 0)
    assert inside.classes == ["background", "object"]


# -------------------------------------------------------------------- mistakes
def _no_mask(own: Path) -> None:
    (own / "masks/b.png").unlink()


def _no_image(own: Path) -> None:
    (own / "images/b.jpg").unlink()


def _nothing(own: Path) -> None:
    for file in [*own.glob("images/*"), *own.glob("masks/*")]:
        file.unlink()


def _lossy(own: Path) -> None:
    (own / "masks/b.png").rename(own / "masks/b.jpg")


MISTAKES = {
    "mask of another size": (lambda own: save(own / "masks/b.png", some().T), r"masks/b\.png is 6 × 9 pixels, .*images/b\.jpg 9 × 6"),
    "value of no class": (
        lambda own: save(own / "masks/b.png", some(4)),
        r"masks/b\.png: the value 3 at row \d, column \d is none of the 3",
    ),
    "image without mask": (_no_mask, r"images/b\.jpg has no mask: there is no .*masks/b\.png"),
    "mask without image": (_no_image, r"masks/b\.png is the mask of no image"),
    "no file": (_nothing, "no images in .*images"),
    "colours without names": (lambda own: save(own / "masks/b.png"), r"masks/b\.png holds colours: name the class of each"),
    "two of a name": (lambda own: save(own / "images/b.png"), r"images/b\.(jpg|png) and .*images/b\.(jpg|png) have one name"),
    "lossy": (_lossy, r"masks/b\.jpg: a mask as JPEG"),
    "cut short": (lambda own: (own / "masks/b.png").write_bytes((own / "masks/b.png").read_bytes()[:50]), r"masks/b\.png: "),
    "no masks": (lambda own: (own / "masks").rename(own / "mask"), r"there is no folder .*masks with .*did you mean 'mask'"),
    "no images": (lambda own: (own / "images").rename(own / "pictures"), r"there is no folder .*images: put pictures there"),
}


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_mistakes_are_one_line_with_the_file(three: Path, mistake: str) -> None:
    """What is wrong, in which file."""
    make, said = MISTAKES[mistake]
    make(three)
    with pytest.raises(UserError, match=said) as error:
        masks(three, classes=["x", "y", "z"]).read("train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"answer": "mask"}, r"data.answer=mask: give map or instances"),
        ({"holds": "object"}, "data.holds=object: give classes or objects.*did you mean 'objects'"),
        ({"answer": "instances"}, "set data.holds=objects"),
        ({"holds": "objects", "classes": ["a", "b"]}, "one name in data.classes"),
        ({"classes": [str(i) for i in range(256)]}, "256 classes, more than the 255"),
        ({"classes": []}, "no class"),
    ],
)
def test_settings_that_do_not_fit(three: Path, settings: dict[str, Any], said: str) -> None:
    """Named, with what to give."""
    with pytest.raises(UserError, match=said):
        masks(three, **settings).read("train")


def test_many_values_are_objects(three: Path) -> None:
    """Numbers of objects that are taken for classes: the way out is named."""
    save(three / "masks/a.png", (some().astype(np.uint16) * 500))
    with pytest.raises(UserError, match=r"1001 classes, more than the 255.*data.holds=objects"):
        masks(three).read("train")


def test_an_unreadable_picture_is_the_processors_to_skip(three: Path) -> None:
    """Its mask goes with it, and the others keep theirs."""
    (three / "images/a.png").write_bytes(b"nothing")
    source = masks(three, on_error="skip", val_fraction=0.0, test_fraction=0.0)
    samples = ImageProcessor(6, 3, [0.0] * 3, [1.0] * 3, "stretch").prepare(source, "train")
    assert len(samples) == 2 and samples.skipped == 1
    np.testing.assert_array_equal(samples.answers.row(0), some(seed=1))


def test_a_photo_is_turned_upright_before_it_is_compared(three: Path) -> None:
    """A camera that was held upright writes pixels lying down and says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RNG.integers(0, 256, (9, 6, 3), np.uint8)).save(three / "images/b.jpg", exif=exif)
    raw = masks(three).read("train")
    assert raw.items[1].shape[:2] == SHAPE == raw.answers.row(1).shape


# -------------------------------------------------------------------- preparation
def test_masks_are_read_once(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later runs have them from the cache, with the images; changed masks are read again."""
    processor = ImageProcessor(6, 3, [0.0] * 3, [1.0] * 3, "pad")
    settings = {"val_fraction": 0.0, "test_fraction": 0.0}
    first = processor.prepare(masks(three, **settings), "train")
    with monkeypatch.context() as patch:
        patch.setattr(Masks, "read", None)
        again = processor.prepare(masks(three, **settings), "train")
    batch, same = first.batch(np.arange(3)), again.batch(np.arange(3))
    assert torch.equal(batch["map"], same["map"]) and batch["map"].shape == (3, 6, 6)
    assert (batch["map"][:, 0] == IGNORE).all() and (batch["image"][:, :, 0] == 0).all()
    save(three / "masks/a.png", np.zeros(SHAPE, np.uint8))
    changed = processor.prepare(masks(three, **settings), "train")
    assert not changed.answers.row(0).any() and changed.fingerprint != first.fingerprint


def test_fingerprints(three: Path) -> None:
    """Of another kind of answer, order of classes, colour or ignored value, and of another split."""
    made = [{}, {"classes": ["x", "y", "z"]}, {"ignore": 2}, {"holds": "objects"}, {"holds": "objects", "answer": "instances"}]
    prints = {masks(three, **settings).fingerprint() for settings in made}
    (three / "train.txt").write_text("a\nb\n")
    assert len(prints | {masks(three).fingerprint()}) == len(made) + 1


def test_nuclei(monkeypatch: pytest.MonkeyPatch) -> None:
    """The microscope images as they are kept: 334 of them, inside and outside, or nucleus by nucleus."""
    place = Path(os.environ.get("SSLT_DATA", "data")) / "nuclei"
    if not place.is_dir():
        pytest.skip("needs nuclei in $SSLT_DATA")
    for answer, names in (("map", ["background", "nucleus"]), ("instances", ["nucleus"])):
        source = config.build(config.compose("pretrain", ["+task=simclr", "data=nuclei", f"data.answer={answer}"]).data)
        raw = source.read("train")
        assert len(raw) == 334 and source.classes == names and set(map(tuple, raw.answers.shapes)) == {(256, 256)}
        stored = np.asarray(Image.open(sorted((place / "instances").glob("*.png"))[5]))
        np.testing.assert_array_equal(raw.answers.row(5) > 0, stored > 0)
        assert raw.answers.row(5).max() == (1 if answer == "map" else len(np.unique(stored)) - 1)
    assert source.get("test").answers.values.sizes.sum() == 67 * 256 * 256


# -------------------------------------------------------------------- through the command
def test_pretraining_on_pictures_with_masks(sslt, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images are images; a mask that does not fit is one line and exit 2."""
    for i in range(20):
        pair(here / "own", f"{i:02}", some(seed=i))
    args = ["pretrain", "+task=simclr", "data=masks", "data.path=own", "batch_size=4", "trainer.max_steps=2", *TINY_IMAGES]
    sslt(*args, "hydra.run.dir=out")
    assert (here / "out/encoder").is_dir()
    save(here / "own/masks/07.png", some().T)
    sslt(*args, "hydra.run.dir=bad", code=2)
    assert "masks/07.png is 6 × 9 pixels" in capsys.readouterr().err and not (here / "bad").exists()
