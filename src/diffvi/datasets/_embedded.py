from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy import sparse


def pbmc68k() -> AnnData:
    """Raw counts of 700 PBMC over 765 genes that ship inside scanpy: no download.

    ``scanpy.datasets.pbmc68k_reduced`` (:cite:p:`Zheng17`) holds log-normalised values and the original
    total counts, from which the counts are recovered exactly.

    Returns
    -------
    AnnData with ``X`` (``float32`` counts, CSR), ``obs["cell_type"]`` (10 types), ``obs["batch"]`` (the 8
    sequencing channels, from the barcodes' suffix), ``obs["phase"]`` and ``obsm["X_umap"]``.

    Examples
    --------
    >>> import diffvi
    >>> adata = diffvi.datasets.pbmc68k()
    >>> adata.shape, int(adata.X.max()), adata.obs["cell_type"].nunique()
    ((700, 765), 259, 10)
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reduced = sc.datasets.pbmc68k_reduced()
    values = sparse.csr_matrix(reduced.raw.X, dtype=np.float64)
    totals = reduced.obs["n_counts"].to_numpy(float)
    values.data = np.round(np.expm1(values.data) * np.repeat(totals, np.diff(values.indptr)) / 1e4)
    values.eliminate_zeros()
    obs = pd.DataFrame(
        {
            "cell_type": reduced.obs["bulk_labels"].astype(str).astype("category").to_numpy(),
            "batch": pd.Categorical(["channel_" + name.rsplit("-", 1)[-1] for name in reduced.obs_names]),
            "phase": reduced.obs["phase"].astype(str).astype("category").to_numpy(),
        },
        index=reduced.obs_names,
    )
    adata = AnnData(values.astype(np.float32), obs=obs, var=pd.DataFrame(index=reduced.raw.var_names))
    adata.obsm["X_umap"] = reduced.obsm["X_umap"]
    return adata
