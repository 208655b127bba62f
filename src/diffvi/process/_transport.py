"""Entropic unbalanced optimal transport between two populations, and chains of it through many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors

from diffvi._exceptions import InvalidInputError

MAX_BLOCK = 5000
"""Larger populations are cut at random into blocks of at most this many cells."""


def unbalanced_plan(
    cost: np.ndarray,
    source: np.ndarray | None = None,
    entropy: float = 0.05,
    source_penalty: float = 0.3,
    max_iterations: int = 1000,
    tolerance: float = 1e-4,
    target_penalty: float = float("inf"),
) -> np.ndarray:
    r"""Entropic plan whose marginals may differ from those given, at a price (:cite:p:`Chizat18`).

    Minimises :math:`\langle P, C \rangle + \varepsilon \mathrm{KL}(P | a b^\top) + \rho_a \mathrm{KL}(P 1 | a) + \rho_b \mathrm{KL}(P^\top 1 | b)`
    with :math:`b = (1/m, \dots, 1/m)`, by Sinkhorn's scaling in torch. The scalings are folded into the kernel whenever
    they grow large, so that small entropies, at which POT's unbalanced solvers underflow, are as safe as large ones.

    Parameters
    ----------
    cost
        ``(n, m)``.
    source
        Masses :math:`a`; ``None`` for uniform ones that sum to 1.
    entropy, source_penalty, target_penalty
        :math:`\varepsilon, \rho_a, \rho_b`, in units of the mean cost; an infinite penalty keeps the marginal.
    max_iterations, tolerance
        Stop when no log scaling of the source changes by more than the tolerance, or after so many iterations; a target marginal that is
        to be kept is exact in any case.

    Returns
    -------
    The plan, ``(n, m)``.

    Examples
    --------
    >>> import numpy as np
    >>> from diffvi.process import unbalanced_plan
    >>> plan = unbalanced_plan(np.array([[0.0, 1.0], [1.0, 0.0]]), entropy=0.1)
    >>> plan.sum(0).round(3).tolist()
    [0.5, 0.5]
    """
    n, m = cost.shape
    a = torch.full((n,), 1 / n, dtype=torch.float64) if source is None else torch.as_tensor(source, dtype=torch.float64)
    b = torch.full((m,), 1 / m, dtype=torch.float64)
    scaled = torch.as_tensor(cost, dtype=torch.float64) / (entropy * max(float(cost.mean()), 1e-12))
    scaled = scaled - a.log()[:, None] - b.log()
    powers = [1.0 if np.isinf(p) else p / (p + entropy) for p in (source_penalty, target_penalty)]
    # Potentials that have been folded into the kernel, and scalings on top of them.
    f, g = scaled.amin(1), torch.zeros(m, dtype=torch.float64)
    u, v = torch.ones_like(f), torch.ones_like(g)
    kernel = torch.exp(f[:, None] + g - scaled)
    tiny = torch.finfo(torch.float64).tiny
    for _ in range(max_iterations):
        before = u
        u = (a / (kernel @ v).clamp_min(tiny)) ** powers[0] * torch.exp((powers[0] - 1) * f)
        v = (b / (u @ kernel).clamp_min(tiny)) ** powers[1] * torch.exp((powers[1] - 1) * g)
        if float((u / before).log().abs().max()) < tolerance:
            break
        if max(float(u.log().abs().max()), float(v.log().abs().max())) > 50:
            f, g = f + u.log(), g + v.log()
            u, v = torch.ones_like(u), torch.ones_like(v)
            kernel = torch.exp(f[:, None] + g - scaled)
    return (u[:, None] * kernel * v).numpy()


@dataclass
class Coupling:
    """Which cells of one time become which cells of the next, as draws from a plan.

    Parameters
    ----------
    successors
        For each earlier cell, rows of later cells, drawn in proportion to its row of the plan; ``(n_earlier, n_draws)``.
    predecessors
        The same for each later cell.
    growth
        Mass that leaves each earlier cell over the mass that it has; 1 on average (of its block).
    spread
        Variance, per dimension, of the Brownian motion whose bridges the entropy of the plan stands for.

    Examples
    --------
    By hand, for two cells that keep to themselves, of which the first has three descendants to the other's one:

    >>> import numpy as np
    >>> from diffvi.process import Coupling, walk
    >>> stay = Coupling(np.array([[0], [1]]), np.array([[0], [1]]), np.array([1.5, 0.5]), spread=0.1)
    >>> walk([stay, stay], 0, np.array([1, 0]), False, np.random.default_rng(0)).tolist()
    [[1, 1, 1], [0, 0, 0]]
    """

    successors: np.ndarray
    predecessors: np.ndarray
    growth: np.ndarray
    spread: float


def couple(
    earlier: np.ndarray,
    later: np.ndarray,
    growth: np.ndarray | None = None,
    entropy: float = 0.05,
    source_penalty: float = 0.3,
    n_growth_updates: int = 8,
    n_growth_neighbors: int = 20,
    n_draws: int = 32,
    max_block: int = MAX_BLOCK,
    seed: int = 0,
    target_penalty: float = float("inf"),
) -> Coupling:
    """Couple two populations by optimal transport for the squared Euclidean distance, with cells that grow or die.

    Every later cell has an ancestor, unless cells may enter (``target_penalty``), and every earlier cell as many descendants as it grows, which
    is given or estimated: see :func:`estimate_growth`.

    Parameters
    ----------
    earlier, later
        States, ``(n, d)`` and ``(m, d)``.
    growth
        Expected number of descendants of each earlier cell, up to a factor, where known.
    entropy
        See :func:`unbalanced_plan`.
    source_penalty, target_penalty, n_growth_updates, n_growth_neighbors
        See :func:`estimate_growth`; without updates no cell grows.
    n_draws
        Draws from every row and column that are kept in place of the plan, which need not fit into memory.
    max_block
        Largest population that is solved whole.
    seed
        Seed of blocks and draws.

    Returns
    -------
    The coupling: draws from the plan in both directions, growth, and the variance of its bridges.

    Raises
    ------
    InvalidInputError
        If a time has fewer cells than there are blocks.

    Examples
    --------
    >>> import numpy as np
    >>> from diffvi.process import couple
    >>> points = np.array([[0.0], [10.0]])
    >>> couple(points, points + 1, n_draws=1).successors.ravel().tolist()
    [0, 1]
    """
    rng = np.random.default_rng(seed)
    n_blocks = -(-max(len(earlier), len(later)) // max_block)
    if min(len(earlier), len(later)) < n_blocks:
        raise InvalidInputError(
            f"`max_block`: {len(earlier)} and {len(later)} cells cannot be cut into {n_blocks} blocks of {max_block}."
        )
    successors = np.empty((len(earlier), n_draws), dtype=np.int64)
    predecessors = np.empty((len(later), n_draws), dtype=np.int64)
    factors, spreads = np.empty(len(earlier)), []
    blocks = [np.array_split(rng.permutation(len(x)), n_blocks) for x in (earlier, later)]
    for rows, columns in zip(*blocks, strict=True):
        x, y = earlier[rows], later[columns]
        if growth is None:
            mass = estimate_growth(x, y, entropy, source_penalty, n_growth_updates, n_growth_neighbors, target_penalty)
        else:
            mass = np.asarray(growth, float)[rows]
            # A cell that all but dies keeps a mass whose logarithm is finite.
            mass = np.maximum(mass, 1e-6 * mass.max())
        cost = _squared_distances(x, y)
        plan = unbalanced_plan(cost, mass / mass.sum(), entropy, float("inf"), target_penalty=target_penalty)
        successors[rows] = columns[_draw(plan, n_draws, rng)]
        predecessors[columns] = rows[_draw(plan.T, n_draws, rng)]
        factors[rows] = mass / mass.mean()
        spreads.append(0.5 * entropy * float(cost.mean()))
    return Coupling(successors, predecessors, factors, float(np.mean(spreads)))


def estimate_growth(
    earlier: np.ndarray,
    later: np.ndarray,
    entropy: float = 0.05,
    source_penalty: float = 0.3,
    n_updates: int = 8,
    n_neighbors: int = 20,
    target_penalty: float = float("inf"),
) -> np.ndarray:
    """How many descendants each earlier cell has, relative to their mean, ``(n,)``.

    A plan whose earlier masses are free explains movement by growth: cells that happen to be ahead multiply. So cells are first moved
    to where they go (the mean displacement of a plan, smoothed over neighbours), and only what is then left of the difference between the populations is put down
    to growth. The growth of a plan, smoothed in the same way because that of a single cell is noise, is the masses that
    the next one starts from (as in Waddington-OT, :cite:p:`Schiebinger19`).

    Parameters
    ----------
    earlier, later
        States, ``(n, d)`` and ``(m, d)``.
    entropy, source_penalty, target_penalty
        See :func:`unbalanced_plan`: how strongly a plan keeps to the masses it starts from, and to the population it arrives at. With a finite
        ``target_penalty`` later cells may have entered, rather than that others nearby are their ancestors.
    n_updates
        Plans; more let growth vary more. 0 for none, without growth.
    n_neighbors
        Cells to smooth over, at most a third of all. 0 for plain unbalanced plans, without the move: what their row sums say
        is then as much movement as growth, but populations between two times may come out closer.

    Returns
    -------
    Descendants over their mean, ``(n,)``; no unit.

    Examples
    --------
    Cells that all move by a half and do not grow. A plain plan says that those ahead multiply; the default does not.

    >>> import numpy as np
    >>> from diffvi.process import estimate_growth
    >>> earlier = np.linspace(0, 1, 60)[:, None]
    >>> for k in (0, 20):
    ...     growth = estimate_growth(earlier, earlier + 0.5, n_neighbors=k)
    ...     print(growth[:30].mean().round(1), growth[30:].mean().round(1))
    0.1 1.9
    1.0 1.0
    """
    mass = np.ones(len(earlier))
    if n_updates == 0:
        return mass
    if n_neighbors == 0:
        cost = _squared_distances(earlier, later)
        for _ in range(n_updates):
            plan = unbalanced_plan(
                cost, mass / mass.sum(), entropy, source_penalty, tolerance=1e-3, target_penalty=target_penalty
            )
            mass = np.maximum(plan.sum(1) * len(earlier), 1e-3)
        return mass / mass.mean()
    k = min(n_neighbors, max(1, len(earlier) // 3))
    near = NearestNeighbors(n_neighbors=k).fit(earlier).kneighbors(earlier, return_distance=False)
    moved, penalty = earlier, float("inf")
    for update in range(n_updates + 1):
        cost = _squared_distances(moved, later)
        plan = unbalanced_plan(cost, mass / mass.sum(), entropy, penalty, tolerance=1e-3, target_penalty=target_penalty)
        gained = np.maximum(plan.sum(1), 1e-300)
        moved = earlier + ((plan @ later) / gained[:, None] - earlier)[near].mean(1)
        if update > 0:
            mass = np.exp(np.log(np.maximum(gained * len(earlier), 1e-3))[near].mean(1))
        penalty = source_penalty
    return mass / mass.mean()


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T, 0.0)


def _draw(plan: np.ndarray, n_draws: int, rng: np.random.Generator) -> np.ndarray:
    """Columns drawn from every row, ``(n, n_draws)``."""
    ends = np.cumsum(plan, axis=1)
    ticks = rng.random((len(plan), n_draws)) * ends[:, -1:]
    return np.stack([np.searchsorted(e, t, side="right") for e, t in zip(ends, ticks, strict=True)]).clip(
        max=plan.shape[1] - 1
    )


def walk(
    couplings: Sequence[Coupling], start: int, cells: np.ndarray, backward: bool, rng: np.random.Generator
) -> np.ndarray:
    """Follow cells of the time number ``start`` through the couplings to the last time, or back to the first.

    Composing plans is following their draws: the pair of a walk's ends is a draw from the product of the plans.

    Parameters
    ----------
    couplings
        One between each two neighbouring times.
    start
        Number of the time at which the walk begins.
    cells
        Rows of the cells of that time, ``(n,)``.
    backward
        Whether to go to the first time instead of the last.
    rng
        Picks among the draws that the couplings hold.

    Returns
    -------
    Rows at each time passed, ``(n, n_times)``, the first column being ``cells``.

    Examples
    --------
    >>> import numpy as np
    >>> from diffvi.process import couple, walk
    >>> points, rng = np.array([[0.0], [10.0]]), np.random.default_rng(0)
    >>> couplings = [couple(points, points + 1), couple(points + 1, points[::-1] + 2)]
    >>> walk(couplings, 0, np.array([0, 1]), False, rng).tolist()
    [[0, 0, 1], [1, 1, 0]]
    >>> walk(couplings, 2, np.array([0]), True, rng).tolist()
    [[0, 1, 1]]
    """
    path = [cells]
    steps = reversed(couplings[:start]) if backward else couplings[start:]
    for coupling in steps:
        table = coupling.predecessors if backward else coupling.successors
        path.append(table[path[-1], rng.integers(table.shape[1], size=len(cells))])
    return np.stack(path, axis=1)
