"""The report: what it draws, that it tells the truth about its files, and that it trusts none of their text."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.errors import AssayError
from assay.report import figures, html, responses, tables
from assay.report.html import write_report
from assay.report.words import meaning

STEPS = (0, 1, 2, 4, 8, 14, 23, 38, 62, 84, 140, 231, 380, 635, 900, 1200)
D_ORACLE_TEACHER, GOLDEN_AT_START, PROXY_AT_START = 13.68, 15.63, 6.03
ARMS = ("offline", "online_teacher", "online_student")
WORDS = ("a small animal", "the act of moving", "of or relating to", "someone who works", "a unit of length")


def shape(arm: str, step: int) -> tuple[float, float, float]:
    """Golden, proxy and train proxy as measured in the definitions world, roughly."""
    t = np.log1p(step) / np.log1p(1200)
    if arm == "offline":
        return (
            GOLDEN_AT_START + 2.4 * t**3,
            PROXY_AT_START - 2.2 * t + 1.4 * t**6,
            PROXY_AT_START - 5.7 * t**1.5,
        )
    hump = 0.45 * np.sin(np.pi * min(t * 1.15, 1.0)) ** 2
    golden, proxy = GOLDEN_AT_START + hump - 0.8 * t**5, PROXY_AT_START * (1 + step / 40) ** -0.29
    late = 0.06 * t * (arm == "online_student")
    return golden + late, proxy + late, proxy * (1 - 0.05 * t)


def write_run(
    directory: Path,
    arms: Iterable[str] = ARMS,
    finished: Iterable[str] | None = None,
    seed: int = 0,
    num_prompts: int = 48,
    steps: tuple[int, ...] = STEPS,
    prompt_text: Callable[[int], str] = lambda i: f"noun: word number {i}, thing:",
    response_text: str = "",
    config: dict[str, Any] | None = None,
    measure: Callable[[str, int], tuple[float, float, float]] = shape,
    sampled: Iterable[int] | None = None,
) -> Path:
    """A run directory as the pipeline leaves it, from closed-form curves and a seeded generator.

    ``sampled``: the steps at which students write, in the middle and at the ends by default.
    """
    arms = tuple(arms)
    finished = arms if finished is None else tuple(finished)
    directory.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    ids = [f"p{i:04d}" for i in range(num_prompts)]
    difficulty = rng.normal(0.0, 4.0, num_prompts)
    probe: list[dict[str, Any]] = []
    responses: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []

    def add_probe(arm: str, step: int, metric: str, values: np.ndarray) -> None:
        for prompt_id, value in zip(ids, values, strict=True):
            row = {"arm": arm, "seed": seed, "step": step, "metric": metric, "prompt_id": prompt_id}
            probe.append(row | {"value_nats": float(value), "num_tokens": 20})

    def add_response(arm: str, step: int, i: int, writer: str, text: str, split: str = "held_out") -> None:
        row = {"arm": arm, "seed": seed, "step": step, "prompt_id": ids[i], "prompt": prompt_text(i)}
        row |= {"split": split, "writer": writer, "text": text + response_text, "num_tokens": 12}
        responses.append(row | {"truncated": i == 1, "response_seed": i, "sampling_temperature": 1.0})

    add_probe("", 0, "d_oracle_teacher", D_ORACLE_TEACHER + difficulty - difficulty.mean())
    for i in range(min(8, num_prompts)):
        add_response("", 0, i, "teacher", "seen only in distillation", split="distillation")
        add_response("", 0, i, "student", "another draw at the start")
        for writer in ("dataset", "oracle", "teacher"):
            add_response("", 0, i, writer, f"{writer} writes {WORDS[i % 5]}")
    for number, arm in enumerate(arms):
        if arm not in finished and number > len(finished):
            continue
        levels = []
        for step in steps if arm in finished else steps[: len(steps) // 2]:
            golden, proxy, train = measure(arm, step)
            change = rng.normal(0.0, 3.0 * np.log1p(step) / 7, num_prompts)
            values = {
                "golden": golden + difficulty - difficulty.mean() + change - change.mean(),
                "proxy": proxy + 0.2 * (difficulty - difficulty.mean()) + change - change.mean(),
                "train_proxy": train + 0.1 * (difficulty - difficulty.mean()) + 0.5 * (change - change.mean()),
                "reference_nll": golden + 40 + difficulty,
                "kl_from_start": np.full(num_prompts, 0.4 * np.log1p(step)),
            }
            if arm in finished:
                for metric, per_prompt in values.items():
                    add_probe(arm, step, metric, per_prompt)
            levels.append((step, golden, proxy, train))
            record = {"arm": arm, "seed": seed, "step": step, "epoch": step * 64 / 256}
            record |= {f"{metric}_nats": float(v.mean()) for metric, v in values.items()}
            record |= {f"{m}_stderr": float(v.std(ddof=1) / num_prompts**0.5) for m, v in values.items()}
            record |= {
                "golden_nats_per_token": golden / 20,
                "proxy_nats_per_token": proxy / 20,
                "student_entropy_nats_per_token": 2.6 - (0.09 - 0.03 * number) * np.log1p(step),
                "teacher_entropy_nats_per_token": 2.4,
                "response_tokens_mean": 14 + 0.3 * np.log1p(step),
                "truncated_fraction": 0.05,
                "repetition_fraction": (0.002 + 0.004 * number) * np.log1p(step),
                "distinct_2": 0.8 - 0.02 * np.log1p(step),
                "train_loss_nats_per_token": None if step == 0 else train / 20,
                "learning_rate": 3e-4,
                "generated_tokens": 1000 * step,
                "teacher_tokens": 1200 * step,
                "seconds": {
                    "sample": 0.001 * step * (1 + 30 * (arm != "offline")),
                    "teacher": 0.01 * step,
                    "student": 0.035 * step,
                    "probe": 1.3 * len(levels),
                },
            }
            records.append(record)
            if step in ((0, 84, steps[-1]) if sampled is None else sampled):
                for i in range(min(8, num_prompts)):
                    own = "student at the start" if step == 0 else f"{arm} at {step}: {WORDS[(i + step) % 5]}"
                    add_response(arm, step, i, "student", own)
        if arm in finished:
            entries.append(summary_entry(arm, seed, levels))
    config = {"arms": [{"name": arm} for arm in arms], "seed": seed, "optimiser": {"learning_rate": 3e-4}} | (
        config or {}
    )
    manifest = {
        "schema": "assay.manifest/1",
        "recipe": "quickstart",
        "config": config,
        "config_hash": "9f2c1b7a55d0",
        "assay_version": "0.1.0",
        "versions": {"python": "3.11.7", "torch": "2.9.0"},
        "commit": "0123456789abcdef",
        "dirty": True,
        "digests": {"oracle": "ab12", "teacher_base": "cd34", "student_base": "ef56", "task": "0a1b"},
        "seed": seed,
        "hardware": {"processor": "two shared cores", "cores": 2, "memory_gib": 7.7},
        "started_at": "2026-11-22T17:00:00+00:00",
        "wall_seconds": 431.5,
        "stage_seconds": {"check_models": 2.0, "oracle_responses": 9.1, "sft": 61.2, "arms": 355.0, "report": 0.0},
        "status": "finished" if finished == arms else "running",
    }
    references = {
        "d_oracle_teacher": D_ORACLE_TEACHER,
        "golden_at_start": GOLDEN_AT_START,
        "proxy_at_start": PROXY_AT_START,
    }
    summary = {
        "schema": "assay.summary/1",
        "unit": "nats_per_sequence",
        "task": "define",
        "wall_seconds": 431.5,
    }
    summary |= {"references": references, "arms": entries}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    (directory / "summary.json").write_text(json.dumps(summary))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    pq.write_table(pa.Table.from_pylist(probe), directory / "probe.parquet")
    pq.write_table(pa.Table.from_pylist(responses), directory / "responses.parquet")
    return directory


def summary_entry(arm: str, seed: int, levels: list[tuple[int, float, float, float]]) -> dict[str, Any]:
    steps, golden, proxy, train = (np.array(column) for column in zip(*levels, strict=True))

    def level(values: np.ndarray) -> dict[str, Any]:
        best = int(values.argmin())
        return {
            "initial": float(values[0]),
            "best": float(values[best]),
            "best_step": int(steps[best]),
            "final": float(values[-1]),
            "final_stderr": 0.61,
        }

    severity = float(golden[-1] - golden.min())
    hacking = severity > 0.5
    return {
        "source": arm,
        "seed": seed,
        "verdict": "teacher_hacking" if hacking else "healthy",
        "reason": "golden rose by more than its paired noise while the held-out proxy fell",
        "severity_nats": severity,
        "ci95": [severity - 0.2, severity + 0.2],
        "severity_hacking_nats": severity * 0.8,
        "ci95_hacking": [severity * 0.8 - 0.2, severity * 0.8 + 0.2],
        "severity_overfitting_nats": severity * 0.2,
        "ci95_overfitting": [severity * 0.2 - 0.1, severity * 0.2 + 0.1],
        "smallest_detectable_nats": 0.14,
        "onset_step": 84 if hacking else None,
        "best_step": int(steps[golden.argmin()]),
        "golden": level(golden),
        "proxy": level(proxy),
        "train_proxy": {"final": float(train[-1])},
        "generated_tokens": 1_200_000,
        "teacher_tokens": 1_440_000,
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One finished run and the report made of it: (run directory, report directory)."""
    root = tmp_path_factory.mktemp("report")
    run = write_run(root / "quickstart")
    write_report([run], root / "out")
    return run, root / "out"


@pytest.fixture(scope="module")
def study(built: tuple[Path, Path]) -> tables.Study:
    return tables.read_study([built[0]])


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_probe(path: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    pq.write_table(pa.Table.from_pylist(change(pq.read_table(path).to_pylist())), path)


class Page(HTMLParser):
    """What a browser would make of a page: its tags, attributes, visible text, and whether tags balance."""

    VOID = frozenset({"meta", "br", "circle", "input", "line", "path", "polyline", "use", "rect"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.stack: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack, f"</{tag}> closes nothing"
        assert self.stack.pop() == tag
        self.text.append(" ")

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] not in ("style", "script"):
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())


def test_writes_a_page_and_for_every_figure_an_svg_and_a_table(built: tuple[Path, Path]) -> None:
    _, out = built
    names = set(figures.FIGURES) - {"judges"}  # these runs have none
    assert {path.name for path in (out / "figures").iterdir()} == {
        f"{n}.{kind}" for n in names for kind in ("svg", "png")
    }
    assert {path.name for path in (out / "tables").iterdir()} == {f"{name}.csv" for name in names | {"numbers"}}
    assert (out / "report.html").stat().st_size < 1_500_000
    for name in names:
        root = ElementTree.fromstring((out / "figures" / f"{name}.svg").read_text())
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert read_csv(out / "tables" / f"{name}.csv")
        assert matplotlib.image.imread(out / "figures" / f"{name}.png").shape[1] > 8 * 300


def test_page_is_balanced_and_loads_nothing(built: tuple[Path, Path]) -> None:
    _, out = built
    page = Page((out / "report.html").read_text())
    assert page.stack == []
    assert not {"img", "iframe", "object", "embed", "link", "base", "form"} & {tag for tag, _ in page.tags}
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    for tag, attrs in page.tags:
        assert not [key for key in attrs if key.startswith("on")]
        assert tag != "script" or attrs in ({}, {"type": "application/json", "id": "data"})
        for key in ("src", "href", "xlink:href"):
            target = attrs.get(key)
            if target is None:
                continue
            assert target[1:] in ids if target.startswith("#") else (tag == "a" and (out / target).is_file())
    text = (out / "report.html").read_text()
    assert not re.findall(r"url\((?!#)|@import|@font-face", text)
    assert all(reference in ids for reference in re.findall(r"url\(#([^)]*)\)", text))


def test_same_run_gives_the_same_bytes_without_torch(built: tuple[Path, Path], tmp_path: Path) -> None:
    run, out = built
    code = (
        "import sys; from pathlib import Path; from assay.report.html import write_report\n"
        "write_report([Path(sys.argv[1])], Path(sys.argv[2]))\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('torch', 'transformers')])"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", code, str(run), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert done.stdout.strip() == "[]"
    first = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    again = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert first == again


def test_figure_tables_hold_the_recorded_numbers(built: tuple[Path, Path]) -> None:
    run, out = built
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = {(row["arm"], int(row["step"])): row for row in read_csv(out / "tables" / "training_curves.csv")}
    assert len(rows) == len(records) == len(ARMS) * len(STEPS)
    for record in records:
        row = rows[record["arm"], record["step"]]
        for metric in tables.BANDED:
            assert float(row[f"{metric}_nats"]) == record[f"{metric}_nats"]


def test_theory_terms_differ_from_golden_by_the_constant_and_agree_when_the_teacher_is_the_truth(
    study: tables.Study, tmp_path: Path
) -> None:
    _, rows = figures.theory_terms(study)
    golden = {(curve.arm, row["step"]): row["golden_nats"] for curve in study.curves for row in curve.rows}
    for row in rows:
        assert row["oracle_term_nats"] + D_ORACLE_TEACHER == pytest.approx(golden[row["arm"], row["step"]], abs=1e-12)

    run = write_run(tmp_path / "control", ["offline"], measure=lambda arm, step: (6 - 0.4 * np.log1p(step),) * 3)
    edit_json(run / "summary.json", lambda value: value["references"].update(d_oracle_teacher=0.0))
    _, rows = figures.theory_terms(tables.read_study([run]))
    assert [row["oracle_term_nats"] for row in rows] == pytest.approx([row["proxy_nats"] for row in rows], abs=1e-12)


def probe_table(values_SP: np.ndarray, order: np.ndarray | None = None) -> pa.Table:
    rows = [
        {"arm": "a", "seed": 0, "step": 10 * s, "metric": "golden", "prompt_id": f"p{p}", "value_nats": float(value)}
        for s, per_prompt in enumerate(values_SP)
        for p, value in enumerate(per_prompt)
    ]
    return pa.Table.from_pylist([rows[i] for i in (range(len(rows)) if order is None else order)])


def test_paired_margin_is_students_t_times_the_error_of_the_change() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(4, 9))
    change = values - values[0]
    stderr = np.sqrt(((change - change.mean(axis=1, keepdims=True)) ** 2).sum(axis=1) / 8 / 9)
    expected = 2.306004135 * stderr  # the 97.5 % point of Student's t with 8 degrees of freedom
    found = tables.paired_margins(probe_table(values), "a", 0, "golden")
    assert list(found) == [0, 10, 20, 30]
    np.testing.assert_allclose(list(found.values()), expected, rtol=1e-8)
    assert found[0] == 0.0


def test_paired_margin_ignores_what_all_steps_share_and_the_order_of_rows() -> None:
    rng = np.random.default_rng(4)
    values = rng.normal(size=(4, 9))
    base = tables.paired_margins(probe_table(values), "a", 0, "golden")
    harder = tables.paired_margins(probe_table(values + 100 * rng.normal(size=9)), "a", 0, "golden")
    shifted = tables.paired_margins(probe_table(values + np.arange(4)[:, None]), "a", 0, "golden")
    shuffled = tables.paired_margins(probe_table(values, rng.permutation(36)), "a", 0, "golden")
    for other in (harder, shifted, shuffled):
        np.testing.assert_allclose(list(other.values()), list(base.values()), rtol=1e-9, atol=1e-12)
    uniform = tables.paired_margins(probe_table(np.zeros((4, 9)) + np.arange(4)[:, None]), "a", 0, "golden")
    assert set(uniform.values()) == {0.0}


def test_paired_margin_averages_responses_of_a_prompt_and_is_unknown_for_one_prompt() -> None:
    values = np.random.default_rng(5).normal(size=(3, 6))
    two_responses = pa.concat_tables([probe_table(values - 0.5), probe_table(values + 0.5)])
    found = tables.paired_margins(two_responses, "a", 0, "golden")
    expected = tables.paired_margins(probe_table(values), "a", 0, "golden")
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-9, atol=1e-12)
    assert all(
        np.isnan(value) for value in tables.paired_margins(probe_table(values[:, :1]), "a", 0, "golden").values()
    )


def test_step_zero_stands_at_the_left_edge_behind_a_break(study: tables.Study) -> None:
    figure, _ = figures.training_curves(study)
    for axes in figure.axes:
        curves = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == len(STEPS)]
        assert len(curves) == len(ARMS)
        ticks = dict(zip(axes.get_xticks(), [label.get_text() for label in axes.get_xticklabels()], strict=True))
        for x in curves:
            assert ticks[x[0]] == "0"
            assert axes.get_xlim()[0] < x[0] < x[1] == STEPS[1] * 64 / 256
            np.testing.assert_allclose(x[1:], np.array(STEPS[1:]) * 64 / 256)


def test_plane_draws_every_path_and_the_reference_lines(study: tables.Study) -> None:
    figure, _ = figures.proxy_golden_plane(study)
    (axes,) = figure.axes
    paths = [line.get_xydata() for line in axes.lines if len(line.get_xdata()) == len(STEPS)]
    for curve, path in zip(study.curves, paths, strict=True):
        np.testing.assert_array_equal(path, np.column_stack([curve["proxy_nats"], curve["golden_nats"]]))
    level = {tuple(line.get_ydata()) for line in axes.lines}
    assert {(D_ORACLE_TEACHER, D_ORACLE_TEACHER), (GOLDEN_AT_START, GOLDEN_AT_START)} <= level
    assert [PROXY_AT_START, PROXY_AT_START] in [list(line.get_xdata()) for line in axes.lines]


def test_bands_have_the_paired_width(study: tables.Study) -> None:
    figure, _ = figures.training_curves(study)
    golden = figure.axes[-1]
    for curve, band in zip(study.curves, golden.collections, strict=True):
        y = band.get_paths()[0].vertices[:, 1]
        half = curve.margins["golden"][-1]
        assert half > 0.05
        assert np.abs(y - (curve["golden_nats"][-1] + half)).min() < 1e-9
        assert np.abs(y - (curve["golden_nats"][-1] - half)).min() < 1e-9


def test_time_bars_add_up_to_the_last_record(study: tables.Study) -> None:
    figure, rows = figures.time_spent(study)
    ends = dict.fromkeys(ARMS, 0.0)
    for row in rows:
        if row["of"] == "arm":
            ends[row["name"]] += row["seconds"]
    for curve in study.curves:
        assert ends[curve.label] == pytest.approx(sum(curve.rows[-1]["seconds"].values()))
    drawn = max(patch.get_x() + patch.get_width() for patch in figure.axes[0].patches)
    assert drawn == pytest.approx(max(ends.values()))


def test_cards_say_verdict_severity_and_what_to_keep(built: tuple[Path, Path]) -> None:
    run, out = built
    words = Page((out / "report.html").read_text()).words
    offline = json.loads((run / "summary.json").read_text())["arms"][0]
    assert "1 of 3 arms hacked its teacher" in words
    assert meaning("teacher_hacking", "oracle") in words
    assert f"{offline['severity_nats']:.2f} nats" in words
    assert "95 % interval 2.20 to 2.60" in words
    assert "95 % interval −0.20 to 0.20" in words
    assert "step 0 , the start: no later checkpoint was closer to the truth" in words
    assert "step 1,200 , the lowest golden" in words
    assert "golden stays up after step 84" in words
    assert words.index("hacked its teacher") < words.index("What am I looking at?") < words.index("Figures")


def test_the_card_shows_the_last_word_of_the_detector_where_there_is_one(
    small: dict[str, bytes], built: tuple[Path, Path], tmp_path: Path
) -> None:
    """Runs of older versions have none; a score that is no number is refused by name."""
    assert "how likely golden has turned up" not in Page((built[1] / "report.html").read_text()).words
    records = [json.loads(line) for line in small["metrics.jsonl"].splitlines()]
    for score, number in ((0.25, 0), (0.875, len(records) - 1)):
        records[number]["detector_score"] = score
    lines = "".join(json.dumps(record) + "\n" for record in records)
    run = restore(tmp_path / "run", small | {"metrics.jsonl": lines.encode()})
    words = Page(write_report([run], tmp_path / "out").read_text()).words
    assert "score 0.88: how likely golden has turned up, judged without it" in words
    spoilt = restore(tmp_path / "spoilt", small | {"metrics.jsonl": lines.replace("0.875", '"high"').encode()})
    with pytest.raises(AssayError, match="detector_score"):
        write_report([spoilt], tmp_path / "other")


def test_shows_six_held_out_prompts_with_everyones_responses(built: tuple[Path, Path]) -> None:
    words = Page((built[1] / "report.html").read_text()).words
    samples = words[words.index("What they write") : words.index("The numbers")]
    assert re.findall(r"word number (\d)", samples) == list("012345")
    for writer in ("dataset", "oracle", "teacher"):
        assert samples.count(f"{writer} writes a small animal") == 2
    assert samples.count("student at the start") == 6
    assert "another draw" not in samples, "samples of an arm share their random numbers, so they go together"
    assert "offline at 1200" in samples
    assert "online_teacher at 1200" in samples
    assert "seen only in distillation" not in words


def test_a_best_step_without_stored_text_is_called_near(small: dict[str, bytes], tmp_path: Path) -> None:
    run = restore(tmp_path / "run", small)
    edit_json(run / "summary.json", lambda value: value["arms"][0].update(best_step=140))
    study = tables.read_study([run])
    cells = [cell for arm in responses.samples(study, study.runs[0])[0]["arms"] for cell in arm["cells"]]
    assert [(cell["who"], cell["note"]) for cell in cells] == [
        ("student, near the best", "step 84"),
        ("student, end", "step 1,200"),
    ]
    assert cells[0]["text"].startswith("offline at 84")


def test_provenance_is_complete(built: tuple[Path, Path]) -> None:
    words = Page((built[1] / "report.html").read_text()).words
    for fact in ("0123456789abcdef (with uncommitted changes)", "9f2c1b7a55d0", "2.9.0", "ab12", "two shared cores"):
        assert fact in words
    assert "assay run quickstart/manifest.json --out quickstart-again" in words
    assert '"learning_rate": 0.0003' in words
    assert "/quickstart" not in words, "paths of the machine do not belong into a page that people share"


HOSTILE = "</style></pre></text><script>alert(1)</script><img src=x onerror=alert(2)> $x^{$ ]]> --> &amp; \x00\x1b \"'"


def test_no_text_from_files_becomes_markup(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "hostile",
        [HOSTILE, "$\\frac$"],
        prompt_text=lambda i: f"{i} {HOSTILE}",
        response_text=HOSTILE,
        config={"note": HOSTILE, HOSTILE: [HOSTILE]},
    )
    edit_json(
        run / "manifest.json", lambda value: value.update(recipe=HOSTILE, commit=HOSTILE, hardware={HOSTILE: HOSTILE})
    )
    edit_json(run / "manifest.json", lambda value: value["stage_seconds"].update({HOSTILE: 3.0}))
    edit_json(run / "summary.json", lambda value: value.update(task=HOSTILE))
    edit_json(run / "summary.json", lambda value: value["arms"][0].update(reason=HOSTILE))
    text = write_report([run], tmp_path / "out").read_text()
    page = Page(text)
    assert page.stack == []
    tags = [tag for tag, _ in page.tags]
    assert "img" not in tags
    assert tags.count("script") == 1 + len(html.PAGE.scripts)
    assert not [key for _, attrs in page.tags for key in attrs if key.startswith("on")]
    assert page.words.count("<script>alert(1)</script>") > 20
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", text)
    for path in (tmp_path / "out" / "figures").glob("*.svg"):
        root = ElementTree.fromstring(path.read_text())
        tags = {element.tag.split("}")[1] for element in root.iter()}
        assert tags <= {"svg", "g", "defs", "style", "path", "use", "clipPath", "rect", "text", "tspan"}
    plane = "".join(ElementTree.fromstring((tmp_path / "out/figures/proxy_golden_plane.svg").read_text()).itertext())
    assert "$\\frac$" in plane


def test_a_run_that_is_still_going_says_which_arms_are_missing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "going", finished=["offline"])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"arm": "online_tea')
    text = write_report([run], tmp_path / "out").read_text()
    words = Page(text).words
    assert "going is still running; no verdict yet for online teacher (step 38), online student." in words
    assert "The finished arm hacked its teacher" in words
    assert "Step 38 so far" in words
    assert "No numbers of this arm yet" in words
    assert [row["arm"] for row in read_csv(tmp_path / "out/tables/numbers.csv")] == ["offline"]
    plane = read_csv(tmp_path / "out/tables/proxy_golden_plane.csv")
    assert {row["arm"] for row in plane} == {"offline", "online_teacher"}

    edit_json(run / "manifest.json", lambda value: value.update(status="finished"))
    with pytest.raises(AssayError, match=r"metrics\.jsonl breaks off"):
        write_report([run], tmp_path / "out")


def test_several_seeds_give_a_thin_line_each_and_their_mean(tmp_path: Path) -> None:
    runs = [
        write_run(
            tmp_path / f"seed{seed}",
            ["offline"],
            seed=seed,
            num_prompts=12,
            measure=lambda arm, step, seed=seed: tuple(value + seed for value in shape(arm, step)),
        )
        for seed in (0, 1, 5)
    ]
    study = tables.read_study(runs)
    assert study.labels == ("offline",)
    np.testing.assert_allclose(study.mean("offline", "golden_nats"), study.curves[0]["golden_nats"] + 2.0)
    figure, rows = figures.training_curves(study)
    lines = [line.get_ydata() for line in figure.axes[-1].lines if len(line.get_xdata()) == len(STEPS)]
    for drawn, curve in zip(lines[:3], study.curves, strict=True):
        np.testing.assert_array_equal(drawn, curve["golden_nats"])
    np.testing.assert_allclose(lines[3], study.mean("offline", "golden_nats"))
    assert not figure.axes[-1].collections, "no band where the seeds show the spread"
    assert {row["seed"] for row in rows} == {0, 1, 5}
    words = Page(write_report(runs, tmp_path / "out").read_text()).words
    assert "teacher hacking in 3 of 3 seeds" in words
    assert "seed 5 2.40 nats" in words

    edit_json(runs[2] / "summary.json", lambda value: value["arms"][0].update(verdict="undecided"))
    card = html.card(tables.read_study(runs), "offline", (15.0, 20.0))
    assert card["title"] == "seeds disagree: 2 teacher hacking, 1 undecided"
    assert card["meaning"] == ""


def test_mean_covers_only_the_steps_that_every_seed_has_reached(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "long", ["offline"], seed=0, num_prompts=4),
        write_run(tmp_path / "short", ["offline"], seed=1, num_prompts=4, steps=STEPS[:9]),
    ]
    study = tables.read_study(runs)
    np.testing.assert_array_equal(study.mean("offline", "step"), STEPS[:9])


def test_runs_of_different_configs_are_not_averaged(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / name, ["offline"], num_prompts=4, config={"num_prompts": count})
        for name, count in (("few", 128), ("many", 600))
    ]
    study = tables.read_study(runs)
    assert study.labels == ("offline (few)", "offline (many)")
    assert len({figures.slot(study, label) for label in study.labels}) == 2
    assert not study.has_replicates


def test_the_papers_sources_keep_their_colours_whatever_else_is_there(tmp_path: Path) -> None:
    few = tables.read_study([write_run(tmp_path / "few", ["online_student"], num_prompts=4)])
    names = ["mixture", "online_student", "another", "offline"]
    many = tables.read_study([write_run(tmp_path / "many", names, num_prompts=4)])
    assert figures.slot(few, "online_student") == figures.slot(many, "online_student")
    assert len({figures.slot(many, name) for name in names}) == len(names)

    crowd = [*names, *(f"arm {number}" for number in range(9))]
    figure, _ = figures.convergence(tables.read_study([write_run(tmp_path / "crowd", crowd, num_prompts=4)]))
    looks = {(line.get_color(), line.get_marker()) for line in figure.axes[0].lines}
    assert len(looks) == len(crowd), "every arm has a colour or a marker of its own"


def test_unknown_numbers_are_dashes_and_gaps(tmp_path: Path) -> None:
    run = write_run(tmp_path / "unknown", ["offline"], num_prompts=2)
    # One prompt left: a spread over prompts is unknown then, and no band can be drawn.
    edit_probe(run / "probe.parquet", lambda rows: [row for row in rows if row["prompt_id"] == "p0000"])

    def forget(value: Any) -> None:
        value["arms"][0].update(severity_nats=None, ci95=[None, None], verdict="undecided", onset_step=None)
        value["arms"][0]["golden"].update(final_stderr=None)

    edit_json(run / "summary.json", forget)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.update(truncated_fraction=None, teacher_entropy_nats_per_token=None, seconds={})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = Page(write_report([run], tmp_path / "out").read_text()).words
    assert "– nats" in words
    assert "95 % interval unknown" in words
    assert "± –" in words
    assert {row["truncated_fraction"] for row in read_csv(tmp_path / "out/tables/degeneration.csv")} == {""}


def test_numbers_table_is_flat_and_keeps_full_precision(built: tuple[Path, Path]) -> None:
    run, out = built
    entries = json.loads((run / "summary.json").read_text())["arms"]
    for row, entry in zip(read_csv(out / "tables" / "numbers.csv"), entries, strict=True):
        assert row["arm"] == entry["source"]
        assert float(row["golden_final"]) == entry["golden"]["final"]
        assert [float(row["ci95_low"]), float(row["ci95_high"])] == entry["ci95"]
        assert row["onset_step"] == ("" if entry["onset_step"] is None else str(entry["onset_step"]))


FILES = ("manifest.json", "summary.json", "metrics.jsonl", "probe.parquet", "responses.parquet")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    run = write_run(tmp_path_factory.mktemp("small") / "run", ["offline"], num_prompts=4)
    return {name: (run / name).read_bytes() for name in FILES}


def restore(directory: Path, files: dict[str, bytes]) -> Path:
    directory.mkdir()
    for name, data in files.items():
        (directory / name).write_bytes(data)
    return directory


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name: str, small: dict[str, bytes], tmp_path: Path) -> None:
    run = restore(tmp_path / "run", {key: data for key, data in small.items() if key != name})
    with pytest.raises(AssayError, match=rf"{re.escape(name)} is missing"):
        write_report([run], tmp_path / "out")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [b"", b"\xff\xfenot a record\n", b"[]\n"])
def test_a_damaged_file_is_named(name: str, damage: bytes, small: dict[str, bytes], tmp_path: Path) -> None:
    run = restore(tmp_path / "run", small | {name: damage})
    with pytest.raises(AssayError, match=re.escape(name)) as caught:
        write_report([run], tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("manifest.json", lambda v: v.update(schema="assay.manifest/2"), "manifest/2"),
        ("manifest.json", lambda v: v.pop("versions"), "lacks 'versions'"),
        ("manifest.json", lambda v: v["config"].pop("arms"), "lacks 'arms'"),
        ("manifest.json", lambda v: v["stage_seconds"].update(arms="long"), "should be int or float"),
        ("summary.json", lambda v: v.update(unit="nats_per_token"), "nats_per_token"),
        ("summary.json", lambda v: v.update(arms=[]), "no arm of .* has finished yet"),
        ("summary.json", lambda v: v["arms"][0].update(verdict="helthy"), "did you mean 'healthy'"),
        ("summary.json", lambda v: v["arms"][0].update(ci95=[0.0]), "'ci95'"),
        ("summary.json", lambda v: v["arms"][0].update(severity_nats="<b>"), "'severity_nats'"),
        ("summary.json", lambda v: v["arms"][0].update(source="online"), "do not belong together"),
        ("summary.json", lambda v: v["references"].pop("d_oracle_teacher"), "lacks 'd_oracle_teacher'"),
    ],
)
def test_a_wrong_value_is_explained(
    name: str, change: Callable[[Any], None], message: str, small: dict[str, bytes], tmp_path: Path
) -> None:
    run = restore(tmp_path / "run", small)
    edit_json(run / name, change)
    with pytest.raises(AssayError, match=message):
        write_report([run], tmp_path / "out")


def test_a_probe_that_does_not_fit_is_refused(small: dict[str, bytes], tmp_path: Path) -> None:
    changes: dict[str, Callable[[dict[str, Any]], bool]] = {
        "change along arm": lambda row: not (row["prompt_id"] == "p0002" and row["step"] == 84),
        "has no 'train_proxy'": lambda row: row["metric"] != "train_proxy",
    }
    for number, (message, keep) in enumerate(changes.items()):
        run = restore(tmp_path / f"run{number}", small)
        edit_probe(run / "probe.parquet", lambda rows, keep=keep: [row for row in rows if keep(row)])
        with pytest.raises(AssayError, match=message):
            tables.read_study([run])


def test_what_cannot_be_reported_is_refused(small: dict[str, bytes], tmp_path: Path) -> None:
    run = restore(tmp_path / "run", small)
    with pytest.raises(AssayError, match="no run directory"):
        write_report([], tmp_path / "out")
    with pytest.raises(AssayError, match="repeats seed 0 of 'offline'"):
        write_report([run, run], tmp_path / "out")
    with pytest.raises(AssayError, match="cannot write"):
        write_report([run], run / "manifest.json")
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(small["metrics.jsonl"].splitlines(keepends=True)[3])
    with pytest.raises(AssayError, match="two evaluations of 'offline' at the same step"):
        write_report([run], tmp_path / "out")


def test_a_report_that_fails_leaves_the_old_one_whole(
    built: tuple[Path, Path], small: dict[str, bytes], tmp_path: Path
) -> None:
    _, out = built
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert not [path for path in before if path.name.startswith(".")], "temporary files are gone"
    run = restore(tmp_path / "run", small | {"responses.parquet": small["responses.parquet"][:100]})
    with pytest.raises(AssayError, match=r"responses\.parquet"):
        write_report([run], out)

    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.234, "1.23"), (-0.5, "−0.50"), (-0.001, "0.00"), (None, "–"), (float("nan"), "–"), (float("inf"), "–")],
)
def test_nats_never_show_a_number_that_is_not_known(value: float | None, text: str) -> None:
    assert html.nats(value) == text


def test_durations_read_like_speech() -> None:
    assert [html.duration(s) for s in (9.04, 59.96, 61, 3_725)] == ["9.0 s", "60.0 s", "1 min 1 s", "1 h 2 min"]


LOOP = "a link to itself"


def put(run: Path, name: str, what: str) -> None:
    (run / name).unlink()
    if what == LOOP:
        (run / name).symlink_to(name)
    else:
        (run / name).mkdir()


@pytest.mark.parametrize("what", ["a folder", LOOP])
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_is_named(name: str, what: str, small: dict[str, bytes], tmp_path: Path) -> None:
    run = restore(tmp_path / "run", small)
    put(run, name, what)
    with pytest.raises(AssayError, match=rf"cannot read .*{re.escape(name)}"):
        tables.read_run(run)


def test_a_run_folder_that_is_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(AssayError, match="loop"):
        tables.read_study([tmp_path / "loop"])


@pytest.mark.parametrize("name", FILES[:3])
@pytest.mark.parametrize("depth", [100_000, 100])
def test_json_without_a_bottom_is_refused(name: str, depth: int, small: dict[str, bytes], tmp_path: Path) -> None:
    run = restore(tmp_path / "run", small | {name: b"[" * depth + b"]" * depth + b"\n"})
    with pytest.raises(AssayError, match=rf"{re.escape(name)} is nested"):
        tables.read_run(run)


@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "NaN", "1e999", str(2**63), str(-(10**30)), "1e300"])
@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("manifest.json", "wall_seconds"),
        ("manifest.json", "seed"),
        ("manifest.json", "arms"),
        ("summary.json", "severity_nats"),
        ("summary.json", "d_oracle_teacher"),
        ("metrics.jsonl", "golden_nats"),
        ("metrics.jsonl", "step"),
        ("metrics.jsonl", "epoch"),
        ("metrics.jsonl", "probe"),
    ],
)
def test_numbers_that_no_run_has_are_refused(
    name: str, key: str, number: str, small: dict[str, bytes], tmp_path: Path
) -> None:
    text, count = re.subn(rf'"{key}": -?[\d.e-]+', f'"{key}": {number}', small[name].decode())
    assert count
    run = restore(tmp_path / "run", small | {name: text.encode()})
    with pytest.raises(AssayError, match=rf"'{key}' of .*repeat the command that made the run"):
        tables.read_run(run)


@pytest.mark.parametrize("value", [None, float("inf"), float("nan"), 1e300])
def test_a_probe_without_numbers_is_refused(value: float | None, small: dict[str, bytes], tmp_path: Path) -> None:
    run = restore(tmp_path / "run", small)
    edit_probe(run / "probe.parquet", lambda rows: [rows[0] | {"value_nats": value}, *rows[1:]])
    with pytest.raises(AssayError, match=r"'value_nats' of .*probe\.parquet"):
        tables.read_run(run)


@pytest.mark.parametrize("column", ["text", "prompt", "truncated", "writer"])
def test_nulls_in_responses_are_refused(column: str, small: dict[str, bytes], tmp_path: Path) -> None:
    run = restore(tmp_path / "run", small)
    edit_probe(run / "responses.parquet", lambda rows: [rows[0] | {column: None}, *rows[1:]])
    with pytest.raises(AssayError, match=rf"'{column}' of .*responses\.parquet holds nulls"):
        tables.read_run(run)


def test_text_that_is_not_utf8_is_refused(small: dict[str, bytes], tmp_path: Path) -> None:
    run = restore(tmp_path / "run", small)
    table = pq.read_table(run / "responses.parquet")
    raw = pa.array([b"\xed\xa0\x80"] * len(table)).view(pa.string())
    pq.write_table(table.set_column(table.schema.get_field_index("text"), "text", raw), run / "responses.parquet")
    with pytest.raises(AssayError, match=r"responses\.parquet is not the table expected"):
        tables.read_run(run)


def test_without_responses_the_page_has_no_samples(small: dict[str, bytes], tmp_path: Path) -> None:
    run = restore(tmp_path / "run", small)
    pq.write_table(pq.read_table(run / "responses.parquet").slice(0, 0), run / "responses.parquet")
    words = Page(write_report([run], tmp_path / "out").read_text()).words
    assert "What they write" not in words
    assert "answers are cut" not in words


def test_halves_of_surrogate_pairs_and_extreme_values_leave_a_page_that_opens(tmp_path: Path) -> None:
    half = "\ud800\ufffe"
    run = write_run(tmp_path / "half", ["\ufffearm"], num_prompts=4)
    change: dict[str, Any] = {"recipe": half, "commit": half, "hardware": {half: half}}
    edit_json(run / "manifest.json", lambda value: value["config"].update({half: [half]}))
    edit_json(run / "manifest.json", lambda value: value.update(change))
    edit_json(run / "manifest.json", lambda value: value["stage_seconds"].update({half + "\0": 3.0, "long": 9e18}))
    edit_json(run / "summary.json", lambda value: value.update(task=half))
    edit_json(run / "summary.json", lambda value: value["arms"][0].update(reason=half, unknown=[1, 2, half]))
    words = Page(write_report([run], tmp_path / "out").read_text(encoding="utf-8")).words
    assert words.count("��") > 5
    for path in (tmp_path / "out" / "figures").glob("*.svg"):
        ElementTree.fromstring(path.read_text(encoding="utf-8"))
    assert {row["arm"] for row in read_csv(tmp_path / "out/tables/numbers.csv")} == {"�arm"}


def test_an_arm_that_no_table_can_name_is_refused(small: dict[str, bytes], tmp_path: Path) -> None:
    run = restore(tmp_path / "run", small)
    edit_json(run / "manifest.json", lambda value: value["config"]["arms"].append({"name": "\ud800"}))
    with pytest.raises(AssayError, match="which UTF-8 cannot hold"):
        tables.read_run(run)


@pytest.mark.parametrize("place", ["report.html", "tables/numbers.csv", "figures/time_spent.svg"])
def test_a_folder_where_a_file_should_go_is_left_alone(place: str, small: dict[str, bytes], tmp_path: Path) -> None:
    run, out = restore(tmp_path / "run", small), tmp_path / "out"
    (out / place).mkdir(parents=True)
    (out / place / "precious").write_text("mine")
    with pytest.raises(AssayError, match="it is a folder"):
        write_report([run], out)
    assert [path for path in out.rglob("*") if path.is_file()] == [out / place / "precious"]


def test_a_file_where_a_folder_should_go_is_left_alone(small: dict[str, bytes], tmp_path: Path) -> None:
    run, out = restore(tmp_path / "run", small), tmp_path / "out"
    out.mkdir()
    (out / "figures").write_text("mine")
    with pytest.raises(AssayError, match="cannot write in"):
        write_report([run], out)
    assert list(out.iterdir()) == [out / "figures"]


def test_comparisons_are_sentences_and_may_be_absent(small: dict[str, bytes], tmp_path: Path) -> None:
    run = restore(tmp_path / "run", small)
    study = tables.read_study([run])
    assert html.comparisons(study) == []
    pair: dict[str, Any] = {
        "arm": "offline",
        "online_arm": "online_teacher",
        "golden_final_minus_online_nats": 2.05,
        "ci95_golden_final_minus_online": [1.85, 2.25],
    }
    better = pair | {"golden_final_minus_online_nats": -0.3, "ci95_golden_final_minus_online": [-0.5, 0.1]}
    excess = pair | {"excess_hacking_nats": 1.6, "ci95_excess_hacking": [1.2, 2.0]}
    edit_json(run / "summary.json", lambda value: value.update(comparisons=[pair, better, excess]))
    words = Page(write_report([run], tmp_path / "out").read_text()).words
    above = "offline ends 2.05 nats of golden above online teacher (paired 95 % interval 1.85 to 2.25)"
    assert f"{above}. offline ends 0.30 nats of golden below online teacher" in words
    assert "below online teacher (paired 95 % interval −0.10 to 0.50)." in words
    assert f"{above}; its hacking in excess of what golden did there: 1.60 [1.20, 2.00]." in words
    assert words.index(above) < words.index("What am I looking at?")

    edit_json(run / "summary.json", lambda value: value["comparisons"][2].pop("ci95_excess_hacking"))
    with pytest.raises(AssayError, match="an excess without its interval"):
        tables.read_run(run)
    edit_json(run / "summary.json", lambda value: value.update(comparisons=[{"arm": "offline"}]))
    with pytest.raises(AssayError, match="lacks 'online_arm'"):
        tables.read_run(run)


def test_says_how_many_of_the_oracles_answers_are_cut(built: tuple[Path, Path], tmp_path: Path) -> None:
    words = Page((built[1] / "report.html").read_text()).words
    # One of the eight oracle responses; students' and teachers' cut responses do not count.
    assert "12 % of the oracle's answers are cut at 12 tokens: distances are per response up to that limit." in words
    run = write_run(tmp_path / "whole", ["offline"], num_prompts=4)
    edit_probe(
        run / "responses.parquet",
        lambda rows: [row | {"truncated": row["truncated"] and row["writer"] != "oracle"} for row in rows],
    )
    assert html.cut_responses(tables.read_study([run])) == ""


@pytest.mark.parametrize("epochs", [(5e-324, 9e18), (0.0, 0.0), (-1.0, 1e-300)])
def test_an_axis_of_damaged_epochs_can_be_drawn(
    epochs: tuple[float, float], small: dict[str, bytes], tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in small["metrics.jsonl"].splitlines()]
    text = "".join(json.dumps(line | {"epoch": epochs[i % 2]}) + "\n" for i, line in enumerate(lines))
    run = restore(tmp_path / "run", small | {"metrics.jsonl": text.encode()})
    svg, _, _ = figures.draw("training_curves", tables.read_study([run]))
    assert ElementTree.fromstring(svg).tag.endswith("svg")
