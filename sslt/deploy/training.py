"""Training inside a method: by the run's own objective and recipe, for a budget of the command line."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf, open_dict

from sslt import stored
from sslt.config import build, check_stored, searched_around
from sslt.data.base import Samples
from sslt.data.streams.streams import most_of_a_rank, of_this_rank
from sslt.encoders.base import Encoder
from sslt.errors import UserError
from sslt.runs import RUN_FILE, Run
from sslt.targets.base import Target
from sslt.trusted import check_trusted

RECIPE = ("optimizer", "schedule", "views")
FOUND_RATE = "rate_search"  # of run.json: what a search for a rate found
LEAST_STEPS = 300  # where no bound is set: few labels make short epochs


def recipe(cfg: Any, parent: Run, given: list[str]) -> Any:
    """`cfg` with the optimizer, schedule, views and batch size that the parent was fine-tuned by, but for what is `given` (overrides).

    Of a parent that was compressed itself, those of the run that it was made from, where that is still there.
    """
    parent = _tuned(parent)
    found, made, where = copy.deepcopy(cfg), parent.config, f"{parent}/config.yaml"
    said = {re.split(r"[.=@]", o.lstrip("+~"))[0] for o in given}
    with open_dict(found):
        for group in RECIPE:
            node = made.get(group)
            if group in said or node is None:
                continue
            plain: Any = OmegaConf.to_container(node, resolve=True)
            if group == "optimizer":
                plain["lr"] = _rate(parent, plain.get("lr"))
            check_trusted({group: plain}, list(cfg.trust), where)
            check_stored(group, plain, where)
            found[group] = plain
        if "batch_size" not in said and isinstance(made.get("batch_size"), int):
            found.batch_size = made.batch_size
        found["from"] = None  # the encoder is there
    return found


def _tuned(parent: Run) -> Run:
    """The fine-tuned run that a compressed one came of."""
    for _ in range(100):
        origin = (parent.info.get("parent") or {}).get("from")
        if parent.info.get("verb") != "compress" or not isinstance(origin, str) or not stored.is_file(Path(origin) / RUN_FILE):
            break
        parent = Run(Path(origin))
    return parent


def _rate(parent: Run, rate: Any) -> Any:
    """A learning rate of a run's config as a number; of one that was searched for, the one that was found."""
    around = searched_around(rate)
    found = parent.info.get(FOUND_RATE)
    return rate if around is None else found.get("lr", around) if isinstance(found, dict) else around


def train(
    method: Any, cfg: Any, run: Run, encoder: Encoder, target: Target, samples: Samples,
    also: Callable[[Any], dict[str, Any]] | None = None, watchers: list[Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train encoder and target on `samples` in the folder of `run`, for `trainer.max_*`. Returns what there is to tell of it.

    cfg: of `recipe`. also: term of the target → all terms by name, on the stream "finetune". watchers: callbacks of Lightning's. Raises
    `UserError` where there are some and the model would be sharded.
    """
    if watchers and (strategy := cfg.trainer.get("strategy", "ddp")) != "ddp":
        raise UserError(f"what this method watches while it trains has to be whole: set trainer.strategy=ddp, not {strategy}")
    lanes = cfg.trainer.get("lanes")
    size, whole = min(int(cfg.batch_size), most_of_a_rank(samples, lanes)), target.needs_full_batches
    stream = of_this_rank(samples, size, seed=int(cfg.seed), drop_last=whole, views=build(cfg.views), lanes=lanes)
    term = method.term(target, "finetune")
    terms = {"finetune": term} if also is None else also(term)
    learner = method.fit(
        cfg, run, encoder, terms, {"finetune": stream}, build(cfg.adaptation), lambda curves: list(watchers or []), least_steps=LEAST_STEPS
    )
    return {k: v for k, v in learner.run_metrics.items() if not k.startswith("model/")}


def some_batches(samples: Samples, count: int, size: int, seed: int) -> list[dict[str, Any]]:
    """`count` batches of at most `size` samples, drawn without replacement; the same for a seed."""
    order = np.random.default_rng(seed).permutation(len(samples))[: count * size]
    return [samples.batch(np.sort(part)) for part in np.array_split(order, max(1, -(-len(order) // size)))]


def example(encoder: Encoder, samples: Samples, n: int = 4) -> dict[str, torch.Tensor]:
    """Inputs of the first n samples."""
    return encoder.inputs(samples.batch(np.arange(min(n, len(samples)))))
