"""Who writes the responses of ``assay generate``: a model at hand, or one behind an API."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from assay.answering import Asked, answer, only_model
from assay.config import ModelsConfig, ServerConfig, digest_of
from assay.data.encoding import Encoder
from assay.data.store import response_text
from assay.data.user_rows import UserRow
from assay.errors import AssayError
from assay.models.loading import load_framing, load_model, load_tokenizer
from assay.models.sampling import response_seed
from assay.models.server import Server


@dataclass(frozen=True)
class Generation:
    """What is asked for: ``number`` responses to each prompt by ``model`` (base, folder, hub id, or a server's URL).

    A prompt is left out that is longer than ``max_prompt_tokens``, or has a response that is empty or was cut at
    ``max_response_tokens``: a cut text would teach a student to stop there. ``batch_size`` sequences are decoded at
    once. Of a server, which is given text, tokens are its own, and prompts are not measured.
    """

    model: str
    number: int = 1
    shard_size: int = 10_000
    max_prompt_tokens: int = 256
    max_response_tokens: int = 128
    sampling_temperature: float = 1.0
    seed: int = 0
    chat_template: bool = False
    batch_size: int = 64
    server: ServerConfig = ModelsConfig.server

    def __post_init__(self) -> None:
        counts = (self.number, self.shard_size, self.max_prompt_tokens, self.max_response_tokens, self.batch_size)
        if min(counts) < 1 or not 0 <= self.sampling_temperature < float("inf"):
            raise AssayError("number, sizes and lengths must be 1 or more, and sampling_temperature 0 or more")


class LeftOut(Enum):
    """Why a prompt is left out."""

    TOO_LONG = "too_long"
    CUT = "cut"
    EMPTY = "empty"


Texts = list[str] | LeftOut
"""The responses to a prompt, or why it is left out."""


class TextWriter(Protocol):
    """Whoever writes responses, in a worker process; what it writes to a row depends on its line and text alone."""

    @property
    def digest(self) -> str:
        """Equal digests mean equal responses."""
        ...

    def write(self, rows: Sequence[UserRow]) -> Sequence[Texts]:
        """What becomes of each row, in their order."""
        ...


def open_writer(request: Generation) -> TextWriter:
    """The model that a request names."""
    return ServerWriter(request) if "://" in request.model else ModelWriter(request)


class ModelWriter:
    """A model with the tokenizer beside it."""

    def __init__(self, request: Generation) -> None:
        self._request = request
        self._tokenizer = load_tokenizer(request.model)
        framing = load_framing(request.model, self._tokenizer)
        self._encoder = Encoder(self._tokenizer, framing, request.chat_template)
        eos: Any = self._tokenizer.eos_token_id
        self._model = load_model(request.model, eos_token_id=eos)
        self._model.check_lengths(request.max_prompt_tokens, request.max_response_tokens)
        self.digest = self._model.digest

    def write(self, rows: Sequence[UserRow]) -> list[Texts]:
        """See ``TextWriter``. Prompts of like length are decoded together."""
        request, prompts = self._request, [self._prompt(row) for row in rows]
        fitting = [i for i, ids in enumerate(prompts) if len(ids) <= request.max_prompt_tokens]
        jobs = [(i, n) for i in sorted(fitting, key=lambda i: len(prompts[i])) for n in range(request.number)]
        responses: dict[int, list[tuple[int, ...]]] = {i: [] for i in fitting}
        for start in range(0, len(jobs), request.batch_size):
            part = jobs[start : start + request.batch_size]
            seeds = [response_seed("generate", request.seed, rows[i].line, n) for i, n in part]
            limits = request.max_response_tokens, request.sampling_temperature
            written = self._model.sample([prompts[i] for i, _ in part], seeds, *limits)
            for (i, _), ids in zip(part, written, strict=True):
                responses[i].append(ids)
        return [self._texts(responses[i]) if i in responses else LeftOut.TOO_LONG for i in range(len(rows))]

    def _prompt(self, row: UserRow) -> tuple[int, ...]:
        try:
            return self._encoder.prompt(row.columns["prompt"] if row.conversation is None else row.conversation)
        except AssayError as error:
            raise AssayError(
                f"the prompt of line {row.line} cannot be used: {error}; mend it, or take it out"
            ) from error

    def _texts(self, responses: Sequence[tuple[int, ...]]) -> Texts:
        if any(ids[-1] != self._model.eos_token_id for ids in responses):
            return LeftOut.CUT
        texts = [response_text(self._tokenizer, ids) for ids in responses]
        return texts if all(texts) else LeftOut.EMPTY


class ServerWriter:
    """A model behind an API with /chat/completions, which is given text (``assay.answering``)."""

    def __init__(self, request: Generation) -> None:
        config = request.server
        lengths = request.max_response_tokens, request.sampling_temperature
        self._asked = Asked(request.model, config, request.number, *lengths, request.seed)
        self._server = Server(request.model, config)
        self._name = config.model or only_model(self._server)
        self.digest = digest_of([self._server.url, self._name])

    def write(self, rows: Sequence[UserRow]) -> list[Texts]:
        """See ``TextWriter``. Several requests at a time."""
        placed = [dataclasses.replace(row, id=f"line-{row.line}") for row in rows]  # ids of a stream may be given twice
        ask = functools.partial(answer, self._server, self._name, self._asked)
        found = self._server.each(ask, placed)
        return [LeftOut.CUT if None in texts else [text for text in texts if text] for texts in found]
