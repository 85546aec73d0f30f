"""Where images come from: sets with a name, folders, array files and Hugging Face sets, each a `Source`."""

from __future__ import annotations

import importlib.util
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sslt import stored
from sslt.data import cache
from sslt.data.answers import Answers, Class, Labels, Number, Space
from sslt.data.base import SPLITS, Raw, check_on_error
from sslt.data.sources import disk, image_files
from sslt.data.sources.answer_columns import AnswerColumns, of_array
from sslt.data.sources.image_files import SPLIT_NAMES, ImageSource, encoder_shape
from sslt.data.sources.image_tables import HuggingFaceImages, ParquetTable, Table, TableSource, parquet_splits
from sslt.data.sources.labels import decoded
from sslt.errors import UserError, nearest

__all__ = ["Arrays", "Digits", "HuggingFaceImages", "ImageFolder", "ImageSet"]

log = logging.getLogger("sslt")

DIGIT_NAMES = [str(i) for i in range(10)]


class Digits(ImageSource):
    """The 1,797 grey 8x8 digits that scikit-learn carries (the test half of UCI's Optical Recognition of Digits)."""

    name = "digits"
    image_shape = (8, 1)
    classes = DIGIT_NAMES

    def own_splits(self) -> tuple[str, ...]:
        return ("train",)

    @property
    def _file(self) -> Path:
        spec = importlib.util.find_spec("sklearn")
        if spec is None or not spec.submodule_search_locations:
            raise UserError("data=digits is a file of scikit-learn, which is not installed: pip install scikit-learn")
        return Path(spec.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")

    def read(self, split: str) -> Raw:
        self._check(split)
        table = np.loadtxt(self._file, delimiter=",")
        pixels = np.rint(table[:, :64] * (255 / 16)).astype(np.uint8)
        return Raw(pixels.reshape(-1, 8, 8, 1), self.as_answers(table[:, 64]))

    def fingerprint(self) -> str:
        return cache.digest("digits", cache.file_digest(self._file))


@dataclass(frozen=True)
class _Set:
    """A set with a name: torchvision's class for it, what it holds, and the files of its official layout."""

    title: str
    shape: tuple[int, int]  # (size, channels)
    classes: Sequence[str]
    files: Sequence[str]
    folder: str = ""


_IDX = [f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")]
_FASHION = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
_CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
_CIFAR100 = """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man
maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain
plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip
turtle wardrobe whale willow_tree wolf woman worm""".split()  # noqa: SIM905 - a list literal would take a line per name
_STL10 = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
_CIFAR10_FILES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]
_STL10_FILES = ["train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "unlabeled_X.bin"]

SETS = {
    "mnist": _Set("MNIST", (28, 1), DIGIT_NAMES, _IDX),
    "fashionmnist": _Set("FashionMNIST", (28, 1), _FASHION, _IDX),
    "cifar10": _Set("CIFAR10", (32, 3), _CIFAR10, _CIFAR10_FILES, "cifar-10-batches-py"),
    "cifar100": _Set("CIFAR100", (32, 3), _CIFAR100, ["train", "test", "meta"], "cifar-100-python"),
    "stl10": _Set("STL10", (96, 3), _STL10, _STL10_FILES, "stl10_binary"),
    "svhn": _Set("SVHN", (32, 3), DIGIT_NAMES, ["train_32x32.mat", "test_32x32.mat"]),
    "usps": _Set("USPS", (16, 1), DIGIT_NAMES, ["usps.bz2", "usps.t.bz2"]),
}


def _plain_or_gz(path: Path) -> Path | None:
    return next((p for p in (path, path.with_name(f"{path.name}.gz")) if p.is_file()), None)


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


class ImageSet(TableSource):
    """A set with a name: mnist, fashion_mnist, cifar10, cifar100, stl10, svhn or usps.

    Looked for in `root`, and in a folder of its name there: the official files as torchvision lays them out (idx files
    gzipped or not), or `train.parquet` and `test.parquet`. Where nothing is, `download` lets torchvision fetch it.
    """

    def __init__(self, name: str, root: str, download: bool):
        self.key = _plain(name)
        if self.key not in SETS:
            raise UserError(f"data.name={name} is no image set{nearest(name, SETS)}")
        self.name, self.root, self.download = name, stored.located(root), download
        self.set = SETS[self.key]

    @cached_property
    def _files(self) -> list[Path]:
        """The official files; empty where the set is there as tables."""
        if files := self._find():
            return files
        if self._tables:
            return []
        if self.download:
            self._fetch()
            if files := self._find():
                return files
        raise UserError(
            f"{self.name} is not in {self.root}: put {', '.join(self.set.files)} into {self._official}, "
            f"or train.parquet and test.parquet (columns image, label) into {self.root / self.key};\n"
            "or set data.download=true to download it"
        )

    @property
    def _official(self) -> Path:
        return self.root / (f"{self.set.title}/raw" if self.set.files is _IDX else self.set.folder)

    def _find(self) -> list[Path]:
        """All files of the official layout, or none."""
        places = [*self._named(), self.root, *([self.root.parent] if self.root.name == self.set.folder else [])]
        for folder in (place / inner for place in places for inner in (self.set.folder, "raw")):
            near = {_plain(folder.absolute().name), _plain(folder.absolute().parent.name)}
            if self.set.files is _IDX and near & (SETS.keys() - {self.key}):
                continue  # MNIST and FashionMNIST name their files alike
            found = [_plain_or_gz(folder / name) for name in self.set.files]
            if all(found):
                return [file for file in found if file]
        return []

    def _named(self) -> list[Path]:
        """Folders in `root` that are named as the set is."""
        if not self.root.is_dir():
            return []
        return sorted(p for p in self.root.iterdir() if _plain(p.name) == self.key and p.is_dir())

    def _fetch(self) -> None:
        log.info("downloading %s to %s", self.name, self.root)
        try:
            for split in ("train", "test"):
                self._torchvision(self.root, split, download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"cannot download {self.name}: {(str(error) or type(error).__name__).splitlines()[0].rstrip(':')}\n"
                f"Put its files ({', '.join(self.set.files)}) into {self._official} by other means"
            ) from error

    def _torchvision(self, root: Path, split: str, download: bool) -> Any:
        import torchvision.datasets

        kind = getattr(torchvision.datasets, self.set.title)
        which = {"split": split} if self.key in ("stl10", "svhn") else {"train": split == "train"}
        return kind(str(root), download=download, **which)

    @cached_property
    def _tables(self) -> dict[str, Table]:  # type: ignore[override]
        own = [self.root] if _plain(self.root.resolve().name) == self.key else []
        for folder in [*self._named(), *own]:
            if splits := parquet_splits(folder):
                return {split: ParquetTable(files) for split, files in splits.items()}
        return {}

    def own_splits(self) -> tuple[str, ...]:
        if not self._files:
            return super().own_splits()
        return ("train", "test", "unlabeled") if self.key == "stl10" else ("train", "test")

    def read(self, split: str) -> Raw:
        self._check(split)
        if not self._files:
            return super().read(split)
        images: np.ndarray
        labels: np.ndarray | None
        if self.set.files is _IDX:
            images, labels = map(image_files.read_idx, self._files[:2] if split == "train" else self._files[2:])
        elif self.key == "stl10":
            images, labels = _read_stl10(self._files[0].parent, split)
        else:
            images, labels = self._read_torchvision(split)
        items = image_files.to_nhwc(images, self.name)
        return Raw(items, self.as_answers(labels))

    def _read_torchvision(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        folder = self._files[0].parent
        try:
            loaded = self._torchvision(folder.parent if self.set.folder else folder, split, download=False)
        except (OSError, RuntimeError, ValueError, EOFError) as error:
            raise UserError(f"the files of {self.name} in {folder} are damaged: {error}") from error
        return np.asarray(loaded.data), np.asarray(loaded.labels if self.key == "svhn" else loaded.targets)

    def fingerprint(self) -> str:
        if not self._files:
            return super().fingerprint()
        return cache.digest(self.key, [cache.file_digest(file) for file in self._files])

    @cached_property
    def classes(self) -> list[str] | None:  # type: ignore[override]
        own = list(self.set.classes)
        if self._files:
            return own
        read = super().classes
        return own if read is not None and read == [str(i) for i in range(len(own))] else read

    @property
    def image_shape(self) -> tuple[int, int]:
        return self.set.shape


def _read_stl10(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray | None]:
    """STL-10's binary files: images column by column, [N, 3, W, H], memory-mapped; labels from 1."""
    path = folder / f"{split}_X.bin"
    if path.stat().st_size % (3 * 96 * 96):
        raise UserError(f"{path} is damaged: its size is no multiple of one image's")
    images = np.memmap(path, np.uint8, "r").reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)
    return images, None if split == "unlabeled" else np.fromfile(folder / f"{split}_y.bin", np.uint8) - 1


class ImageFolder(ImageSource):
    """Pictures in a folder: one folder per class, or none (then unlabelled), with or without split folders above.

    `size`: side of the images an encoder is built for; None takes the pictures' own size where all are alike.
    `on_error`: what an unreadable picture does, "fail" or "skip". Fractions: drawn from train where a split is missing.
    """

    def __init__(self, path: str, on_error: str, size: int | None, val_fraction: float, test_fraction: float):
        self.path = stored.located(path)
        self.name = disk.printable(self.path.resolve().name)
        self.on_error = check_on_error(on_error)
        self.size = size
        self.val_fraction, self.test_fraction = val_fraction, test_fraction

    @cached_property
    def _parts(self) -> dict[str, tuple[list[Path], list[str] | None]]:
        """For each split its files and their class folders."""
        inner = image_files.by_split({d.name: d for d in image_files.subfolders(self.path)}, str(self.path))
        if not inner.keys() & {"train", "unlabeled"}:
            inner = {"": self.path}
        parts: dict[str, tuple[list[Path], list[str] | None]] = {}
        for split, folder in inner.items():
            if files := image_files.pictures(folder):
                names = None if split == "unlabeled" else image_files.by_class(folder, files)
                parts[split or ("unlabeled" if names is None else "train")] = (files, names)
        if not parts:
            raise UserError(f"no images in {self.path}: there is no file {', '.join(sorted(image_files.SUFFIXES))}")
        return {split: parts[split] for split in SPLITS if split in parts}

    def own_splits(self) -> tuple[str, ...]:
        return tuple(self._parts)

    @cached_property
    def classes(self) -> list[str] | None:  # type: ignore[override]
        named = [names for _, names in self._parts.values() if names is not None]
        return sorted(set(named[0])) if named else None

    def read(self, split: str) -> Raw:
        self._check(split)
        files, names = self._parts[split]
        items = image_files.FolderImages(files, self.path)
        if names is None:
            return Raw(items)
        assert self.classes is not None
        index = {name: i for i, name in enumerate(self.classes)}
        for name in names:
            if name not in index:
                raise UserError(f"{self.path}: {split} has a class folder '{name}', train has none{nearest(name, index)}")
        return Raw(items, self.as_answers(np.array([index[name] for name in names], np.int64)))

    def fingerprint(self) -> str:
        return image_files.folder_digest(self.path, [file for files, _ in self._parts.values() for file in files])

    def row_names(self, split: str) -> list[str]:
        return [disk.printable(str(file.relative_to(self.path))) for file in self._parts[split][0]]

    @cached_property
    def image_shape(self) -> tuple[int, int]:  # type: ignore[override]
        return encoder_shape(self.name, image_files.some_shapes(next(iter(self._parts.values()))[0]), self.size)


class Arrays(ImageSource):
    """Images of a `.npz` file: x_train/y_train/..., train_images/train_labels/... (MedMNIST), images/labels, or x/y.

    Images are [N, H, W], [N, H, W, C] or [N, C, H, W], bytes or floats in 0..1 or 0..255; labels are class numbers or
    names [N]. Without labels all is `unlabeled`. An array `classes` (or `class_names`) gives the classes' names.
    answer: "class"; "labels", of arrays [N, C] of 0 and 1; "number", of numbers [N].
    """

    def __init__(self, path: str, answer: str):
        self.path = stored.located(path)
        self.name = self.path.stem
        self.answer = AnswerColumns(answer, None, None).kind

    @cached_property
    def _file(self) -> Any:
        if not self.path.exists():
            beside = [p.name for p in self.path.parent.glob("*.npz")] if self.path.parent.is_dir() else []
            raise UserError(f"there is no file {self.path}{nearest(self.path.name, beside)}")
        with disk.reading(self.path):
            try:
                file = np.load(self.path, mmap_mode="r", allow_pickle=False)  # the mode is for a single array: it is not read
            except (ValueError, EOFError, zipfile.BadZipFile) as error:
                raise UserError(f"{self.path} is not a .npz file of arrays: {disk.reason(error)}") from error
            if not hasattr(file, "files"):
                raise UserError(f"{self.path} is a single array: save it with numpy.savez(path, images=..., labels=...)")
            for member in file.zip.infolist():
                disk.check_unpacked(self.path, member.compress_size, member.file_size)
            return file

    def _array(self, key: str) -> np.ndarray:
        with disk.reading(self.path):
            try:
                return self._file[key]
            except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
                raise UserError(f"{self.path}: the array '{key}' cannot be read: {disk.reason(error)}") from error

    @cached_property
    def _keys(self) -> dict[str, tuple[str, str | None]]:
        """For each split the names of its images and labels."""
        keys = {key.lower(): key for key in self._file.files}
        found: dict[str, tuple[str, str | None]] = {}
        for word, split in SPLIT_NAMES.items():
            for x, y in ((f"x_{word}", f"y_{word}"), (f"{word}_images", f"{word}_labels"), (f"{word}_x", f"{word}_y")):
                if x in keys:
                    found.setdefault(split, (keys[x], keys.get(y)))
        for x, y in (("images", "labels"), ("x", "y")):
            if not found and x in keys:
                found["train" if y in keys else "unlabeled"] = (keys[x], keys.get(y))
        if not found:
            raise UserError(
                f"{self.path} has the arrays {', '.join(self._file.files) or 'none'}: "
                "name them x_train and y_train, train_images and train_labels, images and labels, or x and y"
            )
        return {split: found[split] for split in SPLITS if split in found}

    def own_splits(self) -> tuple[str, ...]:
        return tuple(self._keys)

    @cached_property
    def classes(self) -> list[str] | None:  # type: ignore[override]
        columns = [self._array(y) for _, y in self._keys.values() if y]
        names = next((k for k in self._file.files if k.lower() in ("classes", "class_names", "label_names")), None)
        if not columns or self.answer is Number:
            return None
        given = [str(decoded(n)) for n in self._array(names)] if names else None
        if self.answer is Labels:
            first = next(y for _, y in self._keys.values() if y)
            return of_array(columns[0], Labels, given, f"{self.path}, array '{first}'").space["classes"]
        return image_files.class_names(columns, given, f"{self.path}")

    def read(self, split: str) -> Raw:
        self._check(split)
        x, y = self._keys[split]
        where = f"{self.path}, array '{x}'"
        images = image_files.to_uint8(image_files.to_nhwc(self._array(x), where), where)
        if images.shape[3] == 4:
            images = image_files.on_white(images)
        if y is None:
            return Raw(images)
        answers: Answers | None
        values, where = self._array(y), f"{self.path}, array '{y}'"
        if self.answer is not Class:
            answers = of_array(values, self.answer, self.classes, where)
        else:
            answers = self.as_answers(image_files.label_indices(values, self.classes or [], where))
        if answers is not None and len(answers) != len(images):
            raise UserError(f"{self.path}: '{x}' has {len(images)} images, '{y}' {len(answers)} labels")
        return Raw(images, answers)

    @property
    def space(self) -> Space | None:
        return super().space if self.answer is not Number else {} if any(y for _, y in self._keys.values()) else None

    def fingerprint(self) -> str:
        self._keys  # noqa: B018 - names what is wrong with the file before its bytes are read
        return cache.digest("arrays", cache.file_digest(self.path), *([] if self.answer is Class else [self.answer.kind]))

    @cached_property
    def image_shape(self) -> tuple[int, int]:  # type: ignore[override]
        x = next(iter(self._keys.values()))[0]
        # The header alone: cheap.
        with disk.reading(self.path), zipfile.ZipFile(self.path) as archive, archive.open(f"{x}.npy") as file:
            np.lib.format.read_magic(file)
            shape = np.lib.format.read_array_header_1_0(file)[0]  # numpy writes 2.0 for structured arrays only
        _, height, width, channels = image_files.to_nhwc(np.broadcast_to(np.uint8(0), shape), f"{self.path}, '{x}'").shape
        return min(height, width), 1 if channels == 1 else 3
