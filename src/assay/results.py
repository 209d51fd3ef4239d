"""From the files of the arms to the files of the run: merged tables, verdicts, summary.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assay import runs
from assay.config import Experiment
from assay.diagnostics.detector import Detector, Diagnosis
from assay.diagnostics.verdict import (
    MIN_EVALUATIONS,
    MIN_PROMPTS,
    Verdict,
    compare_final,
    excess_over,
    judge,
)
from assay.errors import AssayError
from assay.policy import as_a_log
from assay.statistics import Estimate, Interval, mean_estimate
from assay.token_table import TOKENS_SCHEMA

Truth = Literal["oracle", "references"]
ProxyIs = Literal["exact", "lower_bound", "up_to_a_constant"]
GOLDEN_METRIC: dict[Truth, str] = {"oracle": "golden", "references": "reference_nll"}
"""The metric of the probe that is golden, by what the truth is; that of references is golden up to a constant."""


def merge_arms(folder: Path, arms: Sequence[str]) -> None:
    """Writes metrics.jsonl, and probe, responses and tokens.parquet of the run from its stage 1 and these arms.

    ``seconds`` in the last record of an arm become those of the whole arm, with its end.
    """
    records = [record for arm in arms for record in _records(folder / "arms" / arm)]
    text = "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)
    runs.write_text(folder / "metrics.jsonl", text)
    arm_folders = [folder / "arms" / arm for arm in arms]
    stage_one = folder / "stage1"
    probe = sorted(stage_one.glob("d_oracle_teacher.parquet"))  # none without an oracle
    responses = [*sorted(stage_one.glob("oracle-*.parquet")), *sorted(stage_one.glob("held_out-*.parquet"))]
    tokens: list[Path] = []
    for arm_folder in arm_folders:
        probe += sorted((arm_folder / "probe").glob("*.parquet"))
        responses += [arm_folder / "train_pairs.parquet", *sorted((arm_folder / "samples").glob("*.parquet"))]
        tokens += sorted((arm_folder / "tokens").glob("*.parquet"))  # none in an arm that an older version ran
    for name, parts in (("probe", probe), ("responses", responses)):
        runs.write_table(folder / f"{name}.parquet", pa.concat_tables([runs.read_table(part) for part in parts]))
    shown = pa.concat_tables([TOKENS_SCHEMA.empty_table(), *map(runs.read_table, tokens)])
    runs.write_table(folder / "tokens.parquet", shown)


def _records(arm_folder: Path) -> list[dict[str, Any]]:
    records = runs.read_records(arm_folder / "metrics.jsonl")
    finished = runs.read_json(arm_folder / "finished.json")
    for record in records[-1:]:
        record["seconds"] = finished.get("seconds", record["seconds"])  # an older version has not written them
    return records


def write_summary(folder: Path, experiment: Experiment, arms: Sequence[str], wall_seconds: float) -> None:
    """Judges these arms and writes summary.json (schema assay.summary/1).

    ``truth`` says what "golden" is in it: KL(oracle‖student) for "oracle"; −log student of the held-out references,
    which is golden up to a constant, for "references"; nothing for None, where the detector gives the verdict.
    ``proxy_is`` says the same of "proxy": see ``proxy_is``.
    """
    probe = runs.read_table(folder / "probe.parquet")
    records = runs.read_records(folder / "metrics.jsonl")
    kept = {arm: kept_step(folder, arm) for arm in arms}
    truth = truth_of(experiment, probe)
    distance = probe.filter(pc.field("metric") == "d_oracle_teacher")["value_nats"].to_numpy()
    start = {name: values_SP[0] for name, values_SP in judged_curves(probe, arms[0], truth)[1].items()}
    summary = {
        "schema": "assay.summary/1",
        "unit": "nats_per_sequence",
        "task": experiment.task.name,
        "wall_seconds": wall_seconds,
        "truth": truth,
        "proxy_is": proxy_is(experiment),
        "references": {
            "d_oracle_teacher": float(distance.mean()) if truth == "oracle" else None,
            "golden_at_start": float(start["golden"].mean()) if truth is not None else None,
            "proxy_at_start": float(start["proxy"].mean()),
        },
        "arms": [
            {"teacher_signals": runs.read_json(folder / "arms" / arm / "finished.json").get("teacher_signals")}
            | summarise_arm(
                *(probe, arm, experiment.seed, [r for r in records if r["arm"] == arm]),
                *(truth, kept[arm], proxy_is(experiment), recommended_step(folder, arm)),
            )
            for arm in arms
        ],
        "comparisons": [
            compare_with_online(probe, arm, online, truth, kept)
            for arm, online in _offline_and_online(experiment, arms)
            if truth is not None
        ],
    }
    runs.write_json(folder / "summary.json", summary)


def proxy_is(experiment: Experiment) -> ProxyIs:
    """What a run's proxy and train proxy are.

    KL(teacher‖student); a lower bound of it where the teacher lists its most probable tokens; −log student of the
    teacher's responses, which is the KL up to a constant, where its text is all there is.
    """
    if "teacher" not in experiment.models.names:
        return "up_to_a_constant"
    listed = experiment.models.teacher_url is not None or experiment.distillation.teacher_top_k is not None
    return "lower_bound" if listed else "exact"


def truth_of(experiment: Experiment, probe: pa.Table) -> Truth | None:
    """What the truth of a run is: its oracle, else the held-out references where there are any."""
    if experiment.models.oracle is not None:
        return "oracle"
    return "references" if len(probe.filter(pc.field("metric") == "reference_nll")) else None


def judged_curves(probe: pa.Table, arm: str, truth: Truth | None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Steps [S], and the values [S, P] of proxy and, where there is a truth, golden, on the same prompts."""
    rows = probe.filter(pc.field("arm") == arm)
    if truth == "references":  # not every prompt has one
        answered = rows.filter(pc.field("metric") == "reference_nll")["prompt_id"].unique()
        rows = rows.filter(pc.field("prompt_id").isin(answered))
    curves = {"proxy": per_prompt(rows, arm, "proxy")} | (
        {"golden": per_prompt(rows, arm, GOLDEN_METRIC[truth])} if truth is not None else {}
    )
    return curves["proxy"][0], {name: values_SP for name, (_, values_SP) in curves.items()}


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


def kept_step(folder: Path, arm: str) -> int | None:
    """The step of the student that an arm has left: that of its end, unless a policy went back. None for the end."""
    return runs.read_json(folder / "arms" / arm / "finished.json").get("kept_step")


def recommended_step(folder: Path, arm: str) -> int | None:
    """The step of the student that an arm without a truth has kept as its best; None where a truth chose it."""
    return runs.read_json(folder / "arms" / arm / "finished.json").get("recommended_step")


def at_step(steps_S: np.ndarray, values_SP: np.ndarray, step: int | None) -> np.ndarray:
    """The values [P] of an evaluated step; of the last one for None."""
    return values_SP[-1] if step is None else values_SP[int(np.flatnonzero(steps_S == step)[0])]


def summarise_arm(
    probe: pa.Table,
    arm: str,
    seed: int,
    records: Sequence[dict[str, Any]],
    truth: Truth | None = "oracle",
    kept: int | None = None,
    measured: ProxyIs = "exact",
    recommended: int | None = None,
) -> dict[str, Any]:
    """One entry of summary.json's ``arms``; ``kept`` is the step of the student that it leaves, which "final" is of.

    ``detector`` is what the detector says of the log alone; without a truth it is the verdict, unless the proxy is
    known up to a constant: then nothing is known that could decide. ``recommended`` is the step of the student that an
    arm without a truth has kept as its best. Tokens are None where the records do not count
    them.
    """
    if not records:
        raise AssayError(f"arms/{arm}/metrics.jsonl is missing: delete arms/{arm}; the same command repeats it")
    steps_S, curves = judged_curves(probe, arm, truth)
    detector = Detector()
    for record in records:
        detector.update(as_a_log(record))
    diagnosis, golden_SP = detector.diagnose(), curves.get("golden")
    last = records[-1]
    final = last if kept is None else next(record for record in records if record["step"] == kept)
    return {
        "source": arm,
        "seed": seed,
        **(
            _verdict_fields(judge(steps_S, golden_SP, curves["proxy"]))
            if golden_SP is not None
            else _word_of_the_detector(diagnosis, recommended)
            if measured != "up_to_a_constant"
            else _unknown(int(steps_S[-1]))
        ),
        "kept_step": final["step"],
        "alarm_step": next((record["step"] for record in records if record.get("alarm")), None),
        "actions": [{"step": record["step"], **record["action"]} for record in records if record.get("action")],
        "detector": {
            "verdict": diagnosis.verdict,
            "score": diagnosis.score,
            "recommended_step": diagnosis.recommended_step,
        },
        "golden": None if golden_SP is None else _curve_fields(steps_S, golden_SP, kept),
        "proxy": _curve_fields(steps_S, curves["proxy"], kept),
        "train_proxy": {"final": final["train_proxy_nats"]},
        "generated_tokens": last.get("generated_tokens"),
        "teacher_tokens": last.get("teacher_tokens"),
    }


def compare_with_online(
    probe: pa.Table,
    arm: str,
    online: str,
    truth: Truth,
    kept: Mapping[str, int | None] | None = None,
) -> dict[str, Any]:
    """What an offline arm lost over an online arm on the same prompts at the same steps.

    ``excess_hacking_nats`` is its hacking severity less what golden did in the online arm between the same steps
    (an early transient is common to both), over the steps that both have; ``golden_final_minus_online_nats`` compares
    the students that they leave. Both paired over the held-out prompts.
    """
    kept = kept or {}
    steps_S, curves = judged_curves(probe, arm, truth)
    golden_SP, proxy_SP = curves["golden"], curves["proxy"]
    online_steps_S, online_SP = per_prompt(probe, online, GOLDEN_METRIC[truth])
    final = compare_final(
        at_step(steps_S, golden_SP, kept.get(arm)), at_step(online_steps_S, online_SP, kept.get(online))
    )
    both, mine, theirs = np.intersect1d(steps_S, online_steps_S, return_indices=True)
    fields: dict[str, Any] = {
        "arm": arm,
        "online_arm": online,
        "golden_final_minus_online_nats": final.value,
        "ci95_golden_final_minus_online": [final.low, final.high],
    }
    if golden_SP.shape[1] >= MIN_PROMPTS and len(both) >= MIN_EVALUATIONS:
        excess = excess_over(both, golden_SP[mine], proxy_SP[mine], online_SP[theirs]).severity_hacking
        fields |= {"excess_hacking_nats": excess.value, "ci95_excess_hacking": [excess.low, excess.high]}
    return fields


def _offline_and_online(experiment: Experiment, finished: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of finished arms: one that keeps some responses for good, one that is always fresh."""
    fresh = {arm.name: all(s.refresh_every is not None for s in arm.sources) for arm in experiment.arms}
    return [(a, b) for a in finished for b in finished if not fresh[a] and fresh[b]]


def _verdict_fields(verdict: Verdict) -> dict[str, Any]:
    return {
        "verdict": verdict.name,
        "reason": verdict.reason,
        **_severity_fields(verdict),
        "smallest_detectable_nats": verdict.smallest_detectable_nats,
        "onset_step": verdict.onset_step,
        "best_step": verdict.best_step,
    }


def _word_of_the_detector(diagnosis: Diagnosis, recommended: int | None) -> dict[str, Any]:
    """The same fields where nothing but the detector judges: it has no severity, and its best step is its advice.

    That is ``recommended`` where the arm has acted on it: after going back the detector forgets what was undone.
    """
    return {
        "verdict": diagnosis.verdict,
        "reason": f"no truth to judge by, so the detector's word: {'; '.join(diagnosis.reasons[:2])}",
        **_severity_fields(None),
        "smallest_detectable_nats": None,
        "onset_step": None if diagnosis.onset_step is None else int(diagnosis.onset_step),
        "best_step": int(diagnosis.recommended_step) if recommended is None else recommended,
    }


def _unknown(last_step: int) -> dict[str, Any]:
    """The same fields where neither a truth nor the level of the proxy is known."""
    return {
        "verdict": "undecided",
        "reason": (
            "the teacher gives text only and there are no references: neither the truth nor the distance to the "
            "teacher is measured, and the detector cannot judge curves that are known up to a constant"
        ),
        **_severity_fields(None),
        "smallest_detectable_nats": None,
        "onset_step": None,
        "best_step": last_step,
    }


def _severity_fields(verdict: Verdict | None) -> dict[str, Any]:
    def bounds(interval: Interval | None) -> list[float | None]:
        return [None, None] if interval is None else [interval.low, interval.high]

    def value(interval: Interval | None) -> float | None:
        return None if interval is None else interval.value

    intervals = {
        "severity": verdict and verdict.severity,
        "severity_hacking": verdict and verdict.severity_hacking,
        "severity_overfitting": verdict and verdict.severity_overfitting,
        "golden_rise_to_turn": verdict and verdict.rise_to_turn,
    }
    fields: dict[str, Any] = {}
    for name, interval in intervals.items():
        fields[f"{name}_nats"] = value(interval)
        fields["ci95" + name.removeprefix("severity").replace("golden", "_golden")] = bounds(interval)
    return fields


def _curve_fields(steps_S: np.ndarray, values_SP: np.ndarray, kept: int | None) -> dict[str, Any]:
    mean_S = values_SP.mean(axis=1)
    final: Estimate = mean_estimate(at_step(steps_S, values_SP, kept))
    return {
        "initial": float(mean_S[0]),
        "best": float(mean_S.min()),
        "best_step": int(steps_S[mean_S.argmin()]),
        "final": final.value,
        "final_stderr": final.stderr,
    }
