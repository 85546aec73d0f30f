"""Metrics as tables: on the terminal, in Markdown, and the choice of those worth showing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sslt.scales import HEADLINES, is_share, of_part

if TYPE_CHECKING:
    from rich.console import Console

Row = Mapping[str, Any]

DIFFERENCES = ("difference", "gain")


def print_table(title: str, rows: Sequence[Row], console: Console | None = None) -> None:
    """Print `rows`, whose keys are the columns (a row may lack some); numbers are aligned right.

    Shares (`scales.SHARES`) are shown as percentages: by the name of the column, or, in a table with one metric per row, by what the
    column `metric` says. Differences of them (a column `difference` or `gain`, a metric whose
    name begins or ends with `gain`) are shown in points, with their sign.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left")
    columns = _columns(rows)
    for column in columns:
        table.add_column(Text(column), justify="right" if _numeric(rows, column) else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(row, column)) for column in columns))  # Text: brackets in names are no markup
    (console or Console()).print(table)


def markdown_table(rows: Sequence[Row]) -> str:
    """`rows` as a Markdown table with the columns and formats of `print_table`; empty for no rows."""
    columns = _columns(rows)
    if not columns:
        return ""
    lines = [columns, ["---:" if _numeric(rows, column) else ":---" for column in columns]]
    lines += [[_cell(row, column) for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def summary(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows `{"metric", "value"}` of the numbers that describe a run as a whole; those per class are left out.

    First the headline metrics of each group (`test/f1`, …), then the rest in the order given.
    """
    kept = {k: v for k, v in metrics.items() if not of_part(k) and _is_number(v)}
    groups = list(dict.fromkeys(_group(name) for name in kept))

    def place(name: str) -> tuple[int, int]:
        last = name.rsplit("/", 1)[-1]
        return groups.index(_group(name)), HEADLINES.index(last) if last in HEADLINES else len(HEADLINES)

    return [{"metric": name, "value": kept[name]} for name in sorted(kept, key=place)]


def _group(name: str) -> str:
    return name.rsplit("/", 1)[0] if "/" in name else ""


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(column for row in rows for column in row))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _numeric(rows: Sequence[Row], column: str) -> bool:
    values = [row[column] for row in rows if row.get(column) is not None]
    return bool(values) and all(_is_number(value) for value in values)


def _cell(row: Row, column: str) -> str:
    value = row.get(column)
    if value is None:
        return ""
    if not _is_number(value):
        return str(value)
    if not math.isfinite(value):
        return "–" if math.isnan(value) else str(value)
    metric = str(row.get("metric", ""))
    percentage = is_share(column) or is_share(metric)
    if column in DIFFERENCES or metric.startswith("gain/") or metric.endswith("/gain"):
        if percentage or metric.endswith("/gain"):
            return f"{100 * value:+.1f} points"
        return f"{value:+,}" if isinstance(value, int) else _number(value, "+")
    if isinstance(value, int):
        return f"{value:,}"
    return f"{100 * value:.2f} %" if percentage else _number(value)


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.4g}" if abs(value) < 1e4 else f"{value:{sign},.0f}"
