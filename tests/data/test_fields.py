import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from diffvi import InvalidInputError
from diffvi.model import LatentDiffusionSCVI

setup = LatentDiffusionSCVI.setup_anndata


def _set(adata, value, row=3, column=5):
    x = adata.X.toarray()
    x[row, column] = value
    adata.X = sparse.csr_matrix(x)
    return adata


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1.5, r"adata.X holds values that are not whole numbers \(such as 1.5\); raw counts are needed"),
        (-2.0, r"adata.X holds negative values \(such as -2\)"),
        (np.nan, r"adata.X holds NaN or infinite values"),
    ],
)
def test_values_that_are_not_counts(cells, value, message):
    with pytest.raises(InvalidInputError, match=message):
        setup(_set(cells, value))
    assert not [k for k in (*cells.obs, *cells.obsm, *cells.uns) if "scvi" in k], "a refused object stays as it was"


def test_an_empty_cell_is_named(cells):
    x = cells.X.toarray()
    x[7] = 0
    cells.X = x
    with pytest.raises(InvalidInputError, match=r"cells without a single count \('cell_7'\): remove them with"):
        setup(cells)


def test_empty_genes_are_warned_about(cells):
    x = cells.X.toarray()
    x[:, 2] = 0
    cells.X = x
    with pytest.warns(UserWarning, match=r"1 of 40 genes have no counts at all \('gene_2'\)"):
        setup(cells)


@pytest.mark.parametrize("shape", [(0, 40), (300, 0)])
def test_nothing_to_learn_from(cells, shape):
    with pytest.raises(InvalidInputError, match="at least one of each is needed"):
        setup(cells[: shape[0], : shape[1]].copy())


@pytest.mark.parametrize(
    "argument", ["batch_key", "labels_key", "size_factor_key", "condition_keys", "categorical_covariate_keys"]
)
def test_a_missing_column_is_named_with_those_there_are(cells, argument):
    value = ["nope"] if argument.endswith("keys") else "nope"
    with pytest.raises(InvalidInputError, match=rf"`{argument}`: adata.obs has no column 'nope'; it has 'cell_type'"):
        setup(cells, **{argument: value})


def test_a_missing_layer_is_named(cells):
    with pytest.raises(InvalidInputError, match=r"`layer`: adata.layers has no 'counts'; it has 'rate'"):
        setup(cells, layer="counts")


def test_a_batch_must_be_known_for_every_cell(cells):
    cells.obs["batch"] = cells.obs["batch"].astype(object)
    cells.obs.iloc[:4, cells.obs.columns.get_loc("batch")] = np.nan
    with pytest.raises(InvalidInputError, match=r"`batch_key`: adata.obs\['batch'\] has no value \(NaN\) for 4 of 300"):
        setup(cells, batch_key="batch")


def test_labels_and_conditions_may_be_missing(cells):
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(object)
    cells.obs.loc["cell_0", "cell_type"] = np.nan
    cells.obs.loc["cell_1", "score"] = np.nan
    setup(cells, labels_key="cell_type", condition_keys=["score"])
    codes = cells.obsm["_diffvi_conditions"]
    assert np.isnan(codes[0, 0])
    assert np.isnan(codes[1, 1])
    assert np.isfinite(codes[2:]).all()
    assert cells.obs["_scvi_labels"].min() >= 0


def test_dense_sparse_layer_and_integer_counts_are_all_accepted(cells):
    dense = cells.X.toarray()
    for x in (dense, dense.astype(int), sparse.csc_matrix(dense), sparse.csr_matrix(dense.astype(np.uint16))):
        cells.layers["counts"] = x
        setup(cells, layer="counts")
        registered = LatentDiffusionSCVI(cells).adata_manager.get_from_registry("X")
        np.testing.assert_array_equal(registered.toarray() if sparse.issparse(registered) else registered, dense)


def test_query_genes_must_be_the_models_in_order(trained):
    adata = trained.adata.copy()
    with pytest.raises(InvalidInputError, match="has the model's genes in another order"):
        trained.get_latent_representation(adata[:, ::-1].copy())
    with pytest.raises(InvalidInputError, match=r"lacks 1 of the model's 40 genes \('gene_0'\)"):
        trained.get_latent_representation(adata[:, 1:].copy())
    other = adata.copy()
    other.var_names = pd.Index([f"x{i}" for i in range(40)])
    with pytest.raises(InvalidInputError, match="lacks 40 of the model's 40 genes"):
        trained.get_latent_representation(other)


def test_a_query_without_labels_or_with_unknown_ones_works(trained):
    query = trained.adata[:20].copy()
    query.obs["cell_type"] = "never seen"
    del query.obs["score"]
    log_prob = trained.get_prior_log_prob(query)
    null = trained.get_prior_log_prob(trained.adata, indices=np.arange(20), use_conditions=False)
    assert np.isfinite(log_prob).all()
    assert not np.allclose(log_prob, null), "the batch is still a condition"
    assert trained.get_latent_representation(query).shape == (20, 5)
