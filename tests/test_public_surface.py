"""What Python users hold: the pinned signatures, a run as tables, and what results show of themselves."""

from __future__ import annotations

import difflib
import json
import pydoc
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas
import pytest

import assay
from assay.diagnostics.trajectory import Trajectory
from assay.notebook import as_html, as_text, estimate
from browser import open_page
from scripts import loaded
from test_report import ARMS, STEPS, edit_json, write_run

ROOT = Path(__file__).parents[1]
PINNED = ROOT / "tests" / "public_surface.txt"


class _Parts(HTMLParser):
    """The names of all elements, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def _hacked() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, golden and proxy of 60 prompts: from step 30 on golden rises while the proxy falls."""
    rng = np.random.default_rng(0)
    steps = np.arange(0, 100, 10)
    proxy, golden = 5 - steps / 50, 8 + np.abs(steps - 30) / 20
    of_prompts = rng.normal(size=60)
    noise = rng.normal(scale=0.05, size=(2, 10, 60))
    return steps, golden[:, None] + of_prompts + noise[0], proxy[:, None] + of_prompts + noise[1]


def test_the_public_signatures_are_those_that_are_pinned() -> None:
    now = loaded("tools/public_surface.py").surface(assay)
    pinned = PINNED.read_text(encoding="utf-8")
    differ = difflib.unified_diff(pinned.splitlines(), now.splitlines(), "pinned", "now", n=2, lineterm="")
    assert now == pinned, (
        "public signatures are not those of tests/public_surface.txt. If that is meant, run `make public-surface` and "
        "do what docs/api-stability.md asks for:\n" + "\n".join(differ)
    )


def test_a_changed_default_method_or_property_changes_the_surface() -> None:
    surface = loaded("tools/public_surface.py").surface
    source = """
class Thing:
    def __init__(self, size: int = 3) -> None: ...
    def grow(self, by: float, *, twice: bool = False) -> Thing: ...
    @property
    def name(self) -> str: ...
    def _hidden(self): ...
def make(*sizes: int, **named: str) -> Thing: ...
TABLE = {"b": 1, "a": 2}
"""

    def of(text: str) -> str:
        module = ModuleType("thing")
        module.__dict__["__all__"] = ["Thing", "make", "TABLE"]
        exec(compile("from __future__ import annotations\n" + text, "thing.py", "exec"), module.__dict__)
        return surface(module)

    assert of(source).splitlines() == [
        "TABLE: a, b",
        "",
        "class Thing(size: int = 3)",
        "    def grow(self, by: float, *, twice: bool = False) -> Thing",
        "    name: str",
        "",
        "def make(*sizes: int, **named: str) -> Thing",
    ]
    for old, new in (("= 3", "= 4"), ("by: float", "by: int"), ("def name", "def title"), ("twice", "thrice")):
        assert of(source.replace(old, new)) != of(source), new
    assert of(source.replace("_hidden", "_more_hidden")) == of(source)


def test_no_pinned_line_depends_on_the_machine() -> None:
    assert not re.search(r"0x[0-9a-f]{6}|/home|/work|site-packages", PINNED.read_text(encoding="utf-8"))


def test_the_help_of_the_package_groups_every_name_once() -> None:
    assert assay.__doc__
    groups = [line.strip().split("      ")[0] for line in assay.__doc__.splitlines() if line.startswith("    ")]
    named = [name for group in groups for name in group.split(", ")]
    assert sorted(named) == sorted(assay.__all__)
    assert "Judge curves and logs that you have" in pydoc.plain(pydoc.render_doc(assay))[:3000]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "a <run>")


def test_verdicts_are_the_rows_of_the_summary(folder: Path) -> None:
    run = assay.read_run(folder)
    arms = json.loads((folder / "summary.json").read_text())["arms"]
    table = pandas.DataFrame(run.verdicts)
    assert list(zip(table["arm"], table["seed"], strict=True)) == [(arm["source"], arm["seed"]) for arm in arms]
    for column, of_arm in {
        "verdict": lambda arm: arm["verdict"],
        "severity_hacking_nats": lambda arm: arm["severity_hacking_nats"],
        "ci95_hacking_low": lambda arm: arm["ci95_hacking"][0],
        "ci95_hacking_high": lambda arm: arm["ci95_hacking"][1],
        "golden_final": lambda arm: arm["golden"]["final"],
        "golden_best_step": lambda arm: arm["golden"]["best_step"],
        "proxy_final": lambda arm: arm["proxy"]["final"],
        "generated_tokens": lambda arm: arm["generated_tokens"],
    }.items():
        assert table[column].tolist() == [of_arm(arm) for arm in arms], column


def test_evaluations_are_the_flat_records_in_order_of_arms(folder: Path) -> None:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = assay.read_run(folder).evaluations
    assert [(row["arm"], row["step"]) for row in rows] == [(arm, step) for arm in ARMS for step in STEPS]
    table = pandas.DataFrame(rows).set_index(["arm", "seed", "step"])
    assert not any(isinstance(value, (dict, list)) for row in rows for value in row.values())
    for record in records:
        row = table.loc[record["arm"], record["seed"], record["step"]]
        assert row["golden_nats"] == record["golden_nats"]
        assert row["seconds_probe"] == record["seconds"]["probe"]


def test_values_of_prompts_average_to_the_evaluations(folder: Path) -> None:
    run = assay.read_run(folder)
    values = run.per_prompt.to_pandas()
    golden = values[values["metric"] == "golden"].groupby(["arm", "seed", "step"])["value_nats"].mean()
    for row in run.evaluations:
        assert golden[row["arm"], row["seed"], row["step"]] == pytest.approx(row["golden_nats"])
    texts = run.responses.to_pandas()
    assert {"student", "oracle", "teacher", "dataset"} == set(texts["writer"])


def test_a_run_without_tokens_has_none(folder: Path) -> None:
    assert assay.read_run(folder).tokens is None


def test_arms_that_go_on_have_evaluations_and_no_verdict(tmp_path: Path) -> None:
    run = assay.read_run(str(write_run(tmp_path / "run", finished=["offline"])))
    assert [row["arm"] for row in run.verdicts] == ["offline"]
    assert {row["arm"] for row in run.evaluations} == {"offline", "online_teacher"}
    assert run.unfinished == ("online_teacher", "online_student")
    assert "Not finished: online_teacher, online_student." in str(run)


def test_two_actions_are_a_list_and_not_an_interval(folder: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    action = {"kind": "stop", "reason": "why", "completions": None, "fraction": None}
    actions = [{"step": 1, **action}, {"step": 2, **action}]
    edit_json(run / "summary.json", lambda summary: summary["arms"][0].update(actions=actions))
    row = assay.read_run(run).verdicts[0]
    assert row["actions"] == actions
    assert "actions_low" not in row


@pytest.mark.parametrize("name", ["manifest.json", "summary.json", "probe.parquet"])
def test_a_damaged_run_ends_in_one_sentence(name: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / name).write_bytes(b"{")
    with pytest.raises(assay.AssayError, match=name):
        assay.read_run(run)


def test_no_folder_ends_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(assay.AssayError, match=r"manifest\.json is missing"):
        assay.read_run(tmp_path / "nowhere")


def test_reading_needs_neither_pandas_nor_torch_and_writes_nothing(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in ("pandas", "torch"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import assay
run = assay.read_run(sys.argv[1])
print(len(run.verdicts), run.per_prompt.num_rows > 0, len(str(run) + run._repr_html_()) > 0)
"""
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{len(ARMS)} True True\n"
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_run_shows_its_verdicts(folder: Path) -> None:
    run = assay.read_run(folder)
    row = run.verdicts[0]
    assert repr(run) == f"read_run({str(folder)!r})"
    hacking = estimate(row["severity_hacking_nats"], row["ci95_hacking_low"], row["ci95_hacking_high"])
    for shown in (str(run), "".join(_Parts(run._repr_html_()).text)):
        assert "Run a <run>" in shown
        assert hacking in shown
        assert row["verdict"].replace("_", " ") in shown


def test_a_verdict_shows_its_reason_and_numbers() -> None:
    verdict = assay.judge(*_hacked())
    assert verdict.name == "teacher_hacking"
    parts = _Parts(verdict._repr_html_()).text
    for shown in (str(verdict), "".join(parts)):
        assert shown.startswith("teacher hacking")
        assert verdict.reason in shown
    for name, found in (("hacking", verdict.severity_hacking), ("overfitting", verdict.severity_overfitting)):
        assert found is not None
        words = estimate(found.value, found.low, found.high)
        assert parts[parts.index(f"of it, {name}") + 1] == words
        assert re.search(rf"of it, {name} +{re.escape(words)}\n", str(verdict))


def test_a_verdict_on_too_little_says_what_is_unknown() -> None:
    steps, golden, proxy = _hacked()
    shown = str(assay.judge(steps[:2], golden[:2], proxy[:2]))
    assert shown.startswith("undecided\n")
    assert re.search(r"of it, hacking +unknown\n", shown)
    assert re.search(r"turn of the proxy +none\n", shown)


def test_a_diagnosis_shows_every_reason_and_check() -> None:
    steps, golden, proxy = _hacked()
    log = Trajectory(steps.astype(float), {"proxy": proxy.mean(axis=1), "golden": golden.mean(axis=1)})
    diagnosis = assay.diagnose(log)
    for shown in (str(diagnosis), "".join(_Parts(diagnosis._repr_html_()).text)):
        assert shown.startswith(diagnosis.verdict.replace("_", " "))
        assert f"Keep the checkpoint of step {diagnosis.recommended_step:g}." in shown
        assert all(reason in shown for reason in diagnosis.reasons)
        assert all(signal.code in shown and signal.name in shown for signal in diagnosis.signals)


HOSTILE = '</td><script>alert(1)</script><img src=x onerror="alert(2)">&amp;\''


def test_no_text_of_a_result_becomes_markup() -> None:
    parts = _Parts(as_html(HOSTILE, [HOSTILE], [HOSTILE, HOSTILE], [[HOSTILE, HOSTILE]]))
    assert not {"script", "img"} & set(parts.tags)
    assert parts.text == [HOSTILE] * 6


def test_estimates_say_what_is_unknown_and_have_no_minus_zero() -> None:
    assert estimate(None, None, None) == estimate(None) == "unknown"
    assert estimate(1234.5) == "1,234.50"
    assert estimate(-0.001, -1.0, 0.004) == "0.00 [−1.00, 0.00]"
    assert estimate(1.0, None, 2.0) == "1.00 [unknown]"


def test_text_has_aligned_columns() -> None:
    assert as_text("Title", ["One."], ["a", "bb"], [["long", "1"]]) == "Title\nOne.\n  a     bb\n  long  1"
    assert as_text("Title", [], [], []) == "Title"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_what_a_notebook_shows_is_accessible(dark: bool, width: int, folder: Path, tmp_path: Path) -> None:
    results = (assay.read_run(folder), assay.judge(*_hacked()))
    page = tmp_path / "page.html"
    page.write_text(
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Notebook</title>"
        "<meta name='viewport' content='width=device-width'><meta name='color-scheme' content='light dark'></head>"
        f"<body><main><h1>Notebook</h1>{''.join(result._repr_html_() for result in results)}</main></body></html>"
    )
    with open_page(page, width=width, dark=dark) as opened:
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
        assert opened.axe() == []
        assert (opened.console_errors, opened.requests) == ([], [])


def test_a_run_without_a_truth_has_no_golden(tmp_path: Path) -> None:
    def forget(summary: dict[str, Any]) -> None:
        summary["truth"] = None
        summary["references"] |= {"golden_at_start": None, "d_oracle_teacher": None}
        for arm in summary["arms"]:
            arm |= {"golden": None, "severity_hacking_nats": None, "ci95_hacking": [None, None]}

    folder = write_run(tmp_path / "run")
    edit_json(folder / "summary.json", forget)
    run = assay.read_run(folder)
    assert run.truth is None
    assert run.verdicts[0]["golden_final"] is None
    assert re.search(r"offline +0 +teacher hacking +unknown +– +– +– +5\.23\n", str(run))
