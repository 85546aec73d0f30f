"""The text data set that needs no files: the English of Python's own documentation.

The paragraphs of the docstrings of some standard packages, and of the reference manual that `help()` shows, are to be
told apart by where they come from. It is small, real prose, present wherever Python is, and good enough to see
pretraining help; it is no benchmark, because it differs a little between versions of Python.
"""

from __future__ import annotations

import ast
import json
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from sslt.data import cache
from sslt.data.base import Raw, Source
from sslt.errors import UserError

FORMAT = 1
PACKAGES = ("asyncio", "email", "http", "importlib", "logging", "unittest", "xml")
CLASSES = [*PACKAGES, "topics"]
SHORTEST = 40  # characters: below that, a paragraph says too little to be told apart
# Tests, what distributions leave out, tables of encodings, and the topics, which are read by themselves.
SKIPPED = frozenset(
    {
        "test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3", "idlelib", "tkinter",
        "turtledemo", "distutils", "ensurepip", "encodings", "pydoc_data", "_bundled", "lib-dynload",
    }
)  # fmt: skip


class Docs(Source):
    """Paragraphs of Python's documentation by origin (8 classes); unlabeled: all docstrings of the library.

    Read from the library's source files, nothing of which is imported. Raises `UserError` where they are missing.
    """

    modality = "text"
    name = "docs"

    def __init__(self, val_fraction: float, test_fraction: float):
        self.val_fraction, self.test_fraction = val_fraction, test_fraction

    @property
    def classes(self) -> list[str]:
        return list(CLASSES)

    def own_splits(self) -> tuple[str, ...]:
        return ("train", "unlabeled")

    def fingerprint(self) -> str:
        return self._entry().meta["fingerprint"]

    def read(self, split: str) -> Raw:
        entry = self._entry()
        texts = json.loads((entry.path / f"{split}.json").read_text(encoding="utf-8"))
        return Raw(texts, self.as_answers(np.array(entry["labels"])) if split == "train" else None)

    @staticmethod
    def _entry() -> cache.Entry:
        return cache.get_or_make("docs", cache.digest(platform.python_version(), FORMAT), _make)


def _make(folder: Path) -> dict[str, str]:
    topics, docstrings = _read_library(Path(sysconfig.get_paths()["stdlib"]))
    texts, labels = _labelled(topics, docstrings)
    unlabeled = [piece for topic in topics for piece in split_documents(topic)]
    unlabeled = list(dict.fromkeys([*unlabeled, *(text for _, text in docstrings if len(text) >= SHORTEST)]))
    for split, content in (("train", texts), ("unlabeled", unlabeled)):
        (folder / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")
    np.save(folder / "labels.npy", labels)
    return {"fingerprint": cache.digest("Docs", FORMAT, texts, labels, unlabeled)}


def _read_library(library: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """(topics of the manual, (top-level module, docstring) pairs), in the order of names and of source lines."""
    topics_file = library / "pydoc_data" / "topics.py"
    files = [f for f in library.rglob("*.py") if not SKIPPED & set(f.relative_to(library).parts[:-1])]
    if not topics_file.exists() or not files:
        raise UserError(
            f"data=docs reads the source of Python's standard library, and {library} has none; "
            "use a Python installed with its sources, or another data set"
        )
    docstrings = [
        (file.relative_to(library).parts[0].removesuffix(".py"), text)
        for file in sorted(files, key=lambda f: f.relative_to(library).as_posix())
        for text in _docstrings(file)
    ]
    tree = ast.parse(topics_file.read_bytes())
    found = next(node for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict))
    return [topic for _, topic in sorted(ast.literal_eval(found.value).items())], docstrings


def _docstrings(file: Path) -> Iterator[str]:
    """Docstrings of a module, its classes and functions, in source order; none from a file that does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escape sequences in library sources
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield text
        # Definitions also stand under conditions and in try blocks, but never inside expressions.
        inner = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.If, ast.Try)
        stack.extend(n for n in reversed(list(ast.iter_child_nodes(node))) if isinstance(n, inner))


def _labelled(topics: list[str], docstrings: list[tuple[str, str]]) -> tuple[list[str], np.ndarray]:
    """Distinct paragraphs and their class indices [N]; the topics thinned to the size of the largest package."""
    by_class: dict[str, list[str]] = {name: [] for name in CLASSES}
    seen: set[str] = set()
    for name, text in [*docstrings, *(("topics", topic) for topic in topics)]:
        if name not in by_class:
            continue
        for paragraph in _paragraphs(text):
            if paragraph not in seen:
                seen.add(paragraph)
                by_class[name].append(paragraph)
    most = max(len(by_class[name]) for name in PACKAGES)
    thinned = np.linspace(0, len(by_class["topics"]) - 1, min(most, len(by_class["topics"]))).astype(int)
    by_class["topics"] = [by_class["topics"][i] for i in thinned]
    texts = [text for name in CLASSES for text in by_class[name]]
    return texts, np.repeat(np.arange(len(CLASSES)), [len(by_class[name]) for name in CLASSES])


def _paragraphs(text: str) -> Iterator[str]:
    """Paragraphs of prose on one line each, without examples of interactive sessions."""
    for paragraph in re.split(r"\n\s*\n", text):
        paragraph = " ".join(paragraph.split())
        if len(paragraph) >= SHORTEST and not paragraph.startswith(">>>"):
            yield paragraph


def split_documents(text: str, size: int = 1000) -> list[str]:
    """Cut running text at blank lines into documents of `size` characters or a little more.

    A paragraph of more than ten times that (one line per sentence, no blank lines) is cut at line ends too. A short
    rest joins the document before it.
    """
    pieces: list[str] = []
    for paragraph in re.split(r"\n[^\S\n]*\n\s*", text.strip()):
        if len(paragraph) > 10 * size:
            pieces.extend(line + "\n" for line in paragraph.split("\n"))
        else:
            pieces.append(paragraph + "\n\n")
    documents: list[str] = []
    held: list[str] = []
    length = 0
    for piece in pieces:
        held.append(piece)
        length += len(piece)
        if length >= size:
            documents.append("".join(held).strip())
            held, length = [], 0
    rest = "".join(held).strip()
    if rest and documents and len(rest) < size // 4:
        documents[-1] = f"{documents[-1]}\n\n{rest}"
    elif rest:
        documents.append(rest)
    return documents


def iter_documents(lines: Iterable[str], size: int = 1000) -> Iterator[str]:
    """What `split_documents` makes of the text of these lines, each with its end, of which a document or two are held."""
    before: str | None = None  # a short rest would still join it
    held: list[str] = []
    length = 0
    for piece in _pieces(lines, size):
        held.append(piece)
        length += len(piece)
        if length >= size:
            if before is not None:
                yield before
            before, held, length = "".join(held).strip(), [], 0
    rest = "".join(held).strip()
    if rest and before is not None and len(rest) < size // 4:
        yield f"{before}\n\n{rest}"
        return
    yield from (document for document in (before, rest) if document)


def _pieces(lines: Iterable[str], size: int) -> Iterator[str]:
    """Paragraphs, and of long ones the lines."""
    paragraph: list[str] = []
    length, cut = 0, False
    for line in lines:
        text = line.rstrip("\n")
        if not text.strip():
            if paragraph:
                yield "\n".join(paragraph) + "\n\n"
            paragraph, length, cut = [], 0, False
            continue
        if not paragraph and not cut:
            text = text.lstrip()
        length += len(text) + 1
        if cut:
            yield text + "\n"
            continue
        paragraph.append(text)
        if length - 1 > 10 * size:
            yield from (one + "\n" for one in paragraph)
            paragraph, cut = [], True
    if paragraph:
        yield "\n".join(paragraph) + "\n\n"
