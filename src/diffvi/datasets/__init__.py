"""Data: embedded real cells, simulators with known truth, and downloads with a checksum."""

from ._cite import simulate_cite
from ._downloads import bmmc, fetch
from ._embedded import pbmc68k
from ._perturbations import simulate_perturbations
from ._simulators import simulate_cells
from ._tissues import simulate_tissue
from ._trajectories import simulate_trajectory

__all__ = [
    "bmmc",
    "fetch",
    "pbmc68k",
    "simulate_cells",
    "simulate_cite",
    "simulate_perturbations",
    "simulate_tissue",
    "simulate_trajectory",
]
