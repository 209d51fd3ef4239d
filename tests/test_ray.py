"""Sweeps on Ray: one node by the command line, and two of which one is killed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from assay import ray_executor, runs
from assay.config import Experiment
from assay.errors import AssayError
from assay.ray_executor import JOURNALS, RayConfig, RayExecutor
from assay.sweep import run_folder, run_sweep
from ray_parts import dies, is_alone, is_refused, never_ends
from test_experiment import small, without_times

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # all ports on loopback; read when ray is imported


@pytest.fixture(scope="module", autouse=True)
def _workers_import_what_the_tests_do() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        yield


@pytest.fixture(scope="module")
def executor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RayExecutor, list[str], Path]]:
    folder, lines = tmp_path_factory.mktemp("ray"), list[str]()
    executor = RayExecutor(RayConfig(cpus=0.5, retries=2), folder, 1, announce=lines.append)
    yield executor, lines, folder
    executor.shutdown(cancel_futures=True)


def test_a_task_whose_worker_dies_is_begun_again_and_then_given_up(
    executor: tuple[RayExecutor, list[str], Path],
) -> None:
    ray, lines, folder = executor
    assert ray.capacity() == 2
    dying, doomed, refused = (
        ray.submit(dies, folder, 1),
        ray.submit(dies, folder, 9),
        ray.submit(is_refused, folder),
    )
    assert dying.result() == f"1 {Path.cwd()}"
    with pytest.raises(AssayError, match=r"^its worker or node died 3 times .*; the same command resumes$"):
        doomed.result()
    with pytest.raises(AssayError, match=f"^{folder.name} is refused$"):
        refused.result()
    assert (folder / "lives-9").stat().st_size == 3
    assert Counter(line.partition("; ")[0] for line in lines) == {f"dies-{folder.name}: its worker died": 4}


def test_a_part_is_held_by_one_task_at_a_time(executor: tuple[RayExecutor, list[str], Path]) -> None:
    ray, _, folder = executor
    both = [ray.submit(is_alone, folder) for _ in range(2)]
    assert [future.result() for future in both] == [True, True]
    events = [r["event"] for r in runs.read_records(folder / JOURNALS / f"is_alone-{folder.name}.jsonl")]
    assert events == ["begun", "ended"] * 2


def test_a_node_that_does_not_see_the_folder_is_refused(
    executor: tuple[RayExecutor, list[str], Path], tmp_path: Path
) -> None:
    ray, _, folder = executor
    site = ray._site
    assert site.problem() is None
    site.token.rename(tmp_path / "away")
    try:
        with pytest.raises(AssayError, match=r"of no use: it does not see '.*': use a file system that all nodes"):
            ray.submit(is_refused, folder).result()
        with pytest.raises(AssayError, match=r"^node 127.0.0.1 of the Ray cluster is of no use: it does not see"):
            ray._check_nodes()
    finally:
        (tmp_path / "away").rename(site.token)
    assert "install one version" in str(dataclasses.replace(site, version="0.0").problem())


def test_an_executor_that_ends_takes_its_tasks_with_it(executor: tuple[RayExecutor, list[str], Path]) -> None:
    """The last of the tests that share this executor."""
    ray, _, folder = executor
    future = ray.submit(never_ends, folder)
    while not (folder / "pid").exists() and not future.done():
        time.sleep(0.05)
    ray.shutdown(cancel_futures=True)
    assert future.cancelled() or future.exception() is not None
    assert not list((folder / JOURNALS).glob("token-*"))
    for _ in range(100):
        try:
            os.kill(int((folder / "pid").read_text()), 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the task still runs")


def test_what_cannot_run_on_ray_is_refused_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssayError, match=r"cannot reach Ray at '127.0.0.1:1'"):
        RayExecutor(RayConfig("127.0.0.1:1"), tmp_path, 1)
    with pytest.raises(AssayError, match=r"no node of the Ray .* has what a part takes: .*GPU 1 where the most is 0"):
        RayExecutor(RayConfig(gpus=1), tmp_path, 1)
    for wrong in ({"cpus": 0.0}, {"gpus": -1.0}, {"memory_gib": 0.0}, {"retries": -1}, {"address": "ray://head:10001"}):
        with pytest.raises(AssayError):
            RayConfig(**wrong)
    monkeypatch.setattr(ray_executor.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AssayError, match="pip install 'assay\\[ray\\]'"):
        RayExecutor(RayConfig(), tmp_path, 1)


def listening_addresses(process_id: int) -> set[str]:
    """Where a process and those that it started listen, in the kernel's hexadecimal."""
    found: set[str] = set()
    family = [process_id]
    for parent in family:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            family += map(int, children.read_text().split())
    inodes = set()
    for member in family:
        for descriptor in Path(f"/proc/{member}/fd").glob("*"):
            with contextlib.suppress(OSError):
                inodes.add(os.readlink(descriptor).removeprefix("socket:[").removesuffix("]"))
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for fields in map(str.split, Path(table).read_text().splitlines()[1:]):
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(fields[1].split(":")[0])
    return found


@pytest.mark.slow
def test_a_sweep_by_the_command_line_is_clean_on_loopback_and_stops_at_ctrl_c(tmp_path: Path) -> None:
    flags = ["--axes", "distillation.training.num_steps=4000", "--engine", "ray", "--runs", str(tmp_path)]
    command = [sys.executable, "-m", "assay", "sweep", "quickstart", *flags, "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0)
    while len(list((tmp_path / JOURNALS).glob("make_stage_one*"))) < 1 and process.poll() is None:
        time.sleep(0.1)
    opened = listening_addresses(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert opened
    assert opened <= {"0100007F", "0000000000000000FFFF00000100007F"}, opened
    assert errors.splitlines() == [
        "assay: 1 runs, 0 of them finished before",
        "assay: stopped; the same command goes on where it was",
    ]
    assert "raylet" not in out


def long_enough_to_be_killed() -> list[Experiment]:
    """Two experiments with one stage 1, of which the second repeats an arm of the first and has one of its own."""
    first = small(num_steps=40)
    second = dataclasses.replace(first, arms=(first.arms[0], dataclasses.replace(first.arms[1], name="another")))
    return [first, second]


@pytest.mark.slow
def test_a_node_that_is_killed_costs_nothing_and_nothing_is_run_twice(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    experiments, here, there = long_enough_to_be_killed(), tmp_path / "local", tmp_path / "cluster"
    assert run_sweep(experiments, here, num_workers=2) == {}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    doomed = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    victims: list[str] = []

    def kill_in_the_middle() -> None:
        while not victims:
            for journal in (there / JOURNALS).glob("run_stage-*.jsonl"):
                last = runs.read_records(journal)[-1:]
                arm = next(iter(there.glob(f"*/arms/{journal.stem.rpartition('run_arm-')[2]}")), Path())
                is_here = last and last[0]["event"] == "begun" and last[0]["node"] == doomed.node_id
                if is_here and list(arm.glob("checkpoints/step-*")):
                    victims.append(journal.name)
                    break
            time.sleep(0.05)
        cluster.remove_node(doomed, allow_graceful=False)

    killer, lines = threading.Thread(target=kill_in_the_middle, daemon=True), list[str]()
    killer.start()
    try:
        config = RayConfig(cluster.address)
        failures = run_sweep(
            experiments, there, lines.append, 2, lambda cores: RayExecutor(config, there, cores, announce=lines.append)
        )
        killer.join(timeout=10)
    finally:
        cluster.shutdown()
    assert failures == {}
    assert len(victims) == 1, "no node was killed"
    assert any(victims[0].removesuffix(".jsonl") in line and "died; retries left: 3" in line for line in lines)
    for journal in (there / JOURNALS).glob("*.jsonl"):
        events = [record["event"] for record in runs.read_records(journal)]
        assert events == ["begun"] * (2 if journal.name == victims[0] else 1) + ["ended"]
    for experiment in experiments:
        assert_equal_runs(run_folder(experiment, here), run_folder(experiment, there))


def assert_equal_runs(one: Path, other: Path) -> None:
    records: Any = [[without_times(r) for r in runs.read_records(f / "metrics.jsonl")] for f in (one, other)]
    assert len(records[0]) > 5
    assert records[0] == records[1]
    for name in ("probe.parquet", "responses.parquet"):
        assert pq.read_table(one / name).equals(pq.read_table(other / name))
    for path in one.glob("arms/*/student/model.safetensors"):
        assert path.read_bytes() == (other / path.relative_to(one)).read_bytes()
