"""Scripts that complete commands, flags and names in a shell: tyro's, with what it cannot know."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import tyro

from assay.errors import AssayError
from assay.recipes import RECIPES

Shell = Literal["bash", "zsh", "fish"]

_OWN = ("distill", "lab")
_SPEC = "COMPLETION_SPEC = {"
_MORE = """
_commands = COMPLETION_SPEC['subcommands']
for _name in {own!r}:
    _known = [_flag for _option in _commands[_name]['options'] for _flag in _option['flags']]
    _commands[_name]['options'] += [
        _option for _option in _commands['run']['options'] if _option['flags'][0] not in _known
    ]
for _name, _values in {names!r}.items():
    _commands[_name]['subcommands'] = {{
        _value: dict(_commands[_name], description=_value, subcommands={{}}) for _value in _values
    }}
"""
"""Python in single quotes alone, since fish holds it in double ones."""
_BASH = """
# Names before flags, and files where neither is meant.
_assay() {
  _tyro_assay "$@"
  local cur="${COMP_WORDS[COMP_CWORD]}" word
  local -a names=()
  for word in "${COMPREPLY[@]}"; do
    [[ -n $word && ( -n $cur || $word != -* ) ]] && names+=("$word")
  done
  COMPREPLY=("${names[@]}")
}
complete -o bashdefault -o default -F _assay assay
"""
_ZSH_CALL = '_tyro_assay "$@"'
_ZSH = """
# As a file _assay in $fpath this text is the function that completes; read by eval it tells zsh of one.
if [[ ${funcstack[1]-} == _assay ]]; then
  _tyro_assay "$@"
else
  compdef _tyro_assay assay
fi
"""


def script(shell: Shell, commands: Mapping[str, Callable[..., Any]]) -> str:
    """A script that completes ``assay`` in ``shell``; ``commands["run"]`` says what flags a config has.

    Raises AssayError where the installed tyro writes scripts of another kind.
    """
    written = io.StringIO()
    with contextlib.redirect_stdout(written), contextlib.suppress(SystemExit):
        arguments = ["--tyro-print-completion", shell]
        tyro.extras.subcommand_cli_from_dict(dict(commands), prog="assay", args=arguments)
    lines = written.getvalue().splitlines()
    places = [place for place, line in enumerate(lines) if line.startswith(_SPEC)]
    calls = [place for place, line in enumerate(lines) if line == _ZSH_CALL]
    if len(places) != 1 or len(calls) != (shell == "zsh"):
        raise AssayError(
            f"tyro {tyro.__version__} writes no script for {shell} that names can be added to: install tyro 1.0.17"
        )
    for place in calls:
        del lines[place]
    lines.insert(places[0] + 1, _MORE.format(own=_OWN, names=_names()))
    return "\n".join(lines) + {"bash": _BASH, "zsh": _ZSH, "fish": ""}[shell]


def _names() -> dict[str, list[str]]:
    """What may stand first after a command, where these are names and not files."""
    from assay.recipes.studies import STUDIES

    return {
        "run": [*RECIPES],
        "plan": [*RECIPES],
        "sweep": [*STUDIES, *RECIPES],
        "bases": ["list", "build"],
        "tasks": ["list", "check", "fetch"],
        "completion": [*get_args(Shell)],
    }
