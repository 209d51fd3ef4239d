"""Tasks: prompts, most with a human reference, in splits that share no near-duplicates.

``base`` serves pretraining and the tokenizer only, ``oracle`` stage 1 (oracle responses for SFT),
``distillation`` stage 2, ``held_out`` the probe. A corpus ships inside the package, is fetched once into the user's
cache, or is a user's own file; from there on all are alike.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from assay import runs
from assay.config import TaskConfig
from assay.data.chat import Conversation
from assay.data.debian import fetch_debian
from assay.data.encoding import NO_FRAMING, Encoder
from assay.data.encoding import encode as encode
from assay.data.hub import DATASET, HUB, fetch_dataset, fetch_hub, parse_dataset
from assay.data.shards import is_sharded, shard_paths
from assay.data.splitting import SHARES, SPLITS, Split, without_oracle
from assay.data.user_rows import REFERENCE, is_user_file
from assay.data.user_text import DEFAULT_TEMPLATE, read_split
from assay.errors import AssayError, unknown_name
from assay.types import Framing, Prompt
from assay.validation import template_columns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WITHOUT_BASE: tuple[Split, ...] = tuple(SHARES)

Fetch = Callable[[], tuple[list[dict[str, Any]], dict[str, Any]]]
"""Brings the rows of a corpus, each with its split, and facts about where they came from. Those of a user's data set
are split when they are read."""


@dataclass(frozen=True)
class Task:
    """A corpus and how its rows become prompts.

    ``corpus`` is the name of a parquet file in the package or, with ``fetch``, in the user's cache; for a user's own
    file (``own``) its path. ``template`` is filled with a row's columns; the response is the ``reference`` column,
    which may be empty (None). ``shrinkable`` names a column that is a list joined by ``separator``: items are dropped
    from its end until the prompt fits the token limit; rows whose prompt cannot fit are left out.

    ``responses`` names a column with the teacher's responses: a text or a list of texts. With ``chat_template``
    prompts are rendered as conversations. ``with_oracle`` False: a run without stage 1, whose prompts are distilled
    on instead.
    """

    name: str
    corpus: str
    template: str
    reference: str
    licence: str
    shrinkable: str | None = None
    separator: str = ", "
    splits: tuple[Split, ...] = SPLITS
    fetch: Fetch | None = None
    own: bool = False
    responses: str | None = None
    chat_template: bool = False
    with_oracle: bool = True


def _debian(name: str, template: str, reference: str, shrinkable: str | None) -> Task:
    licence = "each package's own: fetched, not shipped"
    corpus, fetch = f"{name}.parquet", partial(fetch_debian, name)
    return Task(name, corpus, template, reference, licence, shrinkable, " ", WITHOUT_BASE, fetch)


def _hub(name: str, template: str, shrinkable: str | None) -> Task:
    dataset = HUB[name]
    licence, fetch = f"see the hub's page of {dataset.id}: fetched, not shipped", partial(fetch_hub, dataset, name)
    return Task(name, f"{name}.parquet", template, dataset.reference, licence, shrinkable, " ", WITHOUT_BASE, fetch)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="define",
            corpus="define.parquet",
            template="{part_of_speech}: {lemmas}:",
            reference="gloss",
            shrinkable="lemmas",
            licence="WordNet 3.0 licence (corpora/define.LICENSE.txt)",
        ),
        Task(
            name="translate",
            corpus="translate.parquet",
            template="en: {english} es:",
            reference="spanish",
            licence="public domain (corpora/translate.LICENSE.txt)",
        ),
        Task(
            name="summarize",
            corpus="summarize.parquet",
            template="{kind} {name}: {body} summary:",
            reference="summary",
            shrinkable="body",
            separator=" ",
            licence="each package's own, permissive (corpora/summarize.LICENSE.txt)",
        ),
        _debian("debian-synopsis", "{description}\nSynopsis:", "synopsis", "description"),
        _debian("debian-de", "English: {english}\nGerman:", "german", None),
        _hub("xsum", "{document}\nSummary:", "document"),
        _hub("wmt14-de-en", "German: {german}\nEnglish:", None),
        _hub("natural-instructions", "{definition}\nInput: {inputs}\nOutput:", "inputs"),
    )
}


def get_task(
    name: str,
    template: str | None = None,
    *,
    reference: str | None = None,
    responses: str | None = None,
    chat_template: bool = False,
    with_oracle: bool = True,
) -> Task:
    """The task of that name, of the file at that path, or of the data set ``dataset:ID``; see ``config.TaskConfig``.

    Raises AssayError with the nearest name when there is no such task.
    """
    if name.startswith(DATASET):
        dataset = parse_dataset(name)
        fetch = partial(fetch_dataset, dataset, name)
        task = Task(name, dataset.file, DEFAULT_TEMPLATE, REFERENCE, "see its page", fetch=fetch, own=True)
    elif is_user_file(name):
        task = Task(name, name, DEFAULT_TEMPLATE, REFERENCE, "the user's own", own=True)
    elif name in TASKS:
        task = TASKS[name]
    elif "/" in name or Path(name).suffix or Path(name).exists():
        raise AssayError(
            f"task {name!r} looks like a file: a file of prompts ends in .jsonl or .parquet, and a data set is named "
            f"{DATASET}{name}"
        )
    else:
        raise unknown_name("task", name, TASKS)
    splits = WITHOUT_BASE if task.own else task.splits
    return dataclasses.replace(
        task,
        template=task.template if template is None else template,
        reference=reference or task.reference,
        splits=splits if with_oracle else tuple(split for split in splits if split != "oracle"),
        responses=responses,
        chat_template=chat_template,
        with_oracle=with_oracle,
    )


def configured_task(config: TaskConfig, with_oracle: bool = True) -> Task:
    """The task that a config describes."""
    return get_task(
        config.name,
        config.template,
        reference=config.reference,
        responses=config.responses,
        chat_template=config.chat_template,
        with_oracle=with_oracle,
    )


def load_prompts(
    task: Task,
    split: Split,
    tokenizer: PreTrainedTokenizerBase,
    max_prompt_tokens: int,
    max_response_tokens: int,
    num_prompts: int | None = None,
    seed: int = 0,
    framing: Framing = NO_FRAMING,
) -> list[Prompt]:
    """``num_prompts`` prompts of a split, in an order drawn with ``seed`` (all of them when None).

    A larger ``num_prompts`` with the same seed keeps the smaller selection as its beginning. References and a
    teacher's responses are tokenised with the end-of-sequence token and cut at ``max_response_tokens``. ``framing``
    holds the special tokens around them, which count as tokens; with ``task.chat_template`` the template alone gives
    those of a prompt. What looks like a special token in the text itself is text.
    Raises AssayError when the split holds fewer prompts than asked for, or the task has no such split.
    """
    if split not in task.splits:
        raise AssayError(
            f"task {task.name!r} has no split {split!r}, only {', '.join(task.splits)}: use models that are pretrained"
        )
    rows = corpus_rows(task)
    _check_columns(task, rows)
    encoder = Encoder(tokenizer, framing, task.chat_template)
    row_ids = np.random.default_rng(seed).permutation([i for i, row in enumerate(rows) if _split(task, row) == split])
    prompts: list[Prompt] = []
    for i in row_ids:
        if len(prompts) == num_prompts:
            break
        prompt = _to_prompt(task, int(i), rows[i], encoder, max_prompt_tokens, max_response_tokens)
        if prompt is not None:
            prompts.append(prompt)
    if num_prompts is not None and len(prompts) < num_prompts:
        raise AssayError(
            f"task {task.name!r} has {len(prompts)} prompts of at most {max_prompt_tokens} tokens among the "
            f"{len(row_ids)} rows of its split {split!r}, but {num_prompts} were asked for: ask for fewer"
        )
    return prompts


def under_template(
    task: Task,
    prompts: Sequence[Prompt],
    template: str,
    tokenizer: PreTrainedTokenizerBase,
    max_prompt_tokens: int,
    max_response_tokens: int,
    framing: Framing = NO_FRAMING,
) -> list[Prompt | None]:
    """The rows of these prompts of ``task`` as another template shows them; None where that does not fit.

    Ids and references stay. A row of a user's file that repeats another one under this template is None too.
    Raises AssayError for a template that shows the answer or a column that there is not.
    """
    other = dataclasses.replace(task, template=template)
    rows = corpus_rows(other)
    _check_columns(other, rows)
    encoder = Encoder(tokenizer, framing, task.chat_template)
    wanted = {prompt.id for prompt in prompts}
    found = {
        row_id: _to_prompt(other, i, row, encoder, max_prompt_tokens, max_response_tokens)
        for i, row in enumerate(rows)
        if (row_id := _row_id(other, i, row)) in wanted
    }
    return [found.get(prompt.id) for prompt in prompts]


def refuse_conversations(task: Task, why: str) -> None:
    """Raises AssayError when a row of the task is a conversation of several messages."""
    talk = next((row for row in corpus_rows(task) if len(row.get("conversation") or ()) > 1), None)
    if talk is not None:
        raise AssayError(f"line {talk['line']} of task {task.name!r} is a conversation, and {why}")


def corpus_rows(task: Task) -> Sequence[dict[str, Any]]:
    """The rows of a task's corpus with their ``split``, in the order of the file; fetched first if need be."""
    digest = corpus_digest(task)
    if not task.own:
        return _rows(_corpus_path(task), digest)
    return _own_rows(_corpus_path(task), task.template, task.reference, task.responses, task.with_oracle, digest)


@lru_cache(maxsize=8)
def _rows(path: Path, digest: str) -> Sequence[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


@lru_cache(maxsize=8)
def _own_rows(
    path: Path, template: str, reference: str, responses: str | None, with_oracle: bool, digest: str
) -> Sequence[dict[str, Any]]:
    """The digest is a key of the cache only: a file that has changed is read again."""
    return read_split(path, template, reference, responses, with_oracle).rows


def corpus_digest(task: Task) -> str:
    """The first 16 hex digits of SHA-256 over the file of a task's corpus; fetched first if need be."""
    if task.fetch is not None:
        fetch_corpus(task)
    digest = _digest(_corpus_path(task))
    if task.fetch is not None and digest != runs.read_json(_facts_path(task))["digest"]:
        raise AssayError(f"{str(_corpus_path(task))!r} is damaged: delete it; the same command fetches it again")
    return digest


def _digest(path: Path) -> str:
    try:
        return runs.file_digest(*(shard_paths(path) if is_sharded(path) else [path]))[:16]
    except OSError as error:
        raise AssayError(
            f"cannot read {str(path)!r}: {error.strerror or error}; see that the file is there and may be read"
        ) from error


def fetch_corpus(task: Task) -> Path:
    """The file of a fetched task in the user's cache, fetched and said so on stderr when it is not there.

    Beside it lies a .json file: where the rows came from, when, and the digest of the file.
    """
    path = _corpus_path(task)
    if task.fetch is None or (path.exists() and _facts_path(task).exists()):
        return path
    print(f"assay: fetching task {task.name!r} once, into {path}", file=sys.stderr, flush=True)
    rows, facts = task.fetch()
    if not rows:
        raise AssayError(
            f"task {task.name!r}: what was fetched holds no row that can be used; nothing was kept: "
            "give a .jsonl file instead"
        )
    try:
        table = pa.Table.from_pylist(rows)
    except pa.ArrowException as error:
        cause = str(error).splitlines()[0]
        raise AssayError(f"task {task.name!r} holds what no table can ({cause}): give a .jsonl file instead") from error
    runs.write_table(path, table)
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    found: dict[str, Any] = {"task": task.name, "digest": _digest(path), "fetched_at": now}
    if not task.own:
        found["rows"] = {split: sum(row["split"] == split for row in rows) for split in task.splits}
    runs.write_json(_facts_path(task), found | facts)
    return path


def cache_folder() -> Path:
    """The user's cache of fetched tasks: ``$XDG_CACHE_HOME/assay/tasks``, or ``~/.cache/assay/tasks``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "assay" / "tasks"


def describe_tasks() -> list[dict[str, Any]]:
    """Every named task: what ships, what is fetched and whether it already is, and what a row of it becomes."""
    return [
        {
            "name": task.name,
            "ships": task.fetch is None,
            "here": _corpus_path(task).exists() and _facts_path(task).exists(),
            "template": task.template,
            "reference": task.reference,
            "licence": task.licence,
        }
        for task in TASKS.values()
    ]


def _corpus_path(task: Task) -> Path:
    if task.fetch is not None:
        return cache_folder() / task.corpus
    if task.own:
        return Path(task.corpus)
    return Path(str(resources.files("assay.data.corpora"))) / task.corpus


def _facts_path(task: Task) -> Path:
    return _corpus_path(task).with_suffix(".json")


def _check_columns(task: Task, rows: Sequence[dict[str, Any]]) -> None:
    """Refuses columns that there are not, and a template that shows an answer; a user's file is checked on reading."""
    if task.own:
        return
    columns = set(rows[0]) - {"split"}
    for what, column in (("references", task.reference), ("responses", task.responses)):
        if column is not None and column not in columns:
            raise unknown_name(f"column of {what} in task {task.name!r}", column, columns)
    known = columns - {task.reference, task.responses}
    for column in template_columns(task.template):
        if column not in known:
            raise unknown_name(f"column in the template of task {task.name!r}", column, known)


def _split(task: Task, row: dict[str, Any]) -> Split:
    return row["split"] if task.with_oracle else without_oracle(row["split"])


def prompt_text(task: Task, row: dict[str, Any], num_items: int | None = None) -> str:
    """The template filled with a row, keeping the first ``num_items`` items of the shrinkable column."""
    if task.own:
        return row["prompt_text"]
    if task.shrinkable is None:
        return task.template.format(**row)
    items = row[task.shrinkable].split(task.separator)[:num_items]
    return task.template.format(**{**row, task.shrinkable: task.separator.join(items)})


def _to_prompt(
    task: Task, index: int, row: dict[str, Any], encoder: Encoder, max_prompt_tokens: int, max_response_tokens: int
) -> Prompt | None:
    num_items = 1
    if task.shrinkable is not None and task.shrinkable in template_columns(task.template):
        num_items = row[task.shrinkable].count(task.separator) + 1
    reference = row[REFERENCE if task.own else task.reference]
    try:
        fitting = _longest_fit(task, row, encoder, max_prompt_tokens, num_items)
        if fitting is None:
            return None
        text, token_ids = fitting
        return Prompt(
            id=_row_id(task, index, row),
            text=text,
            token_ids=token_ids,
            reference=reference,
            reference_ids=() if reference is None else encoder.answer(reference)[:max_response_tokens],
            response_ids=tuple(encoder.answer(given)[:max_response_tokens] for given in _responses(task, row)),
        )
    except AssayError as error:
        where = f"line {row['line']}" if task.own else f"row {index}"
        raise AssayError(f"{where} of task {task.name!r} cannot be a prompt: {error}") from error


def _responses(task: Task, row: dict[str, Any]) -> Sequence[str]:
    """The teacher's responses that a row holds."""
    if task.own:
        return row["responses"]
    return () if task.responses is None else (row[task.responses],)


def _row_id(task: Task, index: int, row: dict[str, Any]) -> str:
    return row["id"] if task.own else f"{task.name}-{index:06d}"


def _longest_fit(
    task: Task, row: dict[str, Any], encoder: Encoder, max_prompt_tokens: int, num_items: int
) -> tuple[str, tuple[int, ...]] | None:
    """Text and tokens with as many items as fit, found by bisection; None when not even one does."""
    conversation: Conversation | None = row["conversation"] if task.own else None
    best = None
    fewest, most = 1, num_items
    tried = most  # mostly all of them fit
    while fewest <= most:
        text = prompt_text(task, row, tried)
        token_ids = encoder.prompt(conversation or text)
        if len(token_ids) <= max_prompt_tokens:
            best, fewest = (text, token_ids), tried + 1
        else:
            most = tried - 1
        tried = (fewest + most + 1) // 2
    return best
