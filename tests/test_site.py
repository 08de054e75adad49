"""The built site works offline: as files with the standard tools, and as pages in a browser.

Without a browser (`browsers.py`) the page checks are skipped and say so.
"""

import functools
import http.server
import io
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest
from browsers import DESKTOP, PATIENCE, PHONE, TOO_WIDE
from bs4 import BeautifulSoup, Tag
from PIL import Image

from micronet_lib.plots.layouts import Parts, stacked

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
CHAPTERS = sorted(path.stem for path in BOOK.glob("*.ipynb"))
SOURCES = sorted([*CHAPTERS, *(path.stem for path in BOOK.glob("*.md"))])
PAGES = [f"{stem}.html" for stem in [*SOURCES, "search"]]

# Screens of 800 px that a page may be long.
MAX_SCREENS = 16
# What WCAG 2 asks of body text, level AA.
MIN_CONTRAST = 4.5

Faults = dict[str, list[str]]


# --------------------------------------------------------------------- the site as files


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    """A fresh build in which every warning is an error: its folder, and how Sphinx ended."""
    out = tmp_path_factory.mktemp("site")
    flags = ["-n", "-W", "--keep-going", "-q", "--no-color", "-d", str(out / "doctrees")]
    command = [sys.executable, "-m", "sphinx", *flags, str(BOOK), str(out / "html")]
    return out / "html", subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def site(build: tuple[Path, subprocess.CompletedProcess]) -> Path:
    """The folder of the pages; the first test says whether they were built without a warning."""
    return build[0]


@functools.cache
def parse(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


def faults_of(site: Path, check: Callable[[BeautifulSoup], list[str]]) -> Faults:
    """What `check` finds wrong, by page; pages without a fault are left out."""
    found = {page: check(parse(site / page)) for page in PAGES}
    return {page: faults for page, faults in found.items() if faults}


def test_the_site_builds_without_a_warning(
    build: tuple[Path, subprocess.CompletedProcess],
) -> None:
    assert build[1].returncode == 0, build[1].stderr


def test_every_source_became_a_page(site: Path) -> None:
    built = {path.name for path in site.glob("*.html")}
    assert built == set(PAGES)


def test_every_page_has_a_language_a_title_one_main_heading_and_texts_for_its_images(
    site: Path,
) -> None:
    def check(soup: BeautifulSoup) -> list[str]:
        faults = [] if soup.html and soup.html.get("lang") else ["no language"]
        if not (soup.title and soup.title.get_text(strip=True)):
            faults.append("no title")
        # The theme repeats the heading in a block that only paper shows.
        headings = soup.select("main h1:not(#jb-print-docs-body h1)")
        if len(headings) != 1:
            faults.append(f"{len(headings)} main headings")
        images = soup.select("img")
        return faults + [
            f"no text: {i.get('src')}" for i in images if not str(i.get("alt", "")).strip()
        ]

    assert faults_of(site, check) == {}


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    def check(soup: BeautifulSoup) -> list[str]:
        loaded = soup.select("[src], [srcset], [poster], object[data], link[href]")
        values = [str(tag.get(key)) for tag in loaded for key in tag.attrs if key != "class"]
        return [value for value in values if re.match(r"(https?:)?//", value)]

    assert faults_of(site, check) == {}
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", text), sheet.name


def test_every_link_inside_the_site_resolves(site: Path) -> None:
    def anchors(page: Path) -> set[str]:
        return {str(tag.get("id") or tag.get("name")) for tag in parse(page).select("[id], [name]")}

    def resolves(page: str, link: str) -> bool:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            return True
        target = site / page if not parts.path else (site / page).parent / unquote(parts.path)
        if not target.is_file():
            return False
        anchored = parts.fragment and target.suffix == ".html"
        return not anchored or unquote(parts.fragment) in anchors(target)

    broken: Faults = {}
    for page in PAGES:
        for tag in parse(site / page).select("[href], [src]"):
            link = str(tag.get("href") or tag.get("src") or "")
            if not resolves(page, link):
                broken.setdefault(page, []).append(link)
    assert broken == {}


def test_every_figure_of_a_chapter_has_a_numbered_caption(site: Path) -> None:
    def captioned(img: Tag) -> bool:
        figure = img.find_parent("figure")
        caption = figure.find("figcaption") if figure else None
        number = caption.select_one(".caption-number") if caption else None
        text = caption.select_one(".caption-text") if caption else None
        return bool(number and text and text.get_text(strip=True))

    bare = {
        f"{stem}: {img.get('src')}"
        for stem in CHAPTERS
        for img in parse(site / f"{stem}.html").select("article img")
        if not captioned(img)
    }
    assert not bare


def test_the_set_up_of_a_chapter_is_one_folded_bar_that_says_which_run_it_is(site: Path) -> None:
    for stem in CHAPTERS:
        if stem == "explore":  # has no code
            continue
        article = parse(site / f"{stem}.html").select_one("article")
        assert article
        bars = article.select("details.hide")
        title = bars[0].select_one("summary .collapsed")
        assert title, stem
        assert re.fullmatch(
            r"Set-up of this run: profile smoke · seed 0 · commit [0-9a-f]{7,}", title.get_text()
        ), stem
        assert not bars[0].has_attr("open")
        for part in ("overrides = {}", "running.begin("):
            found = [bar for bar in bars if part in bar.get_text()]
            assert found[0] is bars[0], stem
            assert article.get_text().count(part) == sum(b.get_text().count(part) for b in bars)
        text = article.select_one("figure, table, section section")  # what is not set-up
        assert text, stem
        before = [bar for bar in text.find_all_previous("details") if "hide" in bar["class"]]
        assert before == bars[:1], f"{stem}: {len(before)} bars before the text begins"


def test_code_that_a_chapter_shows_or_names_leads_to_its_line(site: Path) -> None:
    shown = 0
    for stem in CHAPTERS:
        article = parse(site / f"{stem}.html")
        cells = article.select("div.tag_source")
        shown += len(cells)
        links = [cell.select_one(".provenance a") for cell in cells]
        links += article.select("article a:has(> code)")
        for link in links:
            assert link, f"{stem}: code without a link"
            page, _, anchor = str(link["href"]).partition("#")
            if page.startswith("_code/"):
                line = parse(site / page).select_one(f"[id='{anchor}']")
                title, _, number = str(link["title"]).partition(", line ")
                assert line, link
                assert anchor == f"L-{number}"
                text = (ROOT / title).read_text(encoding="utf-8").splitlines()[int(number) - 1]
                assert line.get_text().rstrip().endswith(text.rstrip())
                assert number == "1" or re.match(r"\s*(def|class) ", text), link
    assert shown >= 10


def test_code_leads_to_the_repository_where_its_address_is_known(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("# A page\n\n`srip_penalty`\n", encoding="utf-8")
    options = ["repository=https://example.org/book", "root_doc=page", "html_theme=basic"]
    options += ["html_favicon=", "bibtex_bibfiles="]
    settings = [part for option in options for part in ("-D", option)]
    command = [sys.executable, "-m", "sphinx", "-q", "-c", str(BOOK), *settings]
    subprocess.run([*command, str(tmp_path), str(tmp_path / "out")], check=True)
    link = parse(tmp_path / "out" / "page.html").select_one("a:has(> code)")
    where = r"https://example.org/book/blob/main/micronet_lib/srip/penalty.py#L\d+"
    assert link
    assert re.fullmatch(where, str(link["href"]))


# ------------------------------------------------------------------ the site in a browser


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    """Where the site is served for as long as the tests run."""
    handler = functools.partial(QuietHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


# What one page did wrong while a browser showed it.
FAULTS = (
    *("status", "title", "outside", "failed", "console", "broken images", "math", "too wide"),
    *("not darker", "faint in light", "faint in dark", "inaccessible", "unrun columns"),
    *("cut off", "late picture"),
)


SCREENS: dict[str, float] = {}
"""How long each page is that was opened."""

SETTLE = """async () => {
  document.head.insertAdjacentHTML('beforeend', '<style>* {transition: none !important}</style>');
  await document.fonts.ready;
  if (window.MathJax) await MathJax.startup.promise;
}"""

BROKEN_IMAGES = """() => [...document.images]
  .filter(image => !(image.complete && image.naturalWidth > 0)).map(image => image.src)"""

MATH = r"""() => {
  const faults = [...document.querySelectorAll('.math')]
    .filter(math => !math.querySelector('mjx-container'))
    .map(math => 'not rendered: ' + math.textContent);
  const wrong = '[data-mml-node="merror"], [data-mml-node="mtext"][fill="red"]';
  for (const node of document.querySelectorAll('mjx-container'))
    if (node.querySelector(wrong)) faults.push('MathJax refuses: ' + node.textContent);
  const article = document.querySelector('main').cloneNode(true);
  article.querySelectorAll('pre, code, script, style, .math').forEach(node => node.remove());
  const raw = article.textContent.match(/.{0,20}(\\\(|\\\[|\\begin|\$\$).{0,20}/g);
  return faults.concat((raw || []).map(text => 'raw: ' + text));
}"""

CUT_OFF = """() => [...document.querySelectorAll('main :is(pre, table, .output, div.math)')]
  .filter(node => node.scrollWidth > node.clientWidth + 1 && node.checkVisibility()
    && !node.closest('details:not([open])') && getComputedStyle(node).overflowX !== 'visible')
  .map(node => `${node.scrollWidth} px in ${node.clientWidth}: ${node.textContent.trim()}`)
  .map(text => text.slice(0, 90))"""

# Top of the first picture and height of the text, in pixels.
MEASURES = """() => {
  const drawn = 'article :is(img, canvas, svg, .theme-aware, .front-board)';
  const tops = [...document.querySelectorAll(drawn)]
    .filter(node => !node.closest('mjx-container') && node.checkVisibility())
    .map(node => node.getBoundingClientRect())
    .filter(box => box.width > 150).map(box => box.top + scrollY);
  const article = document.querySelector('article');
  return [Math.min(...tops, 1e9), article ? article.scrollHeight : 0];
}"""

UNRUN_COLUMNS = """() => [...document.querySelectorAll('table.dataframe')].flatMap(table => {
  const heads = [...table.rows[0].cells], rows = [...table.tBodies].flatMap(body => [...body.rows]);
  if (rows.length < 2 || rows.some(row => row.cells.length !== heads.length)) return [];
  return heads.filter((head, k) => head.checkVisibility() &&
    rows.every(row => row.cells[k].textContent.trim() === 'not run')).map(head => head.textContent);
})"""

BACKGROUND = "() => getComputedStyle(document.body).backgroundColor"

FAINT = """least => {
  const rgba = css => {
    const [r, g, b, a = 1] = css.match(/[\\d.]+/g).map(Number);
    return css.startsWith('color(') ? [r * 255, g * 255, b * 255, a] : [r, g, b, a];
  };
  const over = (top, below) =>
    [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const behind = node => {
    if (!node) return [255, 255, 255, 1];
    const own = rgba(getComputedStyle(node).backgroundColor);
    return own[3] === 1 ? own : over(own, behind(node.parentElement));
  };
  const opacity = node => node
    ? Number(getComputedStyle(node).opacity) * opacity(node.parentElement) : 1;
  const luminance = colour => colour.slice(0, 3)
    .map(value => value / 255)
    .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = node => {
    const below = behind(node);
    const [r, g, b, a] = rgba(getComputedStyle(node).color);
    const [x, y] = [luminance(over([r, g, b, a * opacity(node)], below)), luminance(below)];
    return (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
  };
  const hasText = node => [...node.childNodes].some(
    child => child.nodeType === Node.TEXT_NODE && child.textContent.trim());
  return [...document.querySelectorAll('main *')]
    .filter(node => !node.closest('svg, mjx-container, script, style, .headerlink, button, form'))
    .filter(node => hasText(node) && node.checkVisibility())
    .map(node => [contrast(node), node])
    .filter(([ratio]) => ratio < least)
    .map(([ratio, node]) => ratio.toFixed(1) + ': ' + node.textContent.trim().slice(0, 40));
}"""


NO_AXE = "axe-playwright-python is not installed"


def inaccessible(page: Any) -> list[str]:
    """What axe-core finds critical or serious."""
    try:
        from axe_playwright_python.sync_playwright import Axe
    except ModuleNotFoundError:
        return [NO_AXE]
    # docutils calls a list what has no items. With preload, axe would fetch style sheets again.
    # Contrast takes it seconds a page, and `FAINT` measures it in both themes.
    options = {
        "resultTypes": ["violations"],
        "preload": False,
        "rules": {"color-contrast": {"enabled": False}},
    }
    found = Axe().run(page, {"exclude": [".citation-list"]}, options).response["violations"]
    serious = [each for each in found if each["impact"] in ("serious", "critical")]
    return [f"{each['id']}: {each['nodes'][0]['html'][:90]}" for each in serious]


def visit(browser: Any, address: str, page_name: str) -> Faults:
    """Open one page as a reader would, first wide, then on a phone, then in the dark."""
    seen: Faults = {what: [] for what in FAULTS}
    context = browser.new_context(viewport=DESKTOP)

    def guard(route: Any) -> None:
        if route.request.url.startswith(address):
            route.continue_()
        else:
            seen["outside"].append(route.request.url)
            route.abort()

    context.route("**/*", guard)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.on("requestfailed", lambda request: seen["failed"].append(request.url))
    page.on("response", lambda r: None if r.ok else seen["failed"].append(f"{r.status} {r.url}"))
    page.on("pageerror", lambda error: seen["console"].append(str(error)))
    page.on("console", lambda m: seen["console"].append(m.text) if m.type == "error" else None)

    status = page.goto(f"{address}/{page_name}", wait_until="load").status
    if status != 200:
        seen["status"].append(str(status))
        context.close()
        return seen
    page.evaluate(SETTLE)
    seen["title"] = [] if page.title().strip() else ["none"]
    seen["broken images"] = page.evaluate(BROKEN_IMAGES)
    seen["math"] = page.evaluate(MATH)
    seen["unrun columns"] = page.evaluate(UNRUN_COLUMNS)
    stem = page_name.removesuffix(".html")
    seen["cut off"] = page.evaluate(CUT_OFF)
    picture, height = page.evaluate(MEASURES)
    if stem in CHAPTERS and picture > 1.5 * DESKTOP["height"]:
        seen["late picture"] = [f"after {picture:.0f} px"]
    SCREENS[stem] = height / 800
    seen["inaccessible"] = inaccessible(page)
    backgrounds = []
    for theme in ("light", "dark"):
        page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
        backgrounds.append(page.evaluate(BACKGROUND))
        seen[f"faint in {theme}"] = page.evaluate(FAINT, MIN_CONTRAST)
    seen["not darker"] = backgrounds[:1] if len(set(backgrounds)) == 1 else []
    seen["too wide"] = page.evaluate(TOO_WIDE)
    page.set_viewport_size(PHONE)
    seen["too wide"] += page.evaluate(TOO_WIDE)
    context.close()
    return seen


@pytest.fixture(scope="session")
def visits(browser: Any, address: str) -> dict[str, Faults]:
    """Every page, opened once."""
    return {page: visit(browser, address, page) for page in PAGES}


@pytest.mark.parametrize("fault", FAULTS)
def test_no_page_has_a_fault(visits: dict[str, Faults], fault: str) -> None:
    found = {page: seen[fault] for page, seen in visits.items() if seen[fault]}
    if any(NO_AXE in each for each in found.values()):
        pytest.skip(NO_AXE)
    assert found == {}


def test_no_page_is_too_long(visits: dict[str, Faults], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print("\nscreens:", ", ".join(f"{stem} {n:.1f}" for stem, n in SCREENS.items()))
    assert {stem: n for stem, n in SCREENS.items() if n > MAX_SCREENS} == {}
    assert set(SCREENS) == {page.removesuffix(".html") for page in PAGES}


def test_the_theme_button_switches_and_the_choice_is_kept(browser: Any, address: str) -> None:
    page = browser.new_page(viewport=DESKTOP)
    page.set_default_timeout(PATIENCE)
    page.goto(f"{address}/index.html")
    before = page.evaluate(BACKGROUND)
    page.locator(".theme-switch-button:visible").first.click()
    page.locator(".theme-change-button[data-mode=dark]:visible").first.click()
    page.reload()
    assert page.evaluate(BACKGROUND) != before
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_opens_in_the_colours_of_the_system(browser: Any, address: str, scheme: str) -> None:
    page = browser.new_page(color_scheme=scheme)
    page.set_default_timeout(PATIENCE)
    page.goto(f"{address}/index.html")
    assert page.evaluate("() => document.documentElement.dataset.theme") == scheme
    page.close()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_figures_turn_dark_and_data_keep_their_colours(
    browser: Any, address: str, size: dict[str, int]
) -> None:
    """A chart, a photograph, and maps beside bars."""

    def colours(figure: str, scheme: str) -> tuple[int, set[tuple[int, ...]]]:
        page = browser.new_page(color_scheme=scheme, viewport=size)
        page.set_default_timeout(PATIENCE)
        name, _, number = figure.partition("#")
        page.goto(f"{address}/{name}.html", wait_until="domcontentloaded")
        image = page.locator(f"#{number} img").first
        image.scroll_into_view_if_needed()
        page.wait_for_function("image => image.complete", arg=image.element_handle())
        page.wait_for_function(f"() => document.documentElement.dataset.theme === {scheme!r}")
        image.evaluate("image => image.decode()")
        with Image.open(io.BytesIO(image.screenshot())) as shown:
            pixels = shown.convert("RGB")
            vivid = [
                colour
                for _, colour in pixels.getcolors(pixels.width * pixels.height) or []
                if max(colour) - min(colour) > 60
            ]
            page.close()
            return sum(pixels.getpixel((3, 3))), set(vivid)

    for figure, same in (
        ("06_scoring#fig-layer-bill", False),
        ("00_contest#fig-five-guesses", True),
        ("01_architecture#fig-feature-maps", True),
    ):
        (paper, light), (dark_paper, dark) = (colours(figure, s) for s in ("light", "dark"))
        assert paper > 740, figure
        assert dark_paper < 90, figure
        assert (len(light & dark) > 0.5 * len(light)) == same, figure


def test_a_column_of_not_run_becomes_a_sentence(browser: Any, address: str) -> None:
    page = browser.new_page(viewport=DESKTOP)
    page.set_default_timeout(PATIENCE)
    rows = "<tr><td>1</td><td>not run</td></tr><tr><td>2</td><td>not run</td></tr>"
    page.set_content(
        "<main class='bd-article'><table class='dataframe'><thead><tr><th>a</th><th>b</th></tr>"
        f"</thead><tbody>{rows}</tbody></table></main>"
        f"<script src='{address}/_static/unrun.js'></script>"
        "<script>document.dispatchEvent(new Event('DOMContentLoaded'))</script>"
    )
    page.wait_for_selector("text=Not run: b.")
    assert not page.locator("th", has_text="b").is_visible()
    assert page.locator("th", has_text="a").is_visible()
    page.close()


@pytest.mark.parametrize("stem", CHAPTERS)
def test_a_figure_on_a_phone_is_large_enough_to_read(
    browser: Any, address: str, site: Path, stem: str
) -> None:
    """Panels stand below each other; one that is wide scrolls in its box."""
    page = browser.new_page(viewport=PHONE)
    page.set_default_timeout(PATIENCE)
    page.goto(f"{address}/{stem}.html", wait_until="load")
    links = page.locator("figure a.enlarge:has(img)").all()
    assert bool(links) == bool(parse(site / f"{stem}.html").select("article figure img"))
    for link in links:
        link.scroll_into_view_if_needed()
        picture = link.locator("img")
        image, box = picture.bounding_box(), link.bounding_box()
        with Image.open(site / str(picture.get_attribute("src"))) as file:
            parts = Parts.read(file)
            assert parts, "a figure of ours says where its parts lie"
            narrow = stacked(file, parts)
        if narrow:  # shown at once, and at no less than three fifths of its size
            assert image["width"] <= box["width"] + 1
            assert image["width"] >= 0.6 * narrow.width / 2
            assert image["height"] / image["width"] == pytest.approx(
                narrow.height / narrow.width, rel=0.02
            )
        else:
            assert image["width"] >= 600  # of the 792 that a figure is drawn for
        assert box["width"] <= PHONE["width"]
    page.close()


def test_a_long_table_sorts_and_filters(browser: Any, address: str) -> None:
    page = browser.new_page(viewport=DESKTOP)
    page.set_default_timeout(PATIENCE)
    values = ["9", "1,000", "not run", "−2.5 %", "1e-3", "30", *"abcdefgh"]
    rows = "".join(f"<tr><td>row {k}</td><td>{value}</td></tr>" for k, value in enumerate(values))
    short = "<table class='dataframe'><thead><tr><th>x</th></tr></thead><tr><td>1</td></tr></table>"
    page.set_content(
        f"<main class='bd-article'>{short}<table class='dataframe'><thead><tr><th>name</th>"
        f"<th>value</th></tr></thead><tbody>{rows}</tbody></table></main>"
        f"<script src='{address}/_static/tables.js'></script>"
    )

    def shown() -> list[str]:
        cells = page.locator("tbody td:nth-child(2):visible")
        return [text.strip() for text in cells.all_text_contents()]

    page.locator("th button", has_text="value").focus()
    page.keyboard.press("Enter")
    assert page.locator("th[aria-sort=ascending]").all_text_contents() == ["value"]
    assert shown()[:5] == ["−2.5 %", "1e-3", "9", "30", "1,000"]
    assert shown()[-1] == "not run"
    page.keyboard.press("Enter")
    assert page.locator("th[aria-sort=descending]").all_text_contents() == ["value"]
    assert (shown()[0], shown()[-1]) == ("1,000", "not run")
    page.get_by_label("Rows with").fill("2.5 ROW")
    assert shown() == ["−2.5 %"]
    assert page.get_by_role("status").text_content() == "1 of 14 rows"
    assert page.locator(".table-tools").count() == 1  # a short table has none
    page.close()


def test_a_click_enlarges_a_figure(browser: Any, address: str) -> None:
    page = browser.new_page(viewport=PHONE)
    page.set_default_timeout(PATIENCE)
    page.goto(f"{address}/03_label_smoothing.html")
    link = page.locator("figure a.enlarge").first
    assert str(link.get_attribute("href")).startswith("_images/")
    link.click()
    shown = page.locator("dialog.enlarged img")
    assert shown.bounding_box()["height"] > 0.5 * PHONE["height"]
    assert shown.get_attribute("alt") == link.locator("img").get_attribute("alt")
    shown.click()  # at its own size, to be scrolled
    assert shown.bounding_box()["width"] > 2 * PHONE["width"]
    page.keyboard.press("Escape")
    page.locator("dialog.enlarged").wait_for(state="hidden")
    page.close()


def test_search_shows_excerpts_and_sections_where_the_book_is_read_from_files(
    browser: Any, site: Path
) -> None:
    faults: list[str] = []
    page = browser.new_page(viewport=DESKTOP)
    page.set_default_timeout(PATIENCE)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
    page.goto(f"{site.as_uri()}/search.html?q=temperature")
    link = page.locator("a[href^='03_label_smoothing.html']")
    hit = page.locator("#search-results ul.search > li.kind-text", has=link)
    hit.locator(".context").wait_for()
    assert "temperature" in str(hit.locator(".context").text_content()).lower()
    sections = hit.locator(".search-sections a")
    assert "Targets by hand" in sections.all_text_contents()
    for link in [each.get_attribute("href") for each in sections.all()]:
        target, anchor = link.split("#")
        assert parse(site / target).find(id=anchor) is not None
    page.close()
    assert faults == []


def test_search_finds_every_chapter_by_a_word_of_its_title(
    browser: Any, address: str, site: Path
) -> None:
    page = browser.new_page(viewport=DESKTOP)
    page.set_default_timeout(PATIENCE)
    for stem in CHAPTERS:
        title = parse(site / f"{stem}.html").select_one("article h1")
        assert title is not None
        word = max(re.findall(r"[A-Za-z]+", title.get_text()), key=len)
        page.goto(f"{address}/search.html?q={word}")
        hit = page.locator(f"#search-results a[href*='{stem}.html']").first
        hit.wait_for()
    page.close()


# ------------------------------------------------------------ the matrix one can walk about in

MATRIX_PAGE = "explore.html"
# A pixel on the diagonal, and one far off it.
COLOURS = """canvas => {
  const pen = canvas.getContext('2d'), size = canvas.clientWidth - 242;
  return [[0.504, 0.504], [0.9, 0.3]].map(([x, y]) =>
    [...pen.getImageData(138 + x * size, 18 + y * size, 1, 1).data].join());
}"""


@dataclass
class Matrix:
    """The explorer on its page, with the numbers it was made from."""

    page: Any
    data: dict[str, Any]
    network: str = "v1_pr_60"

    def find(self, selector: str) -> Any:
        return self.page.locator(f".class-similarity {selector}")

    def text(self, selector: str) -> str:
        return str(self.find(selector).text_content()).replace("\u2212", "-")

    @property
    def canvas(self) -> Any:
        return self.find(".map")

    def listed(self, where: str = ".nearest") -> list[tuple[str, float]]:
        texts = [str(item.text_content()) for item in self.find(f"{where} li").all()]
        found = [re.fullmatch(r"(.+?)( ●)?(-?\d\.\d{3})", t.replace("\u2212", "-")) for t in texts]
        assert all(found), texts
        return [(match[1], float(match[3])) for match in found if match]

    def of(self, network: str) -> dict[str, Any]:
        return next(each for each in self.data["networks"] if each["label"] == network)

    @property
    def classes(self) -> dict[str, Any]:
        return self.data["sets"][self.of(self.network)["set"]]

    def names(self) -> list[str]:
        return [name.replace("_", " ") for name in self.classes["classes"]]

    def cosine(self, one: str, other: str, network: str = "") -> float:
        j, i = sorted(map(self.names().index, (one, other)))
        thousandths = self.of(network or self.network)["thousandths"]
        return 1.0 if i == j else thousandths[i * (i - 1) // 2 + j] / 1000

    def nearest(self, name: str, k: int = 10) -> list[tuple[str, float]]:
        pairs = [(other, self.cosine(name, other)) for other in self.names() if other != name]
        return sorted(pairs, key=lambda pair: -pair[1])[:k]

    def place(self, right: float, down: float) -> dict[str, float]:
        """A place in fractions of the matrix, as a place on the canvas (`layout` in the script)."""
        width = self.canvas.bounding_box()["width"]
        names, beside = (138, 104) if width >= 480 else (92, 4)
        size = width - names - beside
        return {"x": names + right * size, "y": 18 + down * size}

    def point(self, right: float, down: float, act: str = "hover") -> tuple[str, str]:
        """Point at a place given in fractions of the matrix; the two classes it then names."""
        getattr(self.canvas, act)(position=self.place(right, down))
        return self.pair()

    def pair(self) -> tuple[str, str]:
        said = self.text(".readout")
        match = re.match(r"(.+) \(.+?\) and (.+) \(.+?\): (-?\d\.\d{3})", said)
        assert match, said
        one, other = match[1], match[2]
        assert float(match[3]) == pytest.approx(self.cosine(one, other), abs=1e-9)
        if one != other:
            place = [name for name, _ in self.nearest(one, 99)].index(other)
            found = re.search(rf"{re.escape(other)} is no\. (\d+) of 99", said)
            assert found, said
            # Equal cosines share a place.
            assert self.nearest(one, 99)[int(found[1]) - 1][1] == self.nearest(one, 99)[place][1]
        return one, other


def open_matrix(page: Any, address: str, site: Path, state: str = "") -> Matrix:
    script = (site / MATRIX_PAGE).read_text(encoding="utf-8")
    found = re.search(r"const data = (\{.*?\});\n", script)
    assert found, "the page holds no matrix"
    page.goto(f"{address}/{MATRIX_PAGE}{state}", wait_until="domcontentloaded")
    return Matrix(page, json.loads(found[1]))


@pytest.fixture
def matrix(browser: Any, address: str, site: Path) -> Iterator[Matrix]:
    """The page as it opens; whatever a test does there must cause no fault."""
    faults: list[str] = []
    page = browser.new_page(viewport=DESKTOP)
    page.set_default_timeout(PATIENCE)
    own = (address, "data:", "blob:")
    page.on("request", lambda r: None if r.url.startswith(own) else faults.append(r.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
    yield open_matrix(page, address, site)
    page.close()
    assert faults == []


def test_the_explorer_is_the_first_page_of_the_sidebar(site: Path) -> None:
    first = parse(site / "index.html").select_one(".bd-sidebar-primary .toctree-l1 a")
    assert first is not None
    assert first["href"] == MATRIX_PAGE


def test_the_matrix_names_the_pair_its_cosine_and_its_rank(matrix: Matrix) -> None:
    seen = {matrix.point(right, down) for right in (0.2, 0.6, 0.99) for down in (0.3, 0.6, 0.99)}
    assert len(seen) == 9
    assert matrix.find(".tip").is_visible()
    assert matrix.find(".tip b").text_content() == matrix.find(".readout b").text_content()
    matrix.page.mouse.move(0, 0)
    assert not matrix.find(".tip").is_visible()


def test_the_matrix_has_three_orders(matrix: Matrix) -> None:
    first = set()
    for order in ("by superclass", "clustered", "alphabetical"):
        matrix.page.select_option(".class-similarity .order", label=order)
        seen = [matrix.point((k + 0.5) / 100, (k + 0.5) / 100)[0] for k in (0, 30, 60, 99)]
        if order == "alphabetical":
            assert seen == [sorted(matrix.names())[k] for k in (0, 30, 60, 99)]
        if order == "clustered":
            leaves = matrix.of("v1_pr_60")["leaves"]
            assert seen == [matrix.names()[leaves[k]] for k in (0, 30, 60, 99)]
        first.add(seen[0])
    assert len(first) == 3


def test_a_click_lists_the_nearest_classes_and_the_list_leads_on(matrix: Matrix) -> None:
    row, _ = matrix.point(0.9, 0.503, act="click")
    assert matrix.listed() == matrix.nearest(row)
    following = matrix.listed()[1][0]
    matrix.find(".nearest button").nth(1).click()
    assert matrix.listed() == matrix.nearest(following)
    assert matrix.text(".title").startswith(f"Nearest to {following} (")


def test_buttons_and_search_choose_a_class_and_bring_it_into_the_window(matrix: Matrix) -> None:
    for name in ("worm", "mushroom", "whale"):
        matrix.find(f".looks button[value={name}]").click()
        assert matrix.listed() == matrix.nearest(name)
    for _ in range(3):
        matrix.find("[aria-label='Zoom in']").click()
    for typed, name in (("Tulip", "tulip"), ("aqua", "aquarium fish"), ("bear", "bear")):
        matrix.find(".find").fill(typed)
        matrix.find(".find").press("Enter")
        assert matrix.listed() == matrix.nearest(name)
        rows = {matrix.point(0.5, (k + 0.5) / 13)[0] for k in range(13)}
        assert name in rows
    matrix.find(".find").fill("unicorn")
    matrix.find(".find").press("Enter")
    assert "unicorn" in matrix.text(".readout")


def test_pairs_of_two_superclasses_are_the_most_alike(matrix: Matrix) -> None:
    names, of = matrix.names(), matrix.classes["superclass_of"]
    pairs = [
        (f"{names[j]} · {names[i]}", matrix.cosine(names[i], names[j]))
        for i in range(100)
        for j in range(i)
        if of[i] != of[j]
    ]
    assert matrix.listed(".pairs") == sorted(pairs, key=lambda pair: -pair[1])[:10]
    matrix.find(".pairs button").nth(2).click()
    assert " · ".join(matrix.pair()) == matrix.listed(".pairs")[2][0]


def test_one_network_minus_another(matrix: Matrix) -> None:
    labels = [network["label"] for network in matrix.data["networks"]]
    assert labels[:3] == ["v1_pr_60", "v2_pr_30", "v2_pr_60"]
    assert labels[-1] == "drawn images"
    page = matrix.page
    page.select_option(".class-similarity .one", label="v2_pr_60")
    page.select_option(".class-similarity .two", label="v2_pr_30")
    matrix.network = "v2_pr_60"
    matrix.find(".looks button[value=whale]").click()
    for other, shown in matrix.listed():
        difference = matrix.cosine("whale", other) - matrix.cosine("whale", other, "v2_pr_30")
        assert shown == pytest.approx(difference, abs=1e-9)
    assert [value for _, value in matrix.listed()] == sorted(
        [value for _, value in matrix.listed()], reverse=True
    )
    matrix.find(".views button[value=B]").click()
    matrix.network = "v2_pr_30"
    assert matrix.listed() == matrix.nearest("whale")
    # Other classes cannot be subtracted; these have pictures.
    page.select_option(".class-similarity .one", label="drawn images")
    matrix.network = "drawn images"
    assert not matrix.find(".two").is_visible()
    assert matrix.find(".nearest canvas").count() == 10
    assert matrix.point(0.3, 0.3)[0] in matrix.names()


def test_confusions_stand_beside_similarity(matrix: Matrix) -> None:
    matrix.find(".looks button[value=woman]").click()
    rows, names = matrix.of(matrix.network)["confusions"], matrix.names()
    assert sum(n for *_, n in rows) == 10_000
    wrong = sorted((row for row in rows if row[0] != row[1]), key=lambda row: -row[2])
    assert f"{sum(n for *_, n in wrong):,} of 10,000 answers are wrong" in matrix.text(".wrong")
    of = [row for row in wrong if names[row[0]] == "woman"]
    assert matrix.text(".taken-title").startswith(f"woman: {100 - sum(n for *_, n in of)} of 100")

    def shown(where: str) -> list[str]:
        texts = [str(item.text_content()) for item in matrix.find(f"{where} li").all()]
        return [text.replace("\u2212", "-").replace(" ●", "") for text in texts]

    def cosine(one: int, other: int) -> str:
        return f"cosine {matrix.cosine(names[one], names[other]):.3f}"

    assert shown(".taken") == [f"{names[b]}{n} · {cosine(a, b)}" for a, b, n in of[:10]]
    expected = [f"{names[a]} → {names[b]}{n} · {cosine(a, b)}" for a, b, n in wrong[:10]]
    assert shown(".confused") == expected
    matrix.find(".confused button").nth(2).click()
    assert matrix.pair() == tuple(names[k] for k in wrong[2][:2])
    matrix.page.select_option(".class-similarity .one", label="allocated_31")
    assert not matrix.find(".confusions").is_visible()  # nobody rated it this way


def test_the_matrix_obeys_the_keyboard(matrix: Matrix) -> None:
    matrix.find(".looks button[value=whale]").click()
    matrix.canvas.focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "Enter"):
        matrix.page.keyboard.press(key)
    of = matrix.classes
    order = sorted(
        range(100),
        key=lambda k: (of["superclasses"][of["superclass_of"][k]], matrix.names()[k]),
    )
    place = order.index(matrix.names().index("whale"))  # one down and two to the right
    assert matrix.pair() == (matrix.names()[order[place + 1]], matrix.names()[order[place + 2]])
    assert matrix.listed() == matrix.nearest(matrix.pair()[0])
    described = matrix.canvas.get_attribute("aria-describedby")
    assert "arrows" in str(matrix.page.locator(f"#{described}").text_content())


def test_the_matrix_zooms_and_moves(matrix: Matrix) -> None:
    whole = matrix.point(0.999, 0.999)
    matrix.find("[aria-label='Zoom in']").click()
    matrix.find("[aria-label='Zoom in']").click()
    before = matrix.point(0.5, 0.5)
    matrix.canvas.scroll_into_view_if_needed()
    box, start, end = matrix.canvas.bounding_box(), matrix.place(0.5, 0.5), matrix.place(0.9, 0.9)
    matrix.page.mouse.move(box["x"] + start["x"], box["y"] + start["y"])
    matrix.page.mouse.down()
    matrix.page.mouse.move(box["x"] + end["x"], box["y"] + end["y"])
    matrix.page.mouse.up()
    assert matrix.point(0.9, 0.9) == before
    matrix.find(".zoom button").last.click()
    assert matrix.point(0.999, 0.999) == whole


def test_the_state_is_in_the_link_and_survives_it(
    matrix: Matrix, browser: Any, address: str, site: Path
) -> None:
    page = matrix.page
    assert page.url.endswith(MATRIX_PAGE)
    first = str(matrix.find(".link").get_attribute("href"))
    assert first == "#network=v1_pr_60&order=by+superclass&class=maple_tree"
    page.select_option(".class-similarity .one", label="v2_pr_60")
    page.select_option(".class-similarity .two", label="allocated_31")
    page.select_option(".class-similarity .order", label="clustered")
    matrix.find("[aria-label='Zoom in']").click()
    matrix.find(".looks button[value=worm]").click()
    link = matrix.find(".link").get_attribute("href")
    page.wait_for_function("link => location.hash === link", arg=link)
    again = browser.new_page(viewport=DESKTOP)
    other = open_matrix(again, address, site, link)
    assert other.listed() == matrix.listed()
    assert other.text(".title") == matrix.text(".title")
    for box in (".one", ".two", ".order"):
        assert other.find(box).input_value() == matrix.find(box).input_value()
    assert other.find(".link").get_attribute("href") == link
    again.close()
    page.goto(f"{address}/{MATRIX_PAGE}#network=none&class=x&window=a,b")  # a broken link
    page.reload()
    assert matrix.text(".title").startswith("Nearest to maple tree")


def test_the_matrix_can_be_saved(matrix: Matrix) -> None:
    with matrix.page.expect_download() as saved:
        matrix.find(".csv").click()
    table = pd.read_csv(saved.value.path(), index_col=0)
    assert table.shape == (100, 100)
    assert list(table.index) == list(table.columns)
    for one, other in (("whale", "shark"), ("worm", "snake")):
        assert table.at[one, other] == pytest.approx(matrix.cosine(one, other), abs=1e-9)
    with matrix.page.expect_download() as saved:
        matrix.find(".png").click()
    with Image.open(saved.value.path()) as picture:
        assert picture.width >= 2000
    assert saved.value.suggested_filename == "similarity-v1_pr_60-by-superclass.png"


def test_the_matrix_follows_the_theme(matrix: Matrix) -> None:
    light = matrix.canvas.evaluate(COLOURS)
    assert light[0] != light[1]
    matrix.page.evaluate("() => { document.documentElement.dataset.theme = 'dark' }")
    dark = matrix.canvas.evaluate(COLOURS)
    assert dark[0] != dark[1]
    assert not set(light) & set(dark)


def test_the_matrix_on_a_phone(browser: Any, address: str, site: Path) -> None:
    """Rows for a finger, the answer in sight, a pinch zooms; the page does not scroll sideways."""
    context = browser.new_context(viewport=PHONE, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    matrix = open_matrix(page, address, site)
    assert page.evaluate(TOO_WIDE) == []
    matrix.canvas.evaluate("canvas => canvas.scrollIntoView({ block: 'start' })")
    one, _ = matrix.point(0.3, 0.2, act="tap")
    assert matrix.listed() == matrix.nearest(one)
    other, _ = matrix.point(0.3, 0.2 + 1 / 25, act="tap")  # 25 rows are in the window
    assert other != one
    answer = matrix.find(".readout").bounding_box()
    assert 0 <= answer["y"] < PHONE["height"] - answer["height"] + 1
    matrix.canvas.evaluate("canvas => canvas.scrollIntoView({ block: 'end' })")
    before = matrix.find(".link").get_attribute("href")
    client = context.new_cdp_session(page)
    box = matrix.canvas.bounding_box()
    middle = {"x": box["x"] + 200, "y": box["y"] + 150}
    for kind, apart in (("touchStart", 20), ("touchMove", 40), ("touchMove", 60)):
        points = [{**middle, "x": middle["x"] + sign * apart, "id": sign} for sign in (-1, 1)]
        client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    client.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_function(
        "link => document.querySelector('.class-similarity .link').getAttribute('href') !== link",
        arg=before,
    )
    context.close()


@pytest.mark.parametrize("page_name", ["index.html", "03_label_smoothing.html"])
def test_the_matrix_is_live_on_other_pages(
    browser: Any, address: str, site: Path, page_name: str
) -> None:
    page = browser.new_page(viewport=DESKTOP)
    page.set_default_timeout(PATIENCE)
    matrix = open_matrix(page, address, site)
    page.goto(f"{address}/{page_name}", wait_until="domcontentloaded")
    matrix.find(".nearest button").nth(1).click()
    following = matrix.text(".title").removeprefix("Nearest to ").partition(" (")[0]
    assert matrix.listed() == matrix.nearest(following, len(matrix.listed()))
    assert len(matrix.listed()) >= 6
    assert page.url.endswith(page_name)
    page.close()


def test_without_scripts_the_matrix_says_so(browser: Any, address: str) -> None:
    page = browser.new_page(java_script_enabled=False)
    page.set_default_timeout(PATIENCE)
    page.goto(f"{address}/{MATRIX_PAGE}")
    assert page.locator(".class-similarity .without-script").is_visible()
    assert not page.locator(".class-similarity .controls").is_visible()
    page.close()


# --------------------------------------------------------------------------------- the front page


def test_the_front_page_has_the_board_and_the_large_numbers_in_the_first_screens(
    browser: Any, address: str
) -> None:
    page = browser.new_page(viewport=DESKTOP)
    page.set_default_timeout(PATIENCE)
    page.goto(f"{address}/index.html")
    for part in (".front-numbers .tiles b", ".front-board tbody tr", ".ways-in .sd-btn"):
        assert page.locator(part).count() >= 3
        last = page.locator(part).last.bounding_box()
        assert last["y"] + last["height"] < 1.5 * DESKTOP["height"], part
    assert page.locator("article section p").first.locator(".bibtex, cite").count() == 0
    page.close()
