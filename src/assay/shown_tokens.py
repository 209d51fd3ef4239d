"""What student, teacher and oracle say, token by token, of the responses that the report shows: tokens.parquet."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from assay import ranks
from assay.evaluation import Probe
from assay.models.cached import by_length, token_nll
from assay.models.language_model import LanguageModel, ListingModel
from assay.token_table import LOWEST_NATS, NUM_SAMPLE_PROMPTS, TOKENS_SCHEMA
from assay.types import Batch, Response, Writer

_FIXED: dict[str, Writer] = {"golden": "oracle", "proxy": "teacher", "reference_nll": "dataset"}
"""The sets of a probe whose responses are shown, and who wrote them."""

Scores = list[list[float] | None]
"""Log-probabilities (nats) of each response's tokens; None where the model shows none."""


def token_texts(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> list[str]:
    """The text that each token adds to those before it; together they are the response, but for the space around it.

    A character whose bytes are split over several tokens stands at the last of them, and the others are empty; bytes
    that never become a character stand as U+FFFD. Special tokens, the end among them, have their names, which are no
    part of the response's text. Where a decoder changes what it gave for earlier tokens (spaces before punctuation),
    the text of those stays as it was.
    """
    special = set(tokenizer.all_special_ids)
    last = max((i for i, token_id in enumerate(token_ids) if token_id not in special), default=0)
    texts, before = [], ""
    for i, token_id in enumerate(token_ids):
        if token_id in special:
            texts.append(str(tokenizer.convert_ids_to_tokens(token_id)))
            continue
        now = str(tokenizer.decode(list(token_ids[: i + 1]), skip_special_tokens=True))
        if now.endswith("\ufffd") and i < last:
            texts.append("")
            continue
        texts.append(now[len(before) :])
        before = now
    return texts


class ShownTokens:
    """Log-probabilities of the responses to the first held-out prompts, those of which an arm keeps samples.

    At every evaluation the student's new responses by all three models, and the fixed ones (of oracle and teacher, and
    the references) by the student; what teacher and oracle say of these is computed once. All at temperature 1, given
    the prompt and the tokens before, as the probe scores them. The models of a run share one tokenizer; a teacher that
    may have another gives text only, and is, like one behind a server, not asked: its column is null. Of several ranks
    each scores a part, and all have all.
    """

    def __init__(self, probe: Probe, tokenizer: PreTrainedTokenizerBase) -> None:
        self._prompts = probe.free_prompts[: min(probe.config.num_shown, NUM_SAMPLE_PROMPTS)]
        self._prompt_ids = {prompt.id: prompt.token_ids for prompt in self._prompts}
        self._tokenizer = tokenizer
        self._fixed: list[tuple[Writer, Response]] = [
            (_FIXED[frozen.metric], response)
            for frozen in probe.sets
            if frozen.metric in _FIXED
            for response in frozen.responses
            if response.prompt_id in self._prompt_ids
        ]
        self._models = {"teacher": probe.teacher, "oracle": probe.oracle}
        self._fixed_texts = [token_texts(tokenizer, response.token_ids) for _, response in self._fixed]
        self._said_of_fixed = {
            name: self._scores(name, model, [response for _, response in self._fixed])
            for name, model in self._models.items()
        }

    def table(self, student: LanguageModel, samples: Sequence[Response], *, arm: str, seed: int, step: int) -> pa.Table:
        """Rows of tokens.parquet (``token_table``); ``samples`` are the student's responses of this evaluation."""
        new = list(samples[: len(self._prompts)])
        shown: list[tuple[Writer, Response]] = [*(("student", response) for response in new), *self._fixed]
        scores = {
            name: self._scores(name, model, new) + self._said_of_fixed[name] for name, model in self._models.items()
        }
        scores["student"] = self._scores("student", student, [response for _, response in shown])
        texts = [token_texts(self._tokenizer, response.token_ids) for response in new] + self._fixed_texts
        lengths = [len(response.token_ids) for _, response in shown]
        each = [row for row, length in enumerate(lengths) for _ in range(length)]
        columns = {
            "arm": [arm] * len(each),
            "seed": [seed] * len(each),
            "step": [step] * len(each),
            "prompt_id": [shown[row][1].prompt_id for row in each],
            "writer": [shown[row][0] for row in each],
            "position": [position for length in lengths for position in range(length)],
            "token": [text for row in texts for text in row],
        }
        for name, rows in scores.items():
            values = [[None] * length if row is None else row for row, length in zip(rows, lengths, strict=True)]
            columns[f"log_prob_{name}"] = [value for row in values for value in row]
        return pa.table(columns, TOKENS_SCHEMA)

    def _scores(self, name: str, model: LanguageModel | ListingModel | None, responses: Sequence[Response]) -> Scores:
        if model is None or isinstance(model, ListingModel):
            return [None] * len(responses)

        def compute(rows: list[int]) -> list[list[float]]:
            chosen = [responses[row] for row in rows]
            batch = Batch([self._prompt_ids[r.prompt_id] for r in chosen], [r.token_ids for r in chosen])
            found: list[list[float]] = [[]] * len(chosen)
            for places, part in by_length(batch):
                for place, nll_T in zip(places, token_nll(model, part).split(part.lengths), strict=True):
                    found[place] = (-nll_T).clamp(min=LOWEST_NATS).tolist()
            return found

        return list(ranks.shared(f"the shown tokens, by the {name}", len(responses), compute))
