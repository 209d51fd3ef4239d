"""The one look: what commands print in a terminal, in a pipe, with --quiet and with --json."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import assay as package
from assay.arguments import flags_last, plain
from assay.output import Output
from assay.recipes import RECIPES, sweeps
from assay.recipes.studies import STUDIES
from assay.terminal import print_finding
from command_line import assay, assay_here, assay_in_a_terminal, in_a_terminal
from test_cli import TINY
from test_report import write_run

CODE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
COLOUR = re.compile(r"\x1b\[(?:[0-9]+;)*(?:3[0-7]|9[0-7])(?:;[0-9]+)*m")
DRAWN = set("╭╮╰╯│─┏┓┗┛┃━┡┩\x1b\r")
PROMPTS = [{"prompt": f"word {i} of a text", "reference": f"answer {i}"} for i in range(12)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs and a file of prompts."""
    folder = tmp_path_factory.mktemp("place")
    write_run(folder / "one", num_prompts=40)
    write_run(folder / "two", ("offline",), num_prompts=40)
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    return folder


SWEEP = ("sweep", "quickstart", "--axes", "distillation.num_prompts=64,128", "--dry-run")
PLAN = ("plan", "quickstart", "--teacher-tokens", 90_000, "--pool", 256, "--dry-run")
CHECK = ("tasks", "check", "prompts.jsonl")
DOCTOR = ("doctor", "--student", "define-student", "--teacher", "define-teacher", "--prompts", "prompts.jsonl",
          "--weights", "never")  # fmt: skip
COMMANDS: list[tuple[Any, ...]] = [
    ("recipes",),
    ("bases",),
    ("tasks",),
    CHECK,
    ("compare", "one", "--out", "table.csv"),
    ("report", "one", "--out", "report"),
    ("diagnose", "one", "--figure", "diagnosis.svg"),
    SWEEP,
    PLAN,
    DOCTOR,
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(map(str, command[:2])))
def test_a_pipe_gets_plain_text_and_json_says_the_same(command: tuple[Any, ...], place: Path) -> None:
    text, both = (assay_here(*command, *flags, folder=place) for flags in ((), ("--json",)))
    assert text.returncode == both.returncode
    assert text.returncode in ((1, 3) if command is DOCTOR else (0,))
    assert not DRAWN & set(text.stdout + text.stderr)
    assert all(line == line.rstrip() for line in text.stdout.splitlines())
    for fact in facts(command[0], json.loads(both.stdout)):
        assert fact in text.stdout


def facts(command: str, found: dict[str, Any]) -> list[str]:
    """What the JSON document of a command says, as its text must say it; of some, every entry."""
    match command:
        case "recipes":
            assert [row["name"] for row in found["recipes"]] == list(RECIPES)
            assert [row["name"] for row in found["studies"]] == list(STUDIES)
            return [f"{row['name']:20} {row['what']}" for row in found["recipes"]]
        case "bases":
            return [f"{row['name']} " for row in found["bases"]] + [row["digest"] for row in found["bases"]]
        case "tasks" if "tasks" in found:
            return [f"{row['name']} " for row in found["tasks"]] + [row["licence"] for row in found["tasks"]]
        case "tasks":
            return [f"{found['num_read']} rows", f"held_out: {found['rows_per_split']['held_out']} rows"]
        case "compare":
            best_to_end = [f"{row['golden_best']:.2f} → {row['golden_final']:.2f}" for row in found["rows"]]
            return [*best_to_end, *(row["verdict"].replace("_", " ") for row in found["rows"]), found["path"]]
        case "diagnose":
            return [found["verdict"].replace("_", " "), f"step {found['recommended_step']:g}", found["figure"]]
        case "doctor":
            verdicts = [f"{row['code']} {row['status'].replace('_', ' ')} {row['name']}: " for row in found["findings"]]
            return [*verdicts, f"\n{found['verdict']}: "]
        case "sweep" | "plan":
            assert found["cost"]
            return found["cost"]
        case _:
            return [found["path"]]


@pytest.mark.parametrize(
    ("command", "paths"),
    [
        (("report", "one", "--out", "report"), ["report/report.html"]),
        (("compare", "one", "--out", "table.csv"), ["table.csv"]),
        (("diagnose", "one", "--figure", "diagnosis.svg"), ["diagnosis.svg"]),
        (("compare", "one"), []),
        (SWEEP, []),
        (CHECK, []),
        (("recipes",), []),
    ],
)
def test_quiet_leaves_the_path_of_what_was_made(command: tuple[Any, ...], paths: list[str], place: Path) -> None:
    found = assay_here(*command, "--quiet", folder=place)
    assert (found.returncode, found.stderr) == (0, "")
    assert [Path(line).resolve() for line in (Path(place, line) for line in found.stdout.splitlines())] == [
        (place / path).resolve() for path in paths
    ]


@pytest.mark.parametrize("flags", [("--quiet",), ("--json",), ("--json", "--quiet")])
def test_an_error_stays_one_sentence_on_stderr(flags: tuple[str, ...], place: Path) -> None:
    for arguments in (("compare", "absent", *flags), (*flags, "compare", "absent"), ("compare", "--nope", *flags)):
        found = assay_here(*arguments, folder=place)
        assert (found.returncode, found.stdout) == (2, "")
        (line,) = found.stderr.splitlines()
        assert line.startswith("assay: ")


def test_the_flags_may_stand_before_the_command(place: Path) -> None:
    assert flags_last(["--json", "--quiet", "run", "quickstart", "--seed", "1"]) == [
        *("run", "quickstart", "--seed", "1", "--json", "--quiet")
    ]
    assert flags_last(["--quiet"]) == ["--quiet"]
    before = assay_here("--json", "diagnose", "one", folder=place)
    after = assay_here("diagnose", "one", "--json", folder=place)
    assert before.stdout == after.stdout
    assert json.loads(before.stdout)["schema"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A tiny quickstart, and what was printed while it ran with --json before its name."""
    folder = tmp_path_factory.mktemp("tiny")
    return folder, assay("--json", "run", "quickstart", *TINY, "--out", "run", folder=folder)


def test_a_run_prints_its_summary_and_paths_as_json_and_its_progress_on_stderr(
    tiny: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, ran = tiny
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    paths = found.pop("paths")
    assert found == json.loads((folder / "run" / "summary.json").read_text())
    assert Path(paths["report"]) == (folder / "run" / "report.html").resolve()
    assert all((Path(student) / "model.safetensors").exists() for student in paths["students"].values())
    assert list(paths["students"]) == [arm["source"] for arm in found["arms"]]
    assert "offline: 4/4" in ran.stderr
    assert not DRAWN & set(ran.stderr)


def test_a_run_that_is_done_says_its_path_last_or_alone(
    tiny: tuple[Path, subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, ran = tiny
    command = ("run", "quickstart", *TINY, "--out", "run")
    quiet = assay_here(*command, "--quiet", folder=folder)
    assert (quiet.stdout, quiet.stderr) == (f"{(folder / 'run' / 'report.html').resolve()}\n", "")
    text = assay_here(*command, folder=folder).stdout.splitlines()
    assert text[-1] == quiet.stdout.strip()
    for arm in json.loads(ran.stdout)["arms"]:
        assert any(line.startswith(f"{arm['source'].replace('_', ' ')}: ") for line in text)


def test_quiet_silences_workers_too(tmp_path: Path) -> None:
    """What a process that is started meanwhile writes to the descriptor goes nowhere, an error comes through."""
    code = (
        "import os, subprocess, sys\nfrom assay.output import Output\n"
        "try:\n"
        "    with Output(quiet=True).hushed():\n"
        "        print('stream', file=sys.stderr)\n"
        "        subprocess.run([sys.executable, '-c', 'import os; os.write(2, b\"worker\")'])\n"
        "        raise ValueError\n"
        "except ValueError:\n"
        "    print('after', file=sys.stderr, flush=True)\n"
        "    os.write(2, b'wards')\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.stderr == "after\nwards"
    with Output().hushed():
        os.write(2, b"")


def visible_lines(written: str) -> list[str]:
    return CODE.sub("", written).replace("\r", "").splitlines()


@pytest.mark.parametrize("width", [40, 80, 130])
def test_every_line_fits_the_terminal(width: int, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_a_terminal(monkeypatch, width)
    for command in (("compare", "one"), DOCTOR, ("recipes",), ("tasks",), CHECK, SWEEP, ("watch", "one", "--once")):
        lines = visible_lines(assay_here(*command, folder=place).stdout)
        assert lines
        assert max(map(len, lines)) <= width, command


def test_a_wide_terminal_gets_a_table_and_a_narrow_one_a_value_a_line(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_a_terminal(monkeypatch, 160)
    wide = assay_here("compare", "one", folder=place).stdout
    in_a_terminal(monkeypatch, 40)
    narrow = assay_here("compare", "one", folder=place).stdout
    assert any(line.startswith("│ offline") for line in visible_lines(wide))
    lines = visible_lines(narrow)
    assert "  verdict: teacher hacking" in lines[lines.index("offline") :]
    assert "│" not in narrow


def test_verdicts_have_one_colour_and_no_color_takes_it_away(place: Path) -> None:
    command = ("diagnose", "one", "--figure", "d.svg")
    coloured = assay_in_a_terminal(*command, folder=place)[1]
    assert "\x1b[1;31mteacher hacking" in coloured
    without = assay_in_a_terminal(*command, folder=place, NO_COLOR="1")[1]
    assert not COLOUR.search(without)
    assert visible_lines(without) == visible_lines(coloured)


def test_an_error_in_a_terminal_is_red_and_wrapped(place: Path) -> None:
    code, written = assay_in_a_terminal("compare", "one", "--refrence", "x", width=40, folder=place)
    assert code == 2
    assert written.startswith("\x1b[1;31merror:")
    said = " ".join(" ".join(visible_lines(written)).split())
    assert said.startswith(
        "error: unrecognized options: --refrence, x: did you mean --reference? `assay compare --help`"
    )
    assert max(map(len, visible_lines(written))) <= 40


def test_help_is_boxed_in_a_terminal_and_plain_in_a_pipe() -> None:
    for command in ((), ("report",), ("run", "quickstart"), ("distill",)):
        found = assay_here(*command, "--help", folder=Path())
        assert found.returncode == 0
        assert not DRAWN & set(found.stdout)
        assert "--quiet" in found.stdout
        assert "--json" in found.stdout
    assert "╭" in assay_in_a_terminal("report", "--help")[1]
    assert not COLOUR.search(assay_in_a_terminal("report", "--help", NO_COLOR="1")[1])


def test_plain_takes_a_box_off_its_text() -> None:
    box = "usage\n\n╭─ options ──╮\n│ -h  \x1b[2mhelp\x1b[0m  │\n│ ────────── │\n│ more       │\n╰────────────╯"
    assert plain(box) == "usage\n\noptions:\n  -h  help\n\n  more"


def test_help_imports_neither_torch_nor_rich() -> None:
    code = (
        "import sys\nfrom assay.cli import main\ntry:\n    main(['--help'])\nfinally:\n    print(sorted(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    modules = ast.literal_eval(found.stdout.splitlines()[-1])
    assert "tyro" in modules
    assert not {"torch", "rich", "matplotlib", "transformers", "jinja2"} & set(modules)


def test_a_sweep_says_what_its_study_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finding = {"schema": "assay.finding/1", "finding": "agrees", "claim": "offline [hacks]"}
    (tmp_path / "result.json").write_text(json.dumps(finding))
    study, recipe = (sweeps.plan(target, (), (1,)) for target in ("fig5", "quickstart"))
    found = sweeps.document(study, tmp_path, ["a line"], tmp_path / "report.html")
    assert found["finding"] == finding
    assert len(found["runs"]) == len(study.experiments)
    assert found["path"] == str((tmp_path / "report.html").resolve())
    assert sweeps.document(recipe, tmp_path, [], tmp_path / "report.html")["finding"] is None
    assert sweeps.document(study, tmp_path, [])["path"] is None
    print_finding(found["finding"])
    print_finding(None)
    assert capsys.readouterr().out == "agrees: offline [hacks]\n"


TELLS = re.compile(
    r"\b(add|ask|begin|build|choose|convert|delete|did you mean|distil|drop|evaluate|expected|export|fetch|find|free|"
    r"give|goes on|hold out|install|keep|leave|look at|lower|makes? it again|mend|merge|must|name|needs?|pip install|"
    r"plan for|put|quote|raise|read|rename|repeats?|report|resumes|run|save|score|see|set|shows?|should be|sort|start|"
    r"sweep|take|train for|load|tries|try|unpack|use|wait|waiting|widen|write)\b|_REPAIR"
)


def test_every_error_says_what_to_do() -> None:
    """By its words: each literal message tells to do something, or what a value has to be."""
    checked = 0
    for path in sorted(Path(package.__path__[0]).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "AssayError" and node.args):
                continue
            message = ast.unparse(node.args[0])
            literal = "".join(
                each.value
                for each in ast.walk(node.args[0])
                if isinstance(each, ast.Constant) and isinstance(each.value, str)
            )
            if len(literal.split()) < 6:
                continue  # another function's words, which are looked at where they are written
            checked += 1
            assert TELLS.search(message), f"{path.name}:{node.lineno}: {literal}"
    assert checked > 350


def test_bash_completes_commands_flags_and_recipes(tmp_path: Path) -> None:
    script = tmp_path / "completion.bash"
    script.write_text(assay_here("completion", "bash", folder=tmp_path).stdout)
    asked = {
        "qui": ["quickstart"],
        "run rand": ["random_student"],
        "run quickstart --distillation.num-pr": ["--distillation.num-prompts"],
        "run own.yaml --quie": ["--quiet"],
        "sweep fig": [name for name in STUDIES if name.startswith("fig")],
        "distill --stu": ["--student"],
        "distill --distillation.num-pr": ["--distillation.num-prompts"],
        "plan quickstart --metric ": ["golden", "proxy", "reference_nll"],
        "compare --js": ["--json"],
        "report ": [],
    }
    lines = [f"source {script}", "complete -p assay"]
    for words in asked:
        given = " ".join(f"'{word}'" for word in ["assay", *words.split(" ")])
        count = len(words.split(" "))
        lines += [f'COMP_WORDS=({given}); COMP_CWORD={count}; _assay; echo "${{COMPREPLY[*]}}"']
    found = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True, timeout=60)
    assert found.stderr == ""
    registered, *completed = found.stdout.splitlines()
    assert registered == "complete -o bashdefault -o default -F _assay assay"  # so files complete where names do not
    assert [line.split() for line in completed] == list(asked.values())


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script_with_the_recipes(shell: str, tmp_path: Path) -> None:
    """Their syntax is tyro's; what is added to it is Python, which is run here."""
    script = assay_here("completion", shell, folder=tmp_path).stdout
    lines = script.splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith("COMPLETION_SPEC = "))
    last = next(place for place, line in enumerate(lines) if place > first and line.startswith(("import ", '"""')))
    values: dict[str, Any] = {}
    code = "\n".join(lines[first:last])
    exec(re.sub(r"\\(.)", r"\1", code) if shell == "fish" else code, values)  # fish holds it in double quotes
    assert set(values["COMPLETION_SPEC"]["subcommands"]["run"]["subcommands"]) == set(RECIPES)


def test_zsh_completes_by_eval_and_by_a_file(tmp_path: Path) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("no zsh on this machine")
    (tmp_path / "_assay").write_text(assay_here("completion", "zsh", folder=tmp_path).stdout)
    begin = "autoload -U compinit; compinit -u -d dump"
    for lines, function in (
        ([begin, 'eval "$(cat _assay)"'], "_tyro_assay"),
        ([f"fpath=({tmp_path} $fpath)", begin], "_assay"),
    ):
        code = "\n".join([*lines, "print ${_comps[assay]}"])
        found = subprocess.run(["zsh", "-f", "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
        assert (found.stdout.strip(), found.stderr) == (function, "")


def test_fish_completes(tmp_path: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("no fish on this machine")
    (tmp_path / "assay.fish").write_text(assay_here("completion", "fish", folder=tmp_path).stdout)
    code = 'source assay.fish; complete -C "assay run rand"; complete -C "assay quickstart --se"'
    home = os.environ | {"HOME": str(tmp_path)}
    found = subprocess.run(["fish", "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path, env=home)
    assert [line.split()[0] for line in found.stdout.splitlines()] == ["random_student", "--seed"]
