"""The documentation as a site: `make docs` builds these pages into `site/`, which needs no network to be read."""

import re
from typing import Any

from hardpatch import __version__ as release

project, author, project_copyright = "hardpatch", "The hardpatch authors", "The hardpatch authors, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme, html_title, html_show_sphinx = "furo", f"hardpatch {release}", False
html_theme_options = {"navigation_with_keys": True}
html_copy_source = html_show_sourcelink = False
html_extra_path = ["results"]
exclude_patterns = ["results"]
myst_heading_anchors = 4
add_module_names = False
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
napoleon_use_rtype = False

OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+([^)#]+)(?:#[^)]*)?\)")
"""A link of a page to another file of the repository than a page."""


def named(link: re.Match[str]) -> str:
    """Return the text of such a link, and the name of the file if the text does not have it."""
    text, path = link[1], link[2]
    return text if path.rsplit("/")[-1] in text else f"{text} (`{path}`)"


def setup(app: Any) -> None:
    """Name the files that links to the repository lead to: the site does not hold them."""

    def replace(app: Any, page: str, source: list[str]) -> None:
        source[0] = OUTSIDE.sub(named, source[0])

    app.connect("source-read", replace)
