"""How much commands of tests spend on their pictures, which is more than they spend on training.

With `roughly` features are shown by principal components and not by t-SNE; with `blank` figures are made and written, but not drawn.
"""

from __future__ import annotations

import sys

from matplotlib.figure import Figure

from sslt.report import plots

_TRULY = (plots.MIN_TSNE, Figure.draw)


def truly() -> None:
    plots.MIN_TSNE, Figure.draw = _TRULY  # type: ignore[method-assign]


def roughly() -> None:
    plots.MIN_TSNE = sys.maxsize


def blank() -> None:
    roughly()
    Figure.draw = lambda self, renderer: None  # type: ignore[method-assign]
