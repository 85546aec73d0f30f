"""Protects images that are kept as shards: the same pixels, columns and answers as in one array, a preparation that goes on, few reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslt.data import cache, sharding
from sslt.data.prepare.image_processor import ImageProcessor, ImageSamples
from sslt.data.prepare.image_writing import Writing
from sslt.data.shards.rows import ShardedRows
from sslt.data.sources import image_files
from sslt.data.sources.images import ImageFolder
from sslt.data.streams.streams import Stream
from sslt.errors import UserError

SHARDS = {"from_bytes": 3000, "shard_bytes": 8 * 192, "keep_bytes": 1e9}  # images of 8 × 8 × 3 bytes, eight a shard
PLAIN = {"mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_root", tmp_path / "cache")
    monkeypatch.setattr(cache, "_checked", set())
    monkeypatch.setattr(sharding, "_limits", None)


def pictures(folder: Path, n: int = 60, on_error: str = "fail") -> ImageFolder:
    """n random pictures of two classes, of different heights."""
    rng = np.random.default_rng(0)
    for i in range(n):
        path = folder / "ab"[i % 2] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8 + i % 3, 9, 3), dtype=np.uint8)).save(path)
    return ImageFolder(str(folder), on_error, None, 0.2, 0.2)


def prepared(source: ImageFolder, split: str = "train", shards: dict | None = SHARDS) -> ImageSamples:
    sharding.set_limits(shards)
    return ImageProcessor(8, 3, **PLAIN).prepare(source, split)


def same(a: ImageSamples, b: ImageSamples) -> None:
    index = np.random.default_rng(0).permutation(len(a))
    one, other = a.batch(index), b.batch(index)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name].numpy(), other[name].numpy())


def test_the_same_samples_as_in_one_array(tmp_path):
    """Pixels, frames, sizes and labels; splits drawn alike; only the split that is large stays in shards."""
    source = pictures(tmp_path / "set")
    plain = {split: prepared(source, split, None) for split in ("train", "val", "test")}
    many = {split: prepared(source, split) for split in ("train", "val", "test")}
    for split in plain:
        same(plain[split], many[split])
    assert isinstance(many["train"].images, ShardedRows) and many["train"].shards is not None
    assert isinstance(many["test"].images, np.ndarray) and many["test"].shards is None
    assert many["train"].shards[-1] == len(many["train"])
    held = many["train"].subset(np.array([5, 1])).held()
    assert isinstance(held.images, np.ndarray)
    np.testing.assert_array_equal(held.batch(np.array([0, 1]))["image"], plain["train"].batch(np.array([5, 1]))["image"])


def test_small_sets_stay_as_they_were(tmp_path):
    """Below the limit nothing changes: the same entry, by the same name, and the same order."""
    source = pictures(tmp_path / "set")
    before = prepared(source, shards=None)
    names = sorted(p.name for p in (cache.cache_dir() / "images").iterdir())
    after = prepared(source, shards={**SHARDS, "from_bytes": 1e9})
    assert sorted(p.name for p in (cache.cache_dir() / "images").iterdir()) == names
    assert after.fingerprint == before.fingerprint and after.shards is None
    assert np.array_equal(Stream(after, 4, seed=0).index_at(3), Stream(before, 4, seed=0).index_at(3))


def test_a_killed_preparation_decodes_only_what_is_missing(tmp_path, monkeypatch):
    """Killed in the fifth shard of eight: four shards of eight rows are there, and the next one decodes the other 28 of 60."""
    source = pictures(tmp_path / "set")
    decoded: list[str] = []
    real, chunk, chunks = image_files.decode, Writing.chunk, []
    monkeypatch.setattr(image_files, "decode", lambda file, name: (decoded.append(name), real(file, name))[1])

    def dying(self, *args):
        chunks.append(1)
        if len(chunks) == 5:
            raise KeyboardInterrupt
        return chunk(self, *args)

    monkeypatch.setattr(Writing, "chunk", dying)
    with pytest.raises(KeyboardInterrupt):
        prepared(source)
    assert len(decoded) == 32
    monkeypatch.setattr(Writing, "chunk", chunk)
    decoded.clear()
    many = prepared(source)
    assert len(decoded) == 28
    same(prepared(source, shards=None), many)


def test_unreadable_images(tmp_path):
    """Left out and named with on_error=skip, also those that an earlier, killed preparation met; otherwise an error."""
    source = pictures(tmp_path / "set", on_error="skip")
    for i in (3, 40):
        (tmp_path / "set" / "ab"[i % 2] / f"{i:03}.png").write_bytes(b"no picture")
    plain, many = prepared(source, shards=None), prepared(source)
    same(plain, many)
    meta = next(p for p in (cache.cache_dir() / "images").glob("*/shards")).parent
    assert sorted(cache.Entry(meta).meta["unreadable"]) == ["a/040.png", "b/003.png"]
    with pytest.raises(UserError, match="cannot be read"):
        prepared(ImageFolder(str(tmp_path / "set"), "fail", None, 0.2, 0.2))


def test_mean_and_std_are_those_of_spread_shards(tmp_path, monkeypatch):
    """Of few shards all images are measured, of many some shards from first to last, without a pass over all."""
    source = pictures(tmp_path / "set")
    exact = prepared(source, shards=None).moments()
    many = prepared(source)
    assert many.moments() == exact
    monkeypatch.setattr("sslt.data.prepare.image_shards.MEASURED", 3)
    read: list[int] = []
    real = ShardedRows._read
    monkeypatch.setattr(ShardedRows, "_read", lambda self, number, *args: (read.append(number), real(self, number, *args))[1])
    few = many.moments()
    assert len(set(read)) == 3 and max(read) - min(read) >= 5
    assert few != exact and np.allclose(few["mean"], exact["mean"], atol=0.02)
