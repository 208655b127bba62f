"""One modality from the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scvi.utils import track

from diffvi._exceptions import InvalidInputError, positive_int, seed_or_random
from diffvi._random import CellStreams
from diffvi.process import get_sampler

from ._total_state import SEEN
from ._translation_draws import USUAL_STEPS, TranslationDrawsMixin
from ._translation_source import Source


class TranslationMixin(TranslationDrawsMixin):
    """Translation between RNA and protein, and imputation of proteins."""

    def translate_rna_to_protein(
        self,
        adata: AnnData | MuData | None = None,
        n_samples: int = 25,
        quantiles: Sequence[float] = (0.05, 0.95),
        transform_batch: str | None = None,
        use_conditions: bool = False,
        guidance_scale: float = 1.0,
        n_steps: int | None = None,
        sampler: str | None = None,
        key_added: str = "protein",
        seed: int | None = None,
        batch_size: int = 512,
        show_progress: bool = False,
        copy: bool = False,
    ) -> AnnData | MuData | None:
        """Predict the proteins of cells from their RNA.

        Parameters
        ----------
        adata
            Cells with raw counts of the model's genes; proteins need not be there, and are not looked at if they are.
            Of a MuData the RNA modality is read, and written to. ``None`` for the model's own data.
        n_samples
            Draws a cell.
        quantiles
            Quantiles of the predictive distribution to write.
        transform_batch
            Predict what would be measured in this batch; ``None`` for the cells' own batch, or for any if no proteins
            were measured in theirs.
        use_conditions
            Tell the prior the cells' labels and other attributes too. Labels that were made from proteins would tell it
            more than RNA knows.
        guidance_scale, n_steps, sampler
            As in :meth:`generate`, but for the default of 3 steps of Heun (6 on curved paths).
        key_added
            Writes data frames, cells by proteins, into ``obsm``: ``key_added`` (expected counts), ``key_added + "_std"``
            (their standard deviation over draws), ``"_log1p"`` (expectation of the ``log1p`` counts, on which methods are
            compared), ``"_q5"`` and so on (quantiles of the counts), ``"_foreground"`` (probability that a protein is
            there, not background) and ``"_counts"`` (one draw, whole numbers); and ``uns[key_added]`` (units, provenance).
        seed
            With the same seed a cell's result is the same, whichever other cells are given.
        batch_size
            Cells at a time; bounds the memory.
        show_progress
            Show a progress bar.
        copy
            Return a copy with the results instead of writing to ``adata``.

        Returns
        -------
        ``None``, or the copy.

        Raises
        ------
        NotTrainedError
            If the diffusion stage is not trained.
        InvalidInputError
            If genes are missing, counts are not raw, no training cell had both modalities, or an argument is not allowed.

        Examples
        --------
        >>> rna = mdata["rna"].copy()
        >>> model.translate_rna_to_protein(rna, seed=0)
        >>> rna.obsm["protein"].shape, "protein_q95" in rna.obsm
        ((300, 8), True)
        """
        arguments = {name: value for name, value in locals().items() if name != "self"}
        return self._translate("rna", **arguments)

    def translate_protein_to_rna(
        self,
        adata: AnnData | MuData | None = None,
        n_samples: int = 25,
        quantiles: Sequence[float] = (0.05, 0.95),
        transform_batch: str | None = None,
        use_conditions: bool = False,
        guidance_scale: float = 1.0,
        n_steps: int | None = None,
        sampler: str | None = None,
        key_added: str = "rna",
        seed: int | None = None,
        batch_size: int = 128,
        show_progress: bool = False,
        copy: bool = False,
    ) -> AnnData | MuData | None:
        """Predict the RNA of cells from their proteins.

        Parameters
        ----------
        adata
            Cells with raw counts of the model's proteins, as the features of an AnnData or in the ``obsm`` that the model was
            set up with; some may be missing. Of a MuData the protein modality is read, and written to.
        n_samples, quantiles, transform_batch, use_conditions, guidance_scale, n_steps, sampler
            As in :meth:`translate_rna_to_protein`.
        key_added
            Writes arrays, cells by genes, into ``obsm``: ``key_added`` (expected counts at the library size that is
            predicted with them), ``key_added + "_std"``, ``"_log1p"`` (expected log-normalised expression, 10,000 counts a
            cell), ``"_q5"`` and so on, ``"_counts"`` (one draw, CSR); and ``uns[key_added]`` (names of the genes, units,
            provenance).
        seed, batch_size, show_progress, copy
            As in :meth:`translate_rna_to_protein`.

        Returns
        -------
        ``None``, or the copy.

        Raises
        ------
        NotTrainedError
            If the diffusion stage is not trained.
        InvalidInputError
            If the proteins are not the model's, a cell has none, or an argument is not allowed.

        Examples
        --------
        >>> protein = mdata["protein"].copy()
        >>> model.translate_protein_to_rna(protein, seed=0)
        >>> protein.obsm["rna"].shape, protein.uns["rna"]["features"][:2].tolist()
        ((300, 40), ['gene_0', 'gene_1'])
        """
        arguments = {name: value for name, value in locals().items() if name != "self"}
        return self._translate("protein", **arguments)

    def impute_proteins(
        self,
        adata: AnnData | MuData | None = None,
        key_added: str = "protein_imputed",
        copy: bool = False,
        **kwargs: Any,
    ) -> AnnData | MuData | None:
        """Fill in the proteins that were not measured, from the RNA.

        Parameters
        ----------
        adata
            Cells with RNA, and proteins for some of them or none.
        key_added
            Writes data frames, cells by proteins, into ``obsm`` (of the RNA modality of a MuData): ``key_added`` (counts where
            they were measured, expected counts where not), ``key_added + "_std"`` (0 where measured), ``key_added +
            "_missing"`` (what was filled in), and ``uns[key_added]``.
        copy
            Return a copy with the results instead of writing to ``adata``.
        **kwargs
            Passed to :meth:`translate_rna_to_protein`.

        Returns
        -------
        ``None``, or the copy.

        Raises
        ------
        NotTrainedError
            If proteins are missing and the diffusion stage is not trained.
        InvalidInputError
            As of :meth:`translate_rna_to_protein`.

        Examples
        --------
        >>> rna = mdata["rna"].copy()  # no proteins: all 8 are filled in for all 300 cells
        >>> model.impute_proteins(rna, seed=0)
        >>> rna.obsm["protein_imputed"].shape, rna.uns["protein_imputed"]["n_missing"]
        ((300, 8), 2400)
        """
        data = self._own_cells(adata)
        data = data.copy() if copy else data
        target = data.mod[self._modality_names[0]] if isinstance(data, MuData) else data
        filled = self._measured(data, target.obs_names)
        missing, spread = filled.isna(), filled * 0.0
        rows = np.flatnonzero(missing.any(axis=1))
        new: dict[str, Any] = {}
        if len(rows):
            cells = target[rows]
            obs = self._obs_of(data, self._modality_names[0])
            work = AnnData(
                cells.X,
                obs=obs.iloc[rows],
                var=target.var[[]],
                layers={k: v for k, v in cells.layers.items() if k is not None},
            )
            self.translate_rna_to_protein(work, key_added="new", **kwargs)
            new = work.uns["new"]
            filled = filled.fillna(work.obsm["new"])
            spread = spread.fillna(work.obsm["new_std"])
        target.obsm[key_added], target.obsm[f"{key_added}_std"] = filled, spread
        target.obsm[f"{key_added}_missing"] = missing
        target.uns[key_added] = {
            **new,
            "units": {key_added: "counts where measured, expected counts where not"},
            "n_missing": int(missing.to_numpy().sum()),
        }
        return data if copy else None

    def _measured(self, data: Any, names: pd.Index) -> pd.DataFrame:
        """Protein counts of cells, NaN where there are none."""
        counts = pd.DataFrame(np.nan, index=names, columns=self.protein_names)
        key = self.registry_["setup_args"].get("protein_expression_obsm_key")
        protein = self._modality_names[1]
        if isinstance(data, MuData) and protein in data.mod:
            cells = data.mod[protein]
        elif not isinstance(data, MuData) and key is not None and key in data.obsm:
            cells = data
        else:
            return counts
        found = self._protein_of(cells, allow_missing=True)
        counts.loc[cells.obs_names] = found
        return counts

    # ---------------------------------------------------------------- how it works

    def _translate(
        self,
        modality: Literal["rna", "protein"],
        adata: Any,
        n_samples: int,
        quantiles: Sequence[float],
        transform_batch: str | None,
        use_conditions: bool,
        guidance_scale: float,
        n_steps: int | None,
        sampler: str | None,
        key_added: str,
        seed: int | None,
        batch_size: int,
        show_progress: bool,
        copy: bool,
    ) -> Any:
        self._require("diffusion")  # type: ignore[attr-defined]
        n_samples, batch_size = positive_int("n_samples", n_samples), positive_int("batch_size", batch_size)
        sampler, n_steps = self._sampler(sampler, n_steps, USUAL_STEPS)  # type: ignore[attr-defined]
        scales, seed = self.vocabulary.scales(guidance_scale), seed_or_random(seed)
        levels = [float(q) for q in quantiles]
        if not all(0 < q < 1 for q in levels):
            raise InvalidInputError(f"`quantiles` must lie between 0 and 1; got {list(quantiles)!r}.")
        if not self.paths_:  # type: ignore[attr-defined]
            raise InvalidInputError("No training cell had both modalities: there is nothing to translate from.")
        source = self._source(adata, modality, transform_batch, use_conditions)
        codes = self._translation_codes(modality, source)
        parts: list[dict[str, Any]] = []
        starts = range(0, len(codes), batch_size)
        for start in track(starts, description="Translating", style="tqdm", disable=not show_progress):
            rows = np.arange(start, min(start + batch_size, len(codes)))
            streams = CellStreams(seed, source.numbers[rows])
            draws = self._translation_draws(codes[rows], n_samples, get_sampler(sampler), n_steps, scales, streams)
            summarise = self._proteins_of_draws if modality == "rna" else self._genes_of_draws
            here = Source(
                source.adata, source.counts[rows], codes[rows], source.table.subset(rows), source.numbers[rows]
            )
            parts.append(summarise(draws, here, levels, streams))
        if copy:
            adata = self._own_cells(adata).copy()
            name = self._modality_names[list(SEEN).index(modality)]
            source.adata = adata.mod[name] if isinstance(adata, MuData) else adata
        settings = {"seed": seed, "sampler": sampler, "n_steps": n_steps, "n_samples": n_samples}
        self._write_translation(source.adata, modality, key_added, parts, settings)
        return adata if copy else None
