"""Conversations, and what a tokenizer's chat template makes of them: which text is the template's, which the user's."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from jinja2 import TemplateError

from assay.errors import AssayError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)
DATE = "26 Jul 2024"
"""What a template is told when it asks for today's date: a run that is resumed tomorrow must have the same prompts.
It is what Llama 3.1's own template writes where it is told none."""


@dataclass(frozen=True)
class Message:
    """One message of a conversation."""

    role: Role
    content: str


Conversation = tuple[Message, ...]


@dataclass(frozen=True)
class Part:
    """A piece of a rendered conversation: the template's own text, or (``own`` False) that of a message."""

    text: str
    own: bool


class ChatTemplate:
    """A tokenizer's chat template. Raises AssayError when there is none."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        text = _text(tokenizer)
        if text is None:
            raise AssayError(
                "the tokenizer has no chat template: set task.chat_template to false, or choose a model that was made "
                "for conversations"
            )
        self.text = text
        # a newline right after a block is no part of what a template writes
        dated = "strftime_now" in self.text
        self._dated = f"{{% macro strftime_now(format) %}}{DATE}{{% endmacro %}}\n{self.text}" if dated else self.text
        self._skeletons: dict[tuple[Role, ...], list[str | int]] = {}

    def render(self, conversation: Conversation) -> list[Part]:
        """The conversation with the prompt for a response, in parts: joined they are what the template gives.

        A template may trim a message and repeat it. One that leaves a message out, or changes its words, is refused
        (AssayError): what is the user's text could no longer be told from what is the template's.
        """
        rendered = self._rendered(conversation)
        skeleton = self.skeleton(tuple(message.role for message in conversation))
        pattern = "".join(
            re.escape(piece)
            if isinstance(piece, str)
            else f"({'|'.join(map(re.escape, _trimmed(conversation[piece].content)))})"
            for piece in skeleton
        )
        found = re.fullmatch(pattern, rendered)
        if found is None:
            raise AssayError(
                "the chat template does more to the text of a message than trim it, so that it cannot be told from "
                "the template's own: leave this prompt out, or set task.chat_template to false"
            )
        texts = iter(found.groups())
        return [Part(piece, True) if isinstance(piece, str) else Part(next(texts), False) for piece in skeleton]

    def skeleton(self, roles: tuple[Role, ...]) -> list[str | int]:
        """What the template writes around messages of these roles: its own text, and the places of the messages."""
        if roles not in self._skeletons:
            mark = uuid.uuid4().hex  # what no message can hold
            marked = tuple(Message(role, f"m{mark}x{place}x") for place, role in enumerate(roles))
            pieces = re.split(f"m{mark}x([0-9]+)x", self._rendered(marked))
            skeleton = [int(piece) if place % 2 else piece for place, piece in enumerate(pieces)]
            for place, role in enumerate(roles):
                if place not in skeleton:
                    raise AssayError(
                        f"the chat template leaves out or rewrites message {place + 1} of {len(roles)}, the {role}'s: "
                        "leave such prompts out, or set task.chat_template to false"
                    )
            self._skeletons[roles] = skeleton
        return self._skeletons[roles]

    def after_answer(self) -> str:
        """What the template writes after an answer of the assistant, as a tuned model has learned to end its turn.

        Raises AssayError when it leaves such an answer out, or cannot render it.
        """
        mark = uuid.uuid4().hex
        rendered = self._rendered((Message("user", "a"), Message("assistant", mark)), asks=False)
        if mark not in rendered:
            raise AssayError(
                "the chat template leaves out the answer of the assistant: "
                "leave such prompts out, or set task.chat_template to false"
            )
        return rendered.rpartition(mark)[2]

    def _rendered(self, conversation: Conversation, asks: bool = True) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [{"role": message.role, "content": message.content} for message in conversation],
                    chat_template=self._dated,
                    add_generation_prompt=asks,
                    tokenize=False,
                )
            )
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
            roles = ", ".join(message.role for message in conversation)
            cause = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise AssayError(
                f"the chat template cannot render messages of {roles}: {cause}; "
                "leave such prompts out, or set task.chat_template to false"
            ) from error


def chat_template_digest(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The first 16 hex digits of SHA-256 over the text of a tokenizer's chat template; None when it has none."""
    text = _text(tokenizer)
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()[:16]


def _text(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The default one, where a tokenizer has several."""
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


def _trimmed(text: str) -> Iterator[str]:
    yield from dict.fromkeys((text, text.strip(), text.lstrip(), text.rstrip(), text.strip("\n"), text.lstrip("\n")))
