"""Plots hold the data they were given, save, and draw into given axes."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from diffvi import InvalidInputError, metrics, pl
from diffvi.benchmark import BootstrapCells, IndependentNB, Options, run_task
from diffvi.datasets import simulate_cells, simulate_tissue


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def table():
    methods = [BootstrapCells(), IndependentNB()]
    return run_task("generation", simulate_cells(200, 15, seed=0), methods, Options(draws=2, n_top_genes=None))


def test_the_score_table_has_a_panel_a_score_with_methods_in_order_and_the_floor(table, tmp_path):
    fig = pl.score_table(table, ["rf_auc_genes", "recall"], show=False, save=tmp_path / "scores.png")
    panels = [ax for ax in fig.axes if ax.get_visible()]
    assert len(panels) == 2
    assert panels[0].get_title().startswith("rf auc genes")
    assert "best at the floor" in panels[1].get_title()
    assert [t.get_text() for t in panels[0].get_yticklabels()] == [
        "independent NB per label",
        "bootstrap of real cells",
    ]
    shown = {round(float(line.get_xdata()[0]), 6) for line in panels[1].lines if len(line.get_xdata()) == 1}
    means = table[table["score"] == "recall"].groupby("method")["value"].mean()
    assert shown == {round(v, 6) for v in means}
    assert (tmp_path / "scores.png").stat().st_size > 5000
    every = pl.score_table(table, show=False)
    assert not any("seconds" in ax.get_title() for ax in every.axes)


def test_calibration_draws_the_measured_coverage():
    rng = np.random.default_rng(0)
    curve = metrics.calibration_curve(rng.normal(size=200), rng.normal(size=(50, 200)))
    fig, ax = plt.subplots()
    assert pl.calibration({"a": curve, "b": curve}, ax=ax, show=False) is fig
    assert len(ax.lines) == 3
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), curve[:, 1])


def test_steps_and_guidance_curves_average_the_rows_of_a_setting():
    rows = [
        {"sampler": s, "n_evaluations": n, "rf_auc": 0.5 + 1 / n + d}
        for s in ("heun", "ddim")
        for n in (4, 8)
        for d in (0, 0.1)
    ]
    ax = pl.nfe_quality(pd.DataFrame(rows), "rf_auc", floor=0.5, show=False).axes[0]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.8, 0.675])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["4", "8"]
    frame = pd.DataFrame({"guidance_scale": [1, 1, 2], "label_agreement": [0.8, 0.9, 0.95], "recall": [0.9, 0.9, 0.7]})
    ax = pl.guidance_diversity(frame, show=False).axes[0]
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[0.9, 0.85], [0.7, 0.95]])
    assert [t.get_text() for t in ax.texts] == ["1", "2"]


@pytest.fixture
def course():
    """Two cells of five that move along a line, and what was measured of them."""
    rng = np.random.default_rng(0)
    measured = AnnData(np.zeros((40, 1)), obs=pd.DataFrame(index=[f"c{i}" for i in range(40)]))
    measured.obs["time"] = np.repeat([0.0, 1.0], 20)
    measured.obs["kind"] = pd.Categorical(np.tile(["a", "b"], 20))
    measured.obsm["X_diffvi"] = np.c_[np.linspace(0, 1, 40), rng.normal(size=40) * 0.01]
    measured.obsm["X_umap"] = 10 * measured.obsm["X_diffvi"]
    predicted = AnnData(np.zeros((6, 1)))
    predicted.obs = pd.DataFrame(
        {
            "start_cell": np.repeat(["c0", "c5"], 3),
            "sample": 0,
            "time": np.tile([0.5, 1.0, 2.0], 2),
            "weight": [1.0, 1.0, 3.0, 1.0, 1.0, 1.0],
            "kind": ["a", "a", "a", "a", "b", "b"],
        },
        index=list("uvwxyz"),
    )
    predicted.obsm["X_latent"] = np.c_[np.tile([0.3, 0.6, 0.9], 2), np.zeros(6)]
    return measured, predicted


def test_trajectories_start_at_their_cells_and_go_where_the_latent_goes(course, tmp_path):
    measured, predicted = course
    fig = pl.trajectories(measured, predicted, color="kind", n_neighbors=3, show=False, save=tmp_path / "t.png")
    paths = fig.axes[0].collections[2].get_paths()
    assert len(paths) == 2
    np.testing.assert_allclose(paths[0].vertices[0], measured.obsm["X_umap"][0])
    np.testing.assert_allclose(paths[0].vertices[1:, 0], [3, 6, 9], atol=0.3)
    assert len(pl.trajectories(measured, predicted, max_paths=1, show=False).axes[0].collections[1].get_paths()) == 1
    # Ancestors come before the cell.
    predicted.obs["time"] = predicted.obs["time"] - 3
    back = pl.trajectories(measured, predicted, show=False).axes[0].collections[1].get_paths()[0].vertices
    np.testing.assert_allclose(back[-1], measured.obsm["X_umap"][0])
    with pytest.raises(InvalidInputError, match="`basis` must be one of"):
        pl.trajectories(measured, predicted, basis="X_tsne")
    with pytest.raises(InvalidInputError, match="`predicted`: its start cells are not all in `adata`"):
        pl.trajectories(measured[1:], predicted)


def test_fate_probabilities_have_a_panel_each(course):
    measured, _ = course
    fates = pd.concat({"probability": pd.DataFrame({"a": np.linspace(0, 1, 40), "b": 0.5}, measured.obs_names)}, axis=1)
    fig = pl.fate_probabilities(measured, fates, show=False)
    assert [ax.get_title() for ax in fig.axes[:2]] == ["a", "b"]
    shown = fig.axes[0].collections[0]
    assert shown.get_clim() == (0, 1)
    np.testing.assert_allclose(np.sort(shown.get_array()), np.linspace(0, 1, 40))
    with pytest.raises(InvalidInputError, match="`fates`: its rows are not the cells of `adata`"):
        pl.fate_probabilities(measured[1:], fates)


def test_populations_are_weighted_shares(course):
    measured, predicted = course
    fig = pl.population_over_time(predicted, "kind", measured=measured, show=False)
    lines = {line.get_label(): line.get_ydata() for line in fig.axes[0].lines if line.get_linestyle() == "-"}
    np.testing.assert_allclose(lines["a"], [1.0, 0.5, 0.75])
    np.testing.assert_allclose(lines["b"], [0.0, 0.5, 0.25])
    points = [line.get_ydata() for line in fig.axes[0].lines if line.get_marker() == "o"]
    np.testing.assert_allclose(points, 0.5)
    only = pl.population_over_time(predicted, "kind", order=["b"], show=False)
    assert len(only.axes[0].lines) == 1
    with pytest.raises(InvalidInputError, match="`label` must be one of"):
        pl.population_over_time(predicted, "nope")


def test_a_gene_in_a_tissue_is_drawn_three_times_on_one_scale(tmp_path):
    adata = simulate_tissue(60, 8, n_sections=2, seed=0)
    logged = metrics.log_normalise(adata.X)
    with pytest.raises(InvalidInputError, match=r"`mean` is not given, and adata.layers has no 'imputed_mean'"):
        pl.spatial(adata, "gene_1", show=False)
    adata.layers["imputed_mean"], adata.layers["imputed_sample"] = logged / 2, adata.X.copy()
    fig = pl.spatial(adata, "gene_1", section_key="section", section="section_1", show=False, save=tmp_path / "s.png")
    drawn = [ax.collections[0] for ax in fig.axes[:3]]
    np.testing.assert_allclose(drawn[0].get_offsets(), adata.obsm["spatial"][60:])
    np.testing.assert_allclose(drawn[1].get_array(), logged[60:, 1] / 2, rtol=1e-5)
    np.testing.assert_allclose(drawn[2].get_array(), logged[60:, 1], rtol=1e-5)
    assert len({c.get_clim() for c in drawn}) == 1
    assert [ax.get_title() for ax in fig.axes[:3]] == [f"gene_1, {name}" for name in ("measured", "mean", "sample")]
    # Cells of their own in place of what is in the layers.
    expected = AnnData(logged[:5], obsm={"spatial": adata.obsm["spatial"][:5]}, uns={"log1p": {"base": None}})
    expected.var_names = adata.var_names
    fig = pl.spatial(adata, "gene_1", mean=expected, sample=adata[:7], show=False)
    assert [len(ax.collections[0].get_offsets()) for ax in fig.axes[:3]] == [120, 5, 7]
    for kwargs, message in (
        ({"gene": "none"}, "`gene`: 'none' is not in adata.var_names"),
        ({"gene": "gene_1", "section": "x", "section_key": "section"}, "`section`: no cell is in 'x'"),
        ({"gene": "gene_1", "spatial_key": "umap"}, "`spatial_key`: obsm has no 'umap'"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            pl.spatial(adata, show=False, **kwargs)
    plt.close("all")
