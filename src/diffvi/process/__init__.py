"""Gaussian paths, prediction targets, samplers and likelihoods; nothing in here knows about cells."""

from ._chains import Moves, PathSampler
from ._couplings import PAIRINGS, Pairing, pair_sources
from ._likelihood import ode_log_prob
from ._paths import PATHS, CosineVP, GaussianPath, LinearFlow, LinearVP, get_path
from ._samplers import SAMPLERS, Sampler, ddim, ddpm, dpmpp_2m, euler, get_sampler, heun
from ._transport import Coupling, couple, estimate_growth, unbalanced_plan, walk

__all__ = [
    "PAIRINGS",
    "PATHS",
    "SAMPLERS",
    "CosineVP",
    "Coupling",
    "GaussianPath",
    "LinearFlow",
    "LinearVP",
    "Moves",
    "Pairing",
    "PathSampler",
    "Sampler",
    "couple",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "estimate_growth",
    "euler",
    "get_path",
    "get_sampler",
    "heun",
    "ode_log_prob",
    "pair_sources",
    "unbalanced_plan",
    "walk",
]
