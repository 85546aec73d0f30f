"""Speed of pretraining against a bare PyTorch loop, LightlySSL and Hugging Face's Trainer, in one process and one run.

    python scripts/bench_pretrain.py [--rounds 5] [--only simclr,mae,mlm,augment,start] [--memory] [--json FILE] [--data FOLDER]

Contenders take turns (A B C A B C ...); a ratio is the median over rounds of theirs / ours in the same round. Set-up and
the first steps of a round are not counted. With a GPU, ResNet-50 and ViT-S/16 at 224 pixels and BERT-base are measured too.
The peers are an extra: pip install -e '.[peers]'.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from bench import bare, hugging_face, lightly_images, memory, ours
from bench.ceiling import ceiling
from bench.rounds import Comparison, Contender, Watch, measure
from bench.start import measure_start
from cells import cpu_name

from sslt.data import cache

GPU = torch.cuda.is_available()
WARM = 10 if GPU else 2  # steps of a round that are not counted
BARE = 1  # place of the bare loop among the contenders on images


@dataclasses.dataclass
class Method:
    """A task on images and what it is held against. encoders: pixels → name and overrides. limit, aim: targets of the ratio."""

    title: str
    encoders: dict[int, tuple[str, list[str]]]
    bare: Callable[[ours.Pretraining], bare.Method]
    lightly: type[lightly_images.Example]
    limit: float = 0.9
    aim: float = 1.5


_RESNETS = {32: ("CIFAR ResNet-18", ["encoder=resnet18"]), 224: ("ResNet-50", ["encoder=resnet50"])}
_VIT_S = ["encoder.name=vit_small_patch16_224", "encoder.args.patch_size=16", "encoder.args.depth=12", "encoder.processor.size=224"]
_VITS = {32: ("ViT of 6 blocks, 192 wide", ["encoder=vit_patches"]), 224: ("ViT-S/16", ["encoder=vit_patches", *_VIT_S])}
METHODS = {
    "simclr": Method("SimCLR", _RESNETS, bare.simclr, lightly_images.SimCLR, 0.92, 2.0),
    "byol": Method("BYOL", _RESNETS, bare.byol, lightly_images.BYOL),
    "dino": Method("DINO, multi-crop", _RESNETS, bare.dino, lightly_images.DINO),
    "mae": Method("MAE", _VITS, bare.mae, lightly_images.MAE),
    "barlow_twins": Method("Barlow Twins", _RESNETS, bare.barlow_twins, lightly_images.BarlowTwins),
}


def main() -> None:
    """Measure what was asked for, print one table each, and write the numbers."""
    args = _arguments()
    found: dict[str, Any] = {"machine": machine(), "rounds": args.rounds, "comparisons": [], "start": []}
    with tempfile.TemporaryDirectory(prefix="sslt-bench-") as name:
        folder = Path(name)
        cache.set_cache_dir(folder / "cache")
        if args.memory_of is not None:
            _, make = next(_comparisons(args, folder))
            return memory.report(make().contenders[0])
        print("  ".join(f"{k}: {v}" for k, v in found["machine"].items()))
        for arguments, make in _comparisons(args, folder):
            result = compare(make(), args.rounds, is_images=bool(arguments))
            found["comparisons"].append(result)
            if args.memory and arguments:
                names = [row["name"] for row in result["rows"]]
                result["memory"] = memory.measure_memory(__file__, arguments, names)
                show_memory(result["memory"])
        if "start" in args.only:
            found["start"] = measure_start(args.rounds, folder)
            show_start(found["start"])
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


def compare(comparison: Comparison, rounds: int, is_images: bool) -> dict[str, Any]:
    """Measure contenders and print their table; of images, whose bare loop is known, also what the machine allows."""
    result = measure(comparison, rounds)
    show(result)
    if is_images:
        result["ceiling"] = ceiling(comparison.contenders[BARE], comparison.units)
        show_ceiling(result)
    return result


def _arguments() -> argparse.Namespace:
    parts = (*METHODS, "mlm", "augment", "start")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of every contender")
    parser.add_argument("--only", default=",".join(parts), help="some of: " + ",".join(parts))
    parser.add_argument("--json", type=Path, help="file for all numbers, round by round")
    parser.add_argument("--data", type=lambda p: str(Path(p).resolve()), help="folder with CIFAR-10, instead of generated images")
    parser.add_argument("--steps", type=int, help="counted steps a round, instead of each comparison's own number")
    parser.add_argument("--batch", type=int, help="batch size of images, instead of 128 (512 on a GPU)")
    parser.add_argument("--memory", action="store_true", help="also the peak memory of the contenders on images, each in its own process")
    parser.add_argument("--sizes", default="32,224" if GPU else "32", help="pixels of the images")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.only = args.only.split(",")
    args.sizes = [int(size) for size in args.sizes.split(",")]
    if unknown := set(args.only) - set(parts):
        parser.error(f"--only {','.join(sorted(unknown))}: there is {', '.join(parts)}")
    if unknown := set(args.sizes) - {32, 224}:
        parser.error(f"--sizes {','.join(map(str, sorted(unknown)))}: there is 32, 224")
    return args


def _comparisons(args: argparse.Namespace, folder: Path) -> Iterator[tuple[list[str], Callable[[], Comparison]]]:
    """What to compare, built one at a time, so that each has the memory to itself; and, of images, the arguments that ask for it."""
    for name in METHODS:
        for size in args.sizes if name in args.only else ():
            data = args.data if size == 32 else None
            batch = args.batch or ((512 if GPU else 128) if size == 32 else 256)
            arguments = ["--only", name, "--sizes", str(size), "--batch", str(batch), *(["--data", data] if data else [])]
            steps = args.steps or (6 if not GPU else 40 if size == 32 else 20)
            # by their defaults, because what is made here is called later
            yield arguments, lambda n=name, s=size, b=batch, t=steps, d=data: images(n, s, b, t, folder, d, args.memory_of)
    if "mlm" in args.only:
        for dropout in (True, False):
            mini = 256 if GPU else 32, 128, args.steps or (60 if GPU else 15), folder, dropout
            yield [], lambda mini=mini: mlm("BERT-mini", "bert_mini", *mini)
        if GPU:
            yield [], lambda: mlm("BERT-base", "bert_base", 64, 512, args.steps or 20, folder, True)
    if "augment" in args.only:
        yield [], lambda: augment(32, 32, 256, args.steps or 8, target=8.0)
        yield [], lambda: augment(256, 224, 32, args.steps or 4, target=1.0)


def images(task: str, size: int, batch: int, steps: int, folder: Path, data: str | None, only: int | None = None) -> Comparison:
    """A task by sslt, by a loop without data path, and by LightlySSL at its own and at our precision.

    only: one of these alone, with LightlySSL's loader in the process itself.
    """
    method = METHODS[task]
    title, encoder = method.encoders[size]
    job = ours.images(task, encoder, size, batch, WARM + steps, folder, data)
    workers = 0 if only is not None else lightly_images.best_workers(job, method.lightly, job.precision)

    def lightly(precision: str, name: str = "") -> Contender:
        run = lightly_images.training(job, method.lightly, precision, workers)
        return Contender(f"LightlySSL ({workers} workers){name}", precision, run, method.aim)

    makers: list[Callable[[], Contender]] = [
        lambda: Contender("sslt", job.precision, job.run, tuned=True),
        lambda: Contender("bare loop, views ready", job.precision, bare.images(job, method.bare), method.limit, tuned=True),
        lambda: lightly("32-true"),
        *([lambda: lightly(job.precision, ", same precision")] if job.precision != "32-true" else []),
    ]
    if GPU:
        makers.append(lambda: compiled(job))
    contenders = [make() for i, make in enumerate(makers) if only in (None, i)]
    what = "CIFAR-10" if data else "generated images"
    return Comparison(f"{method.title}, {title}, {size} px, {what}, batch {batch}", "images", batch, contenders, WARM, steps)


def mlm(title: str, encoder: str, batch: int, length: int, steps: int, folder: Path, dropout: bool) -> Comparison:
    """Masked language modelling by sslt, by a loop without data path, and by Hugging Face at its own and at our precision.

    dropout: BERT's own on all sides, or none on any.
    """
    job = ours.mlm(encoder, batch, length, WARM + steps, folder, dropout)
    small = encoder == "bert_mini"  # the targets are set for it: in a large model the vocabulary weighs less
    contenders = [
        Contender("sslt", job.precision, job.run, tuned=True),
        Contender("bare loop, tokens masked", job.precision, bare.mlm(job), 0.92, tuned=True),
        Contender("Hugging Face Trainer", "32-true", hugging_face.mlm(job, False, folder / "hf"), 4.5 if small else None),
    ]
    if job.precision.startswith("bf16"):
        run = hugging_face.mlm(job, True, folder / "hf")
        contenders.append(Contender("Hugging Face Trainer, same precision", job.precision, run, 3.0 if small else None))
    if GPU:
        contenders.append(compiled(job))
    return Comparison(
        f"MLM, {title}, {'dropout 0.1' if dropout else 'no dropout'}, {batch} x {length} tokens",
        "tokens",
        batch * length,
        contenders,
        WARM,
        steps,
    )


def compiled(job: ours.Pretraining) -> Contender:
    return Contender("sslt, trainer.compile=true", job.precision, job.compiled().run, tuned=True)


def augment(size_in: int, size: int, batch: int, steps: int, target: float) -> Comparison:
    """Two views of every image on one core: batched, and image by image."""
    images = ours.smooth_images(batch, size_in)
    ready = torch.from_numpy(images).permute(0, 3, 1, 2)
    views = ours.augmenter(blur=0.5 if size > 32 else 0.0)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

    def batched(watch: Watch) -> None:
        with torch.no_grad():
            watch.drive(lambda: views.augment(ready, size, mean, std))

    theirs = lightly_images.augment(images, size)
    contenders = [Contender("sslt", "32-true", batched), Contender("LightlySSL", "32-true", theirs, target)]
    title = f"two SimCLR views, {size_in} to {size} px{', blur 0.5' if size > 32 else ''}, batch {batch}, one core"
    return Comparison(title, "images", batch, contenders, warm=1, steps=steps, threads=1)


# ---------------------------------------------------------------- what is printed
def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    from importlib.metadata import PackageNotFoundError, version

    about = {}
    for name in ("torch", "pytorch-lightning", "lightly", "transformers", "timm"):
        with contextlib.suppress(PackageNotFoundError):  # of the peers, which `--only start` does without
            about[name] = version(name)
    gpu = torch.cuda.get_device_name(0) if GPU else "none"
    return {"cpu": cpu_name(), "threads": torch.get_num_threads(), "gpu": gpu, "python": platform.python_version(), **about}


def show(result: dict[str, Any]) -> None:
    """One comparison as a Markdown table."""
    unit = result["unit"]
    rows = []
    for row in result["rows"]:
        cells = [row["name"], row["precision"], f"{row['per_second']:,.0f}", "", "", ""]
        if "ratio" in row:
            low, high = row["ratio_range"]
            cells[3:5] = [f"{row['ratio']:.2f}", f"{low:.2f} to {high:.2f}"]
            if row["target"] is not None:
                cells[5] = f"{row['target']:g}: {'reached' if row['ratio'] >= row['target'] else 'missed'}"
        rows.append(cells)
    title = f"{result['title']}, {result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    _table(title, ["", "precision", f"{unit}/s", "sslt / this", "over rounds", "target"], rows)


def show_start(rows: list[dict[str, Any]]) -> None:
    """Start-up as a Markdown table."""
    cells = [[r["name"], f"{r['cpu_seconds']:.2f}", f"{r['wall_seconds']:.2f}", f"{r['wall_of_imports']:.2f}"] for r in rows]
    _table("start, caches filled", ["command", "CPU s", "wall s", "wall / imports"], cells)


def show_ceiling(result: dict[str, Any]) -> None:
    """How near ours and the bare loop come to what the machine's arithmetic allows."""
    found, unit = result["ceiling"], result["unit"]
    shares = [f"{result['rows'][i]['per_second'] / found['per_second']:.0%}" for i in (0, BARE)]
    print(
        f"\nOne of the {unit} takes {found['operations'] / 1e9:.2f} billion operations; the fastest matrix product here does "
        f"{found['peak'] / 1e9:,.0f} billion a second, so that {found['per_second']:,.1f} {unit}/s are the most. Of that sslt reaches "
        f"{shares[0]}, the bare loop {shares[1]}."
    )


def show_memory(rows: list[dict[str, Any]]) -> None:
    """Peak memory as a Markdown table."""
    where = "GPU" if GPU else "process"
    cells = [[r["name"], f"{r['peak'] / 2**20:,.0f}", f"{r['training'] / 2**20:,.0f}"] for r in rows]
    _table(f"peak memory of the {where}, MiB, each alone", ["", "in all", "since training began"], cells)


def _table(title: str, head: list[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.MARKDOWN)
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(f"\n{title}\n")
    console.print(table)


if __name__ == "__main__":
    try:
        main()
    except ModuleNotFoundError as e:
        if e.name not in ("lightly", "accelerate"):
            raise
        sys.exit(f"this comparison needs {e.name}: pip install -e '.[peers]'")
