from functools import partial

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

from diffvi import InvalidInputError
from diffvi.benchmark import (
    TASKS,
    BootstrapCells,
    Diffvi,
    IndependentNB,
    Options,
    run_task,
    score_file,
    split_cells,
    write_report,
)
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


def test_a_run_gives_a_tidy_table_with_floor_interval_time_and_memory():
    adata = simulate_cells(300, 20, seed=0)
    table = run_task("generation", adata, [IndependentNB(), BootstrapCells()], Options(draws=2, n_top_genes=None))
    columns = ["task", "split", "method", "draw", "score", "value", "low", "high", "floor", "best"]
    assert list(table.columns) == columns
    assert set(table["draw"]) == {0, 1}
    assert {"rf_auc_genes", "fit_seconds", "seconds_per_10000", "peak_memory_mb"} <= set(table["score"])
    assert table.loc[table["score"] == "rf_auc_genes", "floor"].notna().all()
    assert table.loc[(table["score"] == "recall") & (table["draw"] == 0), "low"].notna().all()
    value = table.set_index(["method", "draw", "score"])["value"]
    # Copies of training cells are perfect but for memorisation.
    assert value["bootstrap of real cells", 0, "memorisation_ratio"] < 0.05
    assert value["independent NB per label", 0, "memorisation_ratio"] > 0.8


def test_the_cache_is_read_and_knows_what_a_result_depends_on(tmp_path):
    adata, said = simulate_cells(200, 15, seed=0), []
    run = partial(run_task, "generation", adata, cache=tmp_path, data_id="d", progress=said.append)
    first = run([IndependentNB()], Options(draws=1))
    again = run([IndependentNB(), BootstrapCells()], Options(draws=1))
    assert "read from the cache" in said[1]
    assert "read from the cache" not in said[2]
    np.testing.assert_allclose(again["value"][: len(first)], first["value"])
    run([IndependentNB()], Options(draws=1, seed=1))
    run_task("generation", adata, [IndependentNB()], Options(draws=1), tmp_path, "other data", said.append)
    assert not any("cache" in line for line in said[3:])
    # A method that was fitted is the same method.
    method = IndependentNB()
    method.fit(adata, "cell_type")
    said.clear()
    run([IndependentNB()], Options(draws=1))
    assert "read from the cache" in said[0]
    assert not list(tmp_path.glob("*.part"))


def test_label_and_batch_are_asked_for_together():
    adata = simulate_cells(400, 20, n_types=2, n_batches=2, seed=0)
    options = Options(batch_key="batch", draws=1, n_top_genes=None)
    split = next(TASKS["generation"].splits(adata, options))
    method = Diffvi(
        keys=("cell_type", "batch"), n_hidden=16, n_latent=3, train_kwargs={"max_epochs": 1, "max_epochs_diffusion": 1}
    )
    method.fit(split.train, split.extra["labels_key"])
    wanted = split.test.obs[split.extra["labels_key"]].to_numpy(str)
    cells = method.generate(wanted, 0)
    pairs = cells.obs["cell_type"].astype(str) + " | " + cells.obs["batch"].astype(str)
    assert (pairs == wanted).all()
    assert len(set(wanted)) == 4


def test_the_benchmark_command_writes_csv_report_and_scores_a_file(tmp_path, capsys):
    simulate_cells(300, 20, seed=0).write_h5ad(tmp_path / "cells.h5ad")
    arguments = ["benchmark", "generation", str(tmp_path / "cells.h5ad"), "--n-top-genes", "20", "--draws", "1"]
    arguments += ["--out", str(tmp_path), "--only", "independent NB per label"]
    assert main([*arguments, "--export", str(tmp_path / "split")]) == 0
    train = ad.read_h5ad(tmp_path / "split" / "train.h5ad")
    train.write_h5ad(tmp_path / "elsewhere.h5ad")
    assert main([*arguments, "--score-file", str(tmp_path / "elsewhere.h5ad")]) == 0
    table = pd.read_csv(tmp_path / "generation.csv")
    assert set(table["method"]) == {"independent NB per label", "elsewhere"}
    value = table.set_index(["method", "score"])["value"]
    assert value["elsewhere", "memorisation_ratio"] < 0.05
    assert "| rf_auc_genes |" in capsys.readouterr().out
    page = (tmp_path / "generation.html").read_text()
    assert "data:image/png;base64," in page
    assert "independent NB per label" in page


def test_a_file_that_does_not_fit_is_refused(tmp_path):
    adata = simulate_cells(200, 15, seed=0)
    with pytest.raises(InvalidInputError, match="there is no file"):
        score_file("generation", tmp_path / "none.h5ad", adata)
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(InvalidInputError, match=r"must be .h5ad, .csv or .npy; got 'x.txt'"):
        score_file("generation", tmp_path / "x.txt", adata)
    cells = adata[adata.obs["cell_type"] == adata.obs["cell_type"].iloc[0]].copy()
    cells.write_h5ad(tmp_path / "one.h5ad")
    with pytest.raises(InvalidInputError, match="has the label"):
        score_file("generation", tmp_path / "one.h5ad", adata, options=Options(n_top_genes=None))
    with pytest.raises(InvalidInputError, match="evaluate_trajectory"):
        score_file("trajectory", tmp_path / "one.h5ad", adata)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 0}, "`draws` must be a whole number of at least 1"),
        ({"test_size": 2.5}, "`test_size` must lie between 0 and 1; got 2.5"),
        ({"labels_key": "one"}, "every label two cells"),
        ({"labels_key": "holes"}, "every cell needs a label"),
        ({"labels_key": "nope"}, "adata.obs has no column 'nope'"),
    ],
)
def test_bad_options_and_labels_get_a_sentence(options, message):
    adata = simulate_cells(100, 10, seed=0)
    adata.obs["one"] = ["a"] * 99 + ["b"]
    adata.obs["holes"] = ["a"] * 50 + [np.nan] * 50
    with pytest.raises(InvalidInputError, match=message):
        run_task("generation", adata, [IndependentNB()], Options(**options))


def test_the_benchmark_wants_raw_counts_and_leaves_empty_cells_out():
    adata, said = simulate_cells(120, 10, seed=0), []
    adata.X = sparse.csr_matrix(adata.X.toarray() * (np.arange(120) >= 3)[:, None])
    run_task("generation", adata, [IndependentNB()], Options(draws=1), progress=said.append)
    assert said[0] == "3 cells without a single count are left out"
    adata.X = adata.X * 0.5
    with pytest.raises(InvalidInputError, match="not whole numbers"):
        run_task("generation", adata, [IndependentNB()])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generation", "nowhere.h5ad"], "There is no file 'nowhere.h5ad'"),
        (["generation", "x.h5ad", "--only", "scLDM"], "`--only` must be one of"),
        (["cooking", "x.h5ad"], "`task` must be one of"),
        (["translation", "nowhere.h5mu"], "There is no file 'nowhere.h5mu'"),
        (["generation", "x.h5ad", "--draws", "0"], "`draws` must be a whole number"),
        (["generation", "a/x.h5ad", "b/x.h5ad"], "the files need different names"),
        (["generation", "x.h5ad", "y.h5ad", "--export", "z"], "must be one file"),
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


def test_variable_genes_of_few_cells_get_a_wider_fit():
    rng = np.random.default_rng(0)
    few = ad.AnnData(sparse.csr_matrix(rng.poisson(rng.gamma(0.05, 1.0, 3000), size=(80, 3000)).astype(np.float32)))
    few.obs["cell_type"] = ["a", "b"] * 40
    with pytest.raises(ValueError, match="singularities"):  # at scanpy's own span
        sc.pp.highly_variable_genes(few.copy(), n_top_genes=100, flavor="seurat_v3")
    train, _ = split_cells(few, "cell_type", n_top_genes=100)
    assert train.n_vars == 100
