"""The command line: what starts one run, and the way to all other commands (``commands.py``); it computes nothing.

Flags are the fields of the config dataclasses. Errors are one sentence on stderr with exit code 2; Ctrl-C
leaves a run that the same command resumes, with exit code 130.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from assay import ranks
from assay.commands import (
    answers,
    bases,
    cite,
    compare,
    diagnose,
    doctor,
    generate,
    plan,
    recipes,
    report,
    sweep,
    tasks,
    watch,
)
from assay.config import Experiment, PolicyName, with_policy
from assay.config_file import load
from assay.errors import AssayError, is_out_of_memory, unknown_name
from assay.recipes import get_recipe, is_config_file
from assay.recipes.own import Distill, Lab, filled


def quickstart(seed: int = 0, out: Path | None = None, policy: PolicyName = "off") -> None:
    """See teacher hacking appear, and not appear: oracle → teacher → student on embedded text, three arms.

    Args:
        seed: Of everything that is drawn.
        out: Run folder; runs/quickstart-seed0 and so on by default. The same command resumes or answers at once.
        policy: What an alarm of the detector brings about: nothing, a warning, a stop, or more responses.
    """
    _run(dataclasses.replace(get_recipe("quickstart"), seed=seed), out, policy)


def run(
    recipe: Positional[str],
    overrides: Annotated[tuple[str, ...], Positional, arg(metavar="[--FLAGS]")] = (),
) -> None:
    """Run a recipe or a config file (YAML or JSON), with any field overridden: `assay run RECIPE --help` lists them.

    Args:
        recipe: A name from `assay recipes`, or the path of a config file.
        overrides: Such as --seed 3 --distillation.num-prompts 600 --out FOLDER.
    """
    default = load(Path(recipe)) if is_config_file(recipe) else get_recipe(recipe)
    _run(*_with_flags(default, f"assay run {recipe}", overrides))


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the ``assay`` command."""
    try:
        _main(arguments)
    except SystemExit as ended:
        ranks.end(ended.code)
        raise
    ranks.end(None)


def _main(arguments: Sequence[str] | None) -> None:
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show an arrow shows a question mark
    try:
        with _in_company(given):
            _dispatch(given)
    except AssayError as error:
        speaker = "assay" if ranks.rank() == 0 else f"assay, rank {ranks.rank()}"
        sys.exit(_fail(f"{speaker}: {_harmless(str(error))}", 2))
    except KeyboardInterrupt:
        sys.exit(_fail("assay: stopped; the same command goes on where it was", 130))
    except BrokenPipeError:
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        sys.exit(_fail("assay: out of memory: end other programs, or take smaller models or shorter texts", 2))


@contextlib.contextmanager
def _in_company(given: Sequence[str]) -> Iterator[None]:
    """Joins the other ranks, where a launcher has started several, of which the first alone speaks (errors apart)."""
    if not ranks.launched():
        yield
        return
    if given[:1] not in (["run"], ["distill"], ["lab"], ["quickstart"]):
        raise AssayError(f"`assay {' '.join(given[:1])}` is not for several processes: start it without a launcher")
    ranks.start()
    with contextlib.ExitStack() as quiet:
        if ranks.rank() == 0:
            print(f"assay: {ranks.num_ranks()} ranks", file=sys.stderr, flush=True)
        else:
            nowhere = quiet.enter_context(Path(os.devnull).open("w"))
            quiet.enter_context(contextlib.redirect_stdout(nowhere))
            quiet.enter_context(contextlib.redirect_stderr(nowhere))
        yield


def _dispatch(given: Sequence[str]) -> None:
    if given[:1] == ["run"] and len(given) > 1 and not given[1].startswith("-"):
        run(given[1], tuple(given[2:]))  # the flags depend on the recipe
    elif given[:1] in (["distill"], ["lab"]):
        _own(Distill if given[0] == "distill" else Lab, f"assay {given[0]}", given[1:])
    else:
        commands = {
            **{f.__name__: f for f in (quickstart, doctor)},
            "distill": Distill,
            "lab": Lab,
            **{f.__name__: f for f in (answers, generate, watch, run, sweep, plan, report, compare, diagnose, cite)},
            **{f.__name__: f for f in (recipes, bases, tasks)},
        }
        if given and not given[0].startswith("-") and given[0] not in commands:
            raise unknown_name("command", given[0], commands)
        tyro.extras.subcommand_cli_from_dict(commands, prog="assay", args=given, description=_DESCRIPTION)


_LONGEST_MESSAGE = 1_000
_DESCRIPTION = "How much gold is left in a distilled language model: makes teacher hacking visible, and its absence."


def _own(command: type[Distill] | type[Lab], prog: str, given: Sequence[str]) -> None:
    """``distill`` or ``lab``: the wish first, then any field of the config that it becomes."""
    wish, flags = tyro.cli(command, prog=prog, args=list(given), return_unknown_args=True)
    from assay.workspace import survey

    draft, _, _ = _with_flags(wish.draft(), prog, flags)
    found = survey(draft)
    counts = ", ".join(f"{number:,} {split}" for split, number in found.num_prompts.items())
    print(f"prompts that fit: {counts}", file=sys.stderr)
    experiment, out, policy = _with_flags(filled(wish, draft, found), prog, flags)
    folder = _run(experiment, out, policy)
    for arm in experiment.arms:
        print(f"the student to keep of {arm.name}: {(folder / 'arms' / arm.name / 'best').resolve()}")


def _with_flags(
    default: Experiment, prog: str, flags: Sequence[str]
) -> tuple[Experiment, Path | None, PolicyName | None]:
    """An experiment with any of its fields overridden, a run folder, and a policy."""

    @dataclasses.dataclass(frozen=True)
    class Run:
        experiment: Annotated[Experiment, arg(name="")] = default
        out: Path | None = None
        """Run folder; runs/RECIPE-seedN by default."""
        policy: PolicyName | None = None
        """Of all arms: what an alarm of the detector brings about; by default what each arm says."""

    parsed = tyro.cli(Run, prog=prog, args=list(flags))
    return parsed.experiment, parsed.out, parsed.policy


def _run(experiment: Experiment, out: Path | None, policy: PolicyName | None = None) -> Path:
    from assay.experiment import run_experiment
    from assay.progress import live_progress, print_verdicts

    experiment = experiment if policy is None else with_policy(experiment, policy)
    suffix = f"-{policy}" if policy not in (None, "off") else ""
    folder = out or Path("runs") / f"{experiment.recipe}-seed{experiment.seed}{suffix}"
    with live_progress(experiment) as listener:
        page = run_experiment(experiment, folder, listener)
    print_verdicts(folder)
    print(page.resolve())
    return folder


def _harmless(message: str) -> str:
    """One line without control characters, whatever of a file or a server it quotes; long ones lose the middle."""
    from assay.report.words import visible

    half = _LONGEST_MESSAGE // 2
    cut = message if len(message) <= _LONGEST_MESSAGE else f"{message[:half]} … {message[-half:]}"
    return visible(cut)


def _fail(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code
