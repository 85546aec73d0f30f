"""Protects the reading of files that somebody else wrote: each that is none, or too much, ends in one line that names it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sslt import stored
from sslt.errors import UserError


def test_what_is_no_regular_file_is_not_opened(here):
    """Reading a pipe or /dev/zero would never end."""
    made = {
        "pipe.json": lambda p: os.mkfifo(p),
        "zero.json": lambda p: p.symlink_to("/dev/zero"),
        "folder.json": lambda p: p.mkdir(),
        "loop.json": lambda p: p.symlink_to(p.name),
    }
    for name, make in made.items():
        place = here / name.removesuffix(".json")
        place.mkdir()
        make(place / name)
        for read in (lambda name=name, place=place: stored.json_object(place / name), lambda place=place: stored.require_plain(place)):
            with pytest.raises(UserError, match=name):
                read()
    with pytest.raises(FileNotFoundError):
        stored.json_object(here / "nothing.json")
    with pytest.raises(UserError, match=r"nothing.json is missing"):
        stored.require_there(here / "nothing.json")


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b'{"a":', b"\xff\xfe", b"[" * 200_000, b"\0"])
def test_what_is_no_object_is_damaged(content, here):
    (here / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json is damaged"):
        stored.json_object(here / "a.json")


def test_what_is_too_large_is_not_read(here):
    with (here / "a.json").open("wb") as f:
        f.truncate(stored.LARGEST + 1)
    with pytest.raises(UserError, match="more than"):
        stored.json_object(here / "a.json")


def test_aliases_are_bounded(here):
    """Nine of nine of nine … values from 400 bytes; a few are fine where a user may write them, and none where sslt writes."""
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"{c}: &{c} [{', '.join([f'*{b}'] * 9)}]\n" for b, c in zip("abcdefg", "bcdefgh", strict=True))
    for name, content in {"bomb": bomb, "own": "a: &a {x: 1}\nb: *a\n", "ring": "a: &a [*a]\n"}.items():
        (here / f"{name}.yaml").write_text(content)
        with pytest.raises(UserError, match="alias"):
            stored.yaml_object(here / f"{name}.yaml")
    assert stored.yaml_object(here / "own.yaml", aliases=True) == {"a": {"x": 1}, "b": {"x": 1}}
    for name in ("bomb", "ring"):
        with pytest.raises(UserError, match=f"{name}.yaml"):
            stored.yaml_object(here / f"{name}.yaml", aliases=True)


@pytest.mark.parametrize(
    "content", ["- 1\n", "3\n", "a: [1\n", "a: b: c\n", f"a: {'[' * 500}{']' * 500}\n", "a: !!python/object/apply:os.system [ls]\n"]
)
def test_what_is_no_plain_mapping_is_damaged(content, here):
    (here / "a.yaml").write_text(content)
    with pytest.raises(UserError, match=r"a\.yaml"):
        stored.yaml_object(here / "a.yaml")


def test_nesting_is_bounded(here):
    """As deep as is allowed is read, one level more is not."""
    for lists, fits in ((stored.DEEPEST - 1, True), (stored.DEEPEST, False)):  # within the mapping
        (here / "a.yaml").write_text(f"a: {'[' * lists}{']' * lists}\n")
        if fits:
            assert stored.yaml_text(here / "a.yaml") == (here / "a.yaml").read_text()
        else:
            with pytest.raises(UserError, match=rf"a\.yaml is nested more than {stored.DEEPEST} deep"):
                stored.yaml_text(here / "a.yaml")


def test_a_value_is_of_its_kind(here):
    """A switch is no number; the message names file, key, and what is there."""
    found = {"n": 3, "s": "x", "on": True}
    assert stored.value(found, "n", int, here / "a.json") == 3
    for key, kind in (("s", int), ("on", int), ("n", str), ("gone", list)):
        with pytest.raises(UserError, match=rf"a\.json is damaged: '{key}'"):
            stored.value(found, key, kind, here / "a.json")


def test_what_a_library_says_of_a_file_is_one_line(here):
    with (
        pytest.raises(UserError, match=r"^a\.json describes nothing that can be built: ValueError: first$"),
        stored.blaming(here / "a.json"),
    ):
        raise ValueError("\nfirst\nsecond")
    with pytest.raises(ModuleNotFoundError), stored.blaming(here / "a.json"):  # which says the package that is lacking
        raise ModuleNotFoundError("peft")


def test_what_an_exception_says_is_cut_to_one_line():
    """Of 200 characters at most; one that says nothing is named."""
    assert stored.first_line(ValueError("\n  a\nb")) == "a"
    assert stored.first_line(ValueError("x" * 199 + "yz")) == "x" * 199 + "y"
    assert stored.first_line(ValueError("x" * 200)) == "x" * 200
    assert stored.first_line(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_a_path_that_cannot_be_one_is_none(here):
    for typed in ("x" * 3000, "a\0b", "~nobodyatall/x"):
        assert not stored.is_file(Path(typed)) and not stored.is_folder(Path(typed))
        with pytest.raises(UserError, match="cannot be read"):
            stored.located(typed)
    assert stored.located("not/there") == Path("not/there")
