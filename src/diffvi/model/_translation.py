"""One modality from the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from scipy import sparse
from scvi.utils import track

from diffvi._exceptions import InvalidInputError, positive_int, seed_or_random
from diffvi._random import CellStreams
from diffvi.data import TrainingTable, sample_counts
from diffvi.metrics import log_normalise
from diffvi.process import get_sampler

from ._generation import DEFAULT_STEPS
from ._total_state import SEEN
from ._translation_source import Source, SourceMixin

USUAL_STEPS = {**DEFAULT_STEPS, "heun": 3}
"""A translation starts at what is expected of a cell, and needs fewer steps than a cell that starts from noise."""

USUAL_WEIGHTS = {"rna": 0.5, "protein": 0.75}
"""Weight of the kernel path in the expectation, where no validation cells say better."""


MIN_VALIDATION = 50
"""Validation cells below which the weights are the usual ones."""

UNITS = {
    "rna": {
        "": "expected protein counts",
        "std": "standard deviation of the counts over draws",
        "log1p": "expected log1p protein counts",
        "counts": "protein counts, one draw",
        "q": "quantile of the protein counts over draws",
        "foreground": "probability that the protein is there, not background",
    },
    "protein": {
        "": "expected counts at the predicted library size",
        "std": "standard deviation of the counts",
        "log1p": "expected log-normalised expression, 10,000 counts a cell",
        "counts": "counts, one draw",
        "q": "quantile of the counts over draws",
    },
}
"""What each result of a translation from a modality is."""


class TranslationMixin(SourceMixin):
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
            As in :meth:`generate`, but for the default of 3 steps of Heun.
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
        """
        return self._translate(
            "rna",
            adata,
            n_samples,
            quantiles,
            transform_batch,
            use_conditions,
            guidance_scale,
            n_steps,
            sampler,
            key_added,
            seed,
            batch_size,
            show_progress,
            copy,
        )

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
        """
        return self._translate(
            "protein",
            adata,
            n_samples,
            quantiles,
            transform_batch,
            use_conditions,
            guidance_scale,
            n_steps,
            sampler,
            key_added,
            seed,
            batch_size,
            show_progress,
            copy,
        )

    def impute_proteins(
        self, adata: AnnData | MuData | None = None, key_added: str = "protein_imputed", copy: bool = False, **kwargs: Any
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
        """
        data = self.adata if adata is None else adata
        if data is None:
            raise InvalidInputError("`adata` must be given: this model was loaded without data.")
        data = data.copy() if copy else data
        target = data.mod[self._modality_names[0]] if isinstance(data, MuData) else data
        measured = self._measured(data, target.obs_names)
        work = AnnData(target.X, obs=target.obs, var=target.var[[]], layers=dict(target.layers))
        if isinstance(data, MuData):
            for name in self._cell_columns:
                if name in data.obs:
                    work.obs[name] = data.obs[name].reindex(work.obs_names)
        self.translate_rna_to_protein(work, key_added="new", **kwargs)
        missing = measured.isna()
        target.obsm[key_added] = measured.where(~missing, work.obsm["new"]).astype(float)
        target.obsm[f"{key_added}_std"] = work.obsm["new_std"].where(missing, 0.0)
        target.obsm[f"{key_added}_missing"] = missing
        target.uns[key_added] = {
            **work.uns["new"],
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
        data: Any,
        n_samples: int,
        quantiles: Sequence[float],
        transform_batch: str | None,
        use_conditions: bool,
        guidance_scale: float,
        n_steps: int | None,
        sampler: str | None,
        key: str,
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
        source = self._source(data, modality, transform_batch, use_conditions)
        codes = self._translation_codes(modality, source)
        parts: list[dict[str, Any]] = []
        starts = range(0, len(codes), batch_size)
        for start in track(starts, description="Translating", style="tqdm", disable=not show_progress):
            rows = np.arange(start, min(start + batch_size, len(codes)))
            streams = CellStreams(seed, source.numbers[rows])
            draws = self._translation_draws(codes[rows], n_samples, get_sampler(sampler), n_steps, scales, streams)
            summarise = self._proteins_of_draws if modality == "rna" else self._genes_of_draws
            here = Source(source.adata, source.counts[rows], codes[rows], source.table.subset(rows), source.numbers[rows])
            parts.append(summarise(draws, here, levels, streams))
        if copy:
            data = (self.adata if data is None else data).copy()
            source.adata = data.mod[self._modality_names[list(SEEN).index(modality)]] if isinstance(data, MuData) else data
        settings = {"seed": seed, "sampler": sampler, "n_steps": n_steps, "n_samples": n_samples}
        self._write_translation(source.adata, modality, key, parts, settings)
        return data if copy else None

    def _translation_codes(self, modality: str, source: Source) -> np.ndarray:
        """Everything that the prior is told of cells of which one modality is known."""
        features, path = self._paths[modality]  # type: ignore[attr-defined]
        posterior, _ = self._posterior_of(modality, source.counts, source.table)  # type: ignore[attr-defined]
        predicted = path(features(source.counts))
        origin = self._origin(modality, predicted, source.counts)  # type: ignore[attr-defined]
        return self._seen_codes(modality, source.codes, posterior, origin)  # type: ignore[attr-defined]

    @torch.inference_mode()
    def _translation_draws(
        self, codes: np.ndarray, n_samples: int, sampler: Any, n_steps: int, scales: list[float], streams: CellStreams
    ) -> np.ndarray:
        """States of cells, ``(n_cells, n_samples, d)``; the posterior of the modality is drawn anew each time."""
        prior = self.module.prior
        n, device = len(codes), prior.shift.device
        where = [slice(s, s + self.module.n_latent) for s in self._seen_places]  # type: ignore[attr-defined]

        def normal(width: int) -> torch.Tensor:
            return streams.normal(n_samples * width).view(n * n_samples, width).to(device)

        repeated = torch.as_tensor(codes, device=device).repeat_interleave(n_samples, dim=0)
        for place in where:
            if not bool(repeated[0, place].isnan().all()):
                repeated[:, place] += normal(self.module.n_latent)
        state = prior.sample(normal(prior.d), repeated, sampler, n_steps, scales, noise=lambda: normal(prior.d))
        return state.view(n, n_samples, prior.d).cpu().numpy()

    def _proteins_of_draws(
        self, draws: np.ndarray, here: Source, levels: list[float], streams: CellStreams
    ) -> dict[str, np.ndarray]:
        n, k = draws.shape[:2]
        n_latent = self.module.n_latent
        w = draws[:, :, n_latent:-1]
        # The draws' mean and the kernel path err in different ways; their weights come from validation cells.
        path = here.codes[:, -draws.shape[2] :][:, None, n_latent:-1]
        w = w + self.path_weights_["rna"] * (path - w.mean(1, keepdims=True))
        counts = self.module.protein_counts(torch.as_tensor(w)).numpy()
        with torch.inference_mode():
            _, _, py = self._decoded(draws, here.table)
        foreground = 1 - torch.sigmoid(py["mixing"]).cpu().numpy().reshape(n, k, -1)
        return {
            "mean": counts.mean(1),
            "std": counts.std(1),
            "log1p": np.log1p(counts).mean(1),
            "quantiles": _quantiles(counts, levels),
            "levels": np.array([levels]),
            "foreground": foreground.mean(1),
            "counts": counts[:, 0].astype(np.int32),
        }

    def _genes_of_draws(
        self, draws: np.ndarray, here: Source, levels: list[float], streams: CellStreams
    ) -> dict[str, Any]:
        n, k = draws.shape[:2]
        with torch.inference_mode():
            flat, px, py = self._decoded(draws, here.table)
            scale = px["scale"].view(n, k, -1)
            expected = scale.mean(1).mul(1e4).log1p()
            wanted = torch.as_tensor(self._path_expression(here.counts), device=expected.device).clamp_min(0.0)
            # Both are log-normalised means of few counts, whose ratio is about that of the rates.
            weight = self.path_weights_["protein"]
            ratio = ((1 - weight) * expected + weight * wanted + 1e-3) / (expected + 1e-3)
            moved = scale * ratio.clamp(0.1, 10.0)[:, None]
            px["scale"] = (moved / moved.sum(-1, keepdim=True)).view(n * k, -1)
            px["rate"] = px["scale"] * flat[:, -1:].exp()
            genes, _ = self.module.likelihoods(px, py)
            rates, spread = genes.mean.cpu().numpy().reshape(n, k, -1), genes.variance.cpu().numpy().reshape(n, k, -1)
        counts = sample_counts(genes, streams.repeated(k)).toarray().reshape(n, k, -1)
        logged = (1 - weight) * expected + weight * wanted
        return {
            "mean": rates.mean(1),
            "std": np.sqrt(rates.var(1) + spread.mean(1)),
            "log1p": logged.cpu().numpy(),
            "quantiles": _quantiles(counts, levels),
            "levels": np.array([levels]),
            "counts": sparse.csr_matrix(counts[:, 0]),
        }

    def _decoded(self, draws: np.ndarray, table: TrainingTable) -> tuple[torch.Tensor, dict[str, Any], dict[str, Any]]:
        """States as one table of draws, and the decoder's parameters of genes and proteins."""
        n, k = draws.shape[:2]
        flat = torch.as_tensor(draws.reshape(n * k, -1), device=self.module.prior.shift.device)
        return (flat, *self._decode(flat, table.subset(np.repeat(np.arange(n), k))))  # type: ignore[attr-defined]

    @torch.inference_mode()
    def _expected_expression(self, draws: np.ndarray, table: TrainingTable) -> np.ndarray:
        """Log-normalised mean of the decoded expression over draws, ``(n_cells, n_genes)``."""
        _, px, _ = self._decoded(draws, table)
        return px["scale"].view(*draws.shape[:2], -1).mean(1).mul(1e4).log1p().cpu().numpy()

    def _write_translation(
        self, adata: AnnData, modality: str, key: str, parts: list[dict[str, Any]], settings: dict[str, Any]
    ) -> None:
        """Put the results into ``adata``, all at once."""
        levels = parts[0]["levels"][0]
        counts = [part["counts"] for part in parts]
        results: dict[str, Any] = {
            key: np.concatenate([part["mean"] for part in parts]),
            f"{key}_std": np.concatenate([part["std"] for part in parts]),
            f"{key}_log1p": np.concatenate([part["log1p"] for part in parts]),
            f"{key}_counts": np.concatenate(counts) if modality == "rna" else sparse.vstack(counts, format="csr"),
        }
        quantiles = np.concatenate([part["quantiles"] for part in parts], 1)
        results |= {f"{key}_q{100 * level:g}": quantiles[i] for i, level in enumerate(levels)}
        if modality == "rna":
            results[f"{key}_foreground"] = np.concatenate([part["foreground"] for part in parts])
            for name, values in results.items():
                values = values if np.issubdtype(values.dtype, np.integer) else values.astype(np.float32)
                adata.obsm[name] = pd.DataFrame(values, index=adata.obs_names, columns=self.protein_names)
        else:
            for name, values in results.items():
                adata.obsm[name] = values if sparse.issparse(values) else values.astype(np.float32)
        units = {name: UNITS[modality][name.removeprefix(key).lstrip("_").rstrip("0123456789.")] for name in results}
        features = self.protein_names if modality == "rna" else self.gene_names
        adata.uns[key] = self._provenance(features=np.asarray(features).astype(str), units=units, **settings)  # type: ignore[attr-defined]

    def _path_expression(self, proteins: np.ndarray) -> np.ndarray:
        """Log-normalised expression that the kernel path predicts from proteins, ``(n, n_genes)``."""
        features, path = self._paths["protein"]  # type: ignore[attr-defined]
        programs = self.paths_["protein"]["programs"]  # type: ignore[attr-defined]
        scores = path(features(proteins))[:, self._state_size :]  # type: ignore[attr-defined]
        return scores @ programs["components"] + programs["mean"]

    def _finish_diffusion(self) -> None:
        """Weigh the kernel path against the draws on the validation cells, which neither has seen."""
        self.path_weights_ = dict(USUAL_WEIGHTS)
        held = self._held_out  # type: ignore[attr-defined]
        self._held_out = None
        if held is None or len(held["rna"].codes) < MIN_VALIDATION:
            return
        for modality, source in held.items():
            n = len(source.codes)
            draws = self._translation_draws(
                source.codes,
                16,
                get_sampler("heun"),
                USUAL_STEPS["heun"],
                self.vocabulary.scales(1.0),
                CellStreams(0, np.arange(n)),
            )
            if modality == "rna":
                truth = np.log1p(held["protein"].counts)
                path = source.codes[:, -draws.shape[2] :][:, self.module.n_latent : -1]
                mean = draws[:, :, self.module.n_latent : -1].mean(1)
            else:
                truth, path = log_normalise(held["rna"].counts), self._path_expression(source.counts)
                mean = np.concatenate(
                    [self._expected_expression(draws[i : i + 64], source.table.subset(np.arange(i, min(i + 64, n))))
                     for i in range(0, n, 64)]
                )
            precision = 1 / np.maximum(np.nanvar(truth, 0), 1e-3) * ~np.isnan(truth)
            gap, error = path - mean, np.nan_to_num(truth) - mean
            weight = float((precision * gap * error).sum() / max(float((precision * gap**2).sum()), 1e-9))
            self.path_weights_[modality] = float(np.clip(weight, 0.0, 1.0))


def _quantiles(counts: np.ndarray, levels: list[float]) -> np.ndarray:
    """Quantiles over draws, ``(n_levels, n_cells, n_features)``.

    By ranks over the number of draws and one: then a new value falls below as often as the level says.
    """
    return np.quantile(counts, levels, axis=1, method="weibull")
