"""The interactive report in a real browser: it works, asks the network for nothing, and trusts no text of its files."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.report.html import PAGE, write_report
from assay.token_table import TOKENS_SCHEMA
from browser import OpenedPage, open_page
from test_report import ARMS, HOSTILE, STEPS, shape, write_run

SHOWN = 6
LOG_PROBS = {"student": -1.0, "teacher": -2.5, "oracle": -5.0}


def write_tokens(run: Path, prompts: int = SHOWN) -> Path:
    """tokens.parquet for all held-out responses: words as tokens, and student log-probs that fall with the step."""
    rows = pq.read_table(run / "responses.parquet").to_pylist()
    rows = [row for row in rows if row["split"] == "held_out" and row["prompt_id"] < f"p{prompts:04d}"]
    fixed = [row for row in rows if row["writer"] != "student"]
    found: list[dict[str, Any]] = []
    for row in rows:
        if not row["arm"]:
            continue
        texts = [row, *(each for each in fixed if each["prompt_id"] == row["prompt_id"])]
        for response in texts:
            for position, token in enumerate(re.findall(r"\s*\S+", response["text"])):
                key = {name: row[name] for name in ("arm", "seed", "step", "prompt_id")}
                probs = {f"log_prob_{who}": nats for who, nats in LOG_PROBS.items()}
                probs["log_prob_student"] -= row["step"] / 1000 + (position == 0) * 0.25
                found.append(key | {"writer": response["writer"], "position": position, "token": token} | probs)
    pq.write_table(pa.Table.from_pylist(found, TOKENS_SCHEMA), run / "tokens.parquet")
    return run


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of one run with three arms, whose students wrote at every evaluation, with token probabilities."""
    root = tmp_path_factory.mktemp("page")
    return write_report([write_tokens(write_run(root / "run", sampled=STEPS))], root / "out")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two arms with three seeds each, without token probabilities."""
    root = tmp_path_factory.mktemp("seeds")

    def measure(seed: int) -> Any:
        return lambda arm, step: tuple(value + seed for value in shape(arm, step))

    runs = [
        write_run(root / f"seed{seed}", ARMS[:2], seed=seed, num_prompts=12, measure=measure(seed))
        for seed in (0, 1, 5)
    ]
    return write_report(runs, root / "out")


@contextmanager
def opened(path: Path, **options: Any) -> Iterator[OpenedPage]:
    """The page, of which nothing may have gone wrong when it is left."""
    with open_page(path, **options) as found:
        found.page.wait_for_selector(".panel canvas")
        settle(found)
        yield found
        assert found.console_errors == []
        assert found.requests == []


def settle(found: OpenedPage) -> None:
    """Until what changed has been drawn."""
    found.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def picture(found: OpenedPage, figure: str, number: int = 0) -> np.ndarray:
    """What the canvas of a panel shows, as numbers."""
    canvas = found.page.locator(f"[data-figure={figure}] canvas").nth(number)
    data = canvas.evaluate("canvas => canvas.toDataURL('image/png').split(',')[1]")
    return matplotlib.image.imread(io.BytesIO(base64.b64decode(data)))


def readout(found: OpenedPage, figure: str, number: int = 0) -> dict[str, str]:
    """Label → value of a panel's visible lines."""
    panel = found.page.locator(f"[data-figure={figure}] .panel").nth(number)
    lines = panel.locator("li:visible").evaluate_all(
        "lines => lines.map(line => ['.label', '.value'].map(part => line.querySelector(part).textContent))"
    )
    return dict(lines)


def embedded(path: Path) -> dict[str, Any]:
    return json.loads(
        re.findall(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.S)[0]
    )


def golden_at(path: Path, arm: str, step: int) -> float:
    records = [json.loads(line) for line in (path.parents[1] / "run" / "metrics.jsonl").read_text().splitlines()]
    return next(record["golden_nats"] for record in records if (record["arm"], record["step"]) == (arm, step))


def move_slider(found: OpenedPage, step: int) -> None:
    found.page.locator("#step").fill(str(STEPS.index(step)))
    settle(found)


@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_asked_for_nothing_goes_wrong_and_axe_finds_nothing(page: Path, width: int, dark: bool) -> None:
    with opened(page, width=width, dark=dark) as found:
        assert found.axe() == []
        assert found.page.evaluate("document.documentElement.scrollWidth") == width
        for number in range(3):
            drawn = picture(found, "training_curves", number)
            assert drawn.shape[1] > 200
            # lines of three arms, axes and text: more than a handful of colours, on an empty ground
            assert len(np.unique((drawn * 255).astype(int).reshape(-1, 4), axis=0)) > 30
            assert (drawn[..., 3] == 0).mean() > 0.5


def test_several_seeds_have_a_mean_and_toggles_of_their_own(seeds: Path) -> None:
    with opened(seeds) as found:
        assert found.axe() == []
        panel = found.page.locator("[data-figure=training_curves] .panel").nth(2)
        assert "seed 5: " in panel.inner_text()
        value = readout(found, "training_curves", 2)["offline"]
        middle, low, high = (float(number) for number in re.findall(r"[\d.]+", value))
        last = shape("offline", STEPS[-1])[0]
        assert middle == pytest.approx(last + 2, abs=0.01)
        # Student's t over three seeds whose levels are 0, 1 and 5 above: 4.303 times 2.646 / 3 ** 0.5
        assert high - middle == pytest.approx(4.303 * 7**0.5 / 3**0.5, abs=0.02)
        assert middle - low == pytest.approx(high - middle, abs=0.02)
        before = picture(found, "training_curves", 2)
        found.page.click("#seeds button >> text=5")
        settle(found)
        assert "seed 5: " not in panel.inner_text()
        assert not np.array_equal(before, picture(found, "training_curves", 2))
        assert readout(found, "training_curves", 2)["offline"] == value, "the mean stays that of all seeds"
        assert "no file of token probabilities" in found.page.inner_text("#responses")


def test_a_toggle_hides_an_arm_everywhere_and_brings_it_back(page: Path) -> None:
    with opened(page) as found:
        before = picture(found, "training_curves", 2)
        button = found.page.locator("#arms button", has_text="offline")
        assert button.get_attribute("aria-pressed") == "true"
        button.click()
        found.page.mouse.move(0, 0)
        button.blur()
        settle(found)
        assert button.get_attribute("aria-pressed") == "false"
        for figure, number in (("training_curves", 2), ("proxy_golden_plane", 0), ("degeneration", 4)):
            assert not {"offline", "on what the oracle writes"} & set(readout(found, figure, number))
            assert "online teacher" in readout(found, figure, number)
        assert "offline at" not in found.page.inner_text("#responses .sample")
        theory = found.page.locator("[data-figure=theory_terms] .panel:visible h4").all_inner_texts()
        assert theory == ["online teacher", "online student"]
        assert not np.array_equal(before, picture(found, "training_curves", 2))
        button.click()
        found.page.mouse.move(0, 0)
        button.blur()
        settle(found)
        assert np.array_equal(before, picture(found, "training_curves", 2))


def test_the_slider_moves_the_cursor_and_changes_values_and_responses(page: Path) -> None:
    with opened(page) as found:
        assert "step 1,200" in found.page.inner_text("#at")
        assert "offline at 1200" in found.page.inner_text("#responses")
        before = [picture(found, "training_curves", 2), picture(found, "proxy_golden_plane")]
        move_slider(found, 84)
        assert found.page.inner_text("#at").startswith("step 84, epoch 21")
        assert found.page.get_attribute("#step", "aria-valuetext") == found.page.inner_text("#at")
        for arm in ARMS:
            value = readout(found, "training_curves", 2)[arm.replace("_", " ")]
            assert value.startswith(f"{golden_at(page, arm, 84):.2f} [")
        after = [picture(found, "training_curves", 2), picture(found, "proxy_golden_plane")]
        assert not any(np.array_equal(*pair) for pair in zip(before, after, strict=True))
        words = found.page.inner_text("#responses")
        assert "offline at 84" in words
        assert "offline at 1200" not in words
        assert all(f"{writer} writes" in words for writer in ("dataset", "oracle", "teacher"))
        found.page.click("#responses button >> text=3")
        assert "word number 2" in found.page.inner_text("#responses .prompt")


def test_pointing_links_all_panels_and_a_click_holds_the_step(page: Path) -> None:
    with opened(page) as found:
        plot = found.page.locator("[data-figure=training_curves] .u-over").nth(0)
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        assert box is not None
        at = box["x"] + 0.6 * box["width"], box["y"] + 0.99 * box["height"]
        found.page.mouse.move(*at)
        settle(found)
        step = int(re.findall(r"step (\d+)", found.page.inner_text("#at"))[0])
        assert 0 < step < STEPS[-1]
        assert readout(found, "training_curves", 2)["offline"].startswith(f"{golden_at(page, 'offline', step):.2f}")
        found.page.mouse.move(0, 0)
        settle(found)
        assert "step 1,200" in found.page.inner_text("#at")
        found.page.mouse.move(*at)
        found.page.mouse.down()
        found.page.mouse.up()
        found.page.mouse.move(0, 0)
        settle(found)
        assert found.page.inner_text("#at").startswith(f"step {step},")
        assert found.page.input_value("#step") == str(STEPS.index(step))


def test_focus_on_an_arm_highlights_it_in_all_panels(page: Path) -> None:
    with opened(page) as found:
        calm = [picture(found, "training_curves", 1), picture(found, "degeneration", 0)]
        found.page.locator("#arms button", has_text="online student").focus()
        settle(found)
        faded = found.page.locator("[data-figure=training_curves] .panel").nth(1).locator("li.faded .label")
        assert faded.all_inner_texts() == ["offline", "online teacher"]
        assert found.page.locator("#responses .cell.lit .who b").all_inner_texts() == ["online student"]
        bright = [picture(found, "training_curves", 1), picture(found, "degeneration", 0)]
        assert not any(np.array_equal(*pair) for pair in zip(calm, bright, strict=True))
        assert found.axe() == [], "what is faded can still be read"


def test_every_control_is_reached_by_keyboard_in_the_order_of_the_page(page: Path) -> None:
    with opened(page) as found:
        reached = []
        for _ in range(60):
            found.page.keyboard.press("Tab")
            reached.append(
                found.page.evaluate(
                    "() => document.activeElement.id || document.activeElement.getAttribute('aria-label')"
                    " || document.activeElement.textContent"
                )
            )
            ring = found.page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
            assert ring != "none", f"{reached[-1]} shows no focus"
            if reached[-1] == "step":
                break
        assert reached[0] == "theme"
        folded = [name for name in reached if name.strip().startswith("how finely this can tell")]
        assert reached[1 : 1 + len(folded)] == folded
        assert len(folded) == 3
        assert reached[1 + len(folded)].startswith("Copy: ")
        assert reached[-4:] == ["offline", "online teacher", "online student", "step"]
        found.page.keyboard.press("ArrowLeft")
        settle(found)
        assert "step 900" in found.page.inner_text("#at")


def test_the_theme_can_be_changed(page: Path) -> None:
    background = "() => getComputedStyle(document.body).backgroundColor"
    with opened(page) as found:
        light, drawn = found.page.evaluate(background), picture(found, "training_curves")
        found.page.click("#theme")
        settle(found)
        assert found.page.get_attribute("#theme", "aria-pressed") == "true"
        dark = found.page.evaluate(background)
        assert light != dark
        assert not np.array_equal(drawn, picture(found, "training_curves"))
        assert found.axe() == []
    with opened(page, dark=True) as found:
        assert found.page.evaluate(background) == dark
        found.page.click("#theme")
        assert found.page.evaluate(background) == light


def test_tokens_are_coloured_and_the_numbers_can_be_read(page: Path) -> None:
    with opened(page) as found:
        move_slider(found, 900)
        cell = found.page.locator("#responses .cell[data-label=offline]")
        tokens = cell.locator(".token")
        texts = tokens.all_text_contents()
        assert "".join(texts).startswith("offline at 900")
        # log oracle − log student: −5 + 1 + 0.9, and a quarter more at the first token
        assert tokens.nth(0).get_attribute("title") == "log oracle − log student: −2.85 nats"
        assert tokens.nth(1).get_attribute("title") == "log oracle − log student: −3.10 nats"
        assert "more2" in (tokens.nth(0).get_attribute("class") or "")
        assert "more3" in (tokens.nth(1).get_attribute("class") or "")
        total = -3.1 * len(texts) + 0.25
        assert f"{total:.2f} nats over {len(texts)} tokens".replace("-", "−") in cell.locator(".sum").inner_text()

        reference = found.page.locator("#responses .cell", has_text="dataset writes").locator(".sum")
        at_900 = reference.inner_text()
        move_slider(found, 0)
        assert reference.inner_text() != at_900, "the student of another step sees fixed responses differently"
        found.page.get_by_label("log teacher − log student").check()
        assert "log teacher − log student" in cell.locator(".sum").inner_text()
        assert tokens.nth(1).get_attribute("title") == "log teacher − log student: −1.50 nats"
        found.page.get_by_label("nothing").check()
        assert tokens.count() == 0


def test_a_command_is_copied_or_at_least_selected(page: Path) -> None:
    with opened(page) as found:
        found.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        command = found.page.locator(".next pre").nth(1).inner_text()
        assert re.match(r"assay run [a-z]+/manifest.json --policy auto", command)
        found.page.locator(".next .copy").nth(1).click()
        found.page.locator("#copied", has_text="Copied.").wait_for()
        assert found.page.evaluate("navigator.clipboard.readText()") == command
        found.page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
        found.page.locator(".next .copy").nth(1).click()
        found.page.locator("#copied", has_text="Selected").wait_for()
        assert found.page.evaluate("String(getSelection())").strip() == command


def test_on_paper_there_are_no_controls_and_curves_are_drawn_for_white(page: Path) -> None:
    with opened(page, width=700, dark=True, print=True) as found:
        for control in ("#controls", "#theme", ".copy", ".choices"):
            assert not found.page.locator(control).first.is_visible()
        assert found.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        for canvas in found.page.locator(".panel canvas").all():
            box, panel = canvas.bounding_box(), canvas.locator("xpath=ancestor::figure").bounding_box()
            assert box is not None
            assert panel is not None
            assert box["x"] >= panel["x"]
            assert box["x"] + box["width"] <= panel["x"] + panel["width"] + 1
    with opened(page) as found:
        light = picture(found, "training_curves")
    with opened(page, dark=True) as found:
        dark = picture(found, "training_curves")
        found.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert np.array_equal(picture(found, "training_curves"), light)
        found.page.evaluate("dispatchEvent(new Event('afterprint'))")
        settle(found)
        assert np.array_equal(picture(found, "training_curves"), dark)


def test_without_scripts_the_figures_and_responses_are_there_and_no_dead_control(page: Path) -> None:
    with opened(page) as found:
        browser = found.page.context.browser
        assert browser is not None
        context = browser.new_context(java_script_enabled=False, offline=True)
        plain = context.new_page()
        plain.goto(page.as_uri())
        assert plain.locator("figure .static svg").count() == 5
        assert plain.locator("figure .static svg").first.is_visible()
        assert "offline at 1200" in plain.inner_text("main")
        for control in ("button", "input", ".charts"):
            assert not any(each.is_visible() for each in plain.locator(control).all())
        context.close()


def test_the_policy_names_the_scripts_of_the_page_and_no_other_runs(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    policy = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[0].replace("&#39;", "'")
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert len(scripts) == len(PAGE.scripts) == 5
    assert re.findall(r"'sha256-([^']*)'", policy) == hashes
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]
    with open_page(page) as found:
        found.page.evaluate(
            "() => { const script = document.createElement('script'); script.textContent = 'window.ran = 1';"
            " document.body.append(script); }"
        )
        assert found.page.evaluate("window.ran") is None
        assert any("Content Security Policy" in error for error in found.console_errors)


def test_hostile_text_is_shown_and_never_run(tmp_path: Path) -> None:
    nasty = f"</script></noscript><script>window.ran = 1</script><img src=x onerror='window.ran = 2'>\u2028{HOSTILE}"
    run = write_run(
        tmp_path / "hostile",
        [nasty, "plain"],
        num_prompts=4,
        prompt_text=lambda i: f"{i} {nasty}",
        response_text=nasty,
        sampled=STEPS,
    )
    page = write_report([write_tokens(run)], tmp_path / "out")
    data = re.findall(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.S)[0]
    assert not set("<>&\u2028") & set(data)
    with opened(page) as found:
        assert found.page.evaluate("window.ran") is None
        assert found.page.locator("img").count() == 0
        assert found.page.locator("script").count() == len(PAGE.scripts) + 1  # and the data
        assert "<script>window.ran = 1</script>" in found.page.inner_text("#responses")
        assert "<script>window.ran = 1</script>" in found.page.inner_text("#arms")


def test_ten_arms_with_three_seeds_stay_below_three_megabytes(tmp_path: Path) -> None:
    arms = ["offline", *(f"arm_{number}" for number in range(1, 10))]
    many = tuple(sorted({0, *np.geomspace(1, 3000, 24).astype(int).tolist()}))
    words = " " + " ".join(["a unit of length that is of or relating to something"] * 6)

    def measure(arm: str, step: int) -> tuple[float, float, float]:
        golden, proxy, train = shape(ARMS[arms.index(arm) % 3], step)
        return golden + 0.1 * arms.index(arm), proxy, train

    runs = [
        write_run(tmp_path / f"{seed}", arms, seed=seed, num_prompts=8, steps=many, measure=measure,
                  response_text=words, sampled=many)
        for seed in range(3)
    ]  # fmt: skip
    write_tokens(runs[0])
    page = write_report(runs, tmp_path / "out")
    assert page.stat().st_size < 3_000_000
    responses = embedded(page)["responses"]
    assert responses["num_left_out"] > 0
    steps = responses["prompts"][0]["arms"][0]["steps"]
    assert (steps[0], steps[-1]) == (0, 3000)
    with opened(page) as found:
        assert f"{responses['num_left_out']} evaluations of an arm are left out" in found.page.inner_text("#responses")
        assert len(found.page.locator("#arms button").all()) == 10
        assert len(readout(found, "training_curves", 2)) >= 10
