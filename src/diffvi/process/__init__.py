"""Gaussian paths, prediction targets, samplers and likelihoods; nothing in here knows about cells."""

from ._couplings import PAIRINGS, Pairing, pair_sources
from ._likelihood import ode_log_prob
from ._paths import PATHS, CosineVP, GaussianPath, LinearFlow, LinearVP, get_path
from ._samplers import SAMPLERS, Sampler, ddim, ddpm, dpmpp_2m, euler, get_sampler, heun

__all__ = [
    "PAIRINGS",
    "PATHS",
    "SAMPLERS",
    "CosineVP",
    "GaussianPath",
    "LinearFlow",
    "LinearVP",
    "Pairing",
    "Sampler",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "euler",
    "get_path",
    "get_sampler",
    "heun",
    "ode_log_prob",
    "pair_sources",
]
