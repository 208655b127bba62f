import numpy as np
import pandas as pd
import pytest

from diffvi import InvalidInputError
from diffvi.benchmark import IndependentNB, run_generation, split_cells, write_report
from diffvi.cli import main
from diffvi.datasets import simulate_cells


def test_a_split_is_stratified_disjoint_and_picks_genes_on_training_cells():
    pytest.importorskip("skmisc")
    adata = simulate_cells(400, 80, n_types=4, seed=0)
    train, test = split_cells(adata, "cell_type", 0.35, n_top_genes=30, seed=1)
    assert not set(train.obs_names) & set(test.obs_names)
    assert train.n_obs + test.n_obs == 400
    assert train.n_vars == 30
    assert train.var_names.equals(test.var_names)
    a, b = (x.obs["cell_type"].value_counts(normalize=True) for x in (train, test))
    assert (a - b).abs().max() < 0.02
    again, _ = split_cells(train, "cell_type", 0.35, n_top_genes=None, seed=1)
    assert again.n_vars == 30


def test_the_independent_baseline_has_the_right_marginals_and_no_correlations():
    adata = simulate_cells(1500, 20, n_types=2, mean_library=2000, seed=0)
    method = IndependentNB()
    method.fit(adata, "cell_type")
    labels = adata.obs["cell_type"].to_numpy(str)
    made = method.generate(labels, 0)
    x, y = adata.X.toarray(), made.X.toarray()
    for label in np.unique(labels):
        rows = labels == label
        np.testing.assert_allclose(y[rows].mean(0), x[rows].mean(0), rtol=0.15, atol=0.3)
        assert np.median(np.abs(np.log(y[rows].var(0) / x[rows].var(0)))) < 0.3


def test_a_run_gives_a_tidy_table_with_floor_time_and_memory():
    train, test = split_cells(simulate_cells(300, 20, seed=0), "cell_type", 0.4, n_top_genes=None)
    table = run_generation(train, test, "cell_type", [IndependentNB()], n_draws=2)
    assert list(table.columns) == ["method", "draw", "score", "value", "floor"]
    assert set(table["draw"]) == {0, 1}
    assert {"rf_auc_genes", "fit_seconds", "generate_seconds_per_10000", "peak_memory_mb"} <= set(table["score"])
    assert table.loc[table["score"] == "rf_auc_genes", "floor"].notna().all()


def test_the_benchmark_command_writes_and_extends_a_csv(tmp_path, capsys):
    simulate_cells(300, 20, seed=0).write_h5ad(tmp_path / "cells.h5ad")
    arguments = ["benchmark", "generation", str(tmp_path / "cells.h5ad"), "--n-top-genes", "20", "--draws", "1"]
    arguments += ["--out", str(tmp_path), "--only", "independent NB per label"]
    assert main(arguments) == 0
    table = pd.read_csv(tmp_path / "generation_cells.csv")
    assert main(arguments) == 0
    assert len(pd.read_csv(tmp_path / "generation_cells.csv")) == len(table)
    assert "| rf_auc_genes |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generation", "nowhere.h5ad"], "There is no file 'nowhere.h5ad'"),
        (["generation", "x.h5ad", "--only", "scLDM"], "`--only` must be one of"),
    ],
)
def test_a_bad_command_line_ends_with_a_sentence(arguments, message, capsys):
    assert main(["benchmark", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_report_needs_nothing_beside_itself(tmp_path):
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots()
    ax.plot([0, 1])
    table = pd.DataFrame({"value": [0.5]}, index=["<score>"])
    path = write_report(
        tmp_path / "r.html", "T & t", ["a < b"], [("F", fig, ""), ("T", table, "n"), ("X", "<pre>", "")]
    )
    page = path.read_text()
    assert "data:image/png;base64," in page
    assert "http" not in page.replace("http-equiv", "")
    assert "&lt;score&gt;" in page
    assert "&lt;pre&gt;" in page
    with pytest.raises(InvalidInputError):
        split_cells(simulate_cells(50, 10), "nope")


def test_the_demo_writes_cells_and_a_report(tmp_path, capsys):
    import anndata as ad

    assert main(["demo", "--out", str(tmp_path / "out"), "--max-epochs", "2"]) == 0
    cells = ad.read_h5ad(tmp_path / "out" / "generated.h5ad")
    assert cells.n_obs == 210
    page = (tmp_path / "out" / "report.html").read_text()
    for title in ("UMAP", "Scores", "Counts", "Marker genes", "Loss curves"):
        assert title in page
    assert page.count("data:image/png;base64,") == 4
    assert "4/4" in capsys.readouterr().out


def test_a_demo_that_cannot_write_says_so(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["demo", "--out", str(tmp_path / "file")]) == 1
    assert "cannot write to" in capsys.readouterr().err
