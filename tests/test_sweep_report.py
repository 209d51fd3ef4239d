"""The pages of sweeps and comparisons: numbers against the runs' own files, fronts, colours; and in a real browser."""

from __future__ import annotations

import csv
import html
import itertools
import json
import re
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from assay import runs
from assay.comparison import compare_runs
from assay.comparison_report import labels_of, write_page
from assay.errors import AssayError
from assay.findings import Outcomes
from assay.heat_map import contrast, maps, scale_of, text_colour
from assay.pareto import front_of
from assay.sweep_cells import cells_of
from assay.sweep_figures import can_draw_map
from assay.sweep_report import refuse_unlike, write_sweep
from browser import open_page
from pasted import understand
from test_comparison import set_config, write_run

STEPS = "distillation.training.num_steps"


COMMAND = "assay sweep quickstart --axes distillation.training.num_steps=3,5 --seeds 7 8"
AXES = {f"num_steps = {steps}": {STEPS: steps} for steps in (3, 5)}
ENDS = {
    3: {"offline": (13.0, 6.0), "online_teacher": (12.5, 5.0)},
    5: {"offline": (14.0, 5.5), "online_teacher": (12.0, 4.0)},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of four runs with known ends, and the folder of their sweep's page."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, (steps, arms) in itertools.product((7, 8), ENDS.items()):
        write_run(folder / f"{steps}-{seed}", arms, seed=seed, draw=steps)
        (folder / f"{steps}-{seed}" / "report.html").write_text("a report")
        # three evaluations are too few for a verdict
        summary = runs.read_json(folder / f"{steps}-{seed}" / "summary.json")
        for arm in summary["arms"]:
            arm |= {"severity_hacking_nats": 0.1 * seed, "ci95_hacking": [0.1 * seed - 0.2, 0.1 * seed + 0.3]}
        runs.write_json(folder / f"{steps}-{seed}" / "summary.json", summary)
    page = write_sweep(folder / "page & more", outcomes(folder, [7, 8]), "quickstart", COMMAND, AXES)
    return folder, page.parent


def outcomes(folder: Path, seeds: list[int]) -> Outcomes:
    return Outcomes(
        {("quickstart", s, f"num_steps = {steps}"): folder / f"{steps}-{s}" for s in seeds for steps in (3, 5)}
    )


def commands_in(page: str) -> list[str]:
    """What the page says to paste into a shell."""
    found = [html.unescape(text) for text in re.findall(r'<div class="paste"><pre>(.*?)</pre>', page, re.S)]
    return [paste for paste in found if paste.startswith("assay")]


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO(path.read_text())))


def test_cells_hold_the_mean_over_seeds_with_students_t(made: tuple[Path, Path]) -> None:
    folder, page = made
    o = outcomes(folder, [7, 8])
    rows = rows_of(page / "cells.csv")
    assert len(rows) == 2 * 2
    for row in rows:
        values = [o.arm("quickstart", seed, row["variant"], row["arm"])["golden"]["final"] for seed in (7, 8)]
        low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        found = [float(row[f"golden_end_nats{end}"]) for end in ("", "_low", "_high")]
        assert found == pytest.approx([np.mean(values), low, high])
        assert (row["interval_over"], row["num_seeds"]) == ("seeds", "2")


def test_one_seed_has_intervals_over_prompts_and_says_so(made: tuple[Path, Path], tmp_path: Path) -> None:
    o = outcomes(made[0], [7])
    text = write_sweep(tmp_path, o, "quickstart", "assay sweep quickstart --seeds 7", AXES).read_text()
    assert "There is one seed, so 95 % intervals are over held-out prompts" in text
    assert "t over 1 seeds" not in text
    (cell, *_) = cells_of(o)
    level, by_prompt = cell.level("golden_end"), o.final("quickstart", 7, cell.variant, cell.arm)
    assert level is not None
    assert level.low is not None
    assert level.high is not None
    half = 1.96 * by_prompt.std(ddof=1) / np.sqrt(len(by_prompt))
    assert level.value == pytest.approx(by_prompt.mean())
    assert (level.high - level.low) / 2 == pytest.approx(half, rel=0.15)
    severity = cell.level("severity")
    entry = o.arm("quickstart", 7, cell.variant, cell.arm)
    assert severity is not None
    assert [severity.low, severity.high] == entry["ci95_hacking"]
    assert all(level.low is None for level in cell.curve("golden") if level), "one seed has no interval over seeds"


def test_the_front_is_what_no_other_point_beats() -> None:
    rng = np.random.default_rng(0)
    costs, values = rng.integers(0, 12, 60).tolist(), rng.integers(0, 12, 60).tolist()
    points = list(zip(costs, values, strict=True))
    members = front_of(costs, values)

    def is_beaten(one: tuple[int, int]) -> bool:
        return any(a <= one[0] and b <= one[1] and (a, b) != one for a, b in points)

    assert sorted({points[i] for i in members}) == sorted({point for point in points if not is_beaten(point)})
    assert len({points[i] for i in members}) == len(members)
    assert [costs[i] for i in members] == sorted(costs[i] for i in members)


def test_every_text_on_every_colour_of_a_map_has_enough_contrast() -> None:
    for diverging in (False, True):
        scale = scale_of([-1.0, 3.0], diverging)
        for value in np.linspace(scale.low, scale.high, 101):
            background = scale.colour(float(value))
            assert contrast(text_colour(background), background) >= 4.5
    assert scale_of([-1.0, 3.0], True).colour(0.0) == scale_of([5.0, -2.0], True).colour(0.0)


def test_two_axes_make_a_table_for_each_arm(made: tuple[Path, Path]) -> None:
    cells = cells_of(outcomes(made[0], [7, 8]))
    axes = {"num_steps = 3": {"a": 1, "b": 2}, "num_steps = 5": {"a": 3, "b": 4}}
    (first, *_) = maps(cells, axes)
    assert [table["title"] for table in first["tables"]] == ["offline", "online teacher"]
    assert (first["tables"][0]["down"], first["tables"][0]["across"]) == ("a", "b")
    assert {(row, column) for row, boxes in first["tables"][0]["rows"].items() for column in boxes} == {
        ("1", "2"),
        ("3", "4"),
    }


def test_the_page_links_every_run_and_repeats_itself_to_the_byte(made: tuple[Path, Path], tmp_path: Path) -> None:
    folder, page = made
    text = (page / "report.html").read_text()
    links = re.findall(r'<th scope="row"><a href="([^"]+)"', text)
    assert len(links) == 4
    assert all((page / link).resolve().exists() for link in links)
    assert "winner's curse" in text.replace("&#39;", "'")
    assert "assay sweep quickstart --axes distillation.training.num_steps=3,5 --seeds 9 10 11" in text
    for paste in commands_in(text):
        understand(paste, folder)
    before = {path: path.read_bytes() for path in page.rglob("*") if path.is_file()}
    write_sweep(page, outcomes(folder, [7, 8]), "quickstart", COMMAND, AXES)
    assert {path: path.read_bytes() for path in before} == before


def test_runs_that_measure_unlike_things_share_no_map(made: tuple[Path, Path]) -> None:
    o = outcomes(made[0], [7, 8])
    o.summary(*o.keys[0])["proxy_is"] = "lower_bound"
    with pytest.raises(AssayError, match="differ in proxy_is"):
        refuse_unlike(o)


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (390, False), (390, True)])
def test_the_page_of_a_sweep_works_in_a_browser(made: tuple[Path, Path], width: int, dark: bool) -> None:
    with open_page(made[1] / "report.html", width=width, dark=dark) as opened:
        page = opened.page
        assert page.locator(".map:visible").count() == 1
        page.locator("#metric-golden_end").focus()
        page.keyboard.press("ArrowDown")
        assert page.locator(".map:visible").get_attribute("data-metric") == "golden_best"
        page.locator("#tokens-teacher").check()
        assert page.locator(".cost:visible").get_attribute("data-tokens") == "teacher"
        assert page.locator("#cells .panel canvas").count() == 4
        box = page.locator(".cost:visible .u-over").bounding_box()
        assert box is not None
        for x, y in itertools.product(range(0, int(box["width"]), 12), range(0, int(box["height"]), 24)):
            page.mouse.move(box["x"] + x, box["y"] + y)
            if "golden" in page.locator(".cost:visible .pointed").inner_text():
                break
        assert "tokens" in page.locator(".cost:visible .pointed").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert (opened.console_errors, opened.requests, opened.axe()) == ([], [], [])


def test_without_scripts_a_sweeps_maps_and_figures_are_there_and_no_dead_control(made: tuple[Path, Path]) -> None:
    with open_page(made[1] / "report.html") as opened:
        browser = opened.page.context.browser
        assert browser is not None
        context = browser.new_context(java_script_enabled=False, offline=True)
        plain = context.new_page()
        plain.goto((made[1] / "report.html").as_uri())
        assert plain.locator(".map:visible").count() == 4
        assert plain.locator(".cost:visible").count() == 2
        assert [each.is_visible() for each in plain.locator("figure .static svg").all()] == [True, True]
        for control in ("button", "input", ".scripted"):
            assert not any(each.is_visible() for each in plain.locator(control).all())
        context.close()


def test_every_map_is_a_picture_with_the_numbers_of_its_table(made: tuple[Path, Path]) -> None:
    cells = cells_of(outcomes(made[0], [7, 8]))
    for found in maps(cells, AXES):
        svg = (made[1] / "figures" / f"map-{found['metric']}.svg").read_text()
        assert (made[1] / "figures" / f"map-{found['metric']}.png").read_bytes().startswith(b"\x89PNG")
        for table in found["tables"]:
            for box in (box for row in table["rows"].values() for box in row.values()):
                assert f">{box['bounds']}<" in svg
                assert f"fill: {box['background']}" in svg
                assert f">{box['text']}{'  lowest' if box['lowest'] else ''}<" in svg


def test_a_map_that_no_figure_holds_is_left_to_its_table(made: tuple[Path, Path]) -> None:
    (found, *_) = maps(cells_of(outcomes(made[0], [7, 8])), AXES)
    assert can_draw_map(found)
    table = found["tables"][0]
    assert not can_draw_map(found | {"tables": [table | {"columns": [str(i) for i in range(41)]}]})
    assert not can_draw_map(found | {"tables": [table] * 60})


def compared(tmp_path: Path, seeds: tuple[int, ...]) -> list[Path]:
    arms = {"offline": (13.0, 6.0), "online": (12.0, 5.0)}
    return [write_run(tmp_path / f"run {seed} <b>", arms, seed=seed) for seed in seeds]


def test_a_comparison_has_a_page_with_its_numbers(tmp_path: Path) -> None:
    comparison = compare_runs(compared(tmp_path, (0, 1, 2)))
    page = tmp_path / "compare.html"
    write_page(comparison, page)
    text = page.read_text()
    assert "Of 1 arm, 1 ended closer to the truth than offline, and 0 further from it" in text
    assert "n = 3 seeds" in text
    assert "run 1 &lt;b&gt;" in text
    assert "<b>/" not in text
    assert len(rows_of(tmp_path / "compare.csv")) == 6 + 1
    before = page.read_bytes()
    write_page(comparison, page)
    assert page.read_bytes() == before
    data = json.loads(re.findall(r'id="data">(.*?)</script>', text)[0])
    (scatter,) = data["fronts"]
    golden = {point["name"]: point["y"] for point in scatter["points"]}
    by_run = [row.golden_final for row in comparison.rows if row.arm == "online"]
    assert golden["online"] == pytest.approx(np.mean(by_run), abs=1e-4)
    with open_page(page, width=390) as opened:
        assert (opened.console_errors, opened.requests, opened.axe()) == ([], [], [])


def test_arms_are_called_by_what_differs_unless_that_is_ambiguous(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {"offline": (13.0, 6.0)})
    b = write_run(tmp_path / "b", {"offline": (12.0, 6.0)}, edit=set_config(distillation__num_prompts=9))
    found = labels_of(compare_runs([a, b]))
    assert found["b/offline"] == "offline · num_prompts = 9"
    assert len(set(found.values())) == 2


def test_one_seed_is_compared_over_prompts_and_advised_more(tmp_path: Path) -> None:
    write_page(compare_runs(compared(tmp_path, (0,))), tmp_path / "one.html")
    text = (tmp_path / "one.html").read_text()
    assert "Add seeds" in text
    assert "Over seeds" not in text
    assert "prompts</small>" in text
    for paste in commands_in(text):
        understand(paste, tmp_path)


def test_half_a_run_has_no_link(made: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = made
    o = outcomes(folder, [7, 8])
    page = o.folder(*o.keys[0]) / "report.html"
    text = page.read_bytes()
    page.unlink()
    try:
        assert "(no report)" in write_sweep(tmp_path, o, "quickstart", COMMAND, AXES).read_text()
    finally:
        runs.write_bytes(page, text)
