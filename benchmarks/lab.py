"""The lab's own results: quickstart on five seeds and the controls, as one committed table.

    python benchmarks/lab.py [--runs FOLDER]        # about 20 minutes on two cores; resumable

The dials were chosen on seed 100 and tried on 101, on bases of an earlier build of the same recipe. Quickstart is
reported on seeds 11-15, which no choice has seen (0-5 were looked at with those earlier bases). Writes
benchmarks/lab/<recipe>-seed<n>.json (the runs' summaries), results.json (what is counted) and results.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from assay import get_recipe, run_experiment
from assay.statistics import mean_over_seeds, sign_test, t_interval

PLAN = {"quickstart": range(11, 16), "oracle_as_teacher": range(2), "random_student": range(2)}
OUT = Path(__file__).parent / "lab"


def summaries(recipe: str, runs: Path) -> list[dict[str, Any]]:
    """Runs what is missing and returns the summaries of all seeds."""
    found = []
    for seed in PLAN[recipe]:
        folder = runs / f"{recipe}-seed{seed}"
        run_experiment(dataclasses.replace(get_recipe(recipe), seed=seed), folder)
        shutil.copy(folder / "summary.json", OUT / f"{folder.name}.json")
        found.append(json.loads((folder / "summary.json").read_text()))
        manifest = json.loads((folder / "manifest.json").read_text())
        found[-1]["commit"] = (manifest["commit"] or "unknown")[:12] + (" (modified)" if manifest["dirty"] else "")
        print(folder.name, [(arm["source"], arm["verdict"]) for arm in found[-1]["arms"]], flush=True)
    return found


def proxy_held(arm: dict[str, Any]) -> bool:
    """Held-out proxy at the end within 5 % of its minimum."""
    return arm["proxy"]["final"] <= 1.05 * arm["proxy"]["best"]


def quickstart_claims(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """In how many seeds each promise of the quickstart holds, whatever the number."""
    arms = [{arm["source"]: arm for arm in run["arms"]} for run in runs]
    offline = [a["offline"] for a in arms]
    claims: dict[str, Any] = {
        "seeds": len(runs),
        "offline: teacher_hacking": sum(a["verdict"] == "teacher_hacking" for a in offline),
        "offline: proxy ends within 5 % of its minimum": sum(proxy_held(a) for a in offline),
        "offline: golden is lowest after step 0": sum(a["best_step"] > 0 for a in offline),
        "offline: steps of the lowest golden": [a["best_step"] for a in offline],
    }
    for online in ("online_teacher", "online_student"):
        pairs = [next(c for c in run["comparisons"] if c["online_arm"] == online) for run in runs]
        differences = [pair["golden_final_minus_online_nats"] for pair in pairs]
        over_seeds = t_interval(mean_over_seeds([[d] for d in differences]))
        claims |= {
            f"{online}: healthy": sum(a[online]["verdict"] == "healthy" for a in arms),
            f"{online}: teacher_hacking": sum(a[online]["verdict"] == "teacher_hacking" for a in arms),
            f"{online}: ends below offline (paired interval excludes 0)": sum(
                pair["ci95_golden_final_minus_online"][0] > 0 for pair in pairs
            ),
            f"{online}: hacking of offline in excess of it (interval excludes 0)": sum(
                pair["ci95_excess_hacking"][0] > 0 for pair in pairs
            ),
            f"{online}: offline ends above it by, mean over seeds [95 % t interval]": (
                f"{over_seeds.value:.2f} [{over_seeds.low:.2f}, {over_seeds.high:.2f}] nats"
            ),
            f"{online}: exact one-sided sign test over seeds": sign_test(differences),
        }
    return claims | {"wall_seconds": [round(run["wall_seconds"]) for run in runs]}


def table(recipe: str, runs: list[dict[str, Any]]) -> str:
    """One row per seed and arm, in Markdown."""
    lines = [
        f"\n## {recipe}\n",
        "| seed | arm | verdict | hacking severity [95 %] | golden start → best (step) → end | proxy |",
        "|---|---|---|---|---|---|",
    ]
    for run in runs:
        for arm in run["arms"]:
            golden, proxy = arm["golden"], arm["proxy"]
            low, high = arm["ci95_hacking"]
            lines.append(
                f"| {arm['seed']} | {arm['source']} | {arm['verdict'].replace('_', ' ')} "
                f"| {arm['severity_hacking_nats']:.2f} [{low:.2f}, {high:.2f}] "
                f"| {golden['initial']:.2f} → {golden['best']:.2f} ({golden['best_step']}) → {golden['final']:.2f} "
                f"| {proxy['initial']:.2f} → {proxy['best']:.2f} → {proxy['final']:.2f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/lab"), help="where the runs go (not committed)")
    arguments = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    results = {recipe: summaries(recipe, arguments.runs) for recipe in PLAN}
    claims = quickstart_claims(results["quickstart"])
    claims["commits"] = sorted({run["commit"] for runs in results.values() for run in runs})
    (OUT / "results.json").write_text(json.dumps(claims, indent=1) + "\n")
    head = (
        "# The lab's results\n\nMade by `python benchmarks/lab.py`. Nats per sequence on 384 held-out prompts; "
        "intervals are over prompts, and all seeds "
        "share the three embedded bases.\n\n| quickstart | |\n|---|---|\n"
        + "".join(f"| {claim} | {value} |\n" for claim, value in claims.items())
    )
    (OUT / "results.md").write_text(head + "".join(table(recipe, runs) for recipe, runs in results.items()))
    print(json.dumps(claims, indent=1))


if __name__ == "__main__":
    main()
