"""Names and doses of perturbations, and the codes that stand for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from diffvi._exceptions import InvalidInputError, listed
from diffvi.nn import Attribute

Treatment = tuple[tuple[str, float], ...]
"""A perturbation: its parts in alphabetical order, each with its dose, such as ``(("A", 1.0), ("B", 0.5))``; empty for the control."""

MIN_PLACES = 8
"""Parts that a perturbation may have, unless training has more."""


@dataclass
class PerturbationCoder:
    """Translation between perturbations by name and codes: ``places`` part numbers, then the weight of each.

    A weight is ``log(1 + dose / dose_unit)``, divided by its value at the largest dose of the training cells: 1 where
    there are no doses, and 0 at dose 0, which is the control.

    Parameters
    ----------
    members
        Names of the single perturbations.
    control
        Name of the control.
    separator
        Between the parts of a combined name.
    dose_key
        Column with doses, or ``None``.
    dose_unit, max_dose
        Smallest and largest positive dose of the training cells.
    places
        Most parts that a perturbation may have.
    obsm
        The perturbation is a matrix in ``adata.obsm``, cells by members, of doses or of zeros and ones.

    Examples
    --------
    The order in which a name has its parts says nothing. Doses up to 100 have weights up to 1:

    >>> from diffvi.data import PerturbationCoder
    >>> coder = PerturbationCoder(["A", "B"], control="ctrl", max_dose=100.0, places=2)
    >>> coder.parse("B+A", 100), coder.parse("ctrl")
    ((('A', 100.0), ('B', 100.0)), ())
    >>> codes = coder.encode([coder.parse("B+A", 100), coder.parse("B", 10), (), None])
    >>> codes.astype(float).round(1).tolist()
    [[0.0, 1.0, 1.0, 1.0], [1.0, nan, 0.5, 0.0], [nan, nan, 0.0, 0.0], [nan, nan, nan, nan]]
    >>> coder.decode(codes)[1:]
    [(('B', 10.0),), (), None]
    """

    members: list[str]
    control: str
    separator: str = "+"
    dose_key: str | None = None
    dose_unit: float = 1.0
    max_dose: float = 1.0
    places: int = MIN_PLACES
    obsm: bool = False

    @classmethod
    def from_cells(
        cls, adata: AnnData, key: str, control: str, separator: str, dose_key: str | None, extra: Sequence[str] = ()
    ) -> PerturbationCoder:
        """Learn the names and doses in ``adata``; ``extra`` are names that an embedding knows beside them.

        Parameters
        ----------
        adata
            Cells; the control among them is not needed.
        key
            Column of ``adata.obs`` with names, or key of a matrix in ``adata.obsm``.
        control, separator, dose_key
            As of the class.
        extra
            Further names of single perturbations.

        Returns
        -------
        The coder, with its members in alphabetical order.

        Raises
        ------
        InvalidInputError
            If doses are not finite numbers of at least 0.
        """
        coder = cls([], control, separator, dose_key, obsm=key not in adata.obs)
        treatments = {t for t in coder.treatments(adata, key) if t is not None}
        doses = sorted({dose for t in treatments for _, dose in t})
        coder.members = sorted({name for t in treatments for name, _ in t} | set(extra))
        coder.dose_unit, coder.max_dose = (doses[0], doses[-1]) if doses else (1.0, 1.0)
        coder.places = max([MIN_PLACES, *(len(t) for t in treatments)])
        return coder

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> PerturbationCoder:
        """The coder that :meth:`to_dict` has written."""
        return cls(**{f.name: entry[f.name] for f in fields(cls)})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the registry."""
        return asdict(self)

    def attribute(self, name: str) -> Attribute:
        """The attribute as the network sees it."""
        return Attribute(name, max(len(self.members), 1), 2 * self.places)

    # ---------------------------------------------------------------- names

    def parse(self, name: Any, dose: float = 1.0) -> Treatment:
        """Parts and doses of a name, in one order; the control, and anything at dose 0, is empty."""
        parts = {part.strip() for part in str(name).split(self.separator)} - {self.control, ""}
        return tuple((part, float(dose)) for part in sorted(parts)) if dose > 0 else ()

    def name(self, treatment: Treatment) -> str:
        """The name of a treatment, without doses."""
        return self.separator.join(part for part, _ in treatment) or self.control

    def treatments(self, adata: AnnData, key: str) -> list[Treatment | None]:
        """The treatment of every cell; ``None`` where a cell has none (a missing value or column).

        Raises
        ------
        InvalidInputError
            If doses are not finite numbers of at least 0.
        """
        if key in adata.obs:
            doses = self._doses(adata.obs[self.dose_key]) if self.dose_key in adata.obs else np.ones(adata.n_obs)
            return self.parsed(adata.obs[key], doses)
        if self.obsm and key in adata.obsm:
            return self._from_matrix(adata.obsm[key], key)
        return [None] * adata.n_obs

    def parsed(self, names: Any, doses: Any = 1.0) -> list[Treatment | None]:
        """Treatments of names and doses, each pair parsed once; one dose may serve for all, and ``None`` stands for a missing value."""
        table = pd.DataFrame({"name": pd.Series(list(names), dtype=object), "dose": doses})
        known: dict[Any, Treatment | None] = {}
        for row in table.drop_duplicates().itertuples(index=False):
            known[tuple(row)] = None if pd.isna(row.name) or pd.isna(row.dose) else self.parse(row.name, row.dose)
        # A missing value is no key of a dictionary that could be found again.
        return [known.get(pair) for pair in zip(table["name"], table["dose"], strict=True)]

    def _doses(self, column: pd.Series) -> np.ndarray:
        doses = pd.to_numeric(column, errors="coerce").to_numpy(float)
        bad = ~np.isfinite(doses) | (doses < 0)
        if bad.any():
            value = column[bad].iloc[0]
            raise InvalidInputError(
                f"`dose_key`: adata.obs[{self.dose_key!r}] must hold numbers of at least 0; {int(bad.sum())} cells have "
                f"others, such as {value.item() if isinstance(value, np.generic) else value!r}."
            )
        return doses

    def _from_matrix(self, matrix: Any, key: str) -> list[Treatment | None]:
        names = [str(c) for c in matrix.columns] if isinstance(matrix, pd.DataFrame) else None
        dense = sparse.csr_matrix(matrix.to_numpy(float) if names else matrix)
        if names is None:
            width = len(str(dense.shape[1] - 1))
            names = [f"{key}_{j:0{width}d}" for j in range(dense.shape[1])]
        if not np.isfinite(dense.data).all() or (dense.data < 0).any():
            raise InvalidInputError(f"`perturbation_key`: adata.obsm[{key!r}] must hold finite numbers of at least 0.")
        dense.eliminate_zeros()
        ends = zip(dense.indptr, dense.indptr[1:], strict=False)
        return [
            tuple(sorted((names[j], float(d)) for j, d in zip(dense.indices[a:b], dense.data[a:b], strict=True)))
            for a, b in ends
        ]

    # ---------------------------------------------------------------- codes

    def weight(self, dose: float) -> float:
        """What a dose counts in the network: 0 at dose 0, 1 at the largest of the training cells."""
        return float(np.log1p(dose / self.dose_unit) / np.log1p(self.max_dose / self.dose_unit))

    def encode(self, treatments: Sequence[Treatment | None]) -> np.ndarray:
        """Codes ``(n, 2 * places)``; all NaN for ``None`` and for a treatment with an unknown part.

        Raises
        ------
        InvalidInputError
            If a treatment of known parts has more than ``places``.
        """
        number = {name: i for i, name in enumerate(self.members)}
        known: dict[Treatment | None, np.ndarray] = {}
        for treatment in set(treatments):
            row = np.full(2 * self.places, np.nan, dtype=np.float32)
            if treatment is not None and all(part in number for part, _ in treatment):
                if len(treatment) > self.places:
                    raise InvalidInputError(
                        f"`perturbation` may have at most {self.places} parts; {self.name(treatment)!r} has {len(treatment)}."
                    )
                row[self.places :] = 0.0
                for j, (part, dose) in enumerate(treatment):
                    row[j], row[self.places + j] = number[part], self.weight(dose)
            known[treatment] = row
        return np.stack([known[t] for t in treatments]) if treatments else np.zeros((0, 2 * self.places), np.float32)

    def decode(self, codes: np.ndarray) -> list[Treatment | None]:
        """The treatments that codes ``(n, 2 * places)`` stand for, with doses to six digits; ``None`` where all are NaN."""
        # Two NaN are never the same to numpy, and there are many of them.
        unique, inverse = np.unique(np.nan_to_num(codes, nan=-1.0), axis=0, return_inverse=True)
        found: list[Treatment | None] = []
        for row in unique:
            if (row == -1).all():
                found.append(None)
                continue
            parts, weights = row[: self.places], row[self.places :]
            doses = self.dose_unit * np.expm1(weights * np.log1p(self.max_dose / self.dose_unit))
            found.append(
                tuple((self.members[int(p)], float(f"{d:.6g}")) for p, d in zip(parts, doses, strict=True) if p >= 0)
            )
        return [found[i] for i in np.asarray(inverse).ravel()]

    def describe(self) -> str:
        """Names, for people."""
        return f"control {self.control!r}; {listed(self.members, 6)}"
