"""assay: how much gold is left in a distilled language model.

Run experiments and read what they found:
    get_recipe, run_experiment, run_sweep      from a recipe's name to a run folder, or to many
    Experiment, ArmConfig, SourceConfig, TrainingConfig      what a run is; the config file's fields
    read_run, RunResults      a run folder as tables, for pandas or by themselves
    compare_runs, write_report      runs side by side; the page again

Judge curves and logs that you have:
    judge, Verdict      the verdict on golden and proxy, per prompt
    compare_final, excess_over      one arm against another
    Estimate, Interval      numbers with their uncertainty
    read_log, Trajectory, diagnose, Diagnosis, Detector      has golden turned up, from a log alone

Measure another's trainer:
    HackingCallback      for a transformers Trainer, TRL's too
    Probe, build_probe      golden and proxy on frozen prompts

Distil by hand:
    divergence, DIVERGENCES, ESTIMATORS      token-level losses and their estimators
    distillation_loss, train_step, fit      the loss, one step, the loop
    Policy, Action      what watches an arm, and what it does
    mean_of_students      the average of several students
    load_model, load_tokenizer, LanguageModel, CausalModel, Seq2SeqModel      models of transformers
    MarkovChain, HiddenMarkovModel      models whose law is known exactly
    Prompt, Response, Batch, Dense      what flows between them

    AssayError      bad input: one sentence that says what is wrong and what to do

``help(assay.judge)`` explains one of them. Each is imported when it is first used, so ``import assay`` is cheap.
What may change, and when: docs/api-stability.md.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assay.comparison import compare_runs
    from assay.config import ArmConfig, Experiment, SourceConfig, TrainingConfig
    from assay.diagnostics.detector import Detector, Diagnosis, diagnose
    from assay.diagnostics.trajectory import Trajectory
    from assay.diagnostics.verdict import Verdict, compare_final, excess_over, judge
    from assay.divergences import DIVERGENCES, divergence
    from assay.errors import AssayError
    from assay.estimators import ESTIMATORS
    from assay.evaluation import Probe, build_probe
    from assay.experiment import run_experiment
    from assay.integrations.logs import read_log
    from assay.integrations.trainer_callback import HackingCallback
    from assay.models.averaging import mean_of_students
    from assay.models.causal import CausalModel
    from assay.models.exact import HiddenMarkovModel, MarkovChain
    from assay.models.language_model import LanguageModel
    from assay.models.loading import load_model, load_tokenizer
    from assay.models.seq2seq import Seq2SeqModel
    from assay.policy import Policy
    from assay.recipes import get_recipe
    from assay.report.html import write_report
    from assay.report.run_results import RunResults, read_run
    from assay.statistics import Estimate, Interval
    from assay.sweep import run_sweep
    from assay.training import distillation_loss, fit, train_step
    from assay.types import Action, Batch, Dense, Prompt, Response

_HOME = {
    "assay.config": ("ArmConfig", "Experiment", "SourceConfig", "TrainingConfig"),
    "assay.recipes": ("get_recipe",),
    "assay.experiment": ("run_experiment",),
    "assay.sweep": ("run_sweep",),
    "assay.comparison": ("compare_runs",),
    "assay.report.html": ("write_report",),
    "assay.report.run_results": ("RunResults", "read_run"),
    "assay.types": ("Action", "Batch", "Dense", "Prompt", "Response"),
    "assay.models.language_model": ("LanguageModel",),
    "assay.models.causal": ("CausalModel",),
    "assay.models.seq2seq": ("Seq2SeqModel",),
    "assay.models.loading": ("load_model", "load_tokenizer"),
    "assay.models.exact": ("HiddenMarkovModel", "MarkovChain"),
    "assay.divergences": ("DIVERGENCES", "divergence"),
    "assay.estimators": ("ESTIMATORS",),
    "assay.models.averaging": ("mean_of_students",),
    "assay.policy": ("Policy",),
    "assay.training": ("distillation_loss", "fit", "train_step"),
    "assay.evaluation": ("Probe", "build_probe"),
    "assay.diagnostics.verdict": ("Verdict", "compare_final", "excess_over", "judge"),
    "assay.diagnostics.detector": ("Detector", "Diagnosis", "diagnose"),
    "assay.diagnostics.trajectory": ("Trajectory",),
    "assay.integrations.logs": ("read_log",),
    "assay.integrations.trainer_callback": ("HackingCallback",),
    "assay.statistics": ("Estimate", "Interval"),
    "assay.errors": ("AssayError",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__version__ = metadata.version("assay")
__all__ = [
    "DIVERGENCES",
    "ESTIMATORS",
    "Action",
    "ArmConfig",
    "AssayError",
    "Batch",
    "CausalModel",
    "Dense",
    "Detector",
    "Diagnosis",
    "Estimate",
    "Experiment",
    "HackingCallback",
    "HiddenMarkovModel",
    "Interval",
    "LanguageModel",
    "MarkovChain",
    "Policy",
    "Probe",
    "Prompt",
    "Response",
    "RunResults",
    "Seq2SeqModel",
    "SourceConfig",
    "TrainingConfig",
    "Trajectory",
    "Verdict",
    "build_probe",
    "compare_final",
    "compare_runs",
    "diagnose",
    "distillation_loss",
    "divergence",
    "excess_over",
    "fit",
    "get_recipe",
    "judge",
    "load_model",
    "load_tokenizer",
    "mean_of_students",
    "read_log",
    "read_run",
    "run_experiment",
    "run_sweep",
    "train_step",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'assay' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
