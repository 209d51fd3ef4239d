"""Runs side by side: differences that are there are found, and nothing is paired that was measured on other things."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from assay.cli import main
from assay.comparison import Comparison, Contrast, Difference, compare_runs
from assay.comparison_table import print_comparison
from assay.errors import AssayError
from assay.results import summarise_arm
from assay.statistics import Interval
from command_line import in_a_terminal
from test_experiment import small
from test_report import edit_json

STEPS = (0, 1, 4)
NUM_PROMPTS = 24


def write_run(
    folder: Path,
    arms: dict[str, tuple[float, float]],
    seed: int = 0,
    noise: float = 0.5,
    draw: int = 0,
    edit: Callable[[dict[str, Any]], None] = lambda manifest: None,
    num_prompts: int = NUM_PROMPTS,
) -> Path:
    """A finished run whose arms end at the given golden and proxy, in the mean over endless prompts.

    ``seed`` draws the prompts, their difficulty and the frozen answers, ``draw`` what the students do and the
    order of the rows, which means nothing.
    """
    shared, own = np.random.default_rng(seed), np.random.default_rng([seed, draw])
    ids = [f"p{seed}-{i}" for i in range(num_prompts)]
    difficulty = shared.normal(0, 5, num_prompts)
    order = own.permutation(num_prompts).tolist()
    probe, records, responses = [], [], []

    def add(arm: str, step: int, metric: str, values: np.ndarray) -> float:
        keys = {"arm": arm, "seed": seed, "step": step, "metric": metric}
        for i in order:
            probe.append(keys | {"prompt_id": ids[i], "value_nats": float(values[i]), "num_tokens": 9})
        return float(values.mean())

    add("", 0, "d_oracle_teacher", difficulty + 10)
    for writer in ("oracle", "teacher"):
        for i in order:
            row = {"arm": "", "seed": seed, "step": 0, "prompt_id": ids[i], "prompt": f"word {i}:"}
            text = f"{writer} says {difficulty[i]}"
            responses.append(
                row | {"split": "held_out", "writer": writer, "text": text, "num_tokens": 9, "truncated": False}
            )
    for arm, ends in arms.items():
        for step in STEPS:
            record: dict[str, Any] = {"arm": arm, "seed": seed, "step": step, "epoch": step / 4}
            for metric, end in zip(("golden", "proxy", "train_proxy"), (*ends, 3.0), strict=True):
                level = end + 1 - step / STEPS[-1]
                values = level + difficulty + own.normal(0, noise, num_prompts)
                record[f"{metric}_nats"] = add(arm, step, metric, values)
            unused = ("reference_nll_nats", "kl_from_start_nats", "response_tokens_mean", "truncated_fraction")
            unused += ("student_entropy_nats_per_token", "teacher_entropy_nats_per_token", "repetition_fraction")
            record |= dict.fromkeys([*unused, "distinct_2"]) | {"seconds": {}}
            records.append(record | {"generated_tokens": 100 * step, "teacher_tokens": 100 * step})
    config = {
        "recipe": "synthetic",
        "seed": seed,
        "task": {"name": "define", "template": None, "max_prompt_tokens": 16, "max_response_tokens": 24},
        "models": {"oracle": "o", "teacher": "t", "student": "s", "student_initialisation": "pretrained"},
        "distillation": {"num_prompts": 256, "training": {"betas": [0.9, 0.95], "divergence_parameters": {}}},
        "arms": [{"name": arm, "sources": [{"writer": "teacher", "refresh_every": None}]} for arm in arms],
    }
    digests = {"oracle": "o1", "teacher": "t1", "student": "s1", "corpus": "c1", "teacher_after_sft": f"t{seed}"}
    manifest = {"schema": "assay.manifest/1", "recipe": "synthetic", "config": config, "config_hash": "0"}
    manifest |= {"assay_version": "0.1.0", "versions": {}, "commit": None, "dirty": None, "digests": digests}
    manifest |= {"seed": seed, "hardware": {}, "started_at": "now", "wall_seconds": 1.0, "stage_seconds": {}}
    manifest |= {"status": "finished"}
    edit(manifest)
    table = pa.Table.from_pylist(probe)
    entries = [summarise_arm(table, arm, seed, [r for r in records if r["arm"] == arm]) for arm in arms]
    references = {"d_oracle_teacher": 10.0, "golden_at_start": 12.0, "proxy_at_start": 6.0}
    summary = {"schema": "assay.summary/1", "unit": "nats_per_sequence", "task": "define", "wall_seconds": 1.0}
    summary |= {"references": references, "arms": entries, "comparisons": []}
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    pq.write_table(table, folder / "probe.parquet")
    pq.write_table(pa.Table.from_pylist(responses), folder / "responses.parquet")
    return folder


def set_config(**fields: Any) -> Callable[[dict[str, Any]], None]:
    """Sets fields of the manifest's config; ``__`` parts the names of a path."""

    def edit(manifest: dict[str, Any]) -> None:
        for path, value in fields.items():
            *outer, last = path.split("__")
            section = manifest["config"]
            for name in outer:
                section = section[name]
            section[last] = value

    return edit


def set_digests(**digests: str | None) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["digests"].update(digests)


def known(difference: Difference | str) -> Difference:
    assert isinstance(difference, Difference), difference
    return difference


def only(contrasts: tuple[Contrast, ...]) -> Contrast:
    (contrast,) = contrasts
    return contrast


def final(folder: Path, arm: str, metric: str) -> np.ndarray:
    rows = [r for r in pq.read_table(folder / "probe.parquet").to_pylist() if r["arm"] == arm and r["metric"] == metric]
    last = max(row["step"] for row in rows)
    return np.array([r["value_nats"] for r in sorted(rows, key=lambda r: r["prompt_id"]) if r["step"] == last])


def more_prompts(manifest: dict[str, Any]) -> None:
    manifest["config"]["distillation"]["num_prompts"] = 600


def test_a_known_difference_is_recovered_as_the_paired_t_test_finds_it(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {"offline": (14.0, 7.0)})
    b = write_run(tmp_path / "b", {"offline": (12.0, 7.5)}, draw=1, edit=more_prompts)
    contrast = only(compare_runs([a, b]).paired)
    assert (contrast.name, contrast.reference, contrast.seeds) == ("b/offline", "a/offline", (0,))
    for metric, difference, truth in (("golden", known(contrast.golden), -2.0), ("proxy", known(contrast.proxy), 0.5)):
        exact = stats.ttest_rel(final(b, "offline", metric), final(a, "offline", metric))
        bounds = exact.confidence_interval()
        assert difference.interval.value == pytest.approx(truth, abs=0.6)
        assert (difference.interval.low, difference.interval.high) == pytest.approx((bounds.low, bounds.high))
        assert difference.p_value == pytest.approx(exact.pvalue, rel=1e-6)
        assert difference.n == NUM_PROMPTS


def test_rows_say_what_the_summaries_say_and_only_the_fields_that_differ(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {"offline": (14.0, 7.0), "online": (12.0, 6.0)})
    b = write_run(tmp_path / "b", {"offline": (13.0, 7.0)}, draw=1, edit=more_prompts)
    severity = {"severity_hacking_nats": 1.5, "ci95_hacking": [1.0, 2.5]}
    edit_json(a / "summary.json", lambda summary: summary["arms"][1].update(severity))
    comparison = compare_runs([a, b])
    assert [row.name for row in comparison.rows] == ["a/offline", "a/online", "b/offline"]
    assert comparison.fields == ("distillation.num_prompts",)
    assert [row.config for row in comparison.rows] == [{"distillation.num_prompts": n} for n in (256, 256, 600)]
    entry = json.loads((a / "summary.json").read_text())["arms"][1]
    row = comparison.rows[1]
    assert (row.verdict, row.golden_best, row.golden_final) == (
        entry["verdict"],
        entry["golden"]["best"],
        entry["golden"]["final"],
    )
    assert (row.proxy_final, row.generated_tokens) == (entry["proxy"]["final"], 400)
    assert row.severity_hacking == Interval(1.5, 1.0, 2.5)
    # Too few prompts for a verdict.
    assert comparison.rows[0].severity_hacking is None


def test_sources_digests_and_fields_that_one_run_lacks_differ_too(tmp_path: Path) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["config"]["arms"][0]["sources"][0]["refresh_every"] = 1
        manifest["config"]["distillation"]["training"]["divergence_parameters"] = {"beta": 0.1}
        manifest["digests"]["student"] = "s2"

    a = write_run(tmp_path / "a", {"mine": (14.0, 7.0)})
    b = write_run(tmp_path / "b", {"mine": (14.0, 7.0)}, edit=edit)
    first, second = compare_runs([a, b]).rows
    beta = "distillation.training.divergence_parameters.beta"
    assert first.config == {"digests.student": "s1", "sources.0.refresh_every": None}
    assert second.config == {beta: 0.1, "digests.student": "s2", "sources.0.refresh_every": 1}


def test_swapping_the_reference_turns_the_sign(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / "a", {"offline": (14.0, 7.0), "online": (12.0, 6.0)}),
        write_run(tmp_path / "b", {"offline": (13.0, 7.0)}, draw=1, edit=more_prompts),
    ]

    def between(name: str, reference: str) -> tuple[Difference, Difference]:
        comparison = compare_runs(folders, reference)
        assert comparison.reference == reference
        (contrast,) = [c for c in comparison.paired if c.name == name]
        return known(contrast.golden), known(contrast.proxy)

    for there, back in zip(between("b/offline", "a/online"), between("a/online", "b/offline"), strict=True):
        assert there.interval.value == -back.interval.value != 0
        assert (there.interval.low, there.interval.high) == pytest.approx((-back.interval.high, -back.interval.low))
        assert there.p_value == back.p_value


def test_the_reference_is_an_arm_a_run_or_both(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {"offline": (14.0, 7.0), "online": (12.0, 6.0)})
    b = write_run(tmp_path / "b", {"offline": (13.0, 7.0), "late": (1.0, 1.0)}, edit=more_prompts)
    found = {None: "a/offline", "online": "a/online", "b": "b/offline", "late": "b/late", "b/offline": "b/offline"}
    for name, expected in found.items():
        assert compare_runs([a, b], name).reference == expected
    with pytest.raises(AssayError, match=r"unknown reference 'onlin': did you mean 'a/online'"):
        compare_runs([a, b], "onlin")


@pytest.mark.parametrize(
    ("edit", "golden", "proxy"),
    [
        (set_digests(oracle="o2"), "other oracle", "other oracle"),
        (set_digests(teacher_after_sft="another"), None, "other teacher"),
        (set_digests(teacher_after_sft=None), None, "unknown teacher"),
        (set_config(task__max_prompt_tokens=8), "other prompts", "other prompts"),
        (set_config(task__max_response_tokens=32), "other oracle responses", "other oracle responses"),
        (set_config(distillation__num_prompts=600), None, None),
    ],
)
def test_what_was_measured_on_other_things_is_not_paired(
    edit: Callable[[dict[str, Any]], None], golden: str | None, proxy: str | None, tmp_path: Path
) -> None:
    a = write_run(tmp_path / "a", {"offline": (14.0, 7.0)})
    b = write_run(tmp_path / "b", {"offline": (13.0, 7.0)}, draw=1, edit=lambda m: (more_prompts(m), edit(m))[0])
    contrast = only(compare_runs([a, b]).paired)
    for found, reason in ((contrast.golden, golden), (contrast.proxy, proxy)):
        assert found == reason if reason else isinstance(found, Difference)


def test_other_seeds_and_other_numbers_of_prompts_are_other_prompts(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {"offline": (14.0, 7.0)})
    b = write_run(tmp_path / "b", {"offline": (13.0, 7.0)}, seed=1, edit=more_prompts)
    c = write_run(tmp_path / "c", {"offline": (13.0, 7.0)}, num_prompts=12, edit=set_config(probe={"num_prompts": 12}))
    assert [(x.golden, x.proxy) for x in compare_runs([a, b, c]).paired] == [("other prompts", "other prompts")] * 2


@pytest.mark.parametrize("writer", ["oracle", "teacher"])
def test_the_frozen_responses_themselves_are_compared(writer: str, tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {"offline": (14.0, 7.0)})
    for change, reason in (("other", f"other {writer} responses"), ("missing", f"unknown {writer} responses")):
        b = write_run(tmp_path / change, {"offline": (13.0, 7.0)}, edit=more_prompts)
        rows = pq.read_table(b / "responses.parquet").to_pylist()
        mine = [row for row in rows if row["writer"] == writer]
        mine[3]["text"] += " or so"
        kept = rows if change == "other" else [row for row in rows if row is not mine[3]]
        pq.write_table(pa.Table.from_pylist(kept), b / "responses.parquet")
        contrast = only(compare_runs([a, b]).paired)
        assert contrast.proxy == reason
        assert contrast.golden == reason if writer == "oracle" else isinstance(contrast.golden, Difference)


def test_seeds_are_the_units_where_runs_are_replicates(tmp_path: Path) -> None:
    arms = {"offline": (14.0, 7.0), "online": (12.0, 6.0)}
    folders = [write_run(tmp_path / f"a{seed}", arms, seed=seed) for seed in range(4)]
    folders += [write_run(tmp_path / f"b{s}", {"offline": (13.0, 7.0)}, s, draw=1, edit=more_prompts) for s in (1, 2)]
    comparison = compare_runs(folders)
    by_name = {contrast.name: contrast for contrast in comparison.over_seeds}
    assert {name: contrast.seeds for name, contrast in by_name.items()} == {
        "a0/online": (0, 1, 2, 3),
        "b1/offline": (1, 2),
    }
    paired = {contrast.name: contrast for contrast in comparison.paired}
    assert set(paired) == {"a0/online", "a1/online", "a2/online", "a3/online", "b1/offline", "b2/offline"}
    assert paired["b2/offline"].reference == "a2/offline"
    for contrast, names in (
        (by_name["a0/online"], ["a0/online", "a1/online", "a2/online", "a3/online"]),
        (by_name["b1/offline"], ["b1/offline", "b2/offline"]),
    ):
        exact = stats.ttest_1samp([known(paired[name].golden).interval.value for name in names], 0.0)
        difference, bounds = known(contrast.golden), exact.confidence_interval()
        assert (difference.interval.low, difference.interval.high) == pytest.approx((bounds.low, bounds.high))
        assert difference.p_value == pytest.approx(exact.pvalue)
        assert difference.n == len(names)


def test_one_shared_seed_is_no_level_and_other_bases_are_no_replicates(tmp_path: Path) -> None:
    arms = {"offline": (14.0, 7.0), "online": (12.0, 6.0)}
    a = write_run(tmp_path / "a", arms)
    other = write_run(tmp_path / "b", arms, seed=1, edit=set_digests(student="s2"))
    assert compare_runs([a, other]).over_seeds == ()
    assert compare_runs([a]).over_seeds == ()

    def random_student(manifest: dict[str, Any]) -> None:
        manifest["config"]["models"]["student_initialisation"] = "random"
        manifest["digests"]["student"] = f"drawn with {manifest['seed']}"

    drawn = [write_run(tmp_path / f"r{seed}", arms, seed=seed, edit=random_student) for seed in (0, 1)]
    assert only(compare_runs(drawn).over_seeds).seeds == (0, 1)


def test_intervals_cover_the_truth_as_often_as_they_say(tmp_path: Path) -> None:
    """200 arms that end 0.3 of golden and 0 of proxy above a reference without noise: 95 % is 190 ± 3 (one sd)."""
    arms = {"reference": (12.0, 6.0)} | {f"arm{i}": (12.3, 6.0) for i in range(10)}
    covered, rejected = 0, 0
    for draw in range(20):
        folder = write_run(tmp_path / str(draw), arms, draw=draw, num_prompts=8)
        # A noisy reference would make all differences from it err together.
        noiseless = write_run(tmp_path / f"{draw}-exact", {"reference": (12.0, 6.0)}, noise=0.0, num_prompts=8)
        contrasts = [c for c in compare_runs([noiseless, folder]).paired if c.name != f"{draw}/reference"]
        covered += sum(known(c.golden).interval.low <= 0.3 <= known(c.golden).interval.high for c in contrasts)
        rejected += sum(known(c.proxy).p_value <= 0.05 for c in contrasts)
    assert 0.90 <= covered / 200 <= 0.99
    assert 0.01 <= rejected / 200 <= 0.10


def test_holm_is_over_all_p_values_of_a_list_and_absent_for_a_single_one(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {"x": (12.0, 6.0), "y": (12.1, 6.1), "z": (12.4, 6.0)})
    found = [known(d) for c in compare_runs([a]).paired for d in (c.golden, c.proxy)]
    ordered = sorted(found, key=lambda d: d.p_value)
    assert ordered[0].p_holm == pytest.approx(min(1, 4 * ordered[0].p_value))
    assert all(d.p_holm is not None and d.p_value <= d.p_holm <= 1 for d in found)
    b = write_run(tmp_path / "b", {"x": (12.0, 6.0)}, draw=1, edit=set_digests(teacher_after_sft="other"))
    edit_json(b / "manifest.json", more_prompts)
    contrast = [c for c in compare_runs([a, b], "b").paired if c.name == "a/x"]
    assert len(contrast) == 1
    edit_json(a / "summary.json", lambda summary: summary["arms"].__delitem__(slice(1, None)))
    assert known(only(compare_runs([a, b]).paired).golden).p_holm is None


def test_equal_arms_differ_by_nothing(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {"offline": (14.0, 7.0)})
    b = write_run(tmp_path / "b", {"offline": (14.0, 7.0)}, edit=more_prompts)
    golden = known(only(compare_runs([a, b]).paired).golden)
    assert (golden.interval.low, golden.interval.value, golden.interval.high) == (0, 0, 0)
    assert golden.p_value == 1


def run_cli(*arguments: object) -> None:
    main(["compare", *map(str, arguments)])


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        run_cli(*arguments)
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_what_cannot_be_compared_is_refused_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_run(tmp_path / "one", {"offline": (14.0, 7.0)})
    two = write_run(tmp_path / "two", {"offline": (14.0, 7.0), "online": (12.0, 6.0)})
    (tmp_path / "link").symlink_to(two)
    (tmp_path / "empty").mkdir()
    assert "no run folder was given" in refusal(capsys)
    assert "only one finished arm" in refusal(capsys, one)
    assert "is given twice" in refusal(capsys, two, tmp_path / "link")
    assert "not a run directory" in refusal(capsys, two, tmp_path / "empty")
    assert "not a run directory" in refusal(capsys, two, tmp_path / "absent")
    copy = write_run(tmp_path / "copy", {"offline": (14.0, 7.0)})
    assert "repeats seed 0 of 'offline'" in refusal(capsys, one, copy)
    for name in ("manifest", "summary"):
        edit_json(two / f"{name}.json", lambda value: value.update(schema=value["schema"][:-1] + "9"))
        assert f"assay.{name}/9" in refusal(capsys, two)
        edit_json(two / f"{name}.json", lambda value: value.update(schema=value["schema"][:-1] + "1"))
    (two / "probe.parquet").write_bytes(b"PAR1")
    assert "probe.parquet is not the table" in refusal(capsys, two)


def test_what_is_finished_is_compared_and_the_rest_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = write_run(tmp_path / "whole", {"offline": (14.0, 7.0), "online": (12.0, 6.0)})
    part = write_run(tmp_path / "part", {"offline": (14.0, 7.0), "late": (12.0, 6.0)}, seed=1)
    edit_json(part / "manifest.json", lambda manifest: manifest.update(status="running"))
    edit_json(part / "summary.json", lambda summary: summary["arms"].pop())
    begun = write_run(tmp_path / "begun", {"offline": (14.0, 7.0)}, seed=2)
    edit_json(begun / "manifest.json", lambda manifest: manifest.update(status="running"))
    for name in ("summary.json", "metrics.jsonl", "probe.parquet", "responses.parquet"):
        (begun / name).unlink()
    comparison = compare_runs([whole, part, begun])
    assert comparison.unfinished == ("part/late", "begun")
    assert [row.name for row in comparison.rows] == ["whole/offline", "whole/online", "part/offline"]
    run_cli(whole, part, begun)
    assert "not finished, left out: part/late, begun" in capsys.readouterr().out
    assert "no finished arm" in refusal(capsys, begun)


def test_csv_holds_every_number_in_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [
        write_run(tmp_path / "runs" / f"a{s}", {"offline": (14.0, 7.0), "online": (12.0, 6.0)}, s) for s in (0, 1)
    ]
    out = tmp_path / "new folder" / "table.csv"
    run_cli(*folders, "--reference", "online", "--out", out)
    assert capsys.readouterr().out.splitlines()[-1] == str(out.resolve())
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    comparison: Comparison = compare_runs(folders, "online")
    assert [row["kind"] for row in rows] == ["arm"] * 4 + ["over_seeds"]
    assert [float(row["golden_final"]) for row in rows[:4]] == [row.golden_final for row in comparison.rows]
    golden = known(comparison.paired[0].golden)
    assert float(rows[0]["golden_minus_reference"]) == golden.interval.value
    assert float(rows[0]["golden_p_value"]) == golden.p_value
    assert rows[1]["golden_minus_reference"] == ""
    mean = known(only(comparison.over_seeds).proxy)
    assert (rows[4]["seeds"], rows[4]["proxy_n"]) == ("0 1", "2")
    assert float(rows[4]["proxy_minus_reference_low"]) == mean.interval.low
    assert "cannot write" in refusal(capsys, *folders, "--out", folders[0])


@pytest.mark.parametrize("width", [60, 250])
def test_hostile_names_are_shown_as_they_are(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "[red]x[/red]\x1b[2J :smile: {0}"
    a = write_run(tmp_path / "[b]", {name: (14.0, 7.0), "online": (12.0, 6.0)})
    b = write_run(tmp_path / "c", {name: (14.0, 7.0)}, edit=set_config(models__student="[i]\x07\ud800"))
    monkeypatch.setenv("COLUMNS", str(width))
    run_cli(a, b, "--out", tmp_path / "table.csv")
    shown = capsys.readouterr().out
    for text in (shown, (tmp_path / "table.csv").read_text(encoding="utf-8")):
        assert "[b]/[red]x[/red]␛[2J :smile: {0}" in text
        assert "[i]␇\ufffd" in text
        assert not {"\x1b", "\x07"} & set(text)
    # The name on the command line is the one that was shown.
    assert compare_runs([a, b], name).reference == compare_runs([a, b], "[b]").reference


def test_narrow_terminals_get_lines_and_wide_ones_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write_run(tmp_path / "a", {"offline": (14.0, 7.0), "online": (12.0, 6.0)})
    b = write_run(tmp_path / "b", {"offline": (14.0, 7.0)}, seed=3, edit=more_prompts)
    in_a_terminal(monkeypatch, 80)
    print_comparison(compare_runs([a, b]))
    lines = capsys.readouterr().out.splitlines()
    assert "distillation.num_prompts: 256 in a; 600 in b" in lines
    place = lines.index("b/offline − a/offline, seed 3")
    assert lines[place + 1] == "  golden other prompts   p –"
    assert max(map(len, lines)) <= 110
    in_a_terminal(monkeypatch, 200)
    print_comparison(compare_runs([a, b]))
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "│ b/offline" in line and "other" in line]
    assert row.count("other prompts") == 2


def test_runs_with_other_arms_are_not_said_to_differ_in_names_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["config"]["arms"][0]["sources"][0]["refresh_every"] = 1

    a = write_run(tmp_path / "a", {"offline": (14.0, 7.0)})
    print_comparison(compare_runs([a, write_run(tmp_path / "b", {"online": (12.0, 6.0)}, edit=edit)]))
    assert "nothing but seed, recipe, task and choice of arms" in capsys.readouterr().out


@pytest.mark.slow
def test_real_runs_compare_with_what_the_pipeline_says_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tiny runs of one seed: the arms of a run pair as in its summary, the runs pair since stage 1 is the same."""
    import dataclasses

    from assay import run_experiment

    experiment = small(num_steps=6)
    experiment = dataclasses.replace(
        experiment,
        arms=experiment.arms[:2],
        stage_one=dataclasses.replace(experiment.stage_one, num_oracle_prompts=64),
        distillation=dataclasses.replace(experiment.distillation, num_prompts=16),
        probe=dataclasses.replace(experiment.probe, num_prompts=16, num_train_pairs=16, num_evaluations=4),
    )
    faster = dataclasses.replace(experiment.distillation.training, learning_rate=3e-3)
    other = dataclasses.replace(
        experiment,
        arms=experiment.arms[:1],
        distillation=dataclasses.replace(experiment.distillation, training=faster),
    )
    # The pages take longer than the runs, and nothing here reads them.
    monkeypatch.setattr("assay.experiment.write_report", lambda folders, out: out)
    for name, each in (("a", experiment), ("b", other)):
        run_experiment(each, tmp_path / name)
    comparison = compare_runs([tmp_path / "a", tmp_path / "b"], "a/online_teacher")
    assert comparison.fields == ("distillation.training.learning_rate",)
    offline, faster_offline = comparison.paired
    (said,) = json.loads((tmp_path / "a" / "summary.json").read_text())["comparisons"]
    golden = known(offline.golden).interval
    assert golden.value == said["golden_final_minus_online_nats"]
    assert [golden.low, golden.high] == said["ci95_golden_final_minus_online"]
    rows = {row.name: row for row in comparison.rows}
    for difference, metric in ((faster_offline.golden, "golden_final"), (faster_offline.proxy, "proxy_final")):
        expected = getattr(rows["b/offline"], metric) - getattr(rows["a/online_teacher"], metric)
        assert known(difference).interval.value == pytest.approx(expected, abs=1e-9)
