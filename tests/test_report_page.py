"""What the interactive report embeds: the numbers of its files, the detector's evidence, and what to do next."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.diagnostics.detector import diagnose
from assay.integrations.logs import read_log
from assay.report import evidence, page_data, responses, schedule
from assay.report.assets import Assets, embed
from assay.report.figures import FIGURES
from assay.report.next_steps import NextStep, next_steps
from assay.report.tables import Study, read_study
from assay.token_table import TOKENS_SCHEMA
from test_report import ARMS, D_ORACLE_TEACHER, STEPS, shape, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("page_data") / "run", sampled=STEPS)


@pytest.fixture(scope="module")
def study(run: Path) -> Study:
    return read_study([run])


def edited(run: Path, name: str, change: Callable[[Any], None], folder: Path) -> Study:
    """The study of a copy of the run with one JSON file changed."""
    folder.mkdir()
    for file in run.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    value = json.loads((folder / name).read_text())
    change(value)
    (folder / name).write_text(json.dumps(value))
    return read_study([folder])


def test_embedded_json_can_neither_end_its_element_nor_hold_what_is_no_number() -> None:
    nasty = "</script><!--&\u2028\u2029\x00\ud800"
    text = str(embed({nasty: [nasty, 1.5, None, True]}))
    assert not set("<>&\u2028\u2029\x00") & set(text)
    text.encode("utf-8")
    (key,) = json.loads(text)
    assert key == "</script><!--&\u2028\u2029␀�"
    assert json.loads(text)[key] == [key, 1.5, None, True]
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            embed([value])


def test_the_policy_is_the_hashes_of_the_scripts_alone() -> None:
    assets = Assets()
    for text in assets.script_texts:
        digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()
        assert f"'sha256-{digest}'" in assets.policy
    assert Assets(scripts=()).policy == "default-src 'none'; script-src 'none'; style-src 'unsafe-inline'"


def test_panels_hold_the_recorded_numbers_and_their_margins(study: Study) -> None:
    panels = page_data.page_data(study)["figures"]["training_curves"]["panels"]
    assert [panel["title"] for panel in panels] == ["train proxy", "held-out proxy", "golden"]
    golden = panels[2]
    assert golden["x"] == list(STEPS)
    assert {"label": "d(oracle, teacher)", "value": D_ORACLE_TEACHER} in golden["levels"]
    for curve, line in zip(study.curves, golden["series"], strict=True):
        assert (line["label"], line["seed"]) == (curve.label, 0)
        np.testing.assert_allclose(line["values"], curve["golden_nats"], rtol=1e-5)
        np.testing.assert_allclose(line["low"], curve["golden_nats"] - curve.margins["golden"], rtol=1e-5)
        np.testing.assert_allclose(line["high"], curve["golden_nats"] + curve.margins["golden"], rtol=1e-5)
    assert [line["onset"] for line in golden["series"]] == [84, None, None]


def test_every_figure_but_the_bars_has_an_interactive_twin(study: Study) -> None:
    drawn = set(page_data.page_data(study)["figures"]) | {"convergence"}
    assert drawn == {name for name, spec in FIGURES.items() if spec.fits(study)} - {"time_spent"}


def test_seeds_have_a_mean_with_students_interval_and_gaps_are_null(tmp_path: Path) -> None:
    def measure(seed: int) -> Callable[[str, int], tuple[float, float, float]]:
        return lambda arm, step: tuple(value + seed for value in shape(arm, step))

    lengths = {0: STEPS, 1: STEPS[:9], 5: STEPS}
    runs = [
        write_run(tmp_path / f"{seed}", ["offline"], seed=seed, num_prompts=4, steps=steps, measure=measure(seed))
        for seed, steps in lengths.items()
    ]
    data = page_data.page_data(read_study(runs))
    assert data["seeds"] == [0, 1, 5]
    lines = data["figures"]["training_curves"]["panels"][2]["series"]
    assert [line["seed"] for line in lines] == [0, 1, 5, None]
    assert lines[1]["values"][9:] == [None] * (len(STEPS) - 9)
    assert lines[0]["low"] is None, "where seeds show the spread, no band over prompts"
    mean = lines[3]
    at = shape("offline", STEPS[4])[0]
    assert mean["values"][4] == pytest.approx(at + 2, rel=1e-5)
    # 4.302653 is the 97.5 % point of Student's t with 2 degrees of freedom; the seeds lie 0, 1 and 5 above
    assert mean["high"][4] - mean["values"][4] == pytest.approx(4.302653 * 7**0.5 / 3**0.5, rel=1e-4)
    assert mean["values"][9:] == [None] * (len(STEPS) - 9)


def test_epochs_are_left_out_where_arms_differ_in_them(run: Path, study: Study, tmp_path: Path) -> None:
    assert page_data.page_data(study)["epochs"] == [step * 64 / 256 for step in STEPS]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines[3]["epoch"] += 1
    folder = tmp_path / "run"
    folder.mkdir()
    for file in run.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert page_data.page_data(read_study([folder]))["epochs"] is None


def test_the_evidence_is_what_assay_diagnose_says_without_golden(run: Path, study: Study) -> None:
    for found in evidence.examine(study):
        log = read_log(run, columns={"golden": "none"}, arm=found.curve.arm).trajectory
        expected = diagnose(log)
        assert found.diagnosis is not None
        assert found.diagnosis.verdict == expected.verdict
        assert found.diagnosis.score == expected.score
        assert found.diagnosis.recommended_step == expected.recommended_step
        assert [vars(signal) for signal in found.diagnosis.signals] == [vars(signal) for signal in expected.signals]
        if expected.law is not None:
            assert found.diagnosis.law is not None
            assert found.diagnosis.law.parameters() == expected.law.parameters()


def test_a_law_panel_shows_the_proxy_and_the_fitted_law_with_its_band(study: Study) -> None:
    found = evidence.examine(study)
    panels = {panel["title"]: panel for panel in evidence.law_panels(study, found)}
    online = next(each for each in found if each.curve.label == "online_teacher")
    assert online.diagnosis is not None
    law = online.diagnosis.law
    assert law is not None
    panel = panels["online teacher"]
    proxy, fitted = panel["series"]
    np.testing.assert_allclose(proxy["values"], online.curve["proxy_nats"], rtol=1e-5)
    steps = np.array(STEPS[1:], dtype=float)
    np.testing.assert_allclose(fitted["values"][1:], law.at(steps), rtol=1e-5)
    np.testing.assert_allclose(fitted["high"][1:], law.band(steps)[1], rtol=1e-5)
    assert panel["spans"] == []
    assert "b = 0.29" in panel["note"]
    assert "alarm at 20" in panel["note"]


def test_what_the_law_was_not_fitted_to_is_shaded(tmp_path: Path) -> None:
    def measure(arm: str, step: int) -> tuple[float, float, float]:
        lawful = 6 * (1 + step / 40) ** -0.29
        late = max(0.0, np.log((step + 1) / 400))
        return 15 - 0.1 * np.log1p(step) + late, lawful + 4 * late, 6 * (1 + step / 8) ** -0.7

    study = read_study([write_run(tmp_path / "run", ["offline"], measure=measure, num_prompts=100)])
    (found,) = evidence.examine(study)
    assert found.diagnosis is not None
    assert found.diagnosis.law is not None
    last = found.diagnosis.law.last_step
    assert last < STEPS[-1]
    (panel,) = evidence.law_panels(study, [found])
    assert panel["spans"] == [{"from": last, "to": STEPS[-1]}]
    assert "The proxy has left its law upwards" in panel["note"]


def test_a_curve_that_nobody_can_diagnose_says_so(tmp_path: Path) -> None:
    study = read_study([write_run(tmp_path / "short", ["offline"], steps=(0,), num_prompts=4)])
    found = evidence.examine(study)
    assert [each.diagnosis for each in found] == [None]
    assert "too short" in evidence.law_panels(study, found)[0]["note"]
    assert "too short" in evidence.detector_row(study, found)[0]
    assert {row["cells"][0]["status"] for row in evidence.checks_table(study, found)} == {"not_applicable"}


def test_checks_are_counted_over_seeds_and_name_who_fails(study: Study, tmp_path: Path) -> None:
    rows = evidence.checks_table(study, evidence.examine(study))
    transfer = next(row for row in rows if row["code"] == "AS004")
    assert [cell["status"] for cell in transfer["cells"]] == ["fail", "pass", "pass"]
    assert transfer["failing"] == ["offline"]
    assert "fails above" in transfer["cells"][0]["title"]
    runs = [write_run(tmp_path / f"{seed}", ["offline"], seed=seed, num_prompts=4) for seed in (0, 1)]
    several = read_study(runs)
    rows = evidence.checks_table(several, evidence.examine(several))
    assert next(row for row in rows if row["code"] == "AS004")["cells"][0]["text"] == "fails 2 of 2"


def titles(steps: list[NextStep]) -> list[str]:
    return [step.title for step in steps]


def test_what_to_do_next_begins_with_the_student_closest_to_the_truth(run: Path, study: Study, tmp_path: Path) -> None:
    steps = next_steps(study)
    assert steps[0].title == "Take the student of online teacher"
    assert steps[0].paste == "arms/online_teacher/student"
    assert steps[1].paste == "assay run run/manifest.json --policy auto --out run-auto"
    again = "assay run run/manifest.json --seed 1 --out run-seed1 && assay report run run-seed1 --out run-seeds"
    assert steps[2].paste == again
    assert len(steps) == 4

    def spoil(value: Any) -> None:
        for arm in value["arms"]:
            arm.update(verdict="teacher_hacking")
            arm["golden"]["best"] -= {"online_student": 5, "online_teacher": 0, "offline": 1}[arm["source"]]

    first = next_steps(edited(run, "summary.json", spoil, tmp_path / "spoilt"))[0]
    assert first.title == "Take step 1,200 of online student, not its last student"
    assert first.paste == "arms/online_student/best"


def test_what_to_do_next_depends_on_what_happened(run: Path, tmp_path: Path) -> None:
    def verdicts(name: str) -> Callable[[Any], None]:
        return lambda value: [arm.update(verdict=name) for arm in value["arms"]]

    healthy = next_steps(edited(run, "summary.json", verdicts("healthy"), tmp_path / "healthy"))
    assert "Let the run act on an alarm" not in titles(healthy)
    undecided = edited(run, "summary.json", verdicts("undecided"), tmp_path / "undecided")
    undecided.runs[0].manifest["config"]["probe"] = {"num_prompts": 48}
    more = next(step for step in next_steps(undecided) if step.title == "Measure on more prompts")
    assert more.paste == "assay run undecided/manifest.json --probe.num-prompts 96 --out undecided-more-prompts"

    policy = edited(
        run, "manifest.json", lambda value: value["config"]["arms"][0].update(policy="stop"), tmp_path / "p"
    )
    assert "Let the run act on an alarm" not in titles(next_steps(policy))
    own = edited(run, "manifest.json", lambda value: value.update(recipe="lab"), tmp_path / "own world")
    steps = next_steps(own)
    assert "Do it with your own models" not in titles(steps)
    assert steps[1].paste == "assay run 'own world/manifest.json' --policy auto --out 'own world-auto'"


def test_bars_add_up_and_busy_shares_are_those_of_the_stages(run: Path, tmp_path: Path) -> None:
    workers = {
        "sft": {"available": 20.0, "busy": 15.0, "cpu": 14.0},
        "arms": {"available": 0.0, "busy": 0.0, "cpu": 0.0},
    }
    study = edited(
        run, "manifest.json", lambda value: value.update(num_workers=2, worker_seconds=workers), tmp_path / "busy"
    )
    bars = schedule.time_bars(study)
    for row, curve in zip(bars["rows"], study.curves, strict=False):
        assert row["seconds"] == pytest.approx(sum(curve.rows[-1]["seconds"].values()))
        assert sum(part["seconds"] for part in row["parts"]) == pytest.approx(row["seconds"])
    assert max(sum(part["percent"] for part in row["parts"]) for row in bars["rows"]) == pytest.approx(100)
    assert bars["busy"] == [{"run": "", "workers": 2, "stages": {"SFT of teacher and student": 75.0}}]


def test_responses_are_there_for_every_step_until_the_page_would_be_too_large(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = responses.responses_by_step(study)
    assert found["num_left_out"] == 0
    assert len(found["prompts"]) == responses.NUM_SAMPLE_PROMPTS
    block = found["prompts"][0]
    assert [each["who"] for each in block["fixed"]] == ["reference", "oracle", "teacher"]
    for arm in block["arms"]:
        assert arm["steps"] == list(STEPS)
        assert arm["texts"][5].startswith(f"{arm['label']} at {STEPS[5]}")
        assert "tokens" not in arm
    assert [block["cut"] for block in found["prompts"][1]["arms"]] == [[True] * len(STEPS)] * 3

    monkeypatch.setattr(responses, "MAX_PAGE_CHARACTERS", 9_000)
    fewer = responses.responses_by_step(study)
    kept = fewer["prompts"][0]["arms"][0]["steps"]
    assert (kept[0], kept[-1]) == (0, STEPS[-1])
    assert len(kept) + fewer["num_left_out"] == len(STEPS)
    assert len(json.dumps(fewer["prompts"])) < 12_000


def test_token_lists_are_hundredths_and_a_model_that_is_unknown_is_left_out(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    folder.mkdir()
    for file in run.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    rows = [
        {"arm": "offline", "seed": 0, "step": 84, "prompt_id": "p0000", "writer": writer, "position": position,
         "token": f" t{position}", "log_prob_student": -1.0 - position, "log_prob_teacher": -2.0,
         "log_prob_oracle": None}
        for writer in ("student", "dataset")
        for position in range(3)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, TOKENS_SCHEMA), folder / "tokens.parquet")
    block = responses.responses_by_step(read_study([folder]))["prompts"][0]
    offline, teacher = block["arms"][:2]
    assert teacher["label"] == ARMS[1]
    assert "tokens" not in teacher
    at = offline["steps"].index(84)
    assert offline["tokens"][at] == {"texts": [" t0", " t1", " t2"], "num_more": 0, "teacher": [-100, 0, 100]}
    assert offline["tokens"][at - 1] is None
    assert offline["fixed"] == {"dataset": [[-100, -200, -300] if i == at else None for i in range(len(STEPS))]}
    reference = block["fixed"][0]
    assert (reference["writer"], reference["tokens"]["teacher"]) == ("dataset", [-200, -200, -200])
    assert "oracle" not in reference["tokens"]
