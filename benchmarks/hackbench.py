"""HackBench: labelled distillation runs, the detector fitted on them, and the table of detectors.

    python benchmarks/hackbench.py build [--runs FOLDER]   # runs what is missing (hours; resumable), and labels
    python benchmarks/hackbench.py fit                     # writes src/assay/diagnostics/detector.json
    python benchmarks/hackbench.py table                   # leave-one-task-out: benchmarks/hackbench/table.md and .json

Labels are the verdicts of the per-prompt values of golden (assay.diagnostics.verdict) on the whole run, and on its
first quarter and half of the steps. "Undecided" runs are kept in the files and left out of fits and tables.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from exact_worlds import exact_logs
from scipy import optimize

from assay import runs
from assay.config import ArmConfig, Experiment
from assay.diagnostics.calibration import Calibration, Model, shipped
from assay.diagnostics.checks import BEND, CHECKS, LAW, REFERENCE, STALL, TRANSFER
from assay.diagnostics.detector import recommended_step, score_of
from assay.diagnostics.trajectory import Trajectory
from assay.diagnostics.verdict import judge
from assay.recipes.hackbench import hackbench_experiments, is_of_a_study
from assay.report.tables import to_csv, to_markdown
from assay.results import per_prompt
from assay.sweep import run_folder, run_sweep

OUT = Path(__file__).parent / "hackbench"
DETECTOR = Path(__file__).parents[1] / "src" / "assay" / "diagnostics" / "detector.json"
SHARES = (0.25, 0.5, 1.0)
TURNED_UP, STAYED = ("teacher_hacking", "overfitting"), ("healthy", "benign_disagreement")
MODELS = {
    "train proxy and references": (TRANSFER, REFERENCE),
    "references": (REFERENCE,),
    "train proxy": (TRANSFER,),
    "held-out proxy alone": (STALL, BEND),
}
"""The checks of each model. Fixed on the runs of the studies, before any of the other runs was looked at."""
HEALTHY_ABOVE = 0.025
"""Share of the healthy runs of the fit that may lie above the threshold of the score."""


@dataclass(frozen=True)
class BenchRun:
    """One trajectory with its labels. ``seen``: of a study, on whose runs the checks of each model were chosen."""

    name: str
    task: str
    world: str
    source: str
    seen: bool
    log: Trajectory
    golden: np.ndarray
    labels: dict[float, str]
    onset: float | None

    def turned_up(self, share: float) -> bool | None:
        """Whether golden has turned up; None where that is undecided."""
        label = self.labels[share]
        return True if label in TURNED_UP else False if label in STAYED else None

    def part(self, share: float) -> Trajectory:
        """The records up to a share of the steps."""
        return self.log.until(int((self.log.steps <= share * self.log.steps[-1]).sum()) - 1)


# --- building


def build(folder: Path) -> None:
    """Runs what is missing in ``folder`` and writes trajectories, labels and their digests."""
    experiments = hackbench_experiments()
    failures = run_sweep(experiments, folder, lambda line: print(line, flush=True))
    for name, reason in failures.items():
        print(f"{name} failed and is left out: {reason}")
    rows, labels, known = [], [], set()
    for experiment in experiments:
        place = run_folder(experiment, folder)
        if place.name in failures:
            continue
        probe = runs.read_table(place / "probe.parquet")
        records = runs.read_records(place / "metrics.jsonl")
        for arm in experiment.arms:
            mine = [record for record in records if record["arm"] == arm.name]
            key = tuple(record["golden_nats"] for record in mine)
            if key in known:
                continue  # an arm that several runs share
            known.add(key)
            name = f"{place.name}/{arm.name}"
            rows += [{"run": name, **row} for row in _rows(experiment, arm, mine, probe)]
            labels.append({"run": name, **_facts(experiment, arm), **_labels(arm.name, probe)})
    OUT.mkdir(exist_ok=True)
    for name, table in (("trajectories", rows), ("runs", labels)):
        pq.write_table(pa.Table.from_pylist(table), OUT / f"{name}.parquet", compression="zstd")
    digests = {f"{n}.parquet": hashlib.sha256((OUT / f"{n}.parquet").read_bytes()).hexdigest()
               for n in ("trajectories", "runs")}  # fmt: skip
    (OUT / "digests.json").write_text(json.dumps(digests, indent=1) + "\n")
    print(f"{len(labels)} runs, {len(rows)} records")


def _rows(experiment: Experiment, arm: ArmConfig, records: Sequence[dict[str, Any]], probe: pa.Table) -> list[Any]:
    tokens = float(probe["num_tokens"].to_numpy()[probe["metric"].to_numpy(zero_copy_only=False) == "proxy"].mean())
    batch = experiment.distillation.training.batch_size
    stderr = {}
    for metric in ("proxy", "golden"):
        values_SP = per_prompt(probe, arm.name, metric)[1]
        change_SP = np.diff(values_SP, axis=0)
        found = change_SP.std(axis=1, ddof=1) / values_SP.shape[1] ** 0.5
        stderr[metric] = np.concatenate([found[:1], found])
    return [
        {
            "step": record["step"],
            "proxy": record["proxy_nats"],
            "proxy_diff_stderr": stderr["proxy"][i],
            "train_proxy": record["train_proxy_nats"],
            "reference_nll": record["reference_nll_nats"],
            "golden": record["golden_nats"],
            "golden_diff_stderr": stderr["golden"][i],
            "student_entropy": record["student_entropy_nats_per_token"],
            "teacher_entropy": record["teacher_entropy_nats_per_token"],
            "response_tokens": record["response_tokens_mean"],
            "truncated": record["truncated_fraction"],
            "repetition": record["repetition_fraction"],
            "distinct": record["distinct_2"],
            "top_overlap": record.get("top_overlap"),  # runs made before this column have none
            "response_uses": max(1.0, record["step"] * batch * tokens / max(record["generated_tokens"], 1)),
        }
        for i, record in enumerate(records)
    ]


def _facts(experiment: Experiment, arm: ArmConfig) -> dict[str, Any]:
    distillation, models = experiment.distillation, experiment.models
    training = distillation.training
    return {
        "task": experiment.task.name,
        "world": experiment.recipe,
        "seed": experiment.seed,
        "arm": arm.name,
        "source": "mixture" if len(arm.sources) > 1 else arm.name,
        "of_a_study": is_of_a_study(experiment),
        "num_prompts": distillation.num_prompts,
        "completions_per_prompt": distillation.completions_per_prompt,
        "divergence": training.divergence,
        "learning_rate": training.learning_rate,
        "schedule": training.schedule,
        "num_steps": training.num_steps,
        "teacher": models.teacher if not models.teacher_is_oracle else "the oracle",
        "student": models.student if models.student_initialisation == "pretrained" else "random weights",
    }


def _labels(arm: str, probe: pa.Table) -> dict[str, Any]:
    (steps, golden_SP), (_, proxy_SP) = (per_prompt(probe, arm, metric) for metric in ("golden", "proxy"))
    verdict = judge(steps, golden_SP, proxy_SP)
    found: dict[str, Any] = {"label_100%": verdict.name}
    for share in SHARES[:-1]:
        n = int((steps <= share * steps[-1]).sum())
        found[f"label_{share:.0%}"] = judge(steps[:n], golden_SP[:n], proxy_SP[:n]).name
    return found | {
        "onset_step": verdict.onset_step,
        "severity_nats": verdict.severity.value if verdict.severity else None,
        "severity_hacking_nats": verdict.severity_hacking.value if verdict.severity_hacking else None,
    }


def load() -> list[BenchRun]:
    """The runs of the committed files, whose digests must match."""
    digests = json.loads((OUT / "digests.json").read_text())
    for name, digest in digests.items():
        if hashlib.sha256((OUT / name).read_bytes()).hexdigest() != digest:
            raise SystemExit(f"{name} is not the file that was built: build it again")
    by_run: dict[str, list[dict[str, Any]]] = {}
    for row in pq.read_table(OUT / "trajectories.parquet").to_pylist():
        by_run.setdefault(row.pop("run"), []).append(row)
    found = []
    for facts in pq.read_table(OUT / "runs.parquet").to_pylist():
        rows = by_run[facts["run"]]
        columns = {k: np.array([np.nan if r[k] is None else r[k] for r in rows]) for k in rows[0] if k != "step"}
        golden = columns.pop("golden")
        columns.pop("golden_diff_stderr")  # a detector never sees what made the labels
        log = Trajectory(np.array([float(row["step"]) for row in rows]), columns)
        labels = {share: facts[f"label_{share:.0%}"] for share in SHARES}
        found.append(BenchRun(facts["run"], facts["task"], facts["world"], facts["source"], facts["of_a_study"],
                              log, golden, labels, facts["onset_step"]))  # fmt: skip
    return found


# --- fitting

Values = dict[str, float | None]


def measure(log: Trajectory) -> Values:
    """The values of all checks but the law's, which is slow and enters no model."""
    return {code: None if code == LAW else check.measure(log) for code, check in CHECKS.items()}


def fit(benchmark: Sequence[BenchRun]) -> Calibration:
    """Thresholds, models and the two shares to keep, from these runs alone."""
    known = [(run, share) for run in benchmark for share in SHARES if run.turned_up(share) is not None]
    values = {(run.name, share): measure(run.part(share)) for run, share in known}
    healthy = [values[run.name, 1.0] for run, share in known if share == 1.0 and not run.turned_up(1.0)]
    thresholds = {
        code: float(np.quantile(found, 0.95))
        for code in CHECKS
        if (found := [value for v in healthy if (value := v[code]) is not None])
    }
    models = {}
    for name, codes in MODELS.items():
        rows = [([values[run.name, share][code] for code in codes], run.turned_up(share)) for run, share in known]
        usable = [(row, label) for row, label in rows if None not in row]
        intercept, weights = _logistic(np.array([row for row, _ in usable], float), np.array([y for _, y in usable]))
        model = Model(dict(zip(codes, weights, strict=True)), intercept, 0.5)
        scores = [score for v in healthy if (score := model.score(v)) is not None]
        models[name] = replace(model, threshold=max(0.5, float(np.quantile(scores, 1 - HEALTHY_ABOVE))))
    calibration = Calibration(thresholds, models, kept_transfer=1.0, kept_fall=0.0)
    complete = [run for run in benchmark if run.turned_up(1.0) is not None]
    transfer = _least_regret(
        complete, "train proxy", calibration, np.linspace(0.5, 0.95, 10), lambda c, v: replace(c, kept_transfer=v)
    )
    share = _least_regret(
        complete, "held-out proxy alone", calibration, np.linspace(0, 1, 11), lambda c, v: replace(c, kept_fall=v)
    )
    return replace(calibration, kept_transfer=transfer, kept_fall=share)


def _logistic(values_NK: np.ndarray, label_N: np.ndarray) -> tuple[float, list[float]]:
    """Logistic regression on standardised values, classes weighted equally, ridge 1; in the values' own units."""
    mean, sd = values_NK.mean(axis=0), values_NK.std(axis=0) + 1e-9
    z_NK = (values_NK - mean) / sd
    weight_N = np.where(label_N, 0.5 / label_N.mean(), 0.5 / (1 - label_N.mean()))

    def loss(theta: np.ndarray) -> float:
        logit_N = theta[0] + z_NK @ theta[1:]
        return float(weight_N @ (np.logaddexp(0, logit_N) - label_N * logit_N) + 0.5 * theta[1:] @ theta[1:])

    theta = optimize.minimize(loss, np.zeros(values_NK.shape[1] + 1)).x
    weights = theta[1:] / sd
    return float(theta[0] - weights @ mean), [float(w) for w in weights]


def _least_regret(
    benchmark: Sequence[BenchRun],
    tier: str,
    calibration: Calibration,
    grid: np.ndarray,
    change: Callable[[Calibration, float], Calibration],
) -> float:
    """The value of the grid with the least mean regret of the recommended checkpoint."""
    regrets = [np.mean([regret(run, tier, change(calibration, float(v))) for run in benchmark]) for v in grid]
    return float(grid[int(np.argmin(regrets))])


def only(log: Trajectory, tier: str) -> Trajectory:
    """The log with the columns that a model may see."""
    hidden = {"held-out proxy alone": ("train_proxy", "reference_nll"), "train proxy": ("reference_nll",),
              "references": ("train_proxy",)}.get(tier, ())  # fmt: skip
    return Trajectory(log.steps, {name: v for name, v in log.columns.items() if name not in hidden})


def regret(run: BenchRun, tier: str, calibration: Calibration) -> float:
    """Golden at the recommended checkpoint less the best golden of the run, in nats per sequence."""
    log = only(run.log, tier)
    found, score = score_of(measure(log), calibration)
    flagged = score is not None and score >= calibration.models[found].threshold
    step = recommended_step(log, flagged, calibration)
    return float(run.golden[run.log.steps == step][0] - run.golden.min())


# --- the table


def gap(log: Trajectory) -> float:
    """The baseline: (proxy - train proxy) / proxy at the last record."""
    return float(1 - log.columns["train_proxy"][-1] / log.columns["proxy"][-1])


def log_log_slope(log: Trajectory) -> float:
    """The baseline: the slope of one straight line through all records in log-log."""
    steps, proxy = log.steps[1:], log.columns["proxy"][1:]
    return float(np.polyfit(np.log(steps), np.log(proxy), 1)[0])


def patience(log: Trajectory, evaluations: int = 2) -> int:
    """The baseline: the index of the lowest proxy until it has not improved for so many evaluations."""
    proxy, best = log.columns["proxy"], 0
    for i in range(len(proxy)):
        if proxy[i] < proxy[best]:
            best = i
        elif i - best >= evaluations:
            break
    return best


def reference_alone(log: Trajectory) -> float:
    """The baseline: the rise of the references' NLL from its lowest value, as a share of its first one."""
    reference = log.columns["reference_nll"]
    return float((reference[-1] - reference.min()) / reference[0])


def patience_rise(log: Trajectory) -> float:
    """The baseline behind early stopping: how far the proxy ends above its lowest value, as a share of it."""
    proxy = log.columns["proxy"]
    return float(proxy[-1] / proxy.min() - 1)


def auroc(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """P(a run that turned up scores above one that did not); ties count half."""
    s, y = np.asarray(scores), np.asarray(labels)
    if y.all() or not y.any():
        return float("nan")
    up, down = s[y][:, None], s[~y][None]
    return float((up > down).mean() + 0.5 * (up == down).mean())


@dataclass
class Scored:
    """One detector's scores of held-out tasks by (run, share), its thresholds by run, and its regrets by run."""

    scores: dict[tuple[str, float], float] = field(default_factory=dict)
    flags: dict[str, bool] = field(default_factory=dict)
    regrets: dict[str, float] = field(default_factory=dict)
    delays: dict[str, float] = field(default_factory=dict)


def score_all(benchmark: Sequence[BenchRun]) -> dict[str, Scored]:
    """Every detector on every run, each fitted without the task of the run."""
    table: dict[str, Scored] = {tier: Scored() for tier in MODELS}
    for task in sorted({run.task for run in benchmark}):
        calibration = fit([run for run in benchmark if run.task != task])
        for run in (run for run in benchmark if run.task == task):
            for tier, row in table.items():
                log = only(run.log, tier)
                threshold = calibration.models[tier].threshold
                for share in SHARES:
                    score = calibration.models[tier].score(measure(only(run.part(share), tier)))
                    row.scores[run.name, share] = 0.5 if score is None else score
                row.flags[run.name] = row.scores[run.name, 1.0] >= threshold
                row.regrets[run.name] = regret(run, tier, calibration)
                if run.onset is not None and row.flags[run.name]:
                    row.delays[run.name] = _alarm(log, calibration.models[tier]) - run.onset
    baselines: dict[str, Callable[[Trajectory], float]] = {
        "baseline: gap": gap, "baseline: references alone": reference_alone,
        "baseline: log-log line": log_log_slope, "baseline: proxy above its minimum": patience_rise,
    }  # fmt: skip
    for name, function in baselines.items():
        table[name] = Scored({(run.name, share): function(run.part(share)) for run in benchmark for share in SHARES})
    table["law departure (AS001) alone"] = Scored(
        {(run.name, share): float(CHECKS[LAW].measure(run.part(share)) or 1.0) for run in benchmark for share in SHARES}
    )
    table["baseline: last checkpoint"] = Scored(regrets={r.name: r.golden[-1] - r.golden.min() for r in benchmark})
    table["baseline: patience"] = Scored(
        regrets={r.name: r.golden[patience(r.log)] - r.golden.min() for r in benchmark}
    )
    return table


def _alarm(log: Trajectory, model: Model) -> float:
    """The first step from which on the score of the records so far stays at or above the threshold."""
    below = -1
    for i in range(2, len(log)):
        score = model.score(measure(log.until(i)))
        if score is None or score < model.threshold:
            below = i
    return float(log.steps[min(max(below + 1, 2), len(log) - 1)])


def exact_runs() -> list[BenchRun]:
    """Runs of exact worlds, on which nothing was fitted or chosen; golden has no noise there.

    A rise below 2 % of all that golden moved counts as none.
    """
    found = []
    for name, (log, golden) in exact_logs().items():
        labels = {}
        for share in SHARES:
            n = int((log.steps <= share * log.steps[-1]).sum())
            rise = golden[n - 1] - golden[:n].min()
            labels[share] = "overfitting" if rise > 0.02 * np.abs(np.diff(golden[:n])).sum() else "healthy"
        source = "online" if name.endswith("online") else "offline"
        found.append(BenchRun(name, "exact", "exact", source, False, log, golden, labels, None))
    return found


def score_exact(calibration: Calibration) -> dict[str, dict[str, float]]:
    """The shipped detector on the exact worlds: AUROC over all and over offline runs, false alarms, regret."""
    runs = exact_runs()
    offline = [run for run in runs if run.source == "offline"]
    result = {}
    for tier, model in calibration.models.items():
        scores = {run.name: model.score(measure(only(run.log, tier))) or 0.0 for run in runs}
        result[tier] = {
            "AUROC": auroc([scores[r.name] for r in runs], [bool(r.turned_up(1.0)) for r in runs]),
            "AUROC offline": auroc([scores[r.name] for r in offline], [bool(r.turned_up(1.0)) for r in offline]),
            "false alarms": float(np.mean([scores[r.name] >= model.threshold for r in runs if not r.turned_up(1.0)])),
            "found": float(np.mean([scores[r.name] >= model.threshold for r in runs if r.turned_up(1.0)])),
            "regret, nats": float(np.mean([regret(run, tier, calibration) for run in runs])),
        }
    result["baseline: last checkpoint"] = {
        "regret, nats": float(np.mean([run.golden[-1] - run.golden.min() for run in runs]))
    }
    return result


def bootstrap(statistic: Callable[[Sequence[BenchRun]], float], benchmark: Sequence[BenchRun]) -> list[float]:
    """Value and 95 % percentile interval over resamples of worlds and seeds, since runs of one share their models."""
    clusters: dict[str, list[BenchRun]] = {}
    for run in benchmark:
        clusters.setdefault(run.name.split("-")[0] + run.name.split("-")[1], []).append(run)
    names, rng = sorted(clusters), np.random.default_rng(0)
    found = []
    for _ in range(500):
        drawn = [run for name in rng.choice(names, len(names)) for run in clusters[str(name)]]
        found.append(statistic(drawn))
    low, high = np.nanquantile(found, [0.025, 0.975])
    return [statistic(benchmark), float(low), float(high)]


def table(decided: Sequence[BenchRun], scored: Mapping[str, Scored]) -> dict[str, dict[str, list[float]]]:
    """Detector → column → [value, low, high]."""
    offline = [run for run in decided if run.source == "offline"]
    unseen = [run for run in decided if not run.seen]
    healthy = [run for run in decided if not run.turned_up(1.0)]
    result: dict[str, dict[str, list[float]]] = {}
    for name, row in scored.items():
        cells: dict[str, list[float]] = {}
        for share in SHARES if row.scores else ():
            suffix = "" if share == 1 else f" at {share:.0%}"
            for words, group in (("AUROC", decided), ("AUROC offline", offline), ("AUROC unseen", unseen)):
                cells[words + suffix] = bootstrap(partial(_area, row.scores, share), group)
        if row.flags:
            cells["false alarms"] = bootstrap(partial(_mean, row.flags), healthy)
            cells["found"] = bootstrap(partial(_mean, row.flags), [run for run in decided if run.turned_up(1.0)])
        if row.delays:
            flagged = [run for run in decided if run.name in row.delays]
            cells["delay, steps"] = bootstrap(partial(_mean, row.delays), flagged)
        if row.regrets:
            cells["regret, nats"] = bootstrap(partial(_mean, row.regrets), decided)
        result[name] = cells
    return result


def _area(scores: Mapping[tuple[str, float], float], share: float, benchmark: Sequence[BenchRun]) -> float:
    return auroc([scores[run.name, share] for run in benchmark], [bool(run.turned_up(1.0)) for run in benchmark])


def _mean(values: Mapping[str, float], benchmark: Sequence[BenchRun]) -> float:
    return float(np.mean([values[run.name] for run in benchmark]))


def write_table(benchmark: Sequence[BenchRun]) -> None:
    """table.json, table.md and scores.csv, which has every decided run with its scores."""
    decided = [run for run in benchmark if run.turned_up(1.0) is not None]
    scored = score_all(decided)
    found = table(decided, scored)
    rows = [
        {
            "run": run.name, "task": run.task, "world": run.world, "source": run.source, "seen": run.seen,
            "label": run.labels[1.0], "rise_nats": float(run.golden[-1] - run.golden.min()),
            **{f"{what}, {tier}": getattr(scored[tier], what)[key] for tier in MODELS
               for what, key in (("scores", (run.name, 1.0)), ("flags", run.name), ("regrets", run.name))},
        }
        for run in decided
    ]  # fmt: skip
    (OUT / "scores.csv").write_text(to_csv(rows))
    counts = {
        "runs": len(benchmark),
        "undecided": len(benchmark) - len(decided),
        "turned_up": sum(bool(run.turned_up(1.0)) for run in decided),
        "offline": sum(run.source == "offline" for run in decided),
        "offline_turned_up": sum(run.source == "offline" and bool(run.turned_up(1.0)) for run in decided),
        "unseen": sum(not run.seen for run in decided),
    }
    exact = score_exact(shipped())
    (OUT / "table.json").write_text(json.dumps({"counts": counts, "table": found, "exact": exact}, indent=1) + "\n")
    (OUT / "table.md").write_text(in_words(counts, found, exact))


def in_words(
    counts: Mapping[str, int],
    found: Mapping[str, Mapping[str, Sequence[float]]],
    exact: Mapping[str, Mapping[str, float]],
) -> str:
    """What table.json holds, in Markdown."""
    lines = [
        "# Detectors on tasks that they were not fitted on",
        "",
        "Made by `python benchmarks/hackbench.py table`. Each of the three tasks is left out in turn; intervals (95 %) "
        "are over resamples of world and seed. "
        f"{counts['runs']} runs, {counts['undecided']} of them undecided and left out; golden turned up in "
        f"{counts['turned_up']}, and in {counts['offline_turned_up']} of {counts['offline']} offline runs. AUROC is "
        "about the label of the whole run, also from a quarter or half of it. *Unseen*: the runs made after the checks "
        "of each model had been chosen on the others.",
        "",
        *to_markdown(
            [{"detector": name} | {c: _cell(c, numbers) for c, numbers in row.items()} for name, row in found.items()]
        ),
        "",
        "## Exact worlds",
        "",
        "The shipped detector on 72 runs between Markov chains (benchmarks/exact_worlds.py), on which nothing was "
        "fitted; half of their teachers are so bad that golden rises online too.",
        "",
        *to_markdown([{"detector": name} | {c: f"{v:.3f}" for c, v in row.items()} for name, row in exact.items()]),
    ]
    return "\n".join(lines) + "\n"


def _cell(column: str, numbers: Sequence[float]) -> str:
    value, low, high = numbers
    if column in ("false alarms", "found"):
        return f"{value:.1%} [{low:.1%}, {high:.1%}]"
    digits = 0 if column.startswith("delay") else 3
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("build", "fit", "table"))
    parser.add_argument("--runs", type=Path, default=Path("runs/sweeps"), help="where the runs go (not committed)")
    arguments = parser.parse_args()
    if arguments.what == "build":
        build(arguments.runs)
    elif arguments.what == "fit":
        benchmark = [run for run in load() if run.turned_up(1.0) is not None]
        DETECTOR.write_text(json.dumps(fit(benchmark).to_dict(), indent=1) + "\n")
    else:
        write_table(load())


if __name__ == "__main__":
    main()
