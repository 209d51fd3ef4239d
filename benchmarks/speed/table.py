"""table.md from the records that the other scripts have written: aim, reached, spread. Needs no torch.

python benchmarks/speed/table.py [FOLDER]
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

SCRIPTS = ("offline", "on_policy", "sampling", "loss_memory", "machine", "probe_share", "growth", "losses")
TOO_BUSY = 0.95
SEVERAL_AT_ONCE = ("probe_share.py", "growth.py")
"""Scripts that start runs with worker processes of their own, or wait for them: their share of a core says nothing."""


def table(records: list[dict[str, Any]]) -> str:
    """One line for each ratio of each row; then what the records were made on."""
    lines = [
        "# Speed: what was reached",
        "",
        "Made by `python benchmarks/speed/table.py` from the records here; the rules are in [README.md](README.md).",
        "Of each ratio the median over n repetitions, with the smallest and the largest.",
        "",
        "| script | row | ratio | n | reached | spread | aim | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        for row in record["rows"]:
            lines += [line(record["script"], row, *ratio) for ratio in row["ratios"].items()] or [
                f"| {record['script']} | {row['name']} | | | | | | {row['note']} |"
            ]
    return "\n".join([*lines, "", *map(made_on, records), ""])


def line(script: str, row: dict[str, Any], name: str, values: list[float]) -> str:
    """One ratio, with its aim where it has one."""
    reached, aim = statistics.median(values), row["aims"].get(name, "")
    verdict = ("reached" if is_reached(reached, aim) else "**not reached**") if aim else ""
    cells = (script, row["name"], name, len(values), f"{reached:.3g}", f"{min(values):.3g} to {max(values):.3g}", aim)
    return "| " + " | ".join(map(str, cells)) + f" | {', '.join(filter(None, (verdict, row['note'])))} |"


def is_reached(value: float, aim: str) -> bool:
    """Whether a ratio is as an aim such as "≥ 4" or "≤ 0.1" wants it."""
    relation, bound = aim.split()
    return value >= float(bound) if relation == "≥" else value <= float(bound)


def made_on(record: dict[str, Any]) -> str:
    """Machine, versions, and whether the machine was quiet."""
    machine, versions = record["machine"], record["versions"]
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    busy = (
        ""
        if record["cpu_share"] >= TOO_BUSY or record["script"] in SEVERAL_AT_ONCE
        else " (too little: the machine was busy)"
    )
    return (
        f"- `{record['script']}`: {machine['processor']}, {machine['isa']}, {machine['cores']} cores; {named}; "
        f"{record['seconds']:.0f} s, {record['cpu_share']:.2f} of a core{busy}"
    )


def main(folder: Path) -> None:
    """Reads what is there and says what is not."""
    records = []
    for name in SCRIPTS:
        path = folder / f"{name}.json"
        if path.exists():
            records.append(json.loads(path.read_text(encoding="utf-8")))
        else:
            print(f"no record of {name}: run python benchmarks/speed/{name}.py --write")
    (folder / "table.md").write_text(table(records), encoding="utf-8")
    print(folder / "table.md")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
