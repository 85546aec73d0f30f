"""Break the code on purpose, one small change at a time, and see whether the tests notice.

    python scripts/mutate.py --learn
    python scripts/mutate.py --n 200 --seed 0

Changes are drawn by the seed over all files of the package, so that none of its parts is left out. Each is put into a copy of the tree,
where those tests run that reach the changed line, the cheapest files first and up to --budget seconds of them. --learn finds out which
these are, by running each test file once on code that notes what it reaches, and again when the file has changed. What no test notices
is printed as a diff. Results are kept in .mutations, one line of JSON each: a stopped run goes on where it was, and --again tries the
survivors anew, after tests were added. Every test that noticed something is run on the code as it is: one that fails there too has
noticed nothing.

Changes that make no difference stand in mutation/alike.txt with the reason; they are not counted.

mutmut and cosmic-ray are not used: both start a Python for each change, which here imports torch for seconds before the first test, and
neither picks the tests by the changed line. Here each change is tried in a fork of one process that has the libraries and nothing of ours.
"""

from __future__ import annotations

import argparse
import ast
import collections
import contextlib
import difflib
import hashlib
import importlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mutation.changes import Mutation, draw, functions_of, mutations_of, part_of
from mutation.trials import Children, Watch, attempt, chosen, learn, run_tests

HERE = Path(__file__).resolve().parent
LIBRARIES = (
    "numpy,torch,torchvision,pytorch_lightning,timm,hydra,sklearn.linear_model,scipy.stats,matplotlib.pyplot,"
    "transformers.models.bert.modeling_bert,transformers.models.modernbert.modeling_modernbert,peft,diffusers"
)
LEFT_OUT = ("__main__.py", "plots.py")  # pictures are looked at, not compared


def shown(mutation: Mutation, source: bytes) -> str:
    """The diff, without context."""
    lines = [x.decode().splitlines(keepends=True) for x in (source, mutation.apply(source))]
    return "".join(line for line in list(difflib.unified_diff(*lines, n=0))[3:] if line.strip())


def table(rows: list[tuple[str, str]]) -> str:
    """Counts by part of the package; a change that makes the tests hang is noticed."""
    kinds = ("killed", "timeout", "survived", "unsure", "alike")
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for part, status in rows:
        counts[part][status] += 1
        counts["all"][status] += 1
    said = [f"{'':16}{'tried':>9}" + "".join(f"{kind:>9}" for kind in (*kinds, "noticed"))]
    for part in [*sorted(counts.keys() - {"all"}), "all"]:
        c = counts[part]
        real = c.total() - c["alike"] - c["unsure"]
        share = f"{100 * (c['killed'] + c['timeout']) / real:.1f} %" if real else "-"
        said.append(f"{part:16}{c.total():9}" + "".join(f"{c[kind]:9}" for kind in kinds) + f"{share:>9}")
    return "\n".join(said)


def alike(file: Path) -> dict[str, str]:
    """Name → reason of the changes that make no difference: lines of `name reason`, and comments."""
    lines = file.read_text().splitlines() if file.exists() else []
    return {line.split(maxsplit=1)[0]: line.split(maxsplit=1)[1] for line in lines if line.strip() and not line.startswith("#")}


def learned(root: Path, tests: list[Path], kept: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """What each test file reaches, where that is known of the file as it is; and of the others, where it is to be kept."""
    known, missing = {}, {}
    for test in tests:
        name = str(test.relative_to(root))
        place = kept / f"{name.replace(os.sep, '-')}-{hashlib.blake2b(test.read_bytes(), digest_size=5).hexdigest()}.json"
        if place.exists():
            known[name] = json.loads(place.read_text())
        else:
            missing[name] = place
    return known, missing


class Trials:
    """Tries the changes that were drawn, and keeps what came of each in a file."""

    def __init__(self, children: Children, root: Path, drawn: list[Mutation], kept: Path):
        self.children, self.root, self.drawn, self.kept = children, root, drawn, kept
        self.sources = {m.path: (root / m.path).read_bytes() for m in drawn}
        self.results = {r["name"]: r for r in map(json.loads, kept.read_text().splitlines())} if kept.exists() else {}
        self.reasons = alike(HERE / "mutation" / "alike.txt")

    def keep(self, name: str, result: dict[str, Any]) -> None:
        self.results[name] = result
        with self.kept.open("a") as f:
            f.write(json.dumps(result) + "\n")

    def run(self, known: dict[str, Any], budget: float, again: bool) -> None:
        open_ = [None, *(["survived", "unsure"] if again else [])]
        todo = [m for m in self.drawn if m.name not in self.reasons and self.results.get(m.name, {}).get("status") in open_]

        def tasks() -> Iterator[Any]:
            for m in todo:
                first = next((f[0] for f in functions_of(ast.parse(self.sources[m.path])) if f[2] == m.function), 0)
                groups, seconds = chosen(self.root, known, m, m.line - first, budget)
                yield m, seconds, lambda tree, m=m, groups=groups: attempt(tree, m, self.sources[m.path], groups)

        for i, (m, out, seconds) in enumerate(self.children.map(tasks()), 1):
            result = out if isinstance(out, dict) else {"status": "killed" if out == "died" else out}
            self.keep(m.name, {"name": m.name, "path": m.path, "line": m.line, "seconds": round(seconds, 1), **result})
            print(f"{i}/{len(todo)} {m.name} {result['status']} {m.path}:{m.line} {m.kind} {seconds:.0f} s", flush=True)
        self.check([r for m in self.drawn if (r := self.results.get(m.name)) and "by" in r and "sure" not in r])

    def check(self, results: list[dict[str, Any]]) -> None:
        """Take back what was noticed by tests that fail without any change."""
        by = sorted({r["by"] for r in results if "::" in r["by"]})

        def failing(tree: Path) -> list[str]:
            run_tests(tree, by, watch := Watch())
            return watch.failed

        for _, failed, _ in self.children.map([(None, 600.0, failing)] if by else []):
            for r in results:
                sure = isinstance(failed, list) and r["by"] not in failed
                self.keep(r["name"], {**r, "sure": sure, "status": "killed" if sure else "unsure"})

    def report(self) -> str:
        status = {m: "alike" if m.name in self.reasons else self.results.get(m.name, {}).get("status") for m in self.drawn}
        left = [m for m in self.drawn if status[m] in ("survived", "unsure")]
        diffs = [f"{m.name} {m.path} {m.function}\n{shown(m, self.sources[m.path])}" for m in left]
        return "\n".join([*diffs, table([(part_of(m.path), s) for m, s in status.items() if s])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200, help="how many changes")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--only", default="", help="of these changes, the ones in files whose path holds this regular expression")
    parser.add_argument("--budget", type=float, default=60, help="seconds of tests a change")
    parser.add_argument("--again", action="store_true", help="try the survivors anew")
    parser.add_argument("--learn", action="store_true", help="find out what the tests reach, and no more")
    parser.add_argument("--tests", nargs="+", default=["tests/**/test_*.py"], help="which test files take part")
    parser.add_argument("--root", type=Path, default=HERE.parent, help="the tree with the package and its tests")
    parser.add_argument("--package", default="sslt")
    parser.add_argument("--libraries", default=LIBRARIES, help="what is imported once for all")
    args = parser.parse_args()
    root = args.root.resolve()
    kept = root / ".mutations" / "reached"
    kept.mkdir(parents=True, exist_ok=True)
    for library in filter(None, args.libraries.split(",")):
        with contextlib.suppress(ImportError):  # some are extras
            importlib.import_module(library)
    known, missing = learned(root, [t for pattern in args.tests for t in sorted(root.glob(pattern))], kept)
    with tempfile.TemporaryDirectory() as scratch:
        children = Children(root, args.jobs, Path(scratch), args.package if args.learn else None)
        if args.learn:
            tasks = [(name, 600.0, lambda tree, name=name: learn(tree, name)) for name in missing]
            for name, found, seconds in children.map(tasks):
                if isinstance(found, dict):
                    missing[name].write_text(json.dumps(found))
                print(f"{name}: {len(found['seconds']) if isinstance(found, dict) else found} tests, {seconds:.0f} s", flush=True)
            return
        files = [f for f in sorted((root / args.package).rglob("*.py")) if f.name not in LEFT_OUT]
        drawn = [m for m in draw([m for f in files for m in mutations_of(f, root)], args.n, args.seed) if re.search(args.only, m.path)]
        trials = Trials(children, root, drawn, kept.parent / f"{args.seed}.jsonl")
        trials.run(known, args.budget, args.again)
        print(trials.report())


if __name__ == "__main__":
    main()
