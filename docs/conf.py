"""How the documentation is built: pages in Markdown, the reference from the docstrings."""

from importlib.metadata import version as version_of

project = "RSKD"
author = "The RSKD developers"
release = version = version_of("napari-rskd")

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True}
autodoc_typehints = "none"  # the docstrings give shapes, units and ranges beside the types
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
suppress_warnings = ["ref.citation"]  # a docstring may name its sources without citing them in a sentence

html_theme = "alabaster"
html_theme_options = {"description": "Small segmentation networks from large ones, in napari", "page_width": "1080px"}
html_show_sphinx = False
