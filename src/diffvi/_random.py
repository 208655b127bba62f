"""One random stream a cell, so that a cell's result depends on the seed and on nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor


class CellStreams:
    """Independent counter-based streams (Philox), one for each of ``cells``.

    Noise that is drawn for a whole minibatch at once changes with the batch size and with the other
    cells in the batch. Here cell ``i`` owns the stream with key ``(seed, i)``.

    Parameters
    ----------
    seed
        The seed of the call.
    cells
        A whole number for each cell, such as its row in the result.
    """

    def __init__(self, seed: int, cells: Sequence[int] | np.ndarray) -> None:
        keys = np.empty((len(cells), 2), dtype=np.uint64)
        keys[:, 0], keys[:, 1] = seed, cells
        self._streams = [np.random.Generator(np.random.Philox(key=key)) for key in keys]

    def __len__(self) -> int:
        return len(self._streams)

    def normal(self, d: int) -> Tensor:
        """Standard normal noise of shape ``(n_cells, d)``."""
        return torch.from_numpy(np.stack([g.standard_normal(d, dtype=np.float32) for g in self._streams]))

    def repeated(self, n: int) -> CellStreams:
        """The same streams, each ``n`` times in a row."""
        copies = CellStreams(0, [])
        copies._streams = [stream for stream in self._streams for _ in range(n)]
        return copies

    def __iter__(self) -> Iterator[np.random.Generator]:
        return iter(self._streams)


def cell_number(name: str) -> int:
    """A number that stands for a cell, whichever other cells are there."""
    return int.from_bytes(hashlib.blake2b(str(name).encode(), digest_size=8).digest(), "big")


def keyed_seed(*parts: object) -> int:
    """A seed that depends on all of the parts, for draws that must not depend on which others are made."""
    return cell_number("\x1f".join(map(repr, parts)))


def nth_seed(seed: int, draw: int) -> int:
    """The seed of a draw; the first has the seed itself."""
    return (seed + draw * 0x9E3779B97F4A7C15) % 2**63
