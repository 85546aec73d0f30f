"""Protects how many processes train: as many as were asked for, each knowing which it is."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from sslt import processes
from sslt.errors import RankLost, UserError
from sslt.processes import devices
from sslt.runs import Run


@pytest.mark.parametrize(("wanted", "expected"), [("auto", 1), (-1, 1), (1, 1), (3, 3), ("2", 2)])
def test_a_processor_has_one_process_unless_told(wanted, expected):
    assert devices(SimpleNamespace(accelerator="cpu", devices=wanted)) == expected


@pytest.mark.parametrize("wanted", [0, -2, "many", None])
def test_what_no_number_of_devices_is(wanted):
    with pytest.raises(UserError, match=f"trainer.devices={wanted}: give a number"):
        devices(SimpleNamespace(accelerator="cpu", devices=wanted))


def test_every_rank_but_the_first_is_a_process_of_its_own(here, monkeypatch):
    """Three ranks are this process and two others, which are given their place and what to run; afterwards this one is by itself."""
    told = "import os, sys; {!r}; print(*(os.environ[k] for k in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE')), *sys.argv[1:])"
    monkeypatch.setattr(processes, "_WORKER", told)
    run, before = Run(here / "run"), dict(os.environ)
    run.path.mkdir()
    with processes._workers("pretrain", OmegaConf.create({"seed": 3, "trainer": {"accelerator": "cpu"}}), run, 3):
        assert [os.environ[k] for k in ("RANK", "LOCAL_RANK", "WORLD_SIZE")] == ["0", "0", "3"]
    assert dict(os.environ) == before
    logs = {path.name: path.read_text().split() for path in (run / "logs").glob("rank*.log")}
    config = run / "logs" / "workers.yaml"
    assert logs == {f"rank{r}.log": [str(r), str(r), "3", "pretrain", str(config), str(run.path)] for r in (1, 2)}
    assert OmegaConf.load(config).seed == 3


@pytest.mark.parametrize(("cores", "threads"), [(8, 2), (2, 1), (None, 1)])
def test_ranks_on_a_processor_share_its_cores(cores, threads, here, monkeypatch):
    """Each of three has a third of the threads, one at least, this process too."""
    own = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr("torch.set_num_threads", own.append)
    monkeypatch.setattr(processes, "_WORKER", "import os; {!r}; print(os.environ['OMP_NUM_THREADS'])")
    run = Run(here / "run")
    run.path.mkdir()
    with processes._workers("pretrain", OmegaConf.create({"trainer": {"accelerator": "cpu"}}), run, 3):
        pass
    assert own == [threads] and [(run / "logs" / f"rank{r}.log").read_text() for r in (1, 2)] == [f"{threads}\n"] * 2
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.parametrize(
    ("codes", "kind", "words"),
    [
        ((None, 0, processes.LEFT_ALONE), type(None), "None"),
        ((1, 2, -9), UserError, "rank 2 says"),
        ((1, 4, -9), RankLost, "rank 3 was ended by signal 9, perhaps because memory ran out; see "),
        ((processes.LEFT_ALONE, 0, 1), RankLost, "rank 3 ended with code 1 (rank 3 says); see "),
    ],
)
def test_the_rank_that_others_ends_follow_from_is_the_one_spoken_of(codes, kind, words, here):
    """A mistake is told as one; a rank that ended because another did, or well, is not blamed."""
    run = Run(here / "run")
    (run / "logs").mkdir(parents=True)
    for r in (1, 2, 3):
        (run / "logs" / f"rank{r}.log").write_text(f"sslt: first\nsslt: rank {r} says\nother lines\n")
    ranks = [SimpleNamespace(poll=lambda code=code: code) for code in codes]
    lost = processes._lost_rank(ranks, run)
    assert type(lost) is kind and str(lost).startswith(words)
