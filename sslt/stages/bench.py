"""`sslt bench`: variants of a result side by side."""

from __future__ import annotations

import csv
import logging
import os
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sslt import distributed, stored
from sslt.config import build
from sslt.deploy.figure import score_against_latency
from sslt.deploy.measured import Measured, Settings, measure, with_threads
from sslt.deploy.variants import Variant, load_variant, named_apart, refuse_other_answers
from sslt.errors import UserError
from sslt.report.end import reported, say_next
from sslt.report.tables import print_table
from sslt.runs import Run
from sslt.stages import common
from sslt.stages.evaluate import data_of

log = logging.getLogger("sslt")


def main(cfg: Any, run: Run) -> dict[str, Any]:
    """Write bench.csv, plots/bench.png and metrics.json (`VARIANT/…`). Returns the metrics."""
    if distributed.active():
        raise UserError("a time is measured in one process: set trainer.devices=1")
    folders, settings = folders_of(str(cfg["from"])), Settings.of(cfg)
    opening = {"trust": list(cfg.trust), "base": cfg.base, "windows": cfg.windows}
    with with_threads(settings.threads):  # which sessions of other libraries are opened with
        variants = [_open(folder, name, opening) for folder, name in zip(folders, named_apart(folders), strict=True)]
    first = OmegaConf.merge(cfg, {"from": folders[0]})
    source = build(data_of(first))
    for variant in variants:
        refuse_other_answers(variant, source)
    run.update(data=source.fingerprint(), primary=variants[0].target.primary, variants=[str(v.folder.resolve()) for v in variants])
    found = measure(variants, source, cfg.split, common.device_of(cfg), int(cfg.batch_size), settings, opening)
    metrics = flat(found)
    run.add_metrics(metrics)
    write_csv(run / "bench.csv", found.rows)
    with reported("score against latency"):
        (run / "plots").mkdir(exist_ok=True)
        score_against_latency(found.rows, variants[0].target.primary, settings.batch_sizes[0], run / "plots" / "bench.png")
    print_table(str(run), table_of(found))
    say_next(run, {}, [], remarks=remarks(found, settings))
    return metrics


def folders_of(text: str) -> list[str]:
    """The folders that `from=` names: one, or several with commas between them."""
    if stored.is_folder(stored.located(text)):
        return [text]
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise UserError(f"from={text}: give folders of runs with a comma between two of them, from=RUN,RUN2")
    return found


def _open(folder: str, name: str, opening: dict[str, Any]) -> Variant:
    return load_variant(folder, opening["trust"], base=opening["base"], windows=opening["windows"], name=name)


def flat(found: Measured) -> dict[str, Any]:
    """Every number of every row, by the name of its variant."""
    numbers = {f"{row['variant']}/{k}": v for row in found.rows for k, v in row.items() if k != "variant" and v is not None}
    return {**numbers, "threads": found.threads}


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """The rows as a table, a column for whatever one of them has."""
    columns = list(dict.fromkeys(k for row in rows for k in row))
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, columns)
        writer.writeheader()
        writer.writerows(rows)


def table_of(found: Measured) -> list[dict[str, Any]]:
    """The rows as columns, for a terminal; bench.csv has more of what was timed."""
    wanted = [k for k in dict.fromkeys(k for row in found.rows for k in row) if k != "variant" and not k.endswith(("/rounds", "/p95_ms"))]
    return [{"metric": k, **{row["variant"]: row.get(k) for row in found.rows}} for k in wanted]


def remarks(found: Measured, settings: Settings) -> list[str]:
    """What has to be known of the numbers to read them."""
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
    lines = [f"on {threads}" + ("" if busy is None else f"; {busy:.1f} processes wanted to run on this machine's {os.cpu_count()} CPUs")]
    fewest = min(len(taken) for each in found.seconds.values() for taken in each)
    if fewest < min(100, settings.rounds):
        lines.append(f"{fewest} calls of the slowest kind: their p99 is little more than the longest (max_seconds= gives them more)")
    return lines
