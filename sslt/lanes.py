"""Random numbers that belong to lanes, so that a run may go on with another number of ranks and still draw what it would have drawn.

A run has V lanes, as many as it has ranks when it begins (or `trainer.lanes`). Row j of the joint batch is of lane j mod V, and everything
random in step g is drawn for each lane from a state set by (seed, lane, g). As rank r of W has the rows j ≡ r mod W, it has the lanes
l ≡ r mod W wherever W divides V. With W = V that is one lane a rank, and nothing is done beside setting the generators. With fewer ranks,
what draws random numbers is called once for each lane of the rank, on its rows and from its own state.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, _pop_mode_temporarily
from torch.utils._pytree import tree_map

_SIZES = {"rand", "randn", "randint"}  # how many numbers there are is all that they are told
_OF_TENSORS = {"rand_like", "randn_like", "randint_like", "bernoulli", "poisson", "multinomial", "normal", "gumbel_softmax"}
_IN_PLACE = {"bernoulli_", "uniform_", "normal_", "exponential_", "random_", "cauchy_", "log_normal_", "geometric_"}
_DROPOUT = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "native_dropout", "rrelu"}
_ATTENTION = "scaled_dot_product_attention"
_now: _ByLane | None = None  # by which random numbers are drawn


class Lanes:
    """Those of `count` lanes that this rank has."""

    def __init__(self, count: int, rank: int = 0, world: int = 1):
        self.own = tuple(range(rank, count, world))
        self._states: list[_State] = []

    def begin(self, seed: int, step: int, part: int = 0) -> None:
        """Set the generators of torch (CPU and devices), numpy and Python for a part (0: views, 1: the rest) of a step.

        What is not drawn by torch, in views and objectives of a user's own, is of the first lane.
        """
        self._states = []
        for lane in self.own[1:]:
            _seed(seed, lane, step, part)
            self._states.append(_State())
        _seed(seed, self.own[0], step, part)

    @contextlib.contextmanager
    def drawing(self, rows: int) -> Iterator[None]:
        """Within, random numbers for `rows` samples, or for each of several views of them, are drawn lane by lane.

        That is known by the first dimension of what is drawn: n · rows, one view behind the other, row k of each of the rank's lane
        k mod (lanes of the rank). What has another is drawn for every lane as well, so that their states go on as on ranks of their own,
        and the first one's is taken.
        """
        if len(self.own) == 1 or rows < len(self.own):
            yield
            return
        with _ByLane(rows, self._states):
            yield


def _seed(seed: int, lane: int, step: int, part: int) -> None:
    state = int(np.random.SeedSequence([seed, lane, step, part]).generate_state(1, np.uint64)[0])
    # torch.manual_seed also visits every absent backend, at half a millisecond a call
    torch.default_generator.manual_seed(state)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(state)
    np.random.seed(state % 2**32)
    random.seed(state)


class _State:
    """Where torch's generators are, when it is made."""

    def __init__(self) -> None:
        self.cpu = torch.default_generator.get_state()
        self.gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    def set(self) -> None:
        torch.default_generator.set_state(self.cpu)
        if self.gpu is not None:
            torch.cuda.set_rng_state(self.gpu)


def again() -> contextlib.AbstractContextManager[Any]:
    """A context for what is computed now and once more in the backward pass, where it then draws what it drew.

    torch's generators, which the first lane draws from, are checkpointing's to restore.
    """
    return contextlib.nullcontext() if _now is None else _Repeated(_now)


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Within, random numbers are drawn as they come: for what is compiled, which cannot be followed to every draw."""
    if _now is None:
        yield
        return
    with _pop_mode_temporarily():
        yield


class _Repeated(contextlib.AbstractContextManager[None]):
    """Draws as a mode did when this was made. It can be entered again, as a second backward pass over one graph does."""

    def __init__(self, mode: _ByLane):
        self.rows, self.states = mode.rows, list(mode.states)

    def __enter__(self) -> None:
        self.mode = _ByLane(self.rows, list(self.states))
        self.mode.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.mode.__exit__(*error)


class _ByLane(TorchFunctionMode):
    """Calls what draws random numbers lane by lane. states: of all lanes but the first, whose is that of torch's generators."""

    def __init__(self, rows: int, states: list[_State]):
        super().__init__()
        self.rows, self.states, self.lanes = rows, states, 1 + len(states)
        order = torch.cat([torch.arange(rows)[i :: self.lanes] for i in range(self.lanes)])
        self.back = order.argsort()  # from rows lane by lane to rows as they are

    def __enter__(self) -> Any:
        global _now
        self.before, _now = _now, self
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        global _now
        _now = self.before
        super().__exit__(*error)

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        if name in _SIZES:
            return self._of_size(func, args, kwargs)
        if name in _IN_PLACE:
            return args[0].copy_(self._of_tensors(lambda x, *rest, **named: func(x.clone(), *rest, **named), args, kwargs))
        if name in _OF_TENSORS or (name in _DROPOUT and _training(args, kwargs)):
            return self._of_tensors(func, args, kwargs)
        if name == _ATTENTION and (kwargs.get("dropout_p") or (len(args) > 4 and args[4])):
            return self._of_tensors(func, args, kwargs)
        return func(*args, **kwargs)

    def _each(self, call: Callable[[int], Any]) -> list[Any]:
        """What `call` gives for each lane of the rank by its number, drawn from its own state."""
        found = [call(0)]
        first = _State()
        for i, state in enumerate(self.states):
            state.set()
            found.append(call(i + 1))
            self.states[i] = _State()
        first.set()
        return found

    def _joined(self, parts: list[Tensor], views: int) -> Tensor:
        """Rows of all lanes, [views · rows, ...], from those of each."""
        rows = torch.cat([part.unflatten(0, (views, -1)) for part in parts], 1)
        return rows.index_select(1, self.back.to(rows.device)).flatten(0, 1)

    def _share(self, lane: int) -> int:
        """How many rows of a lane there are."""
        return -(-(self.rows - lane) // self.lanes)

    def _of_size(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Tensor:
        numbers, size = _split(func, args, kwargs)
        named = {k: v for k, v in kwargs.items() if k != "size"}
        views, rest = divmod(size[0], self.rows) if size else (0, 1)
        if rest or not views:
            return self._each(lambda i: func(*numbers, size, **named))[0]
        return self._joined(self._each(lambda i: func(*numbers, (views * self._share(i), *size[1:]), **named)), views)

    def _of_tensors(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        sizes = [len(x) for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.dim()]
        views, rest = divmod(sizes[0], self.rows) if sizes else (0, 1)
        if rest or not views:
            return self._each(lambda i: func(*args, **kwargs))[0]

        def of(i: int) -> Any:
            def cut(x: Any) -> Any:
                whole = not isinstance(x, Tensor) or not x.dim() or len(x) != sizes[0]
                return x if whole else x.unflatten(0, (views, self.rows))[:, i :: self.lanes].flatten(0, 1)

            return func(*tree_map(cut, args), **tree_map(cut, kwargs))

        return self._joined(self._each(of), views)


def _training(args: Any, kwargs: Any) -> bool:
    """Whether a dropout drops anything: (x, p=0.5, training=True, …), but for rrelu, which has bounds in place of p."""
    return bool(kwargs.get("training", args[2] if len(args) > 2 else True)) and kwargs.get("p", args[1] if len(args) > 1 else 0.5) != 0


def _split(func: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, tuple[int, ...]]:
    """The bounds and the size that a function of sizes is given: rand(*size), rand(size), randint([low,] high, size)."""
    if "size" in kwargs:
        return args, tuple(kwargs["size"])
    if args and isinstance(args[-1], (tuple, list, torch.Size)):
        return args[:-1], tuple(args[-1])
    return (), tuple(args)
