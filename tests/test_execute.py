"""Protects how many processes train: as many as were asked for, each knowing which it is."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from sslt import execute
from sslt.errors import UserError
from sslt.execute import devices
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
    monkeypatch.setattr(execute, "_WORKER", told)
    run, before = Run(here / "run"), dict(os.environ)
    run.path.mkdir()
    with execute._workers("pretrain", OmegaConf.create({"seed": 3, "trainer": {"accelerator": "cpu"}}), run, 3):
        assert [os.environ[k] for k in ("RANK", "LOCAL_RANK", "WORLD_SIZE")] == ["0", "0", "3"]
    assert dict(os.environ) == before
    logs = {path.name: path.read_text().split() for path in (run / "logs").glob("rank*.log")}
    config = run / "logs" / "workers.yaml"
    assert logs == {f"rank{r}.log": [str(r), str(r), "3", "pretrain", str(config), str(run.path)] for r in (1, 2)}
    assert OmegaConf.load(config).seed == 3
