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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status.

    Examples
    --------
    >>> main(["benchmark", "--list"])
    generation  held-out cells against generated ones: diffvi and its baselines
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
    bench.add_argument("task", nargs="?", choices=["generation"], help="what to measure")
    bench.add_argument("data", nargs="*", type=Path, help=".h5ad files with raw counts in X")
    bench.add_argument("--list", action="store_true", help="name the tasks and exit")
    bench.add_argument("--labels-key", default="cell_type", help="column of obs with the label (default: %(default)s)")
    bench.add_argument(
        "--n-top-genes", type=int, default=2000, help="most variable genes to keep (default: %(default)s)"
    )
    bench.add_argument("--test-size", type=float, default=0.35, help="share of held-out cells (default: %(default)s)")
    bench.add_argument("--draws", type=int, default=3, help="generated sets to score (default: %(default)s)")
    bench.add_argument(
        "--seed", type=int, default=0, help="seed of split, training and generation (default: %(default)s)"
    )
    bench.add_argument("--only", nargs="*", default=None, help="names of the methods to run (default: all)")
    bench.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), help="folder to write to (default: %(default)s)"
    )

    arguments = parser.parse_args(argv)
    # Warnings of the libraries underneath are for those who call them; errors still come through.
    warnings.filterwarnings("ignore")
    try:
        if arguments.command == "demo":
            from .benchmark._demo import run_demo

            run_demo(arguments.out, seed=arguments.seed, max_epochs=arguments.max_epochs)
        elif arguments.list:
            print("generation  held-out cells against generated ones: diffvi and its baselines")
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
