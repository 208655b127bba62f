from __future__ import annotations

from argparse import Namespace

import pandas as pd
import torch
from anndata import AnnData
from rich.console import Console

from diffvi._exceptions import InvalidInputError, one_of
from diffvi.datasets._downloads import read_data

from ._baselines import BASELINES, Generator
from ._demo import quiet_lightning
from ._runner import Diffvi, run_generation, split_cells


def run_benchmark(arguments: Namespace) -> None:
    """Run ``diffvi benchmark generation`` on each data set and write one tidy CSV for each."""
    quiet_lightning()
    # The held-out cells are set aside already, and without early stopping a second hold-out buys nothing.
    methods: list[Generator] = [*(baseline() for baseline in BASELINES), Diffvi(train_kwargs={"train_size": 1.0})]
    names = [method.name for method in methods]
    if arguments.only is not None:
        for name in arguments.only:
            one_of("--only", name, names)
        methods = [method for method in methods if method.name in arguments.only]
    console = Console(highlight=False)
    arguments.out.mkdir(parents=True, exist_ok=True)
    console.print(f"torch threads: {torch.get_num_threads()}")
    for path in arguments.data:
        adata: AnnData = read_data(path)
        train, test = split_cells(
            adata, arguments.labels_key, arguments.test_size, arguments.n_top_genes, seed=arguments.seed
        )
        console.print(f"{path.name}: {train.n_obs} training cells, {test.n_obs} held out, {train.n_vars} genes")
        table = run_generation(
            train,
            test,
            arguments.labels_key,
            methods,
            arguments.draws,
            arguments.seed,
            lambda m: console.print(f"  {m}"),
        )
        file = arguments.out / f"generation_{path.stem}.csv"
        if file.exists() and arguments.only is not None:
            kept = pd.read_csv(file)
            table = pd.concat([kept[~kept["method"].isin(table["method"].unique())], table], ignore_index=True)
        table.to_csv(file, index=False)
        console.print(summarise(table))
        console.print(f"wrote {file}")


def summarise(table: pd.DataFrame) -> str:
    """Scores by method, mean over draws, with the floor in the last column, as Markdown."""
    if table.empty:
        raise InvalidInputError("The table has no rows.")
    wide = table.pivot_table(index="score", columns="method", values="value", sort=False)
    wide["real-vs-real floor"] = table.groupby("score")["floor"].mean()
    header = "| score | " + " | ".join(map(str, wide.columns)) + " |\n|" + "---|" * (len(wide.columns) + 1)
    rows = [
        f"| {name} | " + " | ".join("" if pd.isna(v) else f"{v:.3f}" for v in row) + " |"
        for name, row in zip(wide.index, wide.to_numpy(), strict=True)
    ]
    return "\n".join([header, *rows])
