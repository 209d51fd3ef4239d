"""Prompts that a program gives: texts, or conversations as lists of messages, with or without references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from assay.data.chat import ROLES, Message, Role
from assay.data.encoding import Encoder
from assay.errors import AssayError
from assay.types import Framing, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Given = str | Sequence[Mapping[str, Any]]
"""A prompt as text, or as messages with ``role`` and ``content``."""


def prompts_of(
    what: str,
    given: Sequence[Given],
    references: Sequence[str | None] | None,
    tokenizer: PreTrainedTokenizerBase,
    framing: Framing,
    *,
    num_prompts: int,
    max_prompt_tokens: int,
    max_response_tokens: int,
    chat_template: bool = False,
) -> list[Prompt]:
    """The first ``num_prompts`` as tokens; messages, and with ``chat_template`` texts too, by the chat template.

    A reference follows its prompt directly: nothing is put between the two. It ends with the end-of-sequence token and
    is cut at ``max_response_tokens``. Text is text: what looks like a special token in it is spelt out. ``what`` names
    the list where it is refused.

    Raises AssayError for an empty list, an empty or too long prompt, references of another number than prompts, and
    messages that cannot be rendered.
    """
    if isinstance(given, str) or not len(given):
        raise AssayError(f"{what} must be a list of texts or of message lists, with at least one")
    if references is not None and len(references) != len(given):
        raise AssayError(
            f"{len(given)} {what} have {len(references)} references: give one for each, None where there is none"
        )
    encoder, chat = Encoder(tokenizer, framing), None
    prompts: list[Prompt] = []
    for number, one in enumerate(given[:num_prompts]):
        where = f"{what}[{number}]"
        if isinstance(one, str) and not one.strip():
            raise AssayError(f"{where} is empty: give it a text, or leave it out")
        if isinstance(one, str) and not chat_template:
            text, token_ids = one, encoder.prompt(one)
        else:
            chat = chat or _chat_encoder(tokenizer, framing, where)
            text, token_ids = _rendered(one, chat, where)
        if len(token_ids) > max_prompt_tokens:
            raise AssayError(
                f"{where} has {len(token_ids)} tokens, more than max_prompt_tokens ({max_prompt_tokens}): raise it, or "
                "leave that prompt out"
            )
        reference = None if references is None else references[number]
        if reference is not None and not reference.strip():
            raise AssayError(f"the reference of {where} is empty: give None where there is none")
        prompts.append(
            Prompt(
                id=f"{what}-{number:06d}",
                text=text,
                token_ids=token_ids,
                reference=reference,
                reference_ids=_reference_ids(reference, encoder)[:max_response_tokens],
            )
        )
    return prompts


def _reference_ids(reference: str | None, encoder: Encoder) -> tuple[int, ...]:
    if reference is None:
        return ()
    eos: Any = encoder.tokenizer.eos_token_id
    return (*encoder.framing.before_reference, *encoder.spell(reference), eos)


def _chat_encoder(tokenizer: PreTrainedTokenizerBase, framing: Framing, where: str) -> Encoder:
    if tokenizer.chat_template is None:
        raise AssayError(
            f"{where} is to be rendered by a chat template, but the tokenizer has none: give texts instead of messages"
        )
    return Encoder(tokenizer, framing, chat_template=True)


def _rendered(given: Given, encoder: Encoder, where: str) -> tuple[str, tuple[int, ...]]:
    assert encoder.chat is not None
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
    for message in messages:
        if message.get("role") not in ROLES or not isinstance(message.get("content"), str):
            raise AssayError(f"a message of {where} needs a role ({', '.join(ROLES)}) and its content as text")
    conversation = tuple(Message(cast(Role, message["role"]), message["content"]) for message in messages)
    try:
        text = "".join(part.text for part in encoder.chat.render(conversation))
        return text, encoder.prompt(conversation)
    except AssayError as error:
        raise AssayError(f"{where} cannot be used: {error}") from error
