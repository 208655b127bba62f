from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffvi._exceptions import InvalidInputError, listed, one_of, positive_int

from ._style import GENERATED, PALETTE, REAL, axes, finish


def score_table(
    table: pd.DataFrame,
    scores: Sequence[str] | None = None,
    n_columns: int = 4,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Figure | None:
    """Every score of a benchmark in a panel of its own: methods as points, the real-vs-real floor as a line.

    Parameters
    ----------
    table
        Result of :func:`~diffvi.benchmark.run_task` (or a CSV of it): one row a method, split, draw and score.
    scores
        Scores to draw; ``None`` for all but the costs.
    n_columns
        Panels in a row.
    show, save
        As in :func:`umap`.

    Returns
    -------
    The figure, or nothing where it has been shown.

    Raises
    ------
    InvalidInputError
        If the table lacks a column or a score, none of the scores has a value, or ``n_columns`` is not a whole number of
        at least 1.

    Examples
    --------
    >>> import diffvi
    >>> import pandas as pd
    >>> table = pd.DataFrame(
    ...     {
    ...         "method": ["diffvi", "scvi", "diffvi", "scvi"],
    ...         "score": ["w2", "w2", "label_agreement", "label_agreement"],
    ...         "value": [1.0, 1.2, 0.9, 0.8],
    ...         "floor": [0.8, 0.8, 0.9, 0.9],
    ...         "best": ["low", "low", "floor", "floor"],
    ...     }
    ... )
    >>> figure = diffvi.pl.score_table(table, n_columns=2, show=False)
    >>> [ax.get_title().splitlines() for ax in figure.axes]
    [['w2', '(lower is better)'], ['label agreement', '(best at the floor)']]
    """
    _check_columns(table, "method", "score", "value", "floor", "best")
    positive_int("n_columns", n_columns)
    for name in scores or ():
        one_of("scores", name, table["score"].unique())
    costs = ("fit_seconds", "seconds_per_10000", "peak_memory_mb")
    names = [s for s in table["score"].unique() if s not in costs] if scores is None else list(scores)
    names = [n for n in names if table.loc[table["score"] == n, "value"].notna().any()]
    if not names:
        raise InvalidInputError("`table` must have a value for at least one score to draw; it has none.")
    methods = list(table["method"].unique())[::-1]
    n_rows = -(-len(names) // n_columns)
    height = n_rows * (0.9 + 0.24 * len(methods))
    fig, grid = plt.subplots(
        n_rows, n_columns, figsize=(3 * n_columns + 1, height), sharey=True, layout="constrained", squeeze=False
    )
    for ax in grid.ravel()[len(names) :]:
        ax.set_visible(False)
    for ax, name in zip(grid.ravel(), names, strict=False):
        part = table[table["score"] == name]
        for i, method in enumerate(methods):
            rows = part[part["method"] == method]
            if rows["value"].notna().any():
                colour = GENERATED if method.startswith("diffvi") else REAL
                ax.plot(rows["value"], np.full(len(rows), i), "o", ms=3.5, c=colour, alpha=0.35, mew=0)
                ax.plot(rows["value"].mean(), i, "o", ms=7, c=colour)
        best, floor = part["best"].dropna().astype(str), part["floor"].mean()
        if np.isfinite(floor):
            ax.axvline(floor, c=PALETTE[0], lw=1.2, ls="--")
        hint = {"low": "lower is better", "high": "higher is better", "floor": "best at the floor"}
        wish = best.iloc[0] if len(best) else ""
        ax.set_title(f"{name.replace('_', ' ')}\n({hint.get(wish, f'best at {wish}')})" if wish else name, fontsize=9)
        ax.set_yticks(range(len(methods)), methods)
        ax.set_ylim(-0.6, len(methods) - 0.4)
        ax.tick_params(labelsize=8)
        ax.grid(axis="x", lw=0.4, alpha=0.5)
        ax.spines[["top", "right"]].set_visible(False)
        ax.locator_params(axis="x", nbins=4)
    return finish(fig, show, save)


def calibration(
    curves: np.ndarray | dict[str, np.ndarray],
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Figure | None:
    """Measured against nominal coverage of prediction intervals; a calibrated prediction lies on the diagonal.

    Parameters
    ----------
    curves
        Result of :func:`~diffvi.metrics.calibration_curve`, or several by name.
    ax
        Axes to draw into; ``None`` for a figure of its own.
    show, save
        As in :func:`umap`.

    Returns
    -------
    The figure, or nothing where it has been shown.

    Examples
    --------
    >>> import diffvi
    >>> import numpy as np
    >>> truth, draws = np.split(np.random.default_rng(0).normal(size=(101, 1000)), [1])
    >>> curves = {
    ...     name: diffvi.metrics.calibration_curve(truth[0], samples)
    ...     for name, samples in {"right": draws, "too narrow": draws / 2}.items()
    ... }
    >>> figure = diffvi.pl.calibration(curves, show=False)
    >>> [line.get_label() for line in figure.axes[0].lines]
    ['calibrated', 'right', 'too narrow']
    """
    fig, ax = axes(ax, (4, 3.8))
    named = curves if isinstance(curves, dict) else {"prediction": curves}
    ax.plot([0, 1], [0, 1], ":", c="k", lw=0.9, label="calibrated")
    for i, (name, curve) in enumerate(named.items()):
        ax.plot(curve[:, 0], curve[:, 1], "o-", ms=4, c=PALETTE[i % len(PALETTE)], label=name)
    ax.set(xlabel="nominal coverage", ylabel="measured coverage", xlim=(0, 1), ylim=(0, 1), title="Calibration")
    ax.set_aspect("equal")
    ax.legend(frameon=False)
    return finish(fig, show, save)


def nfe_quality(
    table: pd.DataFrame,
    score: str = "value",
    floor: float | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Figure | None:
    """Quality against the number of function evaluations, a line for each sampler.

    Parameters
    ----------
    table
        Columns ``sampler``, ``n_evaluations`` and the score.
    score
        Column to draw.
    floor
        Real-vs-real floor of the score; ``None`` for no line.
    ax
        Axes to draw into; ``None`` for a figure of its own.
    show, save
        As in :func:`umap`.

    Returns
    -------
    The figure, or nothing where it has been shown.

    Raises
    ------
    InvalidInputError
        If the table lacks a column.

    Examples
    --------
    >>> import diffvi
    >>> import pandas as pd
    >>> table = pd.DataFrame({"sampler": ["heun", "heun", "ddim", "ddim"], "n_evaluations": [10, 40, 10, 40]})
    >>> table["w2"] = [2.0, 1.0, 3.0, 1.5]
    >>> figure = diffvi.pl.nfe_quality(table, "w2", floor=0.8, show=False)
    >>> [line.get_label() for line in figure.axes[0].lines]
    ['heun', 'ddim', 'real-vs-real floor']
    """
    _check_columns(table, "sampler", "n_evaluations", score=score)
    fig, ax = axes(ax)
    for i, (name, rows) in enumerate(table.groupby("sampler", sort=False)):
        mean = rows.groupby("n_evaluations")[score].mean()
        ax.plot(mean.index, mean, "o-", ms=4, c=PALETTE[i % len(PALETTE)], label=str(name))
    if floor is not None:
        ax.axhline(floor, c="k", lw=0.9, ls="--", label="real-vs-real floor")
    ticks = sorted(table["n_evaluations"].unique())
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.minorticks_off()
    ax.set(xlabel="function evaluations", ylabel=score.replace("_", " "), title="Sampling steps")
    ax.legend(frameon=False, fontsize=9)
    return finish(fig, show, save)


def guidance_diversity(
    table: pd.DataFrame,
    fidelity: str = "label_agreement",
    diversity: str = "recall",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Figure | None:
    """What guidance buys and costs: a fidelity score against a diversity score, one point for each scale.

    Parameters
    ----------
    table
        Column ``guidance_scale`` and the two scores; rows of one scale are averaged.
    fidelity, diversity
        Columns to draw.
    ax
        Axes to draw into; ``None`` for a figure of its own.
    show, save
        As in :func:`umap`.

    Returns
    -------
    The figure, or nothing where it has been shown.

    Raises
    ------
    InvalidInputError
        If the table lacks a column.

    Examples
    --------
    >>> import diffvi
    >>> import pandas as pd
    >>> table = pd.DataFrame(
    ...     {"guidance_scale": [1, 2, 4], "label_agreement": [0.8, 0.9, 0.95], "recall": [0.7, 0.6, 0.4]}
    ... )
    >>> figure = diffvi.pl.guidance_diversity(table, show=False)
    >>> figure.axes[0].get_xlabel(), [point.get_text() for point in figure.axes[0].texts]
    ('recall', ['1', '2', '4'])
    """
    _check_columns(table, "guidance_scale", fidelity=fidelity, diversity=diversity)
    fig, ax = axes(ax)
    mean = table.groupby("guidance_scale")[[fidelity, diversity]].mean()
    ax.plot(mean[diversity], mean[fidelity], "o-", ms=5, c=PALETTE[0])
    for scale, row in mean.iterrows():
        ax.annotate(
            f"{scale:g}", (row[diversity], row[fidelity]), xytext=(5, 4), textcoords="offset points", fontsize=9
        )
    ax.margins(0.12)
    ax.set(
        xlabel=diversity.replace("_", " "),
        ylabel=fidelity.replace("_", " "),
        title="Guidance scale: fidelity and diversity",
    )
    return finish(fig, show, save)


def _check_columns(table: pd.DataFrame, *columns: str, **named: str) -> None:
    """Raise unless the table has these columns and those that arguments name."""
    for column in columns:
        if column not in table:
            raise InvalidInputError(f"`table` has no column {column!r}; it has {listed(table)}.")
    for argument, column in named.items():
        one_of(argument, column, table)
