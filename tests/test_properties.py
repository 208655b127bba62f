"""Data of every shape and kind: what comes out is right, or a sentence says what is wrong."""

# ruff: noqa: PT017 - an error is one of two things that may happen.
import warnings

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from anndata import AnnData
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from diffvi import DiffviError
from diffvi.model import LatentDiffusionSCVI
from tests.conftest import QUIET

SMALL = {"n_hidden": 8, "n_latent": 2, "denoiser_kwargs": {"width": 8, "depth": 1, "n_heads": 2}}
FEW = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NAMES = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), min_size=1, max_size=8)
MATRICES = {
    "array": np.asarray,
    "csr_matrix": sparse.csr_matrix,
    "csc_matrix": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "csc_array": sparse.csc_array,
}


@st.composite
def data(draw):
    """Counts of any shape in any format, with labels of any name."""
    n, g = draw(st.integers(1, 40)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    counts = rng.poisson(rng.gamma(1.0, draw(st.sampled_from([0.1, 3.0, 300.0])), g), (n, g))
    if draw(st.booleans()):
        counts[:, 0] = draw(st.sampled_from([0, 5]))
    if draw(st.booleans()):
        counts[0] = draw(st.sampled_from([0, 1, 10**6]))
    x = MATRICES[draw(st.sampled_from(list(MATRICES)))](
        counts.astype(draw(st.sampled_from(["int32", "int64", "float32", "float64", "uint16"])))
    )
    names = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    labels = rng.choice(np.array(names, dtype=object), n)
    obs = pd.DataFrame(
        {
            "label": pd.Categorical(labels) if draw(st.booleans()) else labels,
            "score": rng.normal(size=n),
            "size": np.maximum(counts.sum(1), 1.0),
        },
        index=[f"c{i}" for i in range(n)],
    )
    if draw(st.booleans()):
        obs["score"] = obs["score"].where(rng.random(n) < 0.7)
    adata = AnnData(x, obs=obs)
    kwargs = {
        "labels_key": draw(st.sampled_from([None, "label"])),
        "batch_key": draw(st.sampled_from([None, "label"])),
        "condition_keys": draw(st.sampled_from([None, ["score"], ["score", "label"]])),
        "size_factor_key": draw(st.sampled_from([None, "size"])),
    }
    if draw(st.booleans()):
        adata.layers["counts"] = adata.X.copy()
        adata.X = np.full(adata.shape, -1.5, np.float32)
        kwargs["layer"] = "counts"
    if draw(st.booleans()):
        adata = adata[rng.permutation(n)]
    return adata, {k: v for k, v in kwargs.items() if v is not None}


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@FEW
@given(case=data(), seed=st.integers(0, 2**63 - 1))
def test_every_data_set_trains_and_generates_or_says_why_not(case, seed):
    adata, kwargs = case
    adata = adata.copy() if adata.is_view else adata
    scvi.settings.seed = 0
    torch.set_num_threads(1)
    try:
        LatentDiffusionSCVI.setup_anndata(adata, **kwargs)
        model = LatentDiffusionSCVI(adata, **SMALL)
        model.train(max_epochs=1, max_epochs_diffusion=1, **QUIET)
    except DiffviError as error:
        assert str(error).count("`") >= 2
        return
    cells = model.generate(3, seed=seed, batch_size=2)
    assert cells.shape == (3, adata.n_vars)
    assert cells.X.min() >= 0
    assert np.isfinite(cells.layers["normalized"]).all()
    again = model.generate(3, seed=seed)
    assert (cells.X != again.X).nnz == 0
    assert np.isfinite(model.get_prior_log_prob()).all()


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(-2, 2), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(-1, 2), max_size=2),
    st.just({"cell_type": "type_1"}),
    st.just({"cell_type": ["type_1"] * 3}),
    st.just({"score": "much"}),
    st.just({"cell_type": 1.5}),
    st.just(np.array([1.0, np.nan, 3.0])),
    st.just(object()),
    st.just("heun"),
)
ARGUMENTS = ("n_obs", "conditions", "guidance_scale", "n_steps", "sampler", "library_size", "seed", "batch_size")


@settings(FEW, max_examples=200)
@given(name=st.sampled_from(ARGUMENTS), value=ANYTHING)
def test_any_argument_of_generate_works_or_gets_a_sentence(trained, name, value):
    try:
        cells = trained.generate(**{"n_obs": 3, "seed": 0, name: value})
    except DiffviError as error:
        assert f"`{name}" in str(error)
        return
    assert np.isfinite(cells.layers["normalized"]).all()


SETUP = ("layer", "labels_key", "batch_key", "condition_keys", "size_factor_key", "categorical_covariate_keys")
SETUP = (*SETUP, "continuous_covariate_keys")


@settings(FEW, max_examples=150)
@given(
    name=st.sampled_from(SETUP),
    value=st.one_of(ANYTHING, st.sampled_from(["cell_type", "score", ["score"], ["batch", "score"]])),
)
def test_any_argument_of_setup_works_or_gets_a_sentence(cells, name, value):
    try:
        LatentDiffusionSCVI.setup_anndata(cells, **{name: value})
    except DiffviError as error:
        assert "`" in str(error) or "adata" in str(error)
