"""Configuration of the documentation site: `make docs` builds it from these pages."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from vig_mm import __version__  # noqa: E402

project = "vig_mm"
author = "vig_mm authors"
copyright = author
version = release = __version__

extensions = [
    "myst_nb",  # myst_parser for notebooks as well
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
nitpicky = False

# Headings get the anchors that GitHub gives them, so the same links work in both places.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

nb_execution_mode = "force"
nb_execution_timeout = 900  # seconds for a cell
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
default_role = "code"  # docstrings write names in single backticks
python_maximum_signature_line_length = 80

html_theme = "furo"
html_title = f"vig_mm {release}"
html_show_sphinx = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
pygments_style = "friendly"
highlight_language = "text"  # of code blocks that name none: error messages, folders
copybutton_exclude = ".linenos, .gp, .go"
