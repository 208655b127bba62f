"""Sphinx configuration: `sphinx-build -W -b html docs docs/_build/html`, with `DIFFVI_DOCS_OFFLINE=1` where there is no network."""

from __future__ import annotations

import os
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import diffvi

# The recorded tables and the notebooks live where their commands do; Sphinx wants them below its own folder.
for name in ("benchmarks", "tutorials"):
    source, copy = Path(__file__).parents[1] / name, Path(__file__).parent / name
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("results", "__pycache__", "*.csv", ".*"))

project = "diffvi"
author = "The diffvi developers"
copyright = f"{date.today():%Y}, {author}"
version = release = diffvi.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints", "benchmarks/README.md", "_summary.md"]
nitpicky = False

html_theme = "sphinx_book_theme"
html_title = "diffvi"
html_static_path = ["_static"]
html_css_files = ["diffvi.css"]
html_theme_options = {"show_toc_level": 2, "home_page_in_toc": True, "show_navbar_depth": 1}

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# The notebooks are stored with their outputs: reading the documentation needs no training.
nb_execution_mode = "off"
nb_merge_streams = True

autodoc_member_order = "bysource"
toc_object_entries_show_parents = "hide"
autodoc_typehints = "description"
autosummary_generate = True
autosummary_ignore_module_all = False
autosummary_imported_members = True
templates_path = ["_templates"]
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_ivar = True
napoleon_use_rtype = False
typehints_defaults = "comma"
typehints_document_rtype_none = False
always_use_bars_union = True
# `>>> ` and `$ ` are not part of what one copies.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"
bibtex_default_style = "unsrt"

intersphinx_mapping = {
    "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
    "lightning": ("https://lightning.ai/docs/pytorch/stable/", None),
    "mudata": ("https://mudata.readthedocs.io/en/latest/", None),
    "numpy": ("https://numpy.org/doc/stable/", None),
    "pandas": ("https://pandas.pydata.org/docs/", None),
    "python": ("https://docs.python.org/3", None),
    "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
    "scipy": ("https://docs.scipy.org/doc/scipy/", None),
    "scvi": ("https://docs.scvi-tools.org/en/stable/", None),
    "torch": ("https://docs.pytorch.org/docs/stable/", None),
}
if os.environ.get("DIFFVI_DOCS_OFFLINE"):
    intersphinx_mapping = {}


def skip_member(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what models inherit from scvi-tools, which documents it, and the hooks of our own classes."""
    source = getattr(getattr(obj, "fget", obj), "__module__", None) or ""
    return True if source.startswith("scvi.") or (what == "class" and name.isupper()) else None


def setup(app: Any) -> None:
    """Connect the above."""
    app.connect("autodoc-skip-member", skip_member)
