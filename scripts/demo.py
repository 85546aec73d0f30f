"""The first five minutes: pretrain → finetune → evaluate on embedded images and text, then show what pretraining gained.

    python scripts/demo.py [--folder .demo]

Needs no data and no network. Every step is an ordinary `sslt` command, printed before it runs; run again, it shows what is there.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from pathlib import Path

IMAGES = ["data=digits", "views.flip=0", "views.scale=[0.5,1.0]", "trainer.max_epochs=40"]
TEXT = ["data=docs", "trainer.max_epochs=16"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", default=".demo")
    folder = Path(parser.parse_args().folder)
    os.environ.setdefault("SSLT_CACHE", str(folder.absolute() / "cache"))

    from sslt.cli import main as sslt
    from sslt.report.tables import markdown_table, print_table
    from sslt.runs import Run

    def run(name: str, *command: str) -> Run:
        found = Run(folder / name)
        if not found.finished:
            print(f"\n$ sslt {shlex.join(command)}", flush=True)
            if code := sslt([*command, f"hydra.run.dir={folder / name}", "resume=auto"]):
                sys.exit(code)
        return found

    started = time.time()
    rows = []
    for kind, task, settings, target, tune in (
        ("images", "simclr", IMAGES, "digits", ["labels_per_class=2", "trainer.max_steps=150"]),
        ("text", "crops", TEXT, "docs", ["labels_per_class=20", "trainer.max_steps=150"]),
    ):
        pretrained = run(f"{task}-{kind}", "pretrain", f"+task={task}", *settings)
        start = f"from={pretrained.path}"
        tuned = run(f"{target}-finetuned", "finetune", f"+target={target}", start, *tune, "val_every_n_epochs=0", "compare=scratch")
        measured = run(f"{target}-measured", "evaluate", start, "shots=[5]").metrics
        cheap = measured["baseline/accuracy"], measured["baseline/method"]
        rows.append((kind, "kNN of frozen features", measured["untrained/knn/accuracy"], measured["knn/accuracy"], *cheap))
        rows.append((kind, "linear probe", measured["untrained/linear/accuracy"], measured["linear/accuracy"], *cheap))
        few, cheap = tuned.metrics, (tuned.metrics["baseline/accuracy"], tuned.metrics["baseline/method"])
        rows.append((kind, f"fine-tuned on {few['train/labels']} labels", few["scratch/test/accuracy"], few["test/accuracy"], *cheap))

    table = [
        {"data": k, "test accuracy": n, "untrained": _p(a), "pretrained": _p(b), "cheap method": f"{_p(c)} ({m})"}
        for k, n, a, b, c, m in rows
    ]
    print()
    print_table("What pretraining gained, beside the strongest cheap method on the same labels", table)
    (folder / "results.md").write_text(markdown_table(table) + "\n")
    print(f"{time.time() - started:.0f} s. The table is in {folder}/results.md; look at the pictures, for instance")
    for picture in (
        "simclr-images/plots/views_pretrain.png",
        "digits-measured/plots/embeddings.png",
        "digits-finetuned/plots/confusion.png",
    ):
        print(f"  {folder / picture}")


def _p(value: float) -> str:
    return f"{100 * value:.1f} %"


if __name__ == "__main__":
    main()
