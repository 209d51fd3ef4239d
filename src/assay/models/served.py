"""A teacher behind an OpenAI-compatible server that scores given tokens, such as vLLM."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from assay.config import ServerConfig, digest_of
from assay.errors import AssayError
from assay.models.server import Server
from assay.types import Batch, TopK

_TOLERANCE = 1e-3
"""What rounding may add to a probability."""

_SERVERS_MINUS_INFINITY = -9999.0
"""JSON has no −∞: vLLM writes this."""

_TEXTS = (
    "The quick brown fox jumps over 13 lazy dogs.",
    "  indented\n\n\ttabs, 3.14159 and “quotes” – naïve façade",
    "def f(x):\n    return {x: [1, 2]}  # 100%",
    "Ωμέγα 漢字 🙂",
)
_TEXT_ONLY = "distil from its text alone (models.teacher null, its responses in a column task.responses)"

_SPREAD_TOKENS = 96
_TOKENS_OF_A_TEXT = 8


class ServedModel:
    """The model that a server calls ``config.model``, or its only one: it samples, and lists its likeliest tokens.

    ``num_top`` is K, ``vocab_size`` that of the tokenizer, which is the student's: ids go both ways, never text.
    Building one asks the server for its models, compares its tokenizer with ours on texts that touch all of the
    vocabulary, and has it score one token. Raises AssayError when it is out of reach, has no such model, has another
    tokenizer, or cannot score. Answers are checked: an AssayError rather than a wrong number.
    """

    def __init__(self, url: str, tokenizer: PreTrainedTokenizerBase, config: ServerConfig) -> None:
        self._server = Server(url, config)
        self._model, self.max_context_tokens = self._find_model(config.model)
        self.name = f"{self._model} at {self._server.url}"
        eos: Any = tokenizer.eos_token_id
        self.eos_token_id: int = eos
        self._vocabulary: dict[str, int] = tokenizer.get_vocab()
        self.vocab_size = max(self._vocabulary.values()) + 1
        self.num_top = min(config.top_k, self.vocab_size)
        self._mass_is_told = False
        self._check_tokenizer(tokenizer)
        self._score((self.vocab_size - 1,), (self.eos_token_id,))

    @property
    def digest(self) -> str:
        """A hash of the served model's name, of the tokenizer, and of K; where the server is does not enter.

        The server's weights do not enter either: nothing that a server says can prove them.
        """
        tokenizer = digest_of([sorted(self._vocabulary.items()), self.eos_token_id])
        return digest_of({"model": self._model, "tokenizer": tokenizer, "top_k": self.num_top})

    def check_lengths(self, num_prompt_tokens: int, num_response_tokens: int) -> None:
        """Raises AssayError when prompt, response and the one token that scoring adds are beyond the context.

        Where the server does not state its context, it is left to the server to refuse.
        """
        needed = num_prompt_tokens + num_response_tokens + 1
        if self.max_context_tokens is not None and needed > self.max_context_tokens:
            raise AssayError(
                f"a prompt with its response needs {needed} tokens (one is added to score them), but {self.name} has a "
                f"context of {self.max_context_tokens}: lower task.max_prompt_tokens or task.max_response_tokens, or "
                "serve it with a larger --max-model-len"
            )

    def evaluating(self) -> AbstractContextManager[None]:
        """Nothing to switch: what is served does not train."""
        return nullcontext()

    def sample(
        self,
        prompt_ids: Sequence[tuple[int, ...]],
        seeds: Sequence[int],
        max_response_tokens: int,
        sampling_temperature: float = 1.0,
    ) -> list[tuple[int, ...]]:
        """One response for each prompt, drawn by the server at ``sampling_temperature`` (0 = greedy).

        Each response is a request of its own with its own seed, so that row i depends on prompt_ids[i] and seeds[i]
        alone (up to the server's float rounding). It ends with our end-of-sequence token, whatever the server's is.
        Nothing is cut from the law: the server's defaults for top-p, top-k and penalties are overruled.
        """
        self._check_sequences(prompt_ids, [max_response_tokens] * len(prompt_ids))

        def response(job: tuple[tuple[int, ...], int]) -> tuple[int, ...]:
            return self._respond(*job, max_response_tokens, sampling_temperature)

        return self._server.each(response, zip(prompt_ids, seeds, strict=True))

    def top_k(self, batch: Batch) -> TopK:
        """The server's K likeliest tokens at every response token, and the response's own token where it is no such.

        Float32 on the CPU, with min(K + 1, V) columns, likeliest first; a row whose own token is among the K repeats
        its first token with −∞. The tail is log(1 − Σ listed), the difference in float64 and not below 0; nothing is
        in it when K covers the vocabulary. The mass of the first batch's listed tokens is told on stderr, once.
        """
        self._check_sequences(batch.prompt_ids, batch.lengths)
        pairs = zip(batch.prompt_ids, batch.response_ids, strict=True)
        token_ids, log_p = zip(*self._server.each(lambda pair: self._score(*pair), pairs), strict=True)
        token_ids_NK, log_p_NK = np.concatenate(token_ids), np.concatenate(log_p)
        mass_N = np.exp(log_p_NK).sum(axis=1)
        self._tell_mass(mass_N)
        tail_N = np.clip(1.0 - mass_N, 0.0, None)
        if self.num_top == self.vocab_size:
            tail_N[:] = 0.0
        with np.errstate(divide="ignore"):
            log_tail_N = np.log(tail_N)
        return TopK(
            torch.from_numpy(token_ids_NK), torch.from_numpy(log_p_NK).float(), torch.from_numpy(log_tail_N).float()
        )

    def _find_model(self, wanted: str | None) -> tuple[str, int | None]:
        """The name of the model to ask for, and its context length if the server states it."""
        answer = self._server.get("/models", max_retries=0)
        entries = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(entries, list) or not all(
            isinstance(e, dict) and isinstance(e.get("id"), str) for e in entries
        ):
            raise AssayError(f"{self._server.url}/models lists no models: give a URL that ends in /v1")
        served = {entry["id"]: entry.get("max_model_len") for entry in entries}
        if wanted is None and len(served) != 1:
            raise AssayError(
                f"the server at {self._server.url} has {len(served)} models ({', '.join(served)}): name one in "
                "models.server.model"
            )
        name = next(iter(served)) if wanted is None else wanted
        if name not in served:
            raise AssayError(
                f"the server at {self._server.url} has no model {name!r} (it has {', '.join(served) or 'none'}): name "
                "one in models.server.model"
            )
        return name, served[name] if isinstance(served[name], int) else None

    def _check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Compares ids of texts, which the server lists when it scores them; the first id of a text goes unseen."""
        compared = False
        for text in (*_TEXTS, *_vocabulary_texts(tokenizer, self._vocabulary)):
            ours = tokenizer.encode(text, add_special_tokens=False)
            if len(ours) < 2 or (self.max_context_tokens is not None and len(ours) >= self.max_context_tokens):
                continue
            choice = self._complete(text, max_tokens=1, prompt_logprobs=0, add_special_tokens=False)
            theirs = [token for row in self._scored_rows(choice)[1:] for token in self._log_p_by_token(row)]
            if theirs != ours[1:]:
                raise AssayError(
                    f"the tokenizer of {self.name} is not the student's: {text[:60]!r} begins with ids "
                    f"{theirs[:8]} there and {ours[1:9]} here (after the first): exact divergences need one tokenizer; "
                    f"choose a student of the served model's family, or {_TEXT_ONLY}"
                )
            compared = True
        if not compared:
            raise AssayError(
                f"{self.name} has a context of {self.max_context_tokens}: no text fits, to compare tokenizers; "
                "serve it with a larger --max-model-len"
            )

    def _respond(
        self, prompt: tuple[int, ...], seed: int, max_response_tokens: int, sampling_temperature: float
    ) -> tuple[int, ...]:
        choice = self._complete(
            prompt,
            max_tokens=max_response_tokens,
            temperature=sampling_temperature,
            seed=seed % 2**63,  # servers take signed integers
            ignore_eos=True,
            stop_token_ids=[self.eos_token_id],
            logprobs=0,
            return_tokens_as_token_ids=True,
            return_token_ids=True,
        )
        ids = _sampled_ids(choice)
        if ids is None:
            raise AssayError(
                f"{self.name} samples text without token ids, and text cannot be turned back into the same tokens: "
                f"serve the teacher with vLLM, or {_TEXT_ONLY}"
            )
        if not 0 < len(ids) <= max_response_tokens or not all(0 <= i < self.vocab_size for i in ids):
            raise AssayError(
                f"{self.name} sampled {len(ids)} tokens where 1 to {max_response_tokens} were asked for, or ids beyond "
                f"the tokenizer's {self.vocab_size}: its answer cannot be used"
                f"; serve the teacher with vLLM, or {_TEXT_ONLY}"
            )
        if self.eos_token_id in ids[:-1] or (ids[-1] != self.eos_token_id and len(ids) < max_response_tokens):
            raise AssayError(
                f"{self.name} ended a response after {len(ids)} tokens, which is neither at its end-of-sequence token "
                f"{self.eos_token_id} nor at the limit of {max_response_tokens}: it does not heed stop_token_ids"
                f"; serve the teacher with vLLM, or {_TEXT_ONLY}"
            )
        return tuple(ids)

    def _score(self, prompt: tuple[int, ...], response: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """[T, min(K + 1, V)] listed ids and their log-probabilities (float64) at the tokens of one response."""
        choice = self._complete((*prompt, *response), max_tokens=1, prompt_logprobs=self.num_top)
        rows = self._scored_rows(choice)
        if len(rows) != len(prompt) + len(response):
            raise AssayError(
                f"{self.name} scored {len(rows)} positions where {len(prompt) + len(response)} were asked for: its "
                "answer cannot be used"
            )
        width = min(self.num_top + 1, self.vocab_size)
        token_ids_TK = np.empty((len(response), width), dtype=np.int64)
        log_p_TK = np.full((len(response), width), -math.inf)
        for t, (row, own) in enumerate(zip(rows[len(prompt) :], response, strict=True)):
            listed = self._listed(row, own)
            token_ids_TK[t] = listed[0][0]
            token_ids_TK[t, : len(listed)], log_p_TK[t, : len(listed)] = zip(*listed, strict=True)
        return token_ids_TK, log_p_TK

    def _listed(self, row: Any, own: int) -> list[tuple[int, float]]:
        """The listed tokens of one position, likeliest first; AssayError when they do not answer our request."""
        log_p = self._log_p_by_token(row)
        others = len(log_p.keys() - {own})
        if own not in log_p or not self.num_top <= len(log_p) or others > self.num_top:
            raise AssayError(
                f"{self.name} lists {len(log_p)} tokens where its {self.num_top} likeliest and the scored one were "
                "asked for: its answer cannot be used (is models.server.top_k more than it gives?)"
            )
        mass = math.fsum(map(math.exp, log_p.values()))
        if mass > 1 + _TOLERANCE:
            raise AssayError(
                f"{self.name} gives its listed tokens a mass of {mass:.4f}: these are no probabilities"
                f"; serve the teacher with vLLM, or {_TEXT_ONLY}"
            )
        if self.num_top == self.vocab_size and mass < 1 - _TOLERANCE:
            raise AssayError(
                f"{self.name} gives the tokenizer's {self.vocab_size} tokens a mass of {mass:.4f}: it predicts tokens "
                "that the tokenizer has not; lower models.server.top_k"
            )
        return sorted(log_p.items(), key=lambda entry: (-entry[1], entry[0]))

    def _log_p_by_token(self, row: Any) -> dict[int, float]:
        try:
            log_p = {int(token): float(entry["logprob"]) for token, entry in row.items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise AssayError(
                f"{self.name} lists no tokens with their log-probabilities at a position"
                f"; serve the teacher with vLLM, or {_TEXT_ONLY}"
            ) from error
        for token, value in log_p.items():
            if not 0 <= token < self.vocab_size:
                raise AssayError(
                    f"{self.name} lists token {token}, but the tokenizer has ids up to {self.vocab_size - 1}: its "
                    "vocabulary is padded or another one; lower models.server.top_k, or choose another student"
                )
            if not value <= _TOLERANCE:
                raise AssayError(
                    f"{self.name} gives token {token} the log-probability {value:g}: it must not be above 0"
                    f"; serve the teacher with vLLM, or {_TEXT_ONLY}"
                )
        return {
            token: -math.inf if value <= _SERVERS_MINUS_INFINITY else min(value, 0.0) for token, value in log_p.items()
        }

    def _scored_rows(self, choice: dict[str, Any]) -> list[Any]:
        rows = choice.get("prompt_logprobs")
        if not isinstance(rows, list):
            raise AssayError(
                f"{self.name} answers without prompt_logprobs, so it cannot score given responses: serve the teacher "
                f"with vLLM, or {_TEXT_ONLY}"
            )
        return rows

    def _complete(self, prompt: str | tuple[int, ...], **settings: Any) -> dict[str, Any]:
        """The one choice that answers a request for a completion, with nothing cut from the law."""
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "n": 1,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }
        advice = ""
        if "prompt_logprobs" in settings:
            advice = "scoring needs vLLM, which serves as a writer only what names its 'architectures' in config.json"
        if settings.get("prompt_logprobs"):
            advice = f"scoring needs vLLM, with --max-logprobs {self.num_top} or more, or a lower models.server.top_k"
        answer = self._server.post("/completions", body | settings, advice)
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            raise AssayError(
                f"{self.name} answers without the one choice that was asked for: its answer cannot be used"
                f"; serve the teacher with vLLM, or {_TEXT_ONLY}"
            )
        return choices[0]

    def _check_sequences(self, prompt_ids: Sequence[tuple[int, ...]], lengths: Sequence[int]) -> None:
        if not all(prompt_ids) or not all(lengths):
            raise AssayError("a prompt or a response is empty: every sequence needs at least one token of each")
        for prompt, length in {(len(p), length) for p, length in zip(prompt_ids, lengths, strict=True)}:
            self.check_lengths(prompt, length)

    def _tell_mass(self, mass_N: np.ndarray) -> None:
        if self._mass_is_told:
            return
        self._mass_is_told = True
        print(
            f"assay: the {self.num_top} tokens that {self.name} lists hold {mass_N.mean():.2%} of its mass on average "
            f"({np.quantile(mass_N, 0.05):.2%} at the 5 % quantile) over the {len(mass_N)} response tokens of the "
            "first batch; the rest, if any, is one bucket",
            file=sys.stderr,
        )


def _vocabulary_texts(tokenizer: PreTrainedTokenizerBase, vocabulary: dict[str, int]) -> list[str]:
    """Texts made of tokens from all over the vocabulary, and of the special ones."""
    ids = sorted(vocabulary.values())
    spread = sorted({ids[round(i * (len(ids) - 1) / _SPREAD_TOKENS)] for i in range(_SPREAD_TOKENS + 1)})
    parts = [spread[start : start + _TOKENS_OF_A_TEXT] for start in range(0, len(spread), _TOKENS_OF_A_TEXT)]
    return [str(tokenizer.decode(part)) for part in parts] + ["a" + " a".join(tokenizer.all_special_tokens)]


def _sampled_ids(choice: dict[str, Any]) -> list[int] | None:
    """The ids of a sampled response, from either place where servers put them; None where there are none."""
    ids: Any = choice.get("token_ids")
    if ids is None:
        logprobs = choice.get("logprobs")
        names = logprobs.get("tokens") if isinstance(logprobs, dict) else None
        found = [re.fullmatch(r"token_id:([0-9]+)", str(name)) for name in names] if isinstance(names, list) else [None]
        ids = [int(match[1]) if match else None for match in found]
    return ids if isinstance(ids, list) and all(type(i) is int for i in ids) else None
