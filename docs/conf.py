"""How `make site` builds the site: the pages where they stand in the repository, and the API from the docstrings.

The repository's root is the source folder, so that links between pages, to notebooks and to pictures hold as they are.
Nothing is executed, and no page needs a network (`pages.py`).
"""

import sys
from pathlib import Path

import fairlm_utils

sys.path.insert(0, str(Path(__file__).parent))

project, author = "fairlm", "The fairlm developers"
release = fairlm_utils.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_copybutton", "pages"]
root_doc = "README"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENCES.md",
    "*/README.md",
    "results/*/README.md",
    "docs/*.md",
    "notebooks/*.ipynb",
]
exclude_patterns = [".*", "build", "runs", "site"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_custom_formats = {".ipynb": "pages.read_notebook"}
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
nb_ipywidgets_js = {}

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

_FONT = "system-ui, 'DejaVu Sans', sans-serif"  # that of the charts
html_theme = "furo"
html_title = "fairlm"
html_theme_options = {
    "light_css_variables": {"font-stack": _FONT, "color-brand-primary": "#0072b2", "color-brand-content": "#0072b2"},
    "dark_css_variables": {"color-brand-primary": "#56b4e9", "color-brand-content": "#56b4e9"},
}
html_static_path = ["site.css", "../fairlm_utils/experiment/page.css"]
html_css_files = ["page.css", "site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_search_summary = False  # it is fetched, which a page of a folder may not do
html_show_sphinx = False
html_show_copyright = False
html_use_index = html_domain_indices = False
