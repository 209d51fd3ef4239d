"""What an arm leaves on disk while it trains: metrics, per-prompt values, samples, the best student so far."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from assay import ranks, runs
from assay.checkpoints import FitState, save_model
from assay.config import ArmConfig, Experiment
from assay.data.sources import Mixture
from assay.data.store import responses_table
from assay.errors import AssayError
from assay.evaluation import Evaluation, Probe, evaluation_steps
from assay.judges import JudgeError
from assay.models.pretrained import PretrainedModel
from assay.policy import Policy, Supply, as_a_log
from assay.shown_tokens import ShownTokens
from assay.training import learning_rate_at
from assay.types import Action, Progress


class Recorder:
    """Evaluates the student at the scheduled steps; handed to ``fit`` as ``before_step``.

    Writes ``metrics.jsonl``, and ``STEP.parquet`` in ``probe``, ``samples`` and ``tokens`` into the arm's folder, and
    keeps the student of the lowest golden so far in ``best``; without an oracle the one to which references are most
    likely, and without references the one that the detector recommends at the end (the last one where the teacher
    gives text only, which the detector cannot judge). A resumed arm drops what it had recorded beyond its last
    checkpoint, which it will repeat; ``repaired`` is told of a torn log. ``detector_score`` in a record is the
    detector's word on the records up to it, without golden; ``action`` what the arm's policy made of it. While a
    student may be gone back to, ``kept`` holds that of every evaluation.

    ``seconds`` in a record are those of the arm so far, also before it was interrupted: "setup" from ``started`` (a
    ``time.perf_counter``) to the first step, "sample", "teacher" and "data" as the sources count them, "student" and
    "checkpoint" as ``fit`` does, "probe", "write", and "rest", with which they add up to all its time. What follows the
    last record is the "end" (``seconds_at_the_end``).
    """

    def __init__(
        self,
        experiment: Experiment,
        arm: ArmConfig,
        folder: Path,
        probe: Probe,
        mixture: Mixture,
        tokenizer: PreTrainedTokenizerBase,
        report: Callable[[Progress], None],
        repaired: Callable[[str], None] = runs.say,
        started: float | None = None,
    ) -> None:
        self.experiment, self.arm, self.folder = experiment, arm.name, folder
        self.probe, self.mixture, self.tokenizer, self.report = probe, mixture, tokenizer, report
        self.repaired = repaired
        self.training = experiment.distillation.training
        self.steps = evaluation_steps(self.training.num_steps, experiment.probe.num_evaluations)
        self.log = folder / "metrics.jsonl"
        self._started = time.perf_counter() if started is None else started
        self._counted_before = 0.0  # seconds that a checkpoint has brought along
        self.records: list[dict[str, Any]] | None = None
        self.policy = Policy(arm)
        self.has_oracle = experiment.models.oracle is not None
        self.keeps_students = arm.policy in ("stop", "auto") or not (self.has_oracle or probe.has_references)

    def __call__(self, state: FitState, student: PretrainedModel) -> Action | None:
        """Evaluates if this step is due, and says where the arm stands; returns what the policy wants done."""
        if self.records is None:
            self.records = self._take_up(state)
            if "setup" in state.seconds:
                self._counted_before = self._counted(state)
            self._count_as("setup", state)
            missing = {step for step in self.steps if step < state.step} - {r["step"] for r in self.records}
            if missing:
                raise AssayError(
                    f"{str(self.log)!r} lacks the evaluations at steps {sorted(missing)}: delete {str(self.folder)!r}; "
                    "the same command repeats that arm"
                )
        self._count_as("rest", state)
        action = None
        if state.step in self.steps and state.step not in {record["step"] for record in self.records}:
            record, action = self._evaluate(state, student)
            self.records.append(record)
        if state.step % 5 == 0 or state.step == self.training.num_steps:
            latest = self.records[-1]  # there is one: step 0 is always evaluated
            curves = latest["golden_nats"], latest["proxy_nats"], latest["reference_nll_nats"]
            self.report(Progress(self.arm, state.step, self.training.num_steps, *curves))
        return action

    @cached_property
    def _shown_tokens(self) -> ShownTokens:
        return ShownTokens(self.probe, self.tokenizer)

    def recommended_step(self) -> int | None:
        """The step whose student the detector would keep, where no truth was there to say it; else None."""
        if self.has_oracle or self.probe.has_references:
            return None
        if "teacher" not in self.experiment.models.names:
            return (self.records or [])[-1]["step"]
        return int(self.policy.detector.diagnose().recommended_step)

    def seconds_at_the_end(self, state: FitState) -> dict[str, float]:
        """The phases of the whole arm, with what has passed since ``fit`` evaluated for the last time as "end"."""
        self._count_as("end", state)
        return self._seconds_of_sources() | state.seconds

    def _take_up(self, state: FitState) -> list[dict[str, Any]]:
        """The records of what the checkpoint has seen; an action at its very step that it lacks is decided again."""

        def is_past(record: dict[str, Any]) -> bool:
            undone = record.get("action") is not None and record["step"] not in state.action_steps
            return record["step"] < state.step or (record["step"] == state.step and not undone)

        runs.repair_log(self.log, self.repaired)
        runs.keep_records(self.log, is_past)
        records = runs.read_records(self.log)
        for record in records:
            score = self.policy.update(as_a_log(record))
            if record.get("action") is not None:
                self.policy.carried_out(Action(**record["action"]), score)
        return records

    def _evaluate(self, state: FitState, student: PretrainedModel) -> tuple[dict[str, Any], Action | None]:
        before = self.probe.seconds
        try:
            found = self.probe.evaluate(student, state.step)
        except JudgeError:  # no learning rate is to blame
            raise
        except AssayError as error:
            raise AssayError(
                f"the evaluation at step {state.step} failed ({error}): lower the learning rate"
            ) from error
        state.seconds["probe"] = state.seconds.get("probe", 0.0) + self.probe.seconds - before
        with state.timing("probe"):
            which = {"arm": self.arm, "seed": self.experiment.seed, "step": state.step}
            tokens = self._shown_tokens.table(student, found.samples, **which)
        with state.timing("write"):
            self._write_tables(found, tokens, state.step)
            truth = "golden_nats" if self.has_oracle else "reference_nll_nats"
            if found.means[truth] is not None and all(found.means[truth] <= r[truth] for r in self.records or ()):
                runs.write_atomically(self.folder / "best", lambda path: save_model(student, path, self.tokenizer))
        self._count_as("rest", state)
        record = self._identity(state) | found.means | self._expenses(state)
        record["detector_score"] = score = self.policy.update(as_a_log(record))
        if self.keeps_students:
            kept = self.folder / "kept" / f"step-{state.step:08d}"
            with state.timing("write"):
                runs.write_atomically(kept, lambda path: save_model(student, path))
        action = None
        if state.step < self.training.num_steps or self.policy.arm.policy == "stop":
            action = self.policy.decide(score, self._supply(state), bool(self.mixture.fresh_fraction == 0))
        if action is not None:
            record["action"] = asdict(action)
            self.policy.carried_out(action, score)
        if self.policy.arm.policy != "off":
            record["alarm"] = self.policy.is_alarmed
        if ranks.num_ranks() > 1:
            measured = {key: value for key, value in record.items() if key != "seconds"}
            ranks.agree(f"the record and the student of step {state.step}", f"{measured} {student.digest}")
        runs.append_record(self.log, record)
        return record, action

    def _supply(self, state: FitState) -> Supply | None:
        stored = self.mixture.stored
        if stored is None:
            return None
        rows_left = (self.training.num_steps - state.step) * self.training.batch_size * self.mixture.share_of(stored)
        return Supply(stored.num_pairs, len(stored.prompts), stored.mean_uses, rows_left)

    def _identity(self, state: FitState) -> dict[str, Any]:
        return {
            "arm": self.arm,
            "seed": self.experiment.seed,
            "step": state.step,
            "epoch": self.mixture.epoch,
        }

    def _expenses(self, state: FitState) -> dict[str, Any]:
        """Loss since the evaluation before, tokens and seconds since the start."""
        losses = state.losses[max((step for step in self.steps if step < state.step), default=0) :]
        counters = self.mixture.sources[0].counters
        return {
            "response_uses": self.mixture.response_uses,
            "train_loss_nats_per_token": sum(losses) / len(losses) if losses else None,
            "learning_rate": learning_rate_at(max(state.step - 1, 0), self.training),
            "generated_tokens": counters.generated_tokens,
            "teacher_tokens": counters.teacher_tokens,
            "seconds": self._seconds_of_sources() | state.seconds,
        }

    def _seconds_of_sources(self) -> dict[str, float]:
        counters = self.mixture.sources[0].counters
        phases = ("sample", "teacher", "data")
        return {phase: getattr(counters, f"{phase}_seconds") for phase in phases}

    def _counted(self, state: FitState) -> float:
        return sum(self._seconds_of_sources().values()) + sum(state.seconds.values())

    def _count_as(self, phase: str, state: FitState) -> None:
        """Adds to a phase what has passed since the arm was taken up and is counted nowhere yet."""
        passed = time.perf_counter() - self._started
        uncounted = passed - (self._counted(state) - self._counted_before)
        state.seconds[phase] = state.seconds.get(phase, 0.0) + max(0.0, uncounted)

    def _write_tables(self, found: Evaluation, tokens: pa.Table, step: int) -> None:
        seed = self.experiment.seed
        values = [v.table(arm=self.arm, seed=seed, step=step) for v in found.per_prompt]
        runs.write_table(self.folder / "probe" / f"{step:08d}.parquet", pa.concat_tables(values))
        shown = self.probe.free_prompts[: len(found.samples)]
        samples = responses_table(shown, found.samples, self.tokenizer, split="held_out", seed=seed, arm=self.arm)
        runs.write_table(self.folder / "samples" / f"{step:08d}.parquet", samples)
        runs.write_table(self.folder / "tokens" / f"{step:08d}.parquet", tokens)
