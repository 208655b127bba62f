"""Cells at locations: where nothing was measured, in regions that are missing, and between sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from diffvi._exceptions import InvalidInputError, positive_int
from diffvi.metrics import log_normalise

from ._notes import without_notes
from ._spatial_context import Observed
from ._spatial_draws import SpatialDrawsMixin
from ._spatial_setup import check_counts, coordinates_of, read_coordinates


class SpatialPredictionMixin(SpatialDrawsMixin):
    """Generation at locations."""

    _latent_data: Any
    _own_cells: Any
    _require: Any

    def generate_at_location(
        self,
        coordinates: np.ndarray | Sequence[Sequence[float]],
        section: str | Sequence[str] | None = None,
        conditions: Mapping[str, Any] | None = None,
        n_samples: int = 1,
        return_mean: bool = False,
        guidance_scale: float | Mapping[str, float] = 1.0,
        n_steps: int | None = None,
        sampler: str | None = None,
        seed: int | None = None,
        batch_size: int = 2048,
        show_progress: bool = False,
    ) -> AnnData:
        """Generate cells at locations, given the cells measured around them.

        Cells at neighbouring locations come from one draw of the tissue: what the surroundings leave open is correlated
        between them as it is between measured cells.

        Parameters
        ----------
        coordinates
            Locations in the units of ``spatial_key``, ``(n, 2)`` or ``(n, 3)``.
        section
            Section of the locations, one or one for each; only for models with ``section_key``, and only one that was measured.
        conditions
            Attributes of the cells, such as ``{"cell_type": "Astrocyte"}``; one value or one for each location.
        n_samples
            Draws of the whole tissue.
        return_mean
            Return what is expected instead of draws; ``n_samples`` of 10 or more also give its uncertainty.
        guidance_scale, n_steps, sampler
            As in :meth:`generate`.
        seed
            With the same seed a location's result is the same, whichever ``batch_size``.
        batch_size
            Locations at a time; bounds the memory.
        show_progress
            Show a progress bar.

        Returns
        -------
        AnnData with a row for each location and sample, in this order: ``X`` (``int32`` counts, CSR), ``layers["normalized"]`` (decoded expression;
        sums to 1), ``obsm["X_latent"]``, ``obsm["spatial"]`` (the coordinates; also under ``spatial_key``), and ``obs``: the section, ``sample``, the conditions, ``library_size`` (expected total counts) and ``far_outside``
        (further from the tissue than its own size times ten, where nothing is known).

        With ``return_mean`` a row for each location: ``X`` (expected log-normalised expression, ``log(1 + 10,000 x share of the counts)``) and, from 10 samples on,
        ``layers["sd"]``, ``layers["lower"]`` and ``layers["upper"]`` (standard deviation and 5 and 95 % quantiles of that of new cells; with fewer than 19 samples
        these are the least and the greatest).

        Raises
        ------
        NotTrainedError
            If the diffusion stage is not trained.
        InvalidInputError
            For coordinates of another dimension than the model's or that are not finite, or an unknown section.

        Examples
        --------
        >>> cells = model.generate_at_location([[10.0, 2.0], [11.0, 2.0]], n_samples=2, seed=0)
        >>> cells.shape, cells.obs["sample"].tolist()
        ((4, 40), [0, 1, 0, 1])
        >>> expected = model.generate_at_location([[10.0, 2.0]], return_mean=True, n_samples=10, seed=0)
        >>> bool((expected.layers["lower"] <= expected.layers["upper"]).all())
        True
        """
        self._require("diffusion")
        n_samples, batch_size = positive_int("n_samples", n_samples), positive_int("batch_size", batch_size)
        points = read_coordinates(coordinates, "`coordinates`", self.n_dims)
        frame = self._sections_of(section, len(points))
        request = self._request(points, frame, conditions, guidance_scale, n_steps, sampler, seed)
        return self._at(self._own_observed(), request, n_samples, return_mean, batch_size, show_progress)

    def reconstruct_section(
        self,
        z: float,
        section: str | None = None,
        coordinates: np.ndarray | None = None,
        **kwargs: Any,
    ) -> AnnData:
        """A section between measured ones, of a model with three-dimensional coordinates.

        Parameters
        ----------
        z
            Third coordinate of the section.
        section
            Frame that it is in, in models with ``section_key``.
        coordinates
            Where in the plane, ``(n, 2)``; ``None`` for the locations of the nearest measured section.
        **kwargs
            Passed to :meth:`generate_at_location`.

        Returns
        -------
        As of :meth:`generate_at_location`.

        Raises
        ------
        NotTrainedError
            If the diffusion stage is not trained.
        InvalidInputError
            If the model's coordinates are two-dimensional, or the section is unknown.

        Examples
        --------
        >>> import diffvi
        >>> block = diffvi.datasets.simulate_tissue(30, 10, n_sections=3, n_dims=3, seed=0)  # at z = 0, 1 and 2
        >>> diffvi.model.SpatialDiffusion.setup_anndata(block)
        >>> model = diffvi.model.SpatialDiffusion(block, n_latent=3, n_neighbors=4)
        >>> model.train(max_epochs=1, max_epochs_diffusion=1, enable_progress_bar=False)
        >>> between = model.reconstruct_section(1.4, seed=0)  # in the places of the cells at z = 1
        >>> between.shape, between.obsm["spatial"][:, 2].mean().round(1)
        ((30, 10), np.float64(1.4))
        """
        self._require("diffusion")
        if self.n_dims != 3:
            raise InvalidInputError(
                "`z`: the model's coordinates have 2 dimensions; `setup_anndata` with three-dimensional ones to tell what is between sections."
            )
        frame = self._sections_of(section, 1)[0]
        frames, observed = self._frames, self._own_observed()
        if coordinates is None:
            mine = observed.scaled[observed.frame == frame] * frames.unit[frame] + frames.centre[frame]
            plane = mine[np.abs(mine[:, 2] - z).argmin(), 2]
            coordinates = mine[np.isclose(mine[:, 2], plane), :2]
        flat = read_coordinates(coordinates, "`coordinates`", 2)
        return self.generate_at_location(np.c_[flat, np.full(len(flat), float(z))], section, **kwargs)

    def impute_region(
        self,
        adata: AnnData | None = None,
        mask: np.ndarray | Sequence[bool] | str | None = None,
        n_samples: int = 20,
        key_added: str = "imputed",
        copy: bool = False,
        conditions: Mapping[str, Any] | None = None,
        guidance_scale: float | Mapping[str, float] = 1.0,
        n_steps: int | None = None,
        sampler: str | None = None,
        seed: int | None = None,
        batch_size: int = 2048,
        show_progress: bool = False,
    ) -> AnnData | None:
        """Fill in a region from the cells around it; what was measured in the region is not looked at.

        A model that was trained on cells of the region has learned from them, though. To judge what is filled in, train without them.

        Parameters
        ----------
        adata
            Cells, those of the region with coordinates alone needed; ``None`` for the model's.
        mask
            Which cells to fill in: ``True`` for each, or the name of such a column of ``adata.obs``.
        n_samples
            Draws, for the standard deviation.
        key_added
            Writes ``layers["{key}_mean"]`` and ``layers["{key}_sd"]`` (log-normalised expression; of the other cells what was measured, and 0),
            ``layers["{key}_sample"]`` (one draw of the counts; of the other cells their own), and ``uns[key]``.
        copy
            Return a copy with the results instead of writing to ``adata``.
        conditions, guidance_scale, n_steps, sampler, seed, batch_size, show_progress
            As in :meth:`generate_at_location`.

        Returns
        -------
        ``None``, or the copy.

        Raises
        ------
        NotTrainedError
            If the diffusion stage is not trained.
        InvalidInputError
            If the mask hides no cell or all of them, or has another length.

        Examples
        --------
        >>> hidden = adata.obsm["spatial"][:, 0] < 5
        >>> filled = model.impute_region(adata, hidden, seed=0, copy=True)
        >>> filled.layers["imputed_mean"].shape == adata.shape, bool(filled.uns["imputed"]["n_imputed"] == hidden.sum())
        (True, True)
        """
        self._require("diffusion")
        n_samples, batch_size = positive_int("n_samples", n_samples), positive_int("batch_size", batch_size)
        adata = self._own_cells(adata)
        hidden = _mask(mask, adata)
        adata = adata.copy() if copy else adata
        known = adata[~hidden].copy()
        observed = self._observed_of(known)
        points = coordinates_of(adata, self.spatial_key, self.n_dims)[hidden]
        section = None if self.section_key is None else adata.obs[self.section_key].to_numpy(str)[hidden]
        frame = self._sections_of(section, len(points))
        request = self._request(points, frame, conditions, guidance_scale, n_steps, sampler, seed)
        mean = self._at(observed, request, n_samples, True, batch_size, show_progress)
        draw = self._at(observed, request, 1, False, batch_size)
        own = self._counts_of(known)
        for name, inside, outside in (
            ("mean", mean.X, log_normalise(own)),
            ("sd", mean.layers.get("sd", np.full(mean.shape, np.nan)), np.zeros(own.shape)),
        ):
            whole = np.empty(adata.shape, np.float32)
            whole[hidden], whole[~hidden] = inside, outside
            adata.layers[f"{key_added}_{name}"] = whole
        order = np.argsort(np.concatenate([np.flatnonzero(hidden), np.flatnonzero(~hidden)]))
        stacked = sparse.vstack([draw.X, own.astype(np.int32)], format="csr")
        adata.layers[f"{key_added}_sample"] = stacked[order]
        adata.uns[key_added] = {**mean.uns["diffvi"], "n_imputed": int(hidden.sum())}
        return adata if copy else None

    # ---------------------------------------------------------------- arguments

    def _sections_of(self, section: Any, n: int) -> np.ndarray:
        """Number of the section of each location."""
        names = self._frames.names
        if self.section_key is None:
            if section is not None:
                raise InvalidInputError(f"`section`: the model has no `section_key`; got {section!r}.")
            return np.zeros(n, dtype=int)
        if section is None:
            if len(names) > 1:
                raise InvalidInputError(f"`section` must name one of the model's sections, {names}; got None.")
            section = names[0]
        given = [str(section)] * n if isinstance(section, str) or np.ndim(section) == 0 else [str(s) for s in section]
        if len(given) != n:
            raise InvalidInputError(f"`section` has {len(given)} values for {n} locations.")
        known = {name: i for i, name in enumerate(names)}
        if unknown := [s for s in given if s not in known]:
            raise InvalidInputError(f"`section` must name one of the model's sections, {names}; got {unknown[0]!r}.")
        return np.array([known[s] for s in given], dtype=int)

    def _own_observed(self) -> Observed:
        """The cells that the model remembers."""
        return Observed.from_dict(self.cells_ or {})

    def _observed_of(self, adata: AnnData) -> Observed:
        """Cells of other data, or some of the model's, as locations see them."""
        check_counts(adata)
        with without_notes():
            latents, table = self._latent_data(adata)
        frame = self._sections_of(
            None if self.section_key is None else adata.obs[self.section_key].to_numpy(str), adata.n_obs
        )
        scaled = self._frames.scaled(coordinates_of(adata, self.spatial_key, self.n_dims), frame)
        return self._observed(adata, latents, table, scaled, frame)

    def _counts_of(self, adata: AnnData) -> sparse.csr_matrix:
        layer = self.registry_["setup_args"].get("layer")
        return sparse.csr_matrix(adata.X if layer is None else adata.layers[layer])


def _mask(mask: Any, adata: AnnData) -> np.ndarray:
    """Cells to fill in, as a boolean array."""
    if isinstance(mask, str):
        if mask not in adata.obs:
            raise InvalidInputError(f"`mask`: adata.obs has no column {mask!r}.")
        mask = adata.obs[mask]
    values = np.asarray(mask)
    if values.dtype != bool or values.shape != (adata.n_obs,):
        raise InvalidInputError(
            f"`mask` must hold True or False for each of the {adata.n_obs} cells, or name such a column of adata.obs; got "
            f"{'None' if mask is None else f'shape {values.shape}, dtype {values.dtype}'}."
        )
    if values.all() or not values.any():
        raise InvalidInputError(
            f"`mask` hides {int(values.sum())} of {len(values)} cells; some must be hidden and some seen."
        )
    return values
