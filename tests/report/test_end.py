"""Protects the end of a run: which pictures are made of what, by the first rank alone, and that none of them fails a run."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sslt.objectives.base import Picture
from sslt.report import end, plots
from sslt.report.curves import MetricsCSV
from sslt.runs import Run


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path)


@pytest.fixture
def drawn(monkeypatch) -> dict[str, Any]:
    """What is given to be drawn, by the kind of picture."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(plots, "views_grid", lambda views, path: found.update(views=(views, path)))
    monkeypatch.setattr(plots, "picture_grid", lambda rows, captions, path: found.update(rows=(rows, captions, path)))
    monkeypatch.setattr(plots, "embedding_map", lambda x, labels, classes, path, seed: found.update(map=(x, labels, classes, path)))
    return found


def learner(views: dict | None = None, pictures: dict | None = None) -> Any:
    processor = SimpleNamespace(mean=[0.5], std=[0.25], decode=lambda row: " ".join(map(str, row)))
    return SimpleNamespace(first_views=views, encoder=SimpleNamespace(processor=processor), pictures=lambda: pictures or {})


def test_views_are_shown_as_pixels(run, drawn):
    """A dozen, taken back to 0..1 by the processor's mean and deviation; the curves beside them."""
    MetricsCSV(run / "metrics.csv").append(1, 0.0, {"loss": 1.0})
    views = torch.randn(2, 20, 1, 4, 4)
    end.write_plots(run, learner({"main": {"image": views}}))
    shown, path = drawn["views"]
    assert path == run / "plots" / "views_main.png" and (run / "plots" / "curves.png").exists()
    assert torch.allclose(shown, (views[:, :12] * 0.25 + 0.5).clamp(0, 1), atol=1e-6)


def test_texts_are_shown_as_the_encoder_saw_them(run):
    """Eight, special tokens too."""
    end.write_plots(run, learner({"main": {"tokens": torch.arange(40).view(2, 10, 2)}}))
    rows = (run / "plots" / "views_main.txt").read_text().split("\n\n")
    assert len(rows) == 8 and rows[0] == "0 1" and rows[7] == "14 15\n"


def test_what_objectives_draw(run, drawn):
    """Rows as pixels, with their captions, by name."""
    x = torch.zeros(3, 1, 4, 4)
    written = end.write_pictures(run, learner(pictures={"made": Picture({"given": x, "answer": x + 1}, ["a", "b", "c"])}))
    rows, captions, path = drawn["rows"]
    assert written == {"made": run / "pictures" / "made.png"} and path == written["made"] and captions == ["a", "b", "c"]
    assert float(rows["given"].mean()) == pytest.approx(0.5) and float(rows["answer"].mean()) == pytest.approx(0.75)


def test_what_a_map_shows(run, drawn):
    """Features with their labels and the names of these, where there are any."""
    labels = np.arange(500) % 7
    end.write_map(run, torch.arange(500).float().unsqueeze(1), SimpleNamespace(labels=labels, names=["c"]))
    x, shown, classes, path = drawn["map"]
    assert len(x) == 500 and shown.tolist() == [int(i) % 7 for i in x[:, 0]] and classes == ["c"]
    assert path == run / "plots" / "embeddings.png"
    end.write_map(run, torch.zeros(3, 1), SimpleNamespace(labels=None, names=None))
    assert drawn["map"][1] is None


def test_other_ranks_draw_nothing(run, drawn, capsys):
    """Nor do they say what comes next."""
    run.is_main = False
    end.write_plots(run, learner({"main": {"image": torch.zeros(1, 2, 1, 4, 4)}}))
    end.write_map(run, torch.zeros(3, 1), SimpleNamespace(labels=None, names=None))
    assert end.write_pictures(run, learner(pictures={"made": Picture({"x": torch.zeros(1, 1, 4, 4)})})) == {}
    end.say_next(run, {"test/accuracy": 0.5}, ["sslt evaluate"])
    assert not drawn and not list(run.path.iterdir()) and capsys.readouterr().out == ""


def test_a_picture_that_fails_is_a_warning(run, monkeypatch, caplog):
    """Which one, and why; the others are made."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr(plots, "curves", fail)
    with caplog.at_level(logging.WARNING, "sslt"):
        end.write_plots(run, learner({"main": {"tokens": torch.zeros(1, 2, 2, dtype=torch.long)}}))
    assert caplog.messages == ["the picture of the curves could not be drawn: no ink"] and (run / "plots" / "views_main.txt").exists()


def test_what_is_said_at_the_end(run, capsys):
    """Headline numbers, what there is in the folder, and the next commands."""
    (run / "plots").mkdir()
    end.say_next(run, {"test/accuracy": 0.5, "test/class/a/accuracy": 0.1}, ["sslt evaluate from=x", "sslt predict from=x"])
    out = capsys.readouterr().out
    assert (
        "50.00 %" in out
        and "10.00 %" not in out
        and out.splitlines()[-2:] == ["  next: sslt evaluate from=x", "  next: sslt predict from=x"]
    )
    assert out.splitlines()[-3].endswith(": plots/")
    end.say_next(run, {}, [])
    assert len(capsys.readouterr().out.splitlines()) == 1
