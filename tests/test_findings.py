"""Findings from known numbers: decisions, coverage, the shapes of every study, and a small study from end to end."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay.config import Experiment
from assay.diagnostics.verdict import initial_fall
from assay.errors import AssayError
from assay.findings import Contrast, Outcomes, find
from assay.recipes import get_recipe, sweeps
from assay.recipes.studies import STUDIES, experiments_of
from assay.report.style import ARM_COLOURS
from assay.sweep import run_folder
from test_experiment import small

WORLDS, SEEDS = ["a", "b"], [1, 2, 3, 4, 5]


def contrast(means: dict[str, float], spread: float = 0.1, words: str = "golden") -> Contrast:
    offsets = np.array([-1.0, -0.5, 0.0, 0.5, 1.0]) * spread
    return Contrast(words, {(w, s): means[w] + offsets[i] for w in WORLDS for i, s in enumerate(SEEDS)})


def test_a_claim_agrees_only_when_every_contrast_is_above_zero_in_every_world() -> None:
    above, below, near = {"a": 1.0, "b": 2.0}, {"a": 1.0, "b": -2.0}, {"a": 1.0, "b": 0.01}
    assert find([contrast(above)])["finding"] == "agrees"
    assert find([contrast(above), contrast(near)])["finding"] == "undecided"
    assert find([contrast(above), contrast(below)])["finding"] == "disagrees"
    assert find([contrast(above)])["effect_nats"] == pytest.approx(1.5)


def test_the_interval_and_p_value_are_those_of_students_t_over_seeds() -> None:
    from scipy import stats

    found = find([contrast({"a": 0.05, "b": 2.0})])
    values = [0.05 + offset for offset in (-0.1, -0.05, 0.0, 0.05, 0.1)]
    reference = stats.ttest_1samp(values, 0)
    row = found["contrasts"][0]
    assert row["ci95"] == pytest.approx(list(reference.confidence_interval(0.95)))
    assert row["p_value"] == pytest.approx(reference.pvalue)
    assert found["p_value"] == pytest.approx(max(r["p_value"] for r in found["contrasts"]))


def test_a_conjunction_is_claimed_falsely_at_most_at_its_level() -> None:
    """One of two contrasts is truly 0: "agrees" needs its interval above 0, which happens in 2.5 % of studies."""
    rng = np.random.default_rng(0)
    agreed = 0
    for _ in range(2000):
        null = Contrast("null", {("a", s): float(rng.normal()) for s in SEEDS})
        real = Contrast("real", {("a", s): float(rng.normal(5)) for s in SEEDS})
        agreed += find([real, null])["finding"] == "agrees"
    assert 0.015 < agreed / 2000 < 0.036


def test_one_seed_is_refused() -> None:
    with pytest.raises(AssayError, match="at least two seeds"):
        find([Contrast("golden", {("a", 1): 1.0})])


def test_the_first_fall_is_not_flattered_by_the_choice_of_its_step() -> None:
    rng = np.random.default_rng(1)
    levels_P = rng.normal(12, 3, size=200)
    falls = [initial_fall(levels_P + rng.normal(0, 1, size=(14, 200))) for _ in range(200)]
    assert abs(np.mean(falls)) < 3 * np.std(falls) / np.sqrt(200)
    naive = [float(g[0].mean() - g.mean(axis=1).min()) for g in levels_P + rng.normal(0, 1, size=(200, 14, 200))]
    assert np.mean(naive) > 0.05
    falling = np.linspace(3, 0, 14)[:, None] + levels_P
    assert initial_fall(falling) == pytest.approx(3)


class Made(Outcomes):
    """Outcomes by construction: every arm's golden goes from 10 down by ``fall``, then up by its ``rise``."""

    def __init__(self, study: str, sign: float) -> None:
        worlds = {"quickstart": small()}
        self.sign = sign
        self.keys = list(experiments_of(STUDIES[study], worlds, SEEDS))
        self.worlds, self.seeds = ["quickstart"], SEEDS
        self.variants = list(dict.fromkeys(variant for _, _, variant in self.keys))

    def rise(self, variant: str, arm: str) -> float:
        """Harm where the claims expect it: offline, few prompts, few completions, bad teachers, little freshness."""
        number = self.variants.index(variant)
        by_arm = {"offline": 2.0, "fresh_10": 1.2, "refresh_10": 1.2}.get(arm, 0.0)
        if variant.endswith("passes") or self.variants[0].endswith("x 1"):
            growing = variant.endswith("passes") or self.variants[-1] == "a fifth x 5"
            by_arm += 0.3 * (number if growing else -number)
        if variant in ("oracle as teacher", "random student"):
            by_arm = 0.0
        return self.sign * by_arm

    def fall(self, variant: str) -> float:
        return self.sign * (0.5 if variant == "no SFT" else 0.2)

    def references(self, world: str, seed: int, variant: str) -> dict[str, float]:
        return {"d_oracle_teacher": 5.0 + self.variants.index(variant)}

    def arm(self, world: str, seed: int, variant: str, arm: str = "offline") -> dict[str, Any]:
        jitter = 0.01 * seed
        rise = self.rise(variant, arm)
        final = 10 + rise + jitter - (0.5 * self.sign if arm.startswith("online") else 0)
        proxy = 5 + (0.05 * rise if self.variants[-1] == "a fifth x 5" else rise)
        return {
            "severity_hacking_nats": rise + jitter,
            "golden": {"initial": 10.0, "final": final},
            "proxy": {"initial": 8.0, "final": proxy + jitter},
        }

    def excess(self, world: str, seed: int, variant: str, online: str) -> float:
        return self.rise(variant, "offline") + 0.01 * seed

    def curve(
        self, world: str, seed: int, variant: str, arm: str = "offline", metric: str = "golden"
    ) -> tuple[np.ndarray, np.ndarray]:
        prompts = np.random.default_rng(seed).normal(0, 1, 60)
        end = self.arm(world, seed, variant, arm)[metric]["final"]
        middle = 10 - self.fall(variant) if self.sign > 0 else 10.0
        return np.arange(3), np.array([10.0, middle, end])[:, None] + prompts + 0.001 * seed


@pytest.mark.parametrize("study", STUDIES)
def test_the_shape_of_every_study_agrees_where_its_claim_holds_by_construction(study: str) -> None:
    assert find(STUDIES[study].shape(Made(study, 1.0)))["finding"] == "agrees"


@pytest.mark.parametrize("study", [name for name in STUDIES if name not in ("online_fraction", "refresh")])
def test_and_disagrees_where_the_opposite_holds(study: str) -> None:
    assert find(STUDIES[study].shape(Made(study, -1.0)))["finding"] == "disagrees"


@pytest.mark.parametrize("study", STUDIES)
def test_variants_have_the_same_names_in_every_world(study: str) -> None:
    worlds = {name: get_recipe(name) for name in STUDIES[study].worlds}
    names = [tuple(STUDIES[study].variants(world)) for world in worlds.values()]
    assert len(set(names)) == 1
    assert len(set(names[0])) == len(names[0])


def short(seed: int = 7) -> Experiment:
    experiment = small(seed=seed, num_steps=4)
    return dataclasses.replace(experiment, arms=experiment.arms[:1])


@pytest.mark.slow
def test_a_study_goes_from_its_runs_to_its_files(tmp_path: Path) -> None:
    study = STUDIES["fig6"]
    experiments = experiments_of(study, {"quickstart": short()}, [7, 8])
    plan = sweeps.Plan("fig6", experiments, study, "tiny")
    lines = sweeps.cost(plan, tmp_path / "runs", 2)
    assert "6 runs, 0 of them finished" in lines[0]
    page = sweeps.carry_out(plan, tmp_path / "runs", tmp_path / "out", 2, lambda line: None)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert set(result) >= {
        "claim",
        "finding",
        "effect_nats",
        "ci95",
        "test",
        "p_value",
        "num_seeds",
        "worlds",
        "command",
    }
    assert result["finding"] in ("agrees", "disagrees", "undecided")
    assert result["command"] == "assay sweep fig6 --worlds quickstart --seeds 7 8"
    rows = (tmp_path / "out" / "runs.csv").read_text().splitlines()
    assert len(rows) == 1 + 6
    # the figure takes the page's colours, which change in the dark, and is not hidden on a phone
    (figure,) = re.findall(r"<figure>\s*<svg.*</svg>", page.read_text(), flags=re.DOTALL)
    assert "var(--arm-0)" in figure
    assert ARM_COLOURS[0] not in figure
    assert (tmp_path / "out" / "figure.svg").read_text().startswith("<?xml")
    # golden of the file is golden of the run
    folder = run_folder(experiments["quickstart", 8, "a fifth x 5"], tmp_path / "runs")
    summary = json.loads((folder / "summary.json").read_text())
    assert str(summary["arms"][0]["golden"]["final"]) in rows[-1]
    assert "6 of them finished" in sweeps.cost(plan, tmp_path / "runs", 2)[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("fgi5", (), None), "did you mean 'fig5'"),
        (("fig5", (), []), "at least one seed"),
        (("fig5", (), [1, 1]), "given twice"),
        (("fig5", ("seed=1",), None), "has its own axes"),
        (("fig5", (), None, ("quickstart", "quickstart")), "given twice"),
        (("fig5", (), None, ("xsum",)), "unknown recipe 'xsum'"),
        (("fig5", (), None, ("quickstart",), "paper"), "unknown world of scale 'paper'"),
        (("fig5", (), None, (), "huge"), "unknown scale 'huge'"),
        (("quickstart", (), None, ("quickstart",)), "belong to studies"),
        (("quickstart", ("distillation.num_prompts",), None), "cannot be read"),
        (("quickstart", ("probe.num_shown=1", "probe.num_shown=2"), None), "given twice"),
        (("quickstart", ("distillation.num_prompts=",), None), "has no values"),
    ],
)
def test_plans_that_contradict_themselves_are_refused(arguments: Any, words: str) -> None:
    with pytest.raises(AssayError, match=words):
        sweeps.plan(*arguments)


def test_a_recipe_is_planned_over_its_axes_and_seeds() -> None:
    plan = sweeps.plan("quickstart", ("distillation.num-prompts=64,256", "distillation.training.schedule=linear"), [3])
    assert list(plan.experiments) == [
        ("quickstart", 3, "num_prompts = 64, schedule = linear"),
        ("quickstart", 3, "num_prompts = 256, schedule = linear"),
    ]


@pytest.mark.parametrize("scale", ["small", "paper"])
@pytest.mark.parametrize("study", STUDIES)
def test_every_study_is_planned_with_its_cost_at_the_larger_scales(study: str, scale: str, tmp_path: Path) -> None:
    plan = sweeps.plan(study, (), None, (), scale)
    lines = sweeps.cost(plan, tmp_path, 1, 1e14)
    assert lines[0].startswith(f"{study}: {len(plan.experiments)} runs")
    for word in ("tokens written", "FLOP", "memory", "disk"):
        assert word in lines[-1]


def test_no_study_distils_a_base_into_itself() -> None:
    """Teacher and student of one base start side by side: there would be nothing to hack."""
    for study in STUDIES.values():
        worlds = {name: get_recipe(name) for name in study.worlds}
        for experiment in experiments_of(study, worlds, study.seeds).values():
            models = experiment.models
            assert models.teacher != models.student
            assert models.oracle not in (models.teacher, models.student)


def test_the_study_of_sizes_says_when_it_knows_no_smaller_model() -> None:
    with pytest.raises(AssayError, match="no model smaller than the student translate-student is known"):
        STUDIES["sizes"].variants(get_recipe("translate_causal"))
