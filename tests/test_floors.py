"""Protects the order of the house: a module imports from its own floor or those below, and light modules stay light."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import sslt

PACKAGE = Path(sslt.__file__).parent

# Bottom to top. A name is a module of sslt or a whole subpackage.
FLOORS = [
    {
        "errors",
        "stored",
        "moved",
        "signals",
        "machine",
        "deferred",
        "places",
        "ranges",
        "groups",
        "signatures",
        "trusted",
        "runs",
        "config",
        "scales",
    },
    {"schedules", "precision", "cpu_kernels", "modules", "distributed", "optimizers", "lanes"},
    {"data"},
    {"encoders", "sharded"},
    {"objectives", "adaptation", "report"},
    {"targets"},
    {"evaluation"},
    {"deploy"},
    {"learner", "callbacks", "loggers", "compiling", "recomputing", "float8"},
    {"execute", "processes", "ends", "heartbeat", "handing", "following", "launch", "scheduler", "stages", "chain", "resume", "worker"},
    {"cli", "guide", "sweeps", "__main__"},
]
LEVEL = {name: i for i, floor in enumerate(FLOORS) for name in floor}
HEAVY = {"torch", "pytorch_lightning", "transformers", "timm", "sklearn", "matplotlib", "wandb", "optuna"}
LIGHT = {"cli", "guide", "groups", "errors", "stored", "moved", "signals", "ranges", "config", "signatures", "trusted", "runs", "resume"}
LIGHT |= {
    "deferred",
    "execute",
    "processes",
    "ends",
    "heartbeat",
    "handing",
    "following",
    "launch",
    "places",
    "scheduler",
    "chain",
    "__main__",
    "__init__",
}
LIGHT |= {f"sweeps.{name}" for name in ("folder", "job", "metric", "plugins", "search", "space", "study", "sweeper", "table")}
MODULES = sorted(p.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".") for p in PACKAGE.rglob("*.py"))


def tree(module: str) -> ast.Module:
    return ast.parse((PACKAGE / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8"))


def imported(node: ast.AST, module: str) -> list[str]:
    """Dotted names that an import statement brings in (`from sslt import runs` → sslt.runs)."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parents = ["sslt", *module.split(".")][: -node.level]
            base = ".".join([*parents, *([base] if base else [])])
        return [f"{base}.{alias.name}" for alias in node.names]
    return []


def anywhere(module: str) -> list[tuple[int, str]]:
    """(line, name) of every import of a module, those inside functions and for type checkers included."""
    return [(n.lineno, name) for n in ast.walk(tree(module)) if isinstance(n, (ast.Import, ast.ImportFrom)) for name in imported(n, module)]


def at_module_level(node: ast.AST, module: str) -> list[str]:
    """Names imported when the module is: not in functions, not for type checkers alone."""
    names: list[str] = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        names += imported(child, module) + at_module_level(child, module)
    return names


def test_every_module_has_a_floor():
    """A new module must be given its place here."""
    assert {m.split(".")[0] for m in MODULES} - {"__init__"} == set(LEVEL)


@pytest.mark.parametrize("module", [m for m in MODULES if m != "__init__"])
def test_imports_go_down(module):
    """From its own floor or below, wherever the import stands; beyond that a package may name sslt itself."""
    own = LEVEL[module.split(".")[0]]
    upwards = []
    for line, name in anywhere(module):
        parts = name.split(".")
        if parts[0] == "sslt" and len(parts) > 1 and LEVEL.get(parts[1], 0) > own:
            upwards.append(f"line {line}: {name} (floor {LEVEL[parts[1]]}, this is floor {own})")
    assert not upwards


# Bottom to top. What is named in no room stands at the bottom; rooms of one row do not know of each other.
DATA_ROOMS = [{"shards"}, {"sources"}, {"prepare"}, {"streams", "views"}]


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("data.")])
def test_imports_go_down_inside_data(module):
    """Files are read without knowing of encoders, samples are made without knowing in which order or how they are seen."""
    row = {room: i for i, rooms in enumerate(DATA_ROOMS) for room in rooms}
    own = module.split(".")[1] if module.count(".") == 2 else ""
    assert own in row or not own
    for line, name in anywhere(module):
        parts = name.split(".")
        if parts[:2] == ["sslt", "data"] and len(parts) > 2 and parts[2] != own:
            assert row.get(parts[2], -1) < row.get(own, -1) or parts[2] not in row, f"line {line}: {name}"


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("objectives.parts.")])
def test_parts_know_of_no_objective(module):
    """What objectives share is made of what every objective is (`base`) and of other parts."""
    for line, name in anywhere(module):
        parts = name.split(".")
        if parts[:2] == ["sslt", "objectives"]:
            assert parts[2] in ("parts", "base"), f"line {line}: {name}"


# What is about classes by its very subject: episodes of few shots, domains with the classes of others, a number of pretraining.
ABOUT_CLASSES = {"stages.episodes", "callbacks.episodes", "stages.shift", "stages.domains"}


@pytest.mark.parametrize("module", [m for m in MODULES if m.split(".")[0] in ("stages", "callbacks", "report", "chain", "execute")])
def test_stages_know_targets_and_not_classes(module):
    """Which answers there are, and which metric counts, is the target's to say: a new kind of answer touches none of these files."""
    if module in ABOUT_CLASSES:
        pytest.skip("about classes")
    nodes = list(ast.walk(tree(module)))
    code = " ".join(ast.unparse(node) for node in nodes if isinstance(node, (ast.Name, ast.Attribute, ast.keyword, ast.arg)))
    words = [str(n.value) for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str) and " " not in n.value]
    named = set(re.findall(r"\w+", code)) | {part for word in words for part in word.split("/")}
    assert not named & {"n_classes", "classes", "accuracy"}


def test_the_guide_needs_little():
    """Help and completion read folders: of sslt they use groups, errors, runs and the reading of small files alone."""
    names = {name.split(".")[1] for _, name in anywhere("guide") if name.startswith("sslt.")}
    assert names <= {"groups", "errors", "runs", "stored"}


@pytest.mark.parametrize("module", sorted(LIGHT))
def test_light_modules_import_nothing_heavy(module):
    """`sslt --help` and a mistake on the command line must answer at once; what these modules import counts as well."""
    seen: set[str] = set()
    todo = [module]
    while todo:
        here = todo.pop()
        if here in seen:
            continue
        seen.add(here)
        for name in at_module_level(tree(here), here):
            assert name.split(".")[0] not in HEAVY, f"{here} imports {name}"
            if name.startswith("sslt."):
                parts = name.split(".")[1:]
                todo += [m for m in (".".join(parts), ".".join(parts[:-1]), f"{parts[0]}.__init__") if m in MODULES]


def test_no_module_is_imported_in_a_circle():
    """Nor within functions, where a circle only shows later: of two modules one stands below the other."""
    edges: dict[str, set[str]] = {}
    for module in MODULES:
        edges[module] = set()
        for _, name in anywhere(module):
            parts = name.split(".")[1:] if name.startswith("sslt.") else []
            edges[module] |= {m for m in (".".join(parts), ".".join(parts[:-1])) if m and m in MODULES}
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        assert module not in path, " → ".join([*path, module])
        if module not in done:
            for other in sorted(edges[module] - {module}):
                visit(other, [*path, module])
            done.add(module)

    for module in MODULES:
        visit(module, [])
