"""Modules, and calls, that take the places of others within a network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from torch import nn
from torch.utils._pytree import tree_map

T = TypeVar("T")


def of_kind(it: object, kind: type[T]) -> T:
    """An object of another class that shares all that `it` has: a module its parameters, buffers and hooks."""
    made = kind.__new__(kind)
    made.__dict__.update(it.__dict__)
    return made


def replaced(root: nn.Module, other: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Put `other(m)` in the place of every module m below `root`; returns what takes the place of `root` itself."""
    new: dict[int, tuple[nn.Module, nn.Module]] = {}  # one that stands in several places stays one; the old one is kept, so that its id is

    def taking(m: nn.Module) -> nn.Module:
        if id(m) not in new:
            new[id(m)] = m, other(m)
        return new[id(m)][1]

    for parent in list(root.modules()):
        for name, child in parent._modules.items():
            if child is not None:
                parent._modules[name] = taking(child)
    return taking(root)


def without_caches(args: Any) -> Any:
    """What a block is called with, less caches of keys and values: transformers fill them whether they are read or not, and a block that is
    called twice would do so twice."""
    return tree_map(lambda x: None if hasattr(x, "get_seq_length") else x, args)


@contextlib.contextmanager
def called(modules: Iterable[nn.Module], other: Callable[[nn.Module, Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Within, calling a module m is calling `other(m, call)`, `call` being what calling it was before, hooks included; each module once.

    By what `nn.Module.compile` sets, so that state dicts and copies know nothing of it.
    """
    before = [(m, m._compiled_call_impl) for m in {id(m): m for m in modules}.values()]
    try:
        for m, call in before:
            m._compiled_call_impl = other(m, call or m._call_impl)  # type: ignore[assignment]
        yield
    finally:
        for m, call in before:
            m._compiled_call_impl = call
