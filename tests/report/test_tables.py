"""Protects how numbers are shown: shares in percent, differences of shares in points."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sslt.report.tables import print_table


def printed(rows):
    """The rows of a table as they are printed: cells with the blanks around them."""
    out = io.StringIO()
    print_table("", rows, Console(file=out, width=200))
    return [line.split("│")[1:-1] for line in out.getvalue().splitlines() if line.startswith("│")]


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ({"metric": "test/accuracy", "from": 0.8, "scratch": 0.556, "difference": 0.244}, "80.00 % | 55.60 % | +24.4 points"),
        ({"metric": "test/f1", "from": 0.5, "scratch": 0.75, "difference": -0.25}, "50.00 % | 75.00 % | -25.0 points"),
        ({"metric": "train/steps", "from": 120, "scratch": 100, "difference": 20}, "120 | 100 | +20"),
        ({"metric": "train/seconds", "from": 1.5, "scratch": 2.0, "difference": -0.5}, "1.5 | 2 | -0.5"),
        ({"metric": "gain/test/accuracy", "value": 0.01}, "+1.0 points"),
        ({"metric": "test_time/gain", "value": -0.01}, "-1.0 points"),
        ({"metric": "test/accuracy", "value": 0.01}, "1.00 %"),
    ],
)
def test_differences_are_points(row, shown):
    """80 % against 55.6 % are 24.4 points more, not 24.4 %."""
    (cells,) = printed([row])
    assert " | ".join(cell.strip() for cell in cells).endswith(shown)


def test_a_column_of_numbers_alone_is_set_right():
    """A word among the numbers makes it one of words; an empty cell does not."""
    rows = [{"number": 1, "of both": 1, "with a gap": None}, {"number": 2, "of both": "none", "with a gap": 2}]
    assert printed(rows) == [["      1 ", " 1       ", "            "], ["      2 ", " none    ", "          2 "]]
