"""A model goes through scvi-tools' hub on disk: metadata, model card, and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import diffvi
from diffvi.model import LatentDiffusionSCVI

pytest.importorskip("huggingface_hub")
ABOUT = {
    "license_info": "cc-by-4.0",
    "description": "Simulated cells.",
    "tissues": ["blood"],
    "references": "Nobody 2020",
}


def test_round_trip(trained: LatentDiffusionSCVI, tmp_path: Path):
    from scvi.hub import HubModel

    diffvi.hub_model(trained, tmp_path / "blood", save_anndata=True, **ABOUT)
    again = HubModel(str(tmp_path / "blood"))
    assert (again.metadata.model_cls_name, again.metadata.model_parent_module) == (
        "LatentDiffusionSCVI",
        "diffvi.model",
    )
    assert isinstance(again.model, LatentDiffusionSCVI)
    mine, theirs = (m.generate(20, conditions={"cell_type": "type_1"}, seed=0) for m in (trained, again.model))
    np.testing.assert_array_equal(mine.X.toarray(), theirs.X.toarray())


def test_card_says_what_the_model_is_and_it_generates_without_data(trained: LatentDiffusionSCVI, tmp_path: Path):
    hub = diffvi.hub_model(trained, tmp_path / "blood", **ABOUT)
    card = hub.model_card
    assert card.data.license == "cc-by-4.0"
    assert "tissue:blood" in card.data.tags
    for told in ("# blood", "Simulated cells.", "LatentDiffusionSCVI.load", "'type_1'", "Nobody 2020", "Limits"):
        assert told in (tmp_path / "blood" / "README.md").read_text(), told
    model = LatentDiffusionSCVI.load(str(tmp_path / "blood"))
    assert model.generate(3, seed=0).shape == (3, trained.adata.n_vars)


@pytest.mark.parametrize("argument", ["license_info", "description"])
def test_bad_input_writes_nothing(trained: LatentDiffusionSCVI, tmp_path: Path, argument: str):
    with pytest.raises(diffvi.InvalidInputError, match=argument):
        diffvi.hub_model(trained, tmp_path / "blood", **{**ABOUT, argument: " "})
    assert not (tmp_path / "blood").exists()


def test_an_existing_model_stays(trained: LatentDiffusionSCVI, tmp_path: Path):
    diffvi.hub_model(trained, tmp_path / "blood", **ABOUT)
    with pytest.raises(diffvi.ModelFileError, match="overwrite"):
        diffvi.hub_model(trained, tmp_path / "blood", **ABOUT)


def test_other_models_are_refused(tmp_path: Path):
    with pytest.raises(diffvi.InvalidInputError, match="`model` must be a model of diffvi; got dict"):
        diffvi.hub_model({}, tmp_path / "blood", **ABOUT)


def test_tissues_are_a_list(trained: LatentDiffusionSCVI, tmp_path: Path):
    with pytest.raises(diffvi.InvalidInputError, match="`tissues` must be a list of names; got 'blood'"):
        diffvi.hub_model(trained, tmp_path / "blood", **{**ABOUT, "tissues": "blood"})
