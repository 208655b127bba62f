from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from ._time import TimeEmbedding


@dataclass(frozen=True)
class Attribute:
    """One attribute that conditions the prior.

    Parameters
    ----------
    name
        Its name, such as a column of ``adata.obs``.
    n_categories
        Number of categories; ``None`` for a numeric attribute.
    size
        Columns it takes in the codes. A numeric attribute with several is a vector; a categorical one with several is
        a set of up to ``size / 2`` categories: their numbers (NaN for an empty place), then the weight of each.
    n_features
        For a set: size of the feature vectors that are known of its categories, such as the user's gene embedding.
    fixed
        Part of where a cell starts rather than of what is asked for: never hidden in training, and shown to the network
        whatever the guidance.
    noise
        Standard deviation of normal noise that training adds to a numeric attribute, for one that is known better of the
        training cells than of new ones; whoever samples draws it too.
    n_tokens
        For a numeric attribute: it is this many tokens of ``size / n_tokens`` features each, which the denoiser attends to; an
        absent token is NaN throughout. 0 for an ordinary one.

    Examples
    --------
    A cell type of three, an age, and up to eight perturbations out of a hundred with their weights:

    >>> from diffvi.nn import Attribute, columns
    >>> cell_type, age = Attribute("cell_type", 3), Attribute("age")
    >>> guides = Attribute("perturbation", 100, size=16)
    >>> columns([cell_type, age, guides])
    [slice(0, 1, None), slice(1, 2, None), slice(2, 18, None)]
    """

    name: str
    n_categories: int | None = None
    size: int = 1
    n_features: int = 0
    fixed: bool = False
    noise: float = 0.0
    n_tokens: int = 0


def columns(attributes: Sequence[Attribute]) -> list[slice]:
    """Where each attribute stands in a table of codes.

    Parameters
    ----------
    attributes
        The attributes, in the order of the table.

    Returns
    -------
    Columns of each attribute, as many as its ``size``.

    Examples
    --------
    >>> from diffvi.nn import Attribute, columns
    >>> columns([Attribute("cell_type", 3), Attribute("origin", size=10)])
    [slice(0, 1, None), slice(1, 11, None)]
    """
    ends = list(accumulate(a.size for a in attributes))
    return [slice(end - a.size, end) for a, end in zip(attributes, ends, strict=True)]


def not_given(codes: Tensor, attributes: Sequence[Attribute]) -> Tensor:
    """Which attributes of which cells are not given, ``(n, n_attributes)``: those whose codes are all NaN."""
    parts = [codes[:, c].isnan().all(1) for c in columns(attributes)]
    return torch.stack(parts, 1) if parts else codes.new_zeros(len(codes), 0, dtype=torch.bool)


class SetEmbedding(nn.Module):
    """Weighted mean of the embeddings of the members of a set; that of the empty set is zero.

    The embedding of a category is a row of a table plus a linear map of its features. Where there are features the
    table starts at zero, so that a category which training never sees is told by its features alone.

    Parameters
    ----------
    n_categories
        Number of categories.
    n_features
        Size of a category's feature vector, may be 0; the vectors themselves are the buffer ``features``.
    width
        Size of an embedding.
    """

    features: Tensor

    def __init__(self, n_categories: int, n_features: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(n_categories, width)
        self.register_buffer("features", torch.zeros(n_categories, n_features))
        self.project = nn.Linear(n_features, width, bias=False) if n_features else None
        if n_features:
            nn.init.zeros_(self.table.weight)

    def forward(self, codes: Tensor) -> Tensor:
        """Embeddings ``(n, width)`` of codes ``(n, 2 * places)``: numbers of the members, then their weights."""
        members, weights = codes.chunk(2, dim=1)
        present = ~members.isnan()
        members = members.nan_to_num(0.0).long()
        embedded = self.table(members)
        if self.project is not None:
            embedded = embedded + self.project(self.features[members])
        weights = (weights * present).nan_to_num(0.0)
        return (weights[..., None] * embedded).sum(1) / present.sum(1, keepdim=True).clamp_min(1)


class ContextEncoder(nn.Module):
    """Tokens of the attributes that hold some, and one that is always there: ``(n, n_columns)`` to ``(n, tokens, width)``.

    Parameters
    ----------
    attributes
        The attributes, in the order of the code columns; at least one with tokens.
    width
        Size of a token.
    """

    def __init__(self, attributes: Sequence[Attribute], width: int) -> None:
        super().__init__()
        self.places = [(a, c) for a, c in zip(attributes, columns(attributes), strict=True) if a.n_tokens]
        self.embeddings = nn.ModuleList(
            nn.Sequential(nn.Linear(a.size // a.n_tokens, width), nn.GELU("tanh"), nn.Linear(width, width))
            for a, _ in self.places
        )
        self.always = nn.Parameter(torch.randn(width))

    def forward(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens, ``(n, tokens, width)``, and which of them are present, ``(n, tokens)``."""
        tokens = [self.always.expand(len(codes), 1, -1)]
        present = [torch.ones(len(codes), 1, dtype=torch.bool, device=codes.device)]
        for (a, where), embed in zip(self.places, self.embeddings, strict=True):
            values = codes[:, where].view(len(codes), a.n_tokens, -1)
            tokens.append(embed(values.nan_to_num(0.0)))
            present.append(~values.isnan().all(2))
        return torch.cat(tokens, 1), torch.cat(present, 1)


class ConditionEncoder(nn.Module):
    """Sum of one embedding an attribute without tokens: codes of shape ``(n, n_columns)`` to ``(n, width)``.

    A code is a category number, or a standardised value for a numeric attribute; NaN means "not
    given" and selects the attribute's null vector. The null vectors are parameters of their own and no
    rows of the category tables, because scArches surgery appends rows at the end of a table.

    Parameters
    ----------
    attributes
        The attributes, in the order of the code columns.
    width
        Size of the result.

    Examples
    --------
    Without any condition the result is the sum of the null vectors; a known type moves it.

    >>> import torch
    >>> from diffvi.nn import Attribute, ConditionEncoder
    >>> encoder = ConditionEncoder([Attribute("cell_type", 3), Attribute("age")], width=8)
    >>> codes = torch.tensor([[float("nan"), float("nan")], [2.0, float("nan")]])
    >>> [bool(torch.allclose(row, encoder.null.sum(0))) for row in encoder(codes)]
    [True, False]
    """

    def __init__(self, attributes: Sequence[Attribute], width: int) -> None:
        super().__init__()
        self.attributes = tuple(attributes)
        self.embeddings = nn.ModuleList([_embedding(a, width) for a in self.attributes])
        self.null = nn.Parameter(torch.randn(len(self.attributes), width))

    def forward(self, codes: Tensor) -> Tensor:
        """Conditioning vectors ``(n, width)`` of codes ``(n, n_columns)``, NaN where not given."""
        total = torch.zeros(len(codes), self.null.shape[1], device=codes.device, dtype=self.null.dtype)
        missing = not_given(codes, self.attributes)
        for i, (a, where, embed) in enumerate(
            zip(self.attributes, columns(self.attributes), self.embeddings, strict=True)
        ):
            if a.n_tokens:
                continue
            value = codes[:, where]
            if not isinstance(embed, SetEmbedding):
                value = value.nan_to_num(0.0)
                value = value[:, 0] if a.size == 1 else value
                value = value if a.n_categories is None else value.long()
            total = total + torch.where(missing[:, i, None], self.null[i], embed(value))
        return total


def _embedding(attribute: Attribute, width: int) -> nn.Module:
    if attribute.n_tokens:
        return nn.Identity()
    if attribute.n_categories is None:
        if attribute.size > 1:
            return nn.Linear(attribute.size, width)
        return TimeEmbedding(width, n_frequencies=16, max_frequency=8.0)
    if attribute.size > 1:
        return SetEmbedding(attribute.n_categories, attribute.n_features, width)
    return nn.Embedding(attribute.n_categories, width)


def drop_conditions(
    codes: Tensor,
    attributes: Sequence[Attribute],
    probability: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Replace codes by NaN at random, per cell: each attribute on its own, and all of them together, with the same probability.

    Dropping cell by cell rather than batch by batch is what lets every subset of attributes be given
    at generation (classifier-free guidance, :cite:p:`Ho22`). Fixed attributes are left as they are.
    """
    n = len(codes)
    drop = torch.rand((n, len(attributes)), generator=generator) < probability
    drop |= torch.rand(n, 1, generator=generator) < probability
    drop &= torch.tensor([not a.fixed for a in attributes], dtype=torch.bool)
    drop = drop.repeat_interleave(torch.tensor([a.size for a in attributes], dtype=torch.long), dim=1)
    return codes.masked_fill(drop.to(codes.device), float("nan"))
