"""Plots hold the data they were given, save, and draw into given axes."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from diffvi import metrics, pl
from diffvi.benchmark import BootstrapCells, IndependentNB, Options, run_task
from diffvi.datasets import simulate_cells


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
