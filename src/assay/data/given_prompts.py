"""Prompts that a program gives: texts, or conversations as lists of messages, with or without references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from assay.data.tasks import encode
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
    is cut at ``max_response_tokens``. Text is text: what looks like a special token in it is spelt out, but in
    messages, which the template renders. ``what`` names the list where it is refused.

    Raises AssayError for an empty list, an empty or too long prompt, references of another number than prompts, and
    messages that cannot be rendered.
    """
    if isinstance(given, str) or not len(given):
        raise AssayError(f"{what} must be a list of texts or of message lists, with at least one")
    if references is not None and len(references) != len(given):
        raise AssayError(
            f"{len(given)} {what} have {len(references)} references: give one for each, None where there is none"
        )
    prompts: list[Prompt] = []
    for number, one in enumerate(given[:num_prompts]):
        where = f"{what}[{number}]"
        text = one if isinstance(one, str) and not chat_template else _rendered(one, tokenizer, where)
        if not isinstance(one, str) or chat_template:
            token_ids = tuple(tokenizer.encode(text, add_special_tokens=False))
        else:
            token_ids = (*framing.before, *encode(tokenizer, text), *framing.after)
        if not text.strip():
            raise AssayError(f"{where} is empty")
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
                reference_ids=_reference_ids(reference, tokenizer, framing)[:max_response_tokens],
            )
        )
    return prompts


def _reference_ids(reference: str | None, tokenizer: PreTrainedTokenizerBase, framing: Framing) -> tuple[int, ...]:
    if reference is None:
        return ()
    eos: Any = tokenizer.eos_token_id
    return (*framing.before_reference, *encode(tokenizer, reference), eos)


def _rendered(given: Given, tokenizer: PreTrainedTokenizerBase, where: str) -> str:
    if tokenizer.chat_template is None:
        raise AssayError(
            f"{where} is to be rendered by a chat template, but the tokenizer has none: give texts instead of messages"
        )
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else [dict(each) for each in given]
    try:
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    except (TemplateError, TypeError, ValueError, LookupError) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise AssayError(f"the chat template cannot render {where}: {cause}") from error
