"""The ``diffvi`` command."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from ._exceptions import DiffviError
from ._version import __version__

OPTIONS: list[tuple[str, type, str]] = [
    ("labels-key", str, "generation: column of obs with the label (default: cell_type)"),
    ("batch-key", str, "generation: column with the batch, to generate label and batch together"),
    ("n-top-genes", int, "most variable genes to keep, chosen on training cells (default: 2000)"),
    ("test-size", float, "share of held-out cells (default: 0.35)"),
    ("draws", int, "generated sets to score (default: 3)"),
    ("seed", int, "seed of split, training and generation (default: 0)"),
    ("perturbation-key", str, "perturbation: column with the perturbation (default: perturbation)"),
    ("control", str, "perturbation: name of the controls (default: control)"),
    ("context-key", str, "perturbation: column with the cell type, to hold each type's perturbed cells out"),
    ("time-key", str, "trajectory: column with the time (default: time)"),
    ("n-components", int, "trajectory: principal components to compare in (default: 10)"),
    ("spatial-key", str, "space: obsm with the coordinates (default: spatial)"),
    ("section-key", str, "space: column with the section; the largest one is used"),
]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv
        Arguments after ``diffvi``; ``None`` for those of the process.

    Returns
    -------
    Exit status: 0, 1 for an error of ours, which is printed in one line, or 130 if interrupted.

    Raises
    ------
    SystemExit
        For ``--help`` and ``--version``, and arguments that are not understood (status 2).

    Examples
    --------
    >>> main(["benchmark", "--list"])
    generation    held-out cells against generated ones
    perturbation  cells under combinations, or in cell types, that were not seen perturbed
    translation   proteins of cells of which only the RNA is known
    trajectory    the population at a time that was left out
    space         expression at locations, or in a disc, that were not measured
    0
    """
    parser = argparse.ArgumentParser(prog="diffvi", description="Latent diffusion models for single-cell omics.")
    parser.add_argument("--version", action="version", version=f"diffvi {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="train on embedded real cells, generate cells and write a report",
        description="Train LatentDiffusionSCVI on 700 PBMC that ship inside scanpy, generate as many cells of each type "
        "as were held out, and write generated.h5ad and report.html. About two minutes on two CPU cores.",
    )
    demo.add_argument("--out", type=Path, default=Path("diffvi-demo"), help="folder to write to (default: %(default)s)")
    demo.add_argument(
        "--seed", type=int, default=0, help="seed of split, training and generation (default: %(default)s)"
    )
    demo.add_argument("--max-epochs", type=int, default=None, help="epochs of each stage, for a quick look")

    bench = commands.add_parser(
        "benchmark",
        help="compare with the baselines on your data",
        description="Run a benchmark task on data sets and write a table of scores, each beside its real-vs-real floor.",
    )
    bench.add_argument("task", nargs="?", metavar="TASK", help="what to measure: see --list")
    bench.add_argument("data", nargs="*", type=Path, metavar="DATA", help=".h5ad files with raw counts in X (.h5mu)")
    bench.add_argument("--list", action="store_true", help="name the tasks and exit")
    bench.add_argument("--only", nargs="+", default=None, metavar="METHOD", help="names of the methods to run")
    bench.add_argument(
        "--score-file", nargs="+", type=Path, metavar="FILE", help="also score results that were computed elsewhere"
    )
    bench.add_argument("--export", type=Path, metavar="DIR", help="write training and held-out cells there and exit")
    bench.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), help="folder to write to (default: %(default)s)"
    )
    options = bench.add_argument_group("options of the tasks")
    for name, kind, text in OPTIONS:
        options.add_argument(f"--{name}", type=kind, default=None, help=text)

    arguments = parser.parse_args(argv)
    # Warnings of the libraries underneath are for those who call them; errors still come through.
    warnings.filterwarnings("ignore")
    try:
        if arguments.command == "demo":
            from .benchmark._demo import run_demo

            run_demo(arguments.out, seed=arguments.seed, max_epochs=arguments.max_epochs)
        elif arguments.list:
            from .benchmark import TASKS

            for task in TASKS.values():
                print(f"{task.name:13s} {task.description}")
        elif arguments.task is None or not arguments.data:
            bench.error("name a task and at least one data file, or ask for --list")
        else:
            from .benchmark._command import run_benchmark

            run_benchmark(arguments)
    except DiffviError as error:
        print(f"diffvi: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("diffvi: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
