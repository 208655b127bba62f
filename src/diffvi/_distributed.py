"""Generation on several machines."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffvi._exceptions import InvalidInputError
from diffvi.data._fields import check_names
from diffvi.data._store import PartStore

MODEL_FOLDER = "model"


def generate_distributed(
    model: Any,
    n_obs: int,
    path: str | Path,
    client: Any,
    overwrite: bool = False,
    layers: Sequence[str] | None = None,
    **generate_kwargs: Any,
) -> Path:
    """Generate cells with Dask, each minibatch a task, into one store on disk.

    The store holds the same cells as that of ``model.generate(n_obs, path=...)`` with the same arguments, up to what another kind of processor
    makes of the last digits. What was cut off goes on in the same way, also from one to the other.

    Parameters
    ----------
    model
        A trained model.
    n_obs
        Number of cells.
    path
        The zarr store to write, on a file system that all workers share.
    client
        A :class:`distributed.Client`. One thread a worker is best: a task uses all threads that torch has.
    overwrite, layers
        As in :meth:`~diffvi.model.LatentDiffusionSCVI.generate`.
    **generate_kwargs
        Further arguments of :meth:`~diffvi.model.LatentDiffusionSCVI.generate`: ``conditions``, ``guidance_scale``, ``n_steps``, ``sampler``, ``library_size``,
        ``seed``, ``batch_size``.

    Returns
    -------
    The path of the store.

    Raises
    ------
    NotTrainedError
        If the diffusion stage is not trained.
    InvalidInputError
        For an argument that is not allowed, or if ``path`` exists.
    OutputFileError
        If ``path`` cannot be written.

    Examples
    --------
    >>> import anndata, diffvi
    >>> from distributed import Client
    >>> client = Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None)
    >>> path = diffvi.generate_distributed(model, 100, "cells.zarr", client, seed=0, batch_size=50)
    >>> client.close()
    >>> anndata.read_zarr(path).shape  # two tasks, one store
    (100, 40)
    """
    if not all(hasattr(client, name) for name in ("map", "gather")):
        raise InvalidInputError(f"`client` must be a distributed.Client; got {client!r}.")
    check_names("layers", layers, several=True)
    request = model._request_cells(n_obs, path=path, **generate_kwargs)
    store = model._store(request, Path(path).absolute(), layers, overwrite)
    missing = store.missing
    if missing:
        with store.told_on_failure():
            model.save(str(store.folder / MODEL_FOLDER), overwrite=True)
        tasks = client.map(
            functools.partial(_write_part, type(model), store, layers),
            missing,
            [request.part(k) for k in missing],
            pure=False,
        )
        client.gather(tasks)
    return store.finish()


def _write_part(model_class: Any, store: PartStore, layers: Sequence[str] | None, k: int, part: Any) -> None:
    model = _loaded(model_class, str(store.folder / MODEL_FOLDER), store.request["model"])
    store.write(k, model._generate_part(part, layers))


@functools.lru_cache(maxsize=1)
def _loaded(model_class: Any, folder: str, which: str) -> Any:
    """The model, which a worker loads once; ``which`` tells it from one that was in the folder before."""
    return model_class.load(folder, adata=False, trust=True)
