"""Mirrors in real trackers: what they hold is what the log holds, and one that fails costs nothing but itself."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from assay.cli import main
from assay.errors import AssayError
from assay.integrations.log_files import EVENTS
from assay.integrations.logs import read_log
from assay.integrations.trackers import TRACKERS, Mirror
from assay.observation import Observer
from assay.watch import look
from known_logs import hacked
from test_report import ARMS
from test_watch import going_run, write_log

pytest.importorskip("accelerate")
pytest.importorskip("tensorboard")

RECORDS = [(step, {"assay/proxy_nats": 4.0 - step, "assay/seconds/probe": 0.5 * step}) for step in range(4)]


def needs_trackio() -> None:
    # Not imported here: it looks up its folder when it is.
    if importlib.util.find_spec("trackio") is None or importlib.util.find_spec("gradio_client") is None:
        pytest.skip("trackio is not installed")


def watch(*arguments: object, before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; {before}\nfrom assay.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "watch", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | environment)


def columns(path: Path, arm: str | None = None) -> dict[str, list[float]]:
    trajectory = read_log(path, arm=arm).trajectory
    values = {name: each for name, each in trajectory.columns.items() if not name.endswith("_diff_stderr")}
    return {"step": trajectory.steps.tolist(), **{name: each.tolist() for name, each in values.items()}}


def test_tensorboard_holds_a_run_for_each_arm_with_the_numbers_of_its_log(tmp_path: Path) -> None:
    run = going_run(tmp_path / "run")
    main(["watch", str(run), "--once", "--trackers", "tensorboard", "--logdir", str(tmp_path / "events")])
    assert sorted(each.name for each in (tmp_path / "events" / "run").iterdir()) == ["offline", "online_teacher"]
    for arm in ARMS[:2]:
        mirrored, own = columns(tmp_path / "events" / "run" / arm), columns(run / "arms" / arm / "metrics.jsonl")
        assert mirrored.keys() == own.keys()
        assert {"proxy", "train_proxy", "golden", "reference_nll"} <= own.keys()
        for name, values in own.items():
            np.testing.assert_allclose(mirrored[name], values, rtol=1e-6, err_msg=name)


def test_a_log_of_another_tool_is_mirrored_with_the_score_of_its_last_evaluation(tmp_path: Path) -> None:
    path = write_log(tmp_path / "log.csv", hacked())
    main(["watch", str(path), "--once", "--trackers", "tensorboard", "--logdir", str(tmp_path / "events")])
    events = tmp_path / "events" / tmp_path.name / "log.csv"
    assert columns(events)["step"] == hacked().steps.tolist()
    np.testing.assert_allclose(columns(events)["proxy"], hacked().columns["proxy"], rtol=1e-6)
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(events))
    found.Reload()
    (score,) = found.Scalars("assay/detector_score")
    diagnosis = Observer(path, {}, None).look().watched[0].diagnosis
    assert diagnosis is not None
    assert (score.step, score.value) == (300, pytest.approx(diagnosis.score))


def test_only_what_is_new_is_sent(tmp_path: Path) -> None:
    with Mirror(["tensorboard"], tmp_path) as mirror:
        for number in (2, 2, 4, 1, 4):
            mirror.send("project", "arm", RECORDS[:number])
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(tmp_path / "project" / "arm"))
    found.Reload()
    assert [event.step for event in found.Scalars("assay/proxy_nats")] == [0, 1, 2, 3]
    assert [event.value for event in found.Scalars("assay/seconds/probe")] == [0.0, 0.5, 1.0, 1.5]


def test_a_run_that_is_waited_for_is_its_own_project_all_the_same(tmp_path: Path) -> None:
    observer = Observer(tmp_path / "run", {}, None)
    with Mirror(["tensorboard"], tmp_path / "events") as mirror:
        look(observer, mirror)
        going_run(tmp_path / "run")
        look(observer, mirror)
    assert [each.name for each in (tmp_path / "events").iterdir()] == ["run"]


def test_a_name_from_a_file_leads_nowhere_else(tmp_path: Path) -> None:
    with Mirror(["tensorboard"], tmp_path / "events") as mirror:
        mirror.send("project", "../../elsewhere", RECORDS)
    (file,) = tmp_path.rglob(f"*{EVENTS}*")
    assert file.parent.parent == tmp_path / "events" / "project"


def test_trackio_holds_a_run_for_each_arm_with_the_numbers_of_its_log(tmp_path: Path) -> None:
    needs_trackio()
    run = going_run(tmp_path / "run")
    found = watch(run, "--once", "--trackers", "trackio", TRACKIO_DIR=str(tmp_path / "trackio"), HF_HUB_OFFLINE="1")
    assert (found.returncode, found.stderr) == (0, "")
    assert "Trackio" not in found.stdout
    for arm in ARMS[:2]:
        assert columns(tmp_path / "trackio" / "run.db", arm) == columns(run / "arms" / arm / "metrics.jsonl")


def test_a_disk_that_is_full_is_said_once_and_the_watch_goes_on(tmp_path: Path) -> None:
    run = going_run(tmp_path / "run", ARMS)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))"
    found = watch(run, "--trackers", "tensorboard", "--logdir", tmp_path / "events", before=limit)
    assert found.returncode == 0
    assert found.stderr.count("\n") == 1
    assert found.stderr.startswith("assay: tensorboard is left out from here on, it has failed: ")
    assert len(found.stdout.splitlines()) == 3


def test_trackio_that_cannot_write_is_said_once_and_the_watch_goes_on(tmp_path: Path) -> None:
    needs_trackio()
    (tmp_path / "file").touch()
    run = going_run(tmp_path / "run", ARMS)
    found = watch(run, "--trackers", "trackio", TRACKIO_DIR=str(tmp_path / "file"), HF_HUB_OFFLINE="1")
    assert found.returncode == 0
    assert found.stderr.count("\n") == 1
    assert found.stderr.startswith("assay: trackio is left out from here on, it has failed: ")
    assert len(found.stdout.splitlines()) == 3


def test_one_that_fails_leaves_the_others_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    with Mirror(["tensorboard"], tmp_path / "file") as mirror:
        for number in (2, 4):
            mirror.send("project", "arm", RECORDS[:number])
        assert list(mirror.dropped) == ["tensorboard"]
    assert capsys.readouterr().err.count("left out") == 1


@pytest.mark.parametrize("name", TRACKERS)
def test_a_library_that_is_missing_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (name, f"torch.utils.{name}"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(AssayError, match=f"cannot mirror to {name} .*pip install"):
        Mirror([name], tmp_path)


def test_an_unknown_tracker_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(AssayError, match="did you mean 'trackio'"):
        Mirror(["trakio"], tmp_path)


def test_no_tracker_is_no_mirror(tmp_path: Path) -> None:
    with Mirror([], tmp_path) as mirror:
        mirror.send("project", "arm", RECORDS)
    assert not list(tmp_path.iterdir())


def test_records_are_numbers_alone(tmp_path: Path) -> None:
    run = going_run(tmp_path / "run", ())
    step, values = Observer(run, {}, "offline").look().watched[0].records[0]
    record = json.loads((run / "arms" / "offline" / "metrics.jsonl").read_text().splitlines()[0])
    assert step == 0
    assert record["train_loss_nats_per_token"] is None
    assert values["assay/seconds/probe"] == record["seconds"]["probe"]
    assert {"assay/arm", "assay/seed", "assay/step", "assay/train_loss_nats_per_token"}.isdisjoint(values)
    assert values["assay/proxy_nats"] == record["proxy_nats"]
