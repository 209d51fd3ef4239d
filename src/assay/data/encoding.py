"""How text becomes tokens: framed by special tokens or rendered by a chat template; text itself never gives any."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from assay.data.chat import ChatTemplate, Conversation, Message, Part, Role
from assay.errors import AssayError
from assay.types import Framing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_FRAMING = Framing()
_MARK = re.compile(r"(?=.*\w)[^\w\s].*[^\w\s]", re.DOTALL)
"""A word between two signs, as "<think>" and "[INST]"; other added tokens are ordinary vocabulary."""


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Text is text: what looks like a special token is spelt out."""
    return Encoder(tokenizer).spell(text)


class Encoder:
    """How a run's text becomes tokens.

    Without a chat template ``framing`` holds the special tokens around a prompt, and a response follows it after a
    space. With one the template alone gives the special tokens of a prompt, and nothing separates the response. In
    both, what looks like a special token in a text is spelt out as text.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, framing: Framing = NO_FRAMING, chat_template: bool = False
    ) -> None:
        self.tokenizer, self.framing = tokenizer, framing
        self.chat = ChatTemplate(tokenizer) if chat_template else None
        self._written: dict[tuple[Role, ...], list[int]] = {}

    def prompt(self, said: str | Conversation) -> tuple[int, ...]:
        """The tokens of a prompt; with a chat template a text is the one message of a user.

        Raises AssayError for a conversation without a chat template, and for what the template cannot render.
        """
        if self.chat is None:
            if not isinstance(said, str):
                raise AssayError("it is a conversation: set task.chat_template (--task.chat-template)")
            return (*self.framing.before, *self.spell(said), *self.framing.after)
        return self._chat_ids(self.chat, (Message("user", said),) if isinstance(said, str) else said)

    def answer(self, text: str) -> tuple[int, ...]:
        """The tokens of a response that a person or another model wrote, with the end-of-sequence token."""
        separated = f" {text}" if self.chat is None else text
        return (*self.framing.before_reference, *self.spell(separated), int(self.tokenizer.eos_token_id))  # type: ignore[arg-type]

    def spell(self, text: str) -> list[int]:
        """The tokens of a text; none of them is special."""
        return self._spelt_out(text, self.special_ids)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The special tokens; the one for unknown text is only among them if it is another one as well."""
        tokenizer = self.tokenizer
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        others = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        everything = special.union(tokenizer.all_special_ids)
        return frozenset(i for i in everything if i != tokenizer.unk_token_id or i in others)

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """What only a chat template may write: special tokens, and added tokens in its text that look like marks.

        Some tokenizers do not call the marks of their own template special ("<｜User｜>" of DeepSeek).
        """
        assert self.chat is not None
        return self.special_ids | {
            i
            for i, token in self.tokenizer.added_tokens_decoder.items()
            if token.content in self.chat.text and _MARK.fullmatch(token.content.strip())
        }

    @cached_property
    def _control_text(self) -> re.Pattern[str]:
        return _any_of(map(self._content, self.control_ids))

    def _chat_ids(self, chat: ChatTemplate, conversation: Conversation) -> tuple[int, ...]:
        """The ids of ``apply_chat_template``, unless a message holds what looks like a control token.

        Then the text between the template's own control tokens is tokenised by itself. Either way the control tokens
        are, one by one, those of the same conversation with harmless words: that is checked.
        """
        parts = chat.render(conversation)
        roles: tuple[Role, ...] = tuple(message.role for message in conversation)
        if roles not in self._written:
            harmless = "".join(piece if isinstance(piece, str) else "a" for piece in chat.skeleton(roles))
            self._written[roles] = self._control(self._raw(harmless))
        written = self._written[roles]
        if not any(self._control_text.search(part.text) for part in parts if not part.own):
            ids = self._raw("".join(part.text for part in parts))
            if self._control(ids) == written:
                return tuple(ids)
        ids = self._in_pieces(parts, written)
        if self._control(ids) != written:
            raise AssayError(
                "its text cannot be told from what only the chat template may write: leave this prompt out"
            )
        return tuple(ids)

    def _in_pieces(self, parts: Sequence[Part], written: Iterable[int]) -> list[int]:
        """The template's own control tokens by their ids, and all text between two of them spelt out at once."""
        id_of = {self._content(i): i for i in written}
        own = _any_of(id_of)
        pieces: list[str] = [""]  # text and control token in turn
        for part in parts:
            found = own.split(part.text) if part.own else [part.text]
            pieces[-1] += found[0]
            pieces += found[1:]
        ids: list[int] = []
        for place, piece in enumerate(pieces):
            if place % 2:
                ids.append(id_of[piece])
            elif piece:
                ids += self._spelt_out(piece, self.control_ids, continued=bool(ids))
        return ids

    def _spelt_out(self, text: str, forbidden: frozenset[int], continued: bool = False) -> list[int]:
        """The tokens of a text without the forbidden ones, whose spelling is cut in two where it occurs.

        A tokenizer is asked not to see special tokens in the text; but some find added tokens all the same, and those
        that search their whole vocabulary (Unigram, as T5's) special ones too.
        """
        ids = self._mid(text) if continued else self._plain(text)
        if forbidden.isdisjoint(ids):
            return ids
        for content in sorted(map(self._content, forbidden.intersection(ids)), key=len, reverse=True):
            if content in text and len(content) > 1:
                first, *others = re.split(f"(?<={re.escape(content[0])})(?={re.escape(content[1:])})", text)
                return [
                    *self._spelt_out(first, forbidden, continued),
                    *(i for piece in others for i in self._spelt_out(piece, forbidden, continued=True)),
                ]
        raise AssayError(f"its text {text[:40]!r} cannot be told from a special token: leave this prompt out")

    def _mid(self, text: str) -> list[int]:
        """The tokens of a text that follows other text: without the space that SentencePiece puts before a text."""
        newline, ids = self._plain("\n"), self._plain(f"\n{text}")
        return ids[len(newline) :] if ids[: len(newline)] == newline else self._plain(text)

    def _plain(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def _raw(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=False)

    def _control(self, ids: Iterable[int]) -> list[int]:
        return [i for i in ids if i in self.control_ids]

    def _content(self, token_id: int) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(token_id))


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches one of the texts, the longest where one is part of another, as a group."""
    return re.compile(f"({'|'.join(map(re.escape, sorted(texts, key=len, reverse=True))) or '(?!)'})")
