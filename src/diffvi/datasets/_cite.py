from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from diffvi._exceptions import positive_int, seed_or_random

from ._simulators import simulate_cells


def simulate_cite(
    n_obs: int = 1000, n_vars: int = 100, n_proteins: int = 8, n_types: int = 3, seed: int | None = 0, **kwargs: object
) -> MuData:
    """RNA and proteins of cells from a known model: each protein is background, or foreground where its program is active.

    Parameters
    ----------
    n_obs, n_vars, n_proteins
        Cells, genes and proteins.
    n_types
        Categories of ``obs["cell_type"]``.
    seed
        Seed; ``None`` for one from the operating system.
    **kwargs
        Passed to :func:`simulate_cells`, which makes the RNA.

    Returns
    -------
    MuData with the modalities ``rna`` (as from :func:`simulate_cells`) and ``protein`` (counts, with the truth in
    ``layers["foreground"]``, 0 or 1), and the columns of the cells in ``obs``.

    Raises
    ------
    InvalidInputError
        As :func:`simulate_cells`, and if ``n_proteins`` is not a whole number of at least 1.

    Examples
    --------
    >>> import diffvi
    >>> mdata = diffvi.datasets.simulate_cite(200, 20, 4, seed=0)
    >>> mdata["rna"].shape, mdata["protein"].shape
    ((200, 20), (200, 4))

    Cells in which a protein is expressed have several times the counts of its background:

    >>> protein = mdata["protein"]
    >>> on = protein.layers["foreground"] == 1
    >>> bool(protein.X[on].mean() > 3 * protein.X[~on].mean())
    True
    """
    n_proteins = positive_int("n_proteins", n_proteins)
    seed = seed_or_random(seed)
    rna = simulate_cells(n_obs, n_vars, n_types=n_types, seed=seed, **kwargs)  # type: ignore[arg-type]
    rng = np.random.default_rng([seed, 1])
    state = rna.obsm["state"]
    # A protein has a direction of its own in the state; its cells are those on one side.
    directions = rng.normal(size=(state.shape[1], n_proteins))
    score = state @ directions
    foreground = score > np.quantile(score, rng.uniform(0.3, 0.8, size=n_proteins), axis=0).diagonal()
    size = np.exp(0.25 * rng.normal(size=(n_obs, 1)))
    background = size * np.exp(rng.uniform(1.5, 4.0, size=n_proteins))
    rate = background * np.where(foreground, np.exp(rng.uniform(1.5, 3.0, size=n_proteins)), 1.0)
    counts = rng.poisson(rng.gamma(10.0, rate / 10.0)).astype(np.float32)
    protein = AnnData(
        counts,
        obs=pd.DataFrame(index=rna.obs_names),
        var=pd.DataFrame(index=[f"protein_{j}" for j in range(n_proteins)]),
        layers={"foreground": foreground.astype(np.int8)},
    )
    obs, rna.obs = rna.obs, pd.DataFrame(index=rna.obs_names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of what a coming version of mudata will do
        mdata = MuData({"rna": rna, "protein": protein})
    for name in obs:
        mdata.obs[name] = obs[name]
    return mdata
