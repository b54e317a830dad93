"""Sphinx configuration of the documentation site; `make docs` builds it, offline and with warnings as errors."""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.application import Sphinx

import lightning_backdoor

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "Lightning Backdoor"
author = "the authors of Lightning Backdoor"
copyright = "the authors of Lightning Backdoor, Apache-2.0"
version = release = lightning_backdoor.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "api_pages",
    "method_pages",
    "notebook_pages",
    "docstrings",
]
root_doc = "index"
exclude_patterns = ["_build", "extensions", "notebooks/.ipynb_checkpoints"]

html_theme = "furo"
html_title = "Lightning Backdoor"
html_show_sourcelink = False
html_copy_source = False

myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = False
nitpicky = True
# without their inventories, which lie on the network, the types of other libraries cannot be linked
FOREIGN = (
    *sys.stdlib_module_names,
    *("datasets", "gguf", "jsonargparse", "lightning", "numpy", "pandas", "tokenizers", "torch", "torchmetrics"),
    *("transformers", "wandb", "yaml"),
)
nitpick_ignore_regex = [(r"py:.*", rf"({'|'.join(FOREIGN)})\..*"), (r"py:class", r"nn\..*")]


def link_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """Links to Markdown files outside of this folder, which work in the repository, lead to their pages in the site."""
    source[0] = source[0].replace("](../CONTRIBUTING.md)", "](contributing.md)")


def setup(app: Sphinx) -> None:
    """Connects to Sphinx what is too small for an extension."""
    app.connect("source-read", link_pages)
