"""How one modality is drawn from the other, and summed up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from diffvi._random import CellStreams
from diffvi.data import TrainingTable, sample_counts
from diffvi.metrics import log_normalise
from diffvi.metrics._resampling import quantiles_of_draws
from diffvi.process import get_sampler

from ._generation import DEFAULT_STEPS
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


class TranslationDrawsMixin(SourceMixin):
    """Draws of a cell's state given one modality, and what they say of the other one."""

    path_weights_: dict[str, float]
    _held_out: dict[str, Source] | None

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
            "quantiles": quantiles_of_draws(counts, levels, axis=1),
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
            "quantiles": quantiles_of_draws(counts, levels, axis=1),
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
        held, self._held_out = self._held_out, None
        if held is None or len(held["rna"].codes) < MIN_VALIDATION:
            return
        for modality, source in held.items():
            n = len(source.codes)
            name, n_steps = self._sampler(None, None, USUAL_STEPS)  # type: ignore[attr-defined]
            draws = self._translation_draws(
                source.codes,
                16,
                get_sampler(name),
                n_steps,
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
                    [
                        self._expected_expression(draws[i : i + 64], source.table.subset(np.arange(i, min(i + 64, n))))
                        for i in range(0, n, 64)
                    ]
                )
            precision = 1 / np.maximum(np.nanvar(truth, 0), 1e-3) * ~np.isnan(truth)
            gap, error = path - mean, np.nan_to_num(truth) - mean
            weight = float((precision * gap * error).sum() / max(float((precision * gap**2).sum()), 1e-9))
            self.path_weights_[modality] = float(np.clip(weight, 0.0, 1.0))
