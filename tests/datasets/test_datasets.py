import functools
import hashlib
import http.server
import threading

import numpy as np
import pytest
import scanpy as sc

from diffvi import InvalidInputError
from diffvi.datasets import fetch, pbmc68k, simulate_cells


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
