"""What the examples in the docstrings of model methods start from: a briefly trained ``model`` and its data."""

from __future__ import annotations

import functools
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
    "_trajectory": "TrajectoryDiffusion",
    "_spatial": "SpatialDiffusion",
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
    cls = getattr(diffvi.model, name)
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
    else:
        data = diffvi.datasets.simulate_cells(300, 40, n_types=3, n_batches=2, mean_library=400, seed=0)
        cls.setup_anndata(data, labels_key="cell_type", batch_key="batch")
    model = cls(data)
    model.train(max_epochs=2, max_epochs_diffusion=2, enable_progress_bar=False)
    return {"model": model, "mdata" if name == "TotalDiffusion" else "adata": data}


@pytest.fixture(autouse=True)
def _model_for_examples(
    request: pytest.FixtureRequest, doctest_namespace: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = request.node
    if not isinstance(node, DoctestItem) or node.path.parent.name not in ("model", "diffvi", "pl"):
        return
    monkeypatch.chdir(tmp_path)
    import diffvi

    doctest_namespace["diffvi"] = diffvi
    first = node.dtest.examples[0].source if node.dtest and node.dtest.examples else ""
    if "model" in " ".join(e.source for e in node.dtest.examples) and not first.startswith("import diffvi"):
        doctest_namespace.update(example(model_of(node.path)))
