"""The two denoiser backbones; both map a state and a conditioning vector to an output of the state's shape."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AdaLNZero(nn.Module):
    """Layer norm whose shift, scale and output gate come from the condition; the gate starts at zero.

    A residual branch wrapped in this is the identity at the start of training (Peebles and Xie 2023).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised and modulated ``x``, of its shape, and the gate of the branch, which broadcasts over it."""
        shift, scale, gate = self.modulation(c).view(len(c), *[1] * (x.ndim - 2), -1).chunk(3, dim=-1)
        return self.norm(x) * (1 + scale) + shift, gate


class Attention(nn.Module):
    """Multi-head self-attention over tokens, ``(n, tokens, width)`` to the same."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens after attention, of the shape of ``x``."""
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).view(n, tokens, 3, self.n_heads, width // self.n_heads).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width))


class CrossAttention(nn.Module):
    """Multi-head attention of tokens to those of a context, of which some may be absent."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, present: Tensor) -> Tensor:
        """Tokens after attention to ``context``, ``(n, m, width)``, of the shape of ``x``; ``present`` is ``(n, m)``."""
        n, tokens, width = x.shape
        q = self.q(x).view(n, tokens, self.n_heads, -1).transpose(1, 2)
        k, v = self.kv(context).view(n, context.shape[1], 2, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=present[:, None, None])
        return self.out(attended.transpose(1, 2).reshape(n, tokens, width))


class MLP(nn.Sequential):
    """Two layers with a GELU between them and dropout behind it."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU("tanh"), nn.Dropout(dropout), nn.Linear(hidden, width))


class DiTBlock(nn.Module):
    """Attention, attention to a context where there is one, and MLP, each behind its own adaLN-zero."""

    def __init__(self, width: int, n_heads: int, mlp_ratio: float, dropout: float, context: bool = False) -> None:
        super().__init__()
        self.norm_attention, self.norm_mlp = AdaLNZero(width), AdaLNZero(width)
        self.attention = Attention(width, n_heads)
        if context:
            self.norm_context, self.cross_attention = AdaLNZero(width), CrossAttention(width, n_heads)
        self.mlp = MLP(width, int(mlp_ratio * width), dropout)

    def forward(self, x: Tensor, c: Tensor, context: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Tokens ``(n, tokens, width)`` after the block, of the same shape, given conditions ``(n, width)``."""
        h, gate = self.norm_attention(x, c)
        x = x + gate * self.attention(h)
        if context is not None:
            h, gate = self.norm_context(x, c)
            x = x + gate * self.cross_attention(h, *context)
        h, gate = self.norm_mlp(x, c)
        return x + gate * self.mlp(h)


class DiT(nn.Module):
    """Diffusion transformer for a vector (:cite:p:`Peebles23`).

    The state is cut into patches of ``patch_size`` dimensions. Latent dimensions have no order that
    could be shared, so every patch has its own linear map to and from its token; the tokens then see
    each other through attention.

    Parameters
    ----------
    d
        Size of the state.
    width
        Size of a token and of the conditioning vector.
    depth
        Number of blocks.
    n_heads
        Attention heads; must divide ``width``.
    patch_size
        State dimensions in a token.
    mlp_ratio
        Hidden size of the MLPs over ``width``.
    dropout
        Dropout rate in the MLPs.
    context
        Whether the tokens attend to those of a context too.

    Examples
    --------
    A state of ten dimensions makes three tokens of four, the last one padded. The output is zero until training changes that.

    >>> import torch
    >>> from diffvi.nn import DiT
    >>> net = DiT(10, width=32, patch_size=4)
    >>> net.n_tokens, net(torch.randn(5, 10), torch.randn(5, 32)).shape
    (3, torch.Size([5, 10]))
    >>> bool((net(torch.randn(5, 10), torch.randn(5, 32)) == 0).all())
    True
    """

    def __init__(
        self,
        d: int,
        width: int = 64,
        depth: int = 3,
        n_heads: int = 4,
        patch_size: int = 4,
        mlp_ratio: float = 2.0,
        dropout: float = 0.0,
        context: bool = False,
    ) -> None:
        super().__init__()
        self.d, self.patch_size = d, patch_size
        self.n_tokens = math.ceil(d / patch_size)
        self.embed = nn.Parameter(torch.randn(self.n_tokens, patch_size, width) / math.sqrt(patch_size))
        self.position = nn.Parameter(0.02 * torch.randn(self.n_tokens, width))
        self.blocks = nn.ModuleList([DiTBlock(width, n_heads, mlp_ratio, dropout, context) for _ in range(depth)])
        self.norm = AdaLNZero(width)
        self.unembed = nn.Parameter(torch.zeros(self.n_tokens, width, patch_size))

    def forward(self, x: Tensor, c: Tensor, context: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Output for states ``(n, d)``, of the same shape.

        Parameters
        ----------
        x
            States, ``(n, d)``.
        c
            Conditioning vectors, ``(n, width)``.
        context
            Tokens to attend to, ``(n, tokens, width)``, and which of them are present, ``(n, tokens)``; at least one of each row.
        """
        patches = F.pad(x, (0, self.n_tokens * self.patch_size - self.d)).view(len(x), self.n_tokens, self.patch_size)
        h = torch.einsum("ntp,tpw->ntw", patches, self.embed) + self.position
        for block in self.blocks:
            h = block(h, c, context)
        h, _ = self.norm(h, c)
        return torch.einsum("ntw,twp->ntp", h, self.unembed).reshape(len(x), -1)[:, : self.d]


class ResidualMLP(nn.Module):
    """Residual MLP with adaLN-zero: the DiT without tokens and attention; it knows a context from the conditioning vector alone.

    Parameters
    ----------
    d
        Size of the state.
    width
        Size of the hidden state and of the conditioning vector.
    depth
        Number of residual blocks.
    mlp_ratio
        Hidden size of a block over ``width``.
    dropout
        Dropout rate in the blocks.
    context
        Not used; taken so that both backbones are made alike.

    Examples
    --------
    >>> import torch
    >>> from diffvi.nn import ResidualMLP
    >>> net = ResidualMLP(10, width=32)
    >>> x, c = torch.randn(5, 10), torch.randn(5, 32)
    >>> net(x, c).shape, bool((net(x, c) == 0).all())
    (torch.Size([5, 10]), True)
    """

    def __init__(
        self,
        d: int,
        width: int = 128,
        depth: int = 3,
        mlp_ratio: float = 2.0,
        dropout: float = 0.0,
        context: bool = False,
    ) -> None:
        super().__init__()
        del context
        self.embed = nn.Linear(d, width)
        self.norms = nn.ModuleList([AdaLNZero(width) for _ in range(depth)])
        self.mlps = nn.ModuleList([MLP(width, int(mlp_ratio * width), dropout) for _ in range(depth)])
        self.norm = AdaLNZero(width)
        self.out = nn.Linear(width, d)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, c: Tensor, context: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Output for states ``(n, d)`` and conditioning vectors ``(n, width)``, of the shape of the states."""
        del context
        h = self.embed(x)
        for norm, mlp in zip(self.norms, self.mlps, strict=True):
            y, gate = norm(h, c)
            h = h + gate * mlp(y)
        return self.out(self.norm(h, c)[0])


BACKBONES: dict[str, type[DiT] | type[ResidualMLP]] = {"dit": DiT, "mlp": ResidualMLP}
