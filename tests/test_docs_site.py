"""The documentation site as `make docs` builds it: complete, strict, offline, and with numbers that are right."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import assay
from assay.cli import call_of, main
from assay.config_file import load
from assay.errors import AssayError
from assay.validation import validate
from browser import open_page
from scripts import loaded

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
OUTSIDE = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
OF_STYLES = re.compile(r"(?:@import|url\()\s*[\"']?\s*(?:[a-z]+:)?//", re.IGNORECASE)
FENCED = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:^|(?<!`)`)assay ([a-z]+)", re.MULTILINE)
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)\s#]+)")
PAGES_WITH_SCRIPTS = ("index", "teacher-hacking", "choose", "api", "benchmarks/paper/findings")
NO_MKDOCS = "no mkdocs here: pip install -c constraints.txt -e '.[docs]'"


class Asked(HTMLParser):
    """What a page makes a browser fetch from elsewhere: not what a reader may click on."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {"src", "srcset", "poster", "data"} | ({"href"} if tag in ("link", "use", "image") else set())
        for name, value in attrs:
            if (name in names and OUTSIDE.match((value or "").strip())) or (
                name == "style" and OF_STYLES.search(value or "")
            ):
                self.found.append(f"<{tag} {name}={value}>")
        self._in_style = tag == "style"

    def handle_data(self, data: str) -> None:
        if self._in_style and OF_STYLES.search(data):
            self.found.append(data[:80])
        self._in_style = False


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("mkdocs", reason=NO_MKDOCS)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, env=environment)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("docs") / "site"
    ended = build(ROOT, place)
    assert ended.returncode == 0, ended.stderr
    assert "WARNING" not in ended.stderr
    return place


def tables(page: str) -> list[list[list[str]]]:
    """The tables of a page: rows of cells, without head and rule."""
    blocks = re.findall(r"(?:^\|.*\n)+", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)
    return [
        [[cell.strip() for cell in row.strip("|").split("|")] for row in block.splitlines()[2:]] for block in blocks
    ]


def values(cells: Sequence[str]) -> list[float]:
    """The numbers that cells begin with, bold or not."""
    found = [re.match(r"\**\s*([−-]?\d+\.\d+)", cell) for cell in cells]
    return [float(match[1].replace("−", "-")) for match in found if match]


def kl(p: Sequence[float], q: Sequence[float]) -> float:
    """KL(p‖q) in nats, by assay's own loss in float64."""
    log_p, log_q = (torch.tensor(law, dtype=torch.float64).log() for law in (p, q))
    return float(assay.divergence("forward_kl")(log_p, log_q))


def near(found: Sequence[float], wanted: Sequence[float]) -> bool:
    return len(found) == len(wanted) and all(abs(f - w) <= 0.5001e-4 for f, w in zip(found, wanted, strict=True))


def test_no_page_and_no_style_asks_a_network(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 60
    for page in pages:
        asked = Asked()
        asked.feed(page.read_text(encoding="utf-8"))
        assert asked.found == [], page
    for style in site.rglob("*.css"):
        assert not OF_STYLES.search(style.read_text(encoding="utf-8")), style


@pytest.mark.parametrize(
    "page",
    [
        '<script src="https://unpkg.com/iframe-worker/shim"></script>',
        '<link href="//fonts.example/css">',
        '<img src="HTTP://example/a.png">',
        "<style>@import 'https://example/a.css';</style>",
        '<p style="background: url(//example/a.png)">',
    ],
)
def test_a_page_that_asks_is_found(page: str) -> None:
    asked = Asked()
    asked.feed(page)
    assert len(asked.found) == 1


def test_a_link_to_click_on_asks_nothing() -> None:
    asked = Asked()
    asked.feed('<a href="https://arxiv.org/abs/2502.02671">paper</a>')
    assert asked.found == []


def test_every_page_of_the_navigation_is_there_and_every_page_is_in_it(site: Path) -> None:
    from mkdocs.config import load_config

    def pages(entries: list) -> list[str]:
        inner = [value for entry in entries for value in (entry.values() if isinstance(entry, Mapping) else [entry])]
        return [page for value in inner for page in (pages(value) if isinstance(value, list) else [value])]

    listed = pages(load_config(str(ROOT / "mkdocs.yml"))["nav"])
    assert len(listed) == len(set(listed))
    assert sorted(listed) == sorted(path.name for path in DOCS.glob("*.md"))
    for page in listed:
        assert (site / page).with_suffix(".html").is_file()


def test_the_api_page_shows_every_public_name_with_its_words(site: Path) -> None:
    page = (site / "api.html").read_text(encoding="utf-8")
    for name in assay.__all__:
        assert page.count(f'id="assay.{name}"') == 1
    assert "Bad input or an impossible request." in page  # of AssayError


def test_a_public_name_that_is_missing_or_mute_is_a_fault(site: Path) -> None:
    hook = loaded("tools/docs_site.py")
    page = (site / "api.html").read_text(encoding="utf-8")
    assert hook.api_faults(page, []) == []
    (fault,) = hook.api_faults(page.replace('id="assay.judge"', ""), [])
    assert fault == "assay.judge is missing: add `::: assay.judge`"
    assert hook.api_faults(page, ["assay.citations._in_latex"]) == ["assay.citations._in_latex has no docstring"]
    assert "assay.divergences.DIVERGENCES has no docstring" not in hook.api_faults(page, ["assay.divergences"])


def test_a_bad_link_a_bad_anchor_and_a_page_that_nothing_leads_to_end_the_build(tmp_path: Path) -> None:
    root = tmp_path / "copy"
    for name in ("docs", "tools"):
        shutil.copytree(ROOT / name, root / name)
    for name in (
        "src",
        "benchmarks",
        "examples",
        "mkdocs.yml",
        *(path.name for path in ROOT.glob("*.md")),
        "CITATION.cff",
    ):
        (root / name).symlink_to(ROOT / name)
    with (root / "docs/start.md").open("a", encoding="utf-8") as page:
        page.write("\n[gone](gone.md) [away](../benchmarks/gone.md) [lost](tasks.md#nowhere) [root](/etc)\n")
    (root / "docs/forgotten.md").write_text("# Forgotten\n", encoding="utf-8")
    ended = build(root, tmp_path / "site")
    assert ended.returncode == 1
    for words in ("'gone.md'", "'../benchmarks/gone.md'", "'#nowhere'", "'/etc'", "forgotten.md"):
        assert words in ended.stderr, words


@pytest.mark.parametrize("page", PAGES_WITH_SCRIPTS)
def test_pages_run_without_errors_or_a_network(site: Path, page: str) -> None:
    with open_page(site / f"{page}.html", width=390, dark=True) as opened:
        opened.page.wait_for_load_state("load")
        assert opened.console_errors == []
        assert [url for url in opened.requests if not url.startswith("file:")] == []
        assert opened.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("page", ["teacher-hacking", "api"])
def test_pages_are_accessible(site: Path, page: str, dark: bool) -> None:
    with open_page(site / f"{page}.html", width=1300, dark=dark) as opened:
        # the theme's script gives the bars of two code blocks one name, none
        assert [fault for fault in opened.axe() if not fault.startswith("landmark-unique")] == []


def test_every_column_of_a_table_has_a_name(site: Path) -> None:
    pages = list(site.glob("*.html"))
    assert len(pages) > 25
    assert [page.name for page in pages if re.search(r"<th[^>]*>\s*</th>", page.read_text(encoding="utf-8"))] == []


def test_the_search_works_from_a_file(site: Path) -> None:
    with open_page(site / "index.html", width=1300) as opened:
        opened.page.fill("[data-md-component=search-query]", "references")
        opened.page.wait_for_selector("[data-md-component=search-result] a")
        assert opened.console_errors == []
        assert [url for url in opened.requests if not url.startswith("file:")] == []


def test_charts_are_drawn_and_their_curves_can_be_hidden_by_keyboard(site: Path) -> None:
    with open_page(site / "teacher-hacking.html", width=1300) as opened:
        assert opened.page.locator("figure.live .u-over").count() == 2
        first, second = (opened.page.locator("figure.live .uplot").nth(i).bounding_box() for i in range(2))
        assert first is not None
        assert second is not None
        assert first["x"] + first["width"] <= second["x"] or first["y"] + first["height"] <= second["y"]
        names = opened.page.locator("figure.live .u-legend [role=button]")
        assert names.all_inner_texts()[:3] == ["offline", "online teacher", "online student"]
        names.first.press("Enter")
        assert [names.nth(i).get_attribute("aria-pressed") for i in range(2)] == ["false", "true"]


def test_whole_configs_of_the_pages_are_configs(tmp_path: Path) -> None:
    blocks = [block for page in DOCS.glob("*.md") for block in FENCED.findall(page.read_text(encoding="utf-8"))]
    whole = [block for block in blocks if block.startswith("# mine.yaml")]
    assert len(whole) == 2
    for block in whole:
        (tmp_path / "mine.yaml").write_text(block, encoding="utf-8")
        validate(load(tmp_path / "mine.yaml"))


def test_commands_of_the_pages_are_commands(capsys: pytest.CaptureFixture[str]) -> None:
    pages = [page.read_text(encoding="utf-8") for page in DOCS.glob("*.md")]
    code = [block for page in pages for block in FENCED.findall(page)] + re.findall(r"`[^`\n]+`", "\n".join(pages))
    named = {name for text in code for name in COMMAND.findall(text)}
    assert {"quickstart", "distill", "cite", "diagnose"} <= named
    with pytest.raises(SystemExit):
        main(["--help"])
    known = set(re.findall(r"[a-z-]+", capsys.readouterr().out))
    assert named <= known


def test_every_command_that_stands_alone_can_be_read() -> None:
    """With its flags and values, as the program reads them; files that it names need not be there."""
    checked, refused = 0, []
    for page in (ROOT / "README.md", *DOCS.glob("*.md"), ROOT / "examples/README.md"):
        for block in FENCED.findall(page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                if not re.match(r"assay [a-z-]", line.strip()):
                    continue
                checked += 1
                words = shlex.split(line.split(" > ")[0], comments=True)[1:]
                try:
                    with contextlib.suppress(SystemExit):  # --help
                        call_of(words)
                except AssayError as error:
                    if "cannot read config" not in str(error):
                        refused.append(f"{page.name}: {line}: {error}")
    assert refused == []
    assert checked > 60


def test_links_of_plain_files_lead_to_files() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.glob("*.md")):
        for target in LINK.findall(page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{target} in {page.name}"


def test_the_figures_that_the_page_names_are_those_of_its_chart() -> None:
    proxy, golden = loaded("tools/live_figures.py").quickstart()["panels"]
    ends = {line["name"]: (line["y"][0], line["y"][-1]) for line in golden["series"]}
    proxies = {line["name"]: (line["y"][0], line["y"][-1]) for line in proxy["series"]}
    text = " ".join((DOCS / "teacher-hacking.md").read_text(encoding="utf-8").split())
    (start, end), (golden_start, golden_end) = proxies["offline"], ends["offline"]
    assert f"the proxy falls from {start:.2f} to {end:.2f} nats" in text
    assert f"ends at {golden_end:.2f}, from {golden_start:.2f}" in text
    assert (
        f"golden ends at {ends['online teacher'][1]:.2f}, with the student's own at {ends['online student'][1]:.2f}"
        in text
    )


def test_the_chart_of_cures_is_the_table_of_cures() -> None:
    (panel,) = loaded("tools/live_figures.py").cures()["panels"]
    end = {line["name"]: line["y"][-1] for line in panel["series"]}
    bought = {name: round(end["offline, one response per prompt"] - value, 2) for name, value in end.items()}
    assert bought["the same with a KL anchor of weight 1"] == 1.52
    assert bought["eight stored responses per prompt"] == 1.50
    assert bought["fresh responses of the teacher"] in (1.61, 1.62)


def test_hacking_in_numbers() -> None:
    laws, distances = tables("teacher-hacking.md")[1:3]
    oracle, teacher, before, after = (values(row[1:]) for row in laws)
    assert near(values(distances[0]), [kl(teacher, before), kl(teacher, after)])
    assert near(values(distances[1]), [kl(oracle, before), kl(oracle, after)])
    assert f"KL(o‖t) = {kl(oracle, teacher):.4f}" in (DOCS / "teacher-hacking.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def two_tokens() -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Laws of the next token of p and q, by the token before, as the page states them."""
    rows = tables("kl-directions.md")[0]
    return tuple({row[0][-1]: values(row[1:])[at : at + 2] for row in rows} for at in (0, 2))  # type: ignore[return-value]


def responses(laws: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The probability of each response of two tokens."""
    return {
        first + second: laws["t"]["ab".index(first)] * laws[first]["ab".index(second)]
        for first, second in itertools.product("ab", repeat=2)
    }


def test_directions_and_prefixes(two_tokens: tuple[dict[str, list[float]], dict[str, list[float]]]) -> None:
    p, q = two_tokens
    positions, walks = tables("kl-directions.md")[:2]
    for row in positions:
        place = row[0][-1]
        assert near(values(row[5:]), [kl(p[place], q[place]), kl(q[place], p[place])])

    def along(writer: Mapping[str, Sequence[float]], first: Mapping, second: Mapping) -> float:
        """The sum over positions of KL(first‖second), its prefixes written by ``writer``."""
        later = (share * kl(first[token], second[token]) for share, token in zip(writer["t"], "ab", strict=True))
        return kl(first["t"], second["t"]) + sum(later)

    assert near(values(walks[0][1:]), [along(p, p, q), along(q, p, q)])
    assert near(values(walks[1][1:]), [along(p, q, p), along(q, q, p)])
    whole_p, whole_q = list(responses(p).values()), list(responses(q).values())
    assert near([along(p, p, q), along(q, q, p)], [kl(whole_p, whole_q), kl(whole_q, whole_p)])
    assert abs(along(q, p, q) - kl(whole_p, whole_q)) > 0.1


def test_which_tokens_a_direction_minds() -> None:
    teacher, student = tables("kl-directions.md")[3]
    p, q = values(teacher[1:4]), values(student[1:4])
    assert near(values(student[4:]), [kl(p, q), kl(q, p)])


def test_per_sequence_and_per_token() -> None:
    sums, lengths = (0.5, 0.9), (1, 9)
    rows = tables("kl-directions.md")[4]
    means = [total / length for total, length in zip(sums, lengths, strict=True)]
    assert near(values([row[1] for row in rows]), [sum(sums) / 2, sum(sums) / sum(lengths), sum(means) / 2])


def test_estimates(two_tokens: tuple[dict[str, list[float]], dict[str, list[float]]]) -> None:
    p, q = two_tokens
    *rows, mean, deviation = tables("kl-directions.md")[5]
    of_p, of_q = responses(p), responses(q)
    estimates = {
        text: (kl(p["t"], q["t"]) + kl(p[text[0]], q[text[0]]), math.log(of_p[text] / of_q[text])) for text in of_p
    }
    probabilities = {row[0].replace(" ", ""): values(row[1:2])[0] for row in rows}
    assert {text: round(value, 2) for text, value in of_p.items()} == pytest.approx(probabilities, abs=0.0051)
    for row in rows:
        assert near(values(row[2:]), estimates[row[0].replace(" ", "")])
    for at in (0, 1):
        expected = sum(of_p[text] * estimates[text][at] for text in of_p)
        spread = math.sqrt(sum(of_p[text] * (estimates[text][at] - expected) ** 2 for text in of_p))
        assert near([values(mean[2:])[at], values(deviation[2:])[at]], [expected, spread])
