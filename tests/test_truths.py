"""The table of what follows golden: known lags and turns are found, and the committed files are whole."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from assay.evaluation import evaluation_steps

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import following  # noqa: E402
import truths  # noqa: E402
import truths_judges  # noqa: E402

STEPS = np.array(evaluation_steps(300, 14), dtype=float)


def valley(turn: float, steps: np.ndarray = STEPS) -> np.ndarray:
    """Falls until a step and rises after it, smoothly over log-steps."""
    return (np.log2(steps + 1) - math.log2(turn + 1)) ** 2


def curves(name: str, turned_up: bool, golden: np.ndarray, **columns: np.ndarray) -> following.Curves:
    return following.Curves(name, "define", name.split("/")[0], turned_up, STEPS, golden, columns)


def test_a_column_that_is_golden_in_another_unit_follows_it_exactly() -> None:
    golden = valley(11)
    found = following.follow(STEPS, 3 * golden - 7, golden)
    assert found == following.Following(
        pytest.approx(1),
        pytest.approx(1),
        0,
        0,
        1,
        0,
        1,  # type: ignore[arg-type]
    )
    against = following.follow(STEPS, -golden, golden)
    assert against.spearman == pytest.approx(-1)
    assert against.regret == pytest.approx(np.ptp(golden))


@pytest.mark.parametrize("octaves", [-1.0, 1.0, 2.0])
def test_a_known_lag_is_found_with_its_sign(octaves: float) -> None:
    steps = np.array(evaluation_steps(4000, 60), dtype=float)
    place = np.log2(steps + 1)
    golden, column = (-np.exp(-((place - centre) ** 2)) for centre in (5, 5 + octaves))
    assert following.lag(steps, column, golden) == pytest.approx(octaves, abs=0.2)
    found = following.follow(steps, column, golden)
    assert found.lag_of_best == pytest.approx(octaves, abs=0.2)
    assert found.is_near_best == 0
    assert found.regret > 0.1


def test_a_trend_is_no_lag() -> None:
    steps = np.array(evaluation_steps(4000, 60), dtype=float)
    golden, column = (-np.exp(-((np.log2(steps + 1) - centre) ** 2)) for centre in (3, 9))
    assert math.isnan(following.lag(steps, column, golden))
    assert following.lag(STEPS, valley(11), valley(11)) == 0


def test_what_is_missing_or_never_moves_has_no_value() -> None:
    for column in (np.full(14, 3.0), np.full(14, math.nan)):
        found = following.follow(STEPS, column, valley(11))
        assert all(math.isnan(value) for value in vars(found).values())


def test_turned_up_means_a_tenth_of_all_that_moved() -> None:
    assert not following.turned_up(np.array([1.0, 0.5, 0.0, 0.1]))
    assert following.turned_up(np.array([1.0, 0.5, 0.0, 0.11]))
    assert not following.turned_up(np.array([3.0, 2.0, 1.0]))


def test_the_summary_counts_agreement_and_leaves_out_runs_without_the_column() -> None:
    falling = -STEPS
    runs = [
        curves("a/1", True, valley(11), good=valley(11), blind=falling),
        curves("a/2", False, falling, good=falling, blind=falling),
        curves("b/1", True, valley(7), good=valley(7), blind=falling, rare=valley(7)),
    ]
    good, blind = (following.summary(runs, column) for column in ("good", "blind"))
    assert (good["runs"], good["agreement"], good["near_best"], good["regret"]) == (3, 1, 1, 0)
    assert good["spearman"] == pytest.approx(1)
    assert blind["agreement"] == pytest.approx(1 / 3)
    assert blind["regret"] == pytest.approx((valley(11)[-1] + valley(7)[-1]) / 3)
    assert following.summary(runs, "rare")["runs"] == 1
    assert following.summary(runs, "none") == {"column": "none", "runs": 0}


def test_intervals_resample_clusters_not_runs() -> None:
    one_cluster = [curves(f"a/{i}", True, valley(11), column=valley(turn)) for i, turn in enumerate((3, 11, 200))]
    found = following.summary(one_cluster, "column")
    assert found["spearman_low"] == found["spearman"] == found["spearman_high"]
    many = [curves(f"{i}/1", True, valley(11), column=valley(turn)) for i, turn in enumerate((3, 11, 200))]
    found = following.summary(many, "column")
    assert found["spearman_low"] < found["spearman"] < found["spearman_high"]  # type: ignore[operator]


def test_verifiers_on_texts_that_can_be_counted() -> None:
    assert truths_judges.token_f1("", "The cat, the mat", "the mat") == pytest.approx(2 * 0.5 * 1 / 1.5)
    assert truths_judges.token_f1("", "a", None) == 0
    assert truths_judges.chrf("same words", "same words") == pytest.approx(1)
    assert truths_judges.chrf("xyz", "abc") == 0
    # n = 1: P 2/3, R 1; n = 2: P 1/2, R 1; the reference has no longer n-grams
    expected = [5 * (2 / 3) / (4 * 2 / 3 + 1), 5 * (1 / 2) / (4 * 1 / 2 + 1)]
    assert truths_judges.chrf("a b c", "ab") == pytest.approx(sum(expected) / 2)


# --- the committed table

TABLE = list(csv.DictReader((BENCHMARKS / "truths" / "summary.csv").open(newline="")))


def cell(of: str, golden: str, column: str, task: str = "all") -> dict[str, str]:
    found = [
        row
        for row in TABLE
        if (row["set"], row["golden"], row["task"]) == (of, golden, task) and column in row["column"]
    ]
    assert len(found) == 1
    return found[0]


def test_the_table_is_made_of_the_committed_curves() -> None:
    up = [run for run in truths.hackbench_runs() if run.turned_up]
    for column in ("reference NLL", "response length"):
        again = following.summary(up, column, with_intervals=False)
        row = cell("HackBench", "turned up", column)
        assert float(row["spearman"]) == pytest.approx(again["spearman"])
        assert float(row["regret"]) == pytest.approx(again["regret"])
        assert int(row["runs"]) == again["runs"]
    for run in truths.judged_runs(64):
        assert set(truths.JUDGES.values()) <= set(run.columns)
    assert len(truths.judged_runs(64)) == int(cell("judges, 64 responses", "stayed", "judge f1")["runs"]) + int(
        cell("judges, 64 responses", "turned up", "judge f1")["runs"]
    )


def test_what_the_documentation_says_of_the_table() -> None:
    reference, proxy = (cell("HackBench", "turned up", name) for name in ("reference NLL", "held-out proxy"))
    assert float(reference["spearman_low"]) > 0.9
    assert float(reference["near_best"]) > 0.85
    assert float(proxy["spearman_high"]) < 0  # that is what hacking means
    for task, follows in (("define", True), ("translate", True), ("summarize", False)):
        second = cell("judges, 64 responses", "turned up", "judge second:", task)
        assert (float(second["spearman"]) > 0.8) is follows
    for name in ("second_text", "f1", "chrf"):
        assert abs(float(cell("judges, 64 responses", "turned up", f"judge {name}:")["spearman"])) < 0.5
