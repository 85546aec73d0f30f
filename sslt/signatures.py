"""What a `_target_` accepts, read from its source without importing it.

Composing a config must not cost the import of torch, yet a key that nothing reads must be an error at composition.
So the class or function is found as a file and its signature is read from the syntax tree; re-exports
(`from x import Y` in an `__init__`) and base classes without an `__init__` of their own are followed.
What cannot be found this way (compiled modules, generated classes) is not checked here; building it will.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import math
from pathlib import Path
from typing import Any

from sslt.ranges import RANGES


@dataclasses.dataclass(frozen=True)
class Signature:
    """Parameter names with their annotation (as a syntax tree, or None), and whether `**kwargs` takes any other."""

    parameters: dict[str, ast.expr | None]
    open: bool
    required: frozenset[str]


@functools.cache
def signature(target: str) -> Signature | None:
    """The signature of the dotted name `target`, or None where it cannot be read without importing."""
    found = _find(target)
    return _signature_of(*found) if found else None


def exists(target: str) -> bool:
    """Whether `target` can be found; of other packages than sslt, whose names may be made at import, only the module."""
    module = target.rpartition(".")[0]
    if target.startswith("sslt."):
        return _find(target) is not None
    return _module_file(module) is not None or _find(target) is not None


def names_in(module: str) -> list[str]:
    """The classes and functions a module defines."""
    path = _module_file(module)
    return [n.name for n in _tree(path).body if isinstance(n, (ast.ClassDef, ast.FunctionDef))] if path else []


def processor_signature(target: str) -> Signature | None:
    """What the `processor:` of an encoder takes: the arguments of its `Processor.fit` beside the source."""
    found = _find(target)
    for node in getattr(found[1], "body", []) if found else []:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Name):
            names = [t.id for t in (node.targets if isinstance(node, ast.Assign) else [node.target]) if isinstance(t, ast.Name)]
            processor = _find(f"{found[0]}.{node.value.id}") if found and "Processor" in names else None
            for item in getattr(processor[1], "body", []) if processor else []:
                if isinstance(item, ast.FunctionDef) and item.name == "fit":
                    return _arguments(item, skip=2)
    return None


def is_own_class(target: str) -> bool:
    """Whether `target` is a class of sslt itself: not a function, and nothing that its modules import from elsewhere."""
    found = _find(target)
    return found is not None and isinstance(found[1], ast.ClassDef) and found[0].split(".")[0] == "sslt"


def derives(target: str, base: str) -> bool:
    """Whether `target` is the class `base` or is derived from it, as far as their source files tell."""
    wanted = _find(base)
    return wanted is not None and _derives(_find(target), wanted)


def _derives(found: tuple[str, ast.AST] | None, wanted: tuple[str, ast.AST], depth: int = 0) -> bool:
    if found is None or not isinstance(found[1], ast.ClassDef) or depth > 8:
        return False
    module, node = found[0], found[1]
    if module == wanted[0] and node is wanted[1]:
        return True
    bases = [_full_name(module, _written(b)) for b in node.bases]
    return any(_derives(_find(f"{module}.{name}") or _find(name), wanted, depth + 1) for name in bases)


def _written(base: ast.expr) -> str:
    """A base class by its name; `Target[Class]` is one of `Target`."""
    return ast.unparse(base.value if isinstance(base, ast.Subscript) else base)


def _full_name(module: str, name: str) -> str:
    """`pl.Callback` as a module knows it → `pytorch_lightning.Callback`."""
    path = _module_file(module)
    head, dot, rest = name.partition(".")
    for node in ast.walk(_tree(path)) if path and dot else ():
        for alias in node.names if isinstance(node, ast.Import) else ():
            if (alias.asname or alias.name) == head:
                return f"{alias.name}.{rest}"
    return name


def _module_file(module: str) -> Path | None:
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for root in spec.submodule_search_locations or ():
        place = Path(root).joinpath(*rest)
        for candidate in (place.with_suffix(".py"), place / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _find(target: str, depth: int = 0) -> tuple[str, ast.AST] | None:
    """(module, definition) of a dotted name."""
    module, _, name = target.rpartition(".")
    path = _module_file(module) if module else None
    if path is None or depth > 8:
        return None
    for node in ast.walk(_tree(path)):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    origin = _absolute(module, path, node)
                    if found := _find(f"{origin}.{alias.name}", depth + 1):
                        return found
    return None


def _absolute(module: str, path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    keep = len(parts) - node.level + (path.name == "__init__.py")
    return ".".join([*parts[:keep], *([node.module] if node.module else [])])


def _signature_of(module: str, node: ast.AST, depth: int = 0) -> Signature | None:
    if isinstance(node, ast.FunctionDef):
        return _arguments(node, skip=0)
    assert isinstance(node, ast.ClassDef)
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return _arguments(item, skip=1)
    if any("dataclass" in ast.unparse(d) for d in node.decorator_list):
        fields = [i for i in node.body if isinstance(i, ast.AnnAssign) and isinstance(i.target, ast.Name)]
        names = {i.target.id: i.annotation for i in fields if isinstance(i.target, ast.Name)}
        required = frozenset(i.target.id for i in fields if i.value is None and isinstance(i.target, ast.Name))
        return Signature(dict(names), False, required)
    for base in node.bases:
        name = _written(base)
        if name in ("abc.ABC", "ABC", "object", "Generic"):
            continue
        found = _find(f"{module}.{name}") or _find(name)
        return _signature_of(*found, depth + 1) if found and depth < 8 else None
    return Signature({}, False, frozenset())


def _arguments(node: ast.FunctionDef, skip: int) -> Signature:
    positional = [*node.args.posonlyargs, *node.args.args]
    with_default = len(node.args.defaults)
    required = [a.arg for a in positional[skip : len(positional) - with_default]]
    required += [a.arg for a, d in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if d is None]
    arguments = [*positional[skip:], *node.args.kwonlyargs]
    return Signature({a.arg: a.annotation for a in arguments}, node.args.kwarg is not None, frozenset(required))


_SIMPLE: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}
_LISTS = ("list", "tuple", "Sequence", "Iterable", "List", "Tuple")


def is_sane(number: float) -> bool:
    """Whether a number is one (NaN is none) that tensors can be made of: whole ones have 64 bits."""
    return -(2**63) <= number < 2**63 if isinstance(number, int) else not math.isnan(number)


def type_error(value: Any, annotation: ast.expr | None) -> str | None:
    """What `annotation` asks for, if the plain `value` cannot be that; None if it fits or cannot be told."""
    if annotation is None or (isinstance(value, dict) and "_target_" in value):
        return None
    try:
        options = _options(annotation)
    except (ValueError, SyntaxError):
        return None
    if any(_fits(value, option) for option in options):
        return None
    return " or ".join(_in_words(ast.unparse(o)) for o in options)


def type_error_of(value: Any, annotation: str) -> str | None:
    """`type_error` of an annotation that is written as text."""
    return type_error(value, ast.parse(annotation, mode="eval").body)


def _in_words(option: str) -> str:
    kind, _, inner = option.partition("[")
    names = [name.strip() for name in inner.rstrip("]").split(",")]
    if all(name in RANGES for name in names):
        many = f"a list of {len(names)}" if kind in ("tuple", "Tuple") else "a list"
        return f"{many}, each {RANGES[names[0]].words}"
    return RANGES[option].words if option in RANGES else option.replace("None", "null")


def _fits(value: Any, annotation: ast.expr) -> bool:
    """Whether `value` may be what an annotation without alternatives asks for; one that is not known takes anything."""
    name = ast.unparse(annotation)
    if name == "None":
        return value is None
    if name in RANGES:
        return RANGES[name].holds(value) and is_sane(value)
    if name in _SIMPLE:
        if isinstance(value, bool):
            return name == "bool"
        return isinstance(value, _SIMPLE[name]) and (not isinstance(value, (int, float)) or is_sane(value))
    if name.split("[")[0] in _LISTS:
        if not isinstance(value, (list, tuple)) or not isinstance(annotation, ast.Subscript):
            return isinstance(value, (list, tuple))
        inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        if name.split("[")[0].lower() == "tuple" and ast.unparse(inner[-1]) != "...":
            return len(value) == len(inner) and all(type_error(v, a) is None for v, a in zip(value, inner, strict=True))
        return all(type_error(v, inner[0]) is None for v in value)
    return name not in ("Tensor", "torch.Tensor")  # which no YAML holds


def _options(annotation: ast.expr) -> list[ast.expr]:
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return _options(annotation.left) + _options(annotation.right)
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name):
        if annotation.value.id == "Optional":
            return [*_options(annotation.slice), ast.Constant(None)]
        if annotation.value.id == "Union" and isinstance(annotation.slice, ast.Tuple):
            return [o for e in annotation.slice.elts for o in _options(e)]
    return [annotation]
