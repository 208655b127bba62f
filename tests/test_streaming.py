"""Generation straight to disk: the same cells, whatever happens on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import diffvi
from diffvi import InvalidInputError, OutputFileError
from diffvi.data._store import PartStore


def same(a, b):
    assert (a.X != b.X).nnz == 0
    np.testing.assert_array_equal(a.obsm["X_latent"], b.obsm["X_latent"])
    np.testing.assert_array_equal(a.layers["normalized"], b.layers["normalized"])
    pd.testing.assert_frame_equal(a.obs, b.obs)


def numbered(k, n=10):
    return AnnData(np.full((n, 3), k, np.float32), obs=pd.DataFrame(index=pd.RangeIndex(k * n, k * n + n).astype(str)))


def test_a_stream_holds_the_same_cells_and_is_read_lazily(trained, tmp_path):
    asked = {
        "conditions": {"cell_type": "type_1"},
        "library_size": np.linspace(50, 500, 70),
        "seed": 3,
        "batch_size": 16,
    }
    path = trained.generate(70, path=tmp_path / "cells.zarr", **asked)
    assert os.listdir(tmp_path) == ["cells.zarr"]
    same(ad.read_zarr(path), trained.generate(70, **asked))
    lazy = ad.experimental.read_lazy(path)
    assert lazy[30:40].to_memory().X.sum() > 0


def test_layers_may_be_left_out(trained, tmp_path):
    path = trained.generate(20, path=tmp_path / "cells.zarr", seed=0, layers=())
    # anndata 0.13 lists X as None.
    assert not any(ad.read_zarr(path).layers)
    assert not any(trained.generate(5, seed=0, layers=()).layers)
    assert [k for k in trained.generate(5, seed=0, layers=["normalized"]).layers if k] == ["normalized"]
    with pytest.raises(InvalidInputError, match="`layers` must be None or a list of names; got 'normalized'"):
        trained.generate(5, layers="normalized")


def test_what_is_there_is_kept_unless_told_otherwise(trained, tmp_path):
    path = trained.generate(10, path=tmp_path / "cells.zarr", seed=0)
    with pytest.raises(InvalidInputError, match=r"`path`: .* already exists; pass `overwrite=True`"):
        trained.generate(12, path=path, seed=0)
    assert ad.read_zarr(path).n_obs == 10
    trained.generate(12, path=path, seed=0, overwrite=True)
    assert ad.read_zarr(path).n_obs == 12


def test_a_call_goes_on_where_another_was_cut_off(trained, tmp_path, monkeypatch):
    path, written = tmp_path / "cells.zarr", []
    write = PartStore.write

    def cut(self, k, cells):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(k)
        write(self, k, cells)

    monkeypatch.setattr(PartStore, "write", cut)
    with pytest.raises(KeyboardInterrupt):
        trained.generate(50, path=path, batch_size=10)
    assert not path.exists()
    monkeypatch.setattr(PartStore, "write", lambda self, k, cells: (written.append(k), write(self, k, cells)))
    with pytest.raises(InvalidInputError, match="holds parts of another request, which differs in conditions, n_obs"):
        trained.generate(60, path=path, batch_size=10)
    # Nobody said which seed: it is that of the call that was cut off.
    trained.generate(50, path=path, batch_size=10)
    assert written == [0, 1, 2, 3, 4]
    seed = int(ad.read_zarr(path).uns["diffvi"]["seed"])
    same(ad.read_zarr(path), trained.generate(50, seed=seed, batch_size=10))


def test_another_model_does_not_go_on(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(PartStore, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        trained.generate(20, path=tmp_path / "cells.zarr", seed=0)
    monkeypatch.undo()
    table = trained.training_table_
    try:
        trained.training_table_ = {**table, "log_library": table["log_library"] + 1}
        with pytest.raises(InvalidInputError, match="which differs in model;"):
            trained.generate(20, path=tmp_path / "cells.zarr", seed=0)
    finally:
        trained.training_table_ = table


def test_a_full_disk_gets_a_sentence_and_loses_nothing(trained, tmp_path, monkeypatch):
    path = tmp_path / "cells.zarr"
    write = AnnData.write_zarr
    calls = []

    def full(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return write(self, *args, **kwargs)

    monkeypatch.setattr(AnnData, "write_zarr", full)
    with pytest.raises(
        OutputFileError, match=r"No space left on device.*; 2 of 5 parts are kept in .* the same call goes on"
    ):
        trained.generate(50, path=path, seed=0, batch_size=10)
    assert not path.exists()
    trained.generate(50, path=path, seed=0, batch_size=10)
    assert len(calls) == 3 + 3
    same(ad.read_zarr(path), trained.generate(50, seed=0, batch_size=10))


def test_a_folder_that_cannot_be_written_gets_a_sentence(trained, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputFileError, match="`path`: cannot write"):
        trained.generate(5, path=tmp_path / "file" / "cells.zarr", seed=0)


def test_parts_with_other_categories_are_joined(tmp_path):
    store = PartStore(tmp_path / "x.zarr", 3, {})
    names = ["b", "a", "c"]
    for k in (2, 0, 1):
        part = numbered(k)
        part.obs["kind"] = pd.Categorical([names[k]] * 9 + [None])
        part.obs["count"] = pd.array([k] * 9 + [None], dtype="Int64")
        part.obs["word"] = np.array([names[k]] * 10, dtype=object)
        store.write(k, part)
    whole = ad.read_zarr(store.finish())
    assert whole.obs_names.tolist() == [str(i) for i in range(30)]
    assert whole.obs["kind"].cat.categories.tolist() == ["a", "b", "c"]
    assert whole.obs["kind"].astype(object).iloc[[0, 10, 20]].tolist() == names
    assert whole.obs["kind"].isna().sum() == 3
    assert whole.obs["count"].tolist()[:1] == [0]
    assert whole.obs["count"].isna().sum() == 3
    assert whole.obs["word"].astype(str).iloc[[0, 10, 20]].tolist() == names
    assert whole.X[:, 0].tolist() == np.repeat([0, 1, 2], 10).tolist()


@pytest.mark.parametrize("empty", [0, 1])
def test_parts_without_a_single_category_are_joined(tmp_path, empty):
    store = PartStore(tmp_path / "x.zarr", 2, {})
    for k in (0, 1):
        part = numbered(k)
        part.obs["kind"] = pd.Categorical([None] * 10 if k == empty else ["b", "a"] * 5)
        store.write(k, part)
    kinds = ad.read_zarr(store.finish()).obs["kind"]
    assert kinds.cat.categories.tolist() == ["a", "b"]
    assert kinds.isna().tolist() == ([True] * 10 + [False] * 10 if empty == 0 else [False] * 10 + [True] * 10)


def test_a_removal_that_is_cut_off_leaves_nothing_that_counts(tmp_path, monkeypatch):
    path, removed, rmtree = tmp_path / "x.zarr", [], shutil.rmtree

    def cut(folder, *args, **kwargs):
        if ".partial-" in str(folder):
            removed.append(folder)
        else:
            rmtree(folder, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", cut)
    store = PartStore(path, 1, {"n": 1})
    store.write(0, numbered(0))
    store.finish()
    assert removed
    # What was to be removed is still there, but does not count as parts of the same request.
    again = PartStore(path, 1, {"n": 1}, overwrite=True)
    assert again.missing == [0]
    again.write(0, numbered(0))
    assert ad.read_zarr(again.finish()).n_obs == 10


def test_a_store_with_missing_parts_is_not_joined(tmp_path):
    store = PartStore(tmp_path / "x.zarr", 2, {})
    store.write(1, numbered(1))
    with pytest.raises(OutputFileError, match="1 of 2 parts"):
        store.finish()
    assert not (tmp_path / "x.zarr").exists()
    # Two processes with the same part: the first counts.
    store.write(1, numbered(1))
    assert store.missing == [0]


SCRIPT = """
import sys, warnings
warnings.filterwarnings("ignore")
import torch
torch.set_num_threads(1)
from diffvi.model import LatentDiffusionSCVI
model = LatentDiffusionSCVI.load(sys.argv[1], adata=False)
print("ready", flush=True)
model.generate(400, seed=5, batch_size=10, path=sys.argv[2])
"""


def test_kills_at_any_moment_leave_no_half_store(trained, tmp_path):
    """`kill -9` at random moments, again and again: what opens is whole, and is what one call gives."""
    trained.save(str(tmp_path / "model"))
    path, rng, kills = tmp_path / "cells.zarr", np.random.default_rng(0), 0
    while not path.exists() and kills < 5:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "model"), str(path)], stdout=subprocess.PIPE, text=True
        )
        assert any(line.strip() == "ready" for line in process.stdout)
        before = len(list(PartStore.partial_of(path).glob("part-*")))
        try:
            process.wait(timeout=float(rng.uniform(0.3, 2.5)))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        assert path.exists() or len(list(PartStore.partial_of(path).glob("part-*"))) >= before
    assert kills > 0
    if not path.exists():
        trained.generate(400, seed=5, batch_size=10, path=path)
    same(ad.read_zarr(path), trained.generate(400, seed=5, batch_size=10))
    assert not PartStore.partial_of(path).exists()


def test_dask_writes_what_one_process_writes(trained, tmp_path):
    distributed = pytest.importorskip("distributed")
    asked = {"seed": 1, "batch_size": 20, "conditions": {"cell_type": ["type_0"] * 50 + ["type_2"] * 50}}
    one = trained.generate(100, path=tmp_path / "one.zarr", **asked)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        many = diffvi.generate_distributed(trained, 100, tmp_path / "many.zarr", client, **asked)
    same(ad.read_zarr(one), ad.read_zarr(many))
    # Byte by byte, but for when and where it was written.
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(many) for p in many.rglob("*") if p.is_file())
    assert all((one / f).read_bytes() == (many / f).read_bytes() for f in files)
    with pytest.raises(InvalidInputError, match=r"`client` must be a distributed.Client; got None"):
        diffvi.generate_distributed(trained, 10, tmp_path / "none.zarr", None)


def test_requests_are_told_apart_by_everything_that_matters(trained):
    base = json.dumps(trained._request_cells(20, seed=0).to_json())
    for change in (
        {"conditions": {"cell_type": "type_0"}},
        {"guidance_scale": 2.0},
        {"n_steps": 3},
        {"sampler": "euler"},
        {"library_size": 100.0},
        {"seed": 1},
        {"batch_size": 7},
    ):
        assert json.dumps(trained._request_cells(20, **{"seed": 0, **change}).to_json()) != base
