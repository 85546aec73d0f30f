"""Pictures are written whatever the numbers; curves survive kills and resumes; tables are formatted."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sslt.report import plots
from sslt.report.curves import MetricsCSV
from sslt.report.tables import markdown_table, print_table, summary

pytestmark = pytest.mark.usefixtures("true_pictures")


def _picture(path: Path) -> np.ndarray:
    """The pixels of a PNG, checked not to be blank."""
    from PIL import Image

    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert len(np.unique(pixels)) > 5
    return pixels


@pytest.mark.parametrize("shape", [(2, 20, 3, 16, 16), (1, 1, 1, 8, 8), (3, 2, 4, 8, 12)])
def test_views_grid(tmp_path, shape):
    """Many and few samples, colour, grey and more channels; the folder is made."""
    plots.views_grid(torch.rand(shape), tmp_path / "new" / "views.png")
    _picture(tmp_path / "new" / "views.png")


@pytest.mark.parametrize(("n", "d", "c"), [(80, 16, 3), (60, 4, 30), (30, 8, None), (3, 1, 2), (60, 4, 1), (1, 4, 1)])
def test_embedding_map(tmp_path, n, d, c):
    """t-SNE and its fallback, with legend, without, without labels, with features that are not finite."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=g)
    x[0, 0] = math.nan
    labels = None if c is None else torch.arange(n) % c
    plots.embedding_map(x, labels, None if c is None else [f"class {i}" for i in range(c)], tmp_path / "e.png")
    _picture(tmp_path / "e.png")


def test_a_map_is_by_t_sne_and_the_same_when_drawn_again(tmp_path):
    """A run that goes on leaves the picture of one that never stopped; fewer samples are drawn by principal components."""
    x = torch.randn(plots.MIN_TSNE, 5, generator=torch.Generator().manual_seed(0))
    assert plots._project(x.numpy(), 0)[1] == "t-SNE" and plots._project(x[1:].numpy(), 0)[1] == "principal components"
    for name in ("a", "b"):
        np.random.rand()
        plots.embedding_map(x, None, None, tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(("n", "kept"), [(500, 500), (600, 600), (1800, 600)])
def test_a_map_has_no_more_points_than_can_be_waited_for(tmp_path, monkeypatch, n, kept):
    """Drawn of all of them, each with its label; the same ones when drawn again."""
    seen = []
    monkeypatch.setattr(plots, "_project", lambda x, seed: (seen.append(x[:, 0].astype(int)) or np.zeros((len(x), 2)), "a method"))
    monkeypatch.setattr(plots, "_scatter_named", lambda ax, points, labels, names: seen.append(labels))
    for name in ("a", "b"):
        plots.embedding_map(torch.arange(n).float().unsqueeze(1), torch.arange(n) % 7, None, tmp_path / f"{name}.png")
    rows, labels, again, _ = seen
    assert len(set(rows.tolist())) == kept and np.array_equal(labels, rows % 7) and np.array_equal(rows, again)
    assert kept == n or rows.max() > n - 50


def test_embedding_map_of_collapsed_features(tmp_path):
    """All samples at one point, which t-SNE cannot take."""
    plots.embedding_map(torch.ones(100, 8), torch.arange(100) % 2, ["a", "b"], tmp_path / "e.png")
    _picture(tmp_path / "e.png")


def test_curves(tmp_path):
    """Gaps, NaN, infinity, names that never had a number, a single point, and no file at all."""
    record = MetricsCSV(tmp_path / "m.csv")
    plots.curves(record.path, tmp_path / "none.png")
    for step in range(300):
        record.append(step, step / 100, {"train/loss": 1 / (step + 1) if step != 7 else math.nan, "lr": 1e-3})
    record.append(300, 3, {"val/loss": math.inf, "probe/accuracy": 0.5, "broken": math.nan, "class/a/f1": 0.1})
    plots.curves(record.path, tmp_path / "c.png")
    _picture(tmp_path / "none.png")
    _picture(tmp_path / "c.png")
    panels = plots._panels(MetricsCSV.read(record.path))
    assert list(panels) == ["loss", "lr", "accuracy"]


def test_metrics_csv_keeps_what_was_appended(tmp_path):
    """New names at any step, names that need quoting, values to the last bit, across writers."""
    path = tmp_path / "run" / "m.csv"
    MetricsCSV(path).append(1, 0, {"loss": 0.1 + 0.2, "a,b": 1})
    MetricsCSV(path).append(2, 0.5, {"loss": math.nan, "late": torch.tensor(2.0)})
    read = MetricsCSV.read(path)
    assert read["a,b"] == ([1], [1.0]) and read["late"] == ([2], [2.0])
    assert read["loss"][0] == [1, 2] and read["loss"][1][0] == 0.1 + 0.2 and math.isnan(read["loss"][1][1])
    assert path.read_text().splitlines()[0] == "step,epoch,name,value"
    assert MetricsCSV.read(tmp_path / "absent.csv") == {}


@pytest.mark.parametrize("left", ["3,0,loss,0.12", "3,0,lo", "step,ep", ""])
def test_metrics_csv_after_a_kill(tmp_path, left):
    """A line cut short, whose number may lack digits, is neither read nor glued to the next."""
    path = tmp_path / "m.csv"
    record = MetricsCSV(path)
    whole = left != "step,ep"
    if whole:
        record.append(2, 0, {"loss": 0.5})
    with path.open("a") as f:
        f.write(left)
    before = ([2], [0.5]) if whole else None
    assert MetricsCSV.read(path).get("loss") == before
    record.append(4, 0, {"loss": 0.25})
    assert MetricsCSV.read(path)["loss"] == (([2, 4], [0.5, 0.25]) if whole else ([4], [0.25]))


def test_metrics_csv_truncates_for_a_resume(tmp_path):
    """Later rows go, the others and the header stay, and repeated steps are not double."""
    record = MetricsCSV(tmp_path / "m.csv")
    record.truncate_after(5)  # nothing to do yet
    for step in range(1, 10):
        record.append(step, 0, {"loss": step, "lr": 0.1})
    record.truncate_after(4)
    record.append(5, 0, {"loss": 50})
    record.append(5, 0, {"loss": 51})
    assert MetricsCSV.read(record.path) == {
        "loss": ([1, 2, 3, 4, 5], [1, 2, 3, 4, 51]),
        "lr": ([1, 2, 3, 4], [0.1] * 4),
    }
    assert [p.name for p in tmp_path.iterdir()] == ["m.csv"]


def test_metrics_csv_is_cut_to_a_size(tmp_path):
    """What was written after it goes; a file that is shorter stays as it is, and says so."""
    record = MetricsCSV(tmp_path / "m.csv")
    assert record.size == 0 and record.cut(0) and not record.cut(9)
    record.append(1, 0, {"loss": 1})
    size = record.size
    assert size == len(record.path.read_bytes())
    record.append(2, 0, {"loss": 2})
    assert record.cut(size) and MetricsCSV.read(record.path) == {"loss": ([1], [1.0])}
    assert not record.cut(size + 1) and record.size == size


def test_summary_skips_classes_and_puts_headlines_first():
    """What a run prints at its end."""
    metrics = {
        "test/nll": 0.3,
        "test/class/cat/f1": 0.1,
        "test/accuracy": 0.9,
        "class/a/f1": 1,
        "note": "x",
        "knn": 0.5,
    }
    assert [row["metric"] for row in summary(metrics)] == ["test/accuracy", "test/nll", "knn"]


def test_tables_format_numbers():
    """Percentages by column or by the row's metric, NaN as a dash, brackets as they are, missing cells empty; the title on the left."""
    from rich.console import Console

    rows = [{"run": "[a] x|y", "test/accuracy": 0.1234, "nll": 0.123456}, {"run": "b", "nll": math.nan, "n": 12345}]
    table = markdown_table(rows)
    assert table.splitlines() == [
        "| run | test/accuracy | nll | n |",
        "| :--- | ---: | ---: | ---: |",
        "| [a] x\\|y | 12.34 % | 0.1235 |  |",
        "| b |  | – | 12,345 |",
    ]
    assert "50.00 %" in markdown_table([{"metric": "knn_accuracy", "value": 0.5}])
    assert markdown_table([]) == ""
    out = io.StringIO()
    print_table("Results [1]", rows, Console(file=out, width=100))
    assert "[a] x|y" in out.getvalue() and out.getvalue().startswith("Results [1]")
