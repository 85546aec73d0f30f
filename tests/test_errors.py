"""Protects the name that is proposed for a wrong one."""

from __future__ import annotations

from sslt.errors import nearest


def test_the_nearest_name():
    """The closest one alone; all of them, in order and once each, where none is close; nothing where that would be a page."""
    assert nearest("resnet81", ["vit_small", "resnet18", "resnet50"]) == "; did you mean 'resnet18'?"
    assert nearest("resnet1", ["resnet18", "resnet10", "resnet11"]).count("resnet") == 1
    assert nearest("zzz", ["b", "a", "b"]) == "; there is: a, b"
    assert nearest("zzz", [str(i) for i in range(30)]).startswith("; there is: 0, 1, 10")
    assert nearest("zzz", [str(i) for i in range(31)]) == nearest("zzz", []) == ""
    assert nearest("11", [10, 12, 11]) == "; did you mean '11'?"
