"""How the site is built: ``python -m sphinx -W --keep-going -b html docs OUT``, without a connection."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import cryo_monai

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "cryo-monai"
author = "The cryo-monai developers"
project_copyright = author
release = version = cryo_monai.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "reference"]
exclude_patterns = ["_build"]
needs_sphinx = "8.1"

# Headings get the anchors that GitHub gives them.
myst_heading_anchors = 4
smartquotes = False  # -- begins a flag

default_role = "py:obj"  # a name in single backticks links to its entry, if it has one
add_module_names = False
toc_object_entries = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_use_type_comments = False
autodoc_mock_imports = [name for name in ("ray",) if find_spec(name) is None]
maximum_signature_line_length = 100
napoleon_google_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"cryo-monai {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
