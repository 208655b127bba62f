"""A plot of what is not there says so; none is drawn empty."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from diffvi import InvalidInputError, metrics, pl
from diffvi.datasets import simulate_cells, simulate_tissue


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


CELLS = simulate_cells(60, 20, n_types=2, seed=0)
REAL, MADE = CELLS[:30].copy(), CELLS[30:].copy()
MADE_WITHOUT = MADE[:, 1:].copy()
MADE_UNNAMED = MADE.copy()
del MADE_UNNAMED.obs["cell_type"]
TABLE = pd.DataFrame(
    {"method": ["a", "b"], "score": "w2", "value": [1.0, 2.0], "floor": [0.5, 0.5], "best": ["low", "low"]}
)
STEPS = pd.DataFrame({"sampler": ["heun"], "n_evaluations": [8], "w2": [1.0]})
SCALES = pd.DataFrame({"guidance_scale": [1.0], "recall": [0.5]})
MEASURED = AnnData(
    np.zeros((4, 1)),
    obs=pd.DataFrame({"time": [0.0, 0.0, 1.0, 1.0], "kind": pd.Categorical(list("abab"), list("abc"))}, list("cdef")),
    obsm={"X_umap": np.eye(4)[:, :2], "X_diffvi": np.eye(4)[:, :2]},
)
PREDICTED = AnnData(
    np.zeros((2, 1)),
    obs=pd.DataFrame({"start_cell": "c", "sample": 0, "time": [1.0, 2.0], "kind": ["a", "b"]}, index=list("uv")),
    obsm={"X_latent": np.ones((2, 2))},
)
DEEP = AnnData(PREDICTED.X, obs=PREDICTED.obs, obsm={"X_latent": np.ones((2, 3))})
FATES = pd.DataFrame({"up": 0.5}, index=MEASURED.obs_names)
TISSUE = simulate_tissue(20, 8, seed=0)

BAD = {
    "umap colour": (
        lambda: pl.umap(REAL, MADE, color="nope"),
        r"`color`: real\.obs has no column 'nope'; it has 'cell_type', 'batch', 'score'",
    ),
    "umap colour of one": (
        lambda: pl.umap(REAL, MADE_UNNAMED, color="cell_type"),
        r"`color`: generated\.obs has no column 'cell_type'",
    ),
    "umap genes": (
        lambda: pl.umap(REAL, MADE_WITHOUT),
        "`generated` must have the genes of `real`; it lacks 'gene_0'",
    ),
    "umap of none": (lambda: pl.umap(REAL, MADE[:0]), "`generated` has 0 cells; at least 1 are needed"),
    "umap of one gene": (
        lambda: pl.umap(REAL[:, :1], MADE[:, :1]),
        "`real` and `generated` have 60 cells and 1 genes; an embedding needs at least 4 and 2",
    ),
    "umap of no genes": (
        lambda: pl.umap(REAL, MADE, n_top_genes=0),
        "`n_top_genes` must be a whole number of at least 1; got 0",
    ),
    "dots by": (
        lambda: pl.marker_dotplot(REAL, MADE, "nope"),
        r"`groupby`: real\.obs has no column 'nope'",
    ),
    "marker": (
        lambda: pl.marker_dotplot(REAL, MADE, "cell_type", ["gene_1", "nope"]),
        "`markers` must be one of 'gene_0', .*; got 'nope'",
    ),
    "no marker": (
        lambda: pl.marker_dotplot(REAL, MADE, "cell_type", []),
        "`markers` must be None or a list of one or more genes",
    ),
    "markers of one label": (
        lambda: pl.marker_dotplot(REAL, MADE, "batch"),
        r"`groupby`: real\.obs\['batch'\] has 1 labels with two cells or more; at least 2 are needed",
    ),
    "unknown score": (
        lambda: pl.score_table(TABLE, ["nope"]),
        "`scores` must be one of 'w2'; got 'nope'",
    ),
    "no value": (
        lambda: pl.score_table(TABLE.assign(value=np.nan)),
        "`table` must have a value for at least one score to draw; it has none",
    ),
    "no floor": (
        lambda: pl.score_table(TABLE.drop(columns="floor")),
        "`table` has no column 'floor'; it has 'method', 'score', 'value', 'best'",
    ),
    "no panels": (
        lambda: pl.score_table(TABLE, n_columns=0),
        "`n_columns` must be a whole number of at least 1; got 0",
    ),
    "no sampler": (lambda: pl.nfe_quality(STEPS.drop(columns="sampler"), "w2"), "`table` has no column 'sampler'"),
    "quality": (lambda: pl.nfe_quality(STEPS, "w1"), "`score` must be one of .*; got 'w1'"),
    "fidelity": (
        lambda: pl.guidance_diversity(SCALES),
        "`fidelity` must be one of 'guidance_scale', 'recall'; got 'label_agreement'",
    ),
    "paths' colour": (
        lambda: pl.trajectories(MEASURED, PREDICTED, color="nope"),
        "`color` must be one of 'time', 'kind'; got 'nope'",
    ),
    "paths' time": (
        lambda: pl.trajectories(MEASURED, PREDICTED, time_key="kindd"),
        "`time_key` must be one of 'time', 'kind'; got 'kindd'. Did you mean 'kind'",
    ),
    "no paths": (
        lambda: pl.trajectories(MEASURED, PREDICTED, max_paths=0),
        "`max_paths` must be a whole number of at least 1; got 0",
    ),
    "no prediction": (
        lambda: pl.trajectories(MEASURED, MEASURED),
        "`predicted` must be a result of `predict_trajectory`, .*; it has 'time', 'kind'",
    ),
    "other latent": (
        lambda: pl.trajectories(MEASURED, DEEP),
        r"`latent`: adata\.obsm\['X_diffvi'\] has 2 dimensions; the 3 of `predicted` are needed",
    ),
    "no fates": (
        lambda: pl.fate_probabilities(MEASURED, FATES),
        "`fates` must be a result of `get_fate_probabilities`, with 'probability'; it has 'up'",
    ),
    "order": (
        lambda: pl.population_over_time(PREDICTED, "kind", order=["nope"]),
        "`order` must be one of 'a', 'b'; got 'nope'",
    ),
    "part of the order": (
        lambda: pl.population_over_time(PREDICTED, "kind", measured=MEASURED, order=["a", "d"]),
        "`order` must be one of 'a', 'b', 'c'; got 'd'",
    ),
    "layer": (lambda: pl.spatial(TISSUE, "gene_1", layer="nope"), "`layer` must be one of 'expected'; got 'nope'"),
    "mean without the gene": (
        lambda: pl.spatial(TISSUE, "gene_1", mean=TISSUE[:, 2:].copy(), sample=TISSUE),
        r"`gene`: 'gene_1' is not in mean\.var_names, 'gene_2'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_a_sentence(case):
    call, message = BAD[case]
    with pytest.raises(InvalidInputError, match=message):
        call()


def test_a_category_that_no_cell_has_may_be_in_the_order():
    fig = pl.population_over_time(PREDICTED, "kind", measured=MEASURED, order=["c", "b"], show=False)
    assert [entry.get_text() for entry in fig.axes[0].get_legend().get_texts()] == ["b"]


def test_genes_in_another_order_are_drawn_by_name():
    figs = [pl.marker_dotplot(REAL, made, "cell_type", ["gene_0"], show=False) for made in (MADE, MADE[:, ::-1].copy())]
    sizes = [fig.axes[0].collections[0].get_sizes() for fig in figs]
    np.testing.assert_array_equal(*sizes)


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csr_array, np.asarray])
def test_an_imputed_mean_may_be_sparse(kind):
    adata = TISSUE.copy()
    mean = metrics.log_normalise(adata.X)
    adata.layers["imputed_mean"], adata.layers["imputed_sample"] = kind(mean), adata.X.copy()
    fig = pl.spatial(adata, "gene_1", show=False)
    np.testing.assert_allclose(fig.axes[1].collections[0].get_array(), mean[:, 1])
