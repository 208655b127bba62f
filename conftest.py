"""What the examples in the docstrings of model methods start from: a briefly trained ``model`` and its data."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import pytest
from _pytest.doctest import DoctestItem

PREFIXES = {
    "_perturb": "PerturbDiffusion",
    "_total": "TotalDiffusion",
    "_translation": "TotalDiffusion",
    "_traject": "TrajectoryDiffusion",
    "_spa": "SpatialDiffusion",
}


def model_of(path: Path) -> str:
    """Name of the class whose methods a file of ``diffvi/model`` (or a figure's file) documents."""
    return next((name for prefix, name in PREFIXES.items() if path.name.startswith(prefix)), "LatentDiffusionSCVI")


@functools.cache
def example(name: str) -> dict[str, Any]:
    """Data and a model that has seen it for two epochs; nothing but examples is to be made of these."""
    import scvi

    import diffvi

    scvi.settings.seed = 0
    cls, arguments = getattr(diffvi.model, name), {}
    if name == "PerturbDiffusion":
        data = diffvi.datasets.simulate_perturbations(600, 40, seed=0)
        cls.setup_anndata(data, perturbation_key="perturbation", control="control", labels_key="cell_type")
    elif name == "TotalDiffusion":
        data = diffvi.datasets.simulate_cite(300, 40, seed=0)
        cls.setup_mudata(data, modalities={"rna_layer": "rna", "protein_layer": "protein"})
    elif name == "TrajectoryDiffusion":
        data = diffvi.datasets.simulate_trajectory(80, 40, seed=0)
        cls.setup_anndata(data, time_key="time", labels_key="fate")
    elif name == "SpatialDiffusion":
        data = diffvi.datasets.simulate_tissue(300, 40, seed=0)
        cls.setup_anndata(data, spatial_key="spatial", labels_key="cell_type")
        arguments = {"n_latent": 5, "n_neighbors": 6}
    else:
        data = diffvi.datasets.simulate_cells(300, 40, n_types=3, n_batches=2, mean_library=400, seed=0)
        cls.setup_anndata(data, labels_key="cell_type", batch_key="batch")
    model = cls(data, **arguments)
    # What takes long is the fit of the covariance, of the model in space, and the many small minibatches of the others.
    model.KRIGING_STEPS = 20
    model.train(max_epochs=2, max_epochs_diffusion=2, batch_size_diffusion=1024, enable_progress_bar=False)
    return {"model": model, "mdata" if name == "TotalDiffusion" else "adata": data}


@pytest.fixture(autouse=True)
def _model_for_examples(
    request: pytest.FixtureRequest, doctest_namespace: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    node, folder = request.node, request.path.parent.name
    if not isinstance(node, DoctestItem) or folder not in ("model", "diffvi", "pl", "benchmark"):
        yield
        return
    monkeypatch.chdir(tmp_path)
    import scvi

    import diffvi

    whole = " ".join(e.source for e in node.dtest.examples)
    if folder == "benchmark":
        # The baselines train for as long as scvi does; what examples show is true after a few epochs.
        for cls in (scvi.model.SCVI, scvi.model.TOTALVI):
            monkeypatch.setattr(cls, "train", functools.partialmethod(cls.train, max_epochs=3))
    else:
        doctest_namespace["diffvi"] = diffvi
        if "cellrank" in whole:
            pytest.importorskip("cellrank")
        if "model" in whole and not whole.startswith("import diffvi"):
            doctest_namespace.update(example(model_of(node.path)))
    # Its notes go to where examples are read from.
    notes = logging.getLogger("scvi")
    level = notes.level
    notes.setLevel(logging.WARNING)
    yield
    notes.setLevel(level)
    if any(call in whole for call in ("model.train", "model.distill")):
        # The next example shall start from the model as it was.
        example.cache_clear()
