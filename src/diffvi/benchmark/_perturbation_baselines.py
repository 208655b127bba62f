"""Effects of perturbations without a deep model (and scGen's arithmetic): control cells, moved by a predicted change."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import scvi
from anndata import AnnData
from sklearn.decomposition import PCA

from diffvi._exceptions import InvalidInputError
from diffvi.metrics import log_normalise

from ._generation_baselines import decode


class PerturbationPredictor(Protocol):
    """A method that predicts perturbed cells from control cells."""

    name: str

    def fit(self, train: AnnData, perturbation_key: str, control: str, context_key: str | None) -> None:
        """Learn from raw counts of control and perturbed cells in one or several contexts (cell types, donors).

        Parameters
        ----------
        train
            Cells by genes, raw counts in ``X``; what is to be predicted is held out.
        perturbation_key, control
            Column of ``train.obs`` with the perturbation, parts joined by ``+`` in alphabetical order, and the name of the control.
        context_key
            Column with the context; ``None`` for one context.
        """

    def predict(self, control: AnnData, perturbation: str) -> np.ndarray:
        """Log-normalised expression of the control cells (raw counts, one context) under a perturbation.

        Parameters
        ----------
        control
            Control cells, raw counts in ``X``.
        perturbation
            Name of the perturbation.

        Returns
        -------
        ``(n_cells, n_genes)``, log-normalised: ``log(1 + 10,000 x share of the counts)``.
        """


def parts(perturbation: str) -> list[str]:
    """Single perturbations of a combined one, in alphabetical order.

    Parameters
    ----------
    perturbation
        Name, its parts joined by ``+``.

    Returns
    -------
    Names of the parts.

    Examples
    --------
    >>> parts("KLF1+BAK1")
    ['BAK1', 'KLF1']
    """
    return sorted(perturbation.split("+"))


def canonical(perturbation: str, control: str) -> str:
    """One name for one perturbation: parts in alphabetical order, without the control.

    Parameters
    ----------
    perturbation
        Name, its parts joined by ``+`` in any order.
    control
        Name of the control.

    Returns
    -------
    The name; that of the control where nothing else is left.

    Examples
    --------
    >>> canonical("KLF1+BAK1", "ctrl"), canonical("KLF1+ctrl", "ctrl"), canonical("ctrl", "ctrl")
    ('BAK1+KLF1', 'KLF1', 'ctrl')
    """
    return "+".join(part for part in parts(perturbation) if part != control) or control


def mean_changes(
    values: np.ndarray, cells: AnnData, perturbation_key: str, control: str, context_key: str | None
) -> dict[str, np.ndarray]:
    """Change of the mean of ``values`` under every perturbation: within each context, then averaged over contexts.

    Contexts without control cells are left out.

    Parameters
    ----------
    values
        Expression or latents of the cells, ``(n_cells, d)``.
    cells
        The cells, for their ``obs``.
    perturbation_key, control, context_key
        Columns with the perturbation and the context (``None`` for one context), and the name of the control.

    Returns
    -------
    Change by name of the perturbation, ``(d,)`` each.

    Raises
    ------
    InvalidInputError
        If there are no control cells, or none in a context with perturbed cells.

    Examples
    --------
    >>> import numpy as np
    >>> from anndata import AnnData
    >>> cells = AnnData(np.zeros((4, 1)), obs={"drug": ["none", "none", "A", "A"]})
    >>> mean_changes(np.array([[1.0], [3.0], [5.0], [7.0]]), cells, "drug", "none", None)
    {'A': array([4.])}
    """
    names = cells.obs[perturbation_key].to_numpy(str)
    if control not in names:
        raise InvalidInputError(f"`control`: no cell of the training data has the perturbation {control!r}.")
    contexts = cells.obs[context_key].to_numpy(str) if context_key else np.full(len(names), "")
    changes: dict[str, list[np.ndarray]] = {}
    for context in np.unique(contexts):
        here = contexts == context
        if not (here & (names == control)).any():
            continue
        base = values[here & (names == control)].mean(0)
        for name in np.unique(names[here & (names != control)]):
            changes.setdefault(str(name), []).append(values[here & (names == name)].mean(0) - base)
    if not changes:
        raise InvalidInputError(f"`control`: no context has cells of {control!r} and of a perturbation.")
    return {name: np.mean(found, axis=0) for name, found in changes.items()}


class NoChange:
    """The control cells as they are.

    Examples
    --------
    >>> from diffvi.benchmark import NoChange
    >>> from diffvi.datasets import simulate_perturbations
    >>> cells = simulate_perturbations(600, 20, seed=0)
    >>> method = NoChange()
    >>> method.fit(cells, "perturbation", "control", "cell_type")
    >>> bool(method.change("A").any())
    False
    """

    name = "no change"
    effects: dict[str, np.ndarray]
    mean_effect: np.ndarray

    def fit(self, train: AnnData, perturbation_key: str, control: str, context_key: str | None) -> None:
        """Mean change under every training perturbation, over contexts, ``effects``."""
        self.effects = mean_changes(log_normalise(train.X), train, perturbation_key, control, context_key)
        self.mean_effect = np.mean(list(self.effects.values()), axis=0)
        self.genes = train.var_names
        self.base = log_normalise(train.X[(train.obs[perturbation_key] == control).to_numpy()]).mean(0)
        self.learn()

    def learn(self) -> None:
        """What a subclass takes from the effects."""

    def effects_of_parts(self, perturbation: str) -> np.ndarray:
        """Effects of the parts, the mean effect for one not seen, ``(n_parts, n_genes)``."""
        return np.stack([self.effects.get(p, self.mean_effect) for p in parts(perturbation)])

    def change(self, perturbation: str) -> np.ndarray:
        """Predicted change of the mean, ``(n_genes,)``."""
        return np.zeros(len(self.genes))

    def predict(self, control: AnnData, perturbation: str) -> np.ndarray:
        """Control cells plus the change.

        Not cut at zero, so that the mean is exactly what the method predicts; as cells they are crude.
        """
        return log_normalise(control.X) + self.change(perturbation)


class MeanEffect(NoChange):
    """The mean effect of all training perturbations, whatever is asked for ("perturbed mean").

    Examples
    --------
    >>> from diffvi.benchmark import MeanEffect
    >>> from diffvi.datasets import simulate_perturbations
    >>> cells = simulate_perturbations(600, 20, seed=0)
    >>> method = MeanEffect()
    >>> method.fit(cells, "perturbation", "control", "cell_type")
    >>> bool((method.change("A") == method.change("B+C")).all())  # whatever is asked for
    True
    """

    name = "mean effect"

    def change(self, perturbation: str) -> np.ndarray:
        """The mean effect, ``(n_genes,)``."""
        return self.mean_effect


class MatchingMean(MeanEffect):
    """Mean of the effects of the parts; the mean effect for a part not seen (Systema, Viñas Torné et al. 2025).

    Examples
    --------
    >>> import numpy as np
    >>> from diffvi.benchmark import MatchingMean
    >>> from diffvi.datasets import simulate_perturbations
    >>> cells = simulate_perturbations(600, 20, seed=0)
    >>> cells = cells[~cells.obs["perturbation"].str.contains("+", regex=False)].copy()  # no combinations
    >>> method = MatchingMean()
    >>> method.fit(cells, "perturbation", "control", "cell_type")
    >>> bool(np.allclose(method.change("A+B"), (method.effects["A"] + method.effects["B"]) / 2))
    True
    """

    name = "matching mean"

    def change(self, perturbation: str) -> np.ndarray:
        """Mean over the parts, ``(n_genes,)``; the measured effect of a perturbation that was seen."""
        if perturbation in self.effects:
            return self.effects[perturbation]
        return np.mean(self.effects_of_parts(perturbation), axis=0)


class Additive(MeanEffect):
    """Sum of the effects of the parts, times a scale fitted on the training combinations.

    For a perturbation seen in other contexts its mean effect there; for a part not seen the mean effect.

    Examples
    --------
    >>> import numpy as np
    >>> from diffvi.benchmark import Additive
    >>> from diffvi.datasets import simulate_perturbations
    >>> cells = simulate_perturbations(600, 20, seed=0)
    >>> cells = cells[~cells.obs["perturbation"].str.contains("+", regex=False)].copy()  # no combinations
    >>> method = Additive()
    >>> method.fit(cells, "perturbation", "control", "cell_type")
    >>> bool(np.allclose(method.change("A+B"), method.effects["A"] + method.effects["B"]))
    True
    """

    name = "additive"
    scale = 1.0

    def learn(self) -> None:
        """Least squares of training combinations on the sums of their parts."""
        self.scale = 1.0
        known = [name for name in self.effects if len(parts(name)) > 1 and set(parts(name)) <= set(self.effects)]
        if known:
            sums = np.concatenate([self.sum(name) for name in known])
            whole = np.concatenate([self.effects[name] for name in known])
            self.scale = float(sums @ whole / (sums @ sums))

    def sum(self, perturbation: str) -> np.ndarray:
        """Sum of the effects of the parts, ``(n_genes,)``."""
        return np.sum(self.effects_of_parts(perturbation), axis=0)

    def change(self, perturbation: str) -> np.ndarray:
        """Scaled sum of the parts, ``(n_genes,)``; the measured effect of a perturbation that was seen."""
        if perturbation in self.effects:
            return self.effects[perturbation]
        return self.sum(perturbation) * (self.scale if len(parts(perturbation)) > 1 else 1.0)


class BilinearRidge(MeanEffect):
    """Gene factors times perturbation factors (Ahlmann-Eltze, Huber and Anders 2025).

    Mean expression is fitted by ``G W P^T + b``: the gene factors ``G`` are principal components of the mean expression
    under the training conditions (control included), ``b`` is its mean, and ``P`` holds for a single perturbation the
    factors of the gene that it targets, for the control zeros. Conditions whose target is not measured take no part
    in the fit, and a prediction for one is ``b``. For a combination, which the source does not treat, the changes
    from the control are summed over its parts.

    Parameters
    ----------
    n_components
        Number of factors.
    penalty
        Ridge penalty of ``W`` on either side.

    Examples
    --------
    >>> from diffvi.benchmark import BilinearRidge
    >>> from diffvi.datasets import simulate_perturbations
    >>> cells = simulate_perturbations(600, 20, seed=0)
    >>> cells.var_names = list("ABCDEFGHIJKLMNOPQRST")  # perturbations are named after the genes that they target
    >>> method = BilinearRidge()
    >>> method.fit(cells, "perturbation", "control", "cell_type")
    >>> method.change("A").shape, method.factors("Z").any()  # a target that is not measured has no factors
    ((20,), np.False_)
    """

    name = "bilinear ridge"

    def __init__(self, n_components: int = 10, penalty: float = 0.1) -> None:
        self.n_components, self.penalty = n_components, penalty

    def learn(self) -> None:
        """Solve for ``W``."""
        everything = np.stack([self.base, *(self.base + effect for effect in self.effects.values())], 1)
        k = min(self.n_components, everything.shape[1] - 1)
        self.g = PCA(max(k, 1), random_state=0).fit_transform(everything)
        usable = [n for n in self.effects if len(parts(n)) == 1 and n in self.genes]
        y = np.stack([self.base, *(self.base + self.effects[n] for n in usable)], 1)
        p = np.stack([np.zeros(self.g.shape[1]), *(self.factors(n) for n in usable)])
        self.offset = y.mean(1)
        ridge = self.penalty * np.eye(self.g.shape[1])
        left = np.linalg.solve(self.g.T @ self.g + ridge, self.g.T @ (y - self.offset[:, None]))
        self.w = left @ p @ np.linalg.inv(p.T @ p + ridge)

    def factors(self, perturbation: str) -> np.ndarray:
        """Factors of the target, ``(n_components,)``; zeros where it is not measured."""
        known = perturbation in self.genes
        return self.g[self.genes.get_loc(perturbation)] if known else np.zeros(self.g.shape[1])

    def change(self, perturbation: str) -> np.ndarray:
        """Sum over the parts of ``G W P^T + b`` minus the control, ``(n_genes,)``."""
        changes = [self.g @ self.w @ self.factors(part) + self.offset - self.base for part in parts(perturbation)]
        return np.sum(changes, axis=0)


class LatentShift(NoChange):
    """scGen's arithmetic (Lotfollahi et al. 2019) on an scVI latent: add the mean latent change, decode.

    Changes of a combination's parts are added; the mean change stands in for a part not seen.

    Examples
    --------
    >>> from diffvi.benchmark import LatentShift
    >>> from diffvi.datasets import simulate_perturbations
    >>> cells = simulate_perturbations(200, 20, seed=0)
    >>> method = LatentShift()
    >>> method.fit(cells, "perturbation", "control", "cell_type")
    >>> method.effects["A"].shape, method.predict(cells[:5], "A+B").shape  # a shift of the 10 latent dimensions
    ((10,), (5, 20))
    """

    name = "latent shift (scGen)"

    def fit(self, train: AnnData, perturbation_key: str, control: str, context_key: str | None) -> None:
        """Train :class:`scvi.model.SCVI` with its defaults, then take the changes of the latent mean."""
        data = AnnData(train.X.copy(), obs=train.obs.copy(), var=train.var[[]].copy())
        scvi.model.SCVI.setup_anndata(data)
        self.model = scvi.model.SCVI(data)
        self.model.train(enable_progress_bar=False)
        self.model.to_device("cpu")
        z = self.model.get_latent_representation()
        self.effects = mean_changes(z, train, perturbation_key, control, context_key)
        self.mean_effect = np.mean(list(self.effects.values()), axis=0)

    def predict(self, control: AnnData, perturbation: str) -> np.ndarray:
        """Control cells, encoded, shifted, and decoded at their own library sizes."""
        shift = self.effects.get(perturbation, self.effects_of_parts(perturbation).sum(0))
        cells = AnnData(control.X.copy(), obs=control.obs.copy(), var=control.var[[]].copy())
        z = self.model.get_latent_representation(cells) + shift
        library = np.maximum(np.asarray(control.X.sum(1)).ravel(), 1)
        return log_normalise(decode(self.model, z, library).mean.numpy())


PERTURBATION_BASELINES: list[type[PerturbationPredictor]] = [
    NoChange,
    MeanEffect,
    MatchingMean,
    Additive,
    BilinearRidge,
    LatentShift,
]
