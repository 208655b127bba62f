"""Models on disk: what a stranger or a bad disk may have done to them."""

import contextlib
import os
import pickle
import shutil

import numpy as np
import pandas as pd
import pytest
import scvi
import torch

from diffvi import DiffviError, ModelFileError
from diffvi.datasets import simulate_cells, simulate_perturbations
from diffvi.model import LatentDiffusionSCVI, PerturbDiffusion
from tests.conftest import QUIET

SMALL = {"n_hidden": 16, "n_latent": 4, "denoiser_kwargs": {"width": 16, "depth": 1, "n_heads": 2}}


class Attack:
    """What runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def saved(trained, tmp_path):
    trained.save(str(tmp_path / "model"))
    return tmp_path / "model"


def load(folder, **kwargs):
    return LatentDiffusionSCVI.load(str(folder), adata=False, **kwargs)


def test_saved_models_hold_plain_data_and_come_back_whole(trained, saved):
    loaded = load(saved)
    for name, table in trained.history.items():
        pd.testing.assert_frame_equal(loaded.history[name], table, check_column_type=False)
    for name, value in trained.module.state_dict().items():
        assert torch.equal(value, loaded.module.state_dict()[name])
    assert LatentDiffusionSCVI.load_registry(str(saved))["setup_args"]["labels_key"] == "cell_type"


def test_tables_given_to_setup_come_back(tmp_path):
    adata = simulate_perturbations(80, 20, n_perturbations=3, mean_library=200)
    PerturbDiffusion.setup_anndata(adata, "perturbation", "control", perturbation_embedding=adata.uns["embedding"])
    PerturbDiffusion(adata, **SMALL).save(str(tmp_path / "model"))
    assert PerturbDiffusion.load(str(tmp_path / "model"), adata=adata).adata.n_obs == 80


@pytest.mark.parametrize("where", ["attribute", "weights", "beside", "deep"])
def test_files_that_run_code_are_refused(saved, tmp_path, where):
    marker, file = tmp_path / "ran", saved / "model.pt"
    content = torch.load(file, weights_only=False)
    attack = Attack(marker)
    if where == "attribute":
        content["attr_dict"]["history_"] = attack
    elif where == "weights":
        content["model_state_dict"]["attack"] = attack
    elif where == "deep":
        content["var_names"] = np.array([{"a": [attack]}], dtype=object)
    else:
        content["attack"] = attack
    torch.save(content, file)
    query = simulate_cells(20, 40, mean_library=400)
    for call in (
        load,
        lambda folder: LatentDiffusionSCVI.load_registry(str(folder)),
        lambda folder: LatentDiffusionSCVI.load_query_data(query, str(folder)),
        lambda folder: LatentDiffusionSCVI.prepare_query_anndata(query, str(folder)),
    ):
        with pytest.raises(
            ModelFileError, match=r"holds more than plain data \(posix.system\): .* would run code .* pass `trust=True`"
        ):
            call(saved)
    assert not marker.exists()
    # With trust it does what it was made to do.
    with contextlib.suppress(DiffviError):
        load(saved, trust=True)
    assert marker.exists()


def test_files_of_another_kind_are_refused(saved, tmp_path):
    marker = tmp_path / "ran"
    for content in (pickle.dumps(Attack(marker)), b"", b"PK\x03\x04", b"not a model", os.urandom(2000)):
        (saved / "model.pt").write_bytes(content)
        with pytest.raises(ModelFileError, match="is damaged, or was not written by diffvi"):
            load(saved)
        with pytest.raises(ModelFileError, match="is damaged, or was not written by diffvi"):
            load(saved, trust=True)
    assert not marker.exists()
    torch.save([1, 2], saved / "model.pt")
    with pytest.raises(ModelFileError, match="is damaged, or was not written by diffvi"):
        load(saved)
    shutil.rmtree(saved)
    with pytest.raises(ModelFileError, match="there is no model in"):
        load(saved)


def test_models_of_other_classes_are_refused(tmp_path):
    adata = simulate_cells(60, 20, mean_library=200)
    scvi.model.SCVI.setup_anndata(adata)
    scvi.model.SCVI(adata, n_hidden=8).save(str(tmp_path / "plain"))
    with pytest.raises(ModelFileError):
        load(tmp_path / "plain")
    with pytest.raises(ModelFileError, match="is of another class than LatentDiffusionSCVI"):
        load(tmp_path / "plain", trust=True)


def test_arrays_with_objects_in_disguise_are_refused(saved):
    class Disguised:
        """A void dtype that claims to hold an object."""

        def __reduce__(self):
            state = (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)
            return np.dtype, ("V8", False, True), state

    content = torch.load(saved / "model.pt", weights_only=False)
    content["var_names"] = Disguised()
    torch.save(content, saved / "model.pt")
    with pytest.raises(ModelFileError, match="holds more than plain data"):
        load(saved)


def test_models_that_need_trust_say_so_when_they_are_saved(tmp_path):
    adata = simulate_cells(60, 20, mean_library=200)
    LatentDiffusionSCVI.setup_anndata(adata)
    model = LatentDiffusionSCVI(adata, extra_decoder_kwargs={"activation_fn": torch.nn.SiLU}, **SMALL)
    with pytest.warns(UserWarning, match=r"holds more than plain data .*SiLU.*: loading it will need `trust=True`"):
        model.save(str(tmp_path / "model"))
    load(tmp_path / "model", trust=True)


def test_truncated_files_are_refused(saved):
    whole = (saved / "model.pt").read_bytes()
    for end in np.linspace(0, len(whole) - 1, 15).astype(int):
        (saved / "model.pt").write_bytes(whole[:end])
        with pytest.raises(ModelFileError):
            load(saved)


def test_a_flipped_bit_is_noticed_or_does_no_harm(trained, saved):
    whole, rng, refused = (saved / "model.pt").read_bytes(), np.random.default_rng(0), 0
    for position in rng.choice(len(whole), 60, replace=False):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << int(rng.integers(8))
        (saved / "model.pt").write_bytes(flipped)
        try:
            weights = load(saved).module.state_dict()
        except ModelFileError:
            refused += 1
            continue
        # Between the parts of the file there are bytes that nobody reads.
        assert all(torch.equal(value, weights[name]) for name, value in trained.module.state_dict().items())
    assert refused > 40


def test_a_failed_save_leaves_the_model_that_was_there(trained, saved, monkeypatch):
    before = (saved / "model.pt").read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ModelFileError, match=r"cannot write the model .* No space left on device"):
        trained.save(str(saved), overwrite=True)
    assert (saved / "model.pt").read_bytes() == before
    assert os.listdir(saved.parent) == ["model"]


def test_interrupted_training_can_be_saved_and_loaded(tmp_path):
    adata = simulate_cells(60, 20, mean_library=200)
    LatentDiffusionSCVI.setup_anndata(adata)
    model = LatentDiffusionSCVI(adata, **SMALL)
    model.train_vae(max_epochs=1, **QUIET)
    model.save(str(tmp_path / "model"))
    assert load(tmp_path / "model").stages_["vae"]["status"] == "done"
