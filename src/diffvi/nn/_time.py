from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """Sinusoidal features of a scalar followed by a small MLP: ``(n,)`` to ``(n, width)``.

    Parameters
    ----------
    width
        Size of the result.
    n_frequencies
        Number of frequencies, spaced geometrically.
    max_frequency
        The highest frequency, in radians per unit of the scalar.

    Examples
    --------
    >>> import torch
    >>> from diffvi.nn import TimeEmbedding
    >>> TimeEmbedding(64)(torch.tensor([0.0, 0.5, 1.0])).shape
    torch.Size([3, 64])
    """

    frequencies: Tensor

    def __init__(self, width: int, n_frequencies: int = 32, max_frequency: float = 100.0) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(0, math.log10(max_frequency), n_frequencies))
        self.mlp = nn.Sequential(nn.Linear(2 * n_frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Features of scalars ``(n,)``, of shape ``(n, width)``."""
        angles = t[:, None] * self.frequencies
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=1))
