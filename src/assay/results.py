"""From the files of the arms to the files of the run: merged tables, verdicts, summary.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assay import runs
from assay.config import Experiment
from assay.diagnostics.verdict import (
    MIN_EVALUATIONS,
    MIN_PROMPTS,
    Verdict,
    compare_final,
    excess_over,
    judge,
)
from assay.errors import AssayError
from assay.statistics import Estimate, Interval, mean_estimate


def merge_arms(folder: Path, arms: Sequence[str]) -> None:
    """Writes metrics.jsonl, probe.parquet and responses.parquet of the run from its stage 1 and these arms."""
    records = [record for arm in arms for record in runs.read_records(folder / "arms" / arm / "metrics.jsonl")]
    text = "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)
    runs.write_text(folder / "metrics.jsonl", text)
    arm_folders = [folder / "arms" / arm for arm in arms]
    stage_one = folder / "stage1"
    probe = [stage_one / "d_oracle_teacher.parquet"]
    responses = [*sorted(stage_one.glob("oracle-*.parquet")), *sorted(stage_one.glob("held_out-*.parquet"))]
    for arm_folder in arm_folders:
        probe += sorted((arm_folder / "probe").glob("*.parquet"))
        responses += [arm_folder / "train_pairs.parquet", *sorted((arm_folder / "samples").glob("*.parquet"))]
    for name, parts in (("probe", probe), ("responses", responses)):
        runs.write_table(folder / f"{name}.parquet", pa.concat_tables([runs.read_table(part) for part in parts]))


def write_summary(folder: Path, experiment: Experiment, arms: Sequence[str], wall_seconds: float) -> None:
    """Judges these arms and writes summary.json (schema assay.summary/1)."""
    probe = runs.read_table(folder / "probe.parquet")
    records = runs.read_records(folder / "metrics.jsonl")
    distance = probe.filter(pc.field("metric") == "d_oracle_teacher")["value_nats"].to_numpy()
    golden_SP = per_prompt(probe, arms[0], "golden")[1]
    proxy_SP = per_prompt(probe, arms[0], "proxy")[1]
    summary = {
        "schema": "assay.summary/1",
        "unit": "nats_per_sequence",
        "task": experiment.task.name,
        "wall_seconds": wall_seconds,
        "references": {
            "d_oracle_teacher": float(distance.mean()),
            "golden_at_start": float(golden_SP[0].mean()),
            "proxy_at_start": float(proxy_SP[0].mean()),
        },
        "arms": [summarise_arm(probe, arm, experiment.seed, [r for r in records if r["arm"] == arm]) for arm in arms],
        "comparisons": [
            compare_with_online(probe, arm, online) for arm, online in _offline_and_online(experiment, arms)
        ],
    }
    runs.write_json(folder / "summary.json", summary)


def per_prompt(probe: pa.Table, arm: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps [S] and values [S, P] of one metric of one arm; the same prompt in each column."""
    rows = probe.filter((pc.field("arm") == arm) & (pc.field("metric") == metric)).sort_by(
        [("step", "ascending"), ("prompt_id", "ascending")]
    )
    steps_S = np.unique(rows["step"].to_numpy())
    if not len(rows) or len(rows) % len(steps_S):
        raise AssayError(
            f"the probe of arm {arm!r} lacks values of {metric}: delete arms/{arm}; the same command repeats it"
        )
    return steps_S, rows["value_nats"].to_numpy().reshape(len(steps_S), -1)


def summarise_arm(probe: pa.Table, arm: str, seed: int, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One entry of summary.json's ``arms``."""
    steps_S, golden_SP = per_prompt(probe, arm, "golden")
    _, proxy_SP = per_prompt(probe, arm, "proxy")
    verdict = judge(steps_S, golden_SP, proxy_SP)
    if not records:
        raise AssayError(f"arms/{arm}/metrics.jsonl is missing: delete arms/{arm}; the same command repeats it")
    last = records[-1]
    return {
        "source": arm,
        "seed": seed,
        "verdict": verdict.name,
        "reason": verdict.reason,
        **_severity_fields(verdict),
        "smallest_detectable_nats": verdict.smallest_detectable_nats,
        "onset_step": verdict.onset_step,
        "best_step": verdict.best_step,
        "golden": _curve_fields(steps_S, golden_SP),
        "proxy": _curve_fields(steps_S, proxy_SP),
        "train_proxy": {"final": last["train_proxy_nats"]},
        "generated_tokens": last["generated_tokens"],
        "teacher_tokens": last["teacher_tokens"],
    }


def compare_with_online(probe: pa.Table, arm: str, online: str) -> dict[str, Any]:
    """What an offline arm lost over an online arm on the same prompts at the same steps.

    ``excess_hacking_nats`` is its hacking severity less what golden did in the online arm between the same steps
    (an early transient is common to both); ``golden_final_minus_online_nats`` compares where they end. Both paired
    over the held-out prompts.
    """
    steps_S, golden_SP = per_prompt(probe, arm, "golden")
    _, proxy_SP = per_prompt(probe, arm, "proxy")
    _, online_SP = per_prompt(probe, online, "golden")
    final = compare_final(golden_SP[-1], online_SP[-1])
    fields: dict[str, Any] = {
        "arm": arm,
        "online_arm": online,
        "golden_final_minus_online_nats": final.value,
        "ci95_golden_final_minus_online": [final.low, final.high],
    }
    if golden_SP.shape[1] >= MIN_PROMPTS and len(steps_S) >= MIN_EVALUATIONS:
        excess = excess_over(steps_S, golden_SP, proxy_SP, online_SP).severity_hacking
        fields |= {"excess_hacking_nats": excess.value, "ci95_excess_hacking": [excess.low, excess.high]}
    return fields


def _offline_and_online(experiment: Experiment, finished: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of finished arms: one that keeps some responses for good, one that is always fresh."""
    fresh = {arm.name: all(s.refresh_every is not None for s in arm.sources) for arm in experiment.arms}
    return [(a, b) for a in finished for b in finished if not fresh[a] and fresh[b]]


def _severity_fields(verdict: Verdict) -> dict[str, Any]:
    def bounds(interval: Interval | None) -> list[float | None]:
        return [None, None] if interval is None else [interval.low, interval.high]

    def value(interval: Interval | None) -> float | None:
        return None if interval is None else interval.value

    return {
        "severity_nats": value(verdict.severity),
        "ci95": bounds(verdict.severity),
        "severity_hacking_nats": value(verdict.severity_hacking),
        "ci95_hacking": bounds(verdict.severity_hacking),
        "severity_overfitting_nats": value(verdict.severity_overfitting),
        "ci95_overfitting": bounds(verdict.severity_overfitting),
        "golden_rise_to_turn_nats": value(verdict.rise_to_turn),
        "ci95_golden_rise_to_turn": bounds(verdict.rise_to_turn),
    }


def _curve_fields(steps_S: np.ndarray, values_SP: np.ndarray) -> dict[str, Any]:
    mean_S = values_SP.mean(axis=1)
    final: Estimate = mean_estimate(values_SP[-1])
    return {
        "initial": float(mean_S[0]),
        "best": float(mean_S.min()),
        "best_step": int(steps_S[mean_S.argmin()]),
        "final": final.value,
        "final_stderr": final.stderr,
    }
