"""Counts around known rates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy import sparse

from diffvi._exceptions import InvalidInputError, finite_number


def check_count_model(mean_library: Any, dispersion: Any) -> None:
    """Raise unless both are positive."""
    finite_number("mean_library", mean_library, above=0)
    finite_number("dispersion", dispersion, above=0)


def finite_numbers(argument: str, values: Any, at_least: float = -np.inf) -> np.ndarray:
    """Return a list of finite numbers as an array, of one at least."""
    given = list(values) if isinstance(values, Iterable) and not isinstance(values, str) else []
    if not given:
        raise InvalidInputError(f"`{argument}` must be a list of one or more numbers; got {values!r}.")
    return np.array([finite_number(argument, value, at_least) for value in given])


def negative_binomial(rng: np.random.Generator, rate: np.ndarray, dispersion: float) -> sparse.csr_matrix:
    """Negative binomial counts with the given means, as raw counts come: CSR, and no cell without a molecule."""
    counts = rng.poisson(rng.gamma(dispersion, rate / dispersion))
    counts[counts.sum(1) == 0, 0] = 1
    return sparse.csr_matrix(counts.astype(np.float32))
