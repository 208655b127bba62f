from __future__ import annotations

from dataclasses import dataclass

from diffvi._exceptions import InvalidInputError, positive_int, seed_or_random


@dataclass(frozen=True)
class Options:
    """What a benchmark run may be told; every task reads the ones it knows.

    Parameters
    ----------
    labels_key
        Column of ``obs`` with the label (generation).
    batch_key
        Column with the batch, generated together with the label where given (generation).
    n_top_genes
        Most variable genes to keep, chosen on training cells; ``None`` for all.
    test_size
        Share of held-out cells or locations.
    draws
        Generated sets to score.
    seed
        Seed of split, training and generation.
    perturbation_key, control, context_key
        Columns with the perturbation and the context (cell type), and the name of the controls (perturbation).
    time_key, n_components
        Column with the time (numbers, or an ordered category that stands for its rank), and principal components in which populations are compared (trajectory).
    spatial_key, section_key
        ``obsm`` with coordinates, and column with the section: the largest is used (space).

    Raises
    ------
    InvalidInputError
        If a number is not in its range.

    Examples
    --------
    >>> from diffvi.benchmark import Options
    >>> Options(draws=1).test_size
    0.35
    >>> Options(test_size=2)
    Traceback (most recent call last):
    diffvi._exceptions.InvalidInputError: `test_size` must lie between 0 and 1; got 2.
    """

    labels_key: str = "cell_type"
    batch_key: str | None = None
    n_top_genes: int | None = 2000
    test_size: float = 0.35
    draws: int = 3
    seed: int = 0
    perturbation_key: str = "perturbation"
    control: str = "control"
    context_key: str | None = None
    time_key: str = "time"
    n_components: int = 10
    spatial_key: str = "spatial"
    section_key: str | None = None

    def __post_init__(self) -> None:
        positive_int("draws", self.draws)
        positive_int("n_components", self.n_components)
        if self.n_top_genes is not None:
            positive_int("n_top_genes", self.n_top_genes)
        if not 0 < self.test_size < 1:
            raise InvalidInputError(f"`test_size` must lie between 0 and 1; got {self.test_size!r}.")
        seed_or_random(self.seed)
