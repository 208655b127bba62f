from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

REAL, GENERATED = "#4d4d4d", "#d55e00"  # Okabe and Ito's palette: told apart by colour-blind readers
PALETTE = [
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#f0e442",
    "#000000",
    "#999999",
    "#882255",
    "#44aa99",
    "#ddcc77",
]
"""Colours of categories, in the order in which they are given out; after the last it starts again."""


def axes(ax: Axes | None, figsize: tuple[float, float] = (4.6, 3.6)) -> tuple[Figure, Axes]:
    """The given axes with their figure, or new ones."""
    if ax is not None:
        figure = ax.get_figure(root=True)
        assert figure is not None
        return figure, ax
    fig, ax = plt.subplots(figsize=figsize, layout="constrained")
    return fig, ax


def finish(fig: Figure, show: bool | None, save: str | Path | None) -> Figure | None:
    """Save and show a figure as scanpy does."""
    if save is not None:
        fig.savefig(save, dpi=150, bbox_inches="tight")
    if show is None:
        show = plt.isinteractive()
    if show:
        plt.show()
        return None
    return fig
