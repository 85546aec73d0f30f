"""Protects sources of running text: nothing of it is lost, and what cannot be read is named or left out."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from sslt.data import cache
from sslt.data.sources import docs
from sslt.data.sources.running_text import TextFiles, TextLines
from sslt.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_root", tmp_path / "cache")


def write(path: Path, content: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode(encoding)
    path.write_bytes(lzma.compress(data) if path.suffix == ".xz" else data)


def test_text_files(tmp_path):
    """Running text becomes documents of about 1,000 characters; none of the text is lost."""
    paragraphs = [f"Paragraph {i}. " + "word " * 30 for i in range(40)]
    write(tmp_path / "a" / "book.txt.xz", "\n \n".join(paragraphs))
    write(tmp_path / "a" / "b" / "note.md", "A note.\r\n\r\nMore.")
    write(tmp_path / "a" / "table.csv", "not,this")
    source = TextFiles(str(tmp_path / "a"), "fail")
    items = source.get("unlabeled").items
    assert items[0] == "A note.\n\nMore." and len(items) == 7
    assert " ".join(" ".join(items[1:]).split()) == " ".join(" ".join(paragraphs).split())
    assert all(990 <= len(item) <= 1500 for item in items[1:-1])
    assert TextFiles(str(tmp_path / "**" / "*.md"), "fail").get("unlabeled").items == items[:1]
    write(tmp_path / "a" / "bad.txt", "é" * 9, "latin-1")
    with pytest.raises(UserError, match=r"bad\.txt: not UTF-8"):
        TextFiles(str(tmp_path / "a"), "fail").get("unlabeled")
    assert len(TextFiles(str(tmp_path / "a"), "skip").get("unlabeled").skipped) == 1
    with pytest.raises(UserError, match="no such file"):
        TextFiles(str(tmp_path / "z"), "fail").get("unlabeled")


def test_split_documents_without_blank_lines():
    """Very long paragraphs are cut at line ends, and a short rest joins the document before."""
    lines = [f"line {i}" for i in range(3000)]
    documents = docs.split_documents("\n".join(lines))
    assert "\n".join("\n\n".join(documents).split()) == "\n".join("\n".join(lines).split())
    assert all(990 <= len(d) < 1400 for d in documents[:-1])
    assert docs.split_documents(" \n ") == []


def test_a_line_is_a_text_whatever_stands_in_it(tmp_path):
    """Signs that some take for an end of line are part of a text: else all answers after one would be of another line."""
    write(tmp_path / "t.txt", "one\u2028still one\x0c\r\n\ntwo\x85\x1cstill two")
    source = TextLines(str(tmp_path / "t.txt"))
    assert source.read("unlabeled").items == ["one\u2028still one\x0c", "", "two\x85\x1cstill two"] == list(source.stream("unlabeled", []))
