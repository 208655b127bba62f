"""Draws the graphs of the models, one SVG each: `python docs/graphs.py`."""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot
from pathlib import Path

STEP, MARGIN, RADIUS = (130, 88), 58, 27
# Fills from the palette of Okabe and Ito, lightened; shape and outline tell the kinds apart without colour.
FILLS = {"observed": "#d9d9d9", "latent": "#ffffff", "drawn": "#cde6f5", "rule": "#fdf0cf"}


@dataclass(frozen=True)
class Node:
    """A variable (circle) or a rule (box) at a column and a row."""

    label: str
    column: float
    row: float
    kind: str = "latent"
    note: str = ""

    @property
    def centre(self) -> tuple[float, float]:
        return MARGIN + self.column * STEP[0], MARGIN + self.row * STEP[1]


def svg(title: str, nodes: dict[str, Node], edges: list[tuple[str, str]], inferred: list[tuple[str, str]]) -> str:
    """The picture; dashed edges are inference."""
    width = 2 * MARGIN + max(n.column for n in nodes.values()) * STEP[0] + 30
    height = 2 * MARGIN + max(n.row for n in nodes.values()) * STEP[1] + 34
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" font-family="Helvetica, Arial, sans-serif" font-size="15">',
        f"<title>{title}</title>",
        '<defs><marker id="a" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L10 5L0 10z" fill="#333"/></marker></defs>',
        f'<rect width="{width:.0f}" height="{height:.0f}" rx="8" fill="#ffffff"/>',
    ]
    for kind, pairs in (("", edges), (' stroke-dasharray="5 4"', inferred)):
        for start, end in pairs:
            (x0, y0), (x1, y1) = nodes[start].centre, nodes[end].centre
            length = hypot(x1 - x0, y1 - y0)
            ux, uy = (x1 - x0) / length, (y1 - y0) / length
            # Inference runs beside the generative edge between the same two.
            side = 7 if kind else 0
            x0, y0, x1, y1 = x0 - uy * side, y0 + ux * side, x1 - uy * side, y1 + ux * side
            gap = RADIUS + 2
            out.append(
                f'<line x1="{x0 + ux * gap:.1f}" y1="{y0 + uy * gap:.1f}" x2="{x1 - ux * gap:.1f}" '
                f'y2="{y1 - uy * gap:.1f}" stroke="#333" stroke-width="1.5"{kind} marker-end="url(#a)"/>'
            )
    for node in nodes.values():
        x, y = node.centre
        fill = FILLS[node.kind]
        if node.kind == "rule":
            shape = (
                f'<rect x="{x - RADIUS}" y="{y - RADIUS + 7}" width="{2 * RADIUS}" height="{2 * RADIUS - 14}" rx="5"'
            )
        else:
            shape = f'<circle cx="{x}" cy="{y}" r="{RADIUS}"'
        thick = 2.6 if node.kind == "drawn" else 1.5
        out.append(f'{shape} fill="{fill}" stroke="#333" stroke-width="{thick}"/>')
        out.append(f'<text x="{x}" y="{y + 5}" text-anchor="middle" font-style="italic">{node.label}</text>')
        for k, line in enumerate(node.note.split("\n") if node.note else []):
            out.append(
                f'<text x="{x}" y="{y + RADIUS + 15 + 13 * k}" text-anchor="middle" font-size="11.5" fill="#444">{line}</text>'
            )
    return "\n".join([*out, "</svg>\n"])


GRAPHS = {
    "latent_diffusion_scvi": (
        "Graph of LatentDiffusionSCVI",
        {
            "c": Node("c", 0, 0, "observed", "labels, batch,\nattributes"),
            "e": Node("ε", 0, 1.5, "latent", "noise"),
            "u": Node("z, log ℓ", 1.5, 0.75, "drawn", "drawn by diffusion"),
            "b": Node("b", 3, 0, "observed", "batch"),
            "t": Node("θ", 3, 1.5, "latent", "dispersion"),
            "x": Node("x", 4.3, 0.75, "observed", "counts: NB, ZINB, Poisson"),
        },
        [("c", "u"), ("e", "u"), ("u", "x"), ("b", "x"), ("t", "x")],
        [("x", "u")],
    ),
    "perturb_diffusion": (
        "Graph of PerturbDiffusion",
        {
            "t": Node("t", 0, 0, "observed", "perturbations, doses"),
            "x0": Node("x₀", 0, 1.5, "observed", "control cell"),
            "e": Node("eₜ", 1.5, 0, "latent", "effect:\nGaussian process"),
            "z0": Node("z₀", 1.5, 1.5, "latent", "its latent"),
            "d": Node("Δz", 3, 0.6, "drawn", "change, by diffusion"),
            "z1": Node("z₁", 4.4, 0.6, "latent", "latent after"),
            "x1": Node("x₁", 4.4, 1.75, "observed", "counts after,\nmoved from x₀"),
            "m": Node("move", 3, 1.75, "rule", "exact coupling"),
        },
        [("t", "e"), ("e", "d"), ("z0", "d"), ("d", "z1"), ("z1", "m"), ("z0", "m"), ("m", "x1")],
        [("x0", "z0")],
    ),
    "total_diffusion": (
        "Graph of TotalDiffusion",
        {
            "c": Node("c", 0, 0, "observed", "attributes"),
            "r": Node("ridge", 0, 1.35, "rule", "kernel path: what one\nmodality says"),
            "u": Node("z, log ℓ", 1.6, 0, "drawn", "latent, library"),
            "w": Node("w", 1.6, 1.35, "drawn", "proteins, continuous"),
            "x": Node("x", 3.2, 0, "observed", "RNA counts: NB, ZINB"),
            "y": Node("y", 3.2, 1.35, "observed", "protein counts:\nround(exp w − 1)"),
        },
        [("c", "u"), ("c", "w"), ("r", "u"), ("r", "w"), ("u", "x"), ("w", "y")],
        [("x", "u"), ("y", "u")],
    ),
    "trajectory_diffusion": (
        "Graph of TrajectoryDiffusion",
        {
            "x1": Node("x(t₁)", 0, 0, "observed", "a cell now"),
            "z1": Node("z(t₁)", 1.4, 0, "latent", "its latent"),
            "t": Node("t₁, t₂", 1.4, 1.4, "observed", "times"),
            "g": Node("g", 2.9, 1.4, "latent", "growth: weight of the cell"),
            "z2": Node("z(t₂)", 2.9, 0, "drawn", "drawn by diffusion"),
            "x2": Node("x(t₂)", 4.4, 0, "observed", "its descendant, counts"),
        },
        [("z1", "z2"), ("t", "z2"), ("z2", "x2"), ("z1", "g"), ("t", "g")],
        [("x1", "z1")],
    ),
    "spatial_diffusion": (
        "Graph of SpatialDiffusion",
        {
            "xj": Node("xⱼ, sⱼ", 0, 0, "observed", "cells around"),
            "s": Node("s", 0, 1.4, "observed", "the location"),
            "k": Node("krige", 1.5, 0, "rule", "what is expected"),
            "f": Node("ε(s)", 1.5, 1.4, "latent", "noise, correlated\nin space"),
            "z": Node("z, log ℓ", 3, 0.6, "drawn", "drawn by diffusion"),
            "x": Node("x(s)", 4.4, 0.6, "observed", "counts"),
        },
        [("xj", "k"), ("s", "k"), ("k", "z"), ("s", "f"), ("f", "z"), ("z", "x")],
        [],
    ),
}


if __name__ == "__main__":
    folder = Path(__file__).parent / "_static" / "graphs"
    folder.mkdir(parents=True, exist_ok=True)
    for name, graph in GRAPHS.items():
        (folder / f"{name}.svg").write_text(svg(*graph), encoding="utf-8")
