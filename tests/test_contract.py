"""The checklist that every model class has to pass; a new class adds one entry to ``MODELS``."""

from __future__ import annotations

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
import scvi
from scipy import sparse

import diffvi
from diffvi import InvalidInputError, ModelFileError, NotTrainedError
from diffvi.datasets import simulate_cells, simulate_cite, simulate_perturbations, simulate_tissue, simulate_trajectory
from tests.conftest import QUIET


class LatentDiffusionSCVICase:
    cls = diffvi.model.LatentDiffusionSCVI
    setup_kwargs = {"labels_key": "cell_type", "batch_key": "batch", "condition_keys": ["score"]}
    init_kwargs = {"n_hidden": 16, "n_latent": 4, "denoiser_kwargs": {"width": 16, "depth": 1, "n_heads": 2}}
    conditions = {"cell_type": "type_1", "batch": "batch_0"}

    @staticmethod
    def data():
        return simulate_cells(150, 30, n_types=3, n_batches=2, mean_library=300, seed=2)


class PerturbDiffusionCase:
    cls = diffvi.model.PerturbDiffusion
    setup_kwargs = {"perturbation_key": "perturbation", "control": "control", "labels_key": "cell_type"}
    init_kwargs = {"n_hidden": 16, "n_latent": 4, "denoiser_kwargs": {"width": 16, "depth": 1, "n_heads": 2}}
    conditions = {"cell_type": "type_1", "perturbation": "A+B"}

    @staticmethod
    def data():
        return simulate_perturbations(150, 30, n_perturbations=2, mean_library=300, seed=2)


class TotalDiffusionCase:
    cls = diffvi.model.TotalDiffusion
    setup_kwargs = {"labels_key": "cell_type", "batch_key": "batch", "condition_keys": ["score"]}
    init_kwargs = {"n_hidden": 16, "n_latent": 4, "denoiser_kwargs": {"width": 16, "depth": 1, "n_heads": 2}}
    conditions = {"cell_type": "type_1", "batch": "batch_0"}
    setup = "setup_mudata"

    @staticmethod
    def data():
        return simulate_cite(150, 30, 4, n_types=3, n_batches=2, mean_library=300, seed=2)


class TotalDiffusionAnnDataCase(TotalDiffusionCase):
    setup_kwargs = {**TotalDiffusionCase.setup_kwargs, "protein_expression_obsm_key": "protein_counts"}
    setup = "setup_anndata"

    @staticmethod
    def data():
        mdata = TotalDiffusionCase.data()
        adata = mdata["rna"].copy()
        adata.obs = mdata.obs.copy()
        adata.obsm["protein_counts"] = mdata["protein"].to_df()
        return adata


class TrajectoryDiffusionCase:
    cls = diffvi.model.TrajectoryDiffusion
    setup_kwargs = {"time_key": "time", "labels_key": "fate", "growth_key": "growth_rate"}
    init_kwargs = {"n_hidden": 16, "n_latent": 4, "denoiser_kwargs": {"width": 16, "depth": 1, "n_heads": 2}}
    conditions = {"fate": "up", "time": 1.0}

    @staticmethod
    def data():
        return simulate_trajectory(50, 30, times=(0.0, 1.0, 2.5), mean_library=300, seed=2)


class SpatialDiffusionCase:
    cls = diffvi.model.SpatialDiffusion
    setup_kwargs = {"section_key": "section", "labels_key": "cell_type", "batch_key": "section"}
    init_kwargs = {
        "n_hidden": 16,
        "n_latent": 4,
        "denoiser_kwargs": {"width": 16, "depth": 1, "n_heads": 2},
        "n_neighbors": 4,
    }
    conditions = {"cell_type": "type_1", "section": "section_0"}

    @staticmethod
    def data():
        return simulate_tissue(75, 30, n_sections=2, mean_library=300, seed=2)


MODELS = [
    LatentDiffusionSCVICase,
    PerturbDiffusionCase,
    TotalDiffusionCase,
    TotalDiffusionAnnDataCase,
    TrajectoryDiffusionCase,
    SpatialDiffusionCase,
]


@pytest.fixture(scope="module", params=MODELS, ids=lambda case: case.__name__.removesuffix("Case"))
def case(request):
    return request.param


def _new(case):
    adata = case.data()
    getattr(case.cls, getattr(case, "setup", "setup_anndata"))(adata, **case.setup_kwargs)
    return case.cls(adata, **case.init_kwargs)


def _rna(cells):
    """The AnnData with the genes."""
    return cells["rna"] if isinstance(cells, mudata.MuData) else cells


def _of_genes(cells, genes):
    """The same cells with other genes."""
    if not isinstance(cells, mudata.MuData):
        return cells[:, genes].copy()
    other = mudata.MuData({"rna": cells["rna"][:, genes].copy(), "protein": cells["protein"].copy()})
    other.obs = cells.obs.copy()
    return other


@pytest.fixture(scope="module")
def model(case):
    scvi.settings.seed = 0
    model = _new(case)
    model.train(max_epochs=4, max_epochs_diffusion=4, train_size=0.8, validation_size=0.1, **QUIET)
    return model


def _same(a, b):
    return (_rna(a).X != _rna(b).X).nnz == 0 and np.allclose(a.obsm["X_latent"], b.obsm["X_latent"], atol=1e-5)


def test_generation_before_training_is_refused(case):
    with pytest.raises(NotTrainedError, match=r"diffusion stage of this .* is not trained"):
        _new(case).generate(3)
    with pytest.raises(NotTrainedError, match="vae stage"):
        _new(case).train_diffusion()


def test_one_train_runs_both_stages_and_keeps_both_histories(model):
    for name in ("elbo_train", "diffusion_loss_train", "diffusion_loss_validation"):
        curve = model.history[name].to_numpy(float)
        assert len(curve) == 4 or name.endswith("validation")
        assert np.isfinite(curve).all()
    assert {s["status"] for s in model.stages_.values()} == {"done"}


def test_both_stages_hold_out_the_same_cells(model):
    split = [model.train_indices, model.validation_indices, model.test_indices]
    assert [len(s) for s in split] == [120, 15, 15]
    remembered = np.sort(model.training_table_["log_library"])
    assert len(remembered) == 120
    library = np.log(np.asarray(_rna(model.adata).X.sum(1)).ravel())
    np.testing.assert_allclose(remembered, np.sort(library[model.train_indices]), rtol=1e-5)


def test_generated_cells_have_the_documented_form(case, model, tmp_path):
    cells = model.generate(12, conditions=case.conditions, seed=3)
    genes, expected = _rna(cells), _rna(model.adata)
    assert genes.shape == (12, expected.n_vars)
    assert sparse.isspmatrix_csr(genes.X) or isinstance(genes.X, sparse.csr_array)
    assert genes.X.dtype == np.int32
    assert genes.X.min() >= 0
    assert genes.var_names.equals(expected.var_names)
    np.testing.assert_allclose(genes.layers["normalized"].sum(1), 1, rtol=1e-4)
    for name, value in case.conditions.items():
        assert (cells.obs[name] == value).all()
    source = cells.uns["diffvi"]
    assert source["seed"] == 3
    assert source["model"] == case.cls.__name__
    if isinstance(cells, mudata.MuData):
        cells.write_h5mu(tmp_path / "cells.h5mu")
        back = mudata.read_h5mu(tmp_path / "cells.h5mu")
    else:
        cells.write_h5ad(tmp_path / "cells.h5ad")
        back = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert (_rna(back).X != genes.X).nnz == 0
    assert back.uns["diffvi"]["sampler"] == source["sampler"]


def test_same_seed_same_cells_whatever_the_batching(case, model):
    a = model.generate(20, conditions=case.conditions, seed=5)
    assert _same(a, model.generate(20, conditions=case.conditions, seed=5))
    assert _same(a, model.generate(20, conditions=case.conditions, seed=5, batch_size=7))
    assert _same(a[:6], model.generate(6, conditions=case.conditions, seed=5))
    assert not _same(a, model.generate(20, conditions=case.conditions, seed=6))


def test_without_a_seed_one_is_drawn_and_recorded(model):
    a, b = model.generate(5), model.generate(5)
    assert a.uns["diffvi"]["seed"] != b.uns["diffvi"]["seed"]
    assert _same(a, model.generate(5, seed=a.uns["diffvi"]["seed"]))


@pytest.mark.parametrize("with_data", ["adata", "saved", "none"])
def test_save_and_load_reproduce_samples(case, model, tmp_path, with_data):
    before = model.generate(8, conditions=case.conditions, seed=1)
    model.save(str(tmp_path / "m"), save_anndata=with_data == "saved")
    loaded = case.cls.load(str(tmp_path / "m"), adata=case.data() if with_data == "adata" else None)
    assert (_rna(loaded.generate(8, conditions=case.conditions, seed=1)).X != _rna(before).X).nnz == 0
    assert loaded.stages_ == model.stages_
    assert set(loaded.history) == set(model.history)
    if with_data != "none":
        np.testing.assert_allclose(loaded.get_latent_representation(), model.get_latent_representation(), rtol=1e-5)


def test_saving_over_a_model_needs_overwrite_and_leaves_nothing_beside_it(model, tmp_path):
    model.save(str(tmp_path / "m"))
    with pytest.raises(ModelFileError, match="already exists; pass `overwrite=True`"):
        model.save(str(tmp_path / "m"))
    model.save(str(tmp_path / "m"), overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_failed_save_keeps_the_model_that_was_there(case, model, tmp_path, monkeypatch):
    model.save(str(tmp_path / "m"))
    before = (tmp_path / "m" / "model.pt").read_bytes()
    monkeypatch.setattr("torch.save", lambda *a, **k: (_ for _ in ()).throw(OSError("No space left on device")))
    with pytest.raises(ModelFileError, match=r"cannot write the model .*No space left"):
        model.save(str(tmp_path / "m"), overwrite=True)
    assert (tmp_path / "m" / "model.pt").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_loading_what_is_not_a_model_says_so(case, model, tmp_path):
    with pytest.raises(ModelFileError, match=r"there is no model in .*no file 'model.pt'"):
        case.cls.load(str(tmp_path))
    model.save(str(tmp_path / "m"))
    file = tmp_path / "m" / "model.pt"
    whole = file.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(ModelFileError, match="the model in"):
            case.cls.load(str(tmp_path / "m"))


def test_loading_a_model_of_another_class_says_so(case, tmp_path):
    adata = _rna(case.data())
    scvi.model.SCVI.setup_anndata(adata)
    scvi.model.SCVI(adata).save(str(tmp_path / "m"))
    with pytest.raises(ModelFileError, match=f"is of another class than {case.cls.__name__}, or would run code"):
        case.cls.load(str(tmp_path / "m"))
    with pytest.raises(ModelFileError, match=f"is of another class than {case.cls.__name__} "):
        case.cls.load(str(tmp_path / "m"), trust=True)


def test_models_can_be_saved_at_every_stage(case, tmp_path):
    model = _new(case)
    for stage in ("untrained", "vae"):
        if stage == "vae":
            model.train_vae(max_epochs=1, **QUIET)
        model.save(str(tmp_path / stage))
        loaded = case.cls.load(str(tmp_path / stage), adata=model.adata.copy())
        assert loaded.stages_ == model.stages_
    loaded.train_diffusion(max_epochs=1, **QUIET)
    assert loaded.generate(2, conditions=case.conditions, seed=0).n_obs == 2


def test_loading_with_other_genes_says_which(case, model, tmp_path):
    model.save(str(tmp_path / "m"))
    with pytest.raises(InvalidInputError, match="in another order"):
        case.cls.load(str(tmp_path / "m"), adata=_of_genes(case.data(), slice(None, None, -1)))
    with pytest.raises(InvalidInputError, match="lacks 2 of the model's 30 genes"):
        case.cls.load(str(tmp_path / "m"), adata=_of_genes(case.data(), slice(2, None)))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_obs": 0}, "`n_obs` must be a whole number of at least 1; got 0"),
        ({"n_obs": -3}, "got -3"),
        ({"n_obs": 2.5}, "got 2.5"),
        ({"conditions": {"nope": 1}}, "`conditions` must be one of"),
        ({"sampler": "nope"}, "`sampler` must be one of"),
        ({"n_steps": 0}, "`n_steps`"),
        ({"guidance_scale": -1.0}, "`guidance_scale`"),
        ({"seed": -1}, "`seed`"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"library_size": 0.0}, "`library_size` must be None"),
        ({"library_size": "median"}, "got 'median'"),
        ({"library_size": [100.0, 200.0]}, "2 values for 3 cells"),
    ],
)
def test_bad_arguments_of_generate_get_a_sentence(model, kwargs, message):
    with pytest.raises(InvalidInputError, match=message):
        model.generate(**{"n_obs": 3, **kwargs})


def test_cells_on_disk_are_those_in_memory(case, model, tmp_path):
    asked = {"conditions": case.conditions, "seed": 2, "batch_size": 5}
    path = model.generate(12, path=tmp_path / "cells.zarr", **asked)
    cells = model.generate(12, **asked)
    stored = mudata.read_zarr(path) if isinstance(cells, mudata.MuData) else ad.read_zarr(path)
    assert _same(stored, cells)
    assert stored.obs_names.equals(cells.obs_names)
    pd.testing.assert_frame_equal(stored.obs[cells.obs.columns], cells.obs, check_dtype=False)


def test_few_steps_work_in_every_model(case, model):
    model.distill(2, n_updates=2, batch_size=16, show_progress=False)
    try:
        cells = model.generate(4, conditions=case.conditions, sampler="distilled", seed=0)
    finally:
        model.module.prior.few_steps = None
    assert _rna(cells).n_obs == 4
    assert np.isfinite(_rna(cells).layers["normalized"]).all()


def test_annotate_writes_in_place_or_into_a_copy(model):
    adata = model.adata.copy()
    copied = model.annotate(adata, copy=True)
    assert "X_diffvi" not in adata.obsm
    assert model.annotate(adata) is None
    for result in (adata, copied):
        assert result.obsm["X_diffvi"].shape[0] == adata.n_obs
        assert np.isfinite(result.obs["diffvi_log_prob"]).all()
        np.testing.assert_allclose(_rna(result).layers["diffvi_normalized"].sum(1), 1e4, rtol=1e-3)


def test_an_interrupt_leaves_a_usable_model_that_says_where_it_stands(case, tmp_path):
    from lightning.pytorch.callbacks import Callback

    class Interrupt(Callback):
        def __init__(self, stage, epoch):
            self.stage, self.epoch = stage, epoch

        def on_train_epoch_end(self, trainer, plan):
            if self.stage in type(plan).__name__ and trainer.current_epoch == self.epoch:
                raise KeyboardInterrupt

    model = _new(case)
    with pytest.raises(KeyboardInterrupt):
        model.train(max_epochs=5, max_epochs_diffusion=5, callbacks=[Interrupt("VAE", 1)], **QUIET)
    assert model.stages_["vae"]["status"] == "interrupted"
    assert "VAE interrupted" in model.summary_string
    assert model.get_latent_representation().shape[0] == model.adata.n_obs
    with pytest.raises(NotTrainedError):
        model.generate(2)

    model = _new(case)
    with pytest.raises(KeyboardInterrupt):
        model.train(max_epochs=2, max_epochs_diffusion=5, callbacks=[Interrupt("Diffusion", 2)], **QUIET)
    assert [s["status"] for s in model.stages_.values()] == ["done", "interrupted"]
    assert all(p.requires_grad for n, p in model.module.named_parameters() if "ema" not in n)
    model.save(str(tmp_path / "m"))
    loaded = case.cls.load(str(tmp_path / "m"), adata=case.data())
    assert loaded.generate(4, seed=0).n_obs == 4
    loaded.train_diffusion(max_epochs=2, **QUIET)
    assert loaded.stages_["diffusion"]["status"] == "done"


def test_the_callers_callbacks_are_left_alone(case):
    callbacks = []
    _new(case).train(max_epochs=1, max_epochs_diffusion=1, callbacks=callbacks, early_stopping=True, **QUIET)
    assert callbacks == []


def test_stage_two_leaves_the_vae_as_it_was(case):
    model = _new(case)
    model.train_vae(max_epochs=2, **QUIET)
    before = {k: v.clone() for k, v in model.module.state_dict().items() if not k.startswith("prior.")}
    model.train_diffusion(max_epochs=2, **QUIET)
    after = model.module.state_dict()
    assert all((after[k] == v).all() for k, v in before.items())


def test_repr_names_data_stages_and_conditions(case, model):
    text = repr(model)
    assert text.startswith(f"{type(model).__name__}:")
    assert f"{model.summary_stats.n_cells:,} cells, {model.summary_stats.n_vars:,} genes" in text
    assert "VAE done (4 epochs); diffusion prior done" in text
    for name in case.conditions:
        assert name in text
