"""Hooks of mkdocs: what the documentation site needs beyond the pages in docs/, and what its build refuses.

- Links of docs/*.md that lead out of docs/ work on GitHub; here each file that they lead to becomes a part of the site,
  and so on from there. Programs and data become pages that show them.
- ``<!-- live: NAME -->`` becomes a chart drawn from committed results (``live_figures.py``), ``<!-- citations -->`` the
  table of ``assay.citations``.
- A public name that the API page does not show, or that has no docstring, ends the build.
"""

from __future__ import annotations

import html
import json
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tools")]

import live_figures  # noqa: E402

from assay import citations  # noqa: E402

DOCS = "docs/"
API = "api.md"
UPLOT = ROOT / "src/assay/report/assets"
SHOWN_AS_CODE = {".py": "python", ".json": "json", ".jsonl": "json", ".csv": "text", ".cff": "yaml", "": "text"}
MOST_IN_A_RIBBON = 28  # characters of a cell that may be narrow on a phone
MOST_SHOWN = 100_000  # characters of a program or of data on a page
_LINK = re.compile(r"(\]\(|src=\"|href=\")(?![a-z]+:|#|/)([^)\s\"#]+)")
_CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]+`", re.MULTILINE | re.DOTALL)
_ROW = re.compile(r"^\|.*$", re.MULTILINE)
_SPAN = re.compile(r"`[^`\n]+`")
_INTERVAL = re.compile(r"\[([+−-]?[\d.]+), ([+−-]?[\d.]+)\]")
_CELL = re.compile(r"<td>(.*?)</td>", re.DOTALL)
_TAG = re.compile(r"<[^>]*>")
_NAMED = re.compile(r'id="(assay\.[\w.]+)"')
_ASKED = re.compile(r"^::: (\S+)", re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Names anchors as GitHub does."""
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what pages link to outside of docs/, and the charts' library."""
    sources = {DOCS + file.src_uri for file in files}
    waiting = [file.src_uri for file in files.documentation_pages()]
    seen: set[str] = set()
    waiting = [DOCS + each for each in waiting]
    while waiting:
        source = waiting.pop()
        for target in _targets(source, (ROOT / source).read_text(encoding="utf-8")):
            if target in sources or target in seen or not (ROOT / target).is_file():
                continue  # what is not there is left as it is: mkdocs says so
            seen.add(target)
            files.append(_file(target, config))
            if target.endswith(".md"):
                waiting.append(target)
    for name in ("uPlot.iife.min.js", "uPlot.min.css"):
        content = (UPLOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, f"assets/{name}", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links into those of the site, and placeholders into what they stand for."""
    source = _source_of(page.file.src_uri)
    markdown = _without_code(markdown, lambda text: _LINK.sub(lambda found: _relinked(found, source), text))
    markdown = _ROW.sub(lambda found: _as_python_markdown(found[0]), markdown)
    markdown = re.sub(r"<!-- live: (\w+) -->", lambda found: _chart(found[1]), markdown)
    return markdown.replace("<!-- citations -->", _bibliography())


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Refuses an API page that lacks a public name, or shows one that says nothing."""
    html = html.replace("<table>", '<table tabindex="0">')  # wide ones scroll, so the keyboard has to reach them
    html = _CELL.sub(_with_width, html)
    if page.file.src_uri == API:
        faults = api_faults(html, _ASKED.findall(page.markdown or ""))
        if faults:
            raise PluginError(f"docs/{API} does not document the public names: " + "; ".join(faults))
    return html


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Names the search for those who cannot see it: the theme does not."""
    return output.replace(
        'data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"'
    )


def api_faults(page: str, asked: list[str]) -> list[str]:
    """What is wrong with the API page: public names that it lacks, and names on it without a docstring."""
    package = griffe.load("assay", search_paths=[ROOT / "src"], resolve_aliases=True)
    shown = set(_NAMED.findall(page))
    names = [f"assay.{name}" for name in package.exports or ()]
    lacking = [f"{name} is missing: add `::: {name}`" for name in names if name not in shown]
    mute = [f"{each} has no docstring" for name in dict.fromkeys(names + asked) for each in _mute(package, name)]
    return lacking + mute


def _mute(package: griffe.Object | griffe.Alias, name: str) -> list[str]:
    """A name, and of a module its public members too, that have no docstring."""
    found = package[name.removeprefix("assay.")]
    members = found.members.values() if found.is_module else ()
    own = [each for each in members if each.is_public and not each.is_alias and not each.is_module]
    return [each.path for each in (found, *own) if not each.has_docstring]


def _targets(source: str, markdown: str) -> list[str]:
    """The files of the repository that a page links to."""
    found: list[str] = []
    _without_code(markdown, lambda text: found.extend(match[2] for match in _LINK.finditer(text)) or text)
    return [posixpath.normpath(posixpath.join(posixpath.dirname(source), target)) for target in found]


def _without_code(markdown: str, change: Any) -> str:
    """The text with all but its code changed."""
    parts, place = [], 0
    for code in _CODE.finditer(markdown):
        parts += [change(markdown[place : code.start()]), code[0]]
        place = code.end()
    return "".join([*parts, change(markdown[place:])])


def _as_python_markdown(row: str) -> str:
    """A row of a table: GitHub wants bars escaped in code too, and an interval belongs on one line."""
    row = _SPAN.sub(lambda found: found[0].replace("\\|", "|"), row)
    return _INTERVAL.sub("[\\1,\u00a0\\2]", row)


def _with_width(cell: re.Match[str]) -> str:
    """A cell of a sentence says so: its column must not shrink to a ribbon."""
    is_long = len(_TAG.sub("", cell[1])) > MOST_IN_A_RIBBON
    return f'<td class="words">{cell[1]}</td>' if is_long else cell[0]


def _file(target: str, config: MkDocsConfig) -> File:
    path, inclusion = ROOT / target, InclusionLevel.NOT_IN_NAV
    if path.suffix == ".md":
        return File.generated(config, target, content=path.read_text(encoding="utf-8"), inclusion=inclusion)
    if path.suffix in SHOWN_AS_CODE:
        return File.generated(config, f"{target}.md", content=_as_page(path), inclusion=inclusion)
    return File.generated(config, target, abs_src_path=str(path), inclusion=inclusion)


def _as_page(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    cut = "" if len(text) <= MOST_SHOWN else f"\n\nThe first {MOST_SHOWN:,} of {len(text):,} characters."
    fence = "~" * 8
    return f"# {path.name}\n\n{fence}{SHOWN_AS_CODE[path.suffix]}\n{text[:MOST_SHOWN]}\n{fence}{cut}\n"


def _source_of(uri: str) -> str:
    """The place in the repository of a file of the site."""
    return DOCS + uri if (ROOT / DOCS / uri).exists() else uri


def _relinked(found: re.Match[str], source: str) -> str:
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[2]))
    if not (ROOT / target).is_file():
        return found[0]
    if target.startswith(DOCS):
        uri = target.removeprefix(DOCS)
    else:
        uri = f"{target}.md" if Path(target).suffix in SHOWN_AS_CODE else target
    here = posixpath.dirname(source.removeprefix(DOCS))
    return found[1] + posixpath.relpath(uri, here or ".")


def _chart(name: str) -> str:
    """A chart's data in the page; docs/javascripts/live.js draws it."""
    chart = live_figures.FIGURES[name]()
    data = json.dumps(chart, allow_nan=False)
    for sign in "<>&\u2028\u2029":
        data = data.replace(sign, f"\\u{ord(sign):04x}")
    title = html.escape(chart["title"])
    return (
        f'<figure class="live" role="group" aria-label="{title}"><div class="live-panels"></div>'
        f'<script type="application/json">{data}</script><figcaption>{title}</figcaption></figure>'
    )


def _bibliography() -> str:
    rows = [f"| {entry.used_for} | `{entry.key}` | {entry.reference} |" for entry in citations.ENTRIES.values()]
    return "\n".join(["| used for | key | work |", "|---|---|---|", *rows])
