"""Judges: who else may say how good a response is. A second teacher, the user's own function, or a program.

Their values are columns beside golden and proxy. They decide nothing: verdicts, detector and policies never see them.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import numbers
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from assay.config import JudgeConfig
from assay.errors import AssayError
from assay.estimators import sum_per_sequence
from assay.models.cached import by_length, token_nll
from assay.models.language_model import LanguageModel
from assay.types import Batch, Prompt, Response
from assay.validation import command_words

Decode = Callable[[Sequence[int]], str]
"""The text of a response's tokens, as people read it."""


class JudgeError(AssayError):
    """A judge that cannot be asked, or whose answer is no score."""


@dataclass(frozen=True)
class ModelJudge:
    """A second teacher, frozen.

    With ``walks_on`` "judge" it is a walker of the probe like the teacher, and ``values`` is not asked.
    """

    config: JudgeConfig
    model: LanguageModel

    def values(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> np.ndarray:
        """−(1/T) log judge(response | prompt), nats per token of each response: lower is better.

        Of the student's own text: it falls where the judge finds that text likely, also where the student has become
        so sure of itself that it writes little else.
        """
        batch = Batch([p.token_ids for p in prompts], [r.token_ids for r in responses])
        values = np.zeros(len(batch))
        for rows, part in by_length(batch):
            nll_B = sum_per_sequence(token_nll(self.model, part), part.lengths)
            values[rows] = nll_B.double().cpu().numpy() / np.array(part.lengths)
        return values


@dataclass(frozen=True)
class FunctionJudge:
    """The user's own function (prompt, response, reference or None) -> number; what it raises is not caught."""

    config: JudgeConfig
    function: Callable[[str, str, str | None], float]
    decode: Decode

    def values(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> np.ndarray:
        """What the function says of each response."""
        name = self.config.name
        values = np.zeros(len(prompts))
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            value = self.function(prompt.text, self.decode(response.token_ids), prompt.reference)
            if not isinstance(value, numbers.Real) or not math.isfinite(value):
                raise JudgeError(f"judge {name!r} gives {value!r} for prompt {prompt.id!r}: return a finite number")
            values[row] = float(value)
        return values


@dataclass(frozen=True)
class CommandJudge:
    """A program that reads {"id", "prompt", "response", "reference"} line by line and answers with a number each."""

    config: JudgeConfig
    decode: Decode

    def values(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> np.ndarray:
        """What one start of the program says of each response."""
        asked = [
            {"id": p.id, "prompt": p.text, "response": self.decode(r.token_ids), "reference": p.reference}
            for p, r in zip(prompts, responses, strict=True)
        ]
        lines = self._answers("".join(json.dumps(one) + "\n" for one in asked)).splitlines()
        if len(lines) != len(asked):
            raise JudgeError(
                f"judge {self.config.name!r} answers {len(asked)} responses with {len(lines)} lines: its command must "
                "write one number for each line that it reads, and nothing else, to stdout"
            )
        return np.array([self._number(i, line) for i, line in enumerate(lines, start=1)])

    def _answers(self, text: str) -> str:
        """What the program writes to stdout when it reads ``text``; all its processes end with the timeout."""
        name, words = self.config.name, command_words(self.config)
        pipe = subprocess.PIPE
        try:
            process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
        except OSError as error:
            raise JudgeError(f"judge {name!r} cannot start {words[0]!r}: {error.strerror or error}") from error
        try:
            out, complaint = process.communicate(text.encode(), timeout=self.config.timeout_seconds)
        except subprocess.TimeoutExpired as error:
            raise JudgeError(
                f"judge {name!r} has not answered within {self.config.timeout_seconds:g} seconds: raise its "
                "timeout_seconds, or mend its command"
            ) from error
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        if process.returncode != 0:
            lines = complaint.decode(errors="replace").splitlines()
            said = next((line.strip() for line in reversed(lines) if line.strip()), "nothing on stderr")
            raise JudgeError(f"the command of judge {name!r} ends with exit code {process.returncode}: {said[:200]}")
        return out.decode(errors="replace")

    def _number(self, position: int, line: str) -> float:
        try:
            value = float(line)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise JudgeError(
                f"line {position} of what the command of judge {self.config.name!r} writes is {line[:80]!r}: it must "
                "be a finite number"
            )
        return value


Judge = ModelJudge | FunctionJudge | CommandJudge


def open_judge(config: JudgeConfig, load_model: Callable[[str], LanguageModel], decode: Decode) -> Judge:
    """The judge that a config describes; imports the module of a function. Raises JudgeError when it is not there."""
    if config.kind == "model":
        return ModelJudge(config, load_model(config.target))
    if config.kind == "command":
        return CommandJudge(config, decode)
    module, _, name = config.target.partition(":")
    try:
        function: Any = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise JudgeError(
            f"the module of judge {config.name!r} cannot be imported ({error}): install it, or put its folder on "
            "PYTHONPATH"
        ) from error
    is_function = callable(function)
    if not is_function:
        raise JudgeError(f"judge {config.name!r}: module {module!r} has no function {name!r}")
    return FunctionJudge(config, cast("Callable[[str, str, str | None], float]", function), decode)
