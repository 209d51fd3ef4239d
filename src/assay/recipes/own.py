"""Experiments on a user's own models and prompts: ``distill`` without an oracle, ``lab`` with one.

The dials that a user leaves open are set from what their prompts file holds and what the lab has shown
(docs/guidelines.md); all of them end as plain numbers in the run's config.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

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
from assay.data.splitting import Split
from assay.errors import AssayError

NUM_PASSES = 12
"""Rows of training for each prompt, where nothing else is said."""
MOST_COMPLETIONS = 8
"""Stored responses per prompt, beyond which fresh ones are the better use of tokens (benchmarks/cures/table.md)."""
MOST_HELD_OUT = 256
FEWEST_HELD_OUT = 16

Source = Literal["offline", "online_teacher", "online_student"]
"""The paper's three sources of responses, by their names in ``config.ARMS``."""


@dataclass(frozen=True)
class Wish:
    """What a user asks for; ``source`` and ``budget`` are for a run without an oracle.

    ``budget``: teacher tokens, written plus scored, which choose the source; without it, ``source`` None is "offline":
    one response per prompt at first.
    """

    student: str
    prompts: str
    teacher: str | None = None
    oracle: str | None = None
    references: str | None = None
    chat_template: bool = False
    max_prompt_tokens: int = 256
    max_response_tokens: int = 128
    budget: int | None = None
    source: Source | None = None
    divergence: str = "forward_kl"
    batch_size: int = 32
    learning_rate: float = 5e-5
    seed: int = 0

    def draft(self) -> Experiment:
        """The experiment before it is known how many prompts there are."""
        if self.source is not None and self.budget is not None:
            raise AssayError("a budget chooses the source of the responses: give --budget or --source, not both")
        sources = ARMS[self.source or "offline"].sources
        arms = tuple(ARMS.values()) if self.oracle is not None else (ArmConfig("distill", sources),)
        return Experiment(
            recipe="lab" if self.oracle is not None else "distill",
            seed=self.seed,
            task=TaskConfig(
                self.prompts,
                reference=self.references,
                chat_template=self.chat_template,
                max_prompt_tokens=self.max_prompt_tokens,
                max_response_tokens=self.max_response_tokens,
            ),
            models=ModelsConfig(oracle=self.oracle, teacher=self.teacher, student=self.student),
            distillation=DistillationConfig(
                training=TrainingConfig(
                    divergence=self.divergence, batch_size=self.batch_size, learning_rate=self.learning_rate
                )
            ),
            arms=arms,
        )


def filled(wish: Wish, num_prompts: Mapping[Split, int]) -> Experiment:
    """The experiment with its dials set; ``num_prompts`` are those that fit, by split.

    Raises AssayError when there are too few of them, or the budget buys no response.
    """
    draft = wish.draft()
    held_out, prompts = num_prompts["held_out"], num_prompts["distillation"]
    if held_out < FEWEST_HELD_OUT or prompts < 2:
        raise AssayError(
            f"{wish.prompts!r} gives {prompts} prompts to distil on and {held_out} held-out ones of at most "
            f"{wish.max_prompt_tokens} tokens: a run needs 2 and {FEWEST_HELD_OUT}; add prompts, or raise "
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
    if wish.oracle is not None:
        oracle_prompts = num_prompts["oracle"]
        stage_one = StageOneConfig(num_oracle_prompts=oracle_prompts, batch_size=min(64, oracle_prompts))
        return dataclasses.replace(experiment, stage_one=stage_one)
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
