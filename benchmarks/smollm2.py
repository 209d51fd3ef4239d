"""Teacher hacking with a real oracle, SmolLM2-135M-Instruct: offline against online teacher, as one committed table.

    python -m assay.smollm2 --out runs/smollm2            # once; its docstring says what to install
    python benchmarks/smollm2.py [--runs runs/smollm2-runs] [--workers 1]       # resumable

The dials were chosen on seed 100. Writes benchmarks/smollm2/seed<n>.json (the runs' summaries), trimming.json,
results.md and figure.svg, after every seed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from assay.config_file import load
from assay.report.html import write_report
from assay.sweep import run_folder, run_sweep

OUT = Path(__file__).parent / "smollm2"

COLUMNS = (
    "seed",
    "d(oracle, teacher)",
    "arm",
    "verdict",
    "hacking severity [95 %]",
    "overfitting severity [95 %]",
    "golden start → best (step) → end",
    "proxy start → best (step) → end",
    "train proxy at the end",
    "ends above [95 %]",
)


def rows(summary: dict[str, Any]) -> str:
    """One row per arm, in Markdown."""
    lines = []
    for arm in summary["arms"]:
        above = [
            f"{pair['online_arm'].replace('_', ' ')}: "
            + interval(pair["golden_final_minus_online_nats"], pair["ci95_golden_final_minus_online"])
            for pair in summary["comparisons"]
            if pair["arm"] == arm["source"]
        ]
        cells = [
            arm["seed"],
            f"{summary['references']['d_oracle_teacher']:.2f}",
            arm["source"].replace("_", " "),
            arm["verdict"].replace("_", " "),
            interval(arm["severity_hacking_nats"], arm["ci95_hacking"]),
            interval(arm["severity_overfitting_nats"], arm["ci95_overfitting"]),
            curve(arm["golden"]),
            curve(arm["proxy"]),
            f"{arm['train_proxy']['final']:.2f}",
            "; ".join(above),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |\n")
    return "".join(lines)


def curve(values: dict[str, Any]) -> str:
    """Where a metric starts, is lowest, and ends."""
    return f"{values['initial']:.2f} → {values['best']:.2f} ({values['best_step']}) → {values['final']:.2f}"


def interval(value: float | None, bounds: list[float | None]) -> str:
    """A value with its 95 % interval, or a dash where there is none."""
    return "–" if value is None else f"{value:.2f} [{bounds[0]:.2f}, {bounds[1]:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--world", type=Path, default=Path("runs/smollm2"), help="the folder that was built")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/smollm2-runs"), help="where the runs go (not committed)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--workers", type=int, default=None, help="processes; one per core by default")
    arguments = parser.parse_args()
    experiment = load(arguments.world / "smollm2.yaml")
    OUT.mkdir(exist_ok=True)
    shutil.copy(arguments.world / "oracle" / "trimming.json", OUT / "trimming.json")
    table, folders = "", []
    for seed in arguments.seeds:
        run = dataclasses.replace(experiment, seed=seed)
        failures = run_sweep([run], arguments.runs, print, arguments.workers)
        if failures:
            raise SystemExit(f"seed {seed} failed: {failures}")
        folders.append(run_folder(run, arguments.runs))
        table += rows(json.loads(shutil.copy(folders[-1] / "summary.json", OUT / f"seed{seed}.json").read_text()))
        (OUT / "results.md").write_text(
            "# With a real oracle: the table\n\nMade by `python benchmarks/smollm2.py`. Nats per sequence on "
            f"{experiment.probe.num_prompts} held-out prompts; intervals are over prompts. The seeds share the world: "
            f"oracle, bases, corpus.\n\n| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n{table}"
        )
    report = write_report(folders, arguments.runs / "report")
    shutil.copy(report.parent / "figures" / "training_curves.svg", OUT / "figure.svg")


if __name__ == "__main__":
    main()
