"""The command line: what starts one run, and the way to all other commands (``commands.py``); it computes nothing.

Flags are the fields of the config dataclasses. Errors are one sentence on stderr with exit code 2; Ctrl-C
leaves a run that the same command resumes, with exit code 130.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from assay import ranks
from assay.arguments import flags_last, later, overview, parse
from assay.catalogue import bases, recipes, tasks
from assay.commands import (
    Shown,
    answers,
    cite,
    compare,
    diagnose,
    doctor,
    generate,
    plan,
    report,
    sweep,
    watch,
)
from assay.completion import Shell, script
from assay.config import Experiment, PolicyName, with_policy
from assay.config_file import load
from assay.errors import AssayError, is_out_of_memory, unknown_name
from assay.output import NORMAL, Output, say_why
from assay.recipes import get_recipe, is_config_file
from assay.recipes.own import Distill, Lab, filled


def quickstart(seed: int = 0, out: Path | None = None, policy: PolicyName = "off", output: Shown = NORMAL) -> None:
    """See teacher hacking appear, and not appear: oracle → teacher → student on embedded text, three arms.

    Args:
        seed: Of everything that is drawn.
        out: Run folder; runs/quickstart-seed0 and so on by default. The same command resumes or answers at once.
        policy: What an alarm of the detector brings about: nothing, a warning, a stop, or more responses.
    """
    _run(dataclasses.replace(get_recipe("quickstart"), seed=seed), out, policy, output)


def run(
    recipe: Annotated[str, Positional, arg(metavar="RECIPE")],
    overrides: Annotated[tuple[str, ...], Positional, arg(metavar="[--FLAGS]")] = (),
    output: Shown = NORMAL,
) -> None:
    """Run a recipe or a config file (YAML or JSON), with any field overridden: `assay run RECIPE --help` lists them.

    Args:
        recipe: A name from `assay recipes`, the path of a config file, or of a run's manifest.json: that run again.
        overrides: Such as --seed 3 --distillation.num-prompts 600 --out FOLDER.
    """
    default = load(Path(recipe)) if is_config_file(recipe) else get_recipe(recipe)
    wanted = _with_flags(default, f"assay run {recipe}", overrides)
    _run(wanted.experiment, wanted.out, wanted.policy, output)


def completion(shell: Positional[Shell]) -> None:
    """Print a script for your shell that completes commands, flags and recipes: eval "$(assay completion bash)".

    Args:
        shell: Bash keeps such scripts in ~/.local/share/bash-completion/completions/assay, fish in
            ~/.config/fish/completions/assay.fish (or: assay completion fish | source), zsh as _assay in a folder of
            $fpath (eval works after compinit).
    """
    print(script(shell, _commands() | {"run": Wanted}))


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
        say_why(_harmless(str(error)), "assay" if ranks.rank() == 0 else f"assay, rank {ranks.rank()}")
        sys.exit(2)
    except KeyboardInterrupt:
        print("assay: stopped; the same command goes on where it was", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        say_why("out of memory: end other programs, or take smaller models or shorter texts")
        sys.exit(2)


@contextlib.contextmanager
def _in_company(given: Sequence[str]) -> Iterator[None]:
    """Joins the other ranks, where a launcher has started several, of which the first alone speaks (errors apart)."""
    if not ranks.launched():
        yield
        return
    name = flags_last(given)[:1]
    if name not in (["run"], ["distill"], ["lab"], ["quickstart"]):
        raise AssayError(f"`assay {' '.join(name)}` is not for several processes: start it without a launcher")
    ranks.start()
    with contextlib.ExitStack() as quiet:
        if ranks.rank() == 0:
            if "--quiet" not in given:
                print(f"assay: {ranks.num_ranks()} ranks", file=sys.stderr, flush=True)
        else:
            nowhere = quiet.enter_context(Path(os.devnull).open("w"))
            quiet.enter_context(contextlib.redirect_stdout(nowhere))
            quiet.enter_context(contextlib.redirect_stderr(nowhere))
        yield


def _dispatch(given: Sequence[str]) -> None:
    call = call_of(given)
    with call.keywords.get("output", NORMAL).hushed():
        call()


def call_of(given: Sequence[str]) -> functools.partial[Any]:
    """What the words ask for, ready to be called; nothing but a config file was read.

    Raises AssayError for words that say nothing, and SystemExit where they ask for help, which is then printed.
    """
    given = flags_last(given)
    name, words = (given[0], given[1:]) if given else ("", [])
    if name == "run":
        words = flags_last(words)
    commands = _commands()
    if name == "run" and words and not words[0].startswith("-"):
        return _of_recipe(words[0], words[1:])  # the flags depend on the recipe
    if name in ("distill", "lab"):
        return _of_own(commands[name], f"assay {name}", words)
    if name in commands:
        return parse(later(commands[name]), f"assay {name}", words)
    if name and not name.startswith("-"):
        raise unknown_name("command", name, commands)
    return functools.partial(overview, commands, "assay", given or ["--help"], _DESCRIPTION)


def _commands() -> dict[str, Callable[..., Any]]:
    """Every command by its name, in the order of the help."""
    return {
        **{f.__name__: f for f in (quickstart, doctor)},
        "distill": Distill,
        "lab": Lab,
        **{f.__name__: f for f in (answers, generate, watch, run, sweep, plan, report, compare, diagnose, cite)},
        **{f.__name__: f for f in (recipes, bases, tasks, completion)},
    }


_LONGEST_MESSAGE = 1_000
_DESCRIPTION = (
    "How much gold is left in a distilled language model: makes teacher hacking visible, and its absence.\n\n"
    "Every command but watch and completion takes --quiet (nothing but errors, and the path of what was made) and "
    "--json (one JSON document on stdout), before its name or after it. Exit codes: 0 done, 2 an error, 130 stopped by "
    "Ctrl-C; of `assay doctor` also 1 warnings and 3 refuse."
)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Any field of the experiment is a flag."""

    experiment: Annotated[Experiment, arg(name="")]
    out: Path | None = None
    """Run folder; runs/RECIPE-seedN by default."""
    policy: PolicyName | None = None
    """Of all arms: what an alarm of the detector brings about; by default what each arm says."""
    output: Shown = NORMAL


def _of_recipe(recipe: str, flags: Sequence[str]) -> functools.partial[Any]:
    default = load(Path(recipe)) if is_config_file(recipe) else get_recipe(recipe)
    wanted = _with_flags(default, f"assay run {recipe}", flags)
    return functools.partial(_run, wanted.experiment, wanted.out, wanted.policy, output=wanted.output)


def _of_own(command: Callable[..., Any], prog: str, given: Sequence[str]) -> functools.partial[Any]:
    """``distill`` or ``lab``: the wish first, then any field of the config that it becomes."""
    wish, flags = parse(command, prog, given, return_unknown_args=True)
    draft = _with_flags(wish.draft(), prog, flags)
    return functools.partial(_run_own, wish, draft.experiment, prog, flags, output=draft.output)


def _run_own(wish: Distill | Lab, draft: Experiment, prog: str, flags: Sequence[str], output: Output) -> None:
    from assay.workspace import survey

    found = survey(draft)
    counts = ", ".join(f"{number:,} {split}" for split, number in found.num_prompts.items())
    print(f"prompts that fit: {counts}", file=sys.stderr)
    wanted = _with_flags(filled(wish, draft, found), prog, flags)
    folder = _run(wanted.experiment, wanted.out, wanted.policy, output)
    if not output.json and not output.quiet:
        for arm in wanted.experiment.arms:
            print(f"the student to keep of {arm.name}: {(folder / 'arms' / arm.name / 'best').resolve()}")


def _with_flags(default: Experiment, prog: str, flags: Sequence[str]) -> Wanted:
    return parse(Wanted, prog, flags, default=Wanted(default))


def _run(experiment: Experiment, out: Path | None, policy: PolicyName | None, output: Output) -> Path:
    from assay.experiment import run_experiment
    from assay.progress import live_progress, print_verdicts
    from assay.report.files import read_summary

    experiment = experiment if policy is None else with_policy(experiment, policy)
    suffix = f"-{policy}" if policy not in (None, "off") else ""
    folder = out or Path("runs") / f"{experiment.recipe}-seed{experiment.seed}{suffix}"
    with live_progress(experiment) as listener:
        page = run_experiment(experiment, folder, listener).resolve()
    students = {arm.name: str((folder / "arms" / arm.name / "best").resolve()) for arm in experiment.arms}
    paths = {"folder": str(folder.resolve()), "report": str(page), "students": students}
    summary = read_summary(folder / "summary.json") | {"paths": paths}
    output.answer(summary, lambda: print_verdicts(folder), page)
    return folder


def _harmless(message: str) -> str:
    """One line without control characters, whatever of a file or a server it quotes; long ones lose the middle."""
    from assay.report.words import visible

    half = _LONGEST_MESSAGE // 2
    cut = message if len(message) <= _LONGEST_MESSAGE else f"{message[:half]} … {message[-half:]}"
    return visible(cut)
