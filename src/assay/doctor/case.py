"""What is examined: two models, the prompts of a file, and everything that several checks need of them."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from assay.config import Experiment, ModelsConfig, ServerConfig
from assay.data.chat import ChatTemplate, Conversation, Message
from assay.data.encoding import Encoder
from assay.data.hub import DATASET
from assay.data.splitting import Split, assign_splits, row_keys, without_oracle
from assay.data.tasks import fetch_corpus, get_task
from assay.data.user_rows import REFERENCE, UserRow, read_rows
from assay.data.user_text import DEFAULT_TEMPLATE, OWN_SPLITS
from assay.doctor.sides import Side, read_side
from assay.errors import AssayError, unknown_name
from assay.models.loading import num_token_ids
from assay.models.sampling import response_seed
from assay.models.served import ServedModel
from assay.recipes.own import NUM_PASSES, Distill
from assay.types import Batch
from assay.validation import template_columns
from assay.workspace import Workspace

MEASURED_PROMPTS = 16
"""Prompts that the models themselves are tried on."""

TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class Request:
    """What the user has asked for: the run of ``assay distill`` with the same words, and how it is looked at.

    ``teacher`` is a model or the URL of a server; where it is None, ``responses`` names the column with its text.
    ``prompts`` and ``held_out`` are files, or ``prompts`` is "dataset:ID". ``passes`` over the prompts are those of the
    run that is forecast.
    """

    teacher: str | None
    student: str
    prompts: str | Path
    held_out: Path | None = None
    references: str | None = None
    responses: str | None = None
    template: str | None = None
    chat_template: bool = False
    max_prompt_tokens: int = Distill.max_prompt_tokens
    max_response_tokens: int = Distill.max_response_tokens
    batch_size: int = Distill.batch_size
    passes: float = NUM_PASSES
    device: str = "cpu"
    allow_pickle: bool = False
    trust_remote_code: bool = False
    server: ServerConfig = ModelsConfig.server

    @property
    def experiment(self) -> Experiment:
        """What ``assay distill`` makes of these words, before it is known how many prompts there are."""
        wish = Distill(
            student=self.student,
            teacher=self.teacher,
            responses=self.responses,
            prompts=str(self.prompts),
            references=self.references,
            chat_template=self.chat_template,
            max_prompt_tokens=self.max_prompt_tokens,
            max_response_tokens=self.max_response_tokens,
            batch_size=self.batch_size,
        )
        draft = wish.draft()
        models = dataclasses.replace(
            draft.models,
            device=self.device,
            allow_pickle=self.allow_pickle,
            trust_remote_code=self.trust_remote_code,
            server=self.server,
        )
        return dataclasses.replace(draft, models=models, task=dataclasses.replace(draft.task, template=self.template))


@dataclass(frozen=True)
class Row:
    """A prompt as the template makes it, or a conversation; ``text`` is all of its words.

    ``split`` is the file's own, if it brings one.
    """

    line: int
    said: str | Conversation
    text: str
    reference: str | None
    responses: tuple[str, ...]
    split: Split | None
    group: str | None


@dataclass(frozen=True)
class Case:
    """A request with what its files hold; weights are loaded, and a server is asked, when a check first wants it.

    ``teacher`` is None where no model of it can be loaded: it is served, or gives text only.
    """

    request: Request
    work: Workspace
    teacher: Side | None
    student: Side
    rows: tuple[Row, ...]

    @property
    def sides(self) -> tuple[Side, ...]:
        """Teacher and student, as far as they can be loaded."""
        return (self.student,) if self.teacher is None else (self.teacher, self.student)

    @property
    def is_served(self) -> bool:
        """Whether the teacher is behind a server."""
        return self.work.experiment.models.teacher_url is not None

    @property
    def why_no_teacher(self) -> str:
        """Why a check has no model of the teacher to look at."""
        return "the teacher is served, its files are not here" if self.is_served else "the teacher gives text only"

    @property
    def served(self) -> ServedModel:
        """The teacher behind its server. Raises AssayError when it does not fit, as a run would."""
        served = self.work.served_teacher
        assert served is not None
        return served

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The one of a run: the student's."""
        return self.work.tokenizer

    @cached_property
    def num_ids(self) -> int:
        """Token ids that the tokenizer can give, those between its largest and 0 included: the run's vocabulary."""
        return num_token_ids(self.tokenizer)

    @cached_property
    def encoder(self) -> Encoder:
        """How a run makes tokens of text."""
        return Encoder(self.tokenizer, self.work.framing, self.request.chat_template)

    @cached_property
    def rendered(self) -> list[str]:
        """Prompts as text that a run would feed."""
        return [self.render(row.said, self.tokenizer) for row in self.rows]

    @cached_property
    def all_prompt_ids(self) -> list[TokenIds]:
        """Tokens of every prompt, with the special ones around it."""
        return [self.encoder.prompt(row.said) for row in self.rows]

    @cached_property
    def kept(self) -> list[int]:
        """Rows whose prompt is not too long for ``max_prompt_tokens``."""
        return [i for i, ids in enumerate(self.all_prompt_ids) if len(ids) <= self.request.max_prompt_tokens]

    @cached_property
    def max_prompt_tokens(self) -> int:
        """The longest prompt that is kept; 0 without any."""
        return max((len(self.all_prompt_ids[i]) for i in self.kept), default=0)

    @cached_property
    def measured(self) -> list[int]:
        """The rows that the models are tried on: evenly spread over those that are kept."""
        step = max(1, len(self.kept) // MEASURED_PROMPTS)
        return self.kept[::step][:MEASURED_PROMPTS]

    @cached_property
    def teacher_pairs(self) -> Batch:
        """The measured prompts, each with a response of the teacher: sampled here or by its server, or of its column.

        Raises AssayError when the server gives none that can be used.
        """
        prompts = [self.all_prompt_ids[i] for i in self.measured]
        if self.request.responses is not None:
            return Batch(prompts, [self.given_ids[i][0] for i in self.measured])
        model = self.served if self.teacher is None else self.teacher.model
        seeds = [response_seed("doctor", i) for i in self.measured]
        return Batch(prompts, model.sample(prompts, seeds, self.request.max_response_tokens))

    @cached_property
    def given_ids(self) -> list[list[TokenIds]]:
        """Tokens of every response that a row brings along, cut at the limit."""
        limit = self.request.max_response_tokens
        return [[self.encoder.answer(text)[:limit] for text in row.responses] for row in self.rows]

    def reference_ids(self, text: str) -> TokenIds:
        """Tokens of a reference as it is scored, uncut: it ends with the end-of-sequence token."""
        return self.encoder.answer(text)

    def render(self, said: str | Conversation, tokenizer: PreTrainedTokenizerBase) -> str:
        """The text itself or, with a chat template, a conversation with the beginning of the answer."""
        if not self.request.chat_template:
            if isinstance(said, str):
                return said
            raise AssayError("the prompts are conversations: give --chat-template")
        conversation = (Message("user", said),) if isinstance(said, str) else said
        return "".join(part.text for part in ChatTemplate(tokenizer).render(conversation))

    def encode(self, rendered: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Tokens of a rendered prompt: only a chat template writes special tokens."""
        if self.request.chat_template:
            return tokenizer.encode(rendered, add_special_tokens=False)
        return Encoder(tokenizer).spell(rendered)

    @cached_property
    def own_splits(self) -> bool:
        """Whether the user says which prompts are held out: by a column, or by a second file."""
        return any(row.split is not None for row in self.rows)

    @cached_property
    def splits(self) -> list[Split]:
        """The split of every row: the user's own, else the one that assay would choose."""
        if self.own_splits:
            return [row.split for row in self.rows if row.split is not None]
        chosen, _ = assign_splits([row_keys(row.text, row.reference, row.group) for row in self.rows])
        return [without_oracle(split) for split in chosen]


def read_case(request: Request) -> Case:
    """The request with its models' descriptions and its prompts. Raises AssayError for what cannot be read."""
    _check_request(request)
    experiment = request.experiment
    rows = _rows(request, _file(str(request.prompts)))
    if request.held_out is not None:
        held_out = _rows(request, request.held_out)
        rows = [_in_split(row, row.split or "distillation") for row in rows]
        rows += [_in_split(row, "held_out") for row in held_out]
    elif 0 < sum(row.split is not None for row in rows) < len(rows):
        line = next(row.line for row in rows if row.split is None)
        raise AssayError(f"{str(request.prompts)!r}: line {line} has no 'split', but others have: give every line one")
    work = Workspace(experiment, Path(os.devnull))
    is_local = experiment.models.teacher is not None and experiment.models.teacher_url is None
    teacher = read_side("teacher", work) if is_local else None
    return Case(request, work, teacher, read_side("student", work), tuple(rows))


def _check_request(request: Request) -> None:
    for name in ("max_prompt_tokens", "max_response_tokens", "batch_size", "passes"):
        value = getattr(request, name)
        if not 0 < value < float("inf"):
            raise AssayError(f"--{name.replace('_', '-')} is {value}: it must be above 0 and finite")


def _file(prompts: str) -> Path:
    """The file of prompts; that of a data set is fetched first if need be. Raises AssayError for a named task."""
    task = get_task(prompts)
    if not task.own:
        raise AssayError(
            f"{prompts!r} is a task of assay, whose splits and lengths are looked after: the doctor examines a .jsonl "
            f"or .parquet file, or {DATASET}ID, give one of these"
        )
    return fetch_corpus(task)


def _in_split(row: Row, split: Split) -> Row:
    return dataclasses.replace(row, split=split)


def _rows(request: Request, path: Path) -> list[Row]:
    """The rows of a file under the template. Raises AssayError for columns that are not there or no text."""
    template = request.template or DEFAULT_TEMPLATE
    shown, reference = template_columns(template), request.references or REFERENCE
    if request.responses == reference:
        raise AssayError("--references and --responses name one column: the truth must not be the teacher's word")
    found = read_rows(path, reference, request.responses)
    plain = [row for row in found if row.conversation is None]
    known = {column for row in plain for column in row.columns}
    for column in shown if plain else ():
        if column not in known:
            raise unknown_name(f"column of {str(path)!r}", column, known)
    hidden = {REFERENCE, "split", reference, request.responses}.intersection(shown)
    if hidden:
        raise AssayError(
            f"the template shows {next(c for c in shown if c in hidden)!r}, which the model must not see: take it out"
        )
    return [
        Row(
            row.line,
            *_said(path, row, template),
            row.reference,
            row.responses,
            _own_split(path, row),
            None if row.columns.get("group") is None else str(row.columns["group"]),
        )
        for row in found
    ]


def _own_split(path: Path, row: UserRow) -> Split | None:
    name = row.columns.get("split")
    if name is not None and not (isinstance(name, str) and name in OWN_SPLITS):
        known = ", ".join(OWN_SPLITS)
        raise AssayError(f"{str(path)!r}: line {row.line} has the split {name!r}: it must be one of {known}")
    return None if name is None else OWN_SPLITS[name]


def _said(path: Path, row: UserRow, template: str) -> tuple[str | Conversation, str]:
    if row.conversation is not None:
        return row.conversation, "\n".join(message.content for message in row.conversation)
    text = template.format(**{column: _text(path, row, column) for column in template_columns(template)})
    return text, text


def _text(path: Path, row: UserRow, column: str) -> str:
    value = row.columns.get(column)
    if not isinstance(value, str) or not value.strip():
        raise AssayError(
            f"{str(path)!r}: column {column!r} of line {row.line} is no text, or empty; mend it, or take that line out"
        )
    return value
