"""Files with damaged bytes, wherever sslt reads one: data, members of a folder, weights, tokenizers, checkpoints, caches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from random import Random

from fuzzing import damage
from fuzzing.case import Case, Place
from fuzzing.goods import FINETUNE, HERE, IMAGES, MEASURE, PRETRAIN, STEPS, TEXT, Goods, interrupt

CPU = "trainer.accelerator=cpu"
_TINY_TEXT = [
    *(t for t in TEXT if "vocab" not in t),
    "encoder.processor.vocab_size=80",
    *HERE,
    *STEPS,
    "batch_size=8",
    "val_every_n_epochs=0",
]
_TINY_IMAGES = [*HERE, *STEPS, *IMAGES, "batch_size=16"]


@dataclasses.dataclass(frozen=True)
class Read:
    """What is read: `make` writes good files into `work/data`, those that end in `damaged` are damaged, and `argv` reads them.

    run: copied to `work/bad` instead. skips: it takes `data.on_error=skip`.
    """

    argv: tuple[str, ...]
    make: Callable[[Path], None] | None = None
    damaged: tuple[str, ...] = ()
    run: str = ""
    needs: tuple[str, ...] = ()
    skips: bool = False
    resumed: bool = False


def _table(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        folder.mkdir()
        damage.table(folder / name)

    return make


def _folder(write: Callable[[Path], None], name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        folder.mkdir()
        write(folder / name)

    return make


def _tables() -> list[Read]:
    found = []
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.parquet", "a.csv.gz", "a.tsv.xz", "a.json", "a.jsonl.xz"):
        learn = ("finetune", "+target=text_csv", "from=scratch", f"data.path=data/{name}", *_TINY_TEXT)
        found.append(Read(learn, _table(name), skips=True))
        found.append(Read(("predict", "from={labelled}", f"input=data/{name}", CPU), _table(name), needs=("labelled",)))
    for name in ("a.txt", "a.txt.gz", "a.txt.xz", "a.md"):
        learn = ("pretrain", "+task=mlm", "data=text_files", f"data.path=data/{name}", *_TINY_TEXT[:-1], "online_probe.every_n_epochs=0")
        found.append(Read(learn, _table(name), skips=True))
        found.append(Read(("predict", "from={text}", f"input=data/{name}", CPU), _table(name), needs=("text",)))
    split = ("finetune", "+target=text_csv", "from=scratch", "data.path=data", *_TINY_TEXT)
    return [*found, Read(split, damage.tables, skips=True)]


def _idx(packed: bool) -> Read:
    argv = ("finetune", "+target=fashion_mnist", "from=scratch", "data.root=data", *_TINY_IMAGES, "val_every_n_epochs=0")
    return Read(argv, lambda folder: damage.idx(folder, packed))


READS = [
    *_tables(),
    Read(("finetune", "+target=image_folder", "from=scratch", "data=arrays", "data.path=data/a.npz", *_TINY_IMAGES, "val_every_n_epochs=0"),
         _folder(damage.arrays, "a.npz")),
    Read(("predict", "from={tuned}", "input=data/a.npz", CPU), _folder(damage.arrays, "a.npz"), needs=("tuned",)),
    Read(("finetune", "+target=image_folder", "from=scratch", "data.path=data", *_TINY_IMAGES, "val_every_n_epochs=0"), damage.pictures,
    skips=True),
    Read(("pretrain", "+task=simclr", "data=image_folder", "data.path=data", *_TINY_IMAGES, "online_probe.every_n_epochs=0"),
    damage.pictures,
         skips=True),
    Read(("predict", "from={tuned}", "input=data", CPU), damage.pictures, needs=("tuned",)),
    _idx(False), _idx(True),
    Read(("evaluate", "from=bad", *MEASURE), run="images", damaged=(".safetensors", "sslt.json", "config.json")),
    Read(("evaluate", "from=bad", CPU), run="tuned", damaged=("head.json", ".safetensors", "config.yaml", "run.json", "sslt.json")),
    Read(("evaluate", "from=bad", CPU), run="labelled", damaged=("tokenizer.json", "tokenizer_config.json", "config.json", ".safetensors",
    "head.json")),
    Read(("finetune", "+target=docs", "from=bad", *FINETUNE), run="text", damaged=("tokenizer.json", "tokenizer_config.json", "config.json",
                                                                                ".safetensors")),
    Read(("merge", "from=bad", CPU), run="adapter", damaged=(".safetensors", "sslt.json", "head.json", "config.yaml")),
    Read(("evaluate", "from={adapter}", "base=bad", CPU), run="text", damaged=(".safetensors", "tokenizer.json", "sslt.json"),
    needs=("adapter",)),
    Read(("pretrain", "resume=bad", "trainer.max_steps=2"), run="images", damaged=("last.ckpt", "config.yaml", "run.json"), resumed=True),
    Read(("pretrain", "resume=bad", "trainer.max_steps=2"), run="text", damaged=("last.ckpt",), resumed=True),
    Read(("finetune", "resume=bad", "trainer.max_steps=2"), run="tuned", damaged=("last.ckpt", "metrics.csv", "run.json"), resumed=True),
    Read(("evaluate", "from={tuned}", CPU), run="cache", needs=("tuned",)),
    Read(("finetune", "+target=digits", "from={images}", *FINETUNE), run="cache", needs=("images",)),
    Read(("predict", "from={labelled}", "data=docs", CPU), run="cache", needs=("labelled",)),
    Read(("pretrain", "+task=mlm", "data=docs", *TEXT, *PRETRAIN), run="cache", needs=("text",)),
]  # fmt: skip


def plan(number: int, seed: int, goods: Goods) -> Callable[[Place], Case]:
    """The case of a number: what reads files takes turns."""
    rng = Random(f"{seed} files {number}")
    read = READS[number % len(READS)]
    goods.need(*read.needs, *([read.run] if read.run not in ("", "cache") else []))

    def make(place: Place) -> Case:
        goods.fill(place)
        folder = place.cache
        if read.make:
            folder = place.work / "data"
            read.make(folder)
        elif read.run != "cache":
            folder = goods.copy(read.run, place.work / "bad")
            if read.resumed:
                interrupt(folder)
        files = sorted(
            p for p in folder.rglob("*") if p.is_file() and p.stat().st_size and (not read.damaged or p.name.endswith(read.damaged))
        )
        told = []
        for path in rng.sample(files, min(len(files), rng.choice([1, 1, 1, 3]))):
            told.append(f"{path.relative_to(place.root)}: {damage.damage(path, rng)}")
        argv = [a.format(**{n: goods[n] for n in read.needs}) if "{" in a else a for a in read.argv]
        argv += ["data.on_error=skip"] if read.skips and rng.random() < 0.4 else []
        argv += [] if read.resumed else ["hydra.run.dir=new"]
        return Case(argv, "; ".join(told), untouched=[] if read.resumed or folder == place.cache else [str(folder.relative_to(place.root))])

    return make
