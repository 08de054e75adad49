"""Sphinx settings of the book: it renders the committed notebooks and fetches nothing."""

import json
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from docutils import nodes
from PIL import Image
from sphinx import addnodes
from sphinx.application import Sphinx

from micronet_lib.plots.style import CHART

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
html_css_files = ["custom.css", "dark_figures.css"]
html_js_files = ["enlarge.js", "unrun.js"]
html_show_sourcelink = False
html_copy_source = True
html_show_copyright = False
html_last_updated_fmt = None
html_context = {"default_mode": "auto"}  # as the reader's system has it, until they choose
html_use_index = False  # there is no entry to list
html_theme_options = {
    "logo": {
        "image_light": "_static/logo.svg",
        "image_dark": "_static/logo.svg",
        "alt_text": "Home",
        "text": project,
    },
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    # The explorer has the whole width.
    "secondary_sidebar_items": {"**": ["page-toc"], "explore": []},
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


# ------------------------------------------------------------------------- what the search shows
# Sphinx finds pages. A browser that reads files may not fetch them to show where the words stand,
# so the search page brings the text along, section by section.

SEARCHED = (nodes.paragraph, nodes.caption, nodes.term, nodes.literal_block)


def _sections(doctree: nodes.document) -> list[dict[str, str]]:
    """Return anchor, title and text of each section, without those of its subsections."""
    found = []
    for section in doctree.findall(nodes.section):
        texts = [
            part.astext()
            for part in section.findall(lambda node: isinstance(node, SEARCHED))
            if _section_of(part) is section
        ]
        title = section.next_node(nodes.title)
        found.append(
            {
                "anchor": section["ids"][0],
                "title": title.astext() if title else "",
                "text": " ".join(" ".join(texts).split()),
            }
        )
    return found


def _section_of(node: nodes.Node) -> nodes.Node | None:
    while node.parent is not None and not isinstance(node, nodes.section):
        node = node.parent
    return node


def _write_texts(app: Any, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        texts = {name: _sections(app.env.get_doctree(name)) for name in sorted(app.env.found_docs)}
        text = json.dumps(texts, ensure_ascii=False, separators=(",", ":"))
        target = Path(app.outdir) / "_static" / "search_texts.js"
        target.write_text(f"window.BOOK_TEXTS = {text};\n", encoding="utf-8")


def _add_texts(app: Any, pagename: str, *_: Any) -> None:
    if pagename == "search":
        app.add_js_file("search_texts.js")
        app.add_js_file("search_sections.js")


# ---------------------------------------------------------------------------- figures in the dark
# A chart is turned over on a dark page: what is white there becomes dark, and hues stay. Pictures
# and heat maps stay as they are.

def _is_chart(path: Path) -> bool:
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    counts = np.unique(pixels, axis=0, return_counts=True)[1]
    return bool(np.sort(counts)[-12:].sum() > CHART * len(pixels))


def _write_dark_figures(app: Any, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        images = sorted((Path(app.outdir) / "_images").glob("*.png"))
        charts = ",\n".join(f'[src$="{path.name}"]' for path in images if _is_chart(path))
        filters = "filter: invert(0.93) hue-rotate(180deg);"
        rule = f'html[data-theme="dark"] img:is({charts}) {{\n  {filters}\n}}\n'
        target = Path(app.outdir) / "_static" / "dark_figures.css"
        target.write_text(rule if charts else "", encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Connect what Sphinx does to a page of this book."""
    app.connect("doctree-read", number_chapter, priority=400)  # before titles are collected
    app.connect("doctree-resolved", explain_terms)
    app.connect("html-page-context", _add_texts)
    app.connect("build-finished", _write_texts)
    app.connect("build-finished", _write_dark_figures)
