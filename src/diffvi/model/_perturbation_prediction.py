"""Counterfactual cells: control cells as they would look after a perturbation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import anndata as ad
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.data._utils import _get_adata_minify_type
from scvi.utils import track

from diffvi._exceptions import InvalidInputError, one_of, positive_int, seed_or_random
from diffvi._random import CellStreams, cell_number, nth_seed
from diffvi.data import Treatment, sample_counts, transport_counts

from ._notes import without_notes
from ._perturbation_calibration import USUAL_STEPS
from ._perturbation_effects import PerturbationEffectsMixin
from ._requests import log_library_of

DECODERS = ("transport", "resample")


class PerturbationPredictionMixin(PerturbationEffectsMixin):
    """Prediction of perturbed cells, and differential expression between them and control cells."""

    def predict_perturbation(
        self,
        adata: AnnData | None = None,
        perturbation: str | Sequence[str] = "",
        dose: float | Sequence[float] | None = None,
        n_samples: int = 1,
        use_diffusion: bool | Literal["auto"] = "auto",
        decode: Literal["transport", "resample"] = "transport",
        library_size: float | Sequence[float] | np.ndarray | Literal["perturbed"] | None = None,
        unseen: str | None = None,
        guidance_scale: float = 1.0,
        n_steps: int | None = None,
        sampler: str | None = None,
        key_added: str = "perturbed",
        seed: int | None = None,
        batch_size: int = 2048,
        show_progress: bool = False,
        copy: bool = False,
    ) -> AnnData | None:
        """Predict what control cells would look like after a perturbation.

        Parameters
        ----------
        adata
            Control cells, with raw counts of the model's genes; ``None`` for the control cells of the model's data,
            which are then returned as a copy.
        perturbation
            Name of the perturbation, or one for each cell. Combinations are joined by the separator, in any order.
        dose
            Dose, one number or one for each cell, in models with ``dose_key``.
        n_samples
            Draws a cell; mean and standard deviation are over all of them, the counts are the first.
        use_diffusion
            Draw each cell's change; otherwise all cells change as expected of cells like them. ``"auto"``: draw, unless that took predicted
            cells further from the real ones of training (``model.spread_gain_`` below 0), as it does where perturbations are weak.
        decode
            ``"transport"``: move the cell's own counts by the ratio of the decoded rates (see
            :func:`~diffvi.data.transport_counts`). ``"resample"``: draw new counts from the decoder.
        library_size
            ``None`` for the cell's own. ``"perturbed"``: its own, changed as the perturbation changes it on average, as far as that
            repeats (``model.library_shares_``): perturbed cells may be larger or smaller, which moves log-normalised values of all
            genes. A number, or one for each cell: expected total counts, for ``decode="resample"`` alone.
        unseen
            ``"mean"`` to predict the mean effect where nothing is known of a perturbation, which is otherwise refused.
        guidance_scale, n_steps, sampler
            As in :meth:`generate`, but for the default of 2 steps of Heun (4 on curved paths).
        key_added
            Writes ``layers[key_added]`` (counts), ``layers[key_added + "_mean"]`` and ``layers[key_added + "_std"]`` (of the
            counts), ``obsm["X_" + key_added]`` (latent), ``obsm["X_" + key_added + "_delta"]`` (its change),
            ``obs[key_added + "_status"]`` and ``uns[key_added]`` (units, status, provenance).
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
            For a perturbation of which nothing is known, cells that are perturbed already, or an argument that is not
            allowed.

        Examples
        --------
        >>> control = adata[adata.obs["perturbation"] == "control"].copy()
        >>> model.predict_perturbation(control, "A+B", seed=0)
        >>> control.layers["perturbed"].dtype, control.layers["perturbed_mean"].shape == control.shape
        (dtype('int32'), True)
        """
        self._require("diffusion")
        one_of("decode", decode, DECODERS)
        draw = self._draws_changes(use_diffusion)
        n_samples, batch_size = positive_int("n_samples", n_samples), positive_int("batch_size", batch_size)
        sampler, n_steps = self._sampler(sampler, n_steps, USUAL_STEPS)
        scale = self.vocabulary.scales(guidance_scale)
        seed = seed_or_random(seed)
        if isinstance(library_size, str) and library_size != "perturbed":
            raise InvalidInputError(
                f'`library_size` must be None, "perturbed", a number or one for each cell; got {library_size!r}.'
            )
        if library_size is not None and not isinstance(library_size, str) and decode == "transport":
            raise InvalidInputError(
                '`library_size` needs `decode="resample"` where it is a number: transport moves the counts that are there.'
            )
        if adata is None:
            adata, copy = self._control_cells(), True
        treatments = self._wanted(adata, perturbation, dose, unseen)
        moves_library = isinstance(library_size, str)
        fixed = None if moves_library else log_library_of(library_size, adata.n_obs)
        self._require_controls(adata)
        if _get_adata_minify_type(adata) is not None:
            raise InvalidInputError("`adata` is minified: a prediction moves counts, and it holds none.")
        adata = adata.copy() if copy else adata

        with without_notes():
            latents, table = self._latent_data(adata, batch_size=batch_size)
        counts = self.get_anndata_manager(adata, required=True).get_from_registry(REGISTRY_KEYS.X_KEY)
        names = np.array([cell_number(name) for name in adata.obs_names], dtype=np.uint64)
        contexts = self._contexts(latents.codes)
        weights = self._responses.predict(unique := sorted(set(treatments)))
        number = {t: i for i, t in enumerate(unique)}
        parts: list[dict[str, Any]] = []
        starts = range(0, adata.n_obs, batch_size)
        for start in track(starts, description="Predicting", style="tqdm", disable=not show_progress):
            rows = np.arange(start, min(start + batch_size, adata.n_obs))
            mine, where = [treatments[i] for i in rows], [contexts[i] for i in rows]
            weighting = weights.weights[[number[t] for t in mine]]
            here = {
                "state": latents.mean[rows],
                "spread": latents.scale[rows],
                "counts": sparse.csr_matrix(counts[rows]),
                "table": table.subset(rows),
                "treatments": mine,
                "codes": self._paired_codes(latents.mean[rows], mine, where),
                "library": None if fixed is None else fixed[rows],
                "library_change": self._log_library_change(weighting, where) if moves_library else 0.0,
                "offset": self._log_offset(weighting, where),
            }
            draws = [
                self._predict_batch(
                    here, CellStreams(nth_seed(seed, k), names[rows]), draw, decode, sampler, n_steps, scale
                )
                for k in range(n_samples)
            ]
            parts.append(_summary(draws, latents.mean[rows, :-1]))
        status = [weights.status[number[t]] for t in treatments]
        library = "perturbed" if moves_library else "own" if fixed is None else "given"
        self._write(adata, key_added, parts, status, {"decode": decode, "use_diffusion": draw, "seed": seed, "library_size": library,
            "sampler": sampler, "n_steps": n_steps, "n_samples": n_samples, "guidance_scale": guidance_scale})  # fmt: skip
        return adata if copy else None

    def _wanted(self, adata: AnnData, perturbation: Any, dose: Any, unseen: str | None) -> list[Treatment]:
        """A treatment for every cell."""
        values = {}
        for name, value in (("perturbation", perturbation), ("dose", dose)):
            single = value is None or isinstance(value, str) or np.ndim(value) == 0
            values[name] = [value] * adata.n_obs if single else list(value)
            if len(values[name]) != adata.n_obs:
                raise InvalidInputError(f"`{name}` has {len(values[name])} values for {adata.n_obs} cells.")
        if not isinstance(perturbation, str) and any(not isinstance(p, str) for p in values["perturbation"]):
            raise InvalidInputError(f"`perturbation` must be a name or one for each cell; got {perturbation!r}.")
        if "" in values["perturbation"]:
            raise InvalidInputError("`perturbation` must name a perturbation; got ''.")
        asked = set(zip(values["perturbation"], values["dose"], strict=True))
        known = {pair: self._resolve(*pair, unseen) for pair in asked}
        return [known[pair] for pair in zip(values["perturbation"], values["dose"], strict=True)]

    def _draws_changes(self, use_diffusion: Any) -> bool:
        """Whether changes are drawn."""
        if isinstance(use_diffusion, bool | np.bool_):
            return bool(use_diffusion)
        if use_diffusion != "auto":
            raise InvalidInputError(f'`use_diffusion` must be True, False or "auto"; got {use_diffusion!r}.')
        return self.spread_gain_ is None or self.spread_gain_ > 0

    def _control_cells(self) -> AnnData:
        if self.adata is None:
            raise InvalidInputError("`adata`: the model was loaded without data; give the control cells to perturb.")
        codes = np.asarray(self.adata.obsm["_diffvi_conditions"])
        return self.adata[np.array([t == () for t in self._treatments(codes)])].copy()

    def _require_controls(self, adata: AnnData) -> None:
        key = self.perturbation_key
        found = self._coder.treatments(adata, key)
        if n := sum(bool(t) for t in found):
            raise InvalidInputError(
                f"`adata`: {n} of {adata.n_obs} cells are perturbed already ({key!r}); give control cells, such as "
                f"`adata[adata.obs[{key!r}] == {self._coder.control!r}]`."
            )

    @torch.inference_mode()
    def _predict_batch(
        self,
        here: dict[str, Any],
        streams: CellStreams,
        use_diffusion: bool,
        decode: str,
        sampler: str,
        n_steps: int,
        scale: list[float],
    ) -> dict[str, Any]:
        """One draw for one minibatch; cells under no perturbation come out as they went in."""
        prior = self.module.prior
        device = prior.shift.device
        start = torch.as_tensor(here["state"], dtype=torch.float32, device=device)
        if use_diffusion:
            state = self._sampled(here["codes"], streams, sampler, n_steps, scale)
        else:
            state = prior.mean(torch.as_tensor(here["codes"], device=device))
        idle = torch.tensor([not t for t in here["treatments"]], device=device)
        state = torch.where(idle[:, None], start, state)
        state[:, -1] = start[:, -1] + torch.as_tensor(here["library_change"], dtype=start.dtype, device=device)
        latent = state[:, :-1].cpu().numpy()
        if decode == "transport":
            after = _offset(self._decode(state, here["table"]), here["offset"])
            before = self._decode(start, here["table"])
            counts, mean, variance = transport_counts(here["counts"], before, after, streams)
        else:
            # The latent of the control cell is known up to its posterior, which the decoder was trained on.
            spread = torch.as_tensor(here["spread"], dtype=torch.float32, device=device)
            spread[:, -1] = 0.0
            state = state + spread * streams.normal(prior.d).to(device)
            if here["library"] is not None:
                state[:, -1] = torch.as_tensor(here["library"], dtype=state.dtype, device=device)
            px = _offset(self._decode(state, here["table"]), here["offset"])
            counts, mean, variance = sample_counts(px, streams), px.mean.cpu().numpy(), px.variance.cpu().numpy()
        return {"counts": counts, "mean": mean, "variance": variance, "latent": latent}

    def _write(
        self, adata: AnnData, key: str, parts: list[dict[str, Any]], status: list[str], settings: dict[str, Any]
    ) -> None:
        """Put the results into ``adata``, all at once."""
        whole = {name: np.concatenate([p[name] for p in parts]) for name in ("mean", "std", "latent", "delta")}
        adata.layers[key] = sparse.vstack([p["counts"] for p in parts], format="csr")
        adata.layers[f"{key}_mean"] = whole["mean"].astype(np.float32)
        adata.layers[f"{key}_std"] = whole["std"].astype(np.float32)
        adata.obsm[f"X_{key}"], adata.obsm[f"X_{key}_delta"] = whole["latent"], whole["delta"]
        adata.obs[f"{key}_status"] = pd.Categorical(status)
        units = {
            key: "counts: one draw, at the cell's own library unless told otherwise",
            f"{key}_mean": "expected counts, given the cell's own under transport",
            f"{key}_std": "standard deviation of the counts over draws: count noise and the spread of the response, not "
            "how uncertain the effect is (see get_perturbation_effect)",
            f"X_{key}": "latent, mean over draws",
            f"X_{key}_delta": "change of the latent, mean over draws",
        }
        unique, sizes = np.unique(status, return_counts=True)
        counted = {str(s): int(n) for s, n in zip(unique, sizes, strict=True)}
        adata.uns[key] = self._provenance(units=units, status=counted, **settings)

    def differential_expression(
        self,
        adata: AnnData | None = None,
        *args: Any,
        perturbation: str | None = None,
        reference: str | None = None,
        dose: float | None = None,
        seed: int | None = 0,
        **kwargs: Any,
    ) -> pd.DataFrame:
        """Differential expression, as in :meth:`scvi.model.SCVI.differential_expression`, or of a perturbation.

        Parameters
        ----------
        adata
            Cells; ``None`` for the model's own.
        *args, **kwargs
            As in :meth:`scvi.model.SCVI.differential_expression`.
        perturbation
            Compare the cells under this perturbation with ``reference``. Where ``adata`` has no such cells, with cells
            predicted from its control cells (column ``cells`` of the result: ``"observed"`` or ``"predicted"``).
        reference
            A perturbation; ``None`` for the control.
        dose
            Dose of ``perturbation``, in models with doses.
        seed
            Seed of the predicted cells.

        Returns
        -------
        The table of :meth:`scvi.model.SCVI.differential_expression`, a row a gene.

        Raises
        ------
        InvalidInputError
            If ``reference`` has no cells, or nothing is known of ``perturbation``.

        Examples
        --------
        >>> rest = adata[adata.obs["perturbation"] != "A+B"].copy()
        >>> table = model.differential_expression(rest, perturbation="A+B", silent=True)
        >>> len(table), table["cells"].unique().tolist()
        (40, ['predicted'])
        """
        if perturbation is None:
            return super().differential_expression(adata, *args, **kwargs)  # type: ignore[misc]
        self._require("diffusion")
        adata = self._own_cells(adata)  # type: ignore[attr-defined]
        found = self._coder.treatments(adata, self.perturbation_key)
        treatment = self._resolve(perturbation, dose)
        other = () if reference is None else self._coder.parse(reference, 1.0 if dose is None else dose)
        second = np.array([t == other for t in found])
        if not second.any():
            raise InvalidInputError(f"`reference`: adata has no cells of {reference or self._coder.control!r}.")
        first = np.array([t == treatment for t in found])
        if first.any():
            result = super().differential_expression(adata, idx1=first, idx2=second, **kwargs)  # type: ignore[misc]
            return result.assign(cells="observed")
        predicted = adata[np.array([t == () for t in found])].copy()
        self.predict_perturbation(predicted, perturbation, dose=dose, seed=seed)
        layer = self.registry_["setup_args"].get("layer")
        if layer is None:
            predicted.X = predicted.layers["perturbed"].astype(predicted.X.dtype)
        else:
            predicted.layers[layer] = predicted.layers["perturbed"].astype(predicted.layers[layer].dtype)
        # A perturbed cell may have lost all of its few counts; nothing can be said of its expression.
        library = np.asarray((predicted.X if layer is None else predicted.layers[layer]).sum(1)).ravel()
        both = ad.concat([predicted[library > 0], adata[second]], index_unique="-")
        first = np.arange(both.n_obs) < int((library > 0).sum())
        result = super().differential_expression(both, idx1=first, idx2=~first, **kwargs)  # type: ignore[misc]
        return result.assign(cells="predicted")


def _offset(px: Any, log_offset: np.ndarray | None) -> Any:
    """A count distribution with its mean expression multiplied, gene by gene, and the totals as they were."""
    if log_offset is None:
        return px
    rate = px.rate if hasattr(px, "rate") else px.mu
    factor = torch.as_tensor(np.exp(log_offset), dtype=rate.dtype, device=rate.device)
    moved = rate * factor
    moved = moved * (rate.sum(1, keepdim=True) / moved.sum(1, keepdim=True))
    if hasattr(px, "theta"):
        inflation = {"zi_logits": px.zi_logits} if hasattr(px, "zi_logits") else {}
        return type(px)(mu=moved, theta=px.theta, **inflation)
    return type(px)(rate=moved)


def _summary(draws: list[dict[str, Any]], start: np.ndarray) -> dict[str, Any]:
    """Mean and standard deviation over draws, by the law of total variance; the counts of the first."""
    means = np.stack([d["mean"] for d in draws])
    variance = np.mean([d["variance"] for d in draws], axis=0) + means.var(0)
    delta = np.mean([d["latent"] - start for d in draws], axis=0)
    return {
        "counts": draws[0]["counts"],
        "mean": means.mean(0),
        "std": np.sqrt(variance),
        "latent": start + delta,
        "delta": delta,
    }
