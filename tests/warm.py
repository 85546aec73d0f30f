"""What commands do anew in every process, done once in the one that they are forked from: configs are read, signatures and fonts found.

Nothing of torch is computed here: processes with its threads must not be forked.
"""

from __future__ import annotations

import gc
import io

import hydra._internal.hydra
import matplotlib.figure

from sslt import config

for verb, args in {
    "pretrain": ["+task=simclr"],
    "finetune": ["+target=digits", "from=scratch"],
    "evaluate": ["from=run", "data=digits"],
    "predict": ["from=run", "data=digits"],
}.items():
    config.compose(verb, args)
hydra._internal.hydra.Hydra.get_mode = lambda self, config_name, overrides: None  # type: ignore[method-assign]  # see conftest.py
figure = matplotlib.figure.Figure()
figure.subplots().set_title("fonts")
figure.savefig(io.BytesIO())
gc.freeze()  # else every process goes over all of it, and has pages of its own by that
