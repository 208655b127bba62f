from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ._time import TimeEmbedding


@dataclass(frozen=True)
class Attribute:
    """One attribute that conditions the prior.

    Parameters
    ----------
    name
        Its name, a column of ``adata.obs``.
    n_categories
        Number of categories; ``None`` for a numeric attribute.
    """

    name: str
    n_categories: int | None = None


class ConditionEncoder(nn.Module):
    """Sum of one embedding an attribute: codes of shape ``(n, n_attributes)`` to ``(n, width)``.

    A code is a category number, or a standardised value for a numeric attribute; NaN means "not
    given" and selects the attribute's null vector. The null vectors are parameters of their own and no
    rows of the category tables, because scArches surgery appends rows at the end of a table.

    Parameters
    ----------
    attributes
        The attributes, in the order of the code columns.
    width
        Size of the result.
    """

    def __init__(self, attributes: Sequence[Attribute], width: int) -> None:
        super().__init__()
        self.attributes = tuple(attributes)
        self.embeddings = nn.ModuleList(
            [
                TimeEmbedding(width, n_frequencies=16, max_frequency=8.0)
                if a.n_categories is None
                else nn.Embedding(a.n_categories, width)
                for a in self.attributes
            ]
        )
        self.null = nn.Parameter(torch.randn(len(self.attributes), width))

    def forward(self, codes: Tensor) -> Tensor:
        total = torch.zeros(len(codes), self.null.shape[1], device=codes.device, dtype=self.null.dtype)
        missing = codes.isnan()
        filled = codes.nan_to_num(0.0)
        for i, (attribute, embed) in enumerate(zip(self.attributes, self.embeddings, strict=True)):
            value = filled[:, i] if attribute.n_categories is None else filled[:, i].long()
            total = total + torch.where(missing[:, i, None], self.null[i], embed(value))
        return total


def drop_conditions(codes: Tensor, each: float, all_at_once: float, generator: torch.Generator | None = None) -> Tensor:
    """Replace codes by NaN at random, per cell: each attribute on its own, and all of them together.

    Dropping cell by cell rather than batch by batch is what lets every subset of attributes be given
    at generation (classifier-free guidance, Ho and Salimans 2022).
    """
    drop = torch.rand(codes.shape, generator=generator) < each
    drop |= torch.rand(len(codes), 1, generator=generator) < all_at_once
    return codes.masked_fill(drop.to(codes.device), float("nan"))
