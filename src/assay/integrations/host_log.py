"""The files of a run that another trainer makes: evaluations, values of each prompt, and the verdict on them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from assay import runs
from assay.diagnostics.detector import Detector
from assay.diagnostics.verdict import Verdict, judge
from assay.errors import AssayError
from assay.evaluation import Evaluation, Probe
from assay.policy import as_a_log
from assay.results import GOLDEN_METRIC, Truth, judged_curves, summarise_arm

ARM = "trainer"
"""What the run is called in its files, which have room for several arms."""


class HostLog:
    """``metrics.jsonl``, ``probe.parquet`` and ``verdict.json`` in ``folder``, as far as training has come to ``step``.

    Evaluations beyond ``step`` are dropped: the trainer has gone back to a checkpoint, which it will repeat from there;
    ``num_dropped`` counts them. At step 0 a run begins, and all are. Raises AssayError for evaluations up to ``step``
    that were made with another probe.
    """

    def __init__(self, folder: Path, probe: Probe, step: int) -> None:
        self.folder, self.probe = folder, probe
        self.truth: Truth | None = "oracle" if probe.has_oracle else "references" if probe.has_references else None
        self.detector = Detector()
        runs.prepare_folder(folder)
        runs.repair_log(folder / "metrics.jsonl", runs.say)
        before = runs.read_records(folder / "metrics.jsonl")
        self.records = [record for record in before if step > 0 and record["step"] <= step]
        self.num_dropped = len(before) - len(self.records)
        if any(record.get("probe") != probe.digest for record in self.records):
            raise AssayError(
                f"{str(folder)!r} holds evaluations up to step {step} with other prompts or responses: build the probe "
                "as it was built then, or choose another folder"
            )
        if (folder / "metrics.jsonl").exists():
            runs.keep_records(folder / "metrics.jsonl", lambda record: record in self.records)
        (folder / "verdict.json").unlink(missing_ok=True)
        for record in self.records:
            self.detector.update(as_a_log(record))
        self._tables = [self._kept_values()] if self.records else []

    @property
    def last_step(self) -> int:
        """The step of the last evaluation; −1 before the first."""
        return self.records[-1]["step"] if self.records else -1

    def add(self, found: Evaluation, step: int, epoch: float | None) -> dict[str, Any]:
        """Writes an evaluation and returns its record, with what the detector says so far (None: too early)."""
        if not all(value is None or math.isfinite(value) for value in found.means.values()):
            raise AssayError("the student's log-probabilities are not finite: lower the learning rate")
        record = {"arm": ARM, "seed": self.probe.seed, "step": step, "epoch": epoch, "probe": self.probe.digest}
        record |= found.means
        record["detector_score"] = self.detector.update(as_a_log(record))
        diagnosis = self.detector.diagnose() if self.records else None
        record["recommended_step"] = None if diagnosis is None else int(diagnosis.recommended_step)
        record["alarm"] = self.detector.is_flagged
        record["seconds"] = {"probe": self.probe.seconds}
        self._tables += [values.table(arm=ARM, seed=self.probe.seed, step=step) for values in found.per_prompt]
        runs.write_table(self.folder / "probe.parquet", pa.concat_tables(self._tables))
        runs.append_record(self.folder / "metrics.jsonl", record)
        self.records.append(record)
        return record

    def best_step(self) -> int:
        """The step whose student to keep: that of the lowest golden, without a truth the detector's advice."""
        if self.truth is not None:
            golden = f"{GOLDEN_METRIC[self.truth]}_nats"
            return min(self.records, key=lambda record: record[golden])["step"]
        return self.records[-1]["recommended_step"] if len(self.records) > 1 else self.last_step

    def verdict(self) -> Verdict | None:
        """The verdict on the values of each prompt so far; None without a truth."""
        if self.truth is None or not self.records:
            return None
        steps_S, curves = judged_curves(pa.concat_tables(self._tables), ARM, self.truth)
        return judge(steps_S, curves["golden"], curves["proxy"])

    def write_verdict(self, checkpoints: Mapping[int, str]) -> dict[str, Any]:
        """Writes verdict.json: an entry as in summary.json's ``arms``, the student to keep, and the diagnosis.

        ``checkpoints`` are the folders that the trainer has saved, by step.
        """
        keep = self.best_step()
        summary = summarise_arm(pa.concat_tables(self._tables), ARM, self.probe.seed, self.records, self.truth)
        verdict = {
            "schema": "assay.verdict/1",
            "unit": "nats_per_sequence",
            "truth": self.truth,
            **summary,
            "keep": {"step": keep, "checkpoint": checkpoints.get(keep)},
            "probe_seconds": self.probe.seconds,
            "diagnosis": self.detector.diagnose().to_dict(),
        }
        runs.write_json(self.folder / "verdict.json", verdict)
        return verdict

    def _kept_values(self) -> pa.Table:
        table = runs.read_table(self.folder / "probe.parquet")
        return table.filter(pc.field("step").isin([record["step"] for record in self.records]))
