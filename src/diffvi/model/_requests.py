"""What :meth:`generate` is asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diffvi._exceptions import InvalidInputError
from diffvi.data._store import digest


@dataclass
class CellRequest:
    """Cells that are asked for, and how they are drawn.

    Parameters
    ----------
    codes
        Codes of the attributes, NaN where not given, ``(n, n_columns)``.
    scales, sampler, n_steps, seed
        Guidance scales, sampler, its steps and seed.
    log_library
        As ``library_size``; numbers as logs, ``(n,)``.
    batch_size
        Cells in a part.
    first
        Number of the first cell, where these are a part of what was asked for.
    """

    codes: np.ndarray
    scales: list[float]
    sampler: str
    n_steps: int
    log_library: str | np.ndarray | None
    seed: int
    batch_size: int
    first: int = 0

    @property
    def n_parts(self) -> int:
        """Number of parts."""
        return -(-len(self.codes) // self.batch_size)

    def part(self, k: int) -> CellRequest:
        """The cells of a part."""
        rows = slice(k * self.batch_size, (k + 1) * self.batch_size)
        library = self.log_library[rows] if isinstance(self.log_library, np.ndarray) else self.log_library
        return replace(self, codes=self.codes[rows], log_library=library, first=self.first + rows.start)

    def to_json(self) -> dict[str, Any]:
        """What tells the request from others."""
        library = digest(self.log_library) if isinstance(self.log_library, np.ndarray) else self.log_library
        return {
            "n_obs": len(self.codes),
            "conditions": digest(self.codes),
            "guidance_scale": self.scales,
            "sampler": self.sampler,
            "n_steps": self.n_steps,
            "library_size": library,
            "seed": self.seed,
            "batch_size": self.batch_size,
        }


def log_library_of(library_size: Any, n_obs: int) -> str | np.ndarray | None:
    """Check ``library_size``; numbers become logs of shape ``(n_obs,)``."""
    if library_size is None or (isinstance(library_size, str) and library_size == "empirical"):
        return library_size
    allowed = 'None, "empirical", a positive number, or one for each cell'
    try:
        sizes = np.asarray(library_size, dtype=float)
    except (TypeError, ValueError):
        sizes = np.array([np.nan])
    if (
        sizes.ndim > 1
        or (sizes.ndim == 1 and len(sizes) != n_obs)
        or not (np.isfinite(sizes).all() and (sizes > 0).all())
    ):
        shown = f"{len(sizes)} values for {n_obs} cells" if sizes.ndim == 1 and sizes.size > 1 else repr(library_size)
        raise InvalidInputError(f"`library_size` must be {allowed}; got {shown}.")
    return np.log(np.broadcast_to(sizes, (n_obs,)))
