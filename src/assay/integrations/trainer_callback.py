"""The referee inside another trainer: transformers' Trainer, and those of TRL."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from assay.diagnostics.detector import Diagnosis
from assay.diagnostics.verdict import Verdict
from assay.errors import AssayError
from assay.evaluation import Probe, evaluation_steps
from assay.integrations.host_log import HostLog
from assay.models.in_memory import adapted, left_as_found, unwrapped
from assay.models.pretrained import PretrainedModel
from assay.report.words import readable, truth

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

logger = logging.getLogger(__name__)

LOGGED = (
    *("proxy_nats", "golden_nats", "reference_nll_nats", "train_proxy_nats"),
    *("student_entropy_nats_per_token", "top_overlap"),
    *("response_tokens_mean", "truncated_fraction", "repetition_fraction", "distinct_2"),
    *("detector_score", "recommended_step"),
)
"""What of a record goes into the trainer's own log, after "assay/"."""


@dataclass(frozen=True)
class _Wish:
    """What the main process wants of the trainer; the same in every process."""

    stop: bool = False
    save: bool = False


class HackingCallback(TrainerCallback):
    """Measures the student that a transformers ``Trainer`` trains, says when it hacks its teacher, and may stop it.

    The student is evaluated before the first step, at ``num_evaluations`` geometrically spaced steps (with ``every`` at
    each multiple of it instead) and at the end. Every evaluation goes into the trainer's ``log_history``, as
    ``assay/proxy_nats`` and so on (``LOGGED``), and into ``folder`` (the output folder's ``assay``), which
    ``assay diagnose`` and ``assay watch`` read. At the end the verdict is printed and written to ``verdict.json``.

    ``on_alarm``: what happens when the detector, which does not look at golden, raises an alarm: "warn" once through
    ``logging``, "stop" also ends training, "nothing" leaves it in the log. ``mark_checkpoint`` has the trainer save a
    checkpoint whenever the student is the best so far: of lowest golden, else of lowest NLL of references, else at
    every evaluation without an alarm; ``save_total_limit`` may delete it again. A ``trainer`` hands the values to its
    trackers (``report_to``) and progress bar too, at once and outside its own cadence.

    Weights, gradients, optimiser, modes and random number generators of the host are left as they are: its losses are
    the same with and without, bit for bit. Its run time and memory are not. An evaluation is in the module's own dtype
    and without autocast; it needs the student's whole weights in one process, so sharded ones are refused. Of several
    processes the main one evaluates and the others wait.

    An evaluation that fails later than the first (a student whose weights are no longer finite) is left out with a
    warning. Two processes on one CPU were tried (gloo). Never run: GPUs, several machines, DeepSpeed, quantised
    weights.
    """

    def __init__(
        self,
        probe: Probe,
        *,
        folder: Path | str | None = None,
        num_evaluations: int = 14,
        every: int | None = None,
        on_alarm: Literal["warn", "stop", "nothing"] = "warn",
        mark_checkpoint: bool = False,
        trainer: Trainer | None = None,
    ) -> None:
        if num_evaluations < 2:
            raise AssayError(f"num_evaluations is {num_evaluations}: a curve needs at least 2")
        if every is not None and every < 1:
            raise AssayError(f"every is {every}: it counts steps between evaluations, give at least 1")
        if on_alarm not in ("warn", "stop", "nothing"):
            raise AssayError(f"on_alarm is {on_alarm!r}: choose 'warn', 'stop' or 'nothing'")
        self.probe = probe
        self.folder: Path | None = None if folder is None else Path(folder)
        self.num_evaluations: int = num_evaluations
        self.every: int | None = every
        self.on_alarm = on_alarm
        self.mark_checkpoint: bool = mark_checkpoint
        self.trainer: Trainer | None = trainer
        self._log: HostLog | None = None
        self._student: PretrainedModel | None = None
        self._steps: frozenset[int] = frozenset()
        self._is_alarmed = False

    @property
    def verdict(self) -> Verdict | None:
        """The verdict on the run so far, from values of each prompt; None before it begins and without a truth."""
        return None if self._log is None else self._log.verdict()

    @property
    def diagnosis(self) -> Diagnosis | None:
        """What the detector says of the run so far, without golden; None before the second evaluation."""
        return None if self._log is None or len(self._log.records) < 2 else self._log.detector.diagnose()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **host: Any
    ) -> None:
        """Checks that the student can be measured, takes up the log of a resumed run, and evaluates at step 0."""
        if self.every is None:
            self._steps = frozenset(evaluation_steps(state.max_steps, self.num_evaluations))
        self._is_alarmed = False
        if state.is_world_process_zero:
            self._begin(args, state, host["model"])
        self._evaluate_if(self._is_due(state), args, state, control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **host: Any) -> None:
        """Evaluates where a step is due."""
        self._evaluate_if(self._is_due(state), args, state, control)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **host: Any) -> None:
        """Evaluates once more where training ends before its time."""
        self._evaluate_if(control.should_training_stop, args, state, control)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **host: Any) -> None:
        """The last evaluation, unless it is there or the trainer has gone back to another student; the verdict."""
        self._evaluate_if(not args.load_best_model_at_end, args, state, control)
        if state.is_world_process_zero and self._log is not None:
            self._conclude(self._log, _output_folder(args))

    def _is_due(self, state: TrainerState) -> bool:
        if self.every is not None:
            return state.global_step % self.every == 0 or state.global_step >= state.max_steps
        return state.global_step in self._steps

    def _begin(self, args: TrainingArguments, state: TrainerState, model: torch.nn.Module) -> None:
        module = unwrapped(model)
        if isinstance(self.probe.teacher, PretrainedModel) and self.probe.teacher.module is module:
            raise AssayError("the probe's teacher is the very model that is trained: load the teacher a second time")
        eos = self.probe.eos_token_id
        self._student = adapted(module, "the trained model", eos, self.probe.shared_vocab_size)
        self.probe.check_student(self._student)
        folder = _output_folder(args) / "assay" if self.folder is None else self.folder
        self._log = HostLog(folder, self.probe, state.global_step)
        if self._log.num_dropped:
            logger.warning(
                "assay: dropped %d evaluations in %s that are not of this run, or beyond step %d, where it goes on",
                *(self._log.num_dropped, folder, state.global_step),
            )
        self._is_alarmed = any(record["alarm"] for record in self._log.records)

    def _evaluate_if(self, is_due: bool, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        if not is_due:
            return
        wish = _Wish()
        if self._log is not None and self._student is not None and self._log.last_step < state.global_step:
            wish = self._evaluate(self._log, self._student, args, state, control)
        wish = _from_the_main_process(wish, args)
        control.should_training_stop |= wish.stop
        control.should_save |= wish.save

    def _evaluate(
        self,
        log: HostLog,
        student: PretrainedModel,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
    ) -> _Wish:
        try:
            with left_as_found(student.module):
                found = self.probe.evaluate(student, state.global_step)
            record = log.add(found, state.global_step, state.epoch)
        except AssayError as error:
            if not log.records:
                raise
            logger.warning("assay: the evaluation at step %d is left out: %s", state.global_step, error)
            return _Wish()
        shown = {f"assay/{name}": record[name] for name in LOGGED if record[name] is not None}
        shown["epoch"] = state.epoch
        state.log_history.append({**shown, "step": state.global_step})
        if self.trainer is not None:
            # not trainer.log: those of TRL empty the host's running means, and all of them end its turn to log
            should_log = control.should_log
            self.trainer.callback_handler.on_log(args, state, control, logs=shown)
            control.should_log = should_log
        return _Wish(self._is_stopped_by(record), self.mark_checkpoint and log.best_step() == state.global_step)

    def _is_stopped_by(self, record: Mapping[str, Any]) -> bool:
        if not record["alarm"] or self.on_alarm == "nothing":
            return False
        if not self._is_alarmed:
            logger.warning(
                "assay: alarm at step %d (score %.2f): the student probably hacks its teacher; keep that of step %d%s",
                *(record["step"], record["detector_score"], record["recommended_step"]),
                "; training stops" if self.on_alarm == "stop" else "",
            )
        self._is_alarmed = True
        return self.on_alarm == "stop"

    def _conclude(self, log: HostLog, output: Path) -> None:
        if len(log.records) < 2:
            logger.warning("assay: no verdict, there are fewer than two evaluations")
            return
        checkpoints = {int(path.name.rpartition("-")[2]): str(path) for path in output.glob("checkpoint-[0-9]*")}
        found = log.write_verdict(checkpoints)
        keep = found["keep"]
        place = keep["checkpoint"] or "of which no checkpoint was saved"
        print(f"assay ({truth(log.truth)}): {readable(found['verdict'])}: {found['reason']}.")
        print(f"assay: keep the student of step {keep['step']} ({place}); see {log.folder}")


def _output_folder(args: TrainingArguments) -> Path:
    assert args.output_dir is not None  # transformers sets one where none is given
    return Path(args.output_dir)


def _from_the_main_process(wish: _Wish, args: TrainingArguments) -> _Wish:
    """The wish of the main process, in each of them: one that stops alone would leave the others waiting."""
    if args.world_size < 2:
        return wish
    shared = [wish]
    torch.distributed.broadcast_object_list(shared, src=0)
    return shared[0]
