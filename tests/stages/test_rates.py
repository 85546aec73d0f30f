"""Protects `optimizer.lr=auto`: which rate is taken, that trials are the run made short, and that the run knows nothing of them."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import TINY_IMAGES
from killed_runs import command
from safetensors.torch import load_file

from sslt import config
from sslt.callbacks.budget import Budget
from sslt.cli import main
from sslt.errors import UserError
from sslt.runs import Run, write_json
from sslt.stages import fitting, rates

PRE = ["pretrain", "+task=simclr", *TINY_IMAGES, "trainer.max_steps=3", "online_probe.every_n_epochs=0"]
LEAST = rates.LEAST_STEPS
TUNE = ["finetune", "+target=digits", *TINY_IMAGES[2:], "baseline=false", "labels_per_class=5", "trainer.max_steps=4"]
AUTO = "optimizer.lr=auto"


@pytest.fixture(scope="module")
def pre(cache, tmp_path_factory) -> str:
    """`from=` a short pretraining."""
    folder = tmp_path_factory.mktemp("pre") / "run"
    assert main([*PRE, f"cache_dir={cache}", f"hydra.run.dir={folder}"]) == 0
    return f"from={folder}"


def weights(run) -> dict[str, torch.Tensor]:
    """Of the encoder, or its adapter, and the head."""
    files = [file for part in ("encoder", "head") for file in (run / part).glob("*.safetensors")]
    return {f"{file.parent.name}/{k}": v for file in files for k, v in load_file(file).items()}


@pytest.mark.parametrize(
    "settings",
    [
        ["ema=0.5"],
        ["adaptation=lora"],
        ["adaptation=partial", "head=fresh"],
        ["adaptation=l2sp", "+joint=simclr", "joint.batch_size=16", "optimizer=sgd"],
        ["adaptation=gradual", "trainer.accumulate_grad_batches=2", "batch_size=20"],
        ["adaptation=lpft"],
        ["adaptation=probe", "head=fresh"],
    ],
    ids=lambda settings: settings[0],
)
def test_the_run_is_that_with_the_rate_typed(sslt, here, pre, settings):
    """To the last bit: trials leave weights, buffers, adapters and the random state as they were."""
    sslt(*TUNE, pre, *settings, AUTO, "hydra.run.dir=auto")
    auto = Run(here / "auto")
    sslt(*TUNE, pre, *settings, f"optimizer.lr={auto.metrics['train/lr']}", "hydra.run.dir=typed")
    mine, typed = weights(here / "auto"), weights(here / "typed")
    assert mine.keys() == typed.keys() and all(torch.equal(mine[k], typed[k]) for k in mine)
    found = {k: v for k, v in auto.metrics.items() if k in Run(here / "typed").metrics and k.startswith(("test/", "val/", "train/inter"))}
    assert found and found == {k: Run(here / "typed").metrics[k] for k in found}


def test_a_trial_ends_where_a_run_of_its_length_does(sslt, here, pre, monkeypatch):
    """Its loss is val/nll of that run: the same start, batches and random numbers, the whole of the schedule, averaged weights."""
    tried: dict[float, float] = {}
    original = rates._Search._trial

    def trial(self, rate, budget):
        loss, steps = original(self, rate, budget)
        tried[rate] = loss
        return loss, steps

    monkeypatch.setattr(rates._Search, "_trial", trial)
    sslt(*TUNE, pre, AUTO, "interpolate=[]", "late_fusion=false", "ema=0.5", "hydra.run.dir=auto")
    assert sorted(tried) == [0.000333, 0.001, 0.003]
    for rate in (0.000333, 0.003):
        sslt(*TUNE, pre, f"optimizer.lr={rate}", "interpolate=[]", "late_fusion=false", "ema=0.5", f"hydra.run.dir={rate}")
        assert tried[rate] == pytest.approx(Run(here / str(rate)).metrics["val/nll"], rel=1e-5)
    assert Run(here / "auto").metrics["train/lr"] == min(tried, key=lambda rate: tried[rate])


def search(losses: dict[float, float], limit: float | None = None, steps: int = LEAST) -> rates._Search:
    """One whose trials are known."""
    made = object.__new__(rates._Search)
    made.steps, made.began, made.tried = LEAST if limit is None else None, 0.0, []
    made._limit = lambda own: limit

    def trial(rate: float, budget: Budget) -> tuple[float, int]:
        made.tried.append((rate, budget.max_steps, budget.max_time))
        return losses[rate], steps

    made._trial = trial
    return made


@pytest.mark.parametrize(
    ("low", "own", "high", "taken"),
    [
        (3.0, 2.0, 1.0, 0.3),
        (1.0, 2.0, 3.0, 0.0333),
        (2.0, 1.0, 1.0, 0.1),  # of equal ones the smaller
        (1.0, 1.0, 1.0, 0.0333),
        (2.0, 1.0, math.nan, 0.1),
        (math.nan, 5.0, math.inf, 0.1),
    ],
)
def test_the_lowest_finite_loss_wins(low, own, high, taken):
    assert search({0.0333: low, 0.1: own, 0.3: high}).run(0.1).lr == taken


def test_no_finite_loss_is_the_users_to_mend():
    with pytest.raises(UserError, match=r"optimizer\.lr=auto: no rate.*finite.*nan at 0\.1.*give a smaller"):
        search({0.0333: math.nan, 0.1: math.nan, 0.3: math.inf}).run(0.1)


def test_a_time_too_short_for_trials_leaves_the_recipes_rate(caplog):
    """Trials of fewer than `LEAST_STEPS` steps say nothing; after the first such one there is no other."""
    caplog.set_level("INFO", logger="sslt")
    none, few, enough = (
        search({}, limit=-1.0),
        search({0.1: 1.0}, limit=2.0, steps=LEAST - 1),
        search({0.0333: 1, 0.1: 2, 0.3: 3}, limit=2.0),
    )
    assert none.run(0.1).lr == 0.1 and none.tried == []
    assert few.run(0.1).lr == 0.1 and few.tried == [(0.1, None, 2.0)]
    assert "no time to search" in caplog.text
    assert enough.run(0.1).lr == 0.0333 and len(enough.tried) == 3


def test_trials_take_their_share_of_the_time(monkeypatch):
    """15 % for all, the rehearsal and what each takes beside its steps included."""
    made = object.__new__(rates._Search)
    clock = [0.0]
    monkeypatch.setattr(rates.time, "monotonic", lambda: clock[0])
    made.began, made.max_time = 0.0, 100.0

    def trial(rate, budget):
        clock[0] += 1.5
        return 0.0, 1

    made._trial = trial
    limit = made._limit(0.1)
    assert limit == pytest.approx((15 - 1.5) / 3 - 1.5) and 1.5 + 3 * (limit + 1.5) == pytest.approx(15)
    made.max_time = None
    assert made._limit(0.1) is None


def test_what_the_search_took_is_no_time_of_the_run(sslt, here, pre, monkeypatch):
    """`trainer.max_time` holds both, in a run that goes on too, which takes the rate that was found before."""
    times = []
    original = fitting.fit

    def fit(cfg, *args, **kwargs):
        times.append((cfg.optimizer.lr, cfg.trainer.max_time))
        return original(cfg, *args, **kwargs)

    monkeypatch.setattr(fitting, "fit", fit)
    monkeypatch.setattr(rates._Search, "run", lambda self, own: rates._Found(0.007, 12.0))
    timed = [*TUNE, pre, "trainer.max_time=00:10:00"]
    sslt(*timed, AUTO, "hydra.run.dir=run")
    assert Run(here / "run").metrics["train/lr"] == 0.007 and Run(here / "run").metrics["train/lr_search_seconds"] == 12
    monkeypatch.setattr(rates._Search, "run", lambda self, own: pytest.fail("a second search"))
    sslt("finetune", "resume=run", "trainer.max_steps=5")
    assert times == [(0.007, 588.0)] * 2 and Run(here / "run").metrics["train/steps"] == 5
    assert Run(here / "run").metrics["train/lr"] == 0.007
    sslt("finetune", "resume=run", "trainer.max_steps=6", "optimizer.lr=0.002")
    assert times[-1] == (0.002, "00:10:00")
    write_json(here / "run" / "run.json", Run(here / "run").info | {"rate_search": {"lr": "0.1", "seconds": 1.0}})
    sslt("finetune", "resume=run", "trainer.max_steps=7", AUTO.replace("auto", "auto:0.001"), code=2)


def test_a_solved_head_leaves_nothing_to_search(sslt, here, pre, capsys):
    sslt(*TUNE, pre, "adaptation=probe", AUTO, "hydra.run.dir=probe")
    assert "nothing is searched for" in capsys.readouterr().err and "train/lr" not in Run(here / "probe").metrics


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["pretrain", "+task=simclr"], "validation labels, which `sslt pretrain` does not have"),
        (["run", "+task=simclr", "+target=digits"], "finetune.optimizer.lr=auto"),
        (["finetune", "+target=omniglot", "from=scratch", "+episodes=protonet"], "+episodes= has no use for"),
        (["finetune", "+target=digits", "from=scratch", "+shift=dann", "data@shift.target=usps"], "+shift= has no use for"),
        (["finetune", "+target=text_csv", "data.path=t.csv", "from=scratch", "data.val_fraction=0"], "set data.val_fraction=0.1"),
    ],
    ids=["pretrain", "chain", "episodes", "shift", "no validation"],
)
def test_where_nothing_can_choose_it_is_refused(sslt, here, capsys, args, says):
    (here / "t.csv").write_text("text,label\n" + "".join(f"{word} number {i},{word}\n" for i in range(20) for word in ("red", "blue")))
    sslt(*args, AUTO, "trainer.accelerator=cpu", code=2)
    said = capsys.readouterr().err.splitlines()[-1]
    assert "optimizer.lr=auto" in said and says in said


@pytest.mark.parametrize(
    ("overrides", "rate"),
    [([], "auto:0.001"), (["optimizer=lars"], "auto:0.3"), (["+target=docs"], "auto:0.0005"), (["optimizer=sgd"], "auto:0.06")],
)
def test_the_rate_to_search_around_is_the_one_without_auto(overrides, rate):
    """The recipe's own, or that of the optimizer chosen in its place."""
    target = [] if "+target=docs" in overrides else ["+target=digits"]
    assert config.compose("finetune", [*target, *overrides, "from=scratch", AUTO]).optimizer.lr == rate


@pytest.mark.parametrize("rate", ["automatic", "auto:", "auto:fast", "fast"])
def test_other_words_are_of_the_wrong_type(rate):
    with pytest.raises(UserError, match=r"optimizer\.lr='\w+:?\w*' is of the wrong type"):
        config.compose("finetune", ["+target=digits", "from=scratch", f"optimizer.lr={rate}"])


def test_a_length_is_a_share_of_the_run_and_enough_to_judge_by():
    """A share of the steps, at least `LEAST_STEPS`, and never more than the run has."""
    assert [rates.length(steps) for steps in (10, 100, 10_000, None)] == [10, LEAST, math.ceil(rates.SHARE * 10_000), None]


def test_two_ranks_take_one_rate(here, pre):
    """Each trains on its share; both go on with what rank 0 found."""
    two = ["trainer.devices=2", "batch_size=16", AUTO, "hydra.run.dir=two"]
    assert command([*TUNE, pre, *two]) == 0, (here / "output.txt").read_text()
    run = Run(here / "two")
    said = [next(line for line in (run / "logs" / name).read_text().splitlines() if AUTO in line) for name in ("sslt.log", "rank1.log")]
    assert all(f"{run.metrics['train/lr']:g} is taken" in line for line in said)
