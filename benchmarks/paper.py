"""The paper's claims at the scale of the embedded models: every study of `assay recipes`, and one table of findings.

    python benchmarks/paper.py [--runs FOLDER] [STUDY ...]     # all: about three hours on two cores; resumable
    python benchmarks/paper.py --table                         # the table of the findings that are there

Does what `assay sweep STUDY --runs FOLDER --out benchmarks/paper/STUDY` does, study by study, and writes
benchmarks/paper/findings.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from assay.recipes import sweeps
from assay.recipes.studies import STUDIES

OUT = Path(__file__).parent / "paper"


def write_table() -> None:
    """One row for each study whose result.json is there."""
    rows = ""
    for name in STUDIES:
        path = OUT / name / "result.json"
        if not path.exists():
            print(f"{name}: no result yet, left out", flush=True)
            continue
        found = json.loads(path.read_text())
        low, high = found["ci95"]
        rows += (
            f"| [{name}]({name}/table.md) | {found['claim']} | **{found['finding']}** "
            f"| {found['effect_nats']:.2f} [{low:.2f}, {high:.2f}] | {found['p_value']:.2g} | {found['num_seeds']} "
            f"| {len(found['worlds'])} | `{found['command']}` |\n"
        )
    (OUT / "findings.md").write_text(
        "# What the paper says and what is seen, at the scale of the embedded models\n\nMade by "
        "`python benchmarks/paper.py`. The effect is the study's first contrast, averaged over its worlds, in nats per "
        "sequence (for teacher_quality nats per nat), with a 95 % t interval over seeds; p is the largest over all "
        "contrasts and worlds, so it belongs to the whole claim.\n\n"
        "| study | claim | finding | effect [95 %] | p | seeds | worlds | command |\n"
        "|---|---|---|---|---|---|---|---|\n" + rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("studies", nargs="*", help="all by default", metavar="STUDY")
    parser.add_argument("--runs", type=Path, default=Path("runs/sweeps"), help="where the runs go (not committed)")
    parser.add_argument("--table", action="store_true", help="the table of the findings that are there: run nothing")
    arguments = parser.parse_args()
    for name in [] if arguments.table else arguments.studies or STUDIES:
        plan = sweeps.plan(name, (), None)
        print("\n".join(sweeps.cost(plan, arguments.runs, None)), flush=True)
        print(sweeps.carry_out(plan, arguments.runs, OUT / name, None, lambda line: print(line, flush=True)))
        write_table()
    write_table()


if __name__ == "__main__":
    main()
