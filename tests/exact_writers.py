"""An exact world as the writer of `assay generate`: a module of its own, which worker processes import."""

from __future__ import annotations

from collections.abc import Sequence

from assay.data.user_rows import UserRow
from assay.models.exact import MarkovChain
from assay.models.sampling import response_seed
from assay.text_writers import Generation, LeftOut, Texts

LETTERS = ".abcdefghijklmno"


class ExactWriter:
    """A Markov chain over letters that the full stop ends."""

    def __init__(self, request: Generation) -> None:
        self._request = request
        self._chain = MarkovChain.random(len(LETTERS), seed=3)
        self.digest = self._chain.digest

    def write(self, rows: Sequence[UserRow]) -> list[Texts]:
        """One response for each prompt; the chain begins at the last of its letters."""
        prompts = [tuple(map(LETTERS.index, row.columns["prompt"])) for row in rows]
        seeds = [response_seed("exact", self._request.seed, row.line) for row in rows]
        written = self._chain.sample(prompts, seeds, self._request.max_response_tokens)
        return [
            ["".join(LETTERS[token] for token in ids)] if ids[-1] == self._chain.eos_token_id else LeftOut.CUT
            for ids in written
        ]


def changed(request: Generation) -> ExactWriter:
    """The same writer with other weights, as its digest says."""
    writer = ExactWriter(request)
    writer.digest = "0" * 16
    return writer
