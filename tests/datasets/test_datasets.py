import functools
import hashlib
import http.server
import threading

import numpy as np
import pytest
import scanpy as sc

from diffvi import InvalidInputError
from diffvi.datasets import fetch, pbmc68k, simulate_cells, simulate_perturbations, simulate_tissue


def test_pbmc68k_counts_are_the_ones_that_scanpy_normalised():
    adata = pbmc68k()
    x = adata.X.toarray()
    assert (x == np.round(x)).all()
    assert x.min() == 0
    reduced = sc.datasets.pbmc68k_reduced()
    back = np.log1p(x * (1e4 / reduced.obs["n_counts"].to_numpy()[:, None]))
    np.testing.assert_allclose(back, reduced.raw.X.toarray(), atol=2e-3)
    assert adata.obs["batch"].nunique() > 1
    assert not adata.obs.isna().any().any()


def test_the_simulator_is_what_it_says():
    adata = simulate_cells(4000, 20, n_types=2, n_batches=2, dispersion=4.0, mean_library=2000, seed=0)
    x, rate = adata.X.toarray(), adata.layers["rate"]
    np.testing.assert_allclose(x.mean(0), rate.mean(0), rtol=0.05)
    extra = ((x - rate) ** 2 - rate).sum(0) / (rate**2).sum(0)
    np.testing.assert_allclose(1 / extra, 4.0, rtol=0.25)
    assert (simulate_cells(50, 20, seed=1).X != simulate_cells(50, 20, seed=1).X).nnz == 0
    with pytest.raises(InvalidInputError, match="`n_obs` must be a whole number of at least 1; got 0"):
        simulate_cells(0)


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "cells.txt").write_text("counts")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    handler.log_message = lambda *a: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/cells.txt"
        httpd.shutdown()


def test_a_download_is_checked_and_kept(server, tmp_path):
    pytest.importorskip("pooch")
    good = "sha256:" + hashlib.sha256(b"counts").hexdigest()
    file = fetch(server, good, tmp_path / "cache")
    assert file.read_text() == "counts"
    with pytest.raises(InvalidInputError, match="is not the one expected"):
        fetch(server, "sha256:" + "0" * 64, tmp_path / "other")
    assert not list((tmp_path / "other").glob("*cells.txt"))
    with pytest.raises(InvalidInputError, match="`known_hash` must be"):
        fetch(server, "", tmp_path / "cache")


def test_simulated_perturbations_have_the_effects_they_state():
    adata = simulate_perturbations(6000, 30, n_perturbations=2, n_types=1, seed=1)
    counts, names = adata.X.toarray(), adata.obs["perturbation"]
    shares = counts / counts.sum(1, keepdims=True) * np.median(counts.sum(1))
    base = np.log(shares[names == "control"].mean(0) + 0.05)
    for name in ("A", "B", "A+B"):
        measured = np.log(shares[names == name].mean(0) + 0.05) - base
        assert np.corrcoef(measured, adata.uns["log_ratio"][name])[0, 1] > 0.97


def test_simulated_worlds_differ_in_how_pairs_combine():
    factors = {}
    for kind in ("additive", "sub-additive", "epistatic"):
        factors[kind] = set(simulate_perturbations(60, 10, interaction=kind, seed=0).uns["epistasis"].values())
    assert factors == {"additive": {1.0}, "sub-additive": {0.6}, "epistatic": {0.4, 1.6}}
    with pytest.raises(InvalidInputError, match="`interaction` must be one of"):
        simulate_perturbations(60, 10, interaction="magic")


def test_simulated_non_responders_and_doses():
    half = simulate_perturbations(2000, 20, responders=0.5, seed=0).obs
    assert not half.loc[half["perturbation"] == "control", "responder"].any()
    assert abs(half.loc[half["perturbation"] != "control", "responder"].mean() - 0.5) < 0.05
    dosed = simulate_perturbations(200, 20, n_perturbations=2, doses=[0.5, 2.0], seed=0)
    assert set(dosed.obs["dose"]) == {0.0, 0.5, 2.0}
    norms = np.linalg.norm(dosed.uns["log_ratio"][["A at 0.3", "A at 1", "A at 3"]], axis=0)
    assert (np.diff(norms) > 0).all()


def test_tissues_have_the_field_that_they_are_said_to_have():
    adata = simulate_tissue(2500, 30, length_scale=6.0, noise=0.5, mean_library=3000, seed=0)
    places, field = adata.obsm["spatial"], adata.obsm["field"]
    assert field.var(0).mean() == pytest.approx(1.0, abs=0.5)
    # A type is the largest of three numbers of which the field is a part.
    kind = adata.obs["cell_type"].cat.codes.to_numpy()
    assert 0.6 < (kind == field.argmax(1)).mean() < 0.95
    np.testing.assert_allclose(adata.layers["expected"].sum(1), 1.0, rtol=1e-4)
    # Around a place cells express what is expected there, on average.
    share = adata.X.toarray() / adata.X.sum(1)
    near = np.linalg.norm(places - places.mean(0), axis=1) < 3
    np.testing.assert_allclose(np.asarray(share)[near].mean(0), adata.layers["expected"][near].mean(0), atol=0.03)
    flat = simulate_tissue(50, 10, n_sections=3, seed=1)
    assert flat.obsm["spatial"].shape == (150, 2)
    block = simulate_tissue(50, 10, n_sections=3, n_dims=3, seed=1)
    assert set(block.obsm["spatial"][:, 2]) == {0.0, 1.0, 2.0}
    assert (simulate_tissue(50, 10, seed=1).X != simulate_tissue(50, 10, seed=1).X).nnz == 0
    with pytest.raises(InvalidInputError, match="`n_dims` must be 2 or 3; got 4"):
        simulate_tissue(50, 10, n_dims=4)
