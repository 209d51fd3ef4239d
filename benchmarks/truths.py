"""What follows golden where there is no oracle: the columns of any log, and judges.

    python benchmarks/truths.py build [--runs FOLDER]   # the runs with judges (an hour on a core each; resumable)
    python benchmarks/truths.py collect --runs FOLDER   # their curves, of the runs that have ended
    python benchmarks/truths.py table                   # benchmarks/truths/table.md and its CSVs, from committed curves

The other columns are measured on the committed curves of HackBench (benchmarks/hackbench). What was expected beforehand is
in benchmarks/truths/expected.md.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import torch

from assay import provenance, runs
from assay.config import ARMS, Experiment, JudgeConfig
from assay.recipes import get_recipe
from assay.sweep import make_stage_one, run_sweep

HERE = Path(__file__).parent
WORLDS = ("quickstart", "translate_causal", "summarize_causal")
SEEDS = (21, 22)


# --- the runs with judges


def start_of(world: str, seed: int) -> Experiment:
    """The world's offline and online arm of a seed, without judges: its stage 1 is made first."""
    return replace(get_recipe(world), seed=seed, arms=(ARMS["offline"], ARMS["online_teacher"]))


def with_judges(world: str, seed: int, folder: Path) -> Experiment:
    """The same with five judges.

    The second teacher is the teacher of the other seed: the same base, SFT on the oracle's responses to other prompts.
    No judge is the oracle, and none was made from the prompts that it judges on.
    """
    experiment = start_of(world, seed)
    other = next(s for s in SEEDS if s != seed)
    second = str(_start_folder(world, other, folder) / "stage1" / "teacher")
    judges = (
        JudgeConfig("second", "model", second),
        JudgeConfig("second_text", "model", second, walks_on="student"),
        JudgeConfig("base", "model", str(experiment.models.teacher)),
        JudgeConfig("f1", "function", "truths_judges:token_f1"),
        JudgeConfig("chrf", "command", shlex.join([sys.executable, str(HERE / "truths_judges.py")])),
    )
    return replace(experiment, probe=replace(experiment.probe, judges=judges))


def _start_folder(world: str, seed: int, folder: Path) -> Path:
    return folder / f"start-{world}-seed{seed}"


def build(folder: Path) -> None:
    """Makes what is missing, run after run, the first seed of every world first."""
    torch.set_num_threads(1)
    for seed in SEEDS:
        for world in WORLDS:
            for either in SEEDS:
                _make_start(world, either, folder)
            failures = run_sweep([with_judges(world, seed, folder)], folder, lambda line: print(line, flush=True))
            for name, reason in failures.items():
                print(f"{name} failed: {reason}", flush=True)


def _make_start(world: str, seed: int, folder: Path) -> None:
    experiment, place = start_of(world, seed), _start_folder(world, seed, folder)
    runs.prepare_folder(place)
    with runs.locked(place):
        manifest = provenance.open_manifest(experiment, place)
        if "student_after_sft" not in manifest["digests"]:
            manifest["digests"] |= make_stage_one(experiment, place)
            runs.write_json(place / "manifest.json", manifest)
            print(f"{place.name} done", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("build",))
    parser.add_argument("--runs", type=Path, default=Path("runs/truths"))
    arguments = parser.parse_args()
    build(arguments.runs)


if __name__ == "__main__":
    main()
