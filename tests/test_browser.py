"""The harness of browser tests sees what it is there to see: errors, requests, what axe finds, colours, print."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import browser
from browser import open_page

SOUND = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Sound</title>
<style>:root { color-scheme: light dark } p::after { content: "screen" } @media print { p::after { content: "paper" } }
</style></head><body><main><h1>Sound</h1><p>Nothing is wrong with this page. </p>BODY</main></body></html>"""


def page_with(folder: Path, body: str) -> Path:
    path = folder / "page.html"
    path.write_text(SOUND.replace("BODY", body), encoding="utf-8")
    return path


def test_a_sound_page_has_nothing_to_say(tmp_path):
    body = (
        '<img alt="dot" src="data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="><a href="#here" id="here">here</a>'
    )
    with open_page(page_with(tmp_path, body)) as opened:
        opened.page.click("a")
        opened.page.evaluate("fetch(URL.createObjectURL(new Blob(['step,golden'], {type: 'text/csv'})))")
        assert (opened.console_errors, opened.requests, opened.axe()) == ([], [], [])


def test_an_error_in_the_console_and_an_exception_are_seen(tmp_path):
    with open_page(page_with(tmp_path, "<script>console.error('said'); console.warn('not this')</script>")) as opened:
        assert len(opened.console_errors) == 1
        assert "said" in opened.console_errors[0]
    with open_page(page_with(tmp_path, "<button onclick='missing()'>go</button>")) as opened:
        assert opened.console_errors == []
        opened.page.click("button")
        assert len(opened.console_errors) == 1
        assert "missing is not defined" in opened.console_errors[0]


@pytest.mark.parametrize(
    ("body", "asked_for"),
    [
        ("<script src='http://127.0.0.1:9/draw.js'></script>", "http://127.0.0.1:9/draw.js"),
        ("<link rel='stylesheet' href='http://127.0.0.1:9/style.css'>", "http://127.0.0.1:9/style.css"),
    ],
)
def test_a_request_is_seen_and_fails(tmp_path, body, asked_for):
    with open_page(page_with(tmp_path, body)) as opened:
        assert opened.requests == [asked_for]
        assert opened.console_errors == [f"Failed to load resource: net::ERR_INTERNET_DISCONNECTED ({asked_for})"]


def test_a_web_socket_is_a_request(tmp_path):
    body = "<script>new WebSocket('ws://127.0.0.1:9/live').onerror = () => { document.title = 'refused' }</script>"
    with open_page(page_with(tmp_path, body)) as opened:
        opened.page.wait_for_function("document.title === 'refused'")
        assert opened.requests == ["ws://127.0.0.1:9/live"]


def test_a_file_beside_the_page_counts_as_a_request(tmp_path):
    (tmp_path / "beside.css").write_text("p { color: black }", encoding="utf-8")
    with open_page(page_with(tmp_path, "<link rel='stylesheet' href='beside.css'>")) as opened:
        assert opened.requests == [(tmp_path / "beside.css").as_uri()]


def test_a_missing_label_and_a_weak_contrast_are_named_with_their_element(tmp_path):
    body = "<input id='seed'><p id='faint' style='color: #bbb; background: #fff'>faint</p>"
    with open_page(page_with(tmp_path, body)) as opened:
        violations = opened.axe()
    assert sorted(violation.split(":")[0] for violation in violations) == [
        "color-contrast (serious) at #faint",
        "label (critical) at #seed",
    ]


def test_width_colours_and_paper_are_what_was_asked_for(tmp_path):
    path = page_with(tmp_path, "")
    after = "getComputedStyle(document.querySelector('p'), '::after').content"
    dark = "matchMedia('(prefers-color-scheme: dark)').matches"
    with open_page(path, width=390, dark=True) as opened:
        assert opened.page.evaluate(f"[innerWidth, {dark}, {after}]") == [390, True, '"screen"']
    with open_page(path, print=True) as opened:
        assert opened.page.evaluate(f"[{dark}, {after}]") == [False, '"paper"']
        assert opened.screenshot(tmp_path / "shots" / "page.png").read_bytes().startswith(b"\x89PNG")


def test_one_browser_serves_many_pages_and_leaves_no_event_loop(tmp_path):
    path = page_with(tmp_path, "")
    with open_page(path) as first, open_page(path) as second:
        assert first.page.context.browser is second.page.context.browser

    async def answer() -> int:
        return 1

    browser.close()
    assert asyncio.run(answer()) == 1


def test_without_a_browser_the_test_is_skipped_with_a_reason(tmp_path, monkeypatch):
    browser.close()
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(pytest.skip.Exception, match="no browser on this machine: none of chromium"),
        open_page(tmp_path),
    ):
        pass
