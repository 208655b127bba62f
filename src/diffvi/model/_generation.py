from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import scvi
import torch
from anndata import AnnData
from scipy import sparse
from scvi.utils import track
from torch import Tensor

from diffvi._exceptions import memory_told, one_of, positive_int, seed_or_random
from diffvi._random import CellStreams
from diffvi._version import __version__
from diffvi.data import TrainingTable, sample_counts
from diffvi.data._fields import check_names
from diffvi.data._store import PartStore, digest
from diffvi.process import SAMPLERS

from ._distillation import DISTILLED
from ._requests import CellRequest, log_library_of

DEFAULT_STEPS = {"ddpm": 1000, "ddim": 20, "euler": 20, "heun": 5, "dpmpp_2m": 16}


class GenerationMixin:
    """Sampling from the prior, its likelihood, and decoding; shared by all models."""

    module: Any
    training_table_: dict[str, Any] | None

    GENERATION_STEPS: ClassVar[Mapping[str, int]] = DEFAULT_STEPS
    """Steps of each sampler in :meth:`generate`, unless told otherwise."""

    def generate(
        self,
        n_obs: int,
        conditions: Mapping[str, Any] | None = None,
        guidance_scale: float | Mapping[str, float] = 1.0,
        n_steps: int | None = None,
        sampler: str | None = None,
        library_size: str | float | Sequence[float] | np.ndarray | None = None,
        seed: int | None = None,
        batch_size: int = 2048,
        show_progress: bool = False,
        path: str | Path | None = None,
        overwrite: bool = False,
        layers: Sequence[str] | None = None,
    ) -> Any:
        """Generate cells with integer counts, in memory or straight to disk.

        Parameters
        ----------
        n_obs
            Number of cells.
        conditions
            Attributes by name, each one value or a sequence of ``n_obs``, such as ``{"cell_type": "CD19+ B"}``.
            What is not given follows the learned marginal distribution. A batch or covariate that the
            decoder needs is then that of a random training cell with the given attributes.
        guidance_scale
            Strength of classifier-free guidance, one number or one for each attribute. At 1 cells follow
            the learned conditional distribution; larger values make them more typical of their
            conditions and less diverse.
        n_steps
            Steps of the sampler; ``None`` for its default (5 for Heun, which evaluates the network twice a
            step, and 10 on the curved paths of ``"vp_cosine"`` and ``"vp_linear"``; 16 for DPM-Solver++, 20 for DDIM and Euler, 1000 for DDPM).
        sampler
            ``"heun"``, ``"dpmpp_2m"``, ``"ddim"``, ``"euler"`` or ``"ddpm"``; ``None`` for Heun, or for
            DPM-Solver++(2M) where the denoiser predicts the data, whose drift is inexact near the data.
            ``"distilled"`` takes one to four evaluations: see :meth:`distill`.
        library_size
            ``None``: generated together with the latent. ``"empirical"``: that of a random training cell
            with the same conditions. A number, or one for each cell: expected total counts (the size
            factor, in models with ``size_factor_key``).
        seed
            With the same seed and arguments the same cells come out, whatever the ``batch_size``, and
            the first ``n`` cells do not depend on ``n_obs``. ``None`` draws one; it is recorded.
        batch_size
            Cells decoded at a time; bounds the memory.
        show_progress
            Show a progress bar.
        path
            Write the cells to this zarr store instead, ``batch_size`` at a time, in memory that does not grow with ``n_obs``. The store
            appears when it is complete. If the call is cut off, even by a crash, the same call goes on where it was.
        overwrite
            Replace what is at ``path``.
        layers
            Layers to keep; ``None`` for all, ``()`` for none, as ``normalized`` takes most of the space.

        Returns
        -------
        AnnData with ``X`` (``int32`` counts, CSR, ``n_obs`` x genes), ``layers["normalized"]`` (decoded
        expression; each cell sums to 1), ``obsm["X_latent"]``, ``obs`` (conditions; missing where not
        given) and ``uns["diffvi"]`` (model, versions, seed, sampler and its settings). With ``path`` the path of the store, for
        :func:`anndata.read_zarr` or :func:`anndata.experimental.read_lazy`.

        Raises
        ------
        NotTrainedError
            If the diffusion stage is not trained.
        InvalidInputError
            For an argument that is not allowed; the message names it, its value and what is. If ``path`` exists.
        OutOfMemoryError
            If the memory does not suffice for ``batch_size``.
        OutputFileError
            If ``path`` cannot be written; parts that were written are kept, and the same call goes on with them.

        Examples
        --------
        >>> cells = model.generate(100, conditions={"cell_type": "type_1"}, seed=0)
        >>> cells.shape, cells.X.dtype, cells.obs["cell_type"].unique().tolist()
        ((100, 40), dtype('int32'), ['type_1'])
        """
        check_names("layers", layers, several=True)
        request = self._request_cells(
            n_obs, conditions, guidance_scale, n_steps, sampler, library_size, seed, batch_size, path
        )
        batches = {"description": "Generating", "style": "tqdm", "disable": not show_progress}
        if path is not None:
            store = self._store(request, path, layers, overwrite)
            for k in track(store.missing, **batches):
                store.write(k, self._generate_part(request.part(k), layers))
            return store.finish()
        parts = [self._generate_batch(request.part(k)) for k in track(range(request.n_parts), **batches)]
        joined = {
            name: sparse.vstack(values, format="csr") if sparse.issparse(values[0]) else np.concatenate(values)
            for name in parts[0]
            for values in [[part[name] for part in parts]]
        }
        return self._as_cells(joined, request, layers)

    def _request_cells(
        self,
        n_obs: int,
        conditions: Mapping[str, Any] | None = None,
        guidance_scale: float | Mapping[str, float] = 1.0,
        n_steps: int | None = None,
        sampler: str | None = None,
        library_size: Any = None,
        seed: int | None = None,
        batch_size: int = 2048,
        path: str | Path | None = None,
    ) -> CellRequest:
        """The arguments of :meth:`generate`, checked; without a seed that of a call to the same ``path`` that was cut off."""
        self._require("diffusion")  # type: ignore[attr-defined]
        n_obs, batch_size = positive_int("n_obs", n_obs), positive_int("batch_size", batch_size)
        vocabulary = self.vocabulary  # type: ignore[attr-defined]
        scales = vocabulary.scales(guidance_scale)
        if isinstance(sampler, str) and sampler == DISTILLED:
            n_steps = self._few_steps(n_steps, scales)  # type: ignore[attr-defined]
        else:
            sampler, n_steps = self._sampler(sampler, n_steps)
        if seed is None and path is not None:
            seed = (PartStore.earlier_request(path) or {}).get("seed")
        return CellRequest(
            codes=vocabulary.encode(conditions, n_obs),
            scales=scales,
            sampler=sampler,
            n_steps=n_steps,
            log_library=log_library_of(library_size, n_obs),
            seed=seed_or_random(seed),
            batch_size=batch_size,
        )

    def _store(
        self, request: CellRequest, path: str | Path, layers: Sequence[str] | None, overwrite: bool
    ) -> PartStore:
        """Where requested cells are written to in parts."""
        table = [v for v in (self.training_table_ or {}).values() if v is not None]
        told = {**request.to_json(), "layers": None if layers is None else list(layers)}
        told["model"] = digest(type(self).__name__, *self._weights(), *table)  # type: ignore[attr-defined]
        return PartStore(path, request.n_parts, told, overwrite)

    def _generate_part(self, part: CellRequest, layers: Sequence[str] | None) -> Any:
        """Some of the requested cells, as they are returned."""
        return self._as_cells(self._generate_batch(part), part, layers)

    def _as_cells(self, arrays: dict[str, Any], request: CellRequest, layers: Sequence[str] | None) -> Any:
        """Generated arrays as the object that :meth:`generate` returns."""
        vocabulary = self.vocabulary  # type: ignore[attr-defined]
        index = pd.RangeIndex(request.first, request.first + len(request.codes)).astype(str)
        cells = self._assemble(arrays, vocabulary.decode(arrays["codes"], index))
        for part in getattr(cells, "mod", {"": cells}).values():
            # Newer AnnData lists X among the layers, as None.
            for name in [n for n in part.layers if layers is not None and n is not None and n not in layers]:
                del part.layers[name]
        cells.uns["diffvi"] = self._provenance(
            seed=request.seed,
            sampler=request.sampler,
            n_steps=request.n_steps,
            guidance_scale=dict(zip(vocabulary.names, request.scales, strict=True)),
        )
        return cells

    def _sampler(
        self, sampler: str | None, n_steps: int | None, usual: Mapping[str, int] | None = None
    ) -> tuple[str, int]:
        """The sampler that is asked for or fits what the denoiser predicts, and its steps."""
        if sampler is None:
            sampler = "dpmpp_2m" if self.module.prior.prediction == "data" else "heun"
        one_of("sampler", sampler, SAMPLERS)
        if n_steps is not None:
            return sampler, positive_int("n_steps", n_steps)
        return sampler, (usual or self.GENERATION_STEPS)[sampler] * (
            2 if sampler == "heun" and self.module.prior.path.curved else 1
        )

    @torch.inference_mode()
    def _generate_batch(self, request: CellRequest) -> dict[str, Any]:
        """One minibatch of generated cells; every random number comes from the cells' own streams."""
        with memory_told("batch_size", request.batch_size):
            return self._draw_batch(request)

    def _draw_batch(self, request: CellRequest) -> dict[str, Any]:
        streams = CellStreams(request.seed, np.arange(request.first, request.first + len(request.codes)))
        assert self.training_table_ is not None
        table = TrainingTable(**self.training_table_)
        table = table.subset(table.match(request.codes, np.array([stream.random() for stream in streams])))
        codes = request.codes.copy()
        for name in self._decoder_attributes:  # type: ignore[attr-defined]
            j = self.vocabulary.columns[name].start  # type: ignore[attr-defined]
            given = ~np.isnan(codes[:, j])
            # The table follows what was asked for even where no training cell has the combination.
            codes[:, j] = np.where(given, codes[:, j], table.codes[:, j])
            self._override(table, name, codes[:, j])

        few = request.sampler == DISTILLED
        state = self._sampled(  # type: ignore[attr-defined]
            codes,
            streams,
            "ddim" if few else request.sampler,
            request.n_steps,
            request.scales,
            network=self.module.prior.few_steps.denoiser if few else None,
        )
        if request.log_library is not None:
            fixed = table.log_library if isinstance(request.log_library, str) else request.log_library
            state[:, -1] = torch.as_tensor(fixed, dtype=state.dtype, device=state.device)
        return {"codes": codes, **self._draw_cells(state, table, streams)}

    def _draw_cells(self, state: Tensor, table: TrainingTable, streams: CellStreams) -> dict[str, Any]:
        """Arrays of the cells that states stand for, with counts drawn from the cells' own streams."""
        px = self._decode(state, table)  # type: ignore[attr-defined]
        return {
            "latent": state[:, :-1].cpu().numpy(),
            "normalized": px.scale.cpu().numpy(),
            "counts": sample_counts(px, streams),
        }

    def _assemble(self, arrays: dict[str, Any], obs: pd.DataFrame) -> Any:
        """The object that :meth:`generate` returns, from what :meth:`_draw_cells` drew."""
        return AnnData(
            X=arrays["counts"],
            obs=obs,
            var=pd.DataFrame(index=pd.Index(self.get_var_names())),  # type: ignore[attr-defined]
            layers={"normalized": arrays["normalized"]},
            obsm={"X_latent": arrays["latent"]},
        )

    @torch.inference_mode()
    def _draw_replay(self, batch_size: int = 4096) -> dict[str, Any]:
        """A state from the prior for each remembered training cell's conditions, with what the table holds of it."""
        table, all_codes = self._replayed(TrainingTable(**(self.training_table_ or {})))
        states = []
        name, n_steps = self._sampler(None, None)
        for start in range(0, len(all_codes), batch_size):
            rows = np.arange(start, min(start + batch_size, len(all_codes)))
            state = self._sampled(all_codes[rows], CellStreams(0, rows), name, n_steps, self.vocabulary.scales(1.0))  # type: ignore[attr-defined]
            states.append(state.cpu().numpy())
        return {"state": np.concatenate(states), **vars(table), "codes": all_codes}

    def _replayed(self, table: TrainingTable) -> tuple[TrainingTable, np.ndarray]:
        """Cells to remember, and everything that the prior is to be reminded of under."""
        return table, table.codes

    def _override(self, table: TrainingTable, name: str, values: np.ndarray) -> None:
        """Give the decoder the attribute that was asked for; scvi's codes are those of the vocabulary."""
        setup = self.registry_["setup_args"]  # type: ignore[attr-defined]
        column = {setup.get("labels_key"): "labels", setup.get("batch_key"): "batch"}[name]
        setattr(table, column, np.where(np.isnan(values), getattr(table, column), np.nan_to_num(values)).astype(int))

    def get_prior_log_prob(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        use_conditions: bool = True,
        n_steps: int = 16,
        batch_size: int = 2048,
    ) -> np.ndarray:
        """Log density of cells under the learned prior, useful as an outlier score.

        The density is that of the posterior mean of (latent, log library), exact up to the error of the
        ODE solver. Densities compare between cells of one model, not between models.

        Parameters
        ----------
        adata
            Cells; ``None`` for the model's own.
        indices
            Rows of ``adata``.
        use_conditions
            Condition on the cells' own attributes (those that are missing or unknown are left out);
            ``False`` for the marginal density.
        n_steps
            Steps of the ODE solver, two evaluations each.
        batch_size
            Cells at a time.

        Returns
        -------
        Log densities in nats, shape ``(n_cells,)``.

        Raises
        ------
        NotTrainedError
            If the diffusion stage is not trained.

        Examples
        --------
        >>> odd = adata.copy()
        >>> odd.X = odd.X * 20  # libraries that no training cell has
        >>> own, other = (model.get_prior_log_prob(cells, n_steps=2) for cells in (adata, odd))
        >>> bool(own.min() > other.max())
        True
        """
        self._require("diffusion")  # type: ignore[attr-defined]
        n_steps, batch_size = positive_int("n_steps", n_steps), positive_int("batch_size", batch_size)
        latents, _ = self._latent_data(adata, indices, batch_size)  # type: ignore[attr-defined]
        device = self.module.prior.shift.device
        codes = latents.codes if use_conditions else np.full_like(latents.codes, np.nan)
        parts = []
        for start in range(0, len(codes), batch_size):
            rows = slice(start, start + batch_size)
            u, c = (torch.as_tensor(v[rows], dtype=torch.float32, device=device) for v in (latents.mean, codes))
            parts.append(self.module.prior.log_prob(u, c, n_steps).cpu().numpy())
        return np.concatenate(parts)

    def annotate(self, adata: Any = None, copy: bool = False, **log_prob_kwargs: Any) -> Any:
        """Write the model's view of cells into ``adata``.

        ``obsm["X_diffvi"]``: posterior mean of the latent. ``layers["diffvi_normalized"]``: decoded expression,
        10,000 counts a cell. ``obs["diffvi_log_prob"]``: :meth:`get_prior_log_prob`. ``uns["diffvi"]``: provenance. Of a
        model with proteins also ``obsm["diffvi_protein"]``, expected counts; expression and proteins of a MuData go
        into its RNA modality.

        Parameters
        ----------
        adata
            Cells; ``None`` for the model's own.
        copy
            Return a copy with the results instead of writing to ``adata``.
        **log_prob_kwargs
            Passed to :meth:`get_prior_log_prob`.

        Returns
        -------
        ``None``, or the copy.

        Raises
        ------
        NotTrainedError
            If the diffusion stage is not trained.

        Examples
        --------
        >>> cells = model.annotate(adata, copy=True, n_steps=2)
        >>> cells.obsm["X_diffvi"].shape, cells.layers["diffvi_normalized"].shape, "diffvi_log_prob" in cells.obs
        ((300, 10), (300, 40), True)
        """
        self._require("diffusion")  # type: ignore[attr-defined]
        adata = self._own_cells(adata)  # type: ignore[attr-defined]
        adata = adata.copy() if copy else adata
        latent = self.get_latent_representation(adata)  # type: ignore[attr-defined]
        log_prob = self.get_prior_log_prob(adata, **log_prob_kwargs)
        units = self._write_expression(adata)
        adata.obsm["X_diffvi"], adata.obs["diffvi_log_prob"] = latent, log_prob
        adata.uns["diffvi"] = self._provenance(units=f"{units}; log_prob: nats")
        return adata if copy else None

    def _write_expression(self, adata: Any) -> str:
        """Write the decoded expression of :meth:`annotate`; its units."""
        values = self.get_normalized_expression(adata, library_size=1e4, return_numpy=True)  # type: ignore[attr-defined]
        adata.layers["diffvi_normalized"] = values
        return "normalized: 10,000 counts a cell"

    def _provenance(self, **settings: Any) -> dict[str, Any]:
        """What made a result; plain values, so that any file format can hold them."""
        return {
            "model": type(self).__name__,
            "diffvi_version": __version__,
            "scvi_version": scvi.__version__,
            "torch_version": str(torch.__version__),
            **settings,
        }
