from __future__ import annotations

from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import torch
from anndata import AnnData
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from diffvi import pl
from diffvi._exceptions import InvalidInputError, one_of
from diffvi.datasets._downloads import read_data

from ._demo import quiet_lightning
from ._files import FromFile, export_splits, refuse_trajectory
from ._options import Options
from ._report import write_report
from ._runner import file_digest, run_task
from ._tasks import find_task


def run_benchmark(arguments: Namespace) -> None:
    """Run ``diffvi benchmark TASK DATA...``: a tidy CSV and one HTML report.

    Parameters
    ----------
    arguments
        As :func:`diffvi.cli.main` reads them.

    Raises
    ------
    InvalidInputError
        For arguments or data that cannot be used, or a folder that cannot be written.
    """
    quiet_lightning()
    matplotlib.use("Agg")
    chosen = {
        f.name: getattr(arguments, f.name) for f in fields(Options) if getattr(arguments, f.name, None) is not None
    }
    options = Options(**chosen)
    task = find_task(arguments.task)
    methods: list[Any] = task.methods(options)
    if arguments.only is not None:
        for name in arguments.only:
            one_of("--only", name, [method.name for method in methods])
        methods = [method for method in methods if method.name in arguments.only]
    if arguments.score_file:
        refuse_trajectory(task.name)
    if (arguments.score_file or arguments.export) and len(arguments.data) > 1:
        raise InvalidInputError(f"`DATA` must be one file with --score-file or --export; got {len(arguments.data)}.")
    stems = [path.stem for path in [*arguments.data, *(arguments.score_file or [])]]
    if len(set(stems)) < len(stems):
        raise InvalidInputError(f"`DATA`: the files need different names; got {stems}.")
    methods += [FromFile(file, options=options) for file in arguments.score_file or []]
    console = Console(highlight=False)
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"`--out`: cannot write to {str(arguments.out)!r} ({error}).") from error
    loaded = {path: _read(path, task.name) for path in arguments.data}
    if arguments.export is not None:
        for data in loaded.values():
            console.print("wrote", *export_splits(task.name, data, arguments.export, options))
        return
    console.print(f"torch threads: {torch.get_num_threads()}")
    tables = []
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed} steps"), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        for path, data in loaded.items():
            line = bar.add_task(path.name, total=None)

            def progress(message: str, line: Any = line, name: str = path.name) -> None:
                bar.console.print(f"{name}: {message}")
                bar.advance(line)

            table = run_task(
                task.name, data, methods, options, arguments.out / "cache", file_digest(path), progress=progress
            )
            tables.append(table.assign(data=path.stem))
            done = max(1, int(bar.tasks[line].completed))
            bar.update(line, total=done, completed=done)
    table = pd.concat(tables, ignore_index=True)
    csv, report = arguments.out / f"{task.name}.csv", arguments.out / f"{task.name}.html"
    table.to_csv(csv, index=False)
    _report(report, task.name, task.description, table, options)
    for name, part in table.groupby("data", sort=False):
        console.print(f"\n{name}\n{summarise(part)}", markup=False, soft_wrap=True)
    console.print(f"wrote {csv} and {report}")


def summarise(table: pd.DataFrame) -> str:
    """Scores by method, mean over splits and draws, with the floor in the last column, as Markdown.

    Parameters
    ----------
    table
        Tidy scores: see :func:`run_task`.

    Returns
    -------
    The table as text, a row a score, a column a method.

    Raises
    ------
    InvalidInputError
        If the table has no rows.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"method": ["a", "b"], "score": ["rmse", "rmse"], "value": [0.5, 0.25], "floor": [0.1, 0.1]})
    >>> print(summarise(table))
    | score | a | b | real-vs-real floor |
    |---|---|---|---|
    | rmse | 0.500 | 0.250 | 0.100 |
    """
    wide = _wide(table)
    header = "| score | " + " | ".join(map(str, wide.columns)) + " |\n|" + "---|" * (len(wide.columns) + 1)
    rows = [
        f"| {name} | " + " | ".join("" if pd.isna(v) else _short(v) for v in row) + " |"
        for name, row in zip(wide.index, wide.to_numpy(), strict=True)
    ]
    return "\n".join([header, *rows])


def _wide(table: pd.DataFrame) -> pd.DataFrame:
    if table.empty:
        raise InvalidInputError("The table has no rows.")
    wide = table.pivot_table(index="score", columns="method", values="value", sort=False, dropna=False)
    wide = wide[list(table["method"].unique())]
    wide["real-vs-real floor"] = table.groupby("score")["floor"].mean()
    return wide


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3f}"


def _report(path: Path, task: str, description: str, table: pd.DataFrame, options: Options) -> None:
    sections: list[tuple[str, Any, str]] = []
    for name, part in table.groupby("data", sort=False):
        splits = part["split"].unique()
        note = (
            f"Means over {len(splits)} split(s) ({'; '.join(splits[:8])}) and the draws. The floor is what real cells "
            "score in the place of the predicted ones. Seconds are for fitting, and for predicting 10,000 cells; memory is the "
            "peak of the process while the method ran."
        )
        sections.append((f"{name}: scores", _wide(part).rename_axis(index=None, columns="score"), note))
        note = "Small points are splits and draws, large points their mean; the dashed line is the real-vs-real floor."
        sections.append((f"{name}: every score", pl.score_table(part, show=False), note))
        with_interval = part[part["low"].notna()]
        if len(with_interval):
            columns = ["method", "split", "score", "value", "low", "high", "floor", "best"]
            rows = with_interval[columns].set_index("method").rename_axis(index=None, columns="method")
            sections.append((f"{name}: 95 % intervals of the first draw", rows, "From random halves of the cells."))
    sections.append(("Options", "\n".join(f"{f.name}: {getattr(options, f.name)}" for f in fields(options)), ""))
    write_report(path, f"diffvi benchmark: {task}", [f"Task: {description}."], sections)


def _read(path: Path, task: str) -> AnnData | Any:
    if path.suffix == ".h5mu" or task == "translation":
        if not path.is_file():
            raise InvalidInputError(f"There is no file {str(path)!r}.")
        if path.suffix != ".h5mu":
            raise InvalidInputError(f"The translation task needs a .h5mu file; got {path.name!r}.")
        import mudata

        return mudata.read_h5mu(path)
    return read_data(path)
