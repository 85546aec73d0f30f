"""Protects how numbers are shown: shares in percent, differences of shares in points."""

from __future__ import annotations

import pytest

from sslt.report.tables import markdown_table


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
    assert shown in markdown_table([row])


def test_a_column_of_numbers_alone_is_set_right():
    """A word among the numbers makes it one of words; an empty cell does not."""
    rows = [{"n": 1, "both": 1, "some": None}, {"n": 2, "both": "none", "some": 2}]
    assert markdown_table(rows).splitlines()[1] == "| ---: | :--- | ---: |"
