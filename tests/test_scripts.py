"""Protects what the scripts conclude from numbers: which objective learns, which are best, whether a loss is a peer's."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    """The scripts import each other by name, as when one of them is run; and where they say that data are, other tests do not look."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    before = os.environ.get("SSLT_DATA")
    yield
    os.environ.pop("SSLT_DATA", None)
    if before is not None:
        os.environ["SSLT_DATA"] = before


def seed(linear=0.5, val=0.5, loss=(2.0, 1.0), rankme=50.0, std=0.5):
    """One seed of an objective that learns, unless told otherwise; untrained: a probe of 40 %, RankMe 40."""
    from objective_table import Seed

    numbers = {"knn/accuracy": 0.3, "linear/val_accuracy": 0.4, "features/rankme": 40.0, "features/std": 0.3, "finetuned": 0.2}
    after = {"knn/accuracy": 0.45, "linear/val_accuracy": val, "features/rankme": rankme, "features/std": std, "finetuned": 0.35}
    return Seed(5.0, 400.0, loss, 256, {**numbers, "linear/accuracy": 0.4}, {**after, "linear/accuracy": linear})


def test_only_what_meets_all_three_learns():
    """A loss that falls, features that are spread and a better probe than untrained: each alone is not enough."""
    from objective_table import verdict

    assert verdict([seed()], None) == "learns"
    assert verdict([seed(loss=(1.0, 1.0))], None) == "the loss does not fall (not looked into yet)"
    assert verdict([seed(std=0.001)], "no predictor") == "the features collapse (no predictor)"
    assert verdict([seed(rankme=3.0)], None).startswith("the features collapse")
    assert verdict([seed(linear=0.4)], None).startswith("the linear probe does not beat the untrained encoder's")
    both = verdict([seed(linear=0.3, loss=(1.0, 2.0))], None)
    assert "loss" in both and "probe" in both


def test_verdict_over_seeds():
    """Accuracies are compared by their means; one collapsed seed is enough to say so."""
    from objective_table import problems

    assert problems([seed(linear=0.39), seed(linear=0.5), seed(linear=0.45)]) == []
    assert problems([seed(), seed(), seed(std=0.001)]) == ["the features collapse"]


def test_best_looks_at_validation_only():
    """The five that get more seeds are not chosen by the numbers that are reported."""
    from objective_table import best

    found = {"a": [seed(linear=0.9, val=0.1)], "b": [seed(linear=0.1, val=0.9)], "c": [seed(linear=0.5, val=0.5), seed(val=1.0)]}
    assert best(found, 2) == ["b", "c"]


def test_ends_of_a_curve():
    """A single step at either end does not decide whether the loss fell."""
    from objective_table import ends

    assert ends([4.0]) == (4.0, 4.0)
    assert ends([3.0, 2.0]) == (3.0, 2.0)
    assert ends([4.0, 2.0, *[5.0] * 36, 1.0, 2.0]) == (3.0, 1.5)


def test_a_loss_that_stands_still_has_not_fallen():
    """A fall that is less than the noise of a loss does not count; a negative loss may fall too."""
    from objective_table import problems

    falls = {(6.91, 6.90): False, (6.9, 6.7): True, (-0.6, -3.0): True, (1.0, 1.2): False}
    for loss, good in falls.items():
        assert (problems([dataclasses.replace(seed(), loss=loss)]) == []) == good


@pytest.mark.usefixtures("true_pictures")
def test_table_and_picture(tmp_path):
    """What learns stands first; one seed has no interval, three have; the picture is a file."""
    from objective_table import picture, table

    found = {"bad": [seed(linear=0.2)], "good": [seed(linear=0.5), seed(linear=0.6), seed(linear=0.7)], "fair": [seed(linear=0.55)]}
    lines = table(found, dict.fromkeys(found, "resnet_small"), "1 %", {"bad": "too short"}).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| good", "| fair", "| bad"]
    assert "fine-tuned, 1 %" in lines[0]
    assert "40.0 → 55.0 |" in lines[3] and "| 40.0 ± 0.0 → 60.0 ± 24.8 |" in lines[2]  # t(2) = 4.303: 4.303 · 10 / √3
    assert lines[2].endswith("| learns |") and lines[4].endswith("(too short) |")
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    picture(found, tmp_path / "bars.png", "made up")
    assert (tmp_path / "bars.png").stat().st_size > 1000


def test_tasks_compared_are_those_on_images():
    """A new task is compared without being named anywhere; text is left out, and what needs a teacher."""
    from compare_objectives import encoder_of, tasks

    from sslt import groups

    others = {"mlm", "simcse", "crops", "causal_lm", "prefix_lm", "t5_spans", "bart", "electra", "tsdae", "sasrec", "bert4rec", "distill"}
    assert set(groups.options("task")) - set(tasks()) == others
    assert encoder_of("simclr") == "resnet_small"


def test_student_and_teacher_stand_side_by_side():
    """Each number under whose it is, whichever of them was evaluated; objectives without a teacher have no row."""
    from objective_table import teachers

    def both(evaluated, **linear):
        probes = {who: {"knn/accuracy": x / 2, "linear/accuracy": x} for who, x in linear.items()}
        return dataclasses.replace(seed(), both=probes, evaluated=evaluated)

    found = {"byol": [both("student", student=0.4, teacher=0.6)], "dino": [both("teacher", teacher=0.8, student=0.2)], "simclr": [seed()]}
    byol, dino = teachers(found).splitlines()[2:]
    one = "(1 seed) | "
    assert byol == f"| byol | student | 20.0 {one}30.0 {one}40.0 {one}60.0 {one}".rstrip()
    assert dino == f"| dino | teacher | 10.0 {one}40.0 {one}20.0 {one}80.0 {one}".rstrip()
    assert teachers({"simclr": [seed()]}) == ""


@pytest.mark.usefixtures("true_pictures")
def test_cells_of_a_comparison(tmp_path, monkeypatch):
    """An untrained encoder is measured once for all tasks that have it, and a finished comparison can be written down."""
    import compare_objectives
    from omegaconf import OmegaConf

    from sslt.report.curves import MetricsCSV
    from sslt.runs import Run, write_json

    monkeypatch.setattr(compare_objectives, "tasks", lambda: ["byol", "simclr"])
    commands = []

    class Pretend:
        """Stands for `Cells`: a run folder with plausible numbers, made at once."""

        root = tmp_path / "runs"

        def run(self, name, verb, *args, **_):
            run = Run(self.root / name)
            if run.finished:
                return run
            commands.append((name, verb, args))
            (run / "encoder").mkdir(parents=True)
            write_json(run / "run.json", {"status": "finished"})
            (run / "config.yaml").write_text(OmegaConf.to_yaml({"encoder": {"name": "resnet18"}}))
            write_json(run / "encoder" / "sslt.json", {"dim": 256})
            MetricsCSV(run / "metrics.csv").append(0, 0.0, {"loss": 2.0})
            MetricsCSV(run / "metrics.csv").append(9, 1.0, {"loss": 1.0})
            made = seed()
            side = made.before if "scratch:" in " ".join(args) else made.after
            told = {"test/accuracy": side["finetuned"], "train/epochs": 5.0, "throughput/samples_per_second": 400.0}
            told |= {"encoder/is": "teacher"} if name == "byol-0-pretrain" else {}
            write_json(run / "metrics.json", {**side, **told})
            return run

    def pool(jobs, _):
        assert os.environ["PYTHONSAFEPATH"]  # its processes import nothing from the working folder
        return ThreadPoolExecutor(jobs)

    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.setattr(compare_objectives, "ProcessPoolExecutor", pool)
    comparison = compare_objectives.Comparison(Pretend(), "digits", 0.5, "tiny")
    comparison.run_all([("byol", 0), ("simclr", 0)], tmp_path / "found.md")
    assert [verb for name, verb, _ in commands if name.startswith("untrained")] == ["evaluate", "finetune"]
    assert "encoder.args.channels=[16,32,64,128]" in commands[0][2]
    assert "trainer.max_time=30" in commands[0][2]
    ((name, _, args),) = (command for command in commands if "student" in command[0])
    assert name == "byol-0-student-evaluate" and args[0] == f"from={tmp_path / 'runs' / 'byol-0-pretrain' / 'student'}"
    found = comparison.found()
    assert list(found) == ["byol", "simclr"]
    one = found["byol"][0]
    assert set(one.both) == {"student", "teacher"} and one.evaluated == "teacher" and not found["simclr"][0].both
    assert (one.epochs, one.rate, one.loss, one.dim) == (5.0, 400.0, (2.0, 1.0), 256)
    assert (one.before["linear/accuracy"], one.after["linear/accuracy"], one.after["finetuned"]) == (0.4, 0.5, 0.35)
    text = (tmp_path / "found.md").read_text()
    assert (
        text.count("| learns |") == 2
        and "--size tiny" in text
        and "ResNet, 16 to 128 wide" in text
        and "(found.png)" in text
        and "| byol | teacher | 45.0 (1 seed) |" in text
        and (tmp_path / "found.png").exists()
    )


def test_reasons_are_of_the_budget_they_were_found_at():
    """What was looked into with four minutes is not said of two, and every reason is of a task that there is."""
    import compare_objectives

    assert all(len(key) == 3 and set(told) <= set(compare_objectives.tasks()) for key, told in compare_objectives.REASONS.items())
    made = {minutes: compare_objectives.Comparison(SimpleNamespace(root=None), "cifar10", minutes, "tiny") for minutes in (2.0, 4.0)}
    assert made[4.0].reasons and not made[2.0].reasons


@pytest.mark.parametrize(("args", "said"), [(["--data", "nowhere"], "no such folder"), (["--dataset", "digits", "--jobs", "0"], "above 0")])
def test_mistakes_of_a_comparison_come_first(args, said, tmp_path, monkeypatch, capsys):
    """Before any task is run and its error kept."""
    import compare_objectives

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["compare_objectives.py", *args])
    with pytest.raises(SystemExit) as stop:
        compare_objectives.main()
    assert stop.value.code == 2 and said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_losses_are_those_of_the_peer(monkeypatch):
    """The comparison agrees where losses are the same, and has teeth: another temperature is found out."""
    pytest.importorskip("lightly")
    import check_against_peers
    from losses import views

    assert all(row["agrees"] for row in check_against_peers.compare("vicreg", seeds=1))

    def wrong(z):
        for row in views.simclr(z):
            yield dataclasses.replace(row, theirs=row.theirs * 1.001)

    monkeypatch.setitem(check_against_peers.COMPARISONS, "simclr", (wrong, "NTXentLoss"))
    assert not any(row["agrees"] for row in check_against_peers.compare("simclr", seeds=1))


def test_mutations_that_are_noticed_and_that_are_not(tmp_path):
    """In a toy package: what its tests pin down is noticed, what they do not is listed; results are kept and tried again when asked."""
    for folder in ("toy", "tests"):
        (tmp_path / folder).mkdir()
    (tmp_path / "toy" / "__init__.py").touch()
    (tmp_path / "toy" / "sums.py").write_text("def tight(a: int, b: int) -> int:\n    return a + b\n\n\ndef loose(x):\n    return x * 3\n")
    noticing = "from toy.sums import loose, tight\n\n\ndef test_sums():\n    assert tight(2, 3) == 5 and loose({}) == {}\n"
    (tmp_path / "tests" / "test_sums.py").write_text(noticing.format(0, 0))
    (tmp_path / "tests" / "test_other.py").write_text("def test_nothing_of_it():\n    assert False\n")

    def mutate(*args: str) -> str:
        command = [sys.executable, SCRIPTS / "mutate.py", "--root", tmp_path, "--package", "toy", "--libraries", "", "--n", "50", *args]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout

    assert "tests/test_sums.py: 1 tests" in mutate("--learn") and mutate("--learn") == ""
    first = mutate()
    lines = dict(line.split(maxsplit=1) for line in first.splitlines() if "toy/sums.py:" in line)
    assert len(lines) == 5
    tight, loose = ([line.split() for line in lines.values() if f"sums.py:{n} " in line] for n in (2, 6))
    assert sorted(line[3] for line in tight) == ["arithmetic", "sign"] and {line[1] for line in tight} == {"killed"}
    assert sorted(line[3] for line in loose) == ["arithmetic", "constant", "constant"] and {line[1] for line in loose} == {"survived"}
    assert "-    return x * 3\n+    return x / 3\n" in first and "a - b" not in first and first.splitlines()[-1].endswith("40.0 %")
    assert "toy/sums.py:" not in mutate()
    (tmp_path / "tests" / "test_sums.py").write_text(noticing.format(2, 6))
    mutate("--learn")
    again = mutate("--again")
    assert again.count("killed toy/sums.py:6") == 3 and again.splitlines()[-1].endswith("100.0 %")


def test_peers_on_the_same_footing(tmp_path, monkeypatch):
    """Every recipe trains from the same encoder and rows for as many steps as sslt, is kept, and the document is written."""
    pytest.importorskip("accelerate")
    import peers

    from sslt.runs import read_json

    tiny = ["trainer.max_steps=4"]
    start = peers.Start("digits", ["+task=simclr", "encoder.args.channels=[4,4,8,8]", *tiny], ["batch_size=20", *tiny])
    monkeypatch.setattr(peers, "STARTS", {"digits, simclr": start})
    monkeypatch.setattr(peers, "REGIMES", {"all": ["labels_per_class=4"]})
    arguments = ["peers.py", "--data", str(tmp_path), "--root", str(tmp_path / "runs"), "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--out", str(tmp_path / "peers.md"), "--kept", str(tmp_path / "kept.jsonl")])
    peers.main()
    lines = {line["cell"]: line for line in map(json.loads, (tmp_path / "kept.jsonl").read_text().splitlines())}
    found = {recipe: lines[f"digits, simclr-all-0-{recipe}"] for recipe in peers.columns("digits, simclr")}
    assert {line["train/labels"] for line in found.values()} == {40} == {lines["digits, simclr-all-0-sslt"]["train/labels"]}
    assert found.pop("Trainer 5e-5, 3 epochs")["train/steps"] == 6
    assert {line["train/steps"] for line in found.values()} == {4}
    assert all(0 < line["test/accuracy"] <= 1 for line in found.values())
    text = (tmp_path / "peers.md").read_text()
    assert f"{2 * (len(lines) - 1)} of {3 * (len(lines) - 1)} runs are not measured yet" in text
    assert text.count("(1 seed)") == len(lines) - 1
    again = read_json(tmp_path / "runs" / "digits_simclr-pretrained" / "run.json")
    peers.main()
    assert read_json(tmp_path / "runs" / "digits_simclr-pretrained" / "run.json") == again


@pytest.mark.parametrize("recipe", ["fastai", "timm AdamW", "timm SGD", "Trainer 5e-5, 3 epochs", "Trainer 2e-5, as long"])
def test_recipes_of_peers_train_everything(recipe):
    """Both halves of the encoder and the head, for as many steps as said; each weight is in one group."""
    import numpy as np
    import torch
    from peer_recipes import RECIPES, Model

    from sslt import config
    from sslt.encoders.load import build_encoder

    pytest.importorskip("fastai" if recipe == "fastai" else "accelerate")
    cfg = config.compose("finetune", ["+target=digits", "from=scratch", "encoder.args.channels=[4,4,8,8]"])
    source = config.build(cfg.data)
    encoder = build_encoder(cfg.encoder, source)
    train = encoder.processor.prepare(source, "train").subset(np.arange(40))
    model = Model(
        encoder, config.build(cfg.objective, encoder, space={"classes": [str(i) for i in range(10)]}), config.build(cfg.views), train
    )
    groups = model.groups()
    assert len(groups) == 3 and sorted(id(p) for g in groups for p in g) == sorted(map(id, model.parameters()))
    assert [p is model.objective.head.bias for p in groups[-1]] == [False, True]
    before = [[p.detach().clone() for p in group] for group in groups]
    assert RECIPES[recipe](model, train, 20, 12, 0) == (6 if "3 epochs" in recipe else 12)
    for group, were in zip(groups, before, strict=True):
        assert any(not torch.equal(p, was) for p, was in zip(group, were, strict=True))


def test_rows_of_a_bag_that_are_read():
    """The part of a bag that peers train gives what the bag gives, and moves it where it was read and nowhere else."""
    import numpy as np
    import torch
    from peer_recipes import RowsRead

    from sslt import config

    cfg = config.compose("pretrain", ["+task=crops", "encoder.dim=8", "encoder.pairs=512"])
    source = config.build(cfg.data)
    from sslt.encoders.load import build_encoder

    bag = build_encoder(cfg.encoder, source)
    samples = bag.processor.prepare(source, "train").subset(np.arange(20))
    inputs = bag.inputs(samples.batch(np.arange(8)))
    part, before = RowsRead(bag, samples), [t.weight.detach().clone() for t in bag.tables()]
    assert torch.allclose(part(inputs).pooled, bag(inputs).pooled, atol=1e-5)
    assert all(len(rows) < len(table) for rows, table in zip(part.tables, before, strict=True))
    with torch.no_grad():
        for rows in part.tables:
            rows += 1
    part.give_back()
    assert torch.allclose(part(inputs).pooled, bag(inputs).pooled, atol=1e-5)
    for was, table, rows in zip(before, bag.tables(), part.rows, strict=True):
        changed = (table.weight != was).any(1)
        assert changed.sum() == len(rows) and changed[rows].all()


def test_a_bag_learns_by_a_recipe_of_peers():
    """Loop and optimizer of the peer move the rows that it reads, and the head."""
    import numpy as np
    import torch
    from peer_recipes import RECIPES, Model

    from sslt import config
    from sslt.encoders.load import build_encoder

    pytest.importorskip("accelerate")
    cfg = config.compose("finetune", ["+target=docs", "from=scratch", "encoder=bag", "encoder.dim=8", "encoder.pairs=512"])
    source = config.build(cfg.data)
    bag = build_encoder(cfg.encoder, source)
    train = bag.processor.prepare(source, "train").subset(np.arange(24))
    model = Model(bag, config.build(cfg.objective, bag, space=source.space), config.build(cfg.views), train)
    before = [p.detach().clone() for p in model.parameters()]
    assert RECIPES["Trainer 5e-5, as long"](model, train, 8, 4, 0) == 4
    assert all(not torch.equal(p, was) for p, was in zip(model.parameters(), before, strict=True))


def test_what_is_said_of_peers():
    """Differences are over the seeds that both have; half a point behind counts as no worse, more does not."""
    import peers

    def cell(arm, seed, accuracy, regime="all"):
        return {f"docs, crops (bag)-{regime}-{seed}-{arm}": {"test/accuracy": accuracy}}

    ours = cell("sslt", 0, 0.8) | cell("sslt", 1, 0.1) | cell("sslt", 0, 0.7, "5 a class")
    found = ours | cell("fastai", 0, 0.805) | cell("fastai", 0, 0.715, "5 a class")
    made = SimpleNamespace(found=found | {k.replace("-sslt", "-sslt, encoder alone"): v for k, v in ours.items()})
    gaps = peers.gaps(made, "sslt", "fastai")
    assert gaps == pytest.approx({("docs, crops (bag)", "all"): -0.5, ("docs, crops (bag)", "5 a class"): -1.5})
    assert "| fastai | -1.0 | 1 of 2 | -1.5 (docs, crops (bag), 5 a class) |" in peers.summary(made)[2]
    assert peers.behind(made)[0] == "- docs, crops (bag), 5 a class, sslt: behind fastai 1.5"


def test_what_becomes_of_a_result_is_written_from_what_was_measured():
    """A row for each variant, what was refused and why, what the server held; a soak only where there was one."""
    import deploy

    def row(name, score, **more):
        times = {f"latency/{n}/{p}_ms": float(n) for n in (1, deploy.LARGE) for p in ("p50", "p95", "p99")}
        return {"variant": name, "accuracy": score, "bytes": 2e6, "latency/32/per_second": 1000.0, **times, **more}

    moved = {"difference": -0.02, "difference_low": -0.03, "difference_high": -0.01}
    one = {
        "rows": [row("tuned", 0.8, parameters=1e6, operations=5e7), row("pruned", 0.78, **moved)],
        "refused": {"int8": "no linear layers"}, "kept": {"pruned": False}, "primary": "accuracy", "machine": "a laptop",
        "commands": ["sslt compress method=prune"], "served": {"p99": 0.5, "ours": 40.0, "plain": 10.0, "soak": {}},
    }  # fmt: skip
    said = deploy.document({"cifar10": one})
    assert "80.00" in said and "-2.00 (-3.00 to -1.00) | no |" in said and "`int8` is refused: no linear layers" in said
    assert "40.0 requests a second; a plain FastAPI loop around the same model holds 10.0." in said and "minutes at" not in said
    soak = {"rate": 32.0, "seconds": 600, "p99": 0.1, "errors": 0.0, "resident_mib": 400.0, "growth_mib": 0.5}
    said = deploy.document({"cifar10": one | {"served": {**one["served"], "soak": soak}}})
    assert "10 minutes at 32.0 a second: 0.00 % errors, a p99 of 100 ms" in said and "+0.5 MiB" in said


@pytest.mark.parametrize("name", ["cifar10", "imdb"])
def test_every_step_towards_a_served_result_can_be_composed(name):
    """Settings that nothing reads, or that a method lacks, are found before hours of measuring."""
    import deploy

    from sslt.config import compose

    chain = deploy.CHAINS[name]
    made = dict.fromkeys([*chain.steps, *chain.variants], "run")
    for command in [*chain.steps.values(), *chain.variants.values()]:
        verb, *words = (word.format(**made) for word in command)
        compose(verb, words)


def test_commands_of_the_tables_of_texts_compose(monkeypatch, tmp_path):
    """A setting that has got another name since is found here, and not an hour into a measurement."""
    import text

    from sslt.config import compose

    monkeypatch.setenv("SSLT_DATA", str(tmp_path))
    for section in text.SECTIONS.values():
        for row in section.rows:
            if row.pretrain:
                compose("pretrain", row.pretrain)
            compose(row.verb, [*row.args, *(["from=RUN"] if row.pretrain else [])])


def test_a_document_of_transfer_keeps_what_is_not_measured_anew(monkeypatch, tmp_path):
    """Modes become their section; what was refused stands below; sections of other days stay, in their order."""
    import transfer
    from cells import Cells

    out = tmp_path / "transfer.md"
    out.write_text("# Ways\n\n## New domain: a\n\nolder\n\n## Modes: imdb, 2,500 labels\n\nolder modes\n\n## Episodes: Omniglot\n\nolder\n")
    numbers = {"test/accuracy": 0.5, "train/steps": 3, "train/seconds": 4, "train/peak_memory_bytes": 5e6}
    numbers |= {"model/moving_parameters": 10, "model/stored_bytes": 2e6}
    cells = Cells(tmp_path / "runs", str(tmp_path))

    def ran(name: str, verb: str, *args: str, may_fail: bool, alone: bool) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        if "adaptation=lora" in args:
            (folder / "error.txt").write_text("adaptation=lora: none here")
        else:
            (folder / "metrics.json").write_text(json.dumps(numbers))
        assert may_fail and alone and "from=start" in args
        return folder

    monkeypatch.setattr(cells, "run", ran)
    for mode in ("full", "LoRA"):
        args = [lambda: "from=start", *transfer.MODES[mode]]
        cells.measure(f"modes, imdb, 2,500 labels, {mode}, 0", "finetune", *args, may_fail=True, alone=True)
    transfer.write(cells, out)
    text = out.read_text()
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles == ["## Modes: imdb, 2,500 labels", "## New domain: a", "## Episodes: Omniglot"] and "older modes" not in text
    assert (
        "| full (`adaptation=full`) | 50.0 (1 seed) | 10 | 2.00 | 3 | 4 | 5 |" in text
        and "Refused: LoRA: adaptation=lora: none here." in text
    )
    transfer.write(cells, out)
    assert out.read_text() == text


@pytest.mark.parametrize("alone", [False, True])
def test_what_a_cell_was_refused_for_is_kept(alone, monkeypatch, tmp_path, capfd):
    """Whether the command was in this process or in one of its own; it is told as well, and not asked again."""
    from cells import Cells

    monkeypatch.chdir(tmp_path)
    cells = Cells(tmp_path / "runs", str(tmp_path), tmp_path / "kept.jsonl")
    found = cells.measure("none", "finetune", "+target=digits", "from=nowhere", may_fail=True, alone=alone)
    assert found["error"].startswith("from=nowhere") and "from=nowhere" in capfd.readouterr().err
    assert Cells(tmp_path / "runs", str(tmp_path), tmp_path / "kept.jsonl").measure("none", "finetune")["error"] == found["error"]
