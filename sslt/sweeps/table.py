"""What a sweep has come to: a row for each cell, the best first, on the terminal, in sweep.csv and in sweep.json."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sslt.groups import command, starting
from sslt.report.tables import print_table
from sslt.runs import Run, display, now
from sslt.sweeps import metric
from sslt.sweeps.folder import Cell, Sweep

SHOWN = 30  # rows on the terminal
_NEXT = {"pretrain": ("evaluate", "", ()), "finetune": ("predict", "", ("input=FILE",)), "run": ("predict", "/finetune", ("input=FILE",))}


def label(key: str, overrides: Sequence[str] = ()) -> str:
    """A swept key as the user typed it: of a chain, `seed` for all of its stages or `finetune.seed` for one."""
    bare = key.lstrip("+")
    if not bare.startswith("stages."):
        return bare
    _, stage, _, rest = bare.split(".", 3)
    shared = any(f"${{{bare}}}" in o for o in overrides)
    return rest if shared or rest in ("task", "target", "data") else f"{stage}.{rest}"


def rows(
    cells: Sequence[Cell], wanted: str | None, direction: str | None, errors: dict[int, str]
) -> tuple[list[dict[str, Any]], str, bool]:
    """(rows, the best first; the metric's name; whether the highest is best). Cells without a number come last, by their state."""
    found: list[dict[str, Any]] = []
    measured: list[tuple[str, bool]] = []
    for cell in cells:
        run, state, value, name = Run(cell.folder), cell.state, None, ""
        if run.info:
            watched = run.info["pruned"].get("values") if state == "pruned" else None
            name, highest, value = metric.of(run, wanted, direction, watched)
            measured += [(name, highest)] if value is not None else []
        if cell.number in errors and state in ("not run", "interrupted"):
            state = "failed"
        error = errors.get(cell.number) or (str(run.info.get("error", "")).partition(": ")[2] if state == "failed" else "")
        found.append({
            "number": cell.number, "swept": {label(k, cell.overrides): v for k, v in cell.swept.items()}, "metric": name,
            "value": value, "status": state, "folder": display(cell.folder), "error": error,
        })  # fmt: skip
    name, higher = max(dict.fromkeys(measured), key=measured.count) if measured else (wanted or "", direction != "minimize")
    for row in found:
        if row.pop("metric") != name:  # of other data or another target, which nothing here can be compared with
            row["value"] = None
    states = ("finished", "pruned", "interrupted", "running", "failed", "not run")

    def place(row: dict[str, Any]) -> tuple[bool, int, float, int]:
        value = row["value"] if row["value"] is not None else 0.0
        state = states.index(row["status"]) if row["status"] in states else len(states)
        return row["value"] is None, state, -value if higher else value, row["number"]

    return sorted(found, key=place), name, higher


def over_seeds(found: Sequence[dict[str, Any]], higher: bool) -> list[dict[str, Any]]:
    """Mean and sample standard deviation over finished cells that differ in their seed alone, the best mean first; [] without several."""
    groups: dict[tuple[tuple[str, str], ...], list[float]] = {}
    for row in found:
        if row["status"] == "finished" and row["value"] is not None and any(k.split(".")[-1] == "seed" for k in row["swept"]):
            others = tuple((k, v) for k, v in row["swept"].items() if k.split(".")[-1] != "seed")
            groups.setdefault(others, []).append(row["value"])
    out: list[dict[str, Any]] = [
        {"swept": dict(k), "mean": statistics.fmean(v), "spread": statistics.stdev(v) if len(v) > 1 else None, "runs": len(v)}
        for k, v in groups.items()
    ]
    out.sort(key=lambda g: g["mean"], reverse=higher)
    return out if any(g["runs"] > 1 for g in out) else []


def write(
    sweep: Sweep, verb: str, cells: Sequence[Cell], wanted: str | None, direction: str | None, errors: dict[int, str], status: str | None
) -> None:
    """Write sweep.csv and sweep.json and print the table, the best cell and what to type next. status: None: what the cells come to."""
    found, name, higher = rows(cells, wanted, direction, errors)
    seeds = over_seeds(found, higher)
    best = next((r for r in found if r["status"] == "finished" and r["value"] is not None), None)
    if status is None:
        left = {r["status"] for r in found} - {"finished", "pruned"}
        status = "failed" if "failed" in left else "interrupted" if left else "finished"
    about = {"metric": name or None, "direction": "maximize" if higher else "minimize", "seeds": seeds, "best": best}
    sweep.update(status=status, ended=now(), results=found, **about)
    keys = list(dict.fromkeys(k for r in found for k in r["swept"]))
    with (sweep.path / "sweep.csv").open("w", newline="", encoding="utf-8") as f:
        out = csv.writer(f)
        out.writerow(["number", *keys, name or "metric", "status", "folder", "error"])
        for r in found:
            out.writerow([r["number"], *(r["swept"].get(k, "") for k in keys), r["value"], r["status"], r["folder"], r["error"]])
    shown = [
        {
            **{k: r["swept"].get(k, "") for k in keys},
            **({name: r["value"]} if name else {}),
            "status": r["status"],
            "folder": Path(r["folder"]).name,
        }
        for r in found[:SHOWN]
    ]
    print_table(str(sweep), shown)
    if len(found) > SHOWN:
        print(f"  {len(found) - SHOWN} more in {sweep}/sweep.csv")
    if seeds:
        others = list(dict.fromkeys(k for g in seeds for k in g["swept"]))
        table = [{**{k: g["swept"].get(k, "") for k in others}, name: _spread(g, name), "runs": g["runs"]} for g in seeds[:SHOWN]]
        print_table("over seeds: mean ± sd", table)
    if best is None:
        if not name and any(r["status"] == "finished" for r in found):
            print("  nothing to choose by: these runs measured nothing on validation")
        return
    swept, where = "".join(f" {k}={v}" for k, v in best["swept"].items()), best["folder"]
    print(f"  best by {name}:{swept} → {where}")
    if verb in _NEXT:
        then, below, more = _NEXT[verb]
        print(f"  next: {command(then, starting(where + below), *more)}")


def _spread(group: dict[str, Any], name: str) -> str:
    from sslt.scales import is_share

    scale, unit = (100, " %") if is_share(name) else (1, "")
    spread = "" if group["spread"] is None else f" ± {scale * group['spread']:.3g}"
    return f"{scale * group['mean']:.4g}{spread}{unit}"
