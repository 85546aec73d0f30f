"""The end of a run: its pictures, a small table, and what to type next."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sslt.runs import Run

log = logging.getLogger("sslt")


def write_plots(run: Run, learner: Any) -> None:
    """The curves, and one batch of the views that the encoder really saw. A picture that fails never fails a run."""
    if not run.is_main:
        return
    (run / "plots").mkdir(exist_ok=True)
    with reported("curves"):
        from sslt.report.plots import curves

        curves(run / "metrics.csv", run / "plots" / "curves.png")
    for name, views in (learner.first_views or {}).items():
        with reported("views"):
            if "image" in views:
                from sslt.data.views.image_views import to_pixels
                from sslt.report.plots import views_grid

                p = learner.encoder.processor
                shown = to_pixels(views["image"][:, :12].cpu(), list(p.mean), list(p.std))
                views_grid(shown, run / "plots" / f"views_{name}.png")
            elif "tokens" in views:
                _write_texts(run, learner.encoder.processor, views["tokens"], name)


def write_pictures(run: Run, learner: Any) -> dict[str, Path]:
    """What the objectives draw of what was learned, from a dozen samples of their stream, as pictures/NAME.png; name → file."""
    written: dict[str, Path] = {}
    if not run.is_main:
        return written
    with reported("objective's pictures"):
        for name, picture in learner.pictures().items():
            written[name] = draw(run, learner.encoder.processor, name, picture)
    return written


def draw(run: Run, processor: Any, name: str, picture: Any) -> Path:
    """A picture whose rows are as `processor` normalises images, as pictures/NAME.png."""
    from sslt.data.views.image_views import to_pixels
    from sslt.report.plots import picture_grid

    rows = {k: to_pixels(x.cpu(), list(processor.mean), list(processor.std)) for k, x in picture.rows.items()}
    path = run / "pictures" / f"{name}.png"
    picture_grid(rows, picture.captions, path)
    return path


def write_map(run: Run, features: Any, samples: Any) -> None:
    """A map of some features [N, D] of `samples`, coloured by label."""
    if not run.is_main:
        return
    import torch

    with reported("embeddings"):
        from sslt.report.plots import embedding_map

        labels = None if samples.labels is None else torch.as_tensor(samples.labels)
        embedding_map(features, labels, samples.names, run / "plots" / "embeddings.png", seed=0)


def _write_texts(run: Run, processor: Any, tokens: Any, name: str) -> None:
    """The first rows of text as the encoder saw them; tokens [B, L], or [V, B, L] for views."""
    rows = tokens.reshape(-1, tokens.shape[-1])[:8].cpu()
    shown = "\n\n".join(processor.decode(row.tolist()) for row in rows)
    (run / "plots" / f"views_{name}.txt").write_text(shown + "\n", encoding="utf-8")


@contextlib.contextmanager
def reported(what: str) -> Any:
    try:
        yield
    except Exception as e:  # a picture is never worth a run
        log.warning("the picture of the %s could not be drawn: %s", what, e)


def say_next(run: Run, metrics: dict[str, Any], commands: list[str], with_labels: str | None = None, remarks: Sequence[str] = ()) -> None:
    """Print the headline numbers, what there is to say of them, where everything lies, and the next command to type.

    with_labels: the command for which labels lack.
    """
    if not run.is_main:
        return
    from sslt.report.tables import print_table, summary

    rows = summary(metrics)
    if rows:
        print_table(str(run), rows)
    for remark in remarks:
        print(f"  {remark}")
    where = [
        p
        for p in ("metrics.json", "plots/", "pictures/", "predictions/", "encoder/", "student/", "teacher/", "raw/", "model/")
        if (run / p).exists()
    ]
    print(f"{run}: {', '.join(where)}")
    for command in commands:
        print(f"  next: {command}")
    if with_labels:
        print(f"  once you have labels: {with_labels}")
