"""``assay diagnose``: from a log file to the verdict in a terminal, the JSON object and the figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.markup import escape

from assay import runs
from assay.diagnostics.detector import Diagnosis, diagnose
from assay.diagnostics.trajectory import COLUMNS
from assay.diagnostics.truth import Case
from assay.errors import AssayError, unknown_name
from assay.integrations.logs import Log, read_log
from assay.output import Output
from assay.report.diagnosis import write_diagnosis
from assay.report.files import read_summary
from assay.report.words import readable, visible
from assay.terminal import open_console, print_under, verdict_style

_MEANING = {
    "healthy": "no sign that the truth has turned",
    "hacking_suspected": "the truth has probably turned up, while the teacher is still imitated better or as well",
    "teacher_hacking": "the truth has turned up while the held-out proxy fell or stagnated",
    "overfitting": "the truth and the held-out proxy have turned up together",
    "benign_disagreement": "the held-out proxy has turned up, the truth has not",
    "undecided": "the log does not tell",
}


def diagnose_log(
    path: Path,
    named: Mapping[str, str],
    columns: Sequence[str],
    arm: str | None,
    output: Output,
    figure: Path | None,
) -> Diagnosis:
    """Reads, diagnoses and prints; guesses go to stderr. Raises AssayError for a log that cannot be used."""
    log = read_log(path, {**named, **named_columns(columns)}, arm)
    for guess in log.guesses:
        runs.say(guess)
    found = diagnosis_of(log, named.get("golden"))
    if figure is None and not output.json:
        figure = Path("diagnosis.svg")
    if figure is not None:
        write_diagnosis(log.trajectory, found, figure)
    made = {} if figure is None else {"figure": str(figure.resolve())}
    output.answer(found.to_dict() | made, lambda: print_diagnosis(found), None if figure is None else figure.resolve())
    return found


def diagnosis_of(log: Log, golden: str | None = None) -> Diagnosis:
    """The verdict on a log; that of summary.json for a finished arm, unless ``golden`` names another column."""
    return diagnose(log.trajectory, _judged(log, golden))


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """The verdict as a sentence, what to do, the reasons, and every check."""
    console = open_console()
    score = "no score" if diagnosis.score is None else f"score {diagnosis.score:.2f}"
    style = verdict_style(diagnosis.verdict)
    console.print(f"[bold {style}]{readable(diagnosis.verdict)}[/] ({score}): {_MEANING[diagnosis.verdict]}")
    since = "" if diagnosis.onset_step is None else f"; it began about step {diagnosis.onset_step:g}"
    console.print(f"keep the checkpoint of step {diagnosis.recommended_step:g}{since}")
    for reason in diagnosis.reasons:
        print_under(console, escape(reason))
    if diagnosis.law is None:
        console.print(escape(f"law: none, {diagnosis.law_reason}"))
    else:
        numbers = diagnosis.law.parameters()
        limits = diagnosis.law.intervals()
        shown = ", ".join(f"{k} = {v:.3g} [{limits[k][0]:.3g}, {limits[k][1]:.3g}]" for k, v in numbers.items())
        console.print(escape(f"law: proxy = c + a·(t + t0)^-b, {shown}; {diagnosis.law_reason}"))
    missing = [s.code for s in diagnosis.signals if s.status == "not_applicable"]
    passed = [s.code for s in diagnosis.signals if s.status == "pass"]
    console.print(f"passed: {' '.join(passed) or 'none'}; not applicable: {' '.join(missing) or 'none'}")


def _judged(log: Log, golden: str | None) -> Case | None:
    """The verdict of a finished run of assay, unless it is the detector's own; not if another column is named."""
    if golden not in (None, "golden_nats"):
        return None
    if log.folder is not None and (log.folder / "verdict.json").exists():
        return _judged_in_a_host(log.folder / "verdict.json")
    if log.folder is None or not (log.folder / "summary.json").exists():
        return None
    summary = read_summary(log.folder / "summary.json")
    by_the_detector = summary["truth"] is None and summary["proxy_is"] != "up_to_a_constant"
    if by_the_detector or (summary["truth"] == "oracle" and log.trajectory.get("golden") is None):
        return None
    for entry in summary["arms"]:
        if entry["source"] == log.arm:
            if entry["verdict"] not in _MEANING:
                raise AssayError(
                    f"{str(log.folder / 'summary.json')!r} has an unknown verdict, the file is damaged: "
                    "delete it, and repeat the command that made the run"
                )
            onset = entry["onset_step"]
            return Case(entry["verdict"], visible(entry["reason"]), float(entry["best_step"]),
                        None if onset is None else float(onset))  # fmt: skip
    return None


def _judged_in_a_host(path: Path) -> Case | None:
    """The verdict that HackingCallback has left, from per-prompt values of its truth; None where it had none."""
    entry = runs.read_json(path)
    try:
        if entry["truth"] is None:
            return None
        best, onset = float(entry["best_step"]), entry["onset_step"]
        case = Case(entry["verdict"], visible(entry["reason"]), best, None if onset is None else float(onset))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise runs.damaged(path, error) from error
    if case.name not in _MEANING:
        raise AssayError(
            f"{str(path)!r} has an unknown verdict, the file is damaged: delete it, and the log alone is judged"
        )
    return case


def named_columns(columns: Sequence[str]) -> dict[str, str]:
    """What ``--columns name=column`` says. Raises AssayError for what cannot be read."""
    found: dict[str, str] = {}
    for text in columns:
        name, equals, column = text.partition("=")
        if not equals or not column:
            raise AssayError(f"--columns {text!r} cannot be read: write name=column, such as top_overlap=overlap")
        if name not in (*COLUMNS, "step"):
            raise unknown_name("column", name, [*COLUMNS, "step"])
        found[name] = column
    return found
