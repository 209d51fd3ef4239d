"""Experiments on a user's own models and prompts: ``distill`` without an oracle, ``lab`` with one.

The dials that a user leaves open are set from what their prompts file holds and what the lab has shown
(docs/guidelines.md); all of them end as plain numbers in the run's config.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from assay.config import (
    ARMS,
    ArmConfig,
    DistillationConfig,
    Experiment,
    ModelsConfig,
    ProbeConfig,
    StageOneConfig,
    TaskConfig,
    TrainingConfig,
)
from assay.data.splitting import Survey
from assay.errors import AssayError

NUM_PASSES = 12
"""Rows of training for each prompt, where nothing else is said."""
MOST_COMPLETIONS = 8
"""Stored responses per prompt, beyond which fresh ones are the better use of tokens (benchmarks/cures/table.md)."""
MOST_HELD_OUT = 256
FEWEST_HELD_OUT = 16

Source = Literal["offline", "online_teacher", "online_student"]
"""The paper's three sources of responses, by their names in ``config.ARMS``."""


@dataclass(frozen=True, kw_only=True)
class _Own:
    student: str
    """A local checkpoint folder or a hub id (safetensors)."""
    prompts: str
    """A .jsonl or .parquet file (docs/tasks.md), "dataset:ID" of the hub, or a task of `assay tasks`."""
    references: str | None = None
    """The column of the prompts file that holds human answers; "reference" by default."""
    chat_template: bool = False
    """Render prompts with the tokenizer's chat template; conversations need it."""
    max_prompt_tokens: int = 256
    """Longer prompts are left out."""
    max_response_tokens: int = 128
    """Longer responses are cut."""
    divergence: str | None = None
    """Of docs/design.md's table; forward_kl by default, and hard_labels where the teacher gives text only."""
    batch_size: int = 32
    """Sequences of an optimiser step."""
    learning_rate: float = 5e-5
    """Of the distillation; constant after a warm-up."""
    seed: int = 0
    """Of everything that is drawn."""

    def _draft(self, recipe: str, models: ModelsConfig, arms: tuple[ArmConfig, ...], **task: Any) -> Experiment:
        divergence = self.divergence or ("forward_kl" if models.teacher is not None else "hard_labels")
        return Experiment(
            recipe=recipe,
            seed=self.seed,
            task=TaskConfig(
                self.prompts,
                reference=self.references,
                chat_template=self.chat_template,
                max_prompt_tokens=self.max_prompt_tokens,
                max_response_tokens=self.max_response_tokens,
                **task,
            ),
            models=dataclasses.replace(models, vocabulary="shared"),
            distillation=DistillationConfig(
                training=TrainingConfig(
                    divergence=divergence, batch_size=self.batch_size, learning_rate=self.learning_rate
                )
            ),
            arms=arms,
        )


@dataclass(frozen=True, kw_only=True)
class Lab(_Own):
    """A controlled experiment in your own world: your oracle is the truth by decree; offline and online arms.

    Any field of the config may follow as a flag, such as --stage-one.learning-rate 1e-5: `assay run quickstart --help`
    lists them; and so may --out FOLDER, --policy off|warn|stop|auto, --quiet and --json (of `assay --help`).
    """

    oracle: str
    """A local checkpoint folder or a hub id (safetensors): the truth."""
    teacher: str
    """A model with the same tokenizer, to be fine-tuned on the oracle's responses."""

    def draft(self) -> Experiment:
        """The experiment before it is known how many prompts there are."""
        models = ModelsConfig(oracle=self.oracle, teacher=self.teacher, student=self.student)
        return self._draft("lab", models, tuple(ARMS.values()))


@dataclass(frozen=True, kw_only=True)
class Distill(_Own):
    """Distil your teacher into your student on your prompts, watched: which checkpoint to keep, and why; no oracle.

    Any field of the config may follow as a flag, such as --distillation.training.num-steps 600: `assay run quickstart
    --help` lists them; and so may --out FOLDER, --policy off|warn|stop|auto, --quiet and --json (of `assay --help`).
    """

    teacher: str | None = None
    """The same as for the student, with the same tokenizer; or the URL of a server (docs/served.md)."""
    responses: str | None = None
    """Instead of --teacher: the column of the prompts file with the responses of a teacher that gives text only."""
    budget: int | None = None
    """Teacher tokens, written plus scored; buys stored responses, then fresh ones. Without it: one response per prompt,
    and more at an alarm."""
    source: Source | None = None
    """Who writes the responses, instead of what a budget buys: the teacher once (offline), the teacher anew every time,
    or the student."""

    def draft(self) -> Experiment:
        """The experiment before it is known how many prompts there are; AssayError for flags that contradict."""
        if (self.teacher is None) == (self.responses is None):
            raise AssayError("name the teacher by --teacher, or the column with its responses by --responses")
        if self.source is not None and self.budget is not None:
            raise AssayError("a budget chooses the source of the responses: give --budget or --source, not both")
        if self.responses is not None and (self.source is not None or self.budget is not None):
            raise AssayError("a teacher that gives text only has the responses of its column: drop --source, --budget")
        models = ModelsConfig(oracle=None, teacher=self.teacher, student=self.student)
        arm = ArmConfig("distill", ARMS[self.source or "offline"].sources)
        return self._draft("distill", models, (arm,), responses=self.responses)


def filled(wish: Distill | Lab, draft: Experiment, found: Survey) -> Experiment:
    """The experiment with its dials set, from its draft and what its prompts hold.

    Raises AssayError when there are too few prompts, or the budget buys no response.
    """
    held_out, prompts = found.num_prompts["held_out"], found.num_prompts["distillation"]
    if held_out < FEWEST_HELD_OUT or prompts < 2:
        raise AssayError(
            f"{wish.prompts!r} gives {prompts} prompts to distil on and {held_out} held-out ones of at most "
            f"{draft.task.max_prompt_tokens} tokens: a run needs 2 and {FEWEST_HELD_OUT}; add prompts, or raise "
            "--max-prompt-tokens"
        )
    distillation = draft.distillation
    num_steps = max(math.ceil(NUM_PASSES * prompts / wish.batch_size), 20)
    training = dataclasses.replace(
        distillation.training,
        num_steps=num_steps,
        warmup_steps=min(distillation.training.warmup_steps, num_steps // 10),
        checkpoint_every=max(num_steps // 10, 10),
    )
    distillation = dataclasses.replace(distillation, num_prompts=prompts, training=training)
    monitored = min(64, held_out)
    probe = ProbeConfig(
        num_prompts=min(MOST_HELD_OUT, held_out),
        num_monitored=monitored,
        num_train_pairs=min(128, prompts),
        num_shown=min(6, monitored),
    )
    experiment = dataclasses.replace(draft, distillation=distillation, probe=probe)
    if isinstance(wish, Lab):
        oracle_prompts = found.num_prompts["oracle"]
        stage_one = StageOneConfig(num_oracle_prompts=oracle_prompts, batch_size=min(64, oracle_prompts))
        return dataclasses.replace(experiment, stage_one=stage_one)
    if wish.responses is not None:  # the detector cannot judge a proxy that is known up to a constant
        (arm,) = experiment.arms
        if found.num_references:
            arm = dataclasses.replace(arm, policy="stop", alarm="references")
        return dataclasses.replace(
            experiment,
            arms=(arm,),
            distillation=dataclasses.replace(distillation, completions_per_prompt=found.num_responses),
        )
    return _spent(experiment, wish.budget)


def _spent(experiment: Experiment, budget: int | None) -> Experiment:
    """What to spend a budget on: all prompts, as many stored responses as it buys, then fresh ones.

    The rule of thumb that lost least against the best option in benchmarks/planner; a response costs at most twice
    its token limit, once written and once scored. A run with a budget goes back at an alarm and stops; without one
    the policy may add responses.
    """
    (arm,), distillation = experiment.arms, experiment.distillation
    if budget is None:
        return dataclasses.replace(experiment, arms=(dataclasses.replace(arm, policy="auto"),))
    responses = budget // (2 * experiment.task.max_response_tokens)
    if responses < 2:
        raise AssayError(
            f"a budget of {budget:,} teacher tokens buys {responses} responses of up to "
            f"{experiment.task.max_response_tokens} tokens, written and scored: raise --budget, or lower "
            "--max-response-tokens"
        )
    prompts = min(distillation.num_prompts, responses)
    completions = responses // prompts
    rows = distillation.training.num_steps * distillation.training.batch_size
    if responses >= rows:  # enough for a fresh one every time
        arm = dataclasses.replace(arm, sources=ARMS["online_teacher"].sources)
        completions = 1
    probe = dataclasses.replace(experiment.probe, num_train_pairs=min(experiment.probe.num_train_pairs, prompts))
    return dataclasses.replace(
        experiment,
        arms=(dataclasses.replace(arm, policy="stop"),),
        distillation=dataclasses.replace(
            distillation, num_prompts=prompts, completions_per_prompt=min(completions, MOST_COMPLETIONS)
        ),
        probe=probe,
    )
