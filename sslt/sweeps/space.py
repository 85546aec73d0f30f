"""The search space that overrides describe, in Hydra's own grammar, as Optuna's distributions."""

from __future__ import annotations

from typing import Any

from sslt.errors import UserError


def distributions(overrides: list[Any]) -> dict[str, Any]:
    """key → distribution of the overrides (parsed by Hydra) that vary.

    `choice(a,b)` and `a,b`: one of them, as it would be typed. `range(a,b,step)`: a number below b, as Hydra enumerates them.
    `interval(a,b)`: any number, `int(interval(a,b))`: a whole one. `tag(log,…)` on these: on a logarithmic scale.
    """
    return {o.get_key_element(): _distribution(o) for o in overrides if o.is_sweep_override()}


def _distribution(o: Any) -> Any:
    from hydra.core.override_parser.types import Transformer
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value, log = o.value(), "log" in getattr(o.value(), "tags", ())
    if o.is_interval_sweep():
        low, high = value.start, value.end
        whole = isinstance(low, int) and isinstance(high, int)
    elif o.is_range_sweep() and not value.shuffle:
        numbers = list(value.range())
        if not numbers:
            raise UserError(f"{o.input_line}: there is no value in it")
        low, high, whole = numbers[0], numbers[-1], all(isinstance(n, int) for n in numbers)
        low, high = min(low, high), max(low, high)
        step = abs(value.step)
        if log and step != 1:
            raise UserError(f"{o.input_line}: a logarithmic scale has no steps: give interval(…), or choice(…)")
        if not log:
            return IntDistribution(low, high, step=step) if whole else FloatDistribution(float(low), float(high), step=float(step))
    else:
        values = [str(v) for v in o.sweep_iterator(transformer=Transformer.str)]
        if not values:
            raise UserError(f"{o.input_line}: there is no value in it")
        return CategoricalDistribution(list(dict.fromkeys(values)))
    if log and not low > 0:
        raise UserError(f"{o.input_line}: a logarithmic scale begins above 0")
    if not low <= high:
        raise UserError(f"{o.input_line}: it ends below where it begins")
    return IntDistribution(low, high, log=log) if whole else FloatDistribution(float(low), float(high), log=log)


def typed(value: Any) -> str:
    """A value that Optuna chose, in Hydra's grammar."""
    return value if isinstance(value, str) else repr(value)
