"""Libraries that import much more than is used of them, without what is not: a third of a command's start."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterator
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

_NAME = "torchmetrics"
_PARTS = {"Metric": "torchmetrics.metric", "MetricCollection": "torchmetrics.collections"}  # what Lightning asks for when it is imported


class _Few(ModuleType):
    """torchmetrics as far as Lightning needs it. Whatever else is asked of it, it becomes the whole package first.

    Two classes to compare with are what Lightning takes of it; with them would come transformers, torchvision and SciPy's signals.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what is asked of any module
            raise AttributeError(f"module '{_NAME}' has no attribute '{name}'")
        if name not in _PARTS or not self._take(name):
            become_whole(self)
        return getattr(self, name)

    def _take(self, name: str) -> bool:
        """Whether a part can be had alone; it is an attribute then."""
        try:
            with _Finder.resting():
                importlib.import_module(f"{_NAME}.utilities")  # which has to be the first of them
                setattr(self, name, getattr(importlib.import_module(_PARTS[name]), name))
            return True
        except (ImportError, AttributeError):  # of another version
            for module in [m for m in sys.modules if m.startswith(f"{_NAME}.")]:
                del sys.modules[module]
            return False


def become_whole(module: ModuleType) -> None:
    """Import what a package has of its own; parts of it that are there stay the same."""
    assert module.__spec__ is not None and module.__spec__.loader is not None
    module.__class__ = ModuleType
    module.__spec__.loader.exec_module(module)


class _Finder(MetaPathFinder):
    """Sees to it that the package is whole before a submodule of it is imported by somebody else than Lightning."""

    rests = False

    @classmethod
    @contextlib.contextmanager
    def resting(cls) -> Iterator[None]:
        before, cls.rests = cls.rests, True
        try:
            yield
        finally:
            cls.rests = before

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        package = sys.modules.get(_NAME)
        if self.rests or not isinstance(package, _Few) or not name.startswith(f"{_NAME}."):
            return None
        become_whole(package)
        return spec_from_loader(name, _Came(sys.modules.pop(name))) if name in sys.modules else None


class _Came(Loader):
    """Gives a module that was imported with its package: Python, which had begun to look for it before that, would import it twice."""

    def __init__(self, module: ModuleType):
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


def few_metrics() -> None:
    """Let `import torchmetrics` cost what is used of it; nothing where it was imported already, or is not installed."""
    if _NAME in sys.modules:
        return
    spec = importlib.util.find_spec(_NAME)
    if spec is None:
        return
    module = importlib.util.module_from_spec(spec)
    vars(module)["_logger"] = logging.getLogger(_NAME)  # which its parts take of it
    module.__class__ = _Few
    sys.modules[_NAME] = module
    sys.meta_path.insert(0, _Finder())


def timm() -> Any:
    """timm, without wandb, which it would import for its own training script."""
    hidden = "wandb" not in sys.modules
    if hidden:
        sys.modules["wandb"] = None  # type: ignore[assignment]  # what Python takes for a package that is not there
    try:
        return importlib.import_module("timm")
    finally:
        if hidden:
            del sys.modules["wandb"]
