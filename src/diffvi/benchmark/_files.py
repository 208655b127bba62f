"""Results that were computed elsewhere: hand out the split, score the answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData

from diffvi._exceptions import InvalidInputError
from diffvi.metrics import expression
from diffvi.metrics._counts import dense

from ._diffvi import GROUP
from ._options import Options
from ._perturbation_baselines import canonical
from ._runner import file_digest, run_task
from ._tasks import find_task


class FromFile:
    """Cells or values from a file, as a method of any task; see :func:`score_file` for what the file holds.

    Parameters
    ----------
    file
        An ``.h5ad``, ``.csv`` or ``.npy`` file.
    name
        Name of the method in the table; ``None`` for the file's.
    options
        Those of the run.

    Raises
    ------
    InvalidInputError
        If the file is missing or of another kind; from its methods, if it does not hold what the task asks for.

    Examples
    --------
    >>> import numpy as np
    >>> from diffvi.benchmark import FromFile
    >>> np.save("other_tool.npy", np.zeros((5, 3)))
    >>> method = FromFile("other_tool.npy")
    >>> method.name, method.predict(None).shape
    ('other_tool', (5, 3))
    """

    first_split_only = True

    def __init__(self, file: str | Path, name: str | None = None, options: Options | None = None) -> None:
        self.file, self.options = Path(file), options or Options()
        self.name = name or self.file.stem
        if not self.file.is_file():
            raise InvalidInputError(f"`file`: there is no file {str(file)!r}.")
        if self.file.suffix not in (".h5ad", ".csv", ".npy"):
            raise InvalidInputError(f"`file` must be .h5ad, .csv or .npy; got {self.file.name!r}.")
        self.digest = file_digest(self.file)  # so that the cache knows a file that has changed

    def fit(self, *data: Any) -> None:
        """Nothing to learn."""

    def _cells(self) -> AnnData:
        if self.file.suffix != ".h5ad":
            raise InvalidInputError(f"`file` must be .h5ad for this task; got {self.file.name!r}.")
        return ad.read_h5ad(self.file)

    def _values(self) -> np.ndarray:
        if self.file.suffix == ".h5ad":
            return dense(ad.read_h5ad(self.file).X)
        if self.file.suffix == ".npy":
            return np.load(self.file, allow_pickle=False)
        return pd.read_csv(self.file, index_col=0).to_numpy(float)

    def generate(self, labels: np.ndarray, seed: int) -> AnnData:
        """Cells of the labels, drawn from the file without replacement as far as they go."""
        cells = self._cells()
        key = GROUP if self.options.batch_key is not None else self.options.labels_key
        if key not in cells.obs:
            raise InvalidInputError(f"`file`: the cells of {self.file.name!r} have no obs column {key!r}.")
        rng = np.random.default_rng(seed)
        found = cells.obs[key].to_numpy(str)
        rows = np.empty(len(labels), int)
        for label in np.unique(labels):
            pool = np.flatnonzero(found == label)
            if len(pool) == 0:
                raise InvalidInputError(f"`file`: no cell of {self.file.name!r} has the label {label!r}.")
            wanted = labels == label
            rows[wanted] = rng.choice(pool, wanted.sum(), replace=wanted.sum() > len(pool))
        return cells[rows].copy()

    def predict(self, *asked: Any) -> np.ndarray:
        """The values in the file; for a perturbation its cells' log-normalised expression."""
        if len(asked) == 2 and isinstance(asked[1], str):
            cells = self._cells()
            key = self.options.perturbation_key
            if key not in cells.obs:
                raise InvalidInputError(f"`file`: the cells of {self.file.name!r} have no obs column {key!r}.")
            rows = np.array([canonical(str(name), self.options.control) for name in cells.obs[key]]) == asked[1]
            if not rows.any():
                raise InvalidInputError(f"`file`: {self.file.name!r} has no cells of {asked[1]!r}.")
            missing = asked[0].var_names.difference(cells.var_names)
            if len(missing):
                raise InvalidInputError(
                    f"`file`: {self.file.name!r} lacks {len(missing)} of {asked[0].n_vars} genes, such as {missing[0]!r}."
                )
            return expression(cells)[rows][:, cells.var_names.get_indexer(asked[0].var_names)]
        return self._values()

    def sample(self, coordinates: np.ndarray, seed: int) -> np.ndarray:
        """Layer ``sample`` of the file, or its values where there is none."""
        cells = self._cells()
        return dense(cells.layers.get("sample", cells.X))


def score_file(
    task: str, file: str | Path, data: Any, name: str | None = None, options: Options | None = None
) -> pd.DataFrame:
    """Score results that were computed elsewhere, on the same held-out cells as everything else.

    Export the split with :func:`export_splits`, run the other tool on its training part, save what it predicts, and
    score it here. What the file holds: *generation*: ``.h5ad`` of generated raw counts with the label in
    ``obs``; *perturbation*: ``.h5ad`` of predicted cells (raw counts, or log-normalised with ``uns["log1p"]``) with the
    perturbation in ``obs``; *translation*: expected ``log1p`` protein counts of the held-out cells in their order
    (``.csv`` with an index column, ``.npy``, or ``X`` of an ``.h5ad``); *space*: ``.h5ad`` with the log-normalised mean
    at the held-out locations in ``X`` and one sample in ``layers["sample"]``. Trajectories have a split for each
    time, so score them with :func:`~diffvi.metrics.evaluate_trajectory`.

    Parameters
    ----------
    task, data, options
        As in :func:`run_task`; with several splits (contexts, random locations and disc), the file is scored on the first.
    file
        The results.
    name
        Name of the method in the table; ``None`` for the file's.

    Returns
    -------
    The table of :func:`run_task`.

    Raises
    ------
    InvalidInputError
        If the file is missing, of the wrong kind, or does not fit the held-out cells.

    Examples
    --------
    >>> import anndata as ad, numpy as np
    >>> from diffvi.benchmark import export_splits, score_file
    >>> from diffvi.datasets import simulate_cite
    >>> data = simulate_cite(200, 20, 4, seed=0)
    >>> files = export_splits("translation", data, "split")
    >>> np.save("perfect.npy", np.log1p(ad.read_h5ad("split/test_protein.h5ad").X))
    >>> scores = score_file("translation", "perfect.npy", data).set_index("score")["value"]
    >>> scores[["pearson", "rmse"]].round(2).tolist()
    [1.0, 0.0]
    """
    refuse_trajectory(task)
    options = options or Options()
    return run_task(task, data, [FromFile(file, name, options)], options)


def refuse_trajectory(task: str) -> None:
    """A file holds one prediction, and trajectories have one for each time.

    Raises
    ------
    InvalidInputError
        For that task.
    """
    if task == "trajectory":
        raise InvalidInputError("`task` must not be 'trajectory': use `metrics.evaluate_trajectory` for each time.")


def export_splits(task: str, data: Any, folder: str | Path, options: Options | None = None) -> list[Path]:
    """Write training and held-out cells of the generation or translation split as ``.h5ad`` for another tool.

    Parameters
    ----------
    task
        ``"generation"`` or ``"translation"``.
    data, options
        As in :func:`run_task`.
    folder
        Where to write ``train.h5ad`` and ``test.h5ad``; with ``_rna`` and ``_protein`` in the name for translation.

    Returns
    -------
    The files.

    Raises
    ------
    InvalidInputError
        For another task, or if the data do not hold what it needs.

    Examples
    --------
    >>> from diffvi.benchmark import Options, export_splits
    >>> from diffvi.datasets import simulate_cells
    >>> files = export_splits("generation", simulate_cells(100, 20, seed=0), "split", Options(test_size=0.2))
    >>> [file.name for file in files]
    ['train.h5ad', 'test.h5ad']
    """
    if task not in ("generation", "translation"):
        raise InvalidInputError(f"`task` must be 'generation' or 'translation'; got {task!r}.")
    split = next(iter(find_task(task).splits(data, options or Options())))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for part, cells in (("train", split.train), ("test", split.test)):
        pieces = {"": cells} if task == "generation" else {"_rna": cells[0], "_protein": cells[1]}
        for suffix, piece in pieces.items():
            files.append(folder / f"{part}{suffix}.h5ad")
            piece.write_h5ad(files[-1])
    return files
