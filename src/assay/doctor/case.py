"""What is examined: two models, the prompts of a file, and everything that several checks need of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from assay.data.chat import ChatTemplate, Conversation, Message
from assay.data.encoding import Encoder
from assay.data.splitting import assign_splits, row_keys, without_oracle
from assay.data.user_rows import REFERENCE, UserRow, read_rows
from assay.data.user_text import DEFAULT_TEMPLATE
from assay.doctor.sides import Side, read_side
from assay.errors import AssayError, unknown_name
from assay.models.pretrained import sample_responses
from assay.models.sampling import response_seed
from assay.types import Batch, Framing
from assay.validation import template_columns

MEASURED_PROMPTS = 16
"""Prompts that the models themselves are tried on."""

TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class Request:
    """What the user has asked for.

    ``max_prompt_tokens`` None: every prompt is kept. ``batch_size`` and ``passes`` (over the prompts) are those of the
    run that is forecast.
    """

    teacher: str
    student: str
    prompts: Path
    held_out: Path | None = None
    reference: str | None = None
    template: str | None = None
    chat_template: bool = False
    max_prompt_tokens: int | None = None
    max_response_tokens: int = 128
    batch_size: int = 64
    passes: float = 1.0
    device: str = "cpu"


@dataclass(frozen=True)
class Row:
    """A prompt as the template makes it, or a conversation; ``text`` is all of its words.

    ``split`` is the file's own, if it brings one.
    """

    line: int
    said: str | Conversation
    text: str
    reference: str | None
    split: str | None
    group: str | None


@dataclass(frozen=True)
class Case:
    """A request with what its files hold; weights are loaded when a check first asks for them."""

    request: Request
    teacher: Side
    student: Side
    rows: tuple[Row, ...]

    @property
    def sides(self) -> tuple[Side, Side]:
        """Teacher and student."""
        return self.teacher, self.student

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The one of a run: the teacher's, or the student's where the teacher ships none."""
        tokenizer = self.teacher.tokenizer or self.student.tokenizer
        if tokenizer is None:
            raise AssayError("neither model ships a tokenizer: put its files into the teacher's folder")
        return tokenizer

    @cached_property
    def num_ids(self) -> int:
        """Token ids that the tokenizer can give, those between its largest and 0 included."""
        return max(self.tokenizer.get_vocab().values()) + 1

    @cached_property
    def framing(self) -> Framing:
        """The special tokens around a plain prompt, and before a reference."""
        return self.teacher.framing(self.tokenizer)

    @cached_property
    def encoder(self) -> Encoder:
        """How a run makes tokens of text."""
        return Encoder(self.tokenizer, self.framing, self.request.chat_template)

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
        limit = self.request.max_prompt_tokens
        return [i for i, ids in enumerate(self.all_prompt_ids) if limit is None or len(ids) <= limit]

    @cached_property
    def max_prompt_tokens(self) -> int:
        """The longest prompt that is kept; 0 without any."""
        return max((len(self.all_prompt_ids[i]) for i in self.kept), default=0)

    @cached_property
    def measured(self) -> list[int]:
        """The rows that the models are tried on: evenly spread over those that are kept and fit the contexts."""
        fitting = [i for i in self.kept if self.fits(i)]
        step = max(1, len(fitting) // MEASURED_PROMPTS)
        return fitting[::step][:MEASURED_PROMPTS]

    @cached_property
    def teacher_pairs(self) -> Batch:
        """The measured prompts, each with a response that the teacher has sampled from its law (``cut``)."""
        model, prompts = self.teacher.model, [self.all_prompt_ids[i] for i in self.measured]
        seeds = [response_seed("doctor", i) for i in self.measured]
        with torch.no_grad(), model.evaluating():
            responses = sample_responses(
                model,
                lambda hidden_AH: self.cut(model.head(hidden_AH)),
                prompts,
                seeds,
                self.request.max_response_tokens,
                sampling_temperature=1.0,
            )
        return Batch(prompts, responses)

    def cut(self, log_p_NV: Tensor) -> Tensor:
        """A law as a run compares it: over the tokenizer's ids where the models pad their output unlike."""
        if self.teacher.vocab_size == self.student.vocab_size:
            return log_p_NV
        return log_p_NV[:, : self.num_ids].log_softmax(dim=-1)

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
    def splits(self) -> list[str]:
        """The split of every row: the user's own, else the one that assay would choose."""
        if self.own_splits:
            return [str(row.split) for row in self.rows]
        chosen, _ = assign_splits([row_keys(row.text, row.reference, row.group) for row in self.rows])
        return [without_oracle(split) for split in chosen]

    def fits(self, i: int) -> bool:
        """Whether prompt ``i`` with the longest response is within both contexts."""
        num_tokens, response = len(self.all_prompt_ids[i]), self.request.max_response_tokens
        for side in self.sides:
            limit = side.context_tokens
            longest = max(num_tokens, response) if side.config.is_encoder_decoder else num_tokens + response
            if limit is not None and longest > limit:
                return False
        return True


def read_case(request: Request) -> Case:
    """The request with its models' descriptions and its prompts. Raises AssayError for what cannot be read."""
    _check_request(request)
    rows = _rows(request, request.prompts)
    if request.held_out is not None:
        held_out = _rows(request, request.held_out)
        rows = [_in_split(row, row.split or "distillation") for row in rows]
        rows += [_in_split(row, "held_out") for row in held_out]
    elif 0 < sum(row.split is not None for row in rows) < len(rows):
        line = next(row.line for row in rows if row.split is None)
        raise AssayError(f"{str(request.prompts)!r}: line {line} has no 'split', but others have: give every line one")
    teacher, student = (read_side(role, getattr(request, role), request.device) for role in ("teacher", "student"))
    case = Case(request, teacher, student, tuple(rows))
    if request.chat_template and not (case.tokenizer is teacher.tokenizer and teacher.chat_template):
        raise AssayError(f"the tokenizer of {request.teacher!r} has no chat template: leave --chat-template out")
    return case


def _check_request(request: Request) -> None:
    for name in ("max_prompt_tokens", "max_response_tokens", "batch_size", "passes"):
        value = getattr(request, name)
        if value is not None and not 0 < value < float("inf"):
            raise AssayError(f"--{name.replace('_', '-')} is {value}: it must be above 0 and finite")


def _in_split(row: Row, split: str) -> Row:
    return dataclasses.replace(row, split=split)


def _rows(request: Request, path: Path) -> list[Row]:
    """The rows of a file under the template. Raises AssayError for columns that are not there or no text."""
    template = request.template or DEFAULT_TEMPLATE
    shown, reference = template_columns(template), request.reference or REFERENCE
    found = read_rows(path, reference)
    plain = [row for row in found if row.conversation is None]
    known = {column for row in plain for column in row.columns}
    for column in shown if plain else ():
        if column not in known:
            raise unknown_name(f"column of {str(path)!r}", column, known)
    hidden = {REFERENCE, "split", reference}.intersection(shown)
    if hidden:
        raise AssayError(f"the template shows {min(hidden)!r}, which the model must not see: take it out")
    return [
        Row(
            row.line,
            *_said(path, row, template),
            row.reference,
            None if row.columns.get("split") is None else str(row.columns["split"]),
            None if row.columns.get("group") is None else str(row.columns["group"]),
        )
        for row in found
    ]


def _said(path: Path, row: UserRow, template: str) -> tuple[str | Conversation, str]:
    if row.conversation is not None:
        return row.conversation, "\n".join(message.content for message in row.conversation)
    text = template.format(**{column: _text(path, row, column) for column in template_columns(template)})
    return text, text


def _text(path: Path, row: UserRow, column: str) -> str:
    value = row.columns.get(column)
    if not isinstance(value, str) or not value.strip():
        raise AssayError(f"{str(path)!r}: column {column!r} of line {row.line} is no text, or empty")
    return value
