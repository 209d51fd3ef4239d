"""The HTTP side of a served teacher: requests to an OpenAI-compatible server, tried again where that can help."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from assay.config import ServerConfig
from assay.errors import AssayError
from assay.validation import check_server_url

API_KEY_VARIABLE = "ASSAY_SERVER_API_KEY"
"""The environment variable with the server's key: it is in no config, so it gets into no file of a run."""

_FIRST_DELAY_SECONDS = 0.5
_LONGEST_DELAY_SECONDS = 30.0
_LONGEST_QUOTE = 300

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Server:
    """An OpenAI-compatible server, at a URL that ends in /v1 as a rule.

    Lost connections, timeouts, status 429 and 5xx are tried again, ``max_retries`` times at most, after
    min(30, 0.5 · 2ⁿ) seconds times a random number between ½ and 1½, or after what the server asks for
    (``Retry-After``, 30 seconds at most). Whatever else is no answer is an AssayError of one sentence. The key goes to
    this URL alone (redirects are not followed), and is struck out of what the server says.
    """

    def __init__(self, url: str, config: ServerConfig) -> None:
        check_server_url(url)
        self.url = url.rstrip("/")
        self._config = config
        self._key = _api_key()
        self._jitter = random.SystemRandom()  # no draw from the generators of the run
        self._client = _client(self._key, config)

    def get(self, path: str, max_retries: int) -> Any:
        """The JSON value at a path under the URL."""
        return self._ask("GET", path, None, max_retries)

    def post(self, path: str, body: dict[str, Any], advice: str = "") -> Any:
        """The JSON value that answers ``body``; ``advice`` ends the sentence when the server refuses the request."""
        return self._ask("POST", path, body, self._config.max_retries, advice)

    def each(self, function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
        """``function`` of every item, in their order; ``concurrency`` of them at a time. The first error ends it."""
        with ThreadPoolExecutor(self._config.concurrency) as pool:
            return list(pool.map(function, items))

    def _ask(self, method: str, path: str, body: dict[str, Any] | None, max_retries: int, advice: str = "") -> Any:
        import httpx2

        problem = ""
        for attempt in range(max_retries + 1):
            asked_delay_seconds = None
            try:
                response = self._client.request(method, self.url + path, json=body)
            except httpx2.RequestError as error:
                problem = self._quoted(str(error)) or type(error).__name__
            else:
                if response.status_code != 429 and response.status_code < 500:
                    return self._value(response, path, advice)
                problem = f"status {response.status_code}: {self._said(response)}"
                asked_delay_seconds = _retry_after_seconds(response)
            if attempt < max_retries:
                time.sleep(self._delay_seconds(attempt, asked_delay_seconds))
        tries = "1 try" if max_retries == 0 else f"{max_retries + 1} tries"
        raise AssayError(
            f"the server at {self.url} gave no answer in {tries} ({problem}): see that it runs and is reachable, or "
            "raise models.server.timeout_seconds or models.server.max_retries"
        )

    def _value(self, response: Any, path: str, advice: str) -> Any:
        status = response.status_code
        if status in (401, 403):
            if self._key:
                raise AssayError(
                    f"the server at {self.url} refuses the key in the environment variable {API_KEY_VARIABLE}: "
                    "set another"
                )
            raise AssayError(
                f"the server at {self.url} wants a key: put it into the environment variable {API_KEY_VARIABLE}"
            )
        if status != 200:
            raise AssayError(
                f"the server at {self.url} refuses {path} with status {status}: {self._said(response)}"
                + (f" ({advice})" if advice else "; see what it says in its own log")
            )
        try:
            return response.json()
        except (ValueError, RecursionError) as error:
            raise AssayError(
                f"the server at {self.url} answers {path} with what is not JSON (such as "
                f"{self._quoted(response.text[-40:])!r} at its end): it is not OpenAI-compatible, or its answer was "
                "cut; give the URL of an OpenAI-compatible API, which ends in /v1"
            ) from error

    def _said(self, response: Any) -> str:
        """The server's own words about an error, on one line."""
        try:
            value = response.json()
        except (ValueError, RecursionError):
            value = None
        error = value.get("error", value) if isinstance(value, dict) else None
        message = error.get("message") if isinstance(error, dict) else None
        return self._quoted(message if isinstance(message, str) else response.text) or "no reason given"

    def _quoted(self, text: str) -> str:
        text = text.replace(self._key, "[key]") if self._key else text
        return " ".join(text.split())[:_LONGEST_QUOTE]

    def _delay_seconds(self, attempt: int, asked_seconds: float | None) -> float:
        if asked_seconds is not None:
            return min(_LONGEST_DELAY_SECONDS, asked_seconds)
        return min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2**attempt) * self._jitter.uniform(0.5, 1.5)


def _client(key: str, config: ServerConfig) -> Any:
    try:
        import httpx2
    except ImportError as error:
        raise AssayError("a served teacher needs the library httpx2: pip install 'assay[server]'") from error
    return httpx2.Client(
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=config.timeout_seconds,
        limits=httpx2.Limits(max_connections=config.concurrency),
        follow_redirects=False,
    )


def _api_key() -> str:
    key = os.environ.get(API_KEY_VARIABLE, "").strip()
    if not all("!" <= letter <= "~" for letter in key):
        raise AssayError(
            f"the environment variable {API_KEY_VARIABLE} holds what no key can: spaces or odd letters; "
            "set it to the key alone"
        )
    return key


def _retry_after_seconds(response: Any) -> float | None:
    asked = response.headers.get("retry-after", "")
    return float(asked) if asked.isascii() and asked.isdigit() else None
