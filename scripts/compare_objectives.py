"""Every image objective on one data set, the same minutes each: docs/results/image_objectives.md and a picture beside it.

    python scripts/compare_objectives.py --data DIR [--minutes 4] [--size tiny] [--jobs 2] [--only simclr,mae] [--root FOLDER]
    python scripts/compare_objectives.py --dataset digits --minutes 0.2 --only simclr,byol      (needs no data)

Each cell is one `sslt` command in a run folder below --root; what is finished is not run again (remove a task's folders when its recipe
changes), what was interrupted goes on, and the document is written after every task. Each objective has its task's own encoder, or one of
--size in its place, and is measured before (the same kind of encoder, untrained, with the same seed) and after. Once all have been run,
the best five by the linear probe on the validation split, never on the test split, get two more seeds. --jobs commands run at a time,
with as many of the cores each.
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import os
import shlex
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
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
    "moco_v2": _QUICK_TEACHER,  # no worse than its own constant: 36.9 and 36.9 on the validation split
    "msn": _QUICK_TEACHER,
    "wmse": ["batch_size=256"],  # its whitening needs more samples than dimensions
}
# data set, minutes and --size → why an objective does not belong among those that learn there, found by looking into it
REASONS: dict[tuple[str, float, str], dict[str, str]] = {
    ("cifar10", 4, "tiny"): {
        "bigan": "after 300 steps G(E(x)) is as far from x as one image from another, which is 2: encoder and generator are not yet each "
        "other's inverse; four times the learning rate gives 1.8 and no better probe",
        "dino": "in 20 steps the teacher's targets become flat (the loss is all but log 1024 = 6.93), and 250 steps are too few to leave "
        "that; 256 prototypes, a warm-up of 30 % and prototypes frozen for a tenth of the run keep them from it, without a better "
        "probe: 33.4 against 33.8 on the validation split, in fewer steps",
        "moco_v2": "while the teacher moves fast, its older keys in the queue are told from new ones without looking at the images (75 % "
        "after 20 steps with a momentum of 0.9, whose probe is worse), and this help goes as it slows down; among 256 images the "
        "trained encoder finds the other view's key in 16 %, the untrained one in 7 %; with a queue of 1,024 the loss falls, "
        "without a better probe: 36.6 against 38.4 on the validation split, in fewer steps; a momentum that stays at 0.99, as the "
        "task has it, gives the same probe: 36.9 and 36.9 side by side",
    },
}
# where the encoders of texts and of histories are
TEXT = tuple(f"sslt.encoders.{name}." for name in ("text", "bag", "causal", "seq2seq", "histories"))
# the number whose fall is progress, where it is not the loss
CURVES = {"rbm": "reconstruction", "bigan": "reconstruction"}
# the step from which on a loss is compared with itself: until then MoCo's queue holds random vectors (4,096, of which a step replaces 128)
# and the centre of DINO and iBOT is near the 0 it starts at (a step renews a tenth of it), which makes the task easier than it is
SETTLED = {"moco_v2": 32, "dino": 30, "ibot": 30}
# data set → share of labels and settings of fine-tuning with few of them
FEW = {
    "cifar10": ("1 %", ["label_fraction=0.01", "batch_size=64", "trainer.max_steps=100", "optimizer.lr=0.001", "views.scale=[0.4,1.0]"]),
    "digits": ("10 %", ["label_fraction=0.1", "batch_size=64", "trainer.max_steps=50"]),
}
# data set → settings of the probes
PROBES = {"cifar10": ["labels_per_class=500"], "digits": []}
# --size → encoder of a task → its name in the table and the settings that make it: tiny for minutes on a core, large for a GPU
_TINY_VIT = ["+encoder.args.embed_dim=96", "+encoder.args.num_heads=3", "encoder.args.depth=4"]
_VIT_S = ["encoder.name=vit_small_patch16_224", "encoder.args.depth=12"]  # 384 wide, with patches of 4 pixels as before
SIZES: dict[str, dict[str, tuple[str, list[str]]]] = {
    "own": {},
    "tiny": {
        "resnet_small": ("ResNet, 16 to 128 wide", ["encoder.args.channels=[16,32,64,128]"]),
        "vit_small": ("ViT, 96 wide, 4 blocks, class token", _TINY_VIT),
        "vit_patches": ("ViT, 96 wide, 4 blocks", _TINY_VIT),
        "unet_small": ("U-Net, 16 to 64 wide", ["encoder.channels=[16,32,64]"]),
    },
    "large": {
        "resnet_small": ("ResNet-18", ["encoder=resnet18"]),
        "vit_small": ("ViT-S/4, class token", _VIT_S),
        "vit_patches": ("ViT-S/4", _VIT_S),
    },
}
BEST = 5
TEACHERS = """## The student and its teacher

Where a method has a momentum teacher, `encoder/` is the one of the two that its authors evaluate, and the other lies beside it:
`from=RUN/student`, `from=RUN/teacher`. The same probes of both:"""


def tasks() -> list[str]:
    """Every pretraining task on images that needs no teacher."""
    return [name for name in groups.options("task") if name != "distill" and not encoder_class(encoder_of(name)).startswith(TEXT)]


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


def _other(run: Run) -> str | None:
    """Of a run that leaves a student and its teacher, the folder of the one that its objective's authors do not evaluate."""
    return {"student": "teacher", "teacher": "student"}.get(run.metrics.get("encoder/is", ""))


class Comparison:
    """The cells of one data set and budget."""

    def __init__(self, cells: Cells, dataset: str, minutes: float, size: str, jobs: int = 1):
        self.cells, self.dataset, self.minutes, self.size, self.jobs = cells, dataset, minutes, size, jobs
        self.root, self.reasons = cells.root, REASONS.get((dataset, minutes, size), {})
        self.common = [f"data={dataset}", f"trainer.max_time={60 * minutes:g}", "batch_size=64", "online_probe.every_n_epochs=0"]

    def settings(self, task: str) -> list[str]:
        """Arguments of `sslt pretrain`."""
        _, settings = self.encoder(task)
        return [f"+task={task}", *self.common, *settings, *RECIPES.get(task, [])]

    def run(self, task: str, seed: int) -> tuple[str, str, int] | None:
        """Pretrain and measure with one seed; returns how to `measure` the same encoder untrained.

        A task that ends with a user's mistake (data it cannot read, NaN) is left at that, with None.
        """
        run = self.cells.run(f"{task}-{seed}-pretrain", "pretrain", *self.settings(task), f"seed={seed}", may_fail=True)
        if not run.finished:
            return None
        self.measure(f"{task}-{seed}", str(run.path), seed)
        if (other := _other(run)) is not None:
            self.probe(f"{task}-{seed}-{other}", str(run / other), seed)
        return f"{self.kind(run)}-{seed}", f"scratch:{run.path}", seed

    def run_all(self, tasks: Iterable[tuple[str, int]], out: Path) -> None:
        """Run tasks with their seeds, `jobs` at a time, each in a process that goes on with the next; write the document after each."""
        waiting: collections.deque[tuple[Any, ...]] = collections.deque((self.run, *task) for task in tasks)
        untrained: set[str] = set()
        busy: set[Future[Any]] = set()
        os.environ.setdefault("PYTHONSAFEPATH", "1")  # the processes begin with `python -c`, which would look into the working folder first
        with ProcessPoolExecutor(self.jobs, multiprocessing.get_context("spawn")) as pool:
            while waiting or busy:
                while waiting and len(busy) < self.jobs:
                    busy.add(pool.submit(*waiting.popleft()))
                done, busy = wait(busy, return_when=FIRST_COMPLETED)
                for start in (future.result() for future in done):
                    if start and start[0] not in untrained:  # one of its kind serves all tasks that have it
                        untrained.add(start[0])
                        waiting.appendleft((self.measure, *start))
                self.write(out)

    def measure(self, name: str, start: str, seed: int) -> None:
        """Probes of an encoder, and fine-tuning it with few labels."""
        self.probe(name, start, seed)
        few = [*FEW[self.dataset][1], "val_every_n_epochs=0", f"seed={seed}"]
        self.cells.run(f"{name}-finetune", "finetune", f"+target={self.dataset}", f"from={start}", *few, may_fail=True)

    def probe(self, name: str, start: str, seed: int) -> None:
        """Probes of an encoder."""
        probes = [f"from={start}", *PROBES[self.dataset], "shots=[]", "curve.fractions=[]", f"seed={seed}"]
        self.cells.run(f"{name}-evaluate", "evaluate", *probes, may_fail=True)

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
        steps, curve = MetricsCSV.read(run / "metrics.csv")[CURVES.get(task, "loss")]
        values = [value for step, value in zip(steps, curve, strict=True) if step >= SETTLED.get(task, 0)] or curve
        dim = int(read_json(run / "encoder" / "sslt.json")["dim"])
        epochs, rate = run.metrics["train/epochs"], run.metrics["throughput/samples_per_second"]
        found = Seed(epochs, rate, objective_table.ends(values), dim, *both)
        beside = _other(run)
        if beside is None:
            return found
        probes = Run(self.root / f"{task}-{seed}-{beside}-evaluate")
        evaluated = run.metrics["encoder/is"]
        return replace(found, both={evaluated: found.after, beside: probes.metrics}, evaluated=evaluated) if probes.finished else None

    def refused(self) -> dict[str, str]:
        """Tasks of which some command ended with an error, and what it said."""
        said = {task: [p.read_text().strip() for p in sorted(self.root.glob(f"{task}-{SEEDS[0]}-*/error.txt"))] for task in tasks()}
        return {task: lines[0] for task, lines in said.items() if lines}

    def encoder(self, task: str) -> tuple[str, list[str]]:
        """What a task's encoder is called in the table, and the settings that choose it."""
        return SIZES[self.size].get(encoder_of(task), (encoder_of(task), []))

    def write(self, out: Path) -> None:
        """The document and the picture."""
        found = self.found()
        objective_table.picture(found, out.with_suffix(".png"), f"{self.dataset}, {self.minutes:g} minutes each")
        encoders = {task: self.encoder(task)[0] for task in found}
        recipes = [f"- {task}: `{shlex.join(RECIPES[task])}`" for task in sorted(found) if RECIPES.get(task)]
        sizes = dict(self.encoder(task) for task in sorted(found))
        sized = [f"- {name}: `{shlex.join(settings)}`" for name, settings in sizes.items() if settings]
        refused = [f"- {task}: {said}" for task, said in self.refused().items()]
        few, settings = FEW[self.dataset]
        other = "; ".join(f"of {task}, whose loss is no measure, the {name} error" for task, name in CURVES.items())
        settled = "; ".join(f"of {task} from step {step} on" for task, step in SETTLED.items())
        parts = [
            "# Image objectives compared",
            f"Made by `python scripts/compare_objectives.py {self.arguments()}`; {about()}.",
            f"Each objective had {self.minutes:g} minutes of training: `sslt pretrain +task=NAME {shlex.join(self.common)}`. Numbers are "
            "of the test split and of the last step's encoder; before → after, where before is an untrained encoder of the same kind, with "
            f"the same seed. Probes: `sslt evaluate from=RUN {shlex.join(PROBES[self.dataset])}`. Fine-tuning is on {few} of the labels: "
            f"`{shlex.join(settings)}`. One seed, unless there is an interval "
            f"(95 %, Student's t): the best {BEST} by the linear probe on the validation split have {len(SEEDS)}.",
            f"An objective learns if its loss falls by {100 * objective_table.FALL:g} % or more ({other}; {settled}, as "
            "its queue or centre holds no data at first), its features do not collapse (RankMe and spread against the untrained "
            "encoder's, as `sslt pretrain` watches them) and a linear probe on them beats the untrained encoder's. What is said of the "
            "loss's fall and first steps was settled after a first look at CIFAR-10's numbers, where it changed no verdict.",
            f"![linear probe]({out.with_suffix('.png').name})\n\nThe line on a bar is the untrained encoder's; grey bars do not count as "
            "learning.",
            objective_table.table(found, encoders, few, self.reasons),
            *(["Settings of the encoders:\n\n" + "\n".join(sized)] if sized else []),
            *(["Settings other than the task's own, chosen on the validation split:\n\n" + "\n".join(recipes)] if recipes else []),
            *(["Could not be run or measured:\n\n" + "\n".join(refused)] if refused else []),
            *([f"{TEACHERS}\n\n{both}"] if (both := objective_table.teachers(found)) else []),
        ]
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("\n\n".join(parts) + "\n")

    def arguments(self) -> str:
        data = ["--data", "DIR"] if self.dataset != "digits" else ["--dataset", "digits"]
        size = ["--size", self.size] if self.size != "own" else []
        return shlex.join([*data, "--minutes", f"{self.minutes:g}", *size, *(["--jobs", str(self.jobs)] if self.jobs > 1 else [])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of data sets (data.root); digits needs none")
    parser.add_argument("--dataset", default="cifar10", choices=list(FEW))
    parser.add_argument("--minutes", type=float, default=4.0, help="of training, for each objective")
    parser.add_argument("--root", type=Path, help="where the run folders go (runs/objectives/…, by data set and minutes)")
    parser.add_argument("--out", type=Path, default=Path("docs/results/image_objectives.md"))
    parser.add_argument("--only", default=",".join(tasks()), help="tasks, with commas")
    parser.add_argument(
        "--size", default="own", choices=list(SIZES), help="of the encoders: own are those of the tasks, large is for a GPU"
    )
    parser.add_argument("--jobs", type=int, default=1, help="commands at a time, which share the cores")
    args = parser.parse_args()
    if args.data is None and args.dataset != "digits":
        parser.error("--data: say which folder holds the data sets")
    if args.data is not None and not Path(args.data).is_dir():
        parser.error(f"--data {args.data}: there is no such folder")
    if args.jobs < 1 or args.minutes <= 0:
        parser.error(f"--jobs {args.jobs} --minutes {args.minutes:g}: both must be above 0")
    names = args.only.split(",")
    if unknown := set(names) - set(tasks()):
        parser.error(f"--only {','.join(sorted(unknown))}: there is {', '.join(tasks())}")
    root = args.root or Path(f"runs/objectives/{args.dataset}-{args.minutes:g}-{args.size}")
    if args.jobs > 1:
        import torch

        threads = max(1, (os.cpu_count() or 1) // args.jobs)
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)
    comparison = Comparison(Cells(root, args.data or "."), args.dataset, args.minutes, args.size, args.jobs)
    comparison.run_all(((task, SEEDS[0]) for task in names), args.out)
    found = comparison.found()
    if missing := set(tasks()) - set(found) - set(comparison.refused()):
        print(f"more seeds for the best {BEST} once these are measured too: {', '.join(sorted(missing))}")
        return
    comparison.run_all(((task, seed) for task in objective_table.best(found, BEST) for seed in SEEDS[1:]), args.out)


if __name__ == "__main__":
    main()
