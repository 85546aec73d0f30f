"""One copy of a model in the memory of a machine, for all of its ranks.

It lies in a temporary file that every rank maps copy-on-write: what one writes on its tensors it has for itself, what none has written
is there once, and the system can take it out of memory, since the file has it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterable
from mmap import ACCESS_COPY, mmap
from typing import Any

import torch
from torch import Tensor

from sslt import distributed

_ALIGNED = 64  # bytes


class Shared:
    """The memory of `tensors`, which are alike on all ranks. All ranks make it, and call its methods."""

    def __init__(self, tensors: Iterable[Tensor]):
        self._first = distributed.rank() - int(os.environ.get("LOCAL_RANK", 0))  # of this machine
        self._places: dict[int, tuple[Tensor, int]] = {}  # tensors by their ids, and where each begins
        self._bytes = 0
        for x in tensors:
            if id(x) not in self._places and _is_dense(x):
                self._places[id(x)] = x, self._bytes
                self._bytes += -(-x.numel() * x.element_size() // _ALIGNED) * _ALIGNED
        self._file = self._opened()
        self._written = mmap(self._file.fileno(), self._bytes) if self._file is not None and self._is_first else None
        for x, _ in self._places.values():
            self.write(x, x.data)
        self.refresh()

    @property
    def _is_first(self) -> bool:
        return distributed.rank() == self._first

    def _opened(self) -> Any:
        """The file, which has no name any more: it is gone when the last rank is. None where there can be none."""
        path = None
        if self._is_first and self._bytes and sys.platform == "linux":
            with contextlib.suppress(OSError):  # a full disk
                number, path = tempfile.mkstemp(prefix="sslt-weights-")
                try:
                    os.posix_fallocate(number, 0, self._bytes)
                except OSError:
                    os.unlink(path)
                    path = None
                finally:
                    os.close(number)
        path = distributed.gather_objects(path)[self._first]
        file = None
        if path is not None:
            with contextlib.suppress(OSError):  # ranks in containers of their own do not see it
                file = open(path, "r+b")  # noqa: SIM115
        all_have_it = all(distributed.gather_objects(file is not None))
        if path is not None and self._is_first:
            os.unlink(path)
        return file if all_have_it else None

    def has(self, x: Tensor) -> bool:
        return self._file is not None and id(x) in self._places

    def write(self, x: Tensor, values: Tensor) -> None:
        """Have `x` be these values after `refresh`."""
        if self._written is not None:
            _at(self._written, x, self._places[id(x)][1]).copy_(values)

    def forget(self, x: Tensor) -> None:
        """Have `x` be each rank's own from now on."""
        self._places.pop(id(x), None)

    def refresh(self) -> None:
        """Make every tensor what was last written of it; what ranks have done to theirs is gone."""
        distributed.barrier()
        self.back()

    def back(self) -> None:
        """The same of this rank alone, where nothing was written: a tensor that was moved to a device lies here again."""
        if self._file is not None:
            mapped = mmap(self._file.fileno(), self._bytes, access=ACCESS_COPY)
            for x, offset in self._places.values():
                x.data = _at(mapped, x, offset)


def _is_dense(x: Tensor) -> bool:
    return x.device.type == "cpu" and (x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)))


def _at(memory: mmap, x: Tensor, offset: int) -> Tensor:
    """The part of `memory` for a tensor like `x`, a storage of its own."""
    if not x.numel():
        return torch.empty_like(x.data)
    return torch.frombuffer(memory, dtype=x.dtype, count=x.numel(), offset=offset).as_strided(x.shape, x.stride())
