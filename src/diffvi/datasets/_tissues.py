from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from diffvi._exceptions import InvalidInputError, finite_number, positive_int, seed_or_random

from ._counts import check_count_model, negative_binomial

N_WAVES = 300
N_FIELDS = 3


def simulate_tissue(
    n_obs: int = 400,
    n_vars: int = 60,
    n_sections: int = 1,
    n_dims: int = 2,
    length_scale: float = 5.0,
    noise: float = 0.5,
    mean_library: float = 1000.0,
    dispersion: float = 10.0,
    seed: int | None = 0,
) -> AnnData:
    r"""Sections of a tissue with a known field of expression.

    Cells lie on a jittered grid of spacing one. Three Gaussian fields of covariance :math:`\exp(-|s - s'|^2 / 2 l^2)`, and for each
    cell as many numbers of its own, set what it expresses; the largest of the sums is its type. Counts are negative binomial around a softmax that is linear in the sums and
    has an effect of the type.

    Parameters
    ----------
    n_obs
        Cells in each section.
    n_vars
        Genes.
    n_sections
        Sections. In two dimensions each has a frame and fields of its own; in three they are planes of one block, at ``z`` = 0, 1, ....
    n_dims
        2 or 3.
    length_scale
        The :math:`l` above.
    noise
        Standard deviation of a cell's own numbers; that of the fields is one.
    mean_library, dispersion
        Typical total counts of a cell, and inverse dispersion.
    seed
        Seed; ``None`` for one from the operating system.

    Returns
    -------
    AnnData with counts in ``X`` (CSR); ``obs``: ``section``, ``cell_type``; ``obsm``: ``spatial``, ``field`` (the three fields); ``layers["expected"]``: expected share of each gene
    in the counts of a cell at the place, with no numbers of its own.

    Raises
    ------
    InvalidInputError
        If ``n_dims`` is neither 2 nor 3, a number of cells, genes or sections is not a whole number of at least 1,
        ``length_scale``, ``mean_library`` or ``dispersion`` is not positive, ``noise`` is negative, or the seed is not one
        of 0 to 2**63 - 1.

    Examples
    --------
    >>> import diffvi
    >>> tissue = diffvi.datasets.simulate_tissue(100, 10, n_sections=2, seed=0)
    >>> tissue.shape, tissue.obsm["spatial"].shape
    ((200, 10), (200, 2))

    Neighbours resemble each other, by the fields and not by chance:

    >>> one = tissue[tissue.obs["section"] == "section_0"]
    >>> bool((diffvi.metrics.moran_i(one.obsm["field"], one.obsm["spatial"]) > 0.5).all())
    True
    """
    n_obs, n_vars = positive_int("n_obs", n_obs), positive_int("n_vars", n_vars)
    n_sections = positive_int("n_sections", n_sections)
    if n_dims not in (2, 3):
        raise InvalidInputError(f"`n_dims` must be 2 or 3; got {n_dims!r}.")
    finite_number("length_scale", length_scale, above=0)
    finite_number("noise", noise, at_least=0)
    check_count_model(mean_library, dispersion)
    rng = np.random.default_rng(seed_or_random(seed))
    side = int(np.ceil(np.sqrt(n_obs)))
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)
    sections, fields = [], []
    waves = None
    for z in range(n_sections):
        flat = grid[rng.permutation(len(grid))[:n_obs]] + rng.uniform(-0.3, 0.3, (n_obs, 2))
        place = flat if n_dims == 2 else np.c_[flat, np.full(n_obs, float(z))]
        if waves is None or n_dims == 2:
            waves = (
                rng.normal(size=(n_dims, N_WAVES)) / length_scale,
                rng.uniform(0, 2 * np.pi, N_WAVES),
                rng.normal(size=(N_WAVES, N_FIELDS)) * np.sqrt(2 / N_WAVES),
            )
        sections.append(place)
        fields.append(np.cos(place @ waves[0] + waves[1]) @ waves[2])
    field = np.concatenate(fields)
    own = field + noise * rng.normal(size=field.shape)
    kind = own.argmax(1)

    base, loading = rng.normal(size=n_vars), rng.normal(scale=0.5, size=(N_FIELDS, n_vars))
    effect = rng.normal(scale=0.7, size=(N_FIELDS, n_vars))
    share = _softmax(base + own @ loading + effect[kind])
    # What is expected at a place: the mean over cells that might be there.
    futures = [field + noise * rng.normal(size=field.shape) for _ in range(100)]
    expected = np.mean([_softmax(base + f @ loading + effect[f.argmax(1)]) for f in futures], axis=0)
    rate = (mean_library * np.exp(0.3 * rng.normal(size=len(share))))[:, None] * share
    counts = negative_binomial(rng, rate, dispersion)
    adata = AnnData(
        counts,
        obs=pd.DataFrame(
            {
                "section": pd.Categorical(np.repeat([f"section_{i}" for i in range(n_sections)], n_obs)),
                "cell_type": pd.Categorical([f"type_{k}" for k in kind]),
            },
            index=[f"cell_{i}" for i in range(len(share))],
        ),
        var=pd.DataFrame(index=[f"gene_{j}" for j in range(n_vars)]),
    )
    adata.obsm["spatial"], adata.obsm["field"] = np.concatenate(sections), field
    adata.layers["expected"] = expected.astype(np.float32)
    return adata


def _softmax(logits: np.ndarray) -> np.ndarray:
    share = np.exp(logits - logits.max(1, keepdims=True))
    return share / share.sum(1, keepdims=True)
