"""Where a change is tried: forks with a copy of the tree each, and the tests that reach a line."""

from __future__ import annotations

import ast
import builtins
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
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mutation.changes import Mutation, functions_of, place

IGNORED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "runs", "outputs", "multirun", "wandb", "build", "dist")


class Children:
    """Runs functions of a tree in forks of this process, up to `jobs` at a time, each with a copy of the tree of its own.

    marked: the package in it that is to note what it reaches.
    """

    def __init__(self, root: Path, jobs: int, folder: Path, marked: str | None = None):
        self.free: list[Path] = []
        self.running: dict[int, tuple[Any, Path, float, float]] = {}
        for i in range(jobs):
            shutil.copytree(root, tree := folder / f"{i}" / "tree", ignore=IGNORED)
            if marked is not None:
                shutil.copytree(tree / marked, tree.parent / "as it is" / marked)
                mark(tree, marked)
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
            self.running[pid] = key, tree, began, began + 300 + 20 * expected
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
        sys.modules["__main__"] = types.ModuleType("__main__")  # which processes that tests start would import
        sys.dont_write_bytecode = True
        (tree.parent / "out.json").write_text(json.dumps(function(tree)))
    finally:
        os._exit(1)


class Marked(ast.NodeTransformer):
    """Before each statement of a function, a call that notes its lines (of the first line alone, where it holds other statements)."""

    def __init__(self, path: str):
        self.path, self.inside = path, 0

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.inside += 1
        self.generic_visit(node)
        self.inside -= 1
        return node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for field in ("body", "orelse", "finalbody") if self.inside else ():
            statements = getattr(node, field, None)
            if isinstance(statements, list):
                documented = field == "body" and isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None
                rest = [x for s in statements[documented:] for x in (self._note(s), s)]
                setattr(node, field, statements[:documented] + rest)
        return node

    def _note(self, statement: ast.stmt) -> ast.stmt:
        inner = [n.lineno for n in ast.walk(statement) if isinstance(n, ast.stmt) and n is not statement and hasattr(n, "lineno")]
        last = max(statement.lineno, min(inner) - 1) if inner else statement.end_lineno
        return ast.parse(f"__reached__.add(({self.path!r}, {statement.lineno}, {last}))").body[0]


def mark(tree: Path, package: str) -> None:
    """Have the package note what it reaches, in the set `__reached__` of the process."""
    for file in (tree / package).rglob("*.py"):
        module = Marked(str(file.relative_to(tree))).visit(ast.parse(file.read_bytes()))
        head = [isinstance(s, ast.ImportFrom) and s.module == "__future__" for s in module.body]
        first = ast.parse('__import__("builtins").__dict__.setdefault("__reached__", set())').body
        module.body[head.index(True) + 1 if any(head) else 0 : 0] = first
        file.write_text(ast.unparse(ast.fix_missing_locations(module)))


class Watch:
    """A pytest plugin: the tests that fail, and what each test takes and reaches where the package is marked."""

    def __init__(self) -> None:
        self.reached: dict[str, set[tuple[str, int, int]]] = {"": set()}  # by test; "": by what the tests of the file share
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        began = sum(os.times()[:4])  # of processor, with children that have ended
        builtins.__reached__ = set()  # type: ignore[attr-defined]
        result = yield
        self.seconds[item.nodeid] = round(sum(os.times()[:4]) - began, 3)
        self.reached[item.nodeid] = builtins.__reached__  # type: ignore[attr-defined]
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[Any]:
        outer, builtins.__reached__ = builtins.__reached__, set()  # type: ignore[attr-defined]
        result = yield
        (outer if fixturedef.scope == "function" else self.reached[""]).update(builtins.__reached__)  # type: ignore[attr-defined]
        builtins.__reached__ = outer  # type: ignore[attr-defined]
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


def learn(tree: Path, test_file: str) -> dict[str, Any]:
    """Of a marked tree: seconds of each test that passes, and, by file and place in it, the numbers of the tests that reach it.

    A place is a function and the line in it; ":" stands for all that is in no function.
    """
    run_tests(tree, [test_file], watch := Watch())
    tests = [t for t in watch.seconds if t not in watch.failed]
    places: dict[str, dict[str, set[int]]] = {}
    functions: dict[str, Any] = {}
    for name, lines in watch.reached.items():
        which = range(len(tests)) if name == "" else [tests.index(name)] if name in tests else []
        for file, first, last in lines:
            if file not in functions:
                functions[file] = functions_of(ast.parse((tree.parent / "as it is" / file).read_bytes()))
            for line in range(first, last + 1):
                around, offset = place(functions[file], line)
                inside = places.setdefault(file, {})
                inside.setdefault(f"{around}:{offset}" if around else ":", set()).update(which)
    found = {file: {at: sorted(which) for at, which in inside.items()} for file, inside in places.items()}
    return {"seconds": {t: watch.seconds[t] for t in tests}, "places": found}


def chosen(root: Path, known: dict[str, Any], mutation: Mutation, offset: int, budget: float) -> tuple[list[list[str]], float]:
    """Tests for a mutation `offset` lines into its function, a list for each file, and the seconds that they take.

    First the file that mirrors the module, then by cost. Tests that reach the line; those that reach the function, where none is known
    to (as a line that is new); and the whole mirroring file, since what it has other processes do is not known, be it learned or not.
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
    groups, total = ([[mirror]], 60.0) if mirror not in known and (root / mirror).exists() else ([], 0.0)
    spent = 0.0
    for _, _, rows in sorted(found):
        group = []
        for _, seconds, name in rows:
            if spent + seconds <= budget or not (groups or group):
                group.append(name)
                spent += seconds
        groups += [group] if group else []
    return groups, total + spent


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
