"""Where the detector is right, and where it is blind: figures from the committed tables of HackBench.

python benchmarks/detector_figures.py        # writes benchmarks/hackbench/scores.svg and blind.md
"""

from __future__ import annotations

import csv

import numpy as np
from hackbench import MODELS, OUT, TURNED_UP
from matplotlib.figure import Figure

from assay.diagnostics.calibration import shipped
from assay.report.style import ARM_COLOURS, MUTED, in_style, to_svg
from assay.report.tables import to_markdown

SOURCES = ("offline", "online_teacher", "online_student", "mixture or refresh")


def read() -> list[dict[str, str]]:
    """The rows of scores.csv."""
    with (OUT / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def kind(row: dict[str, str]) -> str:
    """The source, as the figure groups it."""
    return row["source"] if row["source"] in SOURCES else SOURCES[-1]


def draw(rows: list[dict[str, str]]) -> Figure:
    """For each model: the score of every run (without its task) over how far golden ends above its best."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels = figure.subplots(1, len(MODELS), sharey=True)
    for axes, tier in zip(panels, MODELS, strict=True):
        for number, source in enumerate(SOURCES):
            mine = [row for row in rows if kind(row) == source]
            rise = [max(float(row["rise_nats"]), 1e-2) for row in mine]
            axes.plot(rise, [float(row[f"scores, {tier}"]) for row in mine], "o", ms=3, alpha=0.6,
                      color=ARM_COLOURS[number], label=source.replace("_", " "))  # fmt: skip
        axes.axhline(shipped().models[tier].threshold, color=MUTED, lw=1, ls="--")
        axes.set_xscale("log")
        axes.set_xticks([0.01, 0.1, 1, 10, 100], ["0", "0.1", "1", "10", "100"])
        axes.set_xticks([], minor=True)
        axes.set(title=tier, xlabel="golden: end above best, nats")
    panels[0].set_ylabel("score")
    panels[0].legend(fontsize=7)
    return figure


def blind(rows: list[dict[str, str]]) -> str:
    """Every run that was judged wrongly by a model with a train proxy or references, as a table."""
    tiers = [tier for tier in MODELS if tier != "held-out proxy alone"]
    found = []
    for row in rows:
        truth = row["label"] in TURNED_UP
        wrong = [tier for tier in tiers if (row[f"flags, {tier}"] == "True") != truth]
        if wrong:
            found.append(
                {
                    "run": row["run"],
                    "label": row["label"].replace("_", " "),
                    "golden: end above best": f"{float(row['rise_nats']):.2f}",
                    **{t: f"{float(row[f'scores, {t}']):.2f}{' **wrong**' if t in wrong else ''}" for t in tiers},
                }
            )
    title = [
        "# Runs that were judged wrongly",
        "",
        "Made by `python benchmarks/detector_figures.py` from scores.csv.",
        "",
    ]
    return "\n".join([*title, *to_markdown(found)]) + "\n"


def main() -> None:
    rows = read()
    with in_style():
        (OUT / "scores.svg").write_text(to_svg(draw(rows)))
    (OUT / "blind.md").write_text(blind(rows))
    print(f"{len(rows)} runs, median score {np.median([float(row['scores, train proxy']) for row in rows]):.2f}")


if __name__ == "__main__":
    main()
