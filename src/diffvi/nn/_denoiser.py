from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from diffvi._exceptions import one_of

from ._backbones import BACKBONES, MLP
from ._conditions import Attribute, ConditionEncoder, ContextEncoder
from ._time import TimeEmbedding


class Denoiser(nn.Module):
    """A backbone with its time and condition embeddings: ``(x, t, codes)`` to an output like ``x``.

    Parameters
    ----------
    d
        Size of the state.
    attributes
        Attributes that condition it. The tokens of those that hold some are attended to, and their mean is a condition.
    backbone
        ``"dit"`` or ``"mlp"``.
    width
        Width of the backbone and of the conditioning vector; ``None`` for the backbone's default.
    head
        Add a head that predicts the mean of the state from the conditions alone: see :meth:`mean`.
    **backbone_kwargs
        Passed to :class:`DiT` or :class:`ResidualMLP`.

    Raises
    ------
    InvalidInputError
        If there is no such backbone.

    Examples
    --------
    >>> import torch
    >>> from diffvi.nn import Attribute, Denoiser
    >>> denoiser = Denoiser(10, [Attribute("cell_type", 3)], "mlp", width=32, depth=2, head=True)
    >>> codes = torch.tensor([[0.0], [2.0], [float("nan")]])
    >>> denoiser(torch.randn(3, 10), torch.tensor(0.5), codes).shape
    torch.Size([3, 10])
    >>> denoiser.mean(codes).shape
    torch.Size([3, 10])
    """

    def __init__(
        self,
        d: int,
        attributes: Sequence[Attribute] = (),
        backbone: str = "dit",
        width: int | None = None,
        head: bool = False,
        **backbone_kwargs: Any,
    ) -> None:
        super().__init__()
        width = width or {"dit": 64, "mlp": 128}[one_of("denoiser", backbone, BACKBONES)]
        self.time = TimeEmbedding(width)
        self.conditions = ConditionEncoder(attributes, width)
        self.activation = nn.SiLU()
        with_tokens = any(a.n_tokens for a in attributes)
        self.context = ContextEncoder(attributes, width) if with_tokens else None
        self.pooled = nn.Linear(width, width) if with_tokens else None
        self.backbone = BACKBONES[backbone](d, width=width, context=with_tokens, **backbone_kwargs)
        self.head = (
            nn.Sequential(nn.SiLU(), MLP(width, 2 * width, 0.0), nn.SiLU(), nn.Linear(width, d)) if head else None
        )
        if self.head is not None:
            for parameter in self.head[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, t: Tensor, codes: Tensor) -> Tensor:
        """Output for noisy states, of their shape; what it means is up to the prediction target.

        Parameters
        ----------
        x
            States, ``(n, d)``.
        t
            Times, ``(n,)`` or ``()``.
        codes
            Attribute codes, ``(n, n_columns)``, NaN where not given.
        """
        condition, context = self.time(t.expand(len(x))) + self.conditions(codes), None
        if self.context is not None and self.pooled is not None:
            tokens, present = context = self.context(codes)
            mean = (tokens * present[..., None]).sum(1) / present.sum(1, keepdim=True)
            condition = condition + self.pooled(mean)
        return self.backbone(x, self.activation(condition), context)

    def mean(self, codes: Tensor) -> Tensor | None:
        """The head's prediction for codes ``(n, n_columns)``, ``(n, d)``, zero before training; ``None`` where there is no head."""
        return None if self.head is None else self.head(self.conditions(codes))
