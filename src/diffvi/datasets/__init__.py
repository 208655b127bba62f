"""Data: embedded real cells, a simulator with known truth, and downloads with a checksum."""

from ._downloads import bmmc, fetch
from ._embedded import pbmc68k
from ._simulators import simulate_cells

__all__ = ["bmmc", "fetch", "pbmc68k", "simulate_cells"]
