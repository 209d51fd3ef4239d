"""Pages in a real browser: the system's Chromium, headless and without a network.

    with open_page(path, width=390, dark=True) as opened:
        opened.page.click("text=online")
        assert opened.console_errors == [] and opened.requests == [] and opened.axe() == []

One browser is started by the first page of a test file and ends with it (tests/conftest.py). It must not stay longer:
while it is there, playwright's event loop counts as running in this thread, and `asyncio.run` is refused.
"""

from __future__ import annotations

import atexit
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Error, Page, Playwright, Request, WebSocket

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")

# WCAG 2.1 at levels A and AA, and what axe-core calls good practice (landmarks, order of headings, ...)
AXE_RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice")

# a machine that runs other tests at the same time may take long to start a browser
START_TIMEOUT_MILLISECONDS = 120_000

# files that a page makes itself, for a download; what is written into the page (data:) is no request to playwright
MADE_BY_THE_PAGE = "blob:"

_running: list[tuple[Playwright, Browser]] = []


@dataclass(frozen=True)
class OpenedPage:
    """A loaded page and what it has done so far; the lists grow while it is used.

    `console_errors` holds console errors and uncaught exceptions, `requests` the URL of everything that was asked for
    besides the file itself.
    """

    page: Page
    console_errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def axe(self) -> list[str]:
        """Violations that axe-core finds in the page as it stands, one line for each rule and element."""
        from axe_playwright_python.sync_playwright import Axe

        options = {"runOnly": {"type": "tag", "values": list(AXE_RULES)}, "resultTypes": ["violations"]}
        violations = Axe().run(self.page, options=options).response["violations"]
        return [_sentence(violation, node) for violation in violations for node in violation["nodes"]]

    def screenshot(self, path: str | Path, full_page: bool = True) -> Path:
        """Write a PNG of the whole page (or of what the window shows) to `path`; folders are made."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=path, full_page=full_page)
        return Path(path)


@contextmanager
def open_page(
    path: str | Path, width: int = 1200, height: int = 900, dark: bool = False, print: bool = False
) -> Iterator[OpenedPage]:
    """The HTML file at `path`, loaded in a window of `width` × `height` CSS pixels, in a fresh profile.

    `dark` sets the reader's preferred colours, `print` shows the page as it would be printed. Every request to a
    network fails, and is listed. Motion is reduced, so that nothing is measured half-way. Skips the test, saying why,
    where there is no Chromium.
    """
    context = _browser().new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
        offline=True,
    )
    url = Path(path).resolve().as_uri()
    opened = OpenedPage(context.new_page())

    def note_request(request: Request | WebSocket) -> None:
        if request.url.split("#")[0] != url and not request.url.startswith(MADE_BY_THE_PAGE):
            opened.requests.append(request.url)

    def note_console(message: ConsoleMessage) -> None:
        if message.type == "error":
            opened.console_errors.append(f"{message.text} ({message.location.get('url')})")

    def note_exception(error: Error) -> None:
        opened.console_errors.append(str(error))

    # of the context, so that a window that the page opens is watched too
    context.on("request", note_request)
    context.on("console", note_console)
    context.on("weberror", lambda error: note_exception(error.error))
    context.on("page", lambda page: page.on("websocket", note_request))
    opened.page.on("websocket", note_request)
    try:
        if print:
            opened.page.emulate_media(media="print")
        opened.page.goto(url)
        yield opened
    finally:
        context.close()


def close() -> None:
    """End the browser, if one was started."""
    while _running:
        playwright, browser = _running.pop()
        browser.close()
        playwright.stop()


def _browser() -> Browser:
    if not _running:
        program = next(filter(None, map(shutil.which, PROGRAMS)), None)
        if program is None:
            pytest.skip(f"no browser on this machine: none of {', '.join(PROGRAMS)} is in PATH")
        pytest.importorskip("playwright", reason="no playwright here: pip install -c constraints.txt -e '.[dev]'")
        pytest.importorskip("axe_playwright_python", reason="no axe here: pip install -c constraints.txt -e '.[dev]'")
        from playwright.sync_api import sync_playwright

        playwright = sync_playwright().start()
        # playwright turns Chromium's sandbox off, as root needs; the pages are files that the tests made
        browser = playwright.chromium.launch(executable_path=program, timeout=START_TIMEOUT_MILLISECONDS)
        _running.append((playwright, browser))
        atexit.register(close)
    return _running[-1][1]


def _sentence(violation: dict, node: dict) -> str:
    selectors = " ".join(str(target) for target in node["target"])
    reasons = "; ".join(check["message"] for check in (*node["any"], *node["all"], *node["none"]))
    return f"{violation['id']} ({violation['impact']}) at {selectors}: {reasons or violation['help']}"
