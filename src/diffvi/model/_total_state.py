"""What the prior of TotalDiffusion learns: the latent, proteins and library of cells, from nothing or from one modality."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.data._utils import _get_adata_minify_type
from sklearn.decomposition import PCA
from torch import Tensor

from diffvi._exceptions import InvalidInputError, one_of
from diffvi._random import CellStreams
from diffvi.data import LatentData, TrainingTable, sample_counts
from diffvi.metrics import log_normalise
from diffvi.module import ORIGIN, KernelPath, ProteinFeatures, RNAFeatures
from diffvi.module._kernel_path import MAX_FITTED
from diffvi.module._multimodal import VIEWS
from diffvi.nn import Attribute

from ._translation_source import Source

SEEN = {"rna": "rna posterior", "protein": "protein posterior"}
"""The attribute of the prior that holds what a modality says of the latent."""

N_PROGRAMS = 30
"""Principal components of the expression that are predicted from proteins."""

N_VALIDATION = 500
"""Validation cells that the weights of the paths are chosen on, at most."""


class TotalStateMixin:
    """The state of a cell with two modalities, and the examples that the prior is trained on.

    The state is (latent, log count of each protein, log library of the RNA). The prior learns it given the user's
    attributes alone, and given one modality: then it starts from what kernel ridge regression on that modality predicts of the
    state (:data:`~diffvi.module.ORIGIN`), and sees a draw from that modality's posterior.
    """

    module: Any
    adata: Any
    registry_: dict[str, Any]
    vocabulary: Any
    summary_stats: Any
    paths_: dict[str, Any] | None
    seen_: dict[str, np.ndarray] | None
    remembered_: np.ndarray | None
    paired_batches_: list[int]
    _held_out: dict[str, Source] | None
    _source: Any

    # ---------------------------------------------------------------- the state

    @property
    def protein_names(self) -> np.ndarray:
        """Names of the proteins, in the order of the state."""
        registry = self.registry_["field_registries"][REGISTRY_KEYS.PROTEIN_EXP_KEY]["state_registry"]
        return np.asarray(registry["column_names"])

    @property
    def gene_names(self) -> np.ndarray:
        """Names of the genes."""
        return np.asarray(self.registry_["field_registries"][REGISTRY_KEYS.X_KEY]["state_registry"]["column_names"])

    @property
    def _state_size(self) -> int:
        return int(self.module.n_latent + self.module.n_input_proteins + 1)

    @property
    def _prior_attributes(self) -> list[Attribute]:
        n = int(self.module.n_latent)
        seen = [Attribute(name, size=n, fixed=True, noise=1.0) for name in SEEN.values()]
        return [*self.vocabulary.attributes, *seen, Attribute(ORIGIN, size=self._state_size, fixed=True)]

    def _posterior_state(self, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and scale of (latent, dequantised log protein counts, log library)."""
        inputs = self.module._get_inference_input(tensors)
        outputs = self.module.inference(**inputs)
        qz = outputs["qz"]
        library = outputs["library_gene"].log()
        decoded = self.module.generative(
            **self.module._get_generative_input(tensors, {**outputs, "z": self.module.encoder.z_transformation(qz.loc)})
        )
        protein, spread = self.module.protein_state(decoded["py_"], inputs["y"])
        return torch.cat([qz.loc, protein, library], 1), torch.cat([qz.scale, spread, torch.zeros_like(library)], 1)

    def _decode(self, state: Tensor, table: TrainingTable) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The decoder's parameters of genes and proteins."""
        n, library = self.module.n_latent, state[:, -1:].exp()
        cells = table.tensors(state.device)
        outputs = self.module.generative(
            z=self.module.encoder.z_transformation(state[:, :n]),
            library_gene=library,
            batch_index=cells["batch"],
            label=cells["labels"],
            cat_covs=cells["cat_covs"],
            cont_covs=cells["cont_covs"],
        )
        return outputs["px_"], outputs["py_"]

    def _draw_cells(self, state: Tensor, table: TrainingTable, streams: CellStreams) -> dict[str, Any]:
        px, py = self._decode(state, table)
        genes, _ = self.module.likelihoods(px, py)
        n, mixing = self.module.n_latent, torch.sigmoid(py["mixing"])
        return {
            "latent": state[:, :n].cpu().numpy(),
            "normalized": px["scale"].cpu().numpy(),
            "counts": sample_counts(genes, streams),
            "protein_counts": self.module.protein_counts(state[:, n:-1]).cpu().numpy().astype(np.int32),
            "protein_normalized": (py["background"] * (mixing + (1 - mixing) * py["fore_scale"])).cpu().numpy(),
            "protein_foreground": (1 - mixing).cpu().numpy(),
        }

    def _assemble(self, arrays: dict[str, Any], obs: pd.DataFrame) -> MuData:
        rna, protein = (
            AnnData(
                X=sparse.csr_matrix(counts),
                obs=pd.DataFrame(index=obs.index),
                var=pd.DataFrame(index=pd.Index(names)),
                layers=layers,
            )
            for counts, names, layers in (
                (arrays["counts"], self.gene_names, {"normalized": arrays["normalized"]}),
                (
                    arrays["protein_counts"],
                    self.protein_names,
                    {"normalized": arrays["protein_normalized"], "foreground": arrays["protein_foreground"]},
                ),
            )
        )
        with warnings.catch_warnings():
            # Of what a coming version will do, and of proteins that are called like genes.
            warnings.simplefilter("ignore")
            cells = MuData(dict(zip(self._modality_names, (rna, protein), strict=True)))
        for name in obs:
            cells.obs[name] = obs[name]
        cells.obsm["X_latent"] = arrays["latent"]
        return cells

    @property
    def _modality_names(self) -> tuple[str, str]:
        """Names of the two modalities in what the model returns."""
        modalities = self.registry_["setup_args"].get("modalities") or {}
        return modalities.get("rna_layer", "rna"), modalities.get("protein_layer", "protein")

    def get_var_names(self, legacy_mudata_format: bool = False) -> Any:
        """Names of the variables, as in scvi; of a MuData by modality, without the data too."""
        names = super().get_var_names(legacy_mudata_format)  # type: ignore[misc]
        if self.adata is None and self.registry_.get("setup_method_name") == "setup_mudata":  # type: ignore[attr-defined]
            return dict(zip(self._modality_names, (names, self.protein_names), strict=True))
        return names

    # ---------------------------------------------------------------- one modality

    @torch.inference_mode()
    def _posterior_of(self, modality: Any, counts: Any, table: TrainingTable) -> tuple[np.ndarray, np.ndarray]:
        """Mean and scale of the latent given one modality, from its raw counts."""
        device = next(self.module.parameters()).device
        means, scales = [], []
        for start in range(0, counts.shape[0], 4096):
            rows = slice(start, start + 4096)
            block = counts[rows]
            block = block.toarray() if sparse.issparse(block) else np.asarray(block)
            x = torch.as_tensor(block, dtype=torch.float32, device=device)
            cells = table.subset(np.arange(start, start + len(x))).tensors(device)
            both = (x, None) if modality == "rna" else (None, x)
            q = self.module.posterior(modality, *both, cells["batch"], cells["cont_covs"], cells["cat_covs"])
            means.append(q.loc.cpu().numpy())
            scales.append(q.scale.cpu().numpy())
        return np.concatenate(means), np.concatenate(scales)

    def get_latent_representation(
        self,
        adata: AnnData | MuData | None = None,
        indices: Sequence[int] | None = None,
        give_mean: bool = True,
        modality: Literal["both", "rna", "protein"] = "both",
        transform_batch: str | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Posterior of the latent, from both modalities or one.

        Parameters
        ----------
        adata
            Cells; for one modality also an AnnData of that alone: see :meth:`translate_rna_to_protein`.
        indices
            Rows of ``adata``, of the modality's own cells where it is one.
        give_mean
            The mean; otherwise a draw.
        modality
            ``"both"`` (RNA alone in cells without proteins), ``"rna"`` or ``"protein"``.
        transform_batch
            Batch to encode cells of one modality with; ``None`` for their own.
        **kwargs
            As in :meth:`scvi.model.TOTALVI.get_latent_representation`, for ``"both"``.

        Returns
        -------
        ``(n_cells, n_latent)``.

        Raises
        ------
        InvalidInputError
            If ``modality`` is not one of those, or the data do not have it.

        Examples
        --------
        >>> model.get_latent_representation(mdata["protein"], modality="protein").shape
        (300, 10)
        """
        if one_of("modality", modality, VIEWS) == "both":
            return super().get_latent_representation(adata, indices, give_mean, **kwargs)  # type: ignore[misc]
        source = self._source(adata, modality, transform_batch)
        rows = np.arange(len(source.codes)) if indices is None else np.asarray(indices)
        mean, scale = self._posterior_of(modality, source.counts[rows], source.table.subset(rows))
        return mean if give_mean else mean + scale * np.random.default_rng().standard_normal(mean.shape)

    @property
    def _n_codes(self) -> int:
        """Columns of the prior's codes: the user's attributes, both posteriors, the origin."""
        return int(self.vocabulary.n_columns + len(SEEN) * self.module.n_latent + self._state_size)

    @property
    def _seen_places(self) -> list[int]:
        """Where the posterior of each modality starts in the codes."""
        return [self.vocabulary.n_columns + i * int(self.module.n_latent) for i in range(len(SEEN))]

    def _origin(self, modality: str, predicted: np.ndarray, counts: Any) -> np.ndarray:
        """The state to start from: what a modality's counts say themselves, and what its path predicts of the rest."""
        n, predicted = self.module.n_latent, predicted[:, : self._state_size]
        if modality == "rna":
            library = np.asarray(counts.sum(1), dtype=np.float32).reshape(-1, 1)
            return np.concatenate([predicted, np.log(np.maximum(library, 1.0))], 1)
        proteins = np.where(np.isnan(counts), predicted[:, n:-1], np.log1p(counts))
        return np.concatenate([predicted[:, :n], proteins, predicted[:, -1:]], 1)

    def _seen_codes(self, modality: str, codes: np.ndarray, posterior: np.ndarray, origin: np.ndarray) -> np.ndarray:
        """Codes of the user's attributes, of one modality's posterior (in units of its spread) and of the origin."""
        assert self.seen_ is not None
        n, start = self.module.n_latent, self.vocabulary.n_columns
        whole = np.full((len(codes), self._n_codes), np.nan, dtype=np.float32)
        whole[:, :start] = codes[:, :start]
        start = self._seen_places[list(SEEN).index(modality)]
        whole[:, start : start + n] = posterior / self.seen_[modality]
        whole[:, -self._state_size :] = origin
        return whole

    @property
    def _paths(self) -> dict[str, tuple[Any, KernelPath]]:
        """For each modality, its features and its regression."""
        kinds: dict[str, Any] = {"rna": RNAFeatures, "protein": ProteinFeatures}
        return {m: (kinds[m](**p["features"]), KernelPath(**p["path"])) for m, p in (self.paths_ or {}).items()}

    def _fit_paths(self, counts: dict[str, Any], state: np.ndarray) -> dict[str, np.ndarray]:
        """Fit the regressions of each modality on the state; predictions for the training cells, by other cells than themselves."""
        features: dict[str, Any] = {
            "rna": RNAFeatures.fit(counts["rna"]),
            "protein": ProteinFeatures.fit(counts["protein"]),
        }
        self.paths_, predicted = {}, {}
        # From proteins also to programs of genes: the latent holds less of the genes than proteins tell.
        expression = log_normalise(counts["rna"])
        pca = PCA(min(N_PROGRAMS, *(size - 1 for size in expression.shape)), random_state=0).fit(expression)
        programs = {"mean": pca.mean_.astype(np.float32), "components": pca.components_.astype(np.float32)}
        targets = {"rna": state[:, :-1], "protein": np.concatenate([state, pca.transform(expression)], 1)}
        for modality, target in targets.items():
            path, predicted[modality] = KernelPath.fit(features[modality](counts[modality]), target)
            self.paths_[modality] = {"features": dict(vars(features[modality])), "path": dict(vars(path))}
        self.paths_["protein"]["programs"] = programs
        return predicted

    # ---------------------------------------------------------------- examples of stage 2

    def _training_rows(
        self, latents: LatentData, table: TrainingTable, split: list[np.ndarray]
    ) -> tuple[LatentData, list[np.ndarray]]:
        """Every cell as it is, twice, and every cell with both modalities once more for each of them."""
        if _get_adata_minify_type(self.adata) is not None:
            raise InvalidInputError(
                "`adata` is minified: stage 2 needs the counts of both modalities, and it holds none."
            )
        counts = self._registered_counts()
        whole = np.full((len(latents.codes), self._n_codes), np.nan, dtype=np.float32)
        whole[:, : latents.codes.shape[1]] = latents.codes
        # Twice, so that half of what the prior learns is to make cells from nothing.
        rows, codes = [np.arange(len(whole)), np.arange(len(whole))], [whole, whole]
        paired = np.flatnonzero(~np.isnan(counts["protein"]).all(1))
        paired = np.random.default_rng(0).permutation(paired)
        paired = paired[np.argsort(~np.isin(paired, split[0]), kind="stable")]
        n_training = int(np.isin(paired, split[0]).sum())
        after_surgery = self.replay_ is not None and self.paths_ is not None  # type: ignore[attr-defined]
        self._held_out = None
        if n_training:
            here, table = {m: c[paired] for m, c in counts.items()}, table.subset(paired)
            posteriors, predicted = self._one_by_one(here, latents.mean[paired], table, n_training, not after_surgery)
            # Cells are mostly translated without their labels, so half of the examples show the batch alone.
            shown = latents.codes[paired, : self.vocabulary.n_columns].copy()
            hidden = np.random.default_rng(0).random(len(paired)) < 0.5
            shown[np.ix_(hidden, np.array(self._all_but_batch, dtype=int))] = np.nan
            for modality in SEEN:
                origin = self._origin(modality, predicted[modality], here[modality])
                codes.append(self._seen_codes(modality, shown, posteriors[modality], origin))
                rows.append(paired)
            chosen = np.flatnonzero(np.isin(paired, split[1]))[:N_VALIDATION]
            numbers = np.arange(len(chosen), dtype=np.uint64)
            self._held_out = {
                m: Source(self.adata, here[m][chosen], seen[chosen], table.subset(chosen), numbers)
                for m, seen in zip(SEEN, codes[2:], strict=True)
            }
        if not after_surgery:
            most = TrainingTable.MAX_CELLS // 5
            self.remembered_ = np.concatenate([whole[:0], *(seen[: min(n_training, most)] for seen in codes[2:])])
        every = np.concatenate(rows)
        joined = LatentData(latents.mean[every], latents.scale[every], np.concatenate(codes))
        return joined, [np.flatnonzero(np.isin(every, part)) for part in split]

    def _one_by_one(
        self, counts: dict[str, Any], state: np.ndarray, table: TrainingTable, n_training: int, fit: bool
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """What each modality says of cells of which the first ``n_training`` may be learned from: posterior and path.

        The paths, and what else is learned of the cells with both modalities, are fitted unless they are those of a reference.
        """
        n_fitted = min(n_training, MAX_FITTED) if fit else 0
        if fit:
            held = self._fit_paths({m: c[:n_fitted] for m, c in counts.items()}, state[:n_fitted])
            self.seen_, self.paired_batches_ = {}, []
        self.paired_batches_ = sorted({*self.paired_batches_, *np.unique(table.batch[:n_training]).tolist()})
        posteriors, predicted = {}, {}
        for modality, (features, path) in self._paths.items():
            posteriors[modality], scale = self._posterior_of(modality, counts[modality], table)
            if fit:
                assert self.seen_ is not None
                self.seen_[modality] = np.maximum(np.median(scale[:n_training], 0), 1e-6)
            new = path(features(counts[modality][n_fitted:]))
            # The cells that a path is fitted on are predicted by others: what is left to learn is what is left in new cells.
            predicted[modality] = np.concatenate([held[modality], new]) if fit else new
        return posteriors, predicted

    def _replayed(self, table: TrainingTable) -> tuple[TrainingTable, np.ndarray]:
        """The remembered cells from nothing, and those of which a modality is known from that."""
        more = self._n_codes - table.codes.shape[1]
        codes = np.pad(table.codes, ((0, 0), (0, more)), constant_values=np.nan)
        if self.remembered_ is None or not len(self.remembered_):
            return table, codes
        own = self.remembered_[:, : table.codes.shape[1]]
        matched = table.subset(table.match(own, np.random.default_rng(0).random(len(own))))
        return table.append(matched), np.concatenate([codes, self.remembered_])

    @property
    def _all_but_batch(self) -> list[int]:
        """Columns of the user's attributes other than the batch."""
        batch = self.registry_["setup_args"].get("batch_key")
        return [
            i
            for name, where in self.vocabulary.columns.items()
            if name != batch
            for i in range(where.start, where.stop)
        ]

    def _registered_counts(self) -> dict[str, Any]:
        """Raw counts of the model's data: RNA as CSR, proteins with NaN where missing."""
        manager = self.adata_manager  # type: ignore[attr-defined]
        x = manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        x = x[:] if not isinstance(x, np.ndarray) and not sparse.issparse(x) else x
        return {
            "rna": sparse.csr_matrix(x),
            "protein": self._registered_proteins(),
        }

    def _registered_proteins(self) -> np.ndarray:
        """Protein counts of the model's data, NaN where missing."""
        return np.asarray(self.adata_manager.get_from_registry(REGISTRY_KEYS.PROTEIN_EXP_KEY))  # type: ignore[attr-defined]
