from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from diffvi._exceptions import positive_int, seed_or_random

from ._counts import check_count_model, negative_binomial


def simulate_cells(
    n_obs: int = 1000,
    n_vars: int = 100,
    n_types: int = 3,
    n_batches: int = 1,
    n_programs: int = 4,
    mean_library: float = 1000.0,
    dispersion: float = 5.0,
    seed: int | None = 0,
) -> AnnData:
    """Cells from a known negative binomial model with types, batches, a continuous state and gene programs.

    A cell of type ``k`` has program activities around the type's own; programs load on genes; the softmax over
    genes, shifted by the batch, times the cell's library gives its rate. Libraries are log-normal and differ
    between types, as they do in tissue.

    Parameters
    ----------
    n_obs, n_vars
        Cells and genes.
    n_types, n_batches
        Categories of ``obs["cell_type"]`` and ``obs["batch"]``.
    n_programs
        Dimensions of the latent state.
    mean_library
        Typical total counts of a cell.
    dispersion
        Inverse dispersion of the counts.
    seed
        Seed; ``None`` for one from the operating system.

    Returns
    -------
    AnnData with counts in ``X`` (CSR), ``obs["cell_type"]``, ``obs["batch"]``, ``obs["score"]`` (the first program's
    activity, a numeric condition), ``layers["rate"]`` (the truth) and ``obsm["state"]``.

    Raises
    ------
    InvalidInputError
        If a number of cells, genes, types, batches or programs is not a whole number of at least 1, ``mean_library`` or
        ``dispersion`` is not positive, or the seed is not one of 0 to 2**63 - 1.

    Examples
    --------
    >>> import diffvi
    >>> import numpy as np
    >>> cells = diffvi.datasets.simulate_cells(200, 20, n_types=3, seed=0)
    >>> cells.shape, list(cells.obs)
    ((200, 20), ['cell_type', 'batch', 'score'])

    Counts scatter around the true rates:

    >>> counts, rate = cells.X.toarray(), cells.layers["rate"]
    >>> bool(abs(counts.sum() / rate.sum() - 1) < 0.05), bool(np.corrcoef(counts.ravel(), rate.ravel())[0, 1] > 0.8)
    (True, True)
    """
    n_obs, n_vars = positive_int("n_obs", n_obs), positive_int("n_vars", n_vars)
    n_types, n_batches = positive_int("n_types", n_types), positive_int("n_batches", n_batches)
    n_programs = positive_int("n_programs", n_programs)
    check_count_model(mean_library, dispersion)
    rng = np.random.default_rng(seed_or_random(seed))
    kinds, batches = rng.integers(n_types, size=n_obs), rng.integers(n_batches, size=n_obs)
    centres = rng.normal(scale=1.2, size=(n_types, n_programs))
    state = centres[kinds] + 0.4 * rng.normal(size=(n_obs, n_programs))
    loadings = rng.normal(scale=0.7, size=(n_programs, n_vars))
    base, shift = rng.normal(scale=1.0, size=n_vars), rng.normal(scale=0.3, size=(n_batches, n_vars))
    logits = base + state @ loadings + shift[batches]
    share = np.exp(logits - logits.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    library = mean_library * np.exp(0.3 * rng.normal(size=n_types)[kinds] + 0.3 * rng.normal(size=n_obs))
    rate = library[:, None] * share
    counts = negative_binomial(rng, rate, dispersion)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical([f"type_{k}" for k in kinds]),
            "batch": pd.Categorical([f"batch_{b}" for b in batches]),
            "score": state[:, 0],
        },
        index=[f"cell_{i}" for i in range(n_obs)],
    )
    var = pd.DataFrame(index=[f"gene_{j}" for j in range(n_vars)])
    adata = AnnData(counts, obs=obs, var=var)
    adata.layers["rate"], adata.obsm["state"] = rate, state
    return adata
