from __future__ import annotations

from pathlib import Path
from typing import Any

import scanpy as sc
from anndata import AnnData, concat, read_h5ad

from diffvi._exceptions import InvalidInputError, listed

BMMC_DOI = "doi:10.6084/m9.figshare.22716739.v1"
PROTOCOLS = ("https://", "http://", "ftp://", "sftp://", "doi:")
BMMC_SAMPLES = {"s1d1": "s1d1_filtered_feature_bc_matrix.h5", "s1d3": "s1d3_filtered_feature_bc_matrix.h5"}


def _pooch() -> Any:
    try:
        import pooch
    except ImportError as error:
        raise ImportError("Downloads need pooch: `pip install 'diffvi[datasets]'`.") from error
    return pooch


def fetch(url: str, known_hash: str, path: str | Path | None = None) -> Path:
    """Download a file once, check it, and return where it lies.

    Parameters
    ----------
    url
        Address of the file.
    known_hash
        Its checksum, such as ``"sha256:..."``. A file that does not match is not kept.
    path
        Folder to keep it in; ``None`` for the user's cache.

    Returns
    -------
    Path of the file.

    Raises
    ------
    ImportError
        If pooch is not installed.
    InvalidInputError
        If ``url`` is no address that can be downloaded from, ``known_hash`` is no checksum, or the file that came does not
        match it.

    Examples
    --------
    >>> import diffvi
    >>> diffvi.datasets.fetch("https://example.org/cells.h5ad", known_hash="")
    Traceback (most recent call last):
    ...
    diffvi._exceptions.InvalidInputError: `known_hash` must be the file's checksum, such as 'sha256:...'; got nothing.

    A file that is there already is not downloaded again:

    >>> path = diffvi.datasets.fetch("https://example.org/cells.h5ad", "sha256:5b1f...")  # doctest: +SKIP
    """
    pooch = _pooch()
    algorithm, _, digest = known_hash.rpartition(":") if isinstance(known_hash, str) else ("", "", "")
    if not digest or algorithm not in ("", *pooch.hashes.ALGORITHMS_AVAILABLE):
        got = repr(known_hash) if known_hash else "nothing"
        raise InvalidInputError(f"`known_hash` must be the file's checksum, such as 'sha256:...'; got {got}.")
    if not isinstance(url, str) or not url.lower().startswith(PROTOCOLS):
        raise InvalidInputError(f"`url` must begin with one of {listed(PROTOCOLS)}; got {url!r}.")
    try:
        return Path(pooch.retrieve(url, known_hash, path=path or pooch.os_cache("diffvi")))
    except (ValueError, IndexError) as error:
        if "does not match the known hash" not in str(error):
            raise InvalidInputError(f"`url`: {url!r} is no address of a file ({error}).") from error
        raise InvalidInputError(f"`known_hash`: the file from {url} is not the one expected ({error}).") from error


def bmmc(path: str | Path | None = None) -> AnnData:
    """Bone marrow cells of two donors (:cite:p:`Luecken21`): 17,125 cells by 36,601 genes, downloaded once.

    From figshare, whose own record gives the checksums that the files are held to.

    Parameters
    ----------
    path
        Folder to keep the files in; ``None`` for the user's cache.

    Returns
    -------
    AnnData with raw counts and ``obs["batch"]`` (the donor).

    Raises
    ------
    ImportError
        If pooch is not installed.

    Examples
    --------
    >>> import diffvi
    >>> adata = diffvi.datasets.bmmc()  # doctest: +SKIP
    >>> adata.shape, list(adata.obs["batch"].cat.categories)  # doctest: +SKIP
    ((17125, 36601), ['s1d1', 's1d3'])
    """
    pooch = _pooch()
    registry = pooch.create(path=path or pooch.os_cache("diffvi"), base_url=BMMC_DOI)
    registry.load_registry_from_doi()
    samples = {}
    for sample, file in BMMC_SAMPLES.items():
        samples[sample] = sc.read_10x_h5(registry.fetch(file))
        samples[sample].var_names_make_unique()
    adata = concat(samples, label="batch", index_unique="-")
    adata.obs["batch"] = adata.obs["batch"].astype("category")
    return adata


def read_data(path: str | Path) -> AnnData:
    """Read an ``.h5ad`` file, with a sentence where it is not there."""
    path = Path(path)
    if not path.is_file():
        raise InvalidInputError(f"There is no file {str(path)!r}.")
    return read_h5ad(path)
