"""``assay answers``: what a teacher behind an API without log-probs writes, as a column of a file to distil from."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay import runs
from assay.config import ServerConfig, digest_of
from assay.data.user_rows import PROMPTS, UserRow, read_rows
from assay.errors import AssayError
from assay.models.sampling import response_seed
from assay.models.server import Server

COPIED = (*PROMPTS, "id", "reference", "group", "split")
"""Columns of the prompts that go along into the answers."""


@dataclass(frozen=True)
class Asked:
    """What a server is asked for: ``number`` responses to each prompt, each with a seed of its own.

    ``max_tokens`` are the server's tokens, which are not the student's.
    """

    url: str
    server: ServerConfig
    number: int = 1
    max_tokens: int = 512
    sampling_temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.number < 1 or self.max_tokens < 1 or not 0 <= self.sampling_temperature < float("inf"):
            raise AssayError("ask for 1 response or more, of 1 token or more, at a temperature of 0 or above")


def write_answers(prompts: Path, out: Path, asked: Asked, column: str = "responses") -> Path:
    """Writes ``out``, a .jsonl file of the prompts with the responses in ``column``; returns its path.

    Text prompts are sent as the one message of a user, conversations as they are. Answers are kept as they come, beside
    ``out``: the same command goes on where it was interrupted. A prompt with a response that the server has cut is left
    out and said so, since a cut text would teach the student to stop there.
    Raises AssayError when the file or an answer cannot be used, or nothing is left.
    """
    if out.suffix != ".jsonl" or column in (*COPIED, ""):
        raise AssayError(
            f"answers go into a .jsonl file, in a column that is none of {', '.join(COPIED)}; "
            "choose another --out or --column"
        )
    rows = read_rows(prompts)  # before anything is written
    runs.prepare_folder(out.parent)
    lock = f".{out.name}.lock"
    with runs.locked(out.parent, lock, "--out (this one is being written)"):
        runs.remove_leftovers_of(out)
        _write(rows, prompts, out, asked, column)
        with runs.readable_errors(out, "write"):
            (out.parent / lock).unlink()
    return out


def _write(rows: Sequence[UserRow], prompts: Path, out: Path, asked: Asked, column: str) -> None:
    server = Server(asked.url, asked.server)
    model = asked.server.model or only_model(server)
    partial = out.with_name(f".{out.name}.partial")
    answers = _taken_up(partial, prompts, asked, model)
    missing = [row for row in rows if row.id not in answers]
    at_once = 4 * asked.server.concurrency
    for start in range(0, len(missing), at_once):
        part = missing[start : start + at_once]
        for row, texts in zip(part, server.each(functools.partial(answer, server, model, asked), part), strict=True):
            runs.append_record(partial, {"id": row.id, "texts": texts})
            answers[row.id] = texts
        runs.say(f"{len(answers):,} of {len(rows):,} prompts answered")
    whole = [row for row in rows if None not in answers[row.id]]
    if len(whole) < len(rows):
        runs.say(
            f"{len(rows) - len(whole):,} of {len(rows):,} prompts are left out, whose responses the server cut "
            f"at {asked.max_tokens} tokens: raise --max-tokens to keep them"
        )
    if not whole:
        raise AssayError(f"the server cut a response to every prompt at {asked.max_tokens} tokens: raise --max-tokens")
    lines = [json.dumps(_copied(row) | {column: answers[row.id]}, ensure_ascii=False) for row in whole]
    runs.write_text(out, "\n".join(lines) + "\n")
    partial.unlink()


def _taken_up(partial: Path, prompts: Path, asked: Asked, model: str) -> dict[str, Sequence[str | None]]:
    """The answers of an interrupted command, whose first record says what was asked for."""
    key = digest_of(
        [
            runs.file_digest(prompts),
            *(asked.url, model, asked.number, asked.max_tokens, asked.sampling_temperature, asked.seed),
        ]
    )
    runs.repair_log(partial, runs.say)
    records = runs.read_records(partial)
    if not records:
        runs.append_record(partial, {"key": key})
    elif records[0].get("key") != key:
        raise AssayError(
            f"{str(partial)!r} holds answers of an interrupted command that asked for something else: delete it, or "
            "choose another --out"
        )
    return {record["id"]: record["texts"] for record in records[1:]}


def answer(server: Server, model: str, asked: Asked, row: UserRow) -> list[str | None]:
    """The responses to a prompt; None for one that was cut."""
    messages = [{"role": m.role, "content": m.content} for m in row.conversation or ()]
    body = {
        "model": model,
        "messages": messages or [{"role": "user", "content": row.columns["prompt"]}],
        "max_tokens": asked.max_tokens,
        "temperature": asked.sampling_temperature,
    }
    texts = []
    for completion in range(asked.number):
        seed = response_seed("answers", asked.seed, row.id, completion) % 2**31  # what servers accept
        texts.append(_text_of(server.post("/chat/completions", body | {"seed": seed}), server.url, row.line))
    return texts


def _text_of(value: Any, url: str, line: int) -> str | None:
    choices = value.get("choices") if isinstance(value, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else None
    if choice.get("finish_reason") == "length":
        return None
    if not isinstance(text, str) or not text.strip():
        raise AssayError(f"the server at {url} gives no text for the prompt of line {line}: take that prompt out")
    return text


def only_model(server: Server) -> str:
    """The name of the one model that a server has; AssayError when it has none or several."""
    listed = server.get("/models", 0)
    entries = listed.get("data") if isinstance(listed, dict) else None
    names = [entry.get("id") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    if len(names) != 1 or not isinstance(names[0], str):
        shown = ", ".join(map(str, names[:5])) or "none"
        raise AssayError(f"the server at {server.url} serves {len(names)} models ({shown}): name one with --model")
    return names[0]


def _copied(row: UserRow) -> dict[str, Any]:
    return {name: row.columns[name] for name in COPIED if row.columns.get(name) is not None} | {"id": row.id}
