"""A browser to open pages with: where it is, how it starts, and a page for one part alone."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}
PATIENCE = 120_000  # milliseconds, for a machine that measures at the same time

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


def find_browser() -> str | None:
    """The first of $CHROMIUM, Chromium and Chrome that the machine has."""
    wanted = os.environ.get("CHROMIUM")
    if wanted and not shutil.which(wanted):
        pytest.fail(f"CHROMIUM={wanted} cannot be started; unset it or correct it", pytrace=False)
    return next(filter(None, map(shutil.which, [wanted] if wanted else BROWSERS)), None)


def alone(browser: Any, part: Any) -> Iterator[Any]:
    """A component on an empty page, which asks for nothing and has no error."""
    faults: list[str] = []
    page = browser.new_page(viewport=DESKTOP)
    page.set_default_timeout(PATIENCE)
    page.on("request", lambda request: faults.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.set_content(f"<!doctype html><html><body>{part.data}</body></html>")
    yield page
    page.close()
    assert faults == []
