import pytest

from diffvi import InvalidInputError
from diffvi.datasets import (
    fetch,
    simulate_cells,
    simulate_cite,
    simulate_perturbations,
    simulate_tissue,
    simulate_trajectory,
)

NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("simulate", "kwargs", "message"),
    [
        (
            simulate_perturbations,
            {"responders": 2},
            "`responders` must be a finite number of at least 0 and of at most 1; got 2",
        ),
        (simulate_perturbations, {"responders": -0.1}, r"`responders` must be .*; got -0\.1"),
        (simulate_perturbations, {"responders": NAN}, "`responders` must be .*; got nan"),
        (simulate_perturbations, {"responders": "half"}, "`responders` must be .*; got 'half'"),
        (simulate_perturbations, {"doses": []}, r"`doses` must be a list of one or more numbers; got \[\]"),
        (simulate_perturbations, {"doses": 2.0}, r"`doses` must be a list of one or more numbers; got 2\.0"),
        (simulate_perturbations, {"doses": [1.0, -2.0]}, r"`doses` must be a finite number of at least 0; got -2\.0"),
        (simulate_perturbations, {"strength": INFINITE}, "`strength` must be a finite number of at least 0; got inf"),
        (simulate_tissue, {"length_scale": 0}, "`length_scale` must be a finite number above 0; got 0"),
        (simulate_tissue, {"noise": -1}, "`noise` must be a finite number of at least 0; got -1"),
        (simulate_cells, {"n_programs": 0}, "`n_programs` must be a whole number of at least 1; got 0"),
        (simulate_cite, {"n_programs": 0}, "`n_programs` must be a whole number of at least 1; got 0"),
        (simulate_trajectory, {"times": ["a"]}, "`times` must be a finite number; got 'a'"),
        (simulate_trajectory, {"times": [0.0, NAN]}, "`times` must be a finite number; got nan"),
        (simulate_trajectory, {"times": []}, r"`times` must be a list of one or more numbers; got \[\]"),
        (simulate_trajectory, {"times": None}, "`times` must be a list of one or more numbers; got None"),
        (simulate_trajectory, {"times": [1.0, 1.0]}, r"`times` must ascend; got \[1\.0, 1\.0\]"),
        (simulate_trajectory, {"growth": NAN}, "`growth` must be a finite number; got nan"),
    ],
)
def test_bad_arguments_of_simulators_are_named(simulate, kwargs, message):
    with pytest.raises(InvalidInputError, match=message):
        simulate(20, 10, **kwargs)


@pytest.mark.parametrize("simulate", [simulate_cells, simulate_perturbations, simulate_tissue, simulate_trajectory])
@pytest.mark.parametrize("argument", ["mean_library", "dispersion"])
@pytest.mark.parametrize("value", [NAN, 0, -1.0, "large"])
def test_counts_need_a_library_and_a_dispersion(simulate, argument, value):
    with pytest.raises(InvalidInputError, match=f"`{argument}` must be a finite number above 0; got {value!r}"):
        simulate(20, 10, **{argument: value})


def test_all_or_none_of_the_cells_may_respond():
    for share in (0, 1):
        cells = simulate_perturbations(100, 10, responders=share, seed=0)
        assert set(cells.obs.loc[cells.obs["perturbation"] != "control", "responder"]) == {bool(share)}
        assert not cells.uns["log_ratio"].isna().any().any()


@pytest.mark.parametrize(
    ("url", "known_hash", "message"),
    [
        (
            "file:///etc/hostname",
            "sha256:00",
            "`url` must begin with one of 'https://', .*; got 'file:///etc/hostname'",
        ),
        ("cells.h5ad", "sha256:00", "`url` must begin with one of .*; got 'cells.h5ad'"),
        (None, "sha256:00", "`url` must begin with one of .*; got None"),
        ("http://", "sha256:00", "`url`: 'http://' is no address of a file"),
        ("doi:x", "sha256:00", "`url`: 'doi:x' is no address of a file"),
        ("https://example.org/a", "sha255:00", "`known_hash` must be the file's checksum, .*; got 'sha255:00'"),
        ("https://example.org/a", "sha256:", "`known_hash` must be the file's checksum, .*; got 'sha256:'"),
        ("https://example.org/a", None, "`known_hash` must be the file's checksum, .*; got nothing"),
    ],
)
def test_what_cannot_be_downloaded_is_not_called_a_wrong_checksum(tmp_path, url, known_hash, message):
    pytest.importorskip("pooch")
    with pytest.raises(InvalidInputError, match=message):
        fetch(url, known_hash, tmp_path)
