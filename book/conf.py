"""Sphinx settings of the book: it renders the committed notebooks and fetches nothing."""

import ast
import json
import re
import shutil
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from docutils import nodes
from myst_nb.sphinx_ import HideCodeCellNode
from PIL import Image
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from sphinx import addnodes
from sphinx.application import Sphinx

from micronet_lib.plots.layouts import INVERTED, Parts, dark, stacked

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
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
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
html_css_files = ["custom.css", "figures/figures.css"]
html_js_files = ["enlarge.js", "unrun.js", "tables.js"]
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


# ---------------------------------------------------------------------- one bar for folded cells


def _bar(cell: nodes.Node) -> HideCodeCellNode | None:
    """Return the bar over a cell's code, if it has one without a name of its own."""
    if isinstance(cell, nodes.container) and "cell" in cell["classes"] and cell.children:
        bar = cell.children[0]
        if isinstance(bar, HideCodeCellNode) and bar["prompt_show"] == nb_code_prompt_show:
            return None if "tag_source" in cell["classes"] else bar
    return None


def share_bars(app: Sphinx, doctree: nodes.document, _: str) -> None:
    """Fold cells that follow each other into one bar, and let the set-up's bar say which run it is.

    A cell that shows an output is the last of its row: the bar stands above what it shows.
    """
    for section in doctree.findall(nodes.section):
        shared: HideCodeCellNode | None = None
        for cell in list(section.children):
            bar = _bar(cell)
            if bar is None:
                shared = None
                continue
            whole = len(cell.children) == 1
            stamp = re.search(r"^this run: (.*)$", bar.astext(), re.MULTILINE)
            if shared is None:
                shared = bar
            else:
                shared.extend(bar.children)
                cell.remove(bar)
                if whole:
                    section.remove(cell)
            if stamp and "tag_setup" in cell["classes"]:
                profile, seed, *_, commit = stamp[1].split(" · ")
                shared["prompt_show"] = f"Set-up of this run: {profile} · {seed} · {commit}"
                shared["prompt_hide"] = "Hide the set-up"
            if not whole:
                shared = None


# ---------------------------------------------------------------- from a page to the line of code
# A function that a page shows or names leads to its file and line: in the repository, where
# `-D repository=ADDRESS` says which, else in a page of the site.

ROOT = Path(__file__).resolve().parent.parent
CODE = "_code"
"""Folder of the site with a page for each file that is linked."""


@cache
def _places() -> dict[str, set[tuple[str, int]]]:
    """Return files and lines by name: `f`, `C.f`, `module.f`, and a file by its path."""
    found: dict[str, set[tuple[str, int]]] = {}
    for path in sorted((ROOT / "micronet_lib").rglob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        module = path.parent.name if path.stem == "__init__" else path.stem
        found[file] = {(file, 1)}
        for name, line in _defined(ast.parse(path.read_text(encoding="utf-8")), ""):
            for key in (name, f"{module}.{name}"):
                found.setdefault(key, set()).add((file, line))
    return found


def _defined(tree: ast.Module | ast.ClassDef, inside: str) -> Iterator[tuple[str, int]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield inside + node.name, node.lineno
        if isinstance(node, ast.ClassDef):
            yield from _defined(node, f"{inside}{node.name}.")


def _link(app: Sphinx, page: str, file: str, line: int) -> nodes.reference:
    """Return an empty link to a line, and note that its file needs a page."""
    if app.config.repository:
        address = f"{app.config.repository}/blob/main/{file}#L{line}"
    else:
        target = f"{CODE}/{file.removesuffix('.py')}"
        address = app.builder.get_relative_uri(page, target) + f"#L-{line}"
        app.env.linked_code = {*getattr(app.env, "linked_code", ()), file}
    return nodes.reference("", "", refuri=address, internal=True, reftitle=f"{file}, line {line}")


def link_code(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Link what `show_source` shows, and names of the library in the text."""
    for cell in doctree.findall(nodes.container):
        if "tag_source" in cell["classes"]:
            shown = re.search(r"show_source\(([\w.]+)", cell.astext())
            ((file, line),) = _places()[shown[1]] if shown else ()
            link = _link(app, page, file, line)
            link += nodes.Text(f"{file}, line {line}")
            cell += nodes.paragraph("", "", link, classes=["provenance"])
    for literal in list(doctree.findall(nodes.literal)):
        name = literal.astext().removesuffix("()")
        places = _places().get(name, set())
        # A single word, `seed`, is also a word; a figure's function is not what a reader looks for.
        if len(places) == 1 and re.search(r"[A-Z_./]", name):
            ((file, line),) = places
            if not file.startswith("micronet_lib/plots/") and not _is_linked(literal):
                link = _link(app, page, file, line)
                literal.replace_self(link)
                link += literal


def _is_linked(node: nodes.Node) -> bool:
    return node is not None and (
        isinstance(node, nodes.reference | nodes.title) or _is_linked(node.parent)
    )


def show_code(app: Sphinx) -> Iterator[tuple[str, dict[str, str], str]]:
    """Make a page of each file that a page of the book links."""
    form = HtmlFormatter(linenos="inline", linespans="L", wrapcode=True)
    for file in sorted(getattr(app.env, "linked_code", ())):
        text = highlight((ROOT / file).read_text(encoding="utf-8"), PythonLexer(), form)
        body = f'<h1>{file}</h1>\n<div class="file-of-code">{text}</div>'
        yield f"{CODE}/{file.removesuffix('.py')}", {"title": file, "body": body}, "page.html"


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


# ------------------------------------------------------- figures in the dark, and on a phone
# On a dark page a figure is turned over: white becomes dark, and hues stay. A style sheet can do
# that, but for a figure with areas whose colours are data. That one gets a second picture, and a
# figure whose panels fit below each other gets one for a phone.

PHONE = "max-width: 600px"
TURNED = f"filter: invert({INVERTED}) hue-rotate(180deg);"


def _write_layouts(app: Any, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        folder = Path(app.outdir) / "_static" / "figures"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        rules: list[str] = []
        for path in sorted((Path(app.outdir) / "_images").glob("*.png")):
            with Image.open(path) as picture:
                parts = Parts.read(picture)
                if parts is not None:
                    rules += _rules(picture, parts, path.name, folder)
        (folder / "figures.css").write_text("\n".join(rules), encoding="utf-8")


def _rules(picture: Image.Image, parts: Parts, name: str, folder: Path) -> Iterator[str]:
    """Write the other layouts of a picture, and yield the rules that show them."""
    dark_page, shown = 'html[data-theme="dark"]', f'.bd-article .cell_output img[src$="{name}"]'
    turned = dark(picture, parts) if parts.data else None
    narrow = stacked(picture, parts)

    def instead(layout: str, image: Image.Image) -> str:
        file = folder / f"{Path(name).stem}-{layout}.png"
        (image.quantize(256) if picture.mode == "P" else image).save(file, optimize=True)
        return f'content: url("{file.name}"); filter: none;'

    in_dark = instead("dark", turned) if turned else TURNED
    yield f'{dark_page} :is({shown}, dialog img[src$="{name}"]) {{ {in_dark} }}'
    if narrow:
        content = f"{instead('phone', narrow)} width: {narrow.width // 2}px; max-width: 100%;"
        yield f"@media ({PHONE}) {{ {shown} {{ {content} }} }}"
        below = stacked(turned, parts) if turned else None
        if below:
            content = instead("phone-dark", below)
            yield f"@media ({PHONE}) {{ {dark_page} {shown} {{ {content} }} }}"


def setup(app: Sphinx) -> None:
    """Connect what Sphinx does to a page of this book."""
    app.connect("doctree-read", number_chapter, priority=400)  # before titles are collected
    app.add_config_value("repository", "", "html")
    app.connect("doctree-resolved", explain_terms)
    app.connect("doctree-resolved", link_code)
    app.connect("doctree-resolved", share_bars)  # after all that looks for a cell
    app.connect("html-collect-pages", show_code)
    app.connect("html-page-context", _add_texts)
    app.connect("build-finished", _write_texts)
    app.connect("build-finished", _write_layouts)
