"""What to do next, from the verdicts: a sentence with its reason, and a command or a path to paste."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from assay.report.files import Row
from assay.report.tables import Curve, Study
from assay.report.words import nats, readable

_OWN = ("distill", "lab")
"""Recipes of a user's own models and prompts."""
_BAD = ("teacher_hacking", "overfitting", "hacking_suspected")


@dataclass(frozen=True)
class NextStep:
    """One thing to do: ``paste`` is a shell command, or the path of a folder, or ""."""

    title: str
    why: str
    paste: str = ""


def next_steps(study: Study) -> list[NextStep]:
    """At most four, the most useful first. Commands are for the folder in which the run's folder is."""
    first = study.runs[0]
    name, verdicts = first.directory.name, {c.summary["verdict"] for c in study.curves if c.summary}
    bad = [curve for curve in study.curves if curve.summary and curve.summary["verdict"] in _BAD]
    steps = [_student_to_take(study)]
    if bad and not any(_has_policy(curve) for curve in bad):
        names = list(dict.fromkeys(readable(curve.label) for curve in bad))
        who = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
        steps.append(
            NextStep(
                "Let the run act on an alarm",
                f"{who} went wrong while training went on. With this policy the detector, which never sees golden, "
                "asks for fresh responses as soon as damage is likely.",
                run_again(name, f"{name}-auto", "--policy", "auto"),
            )
        )
    prompts = first.manifest["config"].get("probe", {}).get("num_prompts")
    if "undecided" in verdicts and isinstance(prompts, int):
        steps.append(
            NextStep(
                "Measure on more prompts",
                "The evidence does not settle it; twice the held-out prompts make intervals about a third narrower.",
                run_again(name, f"{name}-more-prompts", "--probe.num-prompts", str(2 * prompts)),
            )
        )
    if study.truth is None:
        steps.append(
            NextStep(
                "Give held-out references",
                "Nothing here could measure the truth. Answers that people wrote to the held-out prompts can: name "
                "their column, and the verdict no longer rests on the detector alone.",
                "assay distill --references COLUMN …",
            )
        )
    if len(study.runs) == 1:
        seed = first.manifest["seed"] + 1
        other, both = with_seed(name, f"seed{seed}"), with_seed(name, "seeds")
        steps.append(
            NextStep(
                "See whether it holds for another seed",
                "The intervals are over prompts, for these students. How far seeds differ, only another one can tell.",
                f"{run_again(name, other, '--seed', str(seed))} && "
                + shlex.join(["assay", "report", name, other, "--out", both]),
            )
        )
    if not of_own_files(first.manifest):
        steps.append(
            NextStep(
                "Do it with your own models",
                "Your teacher, your student, your prompts: first ask whether they fit together, then distil, watched.",
                "assay doctor --teacher TEACHER --student STUDENT --prompts prompts.jsonl && "
                "assay distill --teacher TEACHER --student STUDENT --prompts prompts.jsonl",
            )
        )
    return steps[:4]


def run_again(folder: str, out: str, *flags: str) -> str:
    """The command that runs a run's config again into ``out``, whatever was overridden in it, and with ``flags``."""
    return shlex.join(["assay", "run", f"{folder}/manifest.json", *flags, "--out", out])


def with_seed(folder: str, seed: str) -> str:
    """The name of a run's folder, with this in place of its own seed."""
    return f"{re.sub('-seed[0-9]+$', '', folder)}-{seed}"


def of_own_files(manifest: Row) -> bool:
    """Whether the config names models and prompts of the user's, by paths that may be relative."""
    return manifest["recipe"] in _OWN


def _student_to_take(study: Study) -> NextStep:
    """The student that ends, or was, closest to the truth; without a truth the one that the detector would keep."""
    offers: list[tuple[float, int, Curve]] = []
    for number, curve in enumerate(study.curves):
        if curve.summary is None:
            continue
        levels = curve.summary["golden"] or curve.summary["proxy"]
        healthy = curve.summary["verdict"] in ("healthy", "benign_disagreement")
        offers.append((levels["final"] if healthy else levels["best"], number, curve))
    value, _, curve = min(offers)
    entry = curve.summary or {}
    healthy, step = entry["verdict"] in ("healthy", "benign_disagreement"), entry["best_step"]
    name = readable(curve.label) + (f", seed {curve.seed}" if study.has_replicates else "")
    if study.truth is None:
        title, why = f"Take step {step:,} of {name}", "That is the checkpoint that the detector would keep."
    elif healthy:
        title = f"Take the student of {name}"
        why = f"Of all arms it ends closest to the truth: golden {nats(value)}, and nothing was lost on the way."
    else:
        title = f"Take step {step:,} of {name}, not its last student"
        why = f"There golden was lowest, {nats(value)}; it ended at {nats(entry['golden']['final'])}."
    folder = "student" if healthy and study.truth is not None else "best"
    place = f"arms/{curve.arm}/{folder}"
    inside = f"{curve.run.directory.name}/{place}" if len(study.runs) > 1 else place
    return NextStep(title, f"{why} This folder of the run opens with from_pretrained.", inside)


def _has_policy(curve: Curve) -> bool:
    arms = {arm["name"]: arm for arm in curve.run.manifest["config"]["arms"]}
    return arms.get(curve.arm, {}).get("policy", "off") != "off"
