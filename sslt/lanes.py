"""Random numbers that belong to lanes, so that a run may go on with another number of ranks and still draw what it would have drawn.

A run has V lanes, as many as it has ranks when it begins (or `trainer.lanes`). Row j of the joint batch is of lane j mod V, and everything
random in step g is drawn for each lane from a state set by (seed, lane, g). As rank r of W has the rows j ≡ r mod W, it has the lanes
l ≡ r mod W wherever W divides V. With W = V that is one lane a rank, and nothing is done beside setting the generators. With fewer ranks,
what draws random numbers is called once for each lane of the rank, on its rows and from its own state. What a step draws for no row in
particular (`common`), and the sizes that rows of a step share (`most`, `least`), are the same on all ranks.
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

from sslt import distributed
from sslt.modules import without_caches

_SIZES = {"rand", "randn", "randint"}  # how many numbers there are is all that they are told
_OF_TENSORS = {"rand_like", "randn_like", "randint_like", "bernoulli", "poisson", "multinomial", "normal", "gumbel_softmax"}
_IN_PLACE = {"bernoulli_", "uniform_", "normal_", "exponential_", "random_", "cauchy_", "log_normal_", "geometric_"}
_DROPOUT = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "native_dropout", "rrelu"}
_ATTENTION = "scaled_dot_product_attention"
_now: _ByLane | None = None  # by which random numbers are drawn
_held: Lanes | None = None  # whose step draws them


class Lanes:
    """Those of `count` lanes that this rank has."""

    def __init__(self, count: int, rank: int = 0, world: int = 1):
        self.own = tuple(range(rank, count, world))
        self._states: list[_State] = []
        self._step: list[int] = [0, 0, 0]
        self._common: dict[torch.device, torch.Generator] = {}

    def begin(self, seed: int, step: int, part: int = 0) -> None:
        """Set the generators of torch (CPU and devices), numpy and Python for a part (0: views, 1: the rest) of a step.

        What is not drawn by torch, in views and objectives of a user's own, is of the first lane.
        """
        self._states, self._step, self._common = [], [seed, step, part], {}
        for lane in self.own[1:]:
            _seed(seed, lane, step, part)
            self._states.append(_State())
        _seed(seed, self.own[0], step, part)

    @contextlib.contextmanager
    def drawing(self, rows: int, together: int = 1) -> Iterator[None]:
        """Within, random numbers for `rows` samples, or for each of several views of them, are drawn lane by lane.

        That is known by the first dimension of what is drawn: n · rows, one view behind the other. Row k of each is of the rank's lane
        (k // together) mod (lanes of the rank): `together` rows, those of an episode, are of one. What has another first dimension is drawn
        for every lane as well, so that their states go on as on ranks of their own, and the first one's is taken.
        """
        global _held
        before, _held = _held, self
        try:
            if len(self.own) == 1 or rows // together < len(self.own):
                yield
                return
            with _ByLane(torch.arange(rows) // together % len(self.own), self._states):
                yield
        finally:
            _held = before

    def common(self, device: torch.device) -> torch.Generator:
        """See the function of this name."""
        if device not in self._common:
            self._common[device] = torch.Generator(device).manual_seed(_number(*self._step, 0, 0xC0))
        return self._common[device]


def common(device: torch.device | str = "cpu") -> torch.Generator | None:
    """What draws the numbers of a step that are of no row, the same on all ranks; None outside of a step: torch's own generator."""
    return None if _held is None else _held.common(torch.device(device))


def most(size: int) -> int:
    """The largest `size` that a rank has in this step, which all of them must ask; outside of a step `size`."""
    return size if _held is None else int(distributed.largest([size])[0])


def least(size: int) -> int:
    """The smallest, likewise."""
    return -most(-size)


@contextlib.contextmanager
def rows(of: Tensor) -> Iterator[None]:
    """Within, the first dimension is no longer of the samples but of N things that belong to them, thing k to the sample `of[k]` [N]."""
    if _now is None or not len(of):
        yield
        return
    mode = _now
    with apart(), _ByLane(mode.lane_of[of.cpu()], mode.states):
        yield


def _number(*of: int) -> int:
    """A number from which generators start, another one for other numbers."""
    return int(np.random.SeedSequence(of).generate_state(1, np.uint64)[0])


def _seed(seed: int, lane: int, step: int, part: int) -> None:
    state = _number(seed, lane, step, part)
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


def called(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """`func(*args, **kwargs)` of rows that know nothing of each other, lane by lane: for what cannot be followed to every draw."""
    mode = _now
    if mode is None:
        return func(*args, **kwargs)
    args, kwargs = without_caches((args, kwargs))
    with apart():
        return mode.of_tensors(func, args, kwargs)


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Within, random numbers are drawn as they come."""
    global _now
    if _now is None:
        yield
        return
    before, _now = _now, None
    try:
        with _pop_mode_temporarily():
            yield
    finally:
        _now = before


class _Repeated(contextlib.AbstractContextManager[None]):
    """Draws as a mode did when this was made. It can be entered again, as a second backward pass over one graph does."""

    def __init__(self, mode: _ByLane):
        self.lane_of, self.states = mode.lane_of, list(mode.states)

    def __enter__(self) -> None:
        self.mode = _ByLane(self.lane_of, list(self.states))
        self.mode.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.mode.__exit__(*error)


class _ByLane(TorchFunctionMode):
    """Calls what draws random numbers lane by lane. lane_of [rows]: whose a row is. states: of all lanes but the first, whose is that of
    torch's generators."""

    def __init__(self, lane_of: Tensor, states: list[_State]):
        super().__init__()
        self.lane_of, self.rows, self.states = lane_of, len(lane_of), states
        of = [(lane_of == i).nonzero()[:, 0] for i in range(1 + len(states))]
        self.own = {i: own for i, own in enumerate(of) if len(own)}  # the rows of each lane that has some
        self.back = torch.cat(of).argsort()  # from rows lane by lane to rows as they are

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
            return args[0].copy_(self.of_tensors(lambda x, *rest, **named: func(x.clone(), *rest, **named), args, kwargs))
        if name in _OF_TENSORS or (name in _DROPOUT and _training(args, kwargs)):
            return self.of_tensors(func, args, kwargs)
        if name == _ATTENTION and (kwargs.get("dropout_p") or (len(args) > 4 and args[4])):
            return self.of_tensors(func, args, kwargs)
        return func(*args, **kwargs)

    def each(self, call: Callable[[int], Any]) -> list[Any]:
        """What `call` gives for each lane that has rows by its number, drawn from its own state."""
        found = [call(0)] if 0 in self.own else []
        first = _State()
        for i in sorted(self.own.keys() - {0}):
            self.states[i - 1].set()
            found.append(call(i))
            self.states[i - 1] = _State()
        first.set()
        return found

    def joined(self, parts: list[Any], views: int) -> Any:
        """Rows of all lanes, [views · rows, ...], from those of each; or several tensors of such, where each lane has them."""

        def of(*own: Any) -> Any:
            if not isinstance(own[0], Tensor):
                return own[0]
            x = torch.cat([part.unflatten(0, (views, -1)) for part in own], 1)
            return x.index_select(1, self.back.to(x.device)).flatten(0, 1)

        return tree_map(of, *parts)

    def _of_size(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Tensor:
        numbers, size = _split(func, args, kwargs)
        named = {k: v for k, v in kwargs.items() if k != "size"}
        views, rest = divmod(size[0], self.rows) if size else (0, 1)
        if rest or not views:
            return self.each(lambda i: func(*numbers, size, **named))[0]
        return self.joined(self.each(lambda i: func(*numbers, (views * len(self.own[i]), *size[1:]), **named)), views)

    def of_tensors(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        sizes = [len(x) for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.dim()]
        views, rest = divmod(sizes[0], self.rows) if sizes else (0, 1)
        if rest or not views:
            return self.each(lambda i: func(*args, **kwargs))[0]

        def of(i: int) -> Any:
            def cut(x: Any) -> Any:
                whole = not isinstance(x, Tensor) or not x.dim() or len(x) != sizes[0]
                return x if whole else x.unflatten(0, (views, self.rows)).index_select(1, self.own[i].to(x.device)).flatten(0, 1)

            return func(*tree_map(cut, args), **tree_map(cut, kwargs))

        return self.joined(self.each(of), views)


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
