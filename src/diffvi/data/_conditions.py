from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from diffvi._exceptions import InvalidInputError, listed, one_of
from diffvi.nn import Attribute, columns

from ._perturbations import PerturbationCoder

MAX_GUIDANCE = 1000
"""Largest guidance scale; far larger ones would overflow."""


@dataclass
class ConditionVocabulary:
    """Names, categories and scales of the attributes: the translation between names and codes.

    It is stored as plain lists and numbers in the model's registry, so that conditions can be given by
    name after a model is loaded without its data. An entry is a category (``categories``), a number (``mean`` and
    ``sd``) or a set of perturbations (``members``: see :class:`PerturbationCoder`).

    Parameters
    ----------
    entries
        The entry of each attribute, by name, in the order of the codes.

    Examples
    --------
    >>> import pandas as pd
    >>> from diffvi.data import ConditionVocabulary
    >>> obs = pd.DataFrame({"cell_type": ["T", "B", None], "age": [20.0, 30.0, 40.0]})
    >>> vocabulary = ConditionVocabulary.from_obs(obs, ["cell_type", "age"])
    >>> vocabulary.entries["cell_type"]
    {'categories': ['B', 'T']}
    >>> codes = vocabulary.encode({"cell_type": ["T", "B"], "age": 30}, 2)
    >>> codes.tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    >>> vocabulary.decode(codes).values.tolist()
    [['T', 30.0], ['B', 30.0]]
    """

    entries: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def from_obs(cls, obs: pd.DataFrame, keys: Sequence[str], categorical: Sequence[str] = ()) -> ConditionVocabulary:
        """Learn the vocabulary of ``keys``; numeric columns become numeric attributes, all others categories.

        The ``categorical`` among them are categories whatever they hold: batches are often numbered.

        Parameters
        ----------
        obs
            The cells' columns.
        keys
            Those to learn.
        categorical
            Those that hold categories even if they are numbers.

        Returns
        -------
        The vocabulary, with missing values left out.

        Raises
        ------
        InvalidInputError
            If a column has no value at all, or an infinite one.
        """
        entries: dict[str, dict[str, Any]] = {}
        for key in keys:
            values = obs[key].dropna()
            if len(values) == 0:
                raise InvalidInputError(f"`condition_keys`: adata.obs[{key!r}] has no value for any cell.")
            if is_numeric_dtype(values) and not is_bool_dtype(values) and key not in categorical:
                if not np.isfinite(values.to_numpy(float)).all():
                    raise InvalidInputError(f"`condition_keys`: adata.obs[{key!r}] holds infinite values.")
                entries[key] = {"mean": float(values.mean()), "sd": float(values.std(ddof=0)) or 1.0}
            else:
                entries[key] = {
                    "categories": values.astype("category").cat.remove_unused_categories().cat.categories.tolist()
                }
        return cls(entries)

    @classmethod
    def from_dict(cls, entries: Mapping[str, dict[str, Any]]) -> ConditionVocabulary:
        """The vocabulary that :meth:`to_dict` has written."""
        return cls({name: dict(entry) for name, entry in entries.items()})

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Names with plain lists and numbers, for the registry."""
        return self.from_dict(self.entries).entries

    def extended(self, adata: AnnData) -> ConditionVocabulary:
        """A vocabulary with the categories and perturbations of ``adata`` that are new appended at the end."""
        new = self.from_dict(self.entries)
        for name, entry in new.entries.items():
            if "categories" in entry and name in adata.obs:
                seen = set(entry["categories"])
                # Numbers and text do not compare: numbers first.
                more = sorted(set(adata.obs[name].dropna()) - seen, key=lambda value: (isinstance(value, str), value))
                entry["categories"] = [*entry["categories"], *more]
            if "members" in entry:
                found = {part for t in set(self.coder(name).treatments(adata, name)) for part, _ in t or ()}
                more = sorted(found - set(entry["members"]))
                entry["members"] = [*entry["members"], *more]
                if entry.get("embedding") is not None:
                    entry["embedding"] = np.pad(entry["embedding"], ((0, len(more)), (0, 0)), constant_values=np.nan)
        return new

    def coder(self, name: str) -> PerturbationCoder:
        """The coder of a perturbation."""
        return PerturbationCoder.from_dict(self.entries[name])

    @property
    def perturbations(self) -> list[str]:
        """Names of the attributes that are perturbations."""
        return [name for name, entry in self.entries.items() if "members" in entry]

    @property
    def columns(self) -> dict[str, slice]:
        """Where each attribute stands in the codes."""
        return dict(zip(self.names, columns(self.attributes), strict=True))

    @property
    def n_columns(self) -> int:
        """Number of columns of the codes."""
        return sum(a.size for a in self.attributes)

    @property
    def categorical(self) -> list[int]:
        """Columns of the codes that hold categories."""
        return [self.columns[name].start for name, entry in self.entries.items() if "categories" in entry]

    @property
    def names(self) -> list[str]:
        """Names of the attributes, in the order of the codes."""
        return list(self.entries)

    @property
    def attributes(self) -> list[Attribute]:
        """The attributes as the network sees them."""
        return [
            PerturbationCoder.from_dict(e).attribute(n)
            if "members" in e
            else Attribute(n, len(e["categories"]) if "categories" in e else None)
            for n, e in self.entries.items()
        ]

    def describe(self) -> Iterator[tuple[str, str, str]]:
        """Name, kind and values of each attribute, for people."""
        for name, entry in self.entries.items():
            if "categories" in entry:
                yield name, "categorical", listed(entry["categories"], 6)
            elif "members" in entry:
                yield name, "perturbation", self.coder(name).describe()
            else:
                yield name, "numeric", f"mean {entry['mean']:.4g}, sd {entry['sd']:.4g}"

    def encode_cells(self, adata: AnnData) -> np.ndarray:
        """Codes of shape ``(n_cells, n_columns)``; NaN where a value is absent or unknown.

        Parameters
        ----------
        adata
            Cells; columns of ``obs`` may be absent.
        """
        codes = np.full((adata.n_obs, self.n_columns), np.nan, dtype=np.float32)
        for name, where in self.columns.items():
            if name in self.perturbations:
                coder = self.coder(name)
                codes[:, where] = coder.encode(coder.treatments(adata, name))
            elif name in adata.obs:
                codes[:, where.start] = self._encode(name, adata.obs[name])
        return codes

    def encode(self, conditions: Mapping[str, Any] | None, n_obs: int) -> np.ndarray:
        """Codes for conditions by name, each a single value or one for every cell.

        Parameters
        ----------
        conditions
            Values by name of the attribute, or of the dose of a perturbation; ``None`` for no condition.
        n_obs
            Number of cells.

        Returns
        -------
        Codes, ``(n_obs, n_columns)``, NaN where not given.

        Raises
        ------
        InvalidInputError
            For an unknown attribute or value, naming it and the known ones, or a wrong length; for conditions that are not a
            mapping, a perturbation without its dose, or a dose without its perturbation.

        Examples
        --------
        >>> from diffvi.data import ConditionVocabulary
        >>> ConditionVocabulary({"cell_type": {"categories": ["B", "T"]}}).encode({"cell_type": "NK"}, 1)
        Traceback (most recent call last):
        diffvi._exceptions.InvalidInputError: `conditions['cell_type']`: unknown value 'NK'; known are 'B', 'T'.
        """
        codes = np.full((n_obs, self.n_columns), np.nan, dtype=np.float32)
        if conditions is not None and not isinstance(conditions, Mapping):
            raise InvalidInputError(
                f"`conditions` must be a mapping such as {{'cell_type': 'B cell'}}; got {type(conditions).__name__}."
            )
        doses = {self.coder(name).dose_key: name for name in self.perturbations if self.coder(name).dose_key}
        given: dict[str, pd.Series] = {}
        for name, value in (conditions or {}).items():
            one_of("conditions", name, [*self.entries, *doses])
            single = isinstance(value, str) or np.ndim(value) == 0
            given[name] = pd.Series([value] * n_obs if single else list(value), dtype=object)
            if len(given[name]) != n_obs:
                raise InvalidInputError(f"`conditions[{name!r}]` has {len(given[name])} values for {n_obs} cells.")
        for name, values in given.items():
            if name in doses:
                if doses[name] not in given:
                    raise InvalidInputError(
                        f"`conditions[{name!r}]` is a dose: give `conditions[{doses[name]!r}]` too."
                    )
                continue
            where = self.columns[name]
            if name in self.perturbations:
                codes[:, where] = self._encode_perturbation(name, values, given)
            else:
                codes[:, where.start] = self._encode(name, values)
            unknown = np.isnan(codes[:, where]).all(1) & ~values.isna().to_numpy(bool)
            if unknown.any():
                entry = self.entries[name]
                known = entry.get("categories") or entry.get("members")
                allowed = listed(known, 40) if known else "finite numbers"
                raise InvalidInputError(
                    f"`conditions[{name!r}]`: unknown value {values[unknown].iloc[0]!r}; known are {allowed}."
                )
        return codes

    def _encode_perturbation(self, name: str, values: pd.Series, given: Mapping[str, pd.Series]) -> np.ndarray:
        coder = self.coder(name)
        doses: Any = 1.0
        if coder.dose_key is not None:
            doses = pd.to_numeric(given.get(coder.dose_key, pd.Series(np.nan, index=values.index)), errors="coerce")
            # Neither the control, however it is written, nor a missing value needs one.
            missing = doses.isna() & np.array([bool(treatment) for treatment in coder.parsed(values)], dtype=bool)
            if missing.any() or (doses < 0).any():
                raise InvalidInputError(
                    f"`conditions[{name!r}]`: {values[missing | (doses < 0)].iloc[0]!r} needs a dose of at least 0 in "
                    f"`conditions[{coder.dose_key!r}]`."
                )
            doses = doses.fillna(0.0).to_numpy(float)
        return coder.encode(coder.parsed(values, doses))

    def _encode(self, name: str, values: pd.Series) -> np.ndarray:
        entry = self.entries[name]
        if "categories" in entry:
            index = pd.Index(entry["categories"]).get_indexer(pd.Index(values.astype(object)))
            return np.where(index < 0, np.nan, index).astype(np.float32)
        numbers = pd.to_numeric(values, errors="coerce").to_numpy(float)
        return np.where(np.isfinite(numbers), (numbers - entry["mean"]) / entry["sd"], np.nan).astype(np.float32)

    def decode(self, codes: np.ndarray, index: pd.Index | None = None) -> pd.DataFrame:
        """The ``obs`` columns that codes stand for; attributes that were not given are missing values.

        Parameters
        ----------
        codes
            Codes, ``(n, n_columns)``.
        index
            Names of the cells; numbers if not given.

        Returns
        -------
        A column for each attribute, and one for the doses of a perturbation that has some.
        """
        obs = pd.DataFrame(index=index if index is not None else pd.RangeIndex(len(codes)).astype(str))
        for name, entry in self.entries.items():
            j = self.columns[name].start
            missing = np.isnan(codes[:, j])
            if "members" in entry:
                coder = self.coder(name)
                treatments = coder.decode(codes[:, self.columns[name]])
                obs[name] = pd.Categorical([None if t is None else coder.name(t) for t in treatments])
                if coder.dose_key is not None:
                    obs[coder.dose_key] = [
                        np.nan if t is None else max((d for _, d in t), default=0.0) for t in treatments
                    ]
            elif "categories" in entry:
                position = np.where(missing, -1, np.nan_to_num(codes[:, j])).astype(int)
                obs[name] = pd.Categorical.from_codes(position, categories=entry["categories"])
            else:
                obs[name] = self.numbers(name, codes)
        return obs

    def numbers(self, name: str, codes: np.ndarray) -> np.ndarray:
        """Values of a numeric attribute, to the digits that codes of single precision hold; NaN where not given.

        Parameters
        ----------
        name
            Name of the attribute.
        codes
            Codes of all attributes, ``(n, n_columns)``.

        Returns
        -------
        Values in the unit of the column that was learnt from, ``(n,)``.
        """
        entry = self.entries[name]
        values = codes[:, self.columns[name].start].astype(float) * entry["sd"] + entry["mean"]
        return np.round(values, 5 - int(np.floor(np.log10(entry["sd"])))) + 0.0

    def scales(self, guidance_scale: float | Mapping[str, float]) -> list[float]:
        """One guidance scale for each attribute, from a number or a mapping by name (1 where not named).

        Parameters
        ----------
        guidance_scale
            From 0, without the condition, over 1, as learnt, to at most :data:`MAX_GUIDANCE`.

        Returns
        -------
        Scales in the order of the codes.

        Raises
        ------
        InvalidInputError
            For an unknown name, or a scale that is no such number.

        Examples
        --------
        >>> from diffvi.data import ConditionVocabulary
        >>> ConditionVocabulary({"type": {"categories": ["B"]}, "age": {"mean": 30, "sd": 5}}).scales({"age": 3})
        [1.0, 3.0]
        """
        given = guidance_scale if isinstance(guidance_scale, Mapping) else dict.fromkeys(self.entries, guidance_scale)
        for name in given:
            one_of("guidance_scale", name, self.entries)
        for value in given.values() if isinstance(guidance_scale, Mapping) else [guidance_scale]:
            if not isinstance(value, int | float | np.number) or not 0 <= value <= MAX_GUIDANCE:
                raise InvalidInputError(
                    f"`guidance_scale` must be a finite number of at least 0 and at most {MAX_GUIDANCE}; got {value!r}."
                )
        return [float(given.get(name, 1.0)) for name in self.entries]
