"""Every image objective on one data set, the same minutes each: docs/results/image_objectives.md and a picture beside it.

    python scripts/compare_objectives.py --data DIR [--minutes 4] [--only simclr,mae] [--root FOLDER] [--large]
    python scripts/compare_objectives.py --dataset digits --minutes 0.2 --only simclr,byol      (needs no data)

Each cell is one `sslt` command in a run folder below --root; what is finished is not run again (remove a task's folders when its recipe
changes), what was interrupted goes on, and the document is written after every task. Each objective has its task's own encoder and is
measured before (the same kind of encoder, untrained, with the same seed) and after. Once all have been run, the best five by the linear
probe on the validation split, never on the test split, get two more seeds.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

import objective_table
import yaml
from cells import SEEDS, Cells, about
from objective_table import Seed

from sslt import groups
from sslt.data.cache import digest
from sslt.report.curves import MetricsCSV
from sslt.runs import Run, read_json

# settings of one task on this budget, tuned on the validation split
_QUICK_TEACHER = ["objective.momentum=0.99"]  # the tasks' own are for more than the few hundred steps of some minutes
RECIPES: dict[str, list[str]] = {
    "data2vec": _QUICK_TEACHER,
    "dino": _QUICK_TEACHER,
    "ibot": _QUICK_TEACHER,
    "ijepa": _QUICK_TEACHER,
    "msn": _QUICK_TEACHER,
    "wmse": ["batch_size=256"],  # its whitening needs more samples than dimensions
}
# why an objective does not belong among those that learn here, found by looking into it
REASONS: dict[str, str] = {}
# the number whose fall is progress, where it is not the loss
CURVES = {"rbm": "reconstruction"}
# data set → share of labels and settings of fine-tuning with few of them
FEW = {
    "cifar10": ("1 %", ["label_fraction=0.01", "batch_size=64", "trainer.max_steps=150", "optimizer.lr=0.0005", "views.scale=[0.4,1.0]"]),
    "digits": ("10 %", ["label_fraction=0.1", "batch_size=64", "trainer.max_steps=50"]),
}
# data set → settings of the probes
PROBES = {"cifar10": ["labels_per_class=1000"], "digits": []}
# --large: what stands for an encoder of a small machine on a GPU
_VIT_S = ["encoder.name=vit_small_patch16_224", "encoder.args.depth=12"]  # 384 wide, with patches of 4 pixels as before
LARGE = {"resnet_small": ["encoder=resnet18"], "vit_small": _VIT_S, "vit_patches": _VIT_S}
BEST = 5


def tasks() -> list[str]:
    """Every pretraining task on images."""
    return [name for name in groups.options("task") if ".text." not in encoder_class(encoder_of(name))]


def encoder_of(task: str) -> str:
    """The encoder= that a task's YAML names."""
    chosen = _yaml("task", task)["defaults"]
    return next(item["override /encoder"] for item in chosen if isinstance(item, dict) and "override /encoder" in item)


def encoder_class(name: str) -> str:
    """The class that an encoder's YAML names, or the one it is made from does."""
    node = _yaml("encoder", name)
    if "_target_" in node:
        return node["_target_"]
    return encoder_class(next(base for base in node["defaults"] if isinstance(base, str) and base != "_self_"))


def _yaml(group: str, name: str) -> dict[str, Any]:
    return yaml.safe_load((groups.CONFIG_DIR / group / f"{name}.yaml").read_text())


class Comparison:
    """The cells of one data set and budget."""

    def __init__(self, cells: Cells, dataset: str, minutes: float, large: bool):
        self.cells, self.dataset, self.minutes, self.large = cells, dataset, minutes, large
        self.root = cells.root
        self.common = [f"data={dataset}", f"trainer.max_time={60 * minutes:g}", "batch_size=64", "online_probe.every_n_epochs=0"]

    def settings(self, task: str) -> list[str]:
        """Arguments of `sslt pretrain`."""
        large = LARGE.get(encoder_of(task), []) if self.large else []
        return [f"+task={task}", *self.common, *large, *RECIPES.get(task, [])]

    def run(self, task: str, seed: int) -> None:
        """Pretrain and measure with one seed. A task that ends with a user's mistake (data it cannot read, NaN) is left at that."""
        run = self.cells.run(f"{task}-{seed}-pretrain", "pretrain", *self.settings(task), f"seed={seed}", may_fail=True)
        if run.finished:
            self.measure(f"{task}-{seed}", str(run.path), seed)
            self.measure(f"{self.kind(run)}-{seed}", f"scratch:{run.path}", seed)

    def measure(self, name: str, start: str, seed: int) -> None:
        """Probes of an encoder, and fine-tuning it with few labels."""
        probes = [f"from={start}", *PROBES[self.dataset], "shots=[]", "curve.fractions=[]", f"seed={seed}"]
        self.cells.run(f"{name}-evaluate", "evaluate", *probes, may_fail=True)
        few = [*FEW[self.dataset][1], "val_every_n_epochs=0", f"seed={seed}"]
        self.cells.run(f"{name}-finetune", "finetune", f"+target={self.dataset}", f"from={start}", *few, may_fail=True)

    def kind(self, run: Run) -> str:
        """Folder name of the untrained encoders of the same kind as a run's: made once for all tasks that have it."""
        from omegaconf import OmegaConf

        return f"untrained-{digest(OmegaConf.to_yaml(run.config.encoder))[:8]}"

    # ---------------------------------------------------------------- what was found
    def found(self) -> dict[str, list[Seed]]:
        """Of every task that is wholly measured, its seeds."""
        seeds = {task: [self.seed(task, seed) for seed in SEEDS] for task in tasks()}
        return {task: [s for s in some if s is not None] for task, some in seeds.items() if some[0] is not None}

    def seed(self, task: str, seed: int) -> Seed | None:
        """What is known of one seed, or None while something is missing."""
        run = Run(self.root / f"{task}-{seed}-pretrain")
        if not run.finished:
            return None
        both = []
        for name in (f"{self.kind(run)}-{seed}", f"{task}-{seed}"):
            probes, tuned = Run(self.root / f"{name}-evaluate"), Run(self.root / f"{name}-finetune")
            if not (probes.finished and tuned.finished):
                return None
            both.append({**probes.metrics, "finetuned": tuned.metrics["test/accuracy"]})
        values = MetricsCSV.read(run / "metrics.csv")[CURVES.get(task, "loss")][1]
        dim = int(read_json(run / "encoder" / "sslt.json")["dim"])
        epochs, rate = run.metrics["train/epochs"], run.metrics["throughput/samples_per_second"]
        return Seed(epochs, rate, objective_table.ends(values), dim, *both)

    def refused(self) -> dict[str, str]:
        """Tasks of which some command ended with an error, and what it said."""
        said = {task: [p.read_text().strip() for p in sorted(self.root.glob(f"{task}-{SEEDS[0]}-*/error.txt"))] for task in tasks()}
        return {task: lines[0] for task, lines in said.items() if lines}

    def encoder(self, task: str) -> str:
        """What a task's encoder is called in the table."""
        large = LARGE.get(encoder_of(task), []) if self.large else []
        return large[0].partition("=")[2] if large else encoder_of(task)

    def write(self, out: Path) -> None:
        """The document and the picture."""
        found = self.found()
        objective_table.picture(found, out.with_suffix(".png"), f"{self.dataset}, {self.minutes:g} minutes each")
        encoders = {task: self.encoder(task) for task in found}
        recipes = [f"- {task}: `sslt pretrain {shlex.join(self.settings(task))}`" for task in sorted(found) if RECIPES.get(task)]
        refused = [f"- {task}: {said}" for task, said in self.refused().items()]
        few, settings = FEW[self.dataset]
        other = "; ".join(f"of {task}, whose loss is no measure, the {name} error" for task, name in CURVES.items())
        parts = [
            "# Image objectives compared",
            f"Made by `python scripts/compare_objectives.py {self.arguments()}`; {about()}.",
            f"Each objective had {self.minutes:g} minutes of training: `sslt pretrain +task=NAME {shlex.join(self.common)}`. Numbers are "
            "of the test split and of the last step's encoder; before → after, where before is an untrained encoder of the same kind, with "
            f"the same seed. Probes: `sslt evaluate from=RUN {shlex.join(PROBES[self.dataset])}`. Fine-tuning is on {few} of the labels: "
            f"`{shlex.join(settings)}`. One seed, unless there is an interval "
            f"(95 %, Student's t): the best {BEST} by the linear probe on the validation split have {len(SEEDS)}.",
            f"An objective learns if its loss falls ({other}), its features do not collapse (RankMe and spread against the untrained "
            "encoder's, as `sslt pretrain` watches them) and a linear probe on them beats the untrained encoder's.",
            f"![linear probe]({out.with_suffix('.png').name})\n\nThe line on a bar is the untrained encoder's; grey bars do not count as "
            "learning.",
            objective_table.table(found, encoders, few, REASONS),
            *(["Settings other than the task's own, chosen on the validation split:\n\n" + "\n".join(recipes)] if recipes else []),
            *(["Could not be run or measured:\n\n" + "\n".join(refused)] if refused else []),
        ]
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("\n\n".join(parts) + "\n")

    def arguments(self) -> str:
        data = ["--data", "DIR"] if self.dataset != "digits" else ["--dataset", "digits"]
        return shlex.join([*data, "--minutes", f"{self.minutes:g}", *(["--large"] if self.large else [])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of data sets (data.root); digits needs none")
    parser.add_argument("--dataset", default="cifar10", choices=list(FEW))
    parser.add_argument("--minutes", type=float, default=4.0, help="of training, for each objective")
    parser.add_argument("--root", type=Path, help="where the run folders go (runs/objectives/…, by data set and minutes)")
    parser.add_argument("--out", type=Path, default=Path("docs/results/image_objectives.md"))
    parser.add_argument("--only", default=",".join(tasks()), help="tasks, with commas")
    parser.add_argument("--large", action="store_true", help="ResNet-18 and ViT-S in place of the small encoders, for a GPU")
    args = parser.parse_args()
    if args.data is None and args.dataset != "digits":
        parser.error("--data: say which folder holds the data sets")
    names = args.only.split(",")
    if unknown := set(names) - set(tasks()):
        parser.error(f"--only {','.join(sorted(unknown))}: there is {', '.join(tasks())}")
    root = args.root or Path(f"runs/objectives/{args.dataset}-{args.minutes:g}{'-large' if args.large else ''}")
    comparison = Comparison(Cells(root, args.data or "."), args.dataset, args.minutes, args.large)
    for task in names:
        comparison.run(task, SEEDS[0])
        comparison.write(args.out)
    found = comparison.found()
    if missing := set(tasks()) - set(found) - set(comparison.refused()):
        print(f"more seeds for the best {BEST} once these are measured too: {', '.join(sorted(missing))}")
        return
    for task in objective_table.best(found, BEST):
        for seed in SEEDS[1:]:
            comparison.run(task, seed)
            comparison.write(args.out)


if __name__ == "__main__":
    main()
