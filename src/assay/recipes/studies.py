"""Studies: a claim of the paper, the experiments that test it, and the test of its shape.

A study varies a world (a recipe) into one or more variants, each run on the study's seeds; ``assay sweep NAME`` runs
them and writes the finding. Add one here and it appears in ``assay recipes``. The same study exists at three scales: a
scale only names other worlds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from assay import findings, study_report
from assay.config import ARMS, Experiment, fresh_arm, refresh_arm
from assay.errors import AssayError
from assay.findings import Shape
from assay.study_report import Draw

Variants = Callable[[Experiment], dict[str, Experiment]]
Key = tuple[str, int, str]

ALL_WORLDS = (
    "quickstart",
    "define_seq2seq",
    "translate_causal",
    "translate_seq2seq",
    "summarize_causal",
    "summarize_seq2seq",
)
TWO_WORLDS = ("quickstart", "translate_causal")
SMALLER = {
    "define-student": "define-small",
    "openai-community/gpt2": "distilbert/distilgpt2",
    "google-t5/t5-base": "google-t5/t5-small",
    "google-t5/t5-small": "google/t5-efficient-tiny",
}
"""Student → the next smaller model with the same tokenizer, pretrained by itself (not a copy of the teacher's base)."""
FIVE_SEEDS = (11, 12, 13, 14, 15)
THREE_SEEDS = FIVE_SEEDS[:3]


@dataclass(frozen=True)
class Study:
    """A claim, the shape that its outcome must have, its figure, and the worlds and seeds of the scale "tiny".

    ``variants`` gives the same names in every world.
    """

    name: str
    claim: str
    variants: Variants
    shape: Shape
    draw: Draw
    worlds: tuple[str, ...] = ("quickstart",)
    seeds: tuple[int, ...] = THREE_SEEDS


def as_it_is(world: Experiment) -> dict[str, Experiment]:
    """The world itself: offline, online teacher, online student."""
    return {"as it is": world}


def same_size(world: Experiment) -> dict[str, Experiment]:
    """Sets of one size: N prompts once, N/2 twice, N/5 five times; offline alone."""
    prompts = world.distillation.num_prompts
    shares = {"all x 1": 1, "half x 2": 2, "a fifth x 5": 5}
    return {name: _offline(world, prompts // k, k) for name, k in shares.items()}


def more_completions(world: Experiment) -> dict[str, Experiment]:
    """The same prompts with one, two and four completions each; offline alone."""
    prompts = world.distillation.num_prompts
    return {f"all x {k}": _offline(world, prompts, k) for k in (1, 2, 4)}


def losses(world: Experiment) -> dict[str, Experiment]:
    """Six training losses at their default parameters, offline and online teacher."""
    names = ("forward_kl", "reverse_kl", "generalised_jsd", "skew_forward_kl", "total_variation", "hard_labels")
    return {name: _training(world, divergence=name) for name in names}


def schedules(world: Experiment) -> dict[str, Experiment]:
    """Constant, cosine and linear learning rates, offline and online teacher."""
    return {name: _training(world, schedule=name) for name in ("constant", "cosine", "linear")}


def sizes(world: Experiment) -> dict[str, Experiment]:
    """The world's teacher and student; a smaller student; the student's size as teacher of the smaller one.

    Raises AssayError when no model smaller than the world's student is known.
    """
    teacher, student = world.models.teacher, world.models.student
    if student not in SMALLER:
        raise AssayError(f"no model smaller than the student {student} is known; give one of {', '.join(SMALLER)}")
    pairs = {
        "as it is": (teacher, student),
        "smaller student": (teacher, SMALLER[student]),
        "both smaller": (student, SMALLER[student]),
    }
    return {
        name: dataclasses.replace(
            _two_arms(world), models=dataclasses.replace(world.models, teacher=teacher, student=student)
        )
        for name, (teacher, student) in pairs.items()
    }


def teacher_quality(world: Experiment) -> dict[str, Experiment]:
    """Teachers after none to four passes of SFT over the oracle's responses; offline alone."""
    return {
        f"{passes:g} passes": dataclasses.replace(
            _one_arm(world), stage_one=dataclasses.replace(world.stage_one, teacher_epochs=passes)
        )
        for passes in (0.0, 0.5, 2.0, 4.0)
    }


def online_fraction(world: Experiment) -> dict[str, Experiment]:
    """Every batch has 0, 5, 10, 25, 50 or 100 % fresh teacher responses, the rest stored ones."""
    mixed = [fresh_arm(percent) for percent in (5, 10, 25, 50)]
    return {"fractions": dataclasses.replace(world, arms=(ARMS["offline"], *mixed, ARMS["online_teacher"]))}


def refresh(world: Experiment) -> dict[str, Experiment]:
    """Stored responses are written anew every 10, 5, 2 or 1 passes, or never."""
    arms = [refresh_arm(n) for n in (10, 5, 2)]
    return {"intervals": dataclasses.replace(world, arms=(ARMS["offline"], *arms, ARMS["online_teacher"]))}


def controls(world: Experiment) -> dict[str, Experiment]:
    """The world; the oracle as teacher; a random student; a student without SFT; offline alone."""
    one = _one_arm(world)
    return {
        "as it is": one,
        "oracle as teacher": dataclasses.replace(one, models=dataclasses.replace(one.models, teacher_is_oracle=True)),
        "random student": dataclasses.replace(
            one, models=dataclasses.replace(one.models, student_initialisation="random")
        ),
        "no SFT": dataclasses.replace(one, stage_one=dataclasses.replace(one.stage_one, student_epochs=0.0)),
    }


def _offline(world: Experiment, num_prompts: int, completions: int) -> Experiment:
    distillation = dataclasses.replace(world.distillation, num_prompts=num_prompts, completions_per_prompt=completions)
    return dataclasses.replace(_one_arm(world), distillation=distillation)


def _one_arm(world: Experiment) -> Experiment:
    return dataclasses.replace(world, arms=(ARMS["offline"],))


def _two_arms(world: Experiment) -> Experiment:
    return dataclasses.replace(world, arms=(ARMS["offline"], ARMS["online_teacher"]))


def _training(world: Experiment, **changes: object) -> Experiment:
    training = dataclasses.replace(world.distillation.training, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(
        _two_arms(world), distillation=dataclasses.replace(world.distillation, training=training)
    )


STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        Study(
            "fig4",
            "Offline, golden over proxy is a U: the student nears the oracle first, then leaves it while the proxy "
            "still falls or stagnates",
            as_it_is,
            findings.u_shape,
            study_report.plane,
            worlds=ALL_WORLDS,
            seeds=FIVE_SEEDS,
        ),
        Study(
            "fig5",
            "Offline distillation hacks its teacher; with fresh responses, of the teacher or of the student, golden "
            "falls",
            as_it_is,
            findings.offline_hacks_online_does_not,
            study_report.curves,
            worlds=ALL_WORLDS,
            seeds=FIVE_SEEDS,
        ),
        Study(
            "fig6",
            "At one size of the distillation set fewer prompts with more completions end with a worse golden, although "
            "train loss and proxy are nearly the same",
            same_size,
            findings.prompts_beat_completions,
            study_report.differences,
            worlds=TWO_WORLDS,
            seeds=FIVE_SEEDS,
        ),
        Study(
            "fig7",
            "More completions per prompt, in a set that grows with them, improve proxy and golden",
            more_completions,
            findings.completions_help,
            study_report.differences,
            worlds=TWO_WORLDS,
        ),
        Study(
            "fig8",
            "The same on the other tasks: offline hacks and ends further from the oracle than either online arm",
            as_it_is,
            findings.on_every_task,
            study_report.ends,
            worlds=ALL_WORLDS,
            seeds=FIVE_SEEDS,
        ),
        Study(
            "losses",
            "Whatever the training loss, offline ends further from the oracle than online",
            losses,
            findings.offline_ends_above_online,
            study_report.ends,
        ),
        Study(
            "sizes",
            "Whatever the sizes of teacher and student, offline ends further from the oracle than online",
            sizes,
            findings.offline_ends_above_online,
            study_report.ends,
        ),
        Study(
            "teacher_quality",
            "The further the teacher is from the oracle, the more offline distillation hacks it",
            teacher_quality,
            findings.worse_teachers_hack_more,
            study_report.ends,
        ),
        Study(
            "online_fraction",
            "A tenth of fresh responses already helps, and all of them help more",
            online_fraction,
            findings.some_fresh_responses_help,
            study_report.ends,
        ),
        Study(
            "refresh",
            "Responses written anew every ten passes already help, and every pass helps more",
            refresh,
            findings.refreshing_helps,
            study_report.ends,
        ),
        Study(
            "schedules",
            "Whatever the schedule of the learning rate, offline ends further from the oracle than online",
            schedules,
            findings.offline_ends_above_online,
            study_report.ends,
        ),
        Study(
            "controls",
            "There is less hacking where there can be none (the oracle as teacher) and where there is nothing to "
            "forget (a random student); without SFT of the student the U is deeper",
            controls,
            findings.controls_differ,
            study_report.ends,
        ),
    )
}


def experiments_of(study: Study, worlds: Mapping[str, Experiment], seeds: Sequence[int]) -> dict[Key, Experiment]:
    """The study's experiments by (world, seed, variant), all worlds of the first seed first."""
    return {
        (name, seed, variant): dataclasses.replace(experiment, seed=seed)
        for seed in seeds
        for name, world in worlds.items()
        for variant, experiment in study.variants(world).items()
    }
