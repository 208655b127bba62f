from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from anndata import AnnData

from diffvi._exceptions import InvalidInputError, finite_number, one_of, positive_int, seed_or_random

from ._counts import check_count_model, finite_numbers, negative_binomial

INTERACTIONS = {"additive": 1.0, "sub-additive": 0.6, "epistatic": 1.0}
HALF_DOSE = 1.0


def simulate_perturbations(
    n_obs: int = 1500,
    n_vars: int = 60,
    n_perturbations: int = 6,
    n_types: int = 2,
    interaction: str = "additive",
    responders: float = 1.0,
    strength: float = 0.9,
    doses: Sequence[float] | None = None,
    mean_library: float = 1000.0,
    dispersion: float = 5.0,
    seed: int | None = 0,
) -> AnnData:
    """Control and perturbed cells with known effects.

    A cell has the activities of four gene programs; a perturbation shifts them. A pair shifts them by the sum of its
    parts times 1 (``"additive"``) or 0.6 (``"sub-additive"``), or by 1.6 or 0.4 times the sum, pair by pair
    (``"epistatic"``). A fifth of the cells are control cells, the others share all singles and all pairs.

    Parameters
    ----------
    n_obs, n_vars
        Cells and genes.
    n_perturbations
        Single perturbations, called A, B, C, ... (at most 26).
    n_types
        Cell types of ``obs["cell_type"]``; effects are the same in all.
    interaction
        How pairs combine; with ``doses`` there are no pairs.
    responders
        Share of the cells under a perturbation that respond, ``obs["responder"]``; the others are like control cells.
    strength
        Standard deviation of the shifts; cells of one type differ by 0.5.
    doses
        Doses of ``obs["dose"]``; the shift is multiplied by ``2 dose / (dose + 1)``.
    mean_library, dispersion
        Typical total counts of a cell, and inverse dispersion.
    seed
        Seed; ``None`` for one from the operating system.

    Returns
    -------
    AnnData with counts in ``X`` (CSR), ``obs`` (``perturbation``, ``cell_type``, ``responder``, and ``dose`` where there are
    doses), ``uns["log_ratio"]`` (data frame, genes by perturbations and doses: log of the true mean counts at the median
    library plus 0.05, over that of the same control cells), ``uns["embedding"]`` (data frame, the shifts with noise) and
    ``uns["epistasis"]`` (factor on the sum of the parts, by pair).

    Raises
    ------
    InvalidInputError
        If ``interaction`` is not known, there are more than 26 perturbations, a number of cells, genes, perturbations or
        types is not a whole number of at least 1, ``responders`` is not a number from 0 to 1, ``strength`` or a dose is
        negative or not finite, ``doses`` is empty, ``mean_library`` or ``dispersion`` is not positive, or the seed is not one
        of 0 to 2**63 - 1.

    Examples
    --------
    >>> import diffvi
    >>> cells = diffvi.datasets.simulate_perturbations(200, 20, n_perturbations=3, seed=0)
    >>> list(cells.obs["perturbation"].cat.categories)
    ['A', 'A+B', 'A+C', 'B', 'B+C', 'C', 'control']
    >>> cells.uns["log_ratio"].shape, cells.uns["epistasis"]["A+B"]
    ((20, 6), 1.0)

    With doses there are no pairs, and the truth is given at more doses than are measured:

    >>> cells = diffvi.datasets.simulate_perturbations(200, 20, n_perturbations=1, doses=[0.5, 2], seed=0)
    >>> list(cells.uns["log_ratio"].columns)
    ['A at 0.3', 'A at 0.5', 'A at 1', 'A at 2', 'A at 3']
    """
    n_obs, n_vars = positive_int("n_obs", n_obs), positive_int("n_vars", n_vars)
    one_of("interaction", interaction, INTERACTIONS)
    if positive_int("n_perturbations", n_perturbations) > 26:
        raise InvalidInputError(f"`n_perturbations` must be at most 26; got {n_perturbations}.")
    responders = finite_number("responders", responders, at_least=0, at_most=1)
    strength = finite_number("strength", strength, at_least=0)
    levels = None if doses is None else finite_numbers("doses", doses, at_least=0)
    check_count_model(mean_library, dispersion)
    rng = np.random.default_rng(seed_or_random(seed))
    n_programs = 4
    singles = [chr(ord("A") + i) for i in range(n_perturbations)]
    shifts = dict(zip(singles, strength * rng.normal(size=(len(singles), n_programs)), strict=True))
    factors = {}
    pairs = [] if doses is not None else ["+".join(pair) for pair in combinations(singles, 2)]
    for pair in pairs:
        factors[pair] = INTERACTIONS[interaction] + (rng.choice([-0.6, 0.6]) if interaction == "epistatic" else 0.0)
        shifts[pair] = factors[pair] * (shifts[pair[0]] + shifts[pair[-1]])

    kinds = rng.integers(positive_int("n_types", n_types), size=n_obs)
    centres = 0.8 * rng.normal(size=(n_types, n_programs))
    state = centres[kinds] + 0.5 * rng.normal(size=(n_obs, n_programs))
    loadings, base = rng.normal(scale=0.6, size=(n_programs, n_vars)), rng.normal(scale=0.8, size=n_vars)
    names = np.where(rng.random(n_obs) < 0.2, "control", rng.choice([*singles, *pairs], n_obs))
    responds = (names != "control") & (rng.random(n_obs) < responders)
    dose = np.ones(n_obs) if levels is None else np.where(names == "control", 0.0, rng.choice(levels, n_obs))
    amount = np.where(responds, 2 * dose / (dose + HALF_DOSE), 0.0)

    def share(of: np.ndarray) -> np.ndarray:
        logits = base + of @ loadings
        rate = np.exp(logits - logits.max(1, keepdims=True))
        return rate / rate.sum(1, keepdims=True)

    moved = state + amount[:, None] * np.array([shifts.get(name, np.zeros(n_programs)) for name in names])
    library = mean_library * np.exp(0.3 * rng.normal(size=n_obs))
    rate = library[:, None] * share(moved)
    counts = negative_binomial(rng, rate, dispersion)
    obs = pd.DataFrame(
        {
            "perturbation": pd.Categorical(names),
            "cell_type": pd.Categorical([f"type_{k}" for k in kinds]),
            "responder": responds,
        },
        index=[f"cell_{i}" for i in range(n_obs)],
    )
    genes = [f"gene_{j}" for j in range(n_vars)]
    adata = AnnData(counts, obs=obs, var=pd.DataFrame(index=genes))
    if doses is not None:
        adata.obs["dose"] = dose
    middle = float(np.median(np.asarray(counts.sum(1))))
    control = np.log(middle * share(state).mean(0) + 0.05)
    truth = {}
    for name, shift in shifts.items():
        for d in [1.0] if levels is None else np.unique([*levels, *TRUE_DOSES]):
            after = responders * share(state + 2 * d / (d + HALF_DOSE) * shift) + (1 - responders) * share(state)
            truth[name if doses is None else f"{name} at {d:g}"] = np.log(middle * after.mean(0) + 0.05) - control
    adata.uns["log_ratio"] = pd.DataFrame(truth, index=genes)
    noisy = {name: shifts[name] + 0.1 * rng.normal(size=n_programs) for name in singles}
    adata.uns["embedding"] = pd.DataFrame(noisy, index=[f"program_{k}" for k in range(n_programs)]).T
    adata.uns["epistasis"] = factors
    return adata


TRUE_DOSES = (0.3, 0.5, 1.0, 2.0, 3.0)
"""Doses at which the truth is always given, measured or not."""
