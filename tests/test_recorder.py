"""What a resumed arm's recorder takes up from its log, and what its detector may see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay import runs
from assay.checkpoints import FitState
from assay.config import ARMS
from assay.diagnostics.detector import Detector
from assay.errors import AssayError
from assay.recipes import get_recipe
from assay.recorder import Recorder
from known_logs import falling

COLUMNS = {"proxy": "proxy_nats", "train_proxy": "train_proxy_nats", "reference_nll": "reference_nll_nats"}


def recorder(folder: Path) -> Recorder:
    nothing: Any = None
    return Recorder(get_recipe("quickstart"), ARMS["offline"], folder, nothing, nothing, nothing, lambda progress: None)


def records(steps: list[int]) -> list[dict[str, Any]]:
    values = falling(steps=np.array(steps, dtype=float))
    return [
        {"step": step, **dict.fromkeys(COLUMNS.values(), value), "golden_nats": 2 * value, "truncated_fraction": 0.5}
        for step, value in zip(steps, values.tolist(), strict=True)
    ]


def test_a_resumed_arm_takes_up_each_record_up_to_its_checkpoint_once(tmp_path: Path) -> None:
    one = recorder(tmp_path)
    for record in records(one.steps[:8]):
        runs.append_record(one.log, record)
    at = one.steps[5]
    for _ in range(2):  # the second call is that of the next step
        one(FitState(at), None)  # type: ignore[arg-type]
    assert one.policy.detector.trajectory.steps.tolist() == one.steps[:6]
    assert [record["step"] for record in runs.read_records(one.log)] == one.steps[:6]
    expected = Detector()
    for record in records(one.steps[:6]):
        expected.update({"step": record["step"], **{name: record[column] for name, column in COLUMNS.items()}})
    assert set(one.policy.detector.trajectory.columns) == set(COLUMNS)  # and no golden
    following = {"step": one.steps[6], **dict.fromkeys(COLUMNS, 1.0)}
    assert one.policy.detector.update(following) == expected.update(following)


def test_a_log_that_lacks_an_evaluation_is_refused(tmp_path: Path) -> None:
    one = recorder(tmp_path)
    for record in records([one.steps[0], *one.steps[2:5]]):
        runs.append_record(one.log, record)
    with pytest.raises(AssayError, match="lacks the evaluations at steps"):
        one(FitState(one.steps[4]), None)  # type: ignore[arg-type]
