"""Small changes of a Python file that its tests should notice, and a seeded draw of them. `mutate.py` tries them.

Left out is what no test could or should notice: annotations, texts of errors and logs, pictures, `__repr__`, assertions, what is only
reached with a GPU.
"""

from __future__ import annotations

import ast
import bisect
import dataclasses
import hashlib
import itertools
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

FLIPPED: dict[type, list[tuple[str, str]]] = {
    ast.Lt: [("<", ">="), ("<", "<=")],
    ast.LtE: [("<=", ">"), ("<=", "<")],
    ast.Gt: [(">", "<="), (">", ">=")],
    ast.GtE: [(">=", "<"), (">=", ">")],
    ast.Eq: [("==", "!=")],
    ast.NotEq: [("!=", "==")],
    ast.Is: [("is", "is not")],
    ast.IsNot: [("is not", "is")],
    ast.In: [("in", "not in")],
    ast.NotIn: [("not in", "in")],
}
ARITHMETIC: dict[type, tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Pow: ("**", "*"),
}
PAIRS = (("min", "max"), ("amin", "amax"), ("argmin", "argmax"), ("minimum", "maximum"), ("any", "all"), ("floor", "ceil"))
EXCHANGED = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
SAID = ("log", "logger", "warnings", "UserError", "print")  # calls by which something is said
TYPED = ("cast", "isinstance", "TypeVar", "getattr")  # calls whose arguments are types and names
UNSEEN = ("non_blocking", "inplace", "encoding", "exist_ok", "ignore_errors", "timeout", "persistent")  # arguments no result depends on
NUMBERS = ("Tensor", "float", "int")


@dataclasses.dataclass(frozen=True)
class Mutation:
    """Bytes `start` to `end` of `path`, in `function`, become `new`. `name` stays the same as long as the line and its function do."""

    path: str
    function: str
    line: int
    kind: str
    start: int
    end: int
    new: bytes
    name: str

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.new + source[self.end :]


def functions_of(tree: ast.AST) -> list[tuple[int, int, str]]:
    """(first line, last line, qualified name) of each function, inner ones after those around them."""
    found: list[tuple[int, int, str]] = []

    def visit(node: ast.AST, names: tuple[str, ...]) -> None:
        for child in ast.iter_child_nodes(node):
            inner = names
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                inner = (*names, child.name)
                if not isinstance(child, ast.ClassDef):
                    found.append((child.lineno, child.end_lineno or child.lineno, ".".join(inner)))
            visit(child, inner)

    visit(tree, ())
    return found


def place(functions: list[tuple[int, int, str]], line: int) -> tuple[str, int]:
    """The innermost function around a line and the line's number in it; ("", line) outside of functions."""
    around = [f for f in functions if f[0] <= line <= f[1]]
    return (around[-1][2], line - around[-1][0]) if around else ("", line)


def mutations_of(path: Path, root: Path) -> list[Mutation]:
    """Every change of a file that is worth a try."""
    source = path.read_bytes()
    tree = ast.parse(source)
    lines = source.splitlines(keepends=True)
    starts = [0, *itertools.accumulate(map(len, lines))]
    functions, name, found, seen = functions_of(tree), str(path.relative_to(root)), [], set()
    for kind, start, end, new in _Finder(source, starts).changes(tree):
        line = bisect.bisect_right(starts, start)
        function = place(functions, line)[0]
        text = lines[line - 1].strip()
        column = start - starts[line - 1] - (len(lines[line - 1]) - len(lines[line - 1].lstrip()))
        key = hashlib.blake2b(repr((name, function, text, column, source[start:end], new)).encode(), digest_size=5).hexdigest()
        if key not in seen and source[start:end] != new:
            seen.add(key)
            found.append(Mutation(name, function, line, kind, start, end, new, key))
    return found


Change = tuple[str, int, int, bytes]


class _Finder:
    """Finds changes as (kind, start, end, new bytes)."""

    def __init__(self, source: bytes, starts: list[int]):
        self.source, self.starts = source, starts

    def span(self, node: ast.AST) -> tuple[int, int]:
        at = node.lineno, node.col_offset, node.end_lineno, node.end_col_offset  # type: ignore[attr-defined]
        return self.starts[at[0] - 1] + at[1], self.starts[at[2] - 1] + at[3]

    def text(self, node: ast.AST) -> bytes:
        start, end = self.span(node)
        return self.source[start:end]

    def instead(self, kind: str, node: ast.AST, new: bytes) -> Change:
        return (kind, *self.span(node), new)

    def between(self, kind: str, left: ast.AST, right: ast.AST, old: str, new: str) -> Change:
        """An operator between two operands."""
        start, end = self.span(left)[1], self.span(right)[0]
        return kind, start, end, self.source[start:end].replace(old.encode(), new.encode(), 1)

    def changes(self, node: ast.AST, returns: str = "", stored: frozenset[str] = frozenset()) -> Iterator[Change]:
        """Of a node and all below it. returns: the annotation of the function around it; stored: names that have a value before."""
        if isinstance(node, (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom)) or self._said(node) or self._device(node):
            return
        if isinstance(node, ast.keyword) and node.arg in UNSEEN:
            return
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if node.name in ("__repr__", "draw", "__str__"):
                return
            for decorator in node.decorator_list:
                if self.text(decorator) in (b"torch.no_grad()", b"torch.inference_mode()"):
                    yield self.instead("gradient", decorator, b"(lambda f: f)")
            returns = self.text(node.returns).decode() if node.returns else ""
            below: list[ast.AST] = [d for d in (*node.args.defaults, *node.args.kw_defaults) if d is not None]
            arguments = frozenset(a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs))
            for child in below:
                yield from self.changes(child)
            yield from self._body(node.body, returns, arguments, node.name != "__init__")
            return
        yield from self._here(node, returns)
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "decorator_list", "type_params"):
                continue
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                yield from self._body(value, returns, stored, not isinstance(node, (ast.Module, ast.ClassDef)))
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from self.changes(child, returns, stored)

    def _body(self, body: list[ast.stmt], returns: str, stored: frozenset[str], droppable: bool) -> Iterator[Change]:
        for statement in body:
            if droppable and self._has_effect(statement, stored):
                yield self.instead("dropped", statement, b"pass")
            yield from self.changes(statement, returns, stored)
            stored |= {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}

    def _has_effect(self, statement: ast.stmt, stored: frozenset[str]) -> bool:
        """Whether the code runs on without it: not so for the first assignment to a name."""
        if isinstance(statement, ast.Assign):
            names = [t.id for t in statement.targets if isinstance(t, ast.Name)]
            return all(name in stored for name in names) and not any(isinstance(t, ast.Tuple) for t in statement.targets)
        call = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
        return isinstance(statement, (ast.AugAssign, ast.Delete, ast.Continue)) or (call and not self._said(statement))

    def _here(self, node: ast.AST, returns: str) -> Iterator[Change]:
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            for old, new in FLIPPED[type(node.ops[0])]:
                yield self.between("compared", node.left, node.comparators[0], old, new)
        elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC and not self._texts(node.left, node.right):
            yield self.between("arithmetic", node.left, node.right, *ARITHMETIC[type(node.op)])
        elif isinstance(node, ast.AugAssign) and type(node.op) in ARITHMETIC and not self._texts(node.value):
            yield self.between("arithmetic", node.target, node.value, *ARITHMETIC[type(node.op)])
        elif isinstance(node, ast.BoolOp):
            old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
            yield self.between("and/or", node.values[0], node.values[1], old, new)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield self.instead("not", node, b"bool(" + self.text(node.operand) + b")")
        elif isinstance(node, ast.Constant):
            yield from self._constant(node)
        elif isinstance(node, ast.Slice):
            for edge, step in ((node.lower, b" + 1"), (node.upper, b" - 1")):
                if edge is not None:
                    yield self.instead("edge", edge, b"(" + self.text(edge) + b")" + step)
        elif isinstance(node, (ast.Name, ast.Attribute)):
            name = node.id if isinstance(node, ast.Name) else node.attr
            if name in EXCHANGED:
                end = self.span(node)[1]
                yield "min/max", end - len(name.encode()), end, EXCHANGED[name].encode()
        elif isinstance(node, ast.Call):
            yield from self._call(node)
        elif isinstance(node, ast.Return) and node.value is not None:
            loss = isinstance(node.value, ast.Call) and self.text(node.value.func) == b"Loss" and node.value.args
            if loss or returns in NUMBERS:
                value = loss[0] if isinstance(loss, list) else node.value
                yield self.instead("sign", value, b"-(" + self.text(value) + b")")
        conditions = [*([node.test] if isinstance(node, (ast.If, ast.IfExp)) else []), *getattr(node, "ifs", [])]
        for test in conditions:
            yield self.instead("condition", test, b"True")
            yield self.instead("condition", test, b"False")

    def _constant(self, node: ast.Constant) -> Iterator[Change]:
        value = node.value
        if isinstance(value, bool):
            yield self.instead("constant", node, str(not value).encode())
        elif isinstance(value, int):
            changed = {0: ["1"], 1: ["0", "2"]}.get(value, [str(value + 1), str(value - 1)])
            yield from (self.instead("constant", node, new.encode()) for new in changed)
        elif isinstance(value, float):
            yield self.instead("constant", node, b"1.0" if value == 0 else repr(2 * value).encode())

    def _call(self, node: ast.Call) -> Iterator[Change]:
        if isinstance(node.func, ast.Attribute) and node.func.attr == "detach":
            yield self.instead("gradient", node, self.text(node.func.value))
        if self.text(node) in (b"torch.no_grad()", b"torch.inference_mode()"):
            yield self.instead("gradient", node, b"torch.enable_grad()")
        if self.text(node.func) == b"range":
            stop = node.args[min(1, len(node.args) - 1)]
            yield self.instead("edge", stop, b"(" + self.text(stop) + b") - 1")
        if self._typed(node) or any(isinstance(a, ast.Starred) for a in node.args):
            return
        if len(node.args) > 1:
            first, second = node.args[:2]
            start, end = self.span(first)[0], self.span(second)[1]
            gap = self.source[self.span(first)[1] : self.span(second)[0]]
            yield "swapped", start, end, self.text(second) + gap + self.text(first)
            yield "argument", self.span(node.args[-2])[1], self.span(node.args[-1])[1], b""
        for keyword in node.keywords:
            if keyword.arg is not None and keyword.arg not in UNSEEN:
                start, end = self.span(keyword)
                while self.source[end : end + 1] in (b",", b" ", b"\n"):
                    end += 1
                yield "argument", start, end, b""

    def _texts(self, *nodes: ast.AST) -> bool:
        return any(isinstance(n, ast.JoinedStr) or (isinstance(n, ast.Constant) and isinstance(n.value, str)) for n in nodes)

    def _typed(self, node: ast.Call) -> bool:
        return self.text(node.func).decode().split(".")[-1] in TYPED

    def _said(self, node: ast.AST) -> bool:
        call = node.value if isinstance(node, ast.Expr) else node
        return isinstance(call, ast.Call) and self.text(call.func).decode().split(".")[0] in SAID

    def _device(self, node: ast.AST) -> bool:
        return isinstance(node, (ast.If, ast.IfExp)) and any(word in self.text(node.test) for word in (b"cuda", b"gpu", b"TYPE_CHECKING"))


def part_of(path: str) -> str:
    """The part of the package a file belongs to: its folder, or itself where it lies at the top."""
    inner = Path(path).parts[1:]
    return inner[0] if len(inner) > 1 else Path(path).stem


def draw(mutations: Iterable[Mutation], n: int, seed: int) -> list[Mutation]:
    """n of the mutations, parts by the square root of their size and kinds of change in turn; a larger n begins with the same ones."""
    parts: dict[str, list[Mutation]] = {}
    for mutation in mutations:
        parts.setdefault(part_of(mutation.path), []).append(mutation)
    drawn: list[tuple[float, str, Mutation]] = []
    for part, members in sorted(parts.items()):
        rng = random.Random(f"{seed} {part}")
        kinds: dict[str, list[Mutation]] = {}
        for mutation in rng.sample(members, len(members)):
            kinds.setdefault(mutation.kind, []).append(mutation)
        names = rng.sample(sorted(kinds), len(kinds))
        turns = [kinds[k][i] for i in range(max(map(len, kinds.values()))) for k in names if i < len(kinds[k])]
        drawn += [((i + 0.5) / len(members) ** 0.5, part, m) for i, m in enumerate(turns)]
    return [m for *_, m in sorted(drawn, key=lambda x: x[:2])[:n]]
