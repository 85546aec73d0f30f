"""What a request may send, and within which bounds: from the bytes of its body to items, of which nothing is decoded yet."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

IMAGE, TEXT, PARTS, QUESTION, HISTORY = "image", "text", "parts", "question", "history"
_GIVE = {
    IMAGE: "a picture: the base64 of a PNG, JPEG, WebP, BMP, GIF, TIFF or PPM file, or the file itself as multipart/form-data",
    TEXT: "a text: a string",
    PARTS: "an object of texts, PARTS",
    QUESTION: 'an object {"question": text, "context": text}, perhaps with "history": [[question, answer], …], the earliest first',
    HISTORY: "a history: a list of the names of items, the earliest first",
}


class Refused(Exception):
    """An input that cannot be answered. status: the HTTP code that says so."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    max_bytes: int
    max_items: int
    max_pixels: int
    max_characters: int
    timeout: float


@dataclasses.dataclass(frozen=True)
class Reads:
    """What a run reads: one of the kinds above, and the names of the parts where a sample has several."""

    kind: str
    parts: tuple[str, ...] = ()

    @property
    def wanted(self) -> str:
        """What an item has to be, in words."""
        return _GIVE[self.kind].replace("PARTS", "{" + ", ".join(f'"{name}": text' for name in self.parts) + "}")


# -------------------------------------------------------------------- the body
def items_of(body: bytes, content_type: str, reads: Reads, limits: Limits) -> list[Any]:
    """The items of a request, unchecked. Raises `Refused` where there are none, too many, or where they cannot be found."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        items: list[Any] = [_of_file(content, reads) for content in parts_of(body, content_type)]
    elif kind.startswith("image/") or kind == "application/octet-stream":
        items = [_of_file(body, reads)] if reads.kind == IMAGE else _refuse_kind(kind, reads)
    elif kind == "text/plain" and reads.kind == TEXT:
        items = [_of_file(body, reads)]
    elif kind in (
        "application/json",
        "",
        "application/x-www-form-urlencoded",
        "text/plain",
    ):  # curl -d says urlencoded of whatever it sends
        items = _of_json(body)
    else:
        items = _refuse_kind(kind, reads)
    if not items:
        raise Refused(422, f"there is no input in the request: give {reads.wanted}")
    if len(items) > limits.max_items:
        raise Refused(413, f"{len(items)} inputs in one request: at most {limits.max_items} are answered (max_items=)")
    return items


def _refuse_kind(kind: str, reads: Reads) -> list[Any]:
    raise Refused(415, f"the content type {kind[:80]!a} is not read: send application/json, where an input is {reads.wanted}")


def _of_json(body: bytes) -> list[Any]:
    """`inputs` or `input` of a JSON object."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as e:
        reason = str(e) if isinstance(e, json.JSONDecodeError) else type(e).__name__
        raise Refused(400, f"the body is no JSON ({reason[:200]})") from None
    if not isinstance(found, dict) or ("inputs" in found) == ("input" in found):
        raise Refused(422, 'give one object, {"inputs": [input, …]} or {"input": input}')
    if other := found.keys() - {"inputs", "input"}:
        raise Refused(422, f"nothing reads {min(other)[:80]!a}: give inputs alone")
    items = found["inputs"] if "inputs" in found else [found["input"]]
    if not isinstance(items, list):
        raise Refused(422, "inputs has to be a list of inputs; one alone goes into input")
    return items


def _of_file(content: bytes, reads: Reads) -> Any:
    if reads.kind == IMAGE:
        return content
    if reads.kind == TEXT:
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            raise Refused(415, "the file is no UTF-8 text, and this run reads texts") from None
    raise Refused(415, f"this run does not read files: send application/json, where an input is {reads.wanted}")


def parts_of(body: bytes, content_type: str) -> list[bytes]:
    """The contents of the parts of a multipart body (RFC 7578), whatever they are called; nothing in them is decoded."""
    named = re.search(r'boundary=(?:"([^"]{1,200})"|([^\s;"]{1,200}))', content_type, re.IGNORECASE)
    if named is None:
        raise Refused(400, "the multipart body names no boundary")
    mark = b"--" + (named[1] or named[2]).encode("latin-1")
    pieces = (b"\r\n" + body).split(b"\r\n" + mark)
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise Refused(400, "the multipart body is cut short")
    found = []
    for piece in pieces[1:-1]:
        head, blank, content = piece.partition(b"\r\n\r\n")
        if not blank:
            raise Refused(400, "a part of the multipart body has no end of its headers")
        if re.search(rb"content-transfer-encoding:\s*(?!binary|8bit|7bit)", head, re.IGNORECASE):
            raise Refused(415, "parts with a Content-Transfer-Encoding are not read")
        found.append(content)
    return found


# -------------------------------------------------------------------- one item
def checked(item: Any, reads: Reads, limits: Limits) -> tuple[Any, int]:
    """An item as a worker takes it, and its size, by which similar ones are found. Raises `Refused` with what is wrong with it."""
    if reads.kind == IMAGE:
        if isinstance(item, dict) and item.keys() == {"image"}:
            item = item["image"]
        if not isinstance(item, (str, bytes)):
            raise Refused(422, f"this run reads pictures: give {reads.wanted}")
        return item, 0
    if reads.kind == TEXT:
        return _text(item, "the text", limits, reads), len(item)
    if reads.kind == HISTORY:
        names = [str(name) if isinstance(name, int) and not isinstance(name, bool) else name for name in item] if _is_list(item) else None
        if names is None or not all(isinstance(name, str) for name in names):
            raise Refused(422, f"this run reads histories: give {reads.wanted}")
        if sum(map(len, names)) > limits.max_characters:
            raise _too_long("the history", sum(map(len, names)), limits)
        return [_text(name, "an item", limits, reads) for name in names], len(names)
    if _is_list(item) and reads.kind == PARTS and len(item) == len(reads.parts):
        item = dict(zip(reads.parts, item, strict=True))
    wanted = reads.parts if reads.kind == PARTS else ("question", "context")
    extra = set() if reads.kind == PARTS else {"history"}
    if not isinstance(item, dict) or not set(wanted) <= item.keys() <= {*wanted, *extra}:
        raise Refused(422, f"give {reads.wanted}")
    texts: dict[str, Any] = {name: _text(item[name], name, limits, reads) for name in wanted}
    if (turns := item.get("history")) is not None:
        if not (_is_list(turns) and all(_is_list(turn) and len(turn) == 2 for turn in turns)):
            raise Refused(422, f"give {reads.wanted}")
        texts["history"] = [[_text(text, "history", limits, reads) for text in turn] for turn in turns]
    size = sum(len(texts[name]) for name in wanted) + sum(len(text) for turn in texts.get("history", ()) for text in turn)
    if size > limits.max_characters:
        raise _too_long("the input", size, limits)
    return texts, size


def _is_list(item: Any) -> bool:
    return isinstance(item, Sequence) and not isinstance(item, (str, bytes))


def _text(item: Any, what: str, limits: Limits, reads: Reads) -> str:
    if not isinstance(item, str):
        raise Refused(422, f"{what} is no string: give {reads.wanted}")
    if len(item) > limits.max_characters:
        raise _too_long(what, len(item), limits)
    if not item.isascii():
        try:
            item.encode("utf-8")
        except UnicodeEncodeError:
            raise Refused(422, f"{what} holds half of a surrogate pair, which is no character") from None
    return item


def _too_long(what: str, size: int, limits: Limits) -> Refused:
    return Refused(413, f"{what} has {size} characters: at most {limits.max_characters} are read (max_characters=)")
