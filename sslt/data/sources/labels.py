"""What counts as a label: names of classes as tables, arrays and folders hold them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sslt.stored import is_text

# What programs write where there is nothing. "None" is not among them: it is a class of stance and of intent data.
MISSING = frozenset({"", "nan", "+nan", "-nan", "null", "<na>", "n/a", "#n/a", "#na", "nil"})
MISSING_AS_WRITTEN = frozenset({"NA"})  # of R; "na" is a word


def label_name(value: Any, names: Sequence[str] | None) -> str | None:
    """A label as a string; None where it is missing (nothing, NaN as number or word, -1 for a numbered class) or no label at all."""
    value = decoded(value)
    if value is None or isinstance(value, (list, dict, bytes)) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if names is not None and isinstance(value, (int, float)):
        return names[int(value)] if 0 <= value < len(names) else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # integers with gaps are stored as floats
    text = str(value).strip()
    return None if is_missing(text) or not is_text(text) else text


def is_missing(text: str) -> bool:
    """Whether a label's text says that there is none."""
    return text.lower() in MISSING or text in MISSING_AS_WRITTEN


def decoded(value: Any) -> Any:
    """Bytes as the UTF-8 text that they are; as they were, where they are none."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    return value
