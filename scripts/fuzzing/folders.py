"""Folders that an attacker made or a disk damaged, over every setting that takes one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from random import Random

from fuzzing import attacks, damage, hostile
from fuzzing.case import Case, Place
from fuzzing.goods import FINETUNE, HERE, MEASURE, PRETRAIN, Goods, interrupt

CPU = "trainer.accelerator=cpu"


@dataclasses.dataclass(frozen=True)
class Way:
    """How a folder `bad` comes to sslt: which good run it was, and what is typed. resumed: it was stopped, and goes on."""

    run: str
    argv: tuple[str, ...]
    resumed: bool = False


WAYS = (
    Way("tuned", ("evaluate", "from=bad", CPU)),
    Way("images", ("evaluate", "from=bad", *MEASURE)),
    Way("labelled", ("evaluate", "from=bad", CPU)),
    Way("images", ("evaluate", "from=scratch:bad", "data=digits", *MEASURE)),
    Way("adapter", ("evaluate", "from=bad", CPU)),
    Way("tuned", ("predict", "from=bad", "data=digits", CPU)),
    Way("labelled", ("predict", "from=bad", "input=texts.csv", CPU)),
    Way("text", ("predict", "from=bad", "input=texts.csv", CPU)),
    Way("images", ("finetune", "+target=digits", "from=bad", *FINETUNE)),
    Way("text", ("finetune", "+target=docs", "from=bad", *FINETUNE)),
    Way("images", ("finetune", "+target=digits", "from=bad", "compare=scratch", *FINETUNE)),
    Way("images", ("pretrain", "+task=simclr", "from=bad", *PRETRAIN)),
    Way("text", ("pretrain", "+task=mlm", "data=docs", "from=bad", *PRETRAIN)),
    Way("adapter", ("merge", "from=bad", CPU)),
    Way("chain", ("evaluate", "from=bad/finetune", CPU)),
    Way("foreign", ("evaluate", "from=bad", "data=docs", *MEASURE)),
    Way("foreign", ("finetune", "+target=docs", "from=bad", *FINETUNE)),
    Way("timm", ("evaluate", "from=bad", "data=digits", *MEASURE)),
    Way("images", ("pretrain", "resume=bad", "trainer.max_steps=2"), True),
    Way("text", ("pretrain", "resume=bad", "trainer.max_steps=2"), True),
    Way("tuned", ("finetune", "resume=bad", "trainer.max_steps=2"), True),
    Way("adapter", ("finetune", "resume=bad"), True),
    Way("measured", ("evaluate", "resume=bad"), True),
    Way("predicted", ("predict", "resume=bad"), True),
    Way("merged", ("merge", "resume=bad"), True),
    Way("chain", ("run", "resume=bad"), True),
    Way("images", ("pretrain", "+task=simclr", "resume=bad", *PRETRAIN), True),
    Way("text", ("evaluate", "from={adapter}", "base=bad", CPU)),
    Way("text", ("merge", "from={adapter}", "base=bad", CPU)),
    Way("text", ("predict", "from={adapter}", "base=bad", "input=texts.csv", CPU)),
    Way("text", ("finetune", "+target=docs", "from={adapter}", "base=bad", *FINETUNE)),
    Way("pictures", ("predict", "from={tuned}", "input=bad", CPU)),
    Way("pictures", ("pretrain", "+task=simclr", "data=image_folder", "data.path=bad", *PRETRAIN)),
    Way("tables", ("predict", "from={labelled}", "input=bad", CPU)),
    Way("cached", ("evaluate", "from={tuned}", CPU)),
    Way("cached", ("finetune", "+target=digits", "from={images}", *FINETUNE)),
    Way("cached", ("predict", "from={labelled}", "input=texts.csv", CPU)),
    Way("listed", ("list", "runs")),
    Way("listed", ("pretrain", "+task=simclr", "data=digits", *PRETRAIN, *HERE, "resume=auto")),
)  # fmt: skip


def needs(way: Way) -> list[str]:
    """The good runs that a way takes."""
    named = [a.partition("{")[2].partition("}")[0] for a in way.argv if "{" in a]
    derived = {"foreign": "text", "timm": "images", "pictures": "images", "tables": "text", "cached": "tuned", "listed": "images"}
    return [*named, derived.get(way.run, way.run)]


def plan(number: int, seed: int, goods: Goods) -> Callable[[Place], Case]:
    """The case of a number: attacks take turns, and each comes by one of the ways that fit it."""
    rng = Random(f"{seed} folders {number}")
    name, turn = attacks.turn(number)
    ways = [w for w in WAYS if _fits(name, w)]
    trains = [w for w in ways if w.argv[0] in ("pretrain", "finetune", "run")]  # which read most of a config
    way = rng.choice(trains if trains and rng.random() < 0.5 else ways)
    goods.need(*needs(way))

    def make(place: Place) -> Case:
        goods.fill(place)
        bad = _victim(way, place, goods)
        texts = ["text", *(f"a text of number {i} about rooms" for i in range(6))]
        (place.work / "texts.csv").write_text("\n".join(texts) + "\n")
        hostile.plant(place.work / "bad" if (place.work / "bad").is_dir() else place.work, place, rng)
        told = attacks.ATTACKS[name](bad, place, rng, turn)
        argv = [a.format(**{n: goods[n] for n in needs(way)[:-1]}) if "{" in a else a for a in way.argv]
        argv += [] if way.resumed or way.run == "listed" else ["hydra.run.dir=new"]
        untouched = [] if way.resumed or way.run in ("cached", "listed") else ["work/bad"]
        source = f"{way.run}{', stopped' if way.resumed else ''}"
        return Case(argv, f"bad is a copy of {source}; {told}", untouched=untouched)

    return make


def _fits(attack: str, way: Way) -> bool:
    if attack in ("override", "place of a run", "links out"):
        return way.resumed or way.run == "listed"
    if attack in ("node", "interpolation", "itself"):
        return way.run not in ("pictures", "tables", "cached", "foreign")
    return attack != "checkpoint" or (way.resumed and way.argv[0] in ("pretrain", "finetune"))


def _victim(way: Way, place: Place, goods: Goods) -> Path:
    """The folder that is attacked."""
    bad = place.work / "bad"
    if way.run in ("foreign", "timm"):
        goods.copy("text/encoder" if way.run == "foreign" else "images/encoder", bad)
        (bad / "sslt.json").unlink()
    elif way.run in ("pictures", "tables"):
        damage.pictures(bad) if way.run == "pictures" else damage.tables(bad)
    elif way.run == "cached":
        return place.cache
    elif way.run == "listed":
        bad = interrupt(goods.copy("images", place.work / "runs" / "a" / "b"))
    else:
        goods.copy(way.run, bad)
        if way.resumed:
            interrupt(bad)
    return bad
