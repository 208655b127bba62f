import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from diffvi import InvalidInputError
from diffvi.data import ConditionVocabulary, PerturbationCoder, TrainingTable
from diffvi.datasets import simulate_cells
from diffvi.model import LatentDiffusionSCVI

OBS = pd.DataFrame(
    {"type": pd.Categorical(["B", "T", "B", None]), "dose": [0.0, 1.0, 2.0, np.nan], "flag": [True, False, True, True]}
)


@pytest.fixture
def vocabulary():
    return ConditionVocabulary.from_obs(OBS, ["type", "dose", "flag"])


def test_codes_and_names_translate_both_ways(vocabulary):
    codes = vocabulary.encode_cells(AnnData(obs=OBS))
    back = vocabulary.decode(codes)
    assert back["type"].tolist()[:3] == ["B", "T", "B"]
    assert pd.isna(back["type"].iloc[3])
    np.testing.assert_allclose(back["dose"], OBS["dose"], atol=1e-6)
    assert back["flag"].tolist() == [True, False, True, True]


def test_missing_columns_and_unknown_values_become_null(vocabulary):
    codes = vocabulary.encode_cells(AnnData(obs=pd.DataFrame({"type": ["B", "NK"]})))
    assert codes[0, 0] == 0
    assert np.isnan(codes[1, 0])
    assert np.isnan(codes[:, 1:]).all()


def test_single_values_and_sequences(vocabulary):
    codes = vocabulary.encode({"type": ["B", "T", None], "dose": 1.0}, 3)
    assert codes[:2, 0].tolist() == [0, 1]
    assert np.isnan(codes[2, 0])
    assert (codes[:, 1] == codes[0, 1]).all()
    assert np.isnan(codes[:, 2]).all()


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"tpye": "B"}, r"`conditions` must be one of 'type'.*got 'tpye'. Did you mean 'type'"),
        ({"type": "NK"}, r"`conditions\['type'\]`: unknown value 'NK'; known are 'B', 'T'"),
        ({"dose": "high"}, r"`conditions\['dose'\]`: unknown value 'high'; known are finite numbers"),
        ({"dose": np.inf}, r"unknown value inf"),
        ({"type": ["B", "T"]}, r"`conditions\['type'\]` has 2 values for 3 cells"),
        (["type"], r"`conditions` must be a mapping"),
    ],
)
def test_bad_conditions_are_named_with_what_is_known(vocabulary, conditions, message):
    with pytest.raises(InvalidInputError, match=message):
        vocabulary.encode(conditions, 3)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), "strong", {"tpye": 2.0}])
def test_bad_guidance(vocabulary, bad):
    with pytest.raises(InvalidInputError, match="guidance_scale"):
        vocabulary.scales(bad)


def test_guidance_by_name(vocabulary):
    assert vocabulary.scales({"dose": 2.0}) == [1.0, 2.0, 1.0]
    assert vocabulary.scales(7.5) == [7.5] * 3


def test_new_categories_are_appended_at_the_end(vocabulary):
    longer = vocabulary.extended(AnnData(obs=pd.DataFrame({"type": ["A", "B"]})))
    assert longer.entries["type"]["categories"] == ["B", "T", "A"]
    assert vocabulary.entries["type"]["categories"] == ["B", "T"]


def test_training_table_picks_cells_that_agree_as_far_as_any_do():
    codes = np.array([[0, 0], [0, 1], [1, 0]], dtype=np.float32)
    table = TrainingTable(codes, np.arange(3.0), np.array([5, 6, 7]), np.zeros(3, int))
    wanted = np.array([[0, 1], [1, np.nan], [1, 1], [np.nan, np.nan]], dtype=np.float32)
    rows = table.match(wanted, np.array([0.5, 0.5, 0.5, 0.99]))
    assert rows.tolist() == [1, 2, 2, 2]


def test_numbered_batches_are_names_and_not_amounts():
    adata = simulate_cells(80, 12, n_batches=2, seed=0)
    adata.obs["run"] = np.where(adata.obs["batch"] == "batch_1", 107, 101)
    LatentDiffusionSCVI.setup_anndata(adata, batch_key="run")
    model = LatentDiffusionSCVI(adata, n_hidden=8)
    assert model.vocabulary.entries["run"] == {"categories": [101, 107]}
    codes = model.vocabulary.encode({"run": [107, 101]}, 2)
    # The decoder is given the same numbers, so they have to be scvi's.
    scvi_codes = dict(zip(adata.obs["run"], adata.obs["_scvi_batch"], strict=True))
    assert codes[:, 0].tolist() == [scvi_codes[107], scvi_codes[101]]


def test_new_categories_of_mixed_types_are_appended():
    vocabulary = ConditionVocabulary({"run": {"categories": [1, 2]}})
    query = AnnData(obs=pd.DataFrame({"run": pd.Series(["b", 5, "4", 3, 1], index=list("abcde"), dtype=object)}))
    longer = vocabulary.extended(query)
    assert longer.entries["run"]["categories"] == [1, 2, 3, 5, "4", "b"]
    assert longer.encode_cells(query)[:, 0].tolist() == [5, 3, 4, 2, 0]


@pytest.mark.parametrize("without", [None, "ctrl", " ctrl", "ctrl+ctrl", np.nan])
def test_only_a_perturbation_needs_a_dose(without):
    coder = PerturbationCoder(["x"], "ctrl", dose_key="dose", max_dose=10.0)
    vocabulary = ConditionVocabulary({"drug": coder.to_dict()})
    codes = vocabulary.encode({"drug": [without, "x"], "dose": [np.nan, 1]}, 2)
    given = isinstance(without, str)
    assert coder.decode(codes) == [() if given else None, (("x", 1.0),)]
    for conditions in ({"drug": [without, "x"]}, {"drug": [without, " x"], "dose": [1, np.nan]}):
        with pytest.raises(InvalidInputError, match=r"' ?x' needs a dose of at least 0"):
            vocabulary.encode(conditions, 2)
