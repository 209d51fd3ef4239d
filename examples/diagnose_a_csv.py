"""A verdict on a training log, without an oracle: two real logs that ship beside this file; some seconds, no torch.

    python examples/diagnose_a_csv.py [LOG.csv …]

Each log has the step, the training loss and the held-out loss against the teacher: what any trainer writes. From a
terminal it is `assay diagnose examples/logs/offline.csv`. The logs are two arms of `assay quickstart --seed 0`, written
from its folder by `python examples/diagnose_a_csv.py --write runs/quickstart-seed0`.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

from assay import diagnose, read_log

LOGS = Path(__file__).parent / "logs"
COLUMNS = {"step": "step", "train_loss": "train_proxy_nats", "eval_loss": "proxy_nats"}


def write_logs(run: Path) -> None:
    """Two arms of a run as a trainer would have logged them; golden stays in the run."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    LOGS.mkdir(exist_ok=True)
    for arm in ("offline", "online_student"):
        with (LOGS / f"{arm}.csv").open("w", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(COLUMNS)
            table.writerows(
                [record[column] for column in COLUMNS.values()] for record in records if record["arm"] == arm
            )


def main(paths: list[str]) -> None:
    for path in paths or sorted(map(str, LOGS.glob("*.csv"))):
        log = read_log(Path(path))
        found = diagnose(log.trajectory)
        verdict, score = found.verdict.replace("_", " "), "none" if found.score is None else f"{found.score:.2f}"
        print(f"{Path(path).name}: {verdict}; score {score}; keep step {found.recommended_step:g}")
        for reason in found.reasons:
            print(f"  - {reason}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write_logs(Path(sys.argv[2]))
    else:
        main(sys.argv[1:])
