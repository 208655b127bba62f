import os

import numpy as np
import pytest
import scvi
import torch

from diffvi.data import _latents
from diffvi.data._latents import large_array
from diffvi.model import LatentDiffusionSCVI
from tests.conftest import QUIET


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room in a file cannot be set aside here")
def test_a_large_array_lies_in_a_file_that_nobody_has_to_remove(monkeypatch, tmp_path):
    monkeypatch.setattr(_latents, "IN_MEMORY", 100)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert not isinstance(large_array((5, 5), np.float32), np.memmap)
    array = large_array((6, 5), np.float32)
    assert isinstance(array, np.memmap)
    assert not list(tmp_path.iterdir())
    array[:] = 3
    assert (array == 3).all()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room in a file cannot be set aside here")
def test_without_room_on_the_disk_it_is_in_memory(monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_latents, "IN_MEMORY", 100)
    monkeypatch.setattr(os, "posix_fallocate", full)
    assert type(large_array((6, 5), np.float32)) is np.ndarray


def test_training_from_mapped_latents_is_that_from_memory(cells, monkeypatch):
    weights = []
    for limit in (0, 2**25):
        monkeypatch.setattr(_latents, "IN_MEMORY", limit)
        scvi.settings.seed = 0
        LatentDiffusionSCVI.setup_anndata(cells, labels_key="cell_type")
        model = LatentDiffusionSCVI(cells, n_hidden=8, n_latent=3)
        model.train(max_epochs=2, max_epochs_diffusion=2, **QUIET)
        latents, _ = model._latent_data()
        assert isinstance(latents.mean, np.memmap) is (limit == 0 and hasattr(os, "posix_fallocate"))
        subset, _ = model._latent_data(indices=[5, 3, 3, 0])
        np.testing.assert_array_equal(subset.mean, latents.mean[[5, 3, 3, 0]])
        weights.append(model.module.state_dict())
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items() if isinstance(v, torch.Tensor))
