"""The built site works offline: as files with the standard tools, and as pages in a browser.

The browser is the first of $CHROMIUM, Chromium and Chrome that the machine has; without one the
page checks are skipped and say so.
"""

import functools
import http.server
import json
import os
import re
import shutil
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
from bs4 import BeautifulSoup, Tag

from micronet_lib import plots

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
CHAPTERS = sorted(path.stem for path in BOOK.glob("*.ipynb"))
SOURCES = sorted([*CHAPTERS, *(path.stem for path in BOOK.glob("*.md"))])
PAGES = [f"{stem}.html" for stem in [*SOURCES, "genindex", "search"]]

PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}
# What WCAG 2 asks of body text, level AA.
MIN_CONTRAST = 4.5

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
BROWSER_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]

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


# ------------------------------------------------------------------ the site in a browser


def find_browser() -> str | None:
    wanted = os.environ.get("CHROMIUM")
    if wanted and not shutil.which(wanted):
        pytest.fail(f"CHROMIUM={wanted} cannot be started; unset it or correct it", pytrace=False)
    return next(filter(None, map(shutil.which, [wanted] if wanted else BROWSERS)), None)


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
    *("not darker", "faint in light", "faint in dark"),
)


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

TOO_WIDE = """() => {
  const root = document.documentElement;
  if (root.scrollWidth <= root.clientWidth + 1) return [];
  const scrolls = node => node && node !== document.body &&
    (getComputedStyle(node).overflowX !== 'visible' || scrolls(node.parentElement));
  return [`page of ${root.scrollWidth} px in ${root.clientWidth} px`].concat(
    [...document.querySelectorAll('main *')]
      .filter(node => node.getBoundingClientRect().right > root.clientWidth + 1)
      .filter(node => !scrolls(node.parentElement))
      .map(node => node.outerHTML.slice(0, 90)).slice(0, 3));
}"""

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


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    executable = find_browser()
    if executable is None:
        pytest.skip("skipped: no Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=BROWSER_FLAGS)
        yield chromium
        chromium.close()


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
    backgrounds = []
    for theme in ("light", "dark"):
        page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
        backgrounds.append(page.evaluate(BACKGROUND))
        seen[f"faint in {theme}"] = page.evaluate(FAINT, MIN_CONTRAST)
    seen["not darker"] = backgrounds[:1] if len(set(backgrounds)) == 1 else []
    page.set_viewport_size(PHONE)
    seen["too wide"] = page.evaluate(TOO_WIDE)
    context.close()
    return seen


@pytest.fixture(scope="session")
def visits(browser: Any, address: str) -> dict[str, Faults]:
    """Every page, opened once."""
    return {page: visit(browser, address, page) for page in PAGES}


@pytest.mark.parametrize("fault", FAULTS)
def test_no_page_has_a_fault(visits: dict[str, Faults], fault: str) -> None:
    assert {page: seen[fault] for page, seen in visits.items() if seen[fault]} == {}


def test_the_theme_button_switches_and_the_choice_is_kept(browser: Any, address: str) -> None:
    page = browser.new_page(viewport=DESKTOP)
    page.goto(f"{address}/index.html")
    before = page.evaluate(BACKGROUND)
    page.locator(".theme-switch-button:visible").first.click()
    page.locator(".theme-change-button[data-mode=dark]:visible").first.click()
    page.reload()
    assert page.evaluate(BACKGROUND) != before
    page.close()


def test_search_finds_every_chapter_by_a_word_of_its_title(
    browser: Any, address: str, site: Path
) -> None:
    page = browser.new_page(viewport=DESKTOP)
    for stem in CHAPTERS:
        title = parse(site / f"{stem}.html").select_one("article h1")
        assert title is not None
        word = max(re.findall(r"[A-Za-z]+", title.get_text()), key=len)
        page.goto(f"{address}/search.html?q={word}")
        hit = page.locator(f"#search-results a[href*='{stem}.html']").first
        hit.wait_for(timeout=10_000)
    page.close()


# ------------------------------------------------------------ the matrix one can walk about in

MATRIX_PAGE = "03_label_smoothing.html"
PATIENCE = 120_000  # milliseconds, for a machine that measures at the same time
# A drawn pixel near the bottom right corner, where the last class meets itself, and one beside it.
COLOURS = """canvas => {
  const pen = canvas.getContext('2d'), edge = canvas.width - 2;
  return [[edge, edge], [edge, edge - Math.round(canvas.width / 2)]]
    .map(([x, y]) => [...pen.getImageData(x, y, 1, 1).data].join());
}"""


@dataclass
class Matrix:
    """The matrix on its page, with the numbers it was made from."""

    page: Any
    data: dict[str, Any]

    @property
    def canvas(self) -> Any:
        return self.page.locator(".class-similarity canvas")

    @property
    def readout(self) -> str:
        return str(self.page.locator(".class-similarity .readout").text_content())

    @property
    def listed(self) -> list[tuple[str, float]]:
        items = self.page.locator(".class-similarity .nearest li").all()
        texts = [str(item.text_content()).replace("\u2212", "-") for item in items]
        found = [re.fullmatch(r"(.+?)( ●)?(-?\d\.\d{3})", text) for text in texts]
        return [(match[1], float(match[3])) for match in found if match]

    def names(self) -> list[str]:
        return [name.replace("_", " ") for name in self.data["classes"]]

    def cosine(self, one: str, other: str) -> float:
        j, i = sorted(map(self.names().index, (one, other)))
        return 1.0 if i == j else self.data["thousandths"][i * (i - 1) // 2 + j] / 1000

    def nearest(self, name: str, k: int = 10) -> list[tuple[str, float]]:
        pairs = [(other, self.cosine(name, other)) for other in self.names() if other != name]
        return sorted(pairs, key=lambda pair: -pair[1])[:k]

    def point(self, right: float, down: float, act: str = "hover") -> tuple[str, str]:
        """Point at a place given in fractions of the canvas; the two classes it then names."""
        box = self.canvas.bounding_box()
        place = {"x": right * box["width"], "y": down * box["height"]}
        getattr(self.canvas, act)(position=place)
        match = re.fullmatch(r"(.+) \(.+?\) and (.+) \(.+?\): (.\d\.\d+|\d\.\d+)", self.readout)
        assert match, self.readout
        value = float(match[3].replace("\u2212", "-"))
        assert value == pytest.approx(self.cosine(match[1], match[2]), abs=1e-9)
        return match[1], match[2]


@pytest.fixture
def matrix(browser: Any, address: str, site: Path) -> Iterator[Matrix]:
    """The page as it opens; whatever a test does there must cause no fault."""
    script = (site / MATRIX_PAGE).read_text(encoding="utf-8")
    found = re.search(r"const data = (\{.*?\});\n", script)
    assert found, "the page holds no matrix"
    faults: list[str] = []
    page = browser.new_page(viewport=DESKTOP)
    page.set_default_timeout(PATIENCE)
    page.on("request", lambda r: None if r.url.startswith(address) else faults.append(r.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
    page.goto(f"{address}/{MATRIX_PAGE}", wait_until="domcontentloaded")
    yield Matrix(page, json.loads(found[1]))
    page.close()
    assert faults == []


def test_the_matrix_names_the_pair_under_the_pointer(matrix: Matrix) -> None:
    seen = {matrix.point(right, down) for right in (0.4, 0.7, 0.99) for down in (0.3, 0.6, 0.99)}
    assert len(seen) == 9


def test_the_matrix_has_three_orders(matrix: Matrix) -> None:
    last = []
    for order in matrix.data["orders"]:
        matrix.page.select_option(".class-similarity .order", label=order["label"])
        names = [matrix.names()[k] for k in order["classes"]]
        assert matrix.point(0.999, 0.999) == (names[-1], names[-1])
        last.append(names[-1])
    labels = [order["label"] for order in matrix.data["orders"]]
    assert labels == ["by superclass", "clustered", "alphabetical"]
    assert len(set(last)) > 1


def test_a_click_lists_the_nearest_classes_and_the_list_leads_on(matrix: Matrix) -> None:
    row, _ = matrix.point(0.9, 0.5, act="click")
    assert matrix.listed == matrix.nearest(row)
    following = matrix.listed[1][0]
    matrix.page.locator(".class-similarity .nearest button").nth(1).click()
    assert matrix.listed == matrix.nearest(following)
    title = matrix.page.locator(".class-similarity .title").text_content()
    assert title.startswith(f"Nearest to {following} (")


def test_the_matrix_obeys_list_box_and_keyboard(matrix: Matrix) -> None:
    matrix.page.select_option(".class-similarity .class", label="whale")
    assert matrix.listed == matrix.nearest("whale")
    matrix.canvas.focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "Enter"):
        matrix.page.keyboard.press(key)
    order = [matrix.names()[k] for k in matrix.data["orders"][0]["classes"]]
    place = order.index("whale")  # from the diagonal one down and two to the right
    below, across = order[place + 1], order[place + 2]
    assert matrix.readout.startswith(f"{below} (")
    assert f"and {across} (" in matrix.readout
    assert matrix.listed == matrix.nearest(below)


def test_the_matrix_zooms_and_moves(matrix: Matrix) -> None:
    order = [matrix.names()[k] for k in matrix.data["orders"][0]["classes"]]
    whole = matrix.point(0.999, 0.999)
    matrix.page.click(".class-similarity [aria-label='Zoom in']")
    matrix.page.click(".class-similarity [aria-label='Zoom in']")
    near = matrix.point(0.999, 0.999)
    assert order.index(near[0]) < order.index(whole[0]) - 20
    matrix.canvas.scroll_into_view_if_needed()
    box = matrix.canvas.bounding_box()
    matrix.page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.9 * box["height"])
    matrix.page.mouse.down()
    matrix.page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    matrix.page.mouse.up()
    assert order.index(matrix.point(0.999, 0.999)[0]) > order.index(near[0])
    matrix.page.click(".class-similarity .zoom button:last-child")
    assert matrix.point(0.999, 0.999) == whole


def test_the_matrix_follows_the_theme(matrix: Matrix) -> None:
    light = matrix.canvas.evaluate(COLOURS)
    assert light[0] != light[1]
    matrix.page.evaluate("() => { document.documentElement.dataset.theme = 'dark' }")
    dark = matrix.canvas.evaluate(COLOURS)
    assert dark[0] != dark[1]
    assert not set(light) & set(dark)


def test_the_matrix_fits_a_phone(matrix: Matrix) -> None:
    matrix.page.set_viewport_size(PHONE)
    assert matrix.page.evaluate(TOO_WIDE) == []
    box = matrix.page.locator(".class-similarity").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE["width"]
    assert matrix.canvas.bounding_box()["width"] > 0.75 * PHONE["width"]
    row, _ = matrix.point(0.9, 0.8, act="click")
    assert matrix.listed == matrix.nearest(row)


def test_without_scripts_the_matrix_says_so(browser: Any, address: str) -> None:
    page = browser.new_page(java_script_enabled=False)
    page.set_default_timeout(PATIENCE)
    page.goto(f"{address}/{MATRIX_PAGE}")
    assert page.locator(".class-similarity .without-script").is_visible()
    assert not page.locator(".class-similarity .controls").is_visible()
    page.close()


# ------------------------------------------------------------------------------- the two sliders


@pytest.fixture
def sliders(browser: Any) -> Iterator[Any]:
    """The two sliders of chapter 11 on an empty page, over made-up points; one is missing."""
    rows, bills = [], {}
    for row, zeros in enumerate(("0.60", "0.70")):
        for column, bits in enumerate((8, 6, 4)):
            point = f"{zeros}-{bits}"
            n = 0 if point == "0.70-4" else 1
            top1, score = 0.81 - 0.1 * row - 0.05 * column, 0.004 - 0.0003 * (row + column)
            rows.append({"point": point, "n": n, "top1": top1, "official.score": score})
            bills[point] = {"expand.param": score / 2, "project.add": score / 2}
    part = plots.zeros_and_bits(pd.DataFrame(rows), bills, ("the line", 0.0044), "two", "made up")
    faults: list[str] = []
    page = browser.new_page(viewport=DESKTOP)
    page.set_default_timeout(PATIENCE)
    page.on("request", lambda request: faults.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.set_content(f"<!doctype html><html><body>{part.data}</body></html>")
    yield page
    page.close()
    assert faults == []


def readout(page: Any) -> str:
    return str(page.locator(".zeros-and-bits .readout").text_content())


def test_the_sliders_obey_the_keyboard(sliders: Any) -> None:
    assert readout(sliders).startswith("81.00 %")
    assert "below the line" in readout(sliders)
    sliders.locator(".zeros").focus()
    sliders.keyboard.press("ArrowRight")
    assert readout(sliders).startswith("71.00 % of the test images right: not enough")
    sliders.locator(".bits").focus()
    sliders.keyboard.press("ArrowLeft")
    assert readout(sliders).startswith("66.00 %")
    assert sliders.locator(".bits").get_attribute("aria-valuetext") == "6 bits"
    assert sliders.locator(".bill tr").count() == 2
    sliders.keyboard.press("ArrowLeft")
    assert readout(sliders) == "not run"


def test_a_click_on_the_map_moves_the_sliders(sliders: Any) -> None:
    sliders.locator("[data-name='0.60-4']").click()
    assert readout(sliders).startswith("71.00 %")
    assert (sliders.input_value(".zeros"), sliders.input_value(".bits")) == ("0", "0")
    assert sliders.locator("[data-chosen]").count() == 1


def test_the_sliders_fit_a_phone(sliders: Any) -> None:
    sliders.set_viewport_size(PHONE)
    assert sliders.evaluate(TOO_WIDE.replace("main *", "body *")) == []
