from __future__ import annotations

import logging
import time
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import scvi
from rich.console import Console

from diffvi import datasets, pl
from diffvi._exceptions import InvalidInputError, positive_int, seed_or_random
from diffvi._version import __version__
from diffvi.metrics import evaluate_generation
from diffvi.model import LatentDiffusionSCVI

from ._report import write_report
from ._splits import split_cells


def quiet_lightning() -> None:
    """Keep Lightning's notes about hardware and services off the screen."""
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric", "scvi"):
        logging.getLogger(name).setLevel(logging.ERROR)


def run_demo(out: Path, seed: int = 0, max_epochs: int | None = None) -> Path:
    """Train on :func:`~diffvi.datasets.pbmc68k`, generate as many cells as were held out, write a report.

    Parameters
    ----------
    out
        Folder for ``generated.h5ad`` and ``report.html``.
    seed
        Seed of everything.
    max_epochs
        Epochs of each stage; ``None`` for the models' own choice.

    Returns
    -------
    Path of the report.

    Raises
    ------
    InvalidInputError
        If ``out`` cannot be written, or for another argument that is not allowed.
    """
    start = time.perf_counter()
    seed = seed_or_random(seed)
    if max_epochs is not None:
        positive_int("max_epochs", max_epochs)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"`out`: cannot write to {str(out)!r} ({error}).") from error
    matplotlib.use("Agg")
    quiet_lightning()
    scvi.settings.seed = seed % 2**32
    say = Console(highlight=False).print

    labels_key = "cell_type"
    train, test = split_cells(datasets.pbmc68k(), labels_key, test_size=0.3, n_top_genes=None, seed=seed % 2**32)
    say(f"[bold]1/4[/] Real PBMC: {train.n_obs} cells to train on, {test.n_obs} held out, {train.n_vars} genes.")
    LatentDiffusionSCVI.setup_anndata(train, labels_key=labels_key)
    model = LatentDiffusionSCVI(train)

    say("[bold]2/4[/] Training the VAE, then the diffusion prior.")
    begun = time.perf_counter()
    model.train(max_epochs=max_epochs, max_epochs_diffusion=max_epochs)
    trained = time.perf_counter() - begun

    say(f"[bold]3/4[/] Generating {test.n_obs} cells, as many of each type as were held out.")
    labels = test.obs[labels_key].to_numpy(str)
    cells = model.generate(test.n_obs, {labels_key: labels}, seed=seed, show_progress=True)
    cells.write_h5ad(out / "generated.h5ad")

    say("[bold]4/4[/] Scoring against the held-out cells and drawing the report.")
    scores = evaluate_generation(test, cells, train, labels_key, seed=seed % 2**32)
    seconds = time.perf_counter() - start
    counts, axes = plt.subplots(1, 2, figsize=(10, 3.9), layout="constrained")
    pl.mean_variance(test, cells, ax=axes[0], show=False)
    pl.library_sizes(test, cells, ax=axes[1], show=False)
    report = write_report(
        out / "report.html",
        "diffvi demo: generated PBMC",
        [
            f"LatentDiffusionSCVI (diffvi {__version__}) was trained on {train.n_obs} real PBMC and {train.n_vars} genes in "
            f"{trained:.0f} s, then generated {cells.n_obs} cells with the cell types of {test.n_obs} held-out cells, which it "
            f"never saw. Everything on this page compares these two sets; it took {seconds:.0f} s in all.",
        ],
        [
            (
                "UMAP of real and generated cells",
                pl.umap(test, cells, labels_key, seed=seed % 2**32, show=False),
                "One embedding of both sets; grey points are the other set.",
            ),
            (
                "Scores",
                scores,
                "Floor: what real training cells score in place of the generated ones. Best: where a score is best; "
                '"floor" means at the floor. Both sets are small, so read differences of a few hundredths as noise.',
            ),
            ("Counts", counts, "Each point is a gene; the library size of a cell is the sum of its counts."),
            (
                "Marker genes",
                pl.marker_dotplot(test, cells, labels_key, show=False),
                "The two genes that the real cells rank first for each type.",
            ),
            ("Loss curves", pl.losses(model, show=False), ""),
            ("Where the cells came from", "\n".join(f"{k}: {v}" for k, v in cells.uns["diffvi"].items()), ""),
        ],
    )
    for name in ("rf_auc_genes", "correlation_agreement", "label_agreement", "library_size_ks"):
        row = scores.loc[name]
        say(f"    {name:24s} {row['value']:.3f}   real-vs-real floor {row['floor']:.3f}")
    say(f"[bold]Done[/] in {time.perf_counter() - start:.0f} s: {out / 'generated.h5ad'} and {report}")
    return report
