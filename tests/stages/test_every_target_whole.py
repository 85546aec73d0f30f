"""Protects what every target promises through the commands: a stopped run ends bit for bit, a head is its own file, ranks are one.

Each on data that need no file, or on a small file written here.
"""

from __future__ import annotations

import functools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import toy_reading
from conftest import TINY_IMAGES, TINY_ITEMS, TINY_TEXT, working_in
from killed_runs import command
from test_resume import in_two_parts, same

from sslt.cli import main
from sslt.encoders.load import load_encoder
from sslt.encoders.seals import DIGESTS, seal
from sslt.errors import UserError
from sslt.runs import Run, read_json
from sslt.targets import heads

SCENES = ["+target=scenes", *TINY_IMAGES, "encoder.processor.size=32", "data.count=60", "batch_size=16"]
NAMES, PLACES = ("Ada", "Grace", "Alan", "Kurt"), ("Paris", "Rome", "Oslo")


def tags(folder: Path) -> list[str]:
    """Sentences about who went where."""
    draw, lines = random.Random(0), []
    for _ in range(80):
        name, place = draw.choice(NAMES), draw.choice(PLACES)
        text = f"then {name} went to {place}"
        at = text.index(place)
        lines.append(json.dumps({"text": text, "tags": [[5, 5 + len(name), "PER"], [at, at + len(place), "LOC"]]}))
    (folder / "tags.jsonl").write_text("\n".join(lines) + "\n")
    return ["+target=text_tags", f"data.path={folder / 'tags.jsonl'}", *TINY_TEXT, "batch_size=16"]


def pairs(folder: Path) -> list[str]:
    """Pairs of sentences whose score is the share of words they have in common."""
    draw, lines = random.Random(0), ["a,b,score"]
    for _ in range(80):
        left = [draw.choice((*NAMES, *PLACES)) for _ in range(5)]
        kept = draw.randint(0, 5)
        lines.append(f"{' '.join(left)},{' '.join([*left[:kept], *(draw.choice(PLACES) for _ in range(5 - kept))])},{kept}")
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return ["+target=text_pairs", f"data.path={folder / 'pairs.csv'}", *TINY_TEXT, "batch_size=16"]


def questions(folder: Path) -> list[str]:
    """About who lived where, of which some have no answer."""
    file = toy_reading.squad(folder / "questions.json", impossible=True)
    return ["+target=qa", f"data.path={file}", *TINY_TEXT, "batch_size=16"]


def dialogues(folder: Path) -> list[str]:
    """Each turn of which is read with the one before it."""
    return ["+target=qa", f"data.path={toy_reading.coqa(folder / 'dialogues.json')}", "data.history=1", *TINY_TEXT, "batch_size=16"]


def prompt(folder: Path) -> list[str]:
    """Sentences about cities and about people, asked of a causal encoder, which has its words from the start."""
    draw, lines = random.Random(0), ["text,label"]
    for i in range(80):
        kind = draw.choice(("place", "name"))
        lines.append(f"at {i} it was about {draw.choice(PLACES if kind == 'place' else NAMES)} again,{kind}")
    (folder / "about.csv").write_text("\n".join(lines) + "\n")
    tiny = ["encoder=gpt_tiny", *(s for s in TINY_TEXT[1:] if "intermediate_size" not in s)]
    return ["+target=prompt", "data=text_csv", f"data.path={folder / 'about.csv'}", *tiny, "batch_size=16"]


CASES = {
    "classification": lambda folder: [*SCENES, "data.answer=class"],
    "multilabel": lambda folder: [*SCENES, "data.answer=labels"],
    "regression": lambda folder: [*SCENES, "data.answer=number"],
    "segmentation": lambda folder: [*SCENES, "data.answer=map"],
    "tagging": tags,
    "pairs": pairs,
    "questions": questions,
    "dialogues": dialogues,
    "next_item": lambda folder: ["+target=next_item", *TINY_ITEMS, "data.count=80", "data.aisles=3", "batch_size=16"],
    "prompt": prompt,
}
SHORT = ["from=scratch", "trainer.max_steps=4", "late_fusion=false"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache) -> Callable[[str], tuple[list[str], Path]]:
    """name → the settings of a case and the folder of its run, which is made once and not changed by anyone."""

    @functools.cache
    def run(name: str) -> tuple[list[str], Path]:
        with working_in(tmp_path_factory.mktemp(name), cache) as folder:
            settings = CASES[name](folder)
            assert main(["finetune", *settings, *SHORT, "hydra.run.dir=made"]) == 0
        return settings, folder / "made"

    return run


@pytest.fixture(params=CASES)
def case(request, here) -> list[str]:
    return CASES[request.param](here)


@pytest.fixture(params=CASES)
def made(request, trained) -> tuple[list[str], Path]:
    return trained(request.param)


def shown(run: Path) -> list[str]:
    return sorted((run / "predictions.jsonl").read_text().splitlines())


def test_a_stopped_run_ends_as_an_uninterrupted_one(made, sslt, here):
    """Weights of encoder and head, bit for bit, and the same answers."""
    settings, whole = made
    in_two_parts(sslt, ["finetune", *settings, *SHORT, "baseline=false"], 2)
    assert same(whole, here / "part") and shown(whole) == shown(here / "part")


def test_a_head_answers_alike_in_another_process(made, here):
    """`sslt evaluate` and `predict` of a saved run give what the run itself measured; the baseline stands beside it."""
    _, folder = made
    run = Run(folder)
    primary = run.info["primary"]
    assert {f"test/{primary}", f"val/{primary}", f"baseline/{primary}", "baseline/method"} <= set(run.metrics)
    assert command(["evaluate", f"from={folder}", "trainer.accelerator=cpu", "hydra.run.dir=measured"]) == 0, Path("output.txt").read_text()
    again = Run(here / "measured").metrics
    assert again[f"test/{primary}"] == run.metrics[f"test/{primary}"]
    assert again[f"baseline/{primary}"] == run.metrics[f"baseline/{primary}"]
    assert shown(here / "measured") == shown(folder)
    errors = [json.loads(line)["error"] for line in (here / "measured" / "predictions.jsonl").read_text().splitlines()]
    assert errors == sorted(errors, reverse=True)


def test_two_ranks_measure_what_one_does(made, here):
    """The last share of each split is uneven; every row is answered once."""
    _, folder = made
    two = ["trainer.devices=2", "trainer.accelerator=cpu", "baseline=false", "batch_size=7", "hydra.run.dir=two"]
    assert command(["evaluate", f"from={folder}", *two]) == 0, Path("output.txt").read_text()
    found = Run(here / "two").metrics
    assert all(found[k] == pytest.approx(v, abs=1e-6) for k, v in Run(folder).metrics.items() if k.startswith("test/"))
    assert len(shown(here / "two")) == len(shown(folder))


def test_a_head_of_another_kind_or_space_is_refused(trained, sslt, here, capsys):
    """By name: what the head answers with, what the data have, what to do."""
    start = f"from={trained('classification')[1]}"
    capsys.readouterr()
    sslt("evaluate", start, "data=scenes", "data.answer=map", "data.count=60", "trainer.accelerator=cpu", code=2)
    assert "the head answers with a class" in capsys.readouterr().err
    sslt("evaluate", start, "data=digits", "data.count=60", "trainer.accelerator=cpu", code=2)
    sslt("finetune", *SCENES, "data.answer=map", "objective=classification", *SHORT, code=2)
    said = capsys.readouterr().err
    assert "a class for every pixel" in said and "objective=segmentation" in said and "Traceback" not in said


def test_a_head_file_that_says_another_kind_is_refused(trained, here):
    run = shutil.copytree(trained("classification")[1], here / "made")
    encoder, folder = load_encoder("made"), run / "head"
    assert heads.load(folder, encoder, []).names == [str(i) for i in range(10)]
    about = {k: v for k, v in read_json(folder / "head.json").items() if k != DIGESTS}
    seal(folder, "head.json", {**about, "answer": "number"})
    with pytest.raises(UserError, match=r"head.json is damaged: it answers with a class, not number"):
        heads.load(folder, encoder, [])


@pytest.mark.parametrize(
    "how",
    [["label_fraction=0.5", "report=best", "ema=0.5"], ["adaptation=partial", "adaptation.blocks=1", "optimizer.lr=auto"]],
    ids=["few-best-averaged", "partial-searched"],
)
def test_adaptations_and_settings_work_with_it_or_say_why(case, how, sslt, here, capsys):
    """Either the run ends with its metrics, or one line says what to do."""
    code = sslt("finetune", *case, *SHORT, *how, "baseline=false", "hydra.run.dir=made", code=None)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    if code == 0:
        run = Run(here / "made")
        assert f"test/{run.info['primary']}" in run.metrics
    else:
        assert code == 2 and said.strip().splitlines()[-1].startswith("sslt: ")
