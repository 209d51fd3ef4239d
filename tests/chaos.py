"""Kills runs at random moments and compares what the same command then ends in with runs that nobody has killed.

    python tests/chaos.py            # the table on stdout
    python tests/chaos.py --write    # and into benchmarks/chaos/results.md

A kill is a SIGKILL to the whole process group, or to the parent alone; its moment is drawn over the measured duration
of the run that nobody kills. Compared are all files: records, tables, weights, summaries, times aside.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from assay import runs
from assay.config import ARMS, ArmConfig, Experiment, SourceConfig, to_dict
from assay.provenance import processor
from test_answers import ChatApi
from test_experiment import small

OUT = Path(__file__).parent.parent / "benchmarks" / "chaos" / "results.md"
TIMES = {"seconds", "wall_seconds", "stage_seconds", "worker_seconds", "started_at"}
NUM_PROMPTS = 120
"""That the scenario "answers" asks about."""


@dataclass(frozen=True)
class Scenario:
    """A command, given as what follows ``python``, that is run in a folder of its own; and how often it is killed.

    ``singles`` are runs that are killed once, ``row`` the kills of one run in a row.
    """

    name: str
    command: list[str]
    place: Callable[[Path], str]
    singles: int
    row: int
    files: dict[str, str] = field(default_factory=dict)

    def prepare(self, folder: Path) -> None:
        """Writes what the command reads."""
        folder.mkdir(parents=True)
        for name, text in self.files.items():
            (folder / name).write_text(text, encoding="utf-8")

    def start(self, folder: Path) -> subprocess.Popen[str]:
        """The command, in a process group of its own; what it says goes into said.txt."""
        with (folder / "said.txt").open("a") as said:
            return subprocess.Popen(
                [sys.executable, *self.command], cwd=folder, stdout=said, stderr=said, text=True, start_new_session=True
            )


@dataclass(frozen=True)
class Kill:
    """One kill: when, whom, what it hit, and what it left half done."""

    scenario: str
    seconds: float
    duration: float
    victim: str
    place: str
    left: str


# --- what is run


def scenarios(url: str) -> list[Scenario]:
    """All of them; ``url`` is that of a server which answers."""
    run = ["-m", "assay", "run", "config.json", "--out", "run"]
    rows = "".join(json.dumps({"prompt": f"word {i}"}) + "\n" for i in range(NUM_PROMPTS))
    asked = ["--server", url, "--number", "2", "--concurrency", "2"]
    sweep = ["--axes", "distillation.training.divergence=forward_kl,reverse_kl", "--runs", "runs"]
    return [
        Scenario("run", run, place_of_run, 16, 6, {"config.json": text_of(controlled())}),
        Scenario("distill", run, place_of_run, 10, 4, {"config.json": text_of(without_oracle())}),
        Scenario(
            "policy",
            [str(Path(__file__).with_name("alarmed.py")), *run[2:]],
            place_of_run,
            *(10, 4),
            {"config.json": text_of(with_policies())},
        ),
        Scenario(
            "sweep",
            ["-m", "assay", "sweep", "config.json", *sweep],
            place_of_sweep,
            *(6, 4),
            {"config.json": text_of(dataclasses.replace(controlled(), arms=controlled().arms[:1]))},
        ),
        Scenario(
            "answers",
            ["-m", "assay", "answers", "prompts.jsonl", *asked, "--out", "answers.jsonl"],
            place_of_answers,
            *(6, 3),
            {"prompts.jsonl": rows},
        ),
    ]


def controlled(num_steps: int = 12) -> Experiment:
    """A world with its oracle: one arm whose responses are stored, one whose student writes them."""
    experiment = small(num_steps=num_steps)
    return dataclasses.replace(
        experiment,
        stage_one=dataclasses.replace(experiment.stage_one, num_oracle_prompts=128),
        probe=dataclasses.replace(experiment.probe, num_prompts=48),
        arms=(ARMS["offline"], ARMS["online_student"]),
    )


def without_oracle() -> Experiment:
    """No oracle, and a teacher whose signals are stored."""
    experiment = controlled()
    return dataclasses.replace(
        experiment,
        models=dataclasses.replace(experiment.models, oracle=None),
        distillation=dataclasses.replace(experiment.distillation, signal_store="store"),
        arms=(ARMS["offline"], ARMS["online_teacher"]),
    )


def with_policies() -> Experiment:
    """Arms that are gone back in, regenerated and stopped (tests/alarmed.py raises the alarms)."""
    sources = (SourceConfig("teacher"),)
    arms = (ArmConfig("auto", sources, "auto"), ArmConfig("stop", sources, "stop"))
    probe = dataclasses.replace(controlled().probe, num_evaluations=9)
    return dataclasses.replace(controlled(num_steps=16), arms=arms, probe=probe)


def text_of(experiment: Experiment) -> str:
    """An experiment as a config file."""
    return json.dumps(to_dict(experiment))


# --- where it stands


def place_of_run(folder: Path) -> str:
    """What the run in ``folder``/run is doing."""
    return _place(folder / "run")


def place_of_sweep(folder: Path) -> str:
    """What the first run of a sweep that has not ended is doing."""
    places = [_place(path) for path in sorted((folder / "runs").glob("*-seed*"))]
    begun = [place for place in places if place != "ended"]
    if not places:
        return "starting"
    return begun[0] if begun else ("report of the sweep" if len(places) == 2 else "between two runs")


def place_of_answers(folder: Path) -> str:
    """How many prompts have been answered."""
    partial = folder / ".answers.jsonl.partial"
    if (folder / "answers.jsonl").exists():
        return "ended"
    if not partial.exists():
        return "starting"
    return f"{max(len(runs.read_records(partial)) - 1, 0)} of {NUM_PROMPTS} answered"


def _place(folder: Path) -> str:
    if not (folder / "manifest.json").exists():
        return "starting"
    manifest = json.loads((folder / "manifest.json").read_text())
    stage_one, arms = folder / "stage1", [arm["name"] for arm in manifest["config"]["arms"]]
    if manifest["status"] == "finished":
        return "ended"
    if not stage_one.exists():
        return "loading models"
    if manifest["config"]["models"]["oracle"] is not None and len(list(stage_one.glob("oracle-*.parquet"))) < 2:
        return "oracle's responses"
    missing = [role for role in ("teacher", "student") if not (stage_one / f"held_out-{role}.parquet").exists()]
    if missing:
        return "SFT" if manifest["config"]["models"]["oracle"] is not None else "held-out responses"
    left = [arm for arm in arms if not (folder / "arms" / arm / "finished.json").exists()]
    steps = []
    for arm in left:
        records = runs.read_records(folder / "arms" / arm / "metrics.jsonl")
        steps.append(f"{arm} after evaluation {records[-1]['step']}" if records else f"{arm} begins")
    return ", ".join(steps) if left else "report"


# --- what is compared


def content(folder: Path) -> dict[str, Any]:
    """All that the files below a folder say, by their names, without times; of figures and pages only that they exist.

    Shards of a signal store have names of their own: what counts is what is in them.
    """
    found: dict[str, Any] = {}
    entries: set[str] = set()
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() and not path.name.endswith(".unfinished"):
            continue
        if path.name in (runs.REPAIRS, "said.txt", "digests.json"):  # digests: of a file that holds times
            continue
        if path.parent.name.startswith("shard-"):
            entries |= set(json.loads(path.read_text())["entries"]) if path.name == "index.json" else set()
        elif path.suffix == ".parquet":
            found[name] = pq.read_table(path).to_pylist()
        elif path.suffix in (".json", ".jsonl"):
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            found[name] = [_without_times(json.loads(line)) for line in lines]
        elif path.name == "model.safetensors":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = None
    return found | ({"entries of the store": sorted(entries)} if entries else {})


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(inner) for key, inner in value.items() if key not in TIMES}
    return [_without_times(each) for each in value] if isinstance(value, list) else value


def difference(expected: dict[str, Any], found: dict[str, Any]) -> str:
    """The names of files that only one of two folders has, or that differ; empty when there are none."""
    missing = [f"{name} is missing" for name in expected.keys() - found.keys()]
    surplus = [f"{name} is left over" for name in found.keys() - expected.keys()]
    changed = [f"{name} differs" for name in expected.keys() & found.keys() if expected[name] != found[name]]
    return "; ".join(sorted(missing + surplus + changed))


# --- killing


def kill(process: subprocess.Popen[str], victim: str) -> None:
    """SIGKILL to the group ("all") or to the parent, whose workers must then end themselves."""
    (os.killpg if victim == "all" else os.kill)(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(_is_alive(pid) for pid in _group(process.pid)):
        time.sleep(0.02)


def _group(leader: int) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == leader:
            yield int(path.parent.name)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def left_half_done(folder: Path) -> str:
    """What a kill has caught in the making: unfinished files and torn logs."""
    unfinished = [path.name for path in folder.rglob(".*.unfinished")]
    logs = [path for pattern in ("*.jsonl", ".*.partial") for path in folder.rglob(pattern)]
    torn = [path.name for path in logs if path.stat().st_size and not path.read_bytes().endswith(b"\n")]
    kept = [name[1:].rpartition(".")[0].rpartition(".")[0] for name in unfinished]
    return ", ".join([*kept, *(f"torn {name}" for name in torn)])


def finished_work(folder: Path) -> dict[Path, int]:
    """When the weights of arms that have ended were written: nobody may write them again."""
    marks = folder.rglob("finished.json")
    return {file: file.stat().st_mtime_ns for mark in marks for file in mark.parent.rglob("*.safetensors")}


def killed_run(
    scenario: Scenario, folder: Path, duration: float, moments: list[tuple[float, str]], expected: dict[str, Any]
) -> tuple[list[Kill], str]:
    """Kills a run at these moments (seconds after its start, whom), lets it end, and compares: "" when all is equal."""
    scenario.prepare(folder)
    kills, before = [], dict[Path, int]()
    for seconds, victim in moments:
        process = scenario.start(folder)
        try:
            process.wait(seconds)
            break  # it was faster
        except subprocess.TimeoutExpired:
            place = scenario.place(folder)
            kill(process, victim)
        kills.append(Kill(scenario.name, seconds, duration, victim, place, left_half_done(folder)))
        if any(path.exists() and path.stat().st_mtime_ns != at for path, at in before.items()):
            return kills, "finished work was done again"
        before |= finished_work(folder)
    code = scenario.start(folder).wait()
    if code != 0:
        return kills, f"ended with {code}: {(folder / 'said.txt').read_text().strip().splitlines()[-1]}"
    return kills, difference(expected, content(folder))


def main() -> None:
    """All scenarios, two at a time; ends with 1 when any run ended in another state than the one nobody killed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="one scenario")
    parser.add_argument("--few", action="store_true", help="one run of each, killed three times")
    parser.add_argument("--write", action="store_true", help=f"also write {OUT.name}")
    options = parser.parse_args()
    started = time.perf_counter()
    with ChatApi() as api, tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(2) as pool:
        api.alter = _slowly
        chosen = [s for s in scenarios(api.url) if options.only in ("", s.name)]
        chosen = [dataclasses.replace(s, singles=0, row=3) for s in chosen] if options.few else chosen
        wholes = list(pool.map(lambda s: _whole(s, Path(place) / s.name / "whole"), chosen))
        jobs = []
        for scenario, (duration, expected) in zip(chosen, wholes, strict=True):
            for number, moments in enumerate(draw(scenario, duration, random.Random(f"{options.seed}{scenario.name}"))):
                folder = Path(place) / scenario.name / str(number)
                jobs.append(pool.submit(killed_run, scenario, folder, duration, moments, expected))
        lines, bad = _table([job.result() for job in jobs])
    durations = ", ".join(f"{s.name} {duration:.1f} s" for s, (duration, _) in zip(chosen, wholes, strict=True))
    text = "\n".join(
        [
            f"# Kills at random moments (`make chaos`, seed {options.seed})\n",
            f"{processor()}, {os.cpu_count()} cores, {time.perf_counter() - started:.0f} s in all. Durations of the "
            f"runs that nobody killed: {durations}.\n",
            *lines,
            "",
        ]
    )
    print(text)
    if options.write:
        runs.write_text(OUT, text)
    sys.exit(1 if bad else 0)


def draw(scenario: Scenario, duration: float, generator: random.Random) -> list[list[tuple[float, str]]]:
    """The moments of every run: one kill in each n-th of the duration, and one run that is killed again and again."""

    def whom() -> str:
        return generator.choice(["all", "all", "all", "parent"])

    # before a tenth it has only begun to import
    parts = [(i + generator.random()) / scenario.singles for i in range(scenario.singles)]
    singles = [[(duration * (0.1 + 0.9 * part), whom())] for part in parts]
    row = [(duration * generator.uniform(0.3, 0.7), whom()) for _ in range(scenario.row)]
    return [row, *singles]


def _whole(scenario: Scenario, folder: Path) -> tuple[float, dict[str, Any]]:
    scenario.prepare(folder)
    started = time.perf_counter()
    code = scenario.start(folder).wait()
    if code != 0:
        sys.exit(f"{scenario.name} ended with {code}:\n{(folder / 'said.txt').read_text()}")
    return time.perf_counter() - started, content(folder)


def _slowly(_: int, choice: Any) -> Any:
    time.sleep(0.02)
    return choice


def _table(results: list[tuple[list[Kill], str]]) -> tuple[list[str], int]:
    rows, number = [], 0
    for kills, outcome in results:
        for i, each in enumerate(kills):
            number += 1
            end = (outcome or "the same, file for file") if i == len(kills) - 1 else "killed again"
            moment = f"{each.seconds:.2f} of {each.duration:.1f}"
            cells = [str(number), each.scenario, moment, each.victim, each.place, each.left, end]
            rows.append(f"| {' | '.join(cells)} |")
    bad = sum(bool(outcome) for _, outcome in results)
    caught = sum(bool(each.left) for kills, _ in results for each in kills)
    total = sum(bool(kills) for kills, _ in results)
    return [
        f"**{number} kills in {total} runs: {bad} ended otherwise than the run that nobody killed.** "
        f"{caught} kills caught a file in the making.\n",
        "| kill | scenario | second | killed | it was at | left half done | in the end |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ], bad


if __name__ == "__main__":
    main()
