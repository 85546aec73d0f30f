"""Where a change is tried: forks with a copy of the tree each, and the tests that reach a line."""

from __future__ import annotations

import ast
import compileall
import contextlib
import gc
import json
import os
import py_compile
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mutation.changes import Mutation, functions_of, place

IGNORED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "runs", "outputs", "multirun", "wandb", "build", "dist")


class Children:
    """Runs functions of a tree in forks of this process, up to `jobs` at a time, each with a copy of the tree of its own."""

    def __init__(self, root: Path, jobs: int, folder: Path):
        self.free: list[Path] = []
        self.running: dict[int, tuple[Any, Path, float, float]] = {}
        for i in range(jobs):
            shutil.copytree(root, tree := folder / f"{i}" / "tree", ignore=IGNORED)
            compileall.compile_dir(tree, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
            self.free.append(tree)
        gc.freeze()  # or the first collection of every child copies all pages

    def map(self, tasks: Iterable[tuple[Any, float, Callable[[Path], Any]]]) -> Iterator[tuple[Any, Any, float]]:
        """(key, seconds that are expected, function) → (key, what it returned as JSON has it, or "timeout" or "died", seconds)."""
        for key, expected, function in tasks:
            while not self.free:
                yield from self._ended()
            tree, began = self.free.pop(), time.monotonic()
            if (pid := os.fork()) == 0:
                _child(tree, expected, function)
            self.running[pid] = key, tree, began, began + 60 + 10 * expected
        while self.running:
            yield from self._ended()

    def _ended(self) -> Iterator[tuple[Any, Any, float]]:
        time.sleep(0.02)
        for pid, (key, tree, began, end) in list(self.running.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done and time.monotonic() < end:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # with what it has started
            if not done:
                os.waitpid(pid, 0)
            del self.running[pid]
            file = tree.parent / "out.json"
            late = not done or (os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL))
            out = json.loads(file.read_text()) if file.exists() else "timeout" if late else "died"
            file.unlink(missing_ok=True)
            self.free.append(tree)
            yield key, out, time.monotonic() - began


def _child(tree: Path, expected: float, function: Callable[[Path], Any]) -> None:
    """Never returns. Seconds of processor are bounded too: they do not pass while others have it."""
    try:
        os.setsid()
        said = os.open(tree.parent / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1), os.dup2(said, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (int(30 + 4 * expected),) * 2)
        os.chdir(tree)
        os.environ |= {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        sys.path[:] = [str(tree), *(p for p in sys.path if Path(p) != Path(__file__).parents[1])]
        sys.dont_write_bytecode = True
        (tree.parent / "out.json").write_text(json.dumps(function(tree)))
    finally:
        os._exit(1)


class Watch:
    """A pytest plugin: the tests that fail; and, of the folder `package`, the lines that each test reaches and the seconds it takes."""

    def __init__(self, package: Path | None = None):
        self.prefix = None if package is None else f"{package}{os.sep}"
        self.now: set[tuple[str, int]] = set()
        self.reached: dict[str, set[tuple[str, int]]] = {"": set()}  # by test; "": by what the tests of the file share
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    def _trace(self, frame: Any, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(self.prefix):
            return None
        if event == "line":
            self.now.add((frame.f_code.co_filename, frame.f_lineno))
        return self._trace

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        began, self.now = sum(os.times()[:4]), set()  # of processor, with children that have ended
        if self.prefix:
            sys.settrace(self._trace)
        result = yield
        sys.settrace(None)
        self.seconds[item.nodeid] = round(sum(os.times()[:4]) - began, 3)
        self.reached[item.nodeid] = self.now
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[Any]:
        outer, self.now = self.now, set()
        result = yield
        (outer if fixturedef.scope == "function" else self.reached[""]).update(self.now)
        self.now = outer
        return result

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


def run_tests(tree: Path, tests: list[str], watch: Watch, *options: str) -> bool:
    """Whether all of them pass."""
    quiet = ["-q", "-p", "no:cacheprovider", "--no-header", "--tb=short", f"--basetemp={tree.parent / 'tmp'}"]
    return not pytest.main([*tests, *quiet, *options], plugins=[watch])


def learn(tree: Path, test_file: str, package: str) -> dict[str, Any]:
    """Seconds of each test that passes, and, by file of the package and place in it, the numbers of the tests that reach it.

    A place is a function and the line in it; ":" stands for all that is in no function.
    """
    watch = Watch(tree / package)
    run_tests(tree, [test_file], watch)
    tests = [t for t in watch.seconds if t not in watch.failed]
    places: dict[str, dict[str, set[int]]] = {}
    functions: dict[str, Any] = {}
    for name, lines in watch.reached.items():
        which = range(len(tests)) if name == "" else [tests.index(name)] if name in tests else []
        for file, line in lines:
            if file not in functions:
                functions[file] = functions_of(ast.parse(Path(file).read_bytes()))
            around, offset = place(functions[file], line)
            inside = places.setdefault(str(Path(file).relative_to(tree)), {})
            inside.setdefault(f"{around}:{offset}" if around else ":", set()).update(which)
    found = {file: {at: sorted(which) for at, which in inside.items()} for file, inside in places.items()}
    return {"seconds": {t: watch.seconds[t] for t in tests}, "places": found}


def chosen(known: dict[str, Any], mutation: Mutation, offset: int, budget: float) -> tuple[list[list[str]], float]:
    """Tests for a mutation `offset` lines into its function, a list for each file, and the seconds that they take.

    First the file that mirrors the module, then by cost. Tests that reach the line; those that reach the function, where none is known
    to (a line that is new, or that the tracer passes over); and the whole mirroring file, since processes that it starts are not traced.
    """
    path = Path(mutation.path)
    mirror = str(Path("tests", *path.parts[1:-1], f"test_{path.name}"))
    found = []
    for file, learned in known.items():
        places, tests = learned["places"].get(mutation.path, {}), list(learned["seconds"].items())
        reach = set(places.get(f"{mutation.function}:{offset}", ()))
        if not reach:
            reach = {i for at, which in places.items() if at.startswith(f"{mutation.function}:") or not mutation.function for i in which}
        rows = sorted((i not in reach, tests[i][1], tests[i][0]) for i in (range(len(tests)) if file == mirror else reach))
        if rows:
            found.append((file != mirror, sum(seconds for _, seconds, _ in rows), rows))
    groups, total = [], 0.0
    for _, _, rows in sorted(found):
        group = []
        for _, seconds, name in rows:
            if total + seconds <= budget or not (groups or group):
                group.append(name)
                total += seconds
        groups += [group] if group else []
    return groups, total


def attempt(tree: Path, mutation: Mutation, source: bytes, groups: list[list[str]]) -> dict[str, Any]:
    """Whether one of the tests notices, and which."""
    (tree / mutation.path).write_bytes(mutation.apply(source))
    try:
        for group in groups:
            watch = Watch()
            if not run_tests(tree, group, watch, "-x"):
                return {"status": "killed", "by": watch.failed[0] if watch.failed else group[0]}
        return {"status": "survived"}
    finally:
        (tree / mutation.path).write_bytes(source)
