"""Code in the documentation names what exists: functions, methods, and their arguments."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import diffvi

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "user_guide").glob("*.md")),
]
MODELS = [getattr(diffvi.model, name) for name in diffvi.model.__all__]


def blocks(page: Path) -> list[str]:
    """The Python of a page, as one would paste it."""
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def dotted(node: ast.expr) -> list[str]:
    """``["diffvi", "pl", "umap"]`` of ``diffvi.pl.umap``; empty for anything but names."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return [*before, node.attr]
    return []


def candidates(names: list[str]) -> list[Any]:
    """What a call may mean: one object of diffvi, or a method of the models that have it."""
    if names[0] == "diffvi":
        found: Any = diffvi
        for name in names[1:]:
            found = getattr(found, name)
        return [found]
    if names[0] in ("model", "query") and len(names) == 2:
        found = [getattr(cls, names[1]) for cls in MODELS if hasattr(cls, names[1])]
        assert found, f"no model has {names[1]!r}"
        return found
    return []


def takes(function: Any, call: ast.Call) -> bool:
    """Whether a function has the arguments of a call."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return True
    return all(k.arg is None or k.arg in parameters for k in call.keywords)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.name)
def test_code_names_what_exists(page: Path):
    checked = 0
    for block in blocks(page):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Call) and (found := candidates(dotted(node.func) or ["?"])):
                assert any(takes(function, node) for function in found), ast.unparse(node)
                checked += 1
    assert checked or page.name in ("metrics.md",)


def test_links_between_pages_lead_somewhere():
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", *(ROOT / "benchmarks").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            # Sphinx copies these two folders into the documentation.
            copied = re.sub(r"^(\.\./)*docs/(benchmarks|tutorials)/", r"\2/", target)
            places = [page.parent / target, ROOT / copied, ROOT / re.sub(r"^(\.\./)*", "", target)]
            assert any(place.exists() for place in places), f"{page.name}: {target}"
