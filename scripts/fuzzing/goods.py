"""Good things to damage: tiny runs of every verb, made once, each from those before it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzzing.case import Place

HERE = ["trainer.precision=32", "trainer.accelerator=cpu"]
STEPS = ["trainer.max_steps=1", "default_max_epochs=1"]
IMAGES = ["encoder.args.layers=[1,1,1,1]", "encoder.args.channels=[8,8,16,16]"]
TEXT = [
    "encoder.config.hidden_size=32",
    "encoder.config.intermediate_size=64",
    "encoder.processor.vocab_size=1000",
    "encoder.processor.max_length=32",
]
PRETRAIN = [*HERE, *STEPS, "batch_size=32", "online_probe.every_n_epochs=0"]
FINETUNE = [*HERE, *STEPS, "batch_size=32", "val_every_n_epochs=0", "labels_per_class=4"]
MEASURE = ["trainer.accelerator=cpu", "shots=[1]", "draws=1"]
MAKERS = {
    "images": ["pretrain", "+task=simclr", "data=digits", *IMAGES, *PRETRAIN],
    "tuned": ["finetune", "+target=digits", "from=images", *FINETUNE],
    "text": ["pretrain", "+task=mlm", "data=docs", *TEXT, *PRETRAIN],
    "labelled": ["finetune", "+target=docs", "from=text", *FINETUNE],
    "adapter": ["finetune", "+target=docs", "from=text", "adaptation=lora", *FINETUNE],
    "measured": ["evaluate", "from=tuned", "trainer.accelerator=cpu"],
    "predicted": ["predict", "from=tuned", "data=digits", "trainer.accelerator=cpu"],
    "merged": ["merge", "from=adapter", "trainer.accelerator=cpu"],
    "chain": ["run", "+task=simclr", "+target=digits", *IMAGES, *HERE, *STEPS, "batch_size=32", "online_probe.every_n_epochs=0",
              "val_every_n_epochs=0", "finetune.labels_per_class=4"],
}  # fmt: skip
NEEDS = {"tuned": "images", "labelled": "text", "adapter": "text", "measured": "tuned", "predicted": "tuned", "merged": "adapter"}


class Goods:
    """The runs in `root`, made when they are first needed, and the cache that they have filled."""

    def __init__(self, root: Path, act: Callable[[list[str]], Any]):
        self.root, self.act = root.resolve(), act
        self.cache = self.root / "cache"
        self.cache.mkdir(parents=True, exist_ok=True)

    def need(self, *names: str) -> None:
        """Make what is not there. Raises RuntimeError with the command's own words where it cannot be made."""
        for name in names:
            if name in NEEDS:
                self.need(NEEDS[name])
            run = self.root / name / "run.json"
            if not run.exists() or json.loads(run.read_text()).get("status") != "finished":
                shutil.rmtree(self.root / name, ignore_errors=True)
                self._make(name)

    def _make(self, name: str) -> None:
        said = self.root / f"{name}.txt"
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            code = 1
            try:
                with said.open("w") as f:
                    os.dup2(f.fileno(), 1)
                    os.dup2(f.fileno(), 2)
                os.environ["SSLT_CACHE"] = str(self.cache)
                os.chdir(self.root)
                argv = [f"from={self[a.partition('=')[2]]}" if a.startswith("from=") else a for a in MAKERS[name]]
                code = self.act([*argv, f"hydra.run.dir={name}"])
                sys.stdout.flush()
                sys.stderr.flush()
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        if os.waitpid(pid, 0)[1]:
            raise RuntimeError(f"{name} cannot be made:\n{said.read_text()[-2000:]}")

    def __getitem__(self, name: str) -> str:
        """Where a good run is."""
        return str(self.root / name)

    def copy(self, name: str, to: Path) -> Path:
        """A copy of a run, to be damaged."""
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.root / name, to, ignore=shutil.ignore_patterns("*.png", ".lock", ".hydra"))
        return to

    def fill(self, place: Place) -> None:
        """Give a case what the good runs have prepared."""
        shutil.copytree(self.cache, place.cache, dirs_exist_ok=True)


def interrupt(run: Path) -> Path:
    """Make a finished run one that was stopped after its last checkpoint; of a chain, its finetuning."""
    for folder in (run, run / "finetune"):
        about = folder / "run.json"
        if about.exists():
            about.write_text(json.dumps({**json.loads(about.read_text()), "status": "interrupted"}))
            (folder / "metrics.json").unlink(missing_ok=True)
            for part in ("encoder", "head", "plots"):
                shutil.rmtree(folder / part, ignore_errors=True)
    shutil.rmtree(run / "evaluate", ignore_errors=True)
    return run
