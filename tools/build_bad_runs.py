"""Builds the damaged run folders of tests/bad_inputs/runs, each from the finished run beside them, ``whole``.

A folder of a case holds only what differs from ``whole``; an empty FILE.absent says that FILE is not there:

    python tools/build_bad_runs.py tests/bad_inputs

``whole`` is what the report reads of `assay run quickstart --stage-one.num-oracle-prompts=64
--distillation.num-prompts=16 --distillation.training.num-steps=4 --probe.num-prompts=16 --probe.num-monitored=16
--probe.num-train-pairs=16 --probe.num-evaluations=4`.
"""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

MANIFEST, SUMMARY, METRICS = "manifest.json", "summary.json", "metrics.jsonl"
PROBE, RESPONSES, TOKENS = "probe.parquet", "responses.parquet", "tokens.parquet"
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 6596\n"
)
PAGE = b"<!DOCTYPE html>\n<html><body><h1>Sign in</h1></body></html>\n"


class Cases:
    """The folders of one call; ``index`` says what the error of each must hold, and which commands read it."""

    def __init__(self, root: Path) -> None:
        self.root, self.whole = root, root / "whole"
        self.index: list[dict[str, Any]] = []
        self.manifest: Any = json.loads((self.whole / MANIFEST).read_text())
        self.summary: Any = json.loads((self.whole / SUMMARY).read_text())
        self.records: Any = [json.loads(line) for line in (self.whole / METRICS).read_text().splitlines()]

    def add(self, name: str, says: str, file: str, content: bytes | None, command: str = "report") -> None:
        """A case whose ``file`` holds ``content``, or None: is not there."""
        folder = self.root / name
        folder.mkdir()
        if content is None:
            (folder / f"{file}.absent").touch()
        else:
            (folder / file).write_bytes(content)
        self.index.append({"input": f"runs/{name}", "command": command, "says": says})

    def add_json(self, name: str, says: str, file: str, change: Callable[[Any], Any], command: str = "report") -> None:
        """A case whose manifest or summary is changed in place."""
        value = copy.deepcopy(self.manifest if file == MANIFEST else self.summary)
        change(value)
        self.add(name, says, file, (json.dumps(value, indent=1) + "\n").encode(), command)

    def add_lines(self, name: str, says: str, change: Callable[[Any], Any], command: str = "report") -> None:
        """A case whose records in metrics.jsonl are changed in place."""
        records = copy.deepcopy(self.records)
        change(records)
        self.add(name, says, METRICS, "".join(json.dumps(one) + "\n" for one in records).encode(), command)

    def add_table(self, name: str, says: str, file: str, change: Callable[[pa.Table], pa.Table]) -> None:
        """A case whose parquet file holds another table."""
        sink = pa.BufferOutputStream()
        pq.write_table(change(pq.read_table(self.whole / file)), sink, compression="zstd")
        self.add(name, says, file, sink.getvalue().to_pybytes())


def add_manifests(cases: Cases) -> None:
    """Manifests that are none."""
    whole = (cases.whole / MANIFEST).read_bytes()
    add, change = cases.add, cases.add_json
    add("manifest-missing", MANIFEST, MANIFEST, None)
    add("manifest-empty", "not valid JSON", MANIFEST, b"", "compare")
    add("manifest-cut-off", "not valid JSON", MANIFEST, whole[:700])
    add("manifest-that-is-a-web-page", "not valid JSON", MANIFEST, PAGE, "compare")
    add("manifest-that-is-a-git-lfs-pointer", "not valid JSON", MANIFEST, POINTER, "watch")
    add("manifest-that-is-a-list", "should be an object", MANIFEST, b"[]\n", "watch")
    add("manifest-of-a-web-app", "lacks 'schema'", MANIFEST, b'{"name": "my app", "icons": []}\n', "compare")
    add("manifest-nested-too-deep", MANIFEST, MANIFEST, b'{"schema": ' + b"[" * 3000 + b"]" * 3000 + b"}")
    change("manifest-of-a-later-version", "'assay.manifest/9'", MANIFEST, lambda m: m.update(schema="assay.manifest/9"))
    change("manifest-without-config", "lacks 'config'", MANIFEST, lambda m: m.pop("config"), "compare")
    change("manifest-with-a-seed-as-text", "'seed'", MANIFEST, lambda m: m.update(seed="0"))
    change("manifest-with-arms-of-names", "'arms'", MANIFEST, lambda m: m["config"].update(arms=["offline"]), "watch")
    change("manifest-with-arms-of-null", "'arms'", MANIFEST, lambda m: m["config"].update(arms=None))
    change("manifest-with-a-time-of-text", "'wall_seconds'", MANIFEST, lambda m: m.update(wall_seconds="an hour"))
    change("manifest-with-a-time-beyond-any", "wall_seconds", MANIFEST, lambda m: m.update(wall_seconds=1e300))
    change("manifest-with-digests-as-a-list", "'digests'", MANIFEST, lambda m: m.update(digests=["a"]))


def add_summaries(cases: Cases) -> None:
    """Summaries that say what no run says."""
    add, change = cases.add, cases.add_json
    add("summary-empty", "not valid JSON", SUMMARY, b"")
    add("summary-cut-off", "not valid JSON", SUMMARY, (cases.whole / SUMMARY).read_bytes()[:500], "compare")
    change("summary-of-a-later-version", "'assay.summary/9'", SUMMARY, lambda s: s.update(schema="assay.summary/9"))
    change("summary-in-another-unit", "'bits'", SUMMARY, lambda s: s.update(unit="bits"))
    change("summary-of-an-unknown-verdict", "verdict", SUMMARY, lambda s: s["arms"][0].update(verdict="fine"))
    change("summary-of-an-unknown-truth", "'truth'", SUMMARY, lambda s: s.update(truth="opinion"))
    change("summary-with-arms-as-an-object", "'arms'", SUMMARY, lambda s: s.update(arms={}))
    change(
        "summary-with-a-step-as-text", "'best_step'", SUMMARY, lambda s: s["arms"][0].update(best_step="2"), "compare"
    )
    change("summary-with-half-an-interval", "'ci95'", SUMMARY, lambda s: s["arms"][0].update(ci95=[0.5]))
    change("summary-without-golden", "golden", SUMMARY, lambda s: s["arms"][0].update(golden=None), "compare")
    change("summary-with-tokens-as-a-fraction", "tokens'", SUMMARY, lambda s: s["arms"][0].update(teacher_tokens=0.5))
    change(
        "summary-of-another-arm",
        "no evaluation of 'elsewhere'",
        SUMMARY,
        lambda s: s["arms"][0].update(source="elsewhere"),
    )


def add_metrics(cases: Cases) -> None:
    """Logs that are damaged or of something else."""
    whole = (cases.whole / METRICS).read_bytes()
    add, change = cases.add, cases.add_lines
    add("metrics-missing", METRICS, METRICS, None, "compare")
    add("metrics-empty", "holds no records", METRICS, b"", "diagnose")
    add("metrics-cut-in-the-last-line", "breaks off in its last line", METRICS, whole[:-20])
    add("metrics-cut-in-the-middle", "line 2", METRICS, whole[:1500] + b"\n" + whole[3000:], "diagnose")
    add("metrics-that-is-a-web-page", METRICS, METRICS, PAGE, "diagnose")
    add("metrics-of-zeros", METRICS, METRICS, b"\0" * 512 + b"\n", "diagnose")
    add("metrics-with-a-blank-line", METRICS, METRICS, whole.replace(b"\n", b"\n\n", 1))
    change("metrics-of-another-tool", "line 1", lambda r: r.__setitem__(0, {"global_step": 1, "loss": 2.5}))
    change("metrics-with-a-step-as-text", "'step'", lambda r: r[0].update(step="0"))
    change("metrics-with-a-step-below-zero", "-4", lambda r: r[3].update(step=-4), "diagnose")
    change("metrics-with-a-step-twice", "step", lambda r: r[1].update(step=0, proxy_nats=99.0), "diagnose")
    change("metrics-without-the-proxy", "'proxy_nats'", lambda r: [one.pop("proxy_nats") for one in r])
    change("metrics-with-the-proxy-as-text", "'proxy_nats'", lambda r: r[2].update(proxy_nats="9.5"), "compare")
    change("metrics-not-a-number", "'proxy_nats'", lambda r: r[2].update(proxy_nats=float("nan")))
    change("metrics-beyond-any-number", "'golden_nats'", lambda r: r[2].update(golden_nats=1e300), "compare")
    change(
        "metrics-of-a-judge-without-its-error", "'judge_one_stderr'", lambda r: [one.update(judge_one=1.0) for one in r]
    )
    change("metrics-with-seconds-as-a-number", "'seconds'", lambda r: r[0].update(seconds=3))


def add_tables(cases: Cases) -> None:
    """Parquet files that hold other tables, or none."""

    def lacking(name: str) -> Callable[[pa.Table], pa.Table]:
        return lambda table: table.drop_columns([name])

    def with_column(name: str, make: Callable[[int], Any]) -> Callable[[pa.Table], pa.Table]:
        return lambda t: t.set_column(t.column_names.index(name), name, pa.array([make(i) for i in range(t.num_rows)]))

    add, change = cases.add, cases.add_table
    for file, column in ((PROBE, "value_nats"), (RESPONSES, "text"), (TOKENS, "token")):
        kind = file.removesuffix(".parquet")
        whole = (cases.whole / file).read_bytes()
        add(f"{kind}-empty", file, file, b"")
        add(f"{kind}-cut-off", file, file, whole[: len(whole) // 2])
        add(f"{kind}-that-is-a-git-lfs-pointer", file, file, POINTER)
        change(f"{kind}-without-{column.replace('_', '-')}", file, file, lacking(column))
        change(f"{kind}-with-nulls", "holds nulls", file, with_column(column, lambda i: None))
        change(f"{kind}-with-lists", file, file, with_column(column, lambda i: [i]))
    add("probe-missing", PROBE, PROBE, None)
    add("probe-as-comma-separated-values", PROBE, PROBE, b"arm,seed,step,metric,prompt_id,value_nats\n")
    change("probe-without-rows", "probe", PROBE, lambda table: table.slice(0, 0))
    change("probe-of-other-steps", "step", PROBE, with_column("step", lambda i: 1000 + i))
    change("probe-not-a-number", "'value_nats'", PROBE, with_column("value_nats", lambda i: float("nan")))
    change("probe-of-infinity", "'value_nats'", PROBE, with_column("value_nats", lambda i: float("inf")))
    change("probe-with-values-as-text", PROBE, PROBE, with_column("value_nats", lambda i: "many"))
    change("responses-with-counts-as-text", RESPONSES, RESPONSES, with_column("num_tokens", lambda i: "two"))
    add("tokens-that-are-a-web-page", TOKENS, TOKENS, PAGE, "compare")
    change("tokens-of-infinity", "'log_prob_oracle'", TOKENS, with_column("log_prob_oracle", lambda i: float("-inf")))
    change("tokens-not-a-number", "'log_prob_teacher'", TOKENS, with_column("log_prob_teacher", lambda i: float("nan")))
    change("tokens-of-a-stranger", "'stranger'", TOKENS, with_column("writer", lambda i: "stranger"))
    change("tokens-without-the-first", "in their order", TOKENS, lambda table: table.slice(1, 20))
    change("tokens-twice", "once", TOKENS, lambda table: pa.concat_tables([table.slice(0, 20)] * 2))


def build(root: Path) -> None:
    """Writes the folders of ``root``/runs beside ``whole``, and ``root``/runs.jsonl."""
    folder = root / "runs"
    for old in folder.iterdir():
        if old.name != "whole":
            shutil.rmtree(old)
    cases = Cases(folder)
    for add in (add_manifests, add_summaries, add_metrics, add_tables):
        add(cases)
    (root / "runs.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in cases.index))


if __name__ == "__main__":
    build(Path(sys.argv[1]))
