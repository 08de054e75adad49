"""Sphinx settings of the book: it renders the committed notebooks and fetches nothing."""

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

project = "The MicroNet book"
author = "The MicroNet book authors"
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.mathjax",
    "sphinx_design",
    "sphinx_copybutton",
    "sphinxcontrib.bibtex",
]
exclude_patterns = ["_build", "src", "**/.ipynb_checkpoints", "**/.jupyter_cache"]

# A page shows exactly what the notebook tests compared, so nothing is executed here.
nb_execution_mode = "off"
nb_merge_streams = True
nb_output_stderr = "remove"
# Widgets would load require.js from a CDN.
nb_ipywidgets_js: dict[str, dict[str, str]] = {}

myst_enable_extensions = [
    "amsmath",
    "attrs_block",
    "attrs_inline",
    "colon_fence",
    "deflist",
    "dollarmath",
    "fieldlist",
]
myst_heading_anchors = 3
myst_links_external_new_tab = False

numfig = True
math_numfig = True
math_eqref_format = "({number})"

bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "alpha"
bibtex_reference_style = "author_year"


def _mathjax_bundle() -> str:
    """The one MathJax file that needs no second request: TeX in, SVG out, fonts inside."""
    spec = find_spec("sphinx-mathjax-offline")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("sphinx-mathjax-offline is missing: run `make setup`")
    return str(Path(spec.origin).parent / "static" / "mathjax" / "tex-svg-full.js")


mathjax_path = "tex-svg-full.js"

html_theme = "sphinx_book_theme"
html_title = project
html_favicon = "_static/favicon.svg"
html_static_path = ["_static", _mathjax_bundle()]
html_css_files = ["custom.css"]
html_show_sourcelink = False
html_copy_source = True
html_show_copyright = False
html_last_updated_fmt = None
html_context = {"default_mode": "light"}
html_theme_options = {
    "logo": {
        "image_light": "_static/logo.svg",
        "image_dark": "_static/logo.svg",
        "alt_text": "Home",
        "text": project,
    },
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "navbar_persistent": [],
    "use_fullscreen_button": False,
    "use_download_button": True,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "search_bar_text": "Search the book",
}
copybutton_exclude = ".linenos, .gp, .go"

GLOSSARY = "notation"


def number_chapter(app: Sphinx, doctree: nodes.document) -> None:
    """Put the number in a chapter's file name before its title; pages from 90 on have none."""
    found = re.match(r"([0-8]\d)_", app.env.docname)
    if found:
        title = next(doctree.findall(nodes.title))
        title.insert(0, nodes.Text(f"{int(found[1])} · "))


@cache
def _definitions(app: Sphinx) -> dict[str, str]:
    """Return what the glossary says, by the id of the term."""
    items = [
        item
        for glossary in app.env.get_doctree(GLOSSARY).findall(addnodes.glossary)
        for item in glossary.findall(nodes.definition_list_item)
    ]
    return {
        name: item.next_node(nodes.definition).astext()
        for item in items
        for term in item.findall(nodes.term)
        for name in term["ids"]
    }


def explain_terms(app: Sphinx, doctree: nodes.document, _: str) -> None:
    """Let a word of the glossary show its definition when a reader points at it."""
    for link in doctree.findall(nodes.reference):
        if any("std-term" in child.get("classes", ()) for child in link.findall(nodes.inline)):
            name = link.get("refid") or link["refuri"].rpartition("#")[2]
            link["reftitle"] = _definitions(app)[name]


def setup(app: Sphinx) -> None:
    """Connect what Sphinx does to a page of this book."""
    app.connect("doctree-read", number_chapter, priority=400)  # before titles are collected
    app.connect("doctree-resolved", explain_terms)
