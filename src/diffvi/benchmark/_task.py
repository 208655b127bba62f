"""What a benchmark task is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from anndata import AnnData

from ._options import Options


@dataclass(frozen=True)
class Split:
    """One way of holding cells out: its name, training and held-out parts, and what else the task needs.

    Parameters
    ----------
    name
        What is held out.
    train, test
        Cells, or whatever the methods of the task are given.
    extra
        What else the task needs to ask a method and to score its answer.

    Examples
    --------
    >>> from diffvi.benchmark import TASKS, Options
    >>> from diffvi.datasets import simulate_tissue
    >>> [(split.name, len(split.test[0])) for split in TASKS["space"].splits(simulate_tissue(100, 20), Options())]
    [('random locations', 35), ('disc', 35)]
    """

    name: str
    train: Any
    test: Any
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A task: its splits, its methods, and how one fitted method is asked and scored.

    Parameters
    ----------
    name, description
        For ``diffvi benchmark --list``.
    methods
        Makes the methods, our own and the baselines.
    splits
        Splits of a data set.
    fit
        Fits a method on a split.
    draw
        Asks a fitted method for an answer, given a seed; returns it and the number of cells in it.
    score
        Scores an answer: rows with at least ``score`` and ``value``, and any of ``low``, ``high``, ``floor``, ``best``.
    stochastic
        Whether several draws are worth scoring.

    Examples
    --------
    >>> from diffvi.benchmark import TASKS, Options
    >>> [method.name for method in TASKS["trajectory"].methods(Options())]
    ['diffvi', 'copy previous', 'copy next', 'pooled', 'OT linear', 'unbalanced OT']
    """

    name: str
    description: str
    methods: Callable[[Options], list[Any]]
    splits: Callable[[AnnData, Options], Iterator[Split]]
    fit: Callable[[Any, Split, Options], None]
    draw: Callable[[Any, Split, Options, int], tuple[Any, int]]
    score: Callable[[Any, Split, Options, int], pd.DataFrame]
    stochastic: bool = True
