"""Every tutorial runs from a clean kernel, on few cells and for few epochs."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "tutorials"
BRIEF = {"max_epochs": 2, "max_epochs_diffusion": 2}
SMALL: dict[str, dict[str, int]] = {
    "quickstart": {**BRIEF, "n_generated": 100},
    "generation": {**BRIEF, "n_top_genes": 200, "n_obs": 600},
    "perturbation": BRIEF,
    "rna_and_protein": {**BRIEF, "n_obs": 500, "n_top_genes": 1000, "n_samples": 2, "n_generated": 100},
    "trajectory": {**BRIEF, "n_top_genes": 500, "n_samples": 2, "every": 2},
    "tissue": {**BRIEF, "n_obs": 400, "n_samples": 10},
}


def test_every_tutorial_is_listed():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_tutorial_runs(name: str, tmp_path: Path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    if name == "rna_and_protein":
        pytest.importorskip("muon")
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    (parameters,) = (i for i, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", []))
    source = "\n".join(f"{key} = {value}" for key, value in SMALL[name].items())
    asked = set(SMALL[name])
    assert all(key in book.cells[parameters].source for key in asked), asked
    book.cells.insert(parameters + 1, nbformat.v4.new_code_cell(source))
    # Threads beyond one only wait for each other while other tests run.
    book.cells.insert(0, nbformat.v4.new_code_cell("import torch\n\ntorch.set_num_threads(1)"))
    nbclient.NotebookClient(
        book, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
