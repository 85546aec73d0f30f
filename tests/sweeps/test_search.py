"""Protects the search: its space is Hydra's, it finds what is better, and one that was killed goes on with the same trials."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
from fake_runs import Died
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from sslt.errors import UserError
from sslt.runs import Run
from sslt.sweeps.folder import Sweep
from sslt.sweeps.job import Job
from sslt.sweeps.search import Search
from sslt.sweeps.space import distributions, typed
from sslt.sweeps.study import open_study
from sslt.sweeps.sweeper import Command, current

optuna = pytest.importorskip("optuna")
USUAL = {
    "n_trials": 12, "n_jobs": 1, "sampler": "tpe", "startup_trials": 5, "seed": 0, "pruner": None, "pruner_trials": 4, "warmup_epochs": 1,
    "params": None, "metric": None, "direction": None,
}  # fmt: skip
SPACE = ["optimizer.lr=tag(log,interval(1e-5,1e-0))", "views=a,b", "seed=3"]


def toy(values):
    """Best where the rate is 1e-2, and a little better for `b`."""
    return -((math.log10(float(values["optimizer.lr"])) + 2) ** 2) + (0.1 if values["views"] == "b" else 0.0)


def search(folder, score=toy, dies_in=None, fails=(), space=SPACE, **settings):
    """A search whose runs are made by `score` at once; gives it, and the numbers of the cells that ran. fails: numbers of those that do."""
    current[:] = [Command("finetune", list(space), None, Job("finetune", None))]
    made, ran = Search(**USUAL | settings), []

    def launch(cells):
        for cell in cells:
            ran.append(cell.number)
            cell.folder.mkdir(exist_ok=True)
            run = Run(cell.folder)
            run.update(verb="finetune", status="running", primary="accuracy", higher_is_better=True)
            if cell.number == dies_in:
                raise Died
            if (value := score(cell.swept)) is not None:
                run.add_metrics({"val/accuracy": value})
            run.update(status="failed" if cell.number in fails else "finished")
        return [{"code": 2 * (cell.number in fails), "error": None, "told": True} for cell in cells]

    made.folder, made.config, made.hydra_context = Sweep(folder), OmegaConf.create({}), SimpleNamespace(config_loader=None)
    made._subfolder, made._launch = lambda number, overrides: str(number), launch
    made.sweep(list(space))
    return made, ran


def cells(folder):
    return [c["overrides"] for c in json.loads((folder / "sweep.json").read_text())["cells"]]


def test_it_finds_a_better_rate(tmp_path, capsys):
    """What it learned from counts: of 25 trials the later ones lie nearer to the best rate than random ones do."""
    search(tmp_path / "tpe", n_trials=25)
    search(tmp_path / "random", n_trials=25, sampler="random")
    off = {}
    for kind in ("tpe", "random"):
        rates = [float(next(o for o in c if o.startswith("optimizer.lr=")).partition("=")[2]) for c in cells(tmp_path / kind)]
        off[kind] = sum(abs(math.log10(r) + 2) for r in rates[10:]) / 15
        assert all(c[0] == "seed=3" for c in cells(tmp_path / kind))
    best = json.loads((tmp_path / "tpe" / "sweep.json").read_text())["best"]
    assert off["tpe"] < 0.5 * off["random"] and abs(math.log10(float(best["swept"]["optimizer.lr"])) + 2) < 0.1


@pytest.mark.parametrize("n_jobs", [1, 3])
def test_a_killed_search_goes_on_with_the_same_trials(tmp_path, n_jobs):
    """Its cells are those of a search that was not killed, and no finished one runs again."""
    search(tmp_path / "whole", n_jobs=n_jobs)
    for at in (1, 7):
        folder = tmp_path / f"killed{at}"
        with pytest.raises(Died):
            search(folder, dies_in=at, n_jobs=n_jobs)
        _, ran = search(folder, n_jobs=n_jobs)
        assert ran == list(range(at, 12)) and cells(folder) == cells(tmp_path / "whole")
        told = [t.value for t in open_study(folder).get_trials()]
        assert told == [t.value for t in open_study(tmp_path / "whole").get_trials()]


def test_failed_trials_are_tried_again(tmp_path):
    """When the search is gone on with, and count then; until then they say nothing of their values, and the command has failed."""
    space = ["optimizer.lr=tag(log,interval(1e-5,1e-0))"]
    search(tmp_path / "whole", lambda values: 1.0, space=space, sampler="random")
    made, _ = search(tmp_path / "some", lambda values: 1.0, fails=(1, 3), space=space, sampler="random")
    assert made.command.code == 2 and len(open_study(tmp_path / "some").get_trials(states=[optuna.trial.TrialState.COMPLETE])) == 10
    made, ran = search(tmp_path / "some", lambda values: 1.0, fails=(3,), space=space, sampler="random")
    assert ran == [1, 3] and made.command.code == 2
    made, ran = search(tmp_path / "some", lambda values: 1.0, space=space, sampler="random")
    assert ran == [3] and made.command.code == 0 and cells(tmp_path / "some") == cells(tmp_path / "whole")
    assert [t.value for t in open_study(tmp_path / "some").get_trials()] == [1.0] * 12


def test_more_trials_go_on_from_those_there_are(tmp_path):
    """As if so many had been asked for at once."""
    search(tmp_path / "whole", n_trials=10)
    search(tmp_path / "more", n_trials=7)
    _, ran = search(tmp_path / "more", n_trials=10)
    assert ran == [7, 8, 9] and cells(tmp_path / "more") == cells(tmp_path / "whole")


@pytest.mark.parametrize("n_jobs", [1, 4])
def test_the_same_values_are_one_run(tmp_path, n_jobs):
    """Of few choices some come twice: the study is told the number that is there, and the table has one row."""
    space = ["optimizer.lr=0.1,0.001", "views=a,b"]
    _, ran = search(tmp_path, space=space, n_trials=12, n_jobs=n_jobs, sampler="random")
    assert len(ran) == len(set(ran)) == len(cells(tmp_path)) == len({tuple(c) for c in cells(tmp_path)}) == 4
    trials = open_study(tmp_path).get_trials()
    assert len(trials) == 12 and all(t.value == pytest.approx(toy(t.params)) for t in trials)
    assert len(json.loads((tmp_path / "sweep.json").read_text())["results"]) == 4


def test_another_seed_is_another_search(tmp_path):
    for seed in (0, 1):
        search(tmp_path / str(seed), seed=seed, n_trials=3)
    assert cells(tmp_path / "0") != cells(tmp_path / "1")


def test_the_lowest_can_be_best(tmp_path):
    """A metric that is to be small is told with its sign changed."""
    search(tmp_path, n_trials=3, direction="minimize")
    found = json.loads((tmp_path / "sweep.json").read_text())
    values = [r["value"] for r in found["results"]]
    assert values == sorted(values) and open_study(tmp_path).best_value == -values[0]


def test_a_trial_without_the_metric_fails_in_words(tmp_path, capsys):
    """And the search goes on without it."""
    made, _ = search(tmp_path, score=lambda values: None if values["views"] == "a" else 1.0, n_trials=6, sampler="random")
    states = [t.state.name for t in open_study(tmp_path).get_trials()]
    assert set(states) == {"COMPLETE", "FAIL"} and made.command.code == 2
    assert "has no val/accuracy, which the search chooses by" in capsys.readouterr().err


def distribution(text):
    (found,) = distributions(OverridesParser.create().parse_overrides([text])).values()
    return found


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("x=int(interval(0,3))", optuna.distributions.IntDistribution(0, 3)),
        ("x=interval(0,1)", optuna.distributions.FloatDistribution(0, 1)),
        ("x=tag(log,interval(1e-4,1e-1))", optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True)),
        ("x=tag(log,int(interval(1,64)))", optuna.distributions.IntDistribution(1, 64, log=True)),
        ("x=range(1,10,3)", optuna.distributions.IntDistribution(1, 7, step=3)),
        ("x=range(10,1,-3)", optuna.distributions.IntDistribution(4, 10, step=3)),
        ("x=range(0,1,0.25)", optuna.distributions.FloatDistribution(0, 0.75, step=0.25)),
        ("x=a,2,null", optuna.distributions.CategoricalDistribution(["a", "2", "null"])),
        ("x='a, b','c'", optuna.distributions.CategoricalDistribution(["'a, b'", "'c'"])),
    ],
)
def test_the_space_is_what_hydra_enumerates(text, wanted):
    """An end of a range is in it only where Hydra's own sweeper would come to it."""
    assert distribution(text) == wanted


def test_what_was_chosen_is_read_as_it_was_typed():
    """Texts with commas, and numbers of every size."""
    parser = OverridesParser.create()
    for value in ("'a, b'", 3, 1e-05, 0.1, 1.5e20):
        (back,) = parser.parse_overrides([f"x={typed(value)}"])
        assert back.value() == ("a, b" if value == "'a, b'" else value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x=tag(log,interval(0,1))", "above 0"),
        ("x=interval(2,1)", "ends below"),
        ("x=tag(log,range(1,9,2))", "no steps"),
        ("x=range(3,3)", "no value"),
    ],
)
def test_spaces_that_are_none(text, says):
    with pytest.raises(UserError, match=says):
        distribution(text)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"n_trials": 0}, "n_trials=0"),
        ({"n_jobs": 1.5}, "n_jobs=1.5"),
        ({"sampler": "tpee"}, "did you mean 'tpe'"),
        ({"pruner": "mediam"}, "did you mean 'median'"),
        ({"seed": -1}, "seed=-1"),
        ({"metric": "test/f1"}, "test split"),
        ({"direction": "up"}, "maximize"),
        ({"space": ["seed=3"]}, "nothing to search for"),
    ],
)
def test_mistakes_of_a_search(settings, says, tmp_path):
    """They come before anything is asked."""
    with pytest.raises(UserError, match=says):
        search(tmp_path / "new", **settings)
    assert not (tmp_path / "new").exists()
