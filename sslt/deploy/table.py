"""Before and after: what a change of a result costs in score, and whether that is within what was allowed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sslt.targets.base import Target


class Change(NamedTuple):
    """By how much `after` is ahead of `before` in the primary metric (below 0: behind), with its 95 % interval, on the same rows."""

    mean: float
    low: float
    high: float

    def kept(self, tolerance: float) -> bool:
        """Whether the whole interval is inside a loss of `tolerance`: not even its worse end loses more."""
        return self.low >= -tolerance


def change(target: Target, before: Any, after: Any, answers: Any) -> Change:
    """Paired, as `Target.difference` counts it."""
    return Change(*target.difference(after, before, answers))


def sentence(target: Target, found: Change, tolerance: float) -> str:
    """Whether the change is kept, and why, in words."""
    ends = f"{_points(found.low)} to {_points(found.high)}"
    interval = f"{target.primary} changed by {_points(found.mean)} (95 %: {ends}), tolerance={tolerance:g}"
    if found.kept(tolerance):
        return f"kept: {interval}"
    if found.high < -tolerance:
        return f"not kept, it loses too much: {interval}"
    return f"not kept, a larger loss cannot be ruled out: {interval}; more test samples would tell, or a larger tolerance="


def _points(value: float) -> str:
    return f"{value:+.4f}"


def rows(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A line for each number that both or one of them has, with the ratio of after to before where both are above 0."""
    lines = []
    for name in dict.fromkeys([*before, *after]):
        a, b = before.get(name), after.get(name)
        numbers = isinstance(a, (int, float)) and isinstance(b, (int, float))
        ratio = f"× {b / a:.3g}" if numbers and a > 0 and b > 0 else ""  # type: ignore[operator]
        lines.append({"metric": name, "before": a, "after": b, "after / before": ratio})
    return lines
