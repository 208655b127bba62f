from __future__ import annotations

import copy
import functools
import hashlib
import json
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scvi
from anndata import AnnData

import diffvi
from diffvi._exceptions import InvalidInputError
from diffvi._version import __version__
from diffvi.data import check_counts

from ._options import Options
from ._task import Split, Task
from ._tasks import find_task

COLUMNS = ["task", "split", "method", "draw", "score", "value", "low", "high", "floor", "best"]


def run_task(
    task: str,
    data: Any,
    methods: Sequence[Any] | None = None,
    options: Options | None = None,
    cache: Path | None = None,
    data_id: str = "",
    progress: Callable[[str], None] = lambda message: None,
) -> pd.DataFrame:
    """Fit methods on every split of a data set, and score what they predict for the cells that were held out.

    Parameters
    ----------
    task
        ``"generation"``, ``"perturbation"``, ``"translation"``, ``"trajectory"`` or ``"space"``.
    data
        An AnnData with raw counts in ``X``; for translation a MuData.
    methods
        Objects with the calls of the task's baselines (``fit`` and ``generate`` or ``predict``) and a ``name``; ``None``
        for our model and all baselines.
    options
        Keys, split, seed: see :class:`Options`.
    cache
        Folder for results of single methods, which are read rather than computed again; ``None`` for none.
    data_id
        What identifies the data in the cache, such as a digest of its file.
    progress
        Called with a line for each step.

    Returns
    -------
    Tidy table with the columns ``task``, ``split``, ``method``, ``draw``, ``score``, ``value``, ``low``, ``high``, ``floor``
    and ``best``. The scores include ``fit_seconds``, ``seconds_per_10000`` (of generating or predicting; perturbation
    baselines and totalVI fit in this time) and ``peak_memory_mb`` (resident, while the method was fitted and asked).

    Raises
    ------
    InvalidInputError
        If the data do not hold what the task needs, such as raw counts in ``X``.

    Examples
    --------
    >>> from diffvi.benchmark import IndependentNB, Options, run_task
    >>> from diffvi.datasets import simulate_cells
    >>> table = run_task("generation", simulate_cells(200, 20), [IndependentNB()], Options(draws=1))
    >>> sorted(set(table["method"]))
    ['independent NB per label']
    """
    chosen, options = find_task(task), options or Options()
    methods = chosen.methods(options) if methods is None else methods
    if isinstance(data, AnnData):
        filled = np.asarray((data.X != 0).sum(1)).ravel() > 0
        if not filled.all():
            progress(f"{int((~filled).sum())} cells without a single count are left out")
            data = data[filled]
        check_counts(data, None)
        # What is in `uns` belongs to the past of the object: `X` holds raw counts.
        data = AnnData(data.X, obs=data.obs, var=data.var, obsm=dict(data.obsm))
    # Before anything is fitted, which would change what the methods hold.
    settings = [_settings(method) for method in methods]
    tables = []
    for i, split in enumerate(chosen.splits(data, options)):
        for method, setting in zip(methods, settings, strict=True):
            if i > 0 and getattr(method, "first_split_only", False):
                continue
            file = None if cache is None else cache / f"{task}-{_key(task, data_id, split, setting, options)}.csv"
            if file is not None and file.exists():
                progress(f"{split.name}: {method.name}: read from the cache")
                tables.append(pd.read_csv(file))
                continue
            progress(f"{split.name}: {method.name}")
            try:
                table = _run_method(chosen, copy.deepcopy(method), split, options)
            except ImportError as error:
                progress(f"{split.name}: {method.name}: left out ({error})")
                continue
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                part = file.with_suffix(".part")
                table.to_csv(part, index=False)
                part.replace(file)
            tables.append(table)
    if not tables:
        raise InvalidInputError(f"The {task} task finds nothing to hold out in these data, or no method ran.")
    return pd.concat(tables, ignore_index=True)


def _run_method(task: Task, method: Any, split: Split, options: Options) -> pd.DataFrame:
    scvi.settings.seed = options.seed
    _reset_peak()
    start = time.perf_counter()
    task.fit(method, split, options)
    fit_seconds = time.perf_counter() - start
    tables = []
    for draw in range(options.draws if task.stochastic else 1):
        start = time.perf_counter()
        answer, n = task.draw(method, split, options, options.seed + draw)
        seconds = (time.perf_counter() - start) * 1e4 / n
        peak = _peak_mb()
        table = task.score(answer, split, options, options.seed + draw)
        cost = {"fit_seconds": fit_seconds, "seconds_per_10000": seconds, "peak_memory_mb": peak}
        cost_rows = pd.DataFrame({"score": list(cost), "value": list(cost.values()), "best": "low"})
        tables.append(pd.concat([table, cost_rows], ignore_index=True).assign(draw=draw))
    whole = pd.concat(tables, ignore_index=True).assign(task=task.name, split=split.name, method=method.name)
    return whole.reindex(columns=COLUMNS)


def _settings(method: Any) -> list[str]:
    """What tells a method that is not fitted yet from others."""
    return [type(method).__name__, *(f"{name}={value!r}" for name, value in sorted(vars(method).items())), method.name]


def _key(task: str, data_id: str, split: Split, settings: list[str], options: Options) -> str:
    """Digest of everything that a result depends on, our own code included."""
    parts = [_code_digest(), task, data_id, split.name, settings, asdict(options)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def _code_digest() -> str:
    """Digest of the package's source."""
    digest = hashlib.sha256(__version__.encode())
    for file in sorted(Path(diffvi.__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reset_peak() -> None:
    """Start the peak of resident memory anew, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_mb() -> float:
    try:
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
