"""Sweeps on the embedded bases at a tenth of the size: shared parts, failures, kills; and refusals of bad axes."""

from __future__ import annotations

import dataclasses
import resource
import shutil
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from assay import provenance, run_experiment, runs, sweep, workers
from assay.config import Experiment, TaskConfig, to_dict
from assay.config_file import from_dict
from assay.errors import AssayError
from assay.forecast import measured_flops_per_second
from assay.recipes import sweeps
from assay.recipes.scales import SCALES
from assay.recipes.studies import STUDIES, experiments_of
from assay.sweep import arm_key, cells, run_folder, run_sweep, stage_one_key
from test_experiment import begun_with_an_arm_that_will_fail, small, summary_of


def tiny(seed: int = 7, arms: int = 2, num_steps: int = 5) -> Experiment:
    experiment = small(seed=seed, num_steps=num_steps)
    return dataclasses.replace(experiment, arms=experiment.arms[:arms])


def experiments() -> list[Experiment]:
    """Two experiments with one stage 1, of which the second repeats an arm of the first."""
    first = tiny()
    return [first, dataclasses.replace(first, arms=small().arms[:1])]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder, lines = tmp_path_factory.mktemp("sweep"), list[str]()
    assert run_sweep(experiments(), folder, lines.append) == {}
    return folder, lines


def times(folder: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name != runs.LOCK}


def test_a_swept_run_is_the_run_that_the_experiment_makes_alone(swept: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, _ = swept
    run_experiment(tiny(), tmp_path / "alone")
    for name in ("probe.parquet", "responses.parquet"):
        swept_table = pq.read_table(run_folder(tiny(), folder) / name)
        assert swept_table.equals(pq.read_table(tmp_path / "alone" / name))
    assert summary_of(run_folder(tiny(), folder))["arms"] == summary_of(tmp_path / "alone")["arms"]
    manifests = [runs.read_json(f / "manifest.json") for f in (run_folder(tiny(), folder), tmp_path / "alone")]
    assert manifests[0]["digests"] == manifests[1]["digests"]
    assert [m["status"] for m in manifests] == ["finished"] * 2


def test_a_shared_part_is_made_once(swept: tuple[Path, list[str]]) -> None:
    folder, lines = swept
    first, second = (run_folder(e, folder) for e in experiments())
    assert sum("arms offline done" in line for line in lines) == 1
    assert not list(second.glob("stage1/checkpoints*")), "a copied stage 1 was trained again"
    assert list(first.glob("stage1/checkpoints*"))
    assert summary_of(second)["arms"] == summary_of(first)["arms"][:1]
    assert "copied" not in runs.read_json(first / "manifest.json")
    assert runs.read_json(second / "manifest.json")["copied"] == ["stage1", "arms/offline"]


def test_a_finished_sweep_answers_at_once_and_touches_nothing(swept: tuple[Path, list[str]]) -> None:
    folder, _ = swept
    before = times(folder)
    assert run_sweep(experiments(), folder) == {}
    assert times(folder) == before


def test_what_an_earlier_sweep_made_is_shared_with_a_later_one(swept: tuple[Path, list[str]]) -> None:
    folder, _ = swept
    lines: list[str] = []
    later = dataclasses.replace(tiny(), arms=(tiny().arms[1],))
    assert run_sweep([later], folder, lines.append) == {}
    assert not any(" arms " in line for line in lines)
    assert summary_of(run_folder(later, folder))["arms"] == summary_of(run_folder(tiny(), folder))["arms"][1:]


def test_keys_tell_what_may_be_shared() -> None:
    first = tiny()
    arm = first.arms[0]
    more_steps = tiny(num_steps=6)
    assert stage_one_key(first) == stage_one_key(more_steps)
    assert arm_key(first, arm) != arm_key(more_steps, arm)
    assert arm_key(first, arm) == arm_key(experiments()[1], arm)
    for change in (
        {"seed": 8},
        {"stage_one": dataclasses.replace(first.stage_one, teacher_epochs=1.0)},
        {"models": dataclasses.replace(first.models, teacher_is_oracle=True)},
        {"task": dataclasses.replace(first.task, max_response_tokens=23)},
        {"probe": dataclasses.replace(first.probe, num_prompts=65)},
    ):
        changed = dataclasses.replace(first, **change)
        assert stage_one_key(changed) != stage_one_key(first)
        assert arm_key(changed, arm) != arm_key(first, arm)


@pytest.mark.slow
def test_a_run_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    bad = dataclasses.replace(tiny(arms=1), task=TaskConfig(name="absent"))
    half = dataclasses.replace(tiny(), arms=(dataclasses.replace(tiny().arms[0], name="failing"), tiny().arms[0]))
    begun_with_an_arm_that_will_fail(tiny(), run_folder(half, tmp_path))
    failures = run_sweep([bad, half, tiny(arms=1)], tmp_path)
    assert set(failures) == {run_folder(bad, tmp_path).name, run_folder(half, tmp_path).name}
    assert "unknown task 'absent'" in failures[run_folder(bad, tmp_path).name]
    assert "arms/failing/metrics.jsonl" in failures[run_folder(half, tmp_path).name]
    assert [arm["source"] for arm in summary_of(run_folder(half, tmp_path))["arms"]] == ["offline"]
    assert runs.read_json(run_folder(half, tmp_path) / "manifest.json")["status"] != "finished"
    assert runs.read_json(run_folder(tiny(arms=1), tmp_path) / "manifest.json")["status"] == "finished"


def test_a_sweep_over_axes_ends_with_a_table_and_a_report_that_names_them(
    swept: tuple[Path, list[str]], tmp_path: Path
) -> None:
    variants = {("quickstart", 7, name): e for name, e in zip(["both", "one arm"], experiments(), strict=True)}
    plan = sweeps.Plan("mine", variants, None, "tiny")
    page = sweeps.carry_out(plan, swept[0], tmp_path, 1, lambda line: None).read_text()
    assert "offline · both" in page
    assert "offline · one arm" in page
    assert 'href="curves/report.html"' in page
    curves = (tmp_path / "curves" / "report.html").read_text()
    assert "offline (both)" in curves
    assert "offline (one arm)" in curves
    assert len((tmp_path / "runs.csv").read_text().splitlines()) == 1 + 2 + 1


def test_parts_made_from_another_text_are_not_shared(swept: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(swept[0], tmp_path / "runs"))
    place = run_folder(tiny(), folder) / "manifest.json"
    for path in folder.glob("*/manifest.json"):
        manifest = runs.read_json(path)
        runs.write_json(path, manifest | {"digests": manifest["digests"] | {"corpus": "0" * 16}})
    later = dataclasses.replace(tiny(), arms=(dataclasses.replace(tiny().arms[0], name="another"),))
    (reason,) = run_sweep([later], folder).values()
    assert "the corpus has changed" in reason
    manifest = runs.read_json(place)
    runs.write_json(place, manifest | {"digests": manifest["digests"] | {"corpus": "1" * 16}})
    with pytest.raises(AssayError, match="from other models or another text"):
        run_sweep([tiny(num_steps=6)], folder)


def test_a_sweep_that_needs_a_network_without_one_says_so(tmp_path: Path) -> None:
    plan = {e.seed: e for e in cells(SCALES["small"]["xsum_gpt2"](), {}, [1, 2])}
    failures = run_sweep(list(plan.values()), tmp_path)
    assert len(failures) == 2
    assert all("cannot load the tokenizer 'openai-community/gpt2-large'" in reason for reason in failures.values())
    assert all("\n" not in reason for reason in failures.values())


class Pool(Executor):
    """Works at once, but ``slow`` never ends and ``killer`` breaks the pool; broken, it refuses work.

    An arm is called by its name, other work by its function's name.
    """

    def __init__(self, slow: str = "", killer: str = "", num_calls: int = 1000) -> None:
        self.slow, self.killer, self.num_calls, self.waiting = slow, killer, num_calls, list[Future[Any]]()

    def submit(self, function: Any, /, *arguments: Any, **_: Any) -> Future[Any]:
        if self.num_calls == 0:
            raise BrokenProcessPool
        self.num_calls -= 1
        call, future = arguments[3] if len(arguments) > 3 else function.__name__, Future[Any]()
        if call == self.slow:
            self.waiting.append(future)
        elif call == self.killer:
            self.num_calls = 0
            for each in [future, *self.waiting]:
                each.set_exception(BrokenProcessPool())
        else:
            try:
                future.set_result(function(*arguments))
            except AssayError as error:
                future.set_exception(error)
        return future


@pytest.fixture
def hollow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages that only write the files which say that they are done; an arm called "bad..." fails."""

    def stage_one(experiment: Experiment, folder: Path) -> dict[str, str]:
        (folder / "stage1").mkdir(exist_ok=True)
        for role in ("teacher", "student"):
            (folder / "stage1" / f"held_out-{role}.parquet").touch()
        return {"corpus": "c"}

    def run_stage(experiment: Experiment, folder: Path, stage: str, name: str) -> None:
        if name.startswith("bad"):
            raise AssayError(f"arm {name!r} is bad")
        (folder / "arms" / name).mkdir(parents=True, exist_ok=True)
        (folder / "arms" / name / "finished.json").touch()

    def write_results(experiment: Experiment, folder: Path, wall_seconds: float) -> None:
        for name in ("metrics.jsonl", "probe.parquet", "responses.parquet", "summary.json", "report.html"):
            (folder / name).touch()

    monkeypatch.setattr(sweep, "make_stage_one", stage_one)
    monkeypatch.setattr(sweep, "write_results", write_results)
    monkeypatch.setattr(workers, "run_stage", run_stage)


def named(*arms: str, seed: int = 7) -> Experiment:
    return dataclasses.replace(tiny(seed), arms=tuple(dataclasses.replace(tiny().arms[0], name=arm) for arm in arms))


@pytest.mark.usefixtures("hollow")
def test_a_run_fails_for_its_first_reason(tmp_path: Path) -> None:
    lines: list[str] = []
    arms = [("bad",), ("good", "bad-too", "bad-three"), ("bad", "bad-too")]
    failures = run_sweep([named(*each) for each in arms], tmp_path, lines.append, 1, lambda _: Pool())
    assert list(failures.values()) == [
        "arm 'bad' is bad",
        "arm 'bad-too' is bad",
        "arm 'bad' failed in the run that it is shared with",
    ]
    assert any(line.endswith("arms bad-three failed: arm 'bad-three' is bad") for line in lines)


@pytest.mark.usefixtures("hollow")
def test_a_killed_worker_costs_only_its_own_run(tmp_path: Path) -> None:
    lines: list[str] = []
    pools = iter([Pool(slow="innocent", killer="greedy"), Pool(killer="greedy"), Pool()])
    experiments = [named("innocent"), named("greedy", seed=8), named("late", seed=9)]
    failures = run_sweep(experiments, tmp_path, lines.append, 2, lambda _: next(pools))
    assert failures == {run_folder(experiments[1], tmp_path).name: workers.WORKER_WAS_KILLED}
    assert sum("arms innocent done" in line for line in lines) == 1


@pytest.mark.usefixtures("hollow")
def test_a_worker_killed_between_two_units_costs_nothing(tmp_path: Path) -> None:
    pools = iter([Pool(num_calls=2), Pool()])
    assert run_sweep([named("a", "b"), named("c", seed=8)], tmp_path, make_executor=lambda _: next(pools)) == {}
    with pytest.raises(AssayError, match="a worker process ended"):
        run_sweep([named("d")], tmp_path, make_executor=lambda _: Pool(num_calls=0))


@pytest.mark.usefixtures("hollow")
def test_an_experiment_given_twice_is_run_once(tmp_path: Path) -> None:
    lines: list[str] = []
    assert run_sweep([named("a"), named("a")], tmp_path, lines.append, 1, lambda _: Pool()) == {}
    assert lines[0] == "1 runs, 0 of them finished before"
    with pytest.raises(AssayError, match="at least one worker, not -1"):
        run_sweep([named("a")], tmp_path, num_workers=-1)


@pytest.mark.usefixtures("hollow")
def test_a_run_of_another_process_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    place = run_folder(named("a"), tmp_path)
    place.mkdir()
    with runs.locked(place):
        runs.write_json(place / "manifest.json", provenance.open_manifest(named("a"), place) | {"started_at": "then"})
        before = times(tmp_path)
        with pytest.raises(AssayError, match="another process is working"):
            run_sweep([named("a")], tmp_path, make_executor=lambda _: Pool())
        assert times(tmp_path) == before


@pytest.mark.usefixtures("hollow")
def test_a_sweep_killed_while_it_wrote_its_first_file_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class KillError(BaseException):
        pass

    def kill(*_: Any, **__: Any) -> None:
        raise KillError

    with monkeypatch.context() as patch:
        patch.setattr(runs.os, "replace", kill)
        patch.setattr(runs.shutil, "rmtree", kill)
        with pytest.raises(KillError):
            run_sweep([named("a")], tmp_path, make_executor=lambda _: Pool())
    assert run_sweep([named("a")], tmp_path, make_executor=lambda _: Pool()) == {}


@pytest.mark.usefixtures("hollow")
def test_a_damaged_neighbour_is_named_and_shares_nothing(tmp_path: Path) -> None:
    assert run_sweep([named("a")], tmp_path, make_executor=lambda _: Pool()) == {}
    neighbour = run_folder(named("a"), tmp_path)
    (neighbour / "manifest.json").write_text('{"config": ')
    lines: list[str] = []
    later = named("a", "b")
    assert run_sweep([later], tmp_path, lines.append, 1, lambda _: Pool()) == {}
    (line,) = (line for line in lines if "nothing is shared" in line)
    assert line.startswith(f"nothing is shared with {neighbour.name}: ")
    assert "delete the run folder" in line
    assert not runs.read_json(run_folder(later, tmp_path) / "manifest.json").get("copied")
    assert measured_flops_per_second([neighbour / "manifest.json"]) is None


@pytest.mark.usefixtures("hollow")
def test_more_runs_than_files_may_be_open(tmp_path: Path) -> None:
    """A lock each, and a soft limit that is lower."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
    try:
        many = [named("a", seed=seed) for seed in range(80)]
        assert run_sweep(many, tmp_path, make_executor=lambda _: Pool()) == {}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.usefixtures("hollow")
def test_a_part_that_cannot_be_shared_stops_only_the_run_that_needs_it(tmp_path: Path) -> None:
    assert run_sweep([named("a")], tmp_path, make_executor=lambda _: Pool()) == {}
    begun = run_folder(named("b"), tmp_path)
    begun.mkdir()
    manifest = provenance.open_manifest(named("b"), begun)
    runs.write_json(begun / "manifest.json", manifest | {"digests": {"corpus": "another"}})
    failures = run_sweep([named("b"), named("c", seed=8)], tmp_path, make_executor=lambda _: Pool())
    assert list(failures) == [begun.name]
    assert "the corpus has changed" in failures[begun.name]


@pytest.mark.parametrize(
    ("axes", "seeds", "words"),
    [
        ({}, [], "at least one seed"),
        ({}, [1, 1], "a seed is given twice"),
        ({"seed": [1, 2]}, [1], "use --seeds"),
        ({"distillation.num_prompts": []}, [1], "has no values"),
        ({"distillation.num_prompts": [64, 64]}, [1], "mean the same experiment"),
        ({"distillation.num_promts": [64]}, [1], "did you mean 'num_prompts'"),
        ({"distillation.num_prompts": ["many"]}, [1], "expected int"),
        ({"distillation.training": [{}], "distillation.training.num_steps": [5]}, [1], "contradict each other"),
        ({"arms.offline": [1]}, [1], "holds no fields that a sweep can set"),
        ({"probe.num_monitored": [8], "probe.num_shown": [4, 9]}, [1], "num_shown = 9: the probe needs"),
    ],
)
def test_contradictory_sweeps_are_refused(axes: dict[str, list[Any]], seeds: list[int], words: str) -> None:
    with pytest.raises(AssayError, match=words):
        cells(small(), axes, seeds)


def test_cells_are_all_combinations_at_all_seeds() -> None:
    found = cells(small(), {"distillation.num_prompts": [32, 64], "distillation.training.schedule": ["cosine"]}, [1, 2])
    assert [(e.distillation.num_prompts, e.seed) for e in found] == [(32, 1), (32, 2), (64, 1), (64, 2)]
    assert {e.distillation.training.schedule for e in found} == {"cosine"}


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_resolves_to_different_experiments(name: str) -> None:
    study = STUDIES[name]
    found = experiments_of(study, {"quickstart": small()}, study.seeds)
    assert len({run_folder(e, Path()) for e in found.values()}) == len(found)
    assert all(from_dict(to_dict(e)) == e for e in found.values())
