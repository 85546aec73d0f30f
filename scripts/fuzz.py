"""Commands with mistakes, hostile folders and damaged files, each tried on sslt, and how each ended.

    python scripts/fuzz.py [--commands 2000] [--folders 300] [--files 500] [--seed 0] [--jobs 2] [--report FILE]
    python scripts/fuzz.py --case folders-17 [--seed 0]      # one again; its folder is kept

Wanted are results and messages of one or two lines with exit code 2. What is not is printed with what repeats it: code that ran or
a file that changed though nobody asked (EXECUTED), a traceback, exit code 1, a hang, a crash, a message that does not help.
The exit code is 1 if there was any. With --report every case is a JSON line, and what the file has already is not done again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from fuzzing import commands, files, folders
from fuzzing.case import Planned
from fuzzing.goods import Goods
from fuzzing.outcomes import BAD, GOOD, by_cause, summary
from fuzzing.runner import Runner, warm_up

PLANS = {"commands": commands.plan, "folders": folders.plan, "files": files.plan}


def main() -> int:
    """Run what was asked for and print how it ended; 1 if anything was bad."""
    args = _arguments()
    root = Path(args.folder or tempfile.mkdtemp(prefix="sslt-fuzz-"))
    act = warm_up()
    goods = Goods(root / "goods", act)
    runner = Runner(root / "cases", act, args.timeout, args.jobs, keep=bool(args.case))
    known = _known(args.report, args.seed)
    names = args.case or [f"{kind}-{n}" for kind in PLANS for n in range(getattr(args, kind)) if args.only in (None, kind)]
    todo = [name for name in names if args.case or name not in known]
    results = [known[name] for name in names if name in known and not args.case]
    began = time.monotonic()
    for result in runner.run(_plan(todo, args.seed, goods)):
        found = {"seed": args.seed, **dataclasses.asdict(result)}
        results.append(found)
        if args.report and not args.case:
            with args.report.open("a") as f:
                f.write(json.dumps(found) + "\n")
        if result.bad or args.case:
            show(found, root)
        elif sys.stderr.isatty():
            print(f"\r{len(results)} of {len(names)}, {time.monotonic() - began:.0f} s ", end="", file=sys.stderr, flush=True)
    conclude(results, args.seed)
    return int(any(r["outcome"] in BAD for r in results))


def _plan(names: list[str], seed: int, goods: Goods) -> Iterator[Planned]:
    for name in names:
        kind, _, number = name.partition("-")
        yield Planned(name, PLANS[kind](int(number), seed, goods))


def _known(report: Path | None, seed: int) -> dict[str, dict[str, Any]]:
    """Cases of this seed that a report has already."""
    if report is None or not report.exists():
        return {}
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    return {r["name"]: r for r in lines if r["seed"] == seed}


def show(result: dict[str, Any], root: Path) -> None:
    """A case, and what repeats it."""
    print(f"\n{result['name']}: {result['outcome']} ({result['cause'] or result['code']}), {result['seconds']:.1f} s")
    for title, text in (
        ("typed", result["typed"]),
        ("files", result["made"]),
        ("seen", "; ".join(result["told"])),
        ("said", result["message"]),
    ):
        if text:
            short = text if len(text) <= 1500 else f"{text[:1400]} … ({len(text):,} letters)"
            print(f"  {title}: " + short.replace("\n", "\n    ").encode(errors="replace").decode())
    print(
        f"  again: python scripts/fuzz.py --case {result['name']} --seed {result['seed']}    (its folder: {root}/cases/{result['name']})",
        flush=True,
    )


def conclude(results: list[dict[str, Any]], seed: int) -> None:
    """The table of outcomes, and what was bad by its cause, worst first."""
    import sslt
    from sslt.report.tables import markdown_table

    print(f"\nseed {seed}, {Path(sslt.__file__).parent}\n")
    print(markdown_table([dict(zip(("kind", "cases", *GOOD, *BAD), row, strict=True)) for row in summary(results)]))
    for outcome, cause, found in by_cause(results):
        print(f"{len(found):4d} × {outcome}: {cause}    ({found[0]['name']})")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind, n in (("commands", 2000), ("folders", 300), ("files", 500)):
        parser.add_argument(f"--{kind}", type=int, default=n, help=f"how many (default {n})")
    parser.add_argument("--seed", type=int, default=0, help="another one is another set of cases")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    parser.add_argument("--only", choices=list(PLANS), help="one kind alone")
    parser.add_argument("--case", action="append", help="these alone, by name; their folders are kept")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds after which a case hangs")
    parser.add_argument("--report", type=Path, help="file for every case as a JSON line")
    parser.add_argument("--folder", help="where cases and good runs are made, to be used again; otherwise a temporary folder")
    args = parser.parse_args()
    for name in args.case or []:
        kind, _, number = name.partition("-")
        if kind not in PLANS or not number.isdigit():
            parser.error(f"--case {name}: a case is KIND-NUMBER, for instance folders-17")
    return args


if __name__ == "__main__":
    sys.exit(main())
