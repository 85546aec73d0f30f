"""Pictures of which every pixel has a class, or belongs to an object: a folder of pictures, and beside it one of masks."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sslt import stored
from sslt.data import cache
from sslt.data.answers import IGNORE, Answers, Instances, Map
from sslt.data.base import SPLITS, Raw, check_on_error
from sslt.data.ragged import Ragged
from sslt.data.sources import disk, image_files
from sslt.data.sources.image_files import THREADS, ImageSource, encoder_shape
from sslt.errors import UserError, nearest

GROUND = "background"
NO_MASKS = ("test", "unlabeled")  # splits that may be without any
MOST = 65535  # objects of a mask
LOSSY = (".jpg", ".jpeg")  # files of which pixels are only about what was written
KINDS: dict[str, type[Map]] = {"map": Map, "instances": Instances}


class _Pair(NamedTuple):
    image: Path
    mask: Path | None


class Masks(ImageSource):
    """Pictures in `path`/`images`, and masks of the same names in `path`/`masks`.

    Splits: folders train, val, test above both or in both, or lists train.txt, … of names in `path` or in `path`/splits; else drawn.
    holds: what the values of a mask are. Of `classes` they are class numbers, or those (grey values, or [red, green, blue]) that `colours`
    gives for names; of `objects` numbers of objects, of one class, and 0 where there is none. answer: map, or instances of objects.
    classes: names, in the order of the values; None takes those of `colours`, of the lines of `path`/classes.txt, or the values.
    ignore: the value (or colour) of pixels that count as nothing. size, on_error, fractions: as of `ImageFolder`.
    """

    def __init__(
        self,
        path: str,
        images: str,
        masks: str,
        answer: str,
        holds: str,
        classes: list[str] | None,
        colours: dict[str, Any] | None,
        ignore: int | list[int] | None,
        on_error: str,
        size: int | None,
        val_fraction: float,
        test_fraction: float,
    ):
        for name, value, options in (("answer", answer, KINDS), ("holds", holds, ("classes", "objects"))):
            if value not in options:
                raise UserError(f"data.{name}={value}: give {' or '.join(options)}{nearest(value, options)}")
        if holds == "classes" and answer == "instances":
            raise UserError("data.answer=instances needs masks that tell objects apart: set data.holds=objects if these do")
        if holds == "objects" and (colours or len(classes or []) > 1):
            raise UserError(
                "data.holds=objects: the objects of a mask are of one class; give one name in data.classes, and no data.colours"
            )
        self.path, self.on_error, self.size = stored.located(path), check_on_error(on_error), size
        self.name, self.folders = disk.printable(self.path.resolve().name), (images, masks)
        self.answer, self.objects = KINDS[answer], holds == "objects"
        self.given, self.colours, self.ignore = classes, {str(k): v for k, v in (colours or {}).items()}, ignore
        self.val_fraction, self.test_fraction = val_fraction, test_fraction

    # ---------------------------------------------------------------- files
    @cached_property
    def _parts(self) -> dict[str, list[_Pair]]:
        """The pictures of each split with their masks, by name."""
        images, masks = (self.path / folder for folder in self.folders)
        above = {d.name: (d / images.name, d / masks.name) for d in image_files.subfolders(self.path) if (d / images.name).is_dir()}
        if not above and not images.is_dir():
            raise UserError(f"there is no folder {images}: put pictures there, and their masks, of the same names, into {masks}")
        within = {} if above else {d.name: (d, masks / d.name) for d in image_files.subfolders(images)}
        places = image_files.by_split(above or within, str(self.path))
        if not places.keys() & {"train", "unlabeled"}:
            if above:
                raise UserError(f"{self.path} has no train split: there are {', '.join(sorted(above))}, and no train/{images.name}")
            places = {"train": (images, masks)}
        parts = {split: self._pairs(*place, split) for split, place in places.items()}
        if not any(parts.values()):
            raise UserError(f"no images in {images}: there is no file {', '.join(sorted(image_files.SUFFIXES))}")
        parts = {split: found for split, found in parts.items() if found}
        if parts.keys() == {"train"} and (lists := self._lists):
            parts = {split: _listed(file, parts["train"], images) for split, file in lists.items()}
            _refuse_twice(lists, parts)
        return {split: parts[split] for split in SPLITS if split in parts}

    @property
    def _lists(self) -> dict[str, Path]:
        files = [f for d in (self.path, self.path / "splits") if d.is_dir() for f in sorted(d.glob("*.txt"))]
        return image_files.by_split({f.stem: f for f in files}, str(self.path))

    def _pairs(self, images: Path, masks: Path, split: str) -> list[_Pair]:
        files = _by_name(images)
        if not masks.is_dir():
            if split in NO_MASKS:
                return [_Pair(file, None) for file in files.values()]
            raise UserError(f"there is no folder {masks} with the masks of {images}{nearest(masks.name, _folders(masks.parent))}")
        beside = _by_name(masks)
        if lacking := [name for name in files if name not in beside]:
            more = f" ({len(lacking)} of {len(files)} have none)" if len(lacking) > 1 else ""
            raise UserError(f"{files[lacking[0]]} has no mask: there is no {masks / lacking[0]}.png{nearest(lacking[0], beside)}{more}")
        if lacking := [name for name in beside if name not in files]:
            more = f" ({len(lacking)} of {len(beside)} have none)" if len(lacking) > 1 else ""
            raise UserError(f"{beside[lacking[0]]} is the mask of no image: there is no {images / lacking[0]}.*{more}")
        return [_Pair(files[name], beside[name]) for name in files]

    def own_splits(self) -> tuple[str, ...]:
        return tuple(self._parts)

    def row_names(self, split: str) -> list[str]:
        return [disk.printable(str(pair.image.relative_to(self.path))) for pair in self._parts[split]]

    @property
    def _masks(self) -> list[Path]:
        return [pair.mask for pairs in self._parts.values() for pair in pairs if pair.mask is not None]

    @cached_property
    def _content(self) -> str:
        images = [pair.image for pairs in self._parts.values() for pair in pairs]
        return image_files.folder_digest(self.path, [*images, *self._masks])

    def fingerprint(self) -> str:
        splits = {split: self.row_names(split) for split in self._parts}
        about = [self.answer.kind, self.objects, self.classes, self.colours, self.ignore]
        return cache.digest("masks", self._content, splits, about)

    @cached_property
    def image_shape(self) -> tuple[int, int]:  # type: ignore[override]
        return encoder_shape(self.name, image_files.some_shapes([pair.image for pair in next(iter(self._parts.values()))]), self.size)

    # ---------------------------------------------------------------- classes
    @cached_property
    def classes(self) -> list[str] | None:  # type: ignore[override]
        if not self._masks:
            return None
        if self.objects:
            name = (self.given or ["object"])[0]
            return [name] if self.answer is Instances else [GROUND, name]
        listed = self.path / "classes.txt"
        if self.given is not None or self.colours:
            names = [str(name) for name in (self.given or self.colours)]
        elif listed.is_file():
            names = [line.strip() for line in disk.read_text(listed).splitlines() if line.strip()]
        else:
            names = [str(i) for i in range(self._largest + 1)]
        if len(names) > IGNORE or not names:
            many = f"{len(names)} classes, more than the {IGNORE} there can be" if names else "no class"
            raise UserError(f"the masks of {self.name} have {many}: if their values are numbers of objects, set data.holds=objects")
        return names

    @property
    def _largest(self) -> int:
        """The largest value of a pixel of any mask that is not ignored."""

        def make(_: Path) -> dict[str, Any]:
            with ThreadPoolExecutor(THREADS) as pool:
                found = set().union(*pool.map(lambda mask: np.unique(_values(mask, False, False)).tolist(), self._masks))
            return {"values": sorted(found)}

        values = cache.get_or_make("mask_values", cache.digest(self._content), make).meta["values"]
        return max((v for v in values if v != self.ignore), default=-1)

    @cached_property
    def _table(self) -> dict[int, int]:
        """Value or colour of a pixel → index of its class."""
        classes = self.classes or []
        for name in self.colours:
            if name not in classes:
                raise UserError(f"data.colours has '{name}', which is no class of {self.name}{nearest(name, classes)}")
        table = {_code(v, self._coloured): classes.index(name) for name, v in self.colours.items()}
        ignored = {} if self.ignore is None else {_code(self.ignore, self._coloured): IGNORE}
        return ignored | table if self.colours else {i: i for i in range(len(classes))} | ignored  # what has a name is a class

    @property
    def _coloured(self) -> bool:
        return any(isinstance(value, list) for value in self.colours.values())

    # ---------------------------------------------------------------- reading
    def read(self, split: str) -> Raw:
        self._check(split)
        pairs = self._parts[split]
        items = image_files.FolderImages([pair.image for pair in pairs], self.path)
        if any(pair.mask is None for pair in pairs):
            return Raw(items)
        with ThreadPoolExecutor(THREADS) as pool:
            maps = list(pool.map(self._read, pairs))
        if split == "train" and not self.objects:
            self._refuse_nothing_left(maps)
        return Raw(items, self._answers(maps))

    def _read(self, pair: _Pair) -> np.ndarray:
        """The mask of a picture: indices of classes, or numbers of objects, [H, W]."""
        assert pair.mask is not None
        values = _values(pair.mask, self._coloured, self.objects)
        shape = _upright(pair.image)
        if shape is not None and shape != values.shape:
            (h, w), (height, width) = values.shape, shape
            raise UserError(f"{pair.mask} is {w} × {h} pixels, and its image {pair.image} {width} × {height}: a mask has its image's size")
        found, where = np.unique(values, return_inverse=True)
        if self.objects:
            numbers = np.cumsum(found != 0)  # 0 where there is no object, then 1, 2, …
            if numbers[-1] > MOST:
                raise UserError(f"{pair.mask} holds {numbers[-1]:,} objects, more than the {MOST:,} there can be: is it a mask?")
            return numbers[where.reshape(values.shape)].astype(np.uint16)
        indices = [self._table.get(v, -1) for v in found.tolist()]
        if -1 in indices:
            wrong = int(found[indices.index(-1)])
            row, column = np.argwhere(values == wrong)[0].tolist()
            what = f"colour [{wrong % 256}, {wrong // 256 % 256}, {wrong // 65536}]" if self._coloured else f"value {wrong}"
            raise UserError(f"{pair.mask}: the {what} at row {row}, column {column} is none of the {self._known}, or set data.ignore")
        return np.array(indices, np.uint8)[where.reshape(values.shape)]

    @property
    def _known(self) -> str:
        classes = self.classes or []
        if self.colours:
            return f"{len(self.colours)} in data.colours ({', '.join(self.colours)}): add it there"
        return f"{len(classes)} classes, which have 0 to {len(classes) - 1}: name its class in data.classes or classes.txt"

    def _refuse_nothing_left(self, maps: Sequence[np.ndarray]) -> None:
        """Raise `UserError` where what is ignored is all there is beside the first class: a mask of 0 and 255, most often."""
        found = set().union(*(np.unique(m).tolist() for m in maps))
        if found == {0, IGNORE}:
            first, other = (self.classes or [""])[0], self.ignore
            raise UserError(
                f"all pixels of the masks of {self.name} are of '{first}' or ignored (data.ignore={other}): if {other} is a class too, "
                f"name both, data.colours={{background: 0, object: {other}}}"
            )

    def _answers(self, maps: Sequence[np.ndarray]) -> Answers:
        assert self.space is not None
        if self.answer is Instances:
            return Instances.of(maps, self.space, objects=Ragged.of([np.zeros(m.max(initial=0)) for m in maps], np.int64))
        return Map.of([(m > 0).astype(np.uint8) for m in maps] if self.objects else maps, self.space)


# Files and pixels -----------------------------------------------------------------------------------------------------


def _by_name(folder: Path) -> dict[str, Path]:
    """The pictures below a folder, by their path without suffix. Raises `UserError` for two of one name."""
    found: dict[str, Path] = {}
    for file in image_files.pictures(folder):
        name = file.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise UserError(f"{found[name]} and {file} have one name, by which masks belong to images: rename one")
        found[name] = file
    return found


def _folders(place: Path) -> list[str]:
    return [d.name for d in image_files.subfolders(place)] if place.is_dir() else []


def _listed(file: Path, pairs: Sequence[_Pair], images: Path) -> list[_Pair]:
    """The pairs whose names a list holds, a line each, with suffix or without."""
    known = {pair.image.relative_to(images).with_suffix("").as_posix(): pair for pair in pairs}
    known |= {pair.image.relative_to(images).as_posix(): pair for pair in pairs}
    found = []
    for number, line in enumerate(disk.read_text(file).splitlines(), 1):
        if name := line.strip():
            if name not in known:
                raise UserError(f"{file}, line {number}: there is no image '{name}' in {images}{nearest(name, known)}")
            found.append(known[name])
    if not found:
        raise UserError(f"{file} lists no image: write their names, a line each, or remove it")
    return found


def _refuse_twice(lists: dict[str, Path], parts: dict[str, list[_Pair]]) -> None:
    """Raise `UserError` for a picture that is listed twice: what is trained on is not tested on."""
    seen: dict[_Pair, Path] = {}
    for split, file in lists.items():
        for pair in parts[split]:
            if pair in seen:
                where = f"{file} and {seen[pair]}" if seen[pair] != file else f"twice in {file}"
                raise UserError(f"{pair.image.name} is listed in {where}: leave one")
            seen[pair] = file


def _values(file: Path, coloured: bool, objects: bool) -> np.ndarray:
    """What a mask has at each pixel, [H, W]: a number; of a colour red + 256 · green + 256² · blue.

    coloured: greys and the indices of a palette are taken as the colours they stand for. Raises `UserError`, also where colours are
    found that neither are asked for nor number `objects`.
    """
    from PIL import Image

    if file.suffix.lower() in LOSSY:
        raise UserError(f"{file}: a mask as JPEG has lost its exact values: save masks as PNG")
    with disk.reading(file), Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB") if coloured and image.mode == "P" else image)
    if pixels.dtype.kind not in "uib":
        raise UserError(f"{file} holds {pixels.dtype} numbers: a mask has whole ones")
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        pixels = pixels[..., :-1]  # without transparency
    if pixels.ndim == 3 and (pixels.shape[2] == 1 or not (coloured or objects)):
        if (pixels != pixels[..., :1]).any():
            raise UserError(f"{file} holds colours: name the class of each, data.colours={{road: [128,64,128], car: [0,0,142]}}")
        pixels = pixels[..., 0]
    if pixels.ndim == 3:
        return pixels.astype(np.int64) @ (256 ** np.arange(3))
    return pixels.astype(np.int64) * _code(1, True) if coloured else pixels


def _code(value: Any, coloured: bool = False) -> int:
    """A colour, or a value (a grey, where masks are `coloured`), as `_values` has it. Raises `UserError`."""
    if isinstance(value, int) and not isinstance(value, bool):
        return _code([value] * 3) if coloured else value
    if isinstance(value, list) and len(value) == 3 and all(isinstance(v, int) and 0 <= v <= 255 for v in value):
        return value[0] + 256 * value[1] + 65536 * value[2]
    raise UserError(f"data.colours: {value} is no colour; give [red, green, blue] in 0 to 255, or the grey value of a pixel")


def _upright(file: Path) -> tuple[int, int] | None:
    """(H, W) of a picture as it is decoded; None where it cannot be, which preparation tells."""
    from PIL import Image

    try:
        stored.require_regular(file)
        with Image.open(file) as image:
            h, w = image.height, image.width
            return (w, h) if image.getexif().get(0x0112, 1) >= 5 else (h, w)
    except Exception:  # as in image_files.decode
        return None
