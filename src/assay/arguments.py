"""From words on the command line to a call: what tyro reads, and its mistakes and help in the words of this program."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import tyro
from tyro.conf import FlagCreatePairsOff, arg

from assay.errors import AssayError
from assay.output import FLAGS, Output

Shown = Annotated[Output, arg(name=""), FlagCreatePairsOff]
"""The last parameter of every command that takes --quiet and --json."""

_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
_TITLE = re.compile(r"^[╭+][─-] (?P<title>.*?) [─-]+[╮+]$")
_FOOT = re.compile(r"^[╰+][─-]+[╯+]$")
_LINE = re.compile(r"^[│|] (?P<text>.*?) *[│|]$")
_RULE = re.compile(r"^[─-]+$")
_WIDE = "1000"


def flags_last(given: Sequence[str]) -> list[str]:
    """The words with the flags that every command takes moved from the front to the end."""
    count = next((place for place, word in enumerate(given) if word not in FLAGS), len(given))
    return [*given[count:], *given[:count]]


def later(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command, which when called only keeps its arguments: parsing ends before anything is done."""

    @functools.wraps(command)
    def keep(*arguments: Any, **named: Any) -> functools.partial[Any]:
        return functools.partial(command, *arguments, **named)

    return keep


def parse(target: Any, prog: str, given: Sequence[str], **named: Any) -> Any:
    """What ``target`` becomes from the words, by ``tyro.cli``. Raises AssayError for words that it does not take."""
    with _in_our_words(prog, given):
        return tyro.cli(target, prog=prog, args=list(given), **named)


def overview(commands: dict[str, Any], prog: str, given: Sequence[str], description: str) -> None:
    """The help over all commands, or AssayError where the words name none."""
    with _in_our_words(prog, given):
        tyro.extras.subcommand_cli_from_dict(commands, prog=prog, args=list(given), description=description)


def plain(text: str) -> str:
    """Help without boxes, rules and colours: the title of a box as a heading, its lines indented."""
    return "\n".join("" if _RULE.match(line.strip()) else line for line in _unboxed(text)).strip("\n")


def _unboxed(text: str) -> list[str]:
    lines: list[str] = []
    for line in _ESCAPE.sub("", text).splitlines():
        if title := _TITLE.match(line):
            lines.append(f"{title['title']}:")
        elif inner := _LINE.match(line):
            lines.append(f"  {inner['text']}".rstrip())
        elif not _FOOT.match(line):
            lines.append(line)
        else:
            lines.append("")
    return lines


@contextlib.contextmanager
def _in_our_words(prog: str, given: Sequence[str]) -> Iterator[None]:
    asked = not {"-h", "--help"}.isdisjoint(given)
    as_it_is = asked and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    try:
        with contextlib.ExitStack() as caught:
            caught.enter_context(contextlib.redirect_stderr(err))
            if not as_it_is:
                caught.enter_context(contextlib.redirect_stdout(out))
            if not asked:
                caught.enter_context(_columns(_WIDE))  # an error that is not wrapped can be read again
            yield
    except SystemExit as ended:
        if ended.code:
            raise AssayError(_sentence(_written(err), prog)) from None
        if not as_it_is:
            print(plain(_written(out)))
        raise


@contextlib.contextmanager
def _columns(number: str) -> Iterator[None]:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = number
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    stream.seek(0)
    return stream.read()


def _missing(lines: Sequence[str]) -> str:
    """The arguments that are missing, each with its help where there are few."""
    found: list[list[str]] = []
    for line in lines:
        if re.match(r" {6}\S", line):
            found.append([line.strip()])
        elif found:
            found[-1].append(line.strip())
    if len(found) > 2:
        return ", ".join(name for name, *_ in found)
    told = [(name, " ".join(text).removesuffix("(required)").strip(" .")) for name, *text in found]
    return " and ".join(name + (f" ({text[0].lower()}{text[1:]})" if text else "") for name, text in told)


def _sentence(shown: str, prog: str) -> str:
    """What tyro says in a box of several parts as one sentence: what is wrong, the nearest flag, where help is."""
    parts: list[list[str]] = [[]]
    for line in _unboxed(shown)[1:]:
        if _RULE.match(line.strip()):
            parts.append([])
        elif line.strip():
            parts[-1].append(line)
    named = [line.split()[0] for part in parts for line in part if re.match(r" {6}-", line)]
    first = parts[0][0].strip().removesuffix(".") if parts[0] else "these words cannot be read"
    if first.startswith("Missing from"):
        what = f"missing {_missing(parts[0][1:])}"
    else:
        what = first[:1].lower() + first[1:]
        near = list(dict.fromkeys(named)) if any("Perhaps you meant" in part[0] for part in parts if part) else []
        what += f": did you mean {' or '.join(near)}?" if near else ""
    return f"{what}{'' if what.endswith('?') else ';'} `{prog} --help` says what can be given"
