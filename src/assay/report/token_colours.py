"""What the colours of tokens come from: log-probabilities of the shown responses, in hundredths of a nat, as lists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from assay.report.files import Row
from assay.report.tables import Curve, Run

MAX_TOKENS = 400
"""Of one response; the rest of a longer one is not shown."""
_JUDGES = ("oracle", "teacher")
_Key = tuple[str, int, int, str, str]


@dataclass(frozen=True)
class TokenLists:
    """tokens.parquet of a run by response; empty where the run has no such file.

    ``slices`` maps (arm, seed, step, prompt, writer) to the rows of that response.
    """

    table: pa.Table | None
    slices: dict[_Key, slice]

    def of_student(self, curve: Curve, prompt_id: str, steps: list[int]) -> Row:
        """For these steps of a curve: ``tokens``, its own responses with log judge − log student by judge, and
        ``fixed``, by writer what its student gives each token of the fixed responses. {} where nothing is known."""
        keys = [(curve.arm, curve.seed, step, prompt_id) for step in steps]
        if not any((*key, "student") in self.slices for key in keys):
            return {}
        fixed = {
            writer: [self._log_probs((*key, writer), "student") for key in keys]
            for writer in ("dataset", "oracle", "teacher")
        }
        return {
            "tokens": [self._own((*key, "student")) for key in keys],
            "fixed": {writer: lists for writer, lists in fixed.items() if any(each is not None for each in lists)},
        }

    def fixed(self, prompt_id: str, writer: str) -> Row:
        """``tokens`` of a fixed response: texts, and what each judge gives them; {} where nothing is known."""
        key = next((key for key in self.slices if key[3:] == (prompt_id, writer)), None)
        if key is None:
            return {}
        judged = {judge: self._log_probs(key, judge) for judge in _JUDGES}
        return {"writer": writer, "tokens": self._texts(key) | {k: v for k, v in judged.items() if v is not None}}

    def _own(self, key: _Key) -> Row | None:
        if key not in self.slices:
            return None
        student = self._column(key, "log_prob_student")
        differences = {judge: _hundredths(self._column(key, f"log_prob_{judge}") - student) for judge in _JUDGES}
        return self._texts(key) | {judge: values for judge, values in differences.items() if values is not None}

    def _texts(self, key: _Key) -> Row:
        texts = self._rows(key)["token"].to_pylist()
        return {"texts": texts[:MAX_TOKENS], "num_more": max(len(texts) - MAX_TOKENS, 0)}

    def _log_probs(self, key: _Key, whose: str) -> list[int] | None:
        return _hundredths(self._column(key, f"log_prob_{whose}")) if key in self.slices else None

    def _column(self, key: _Key, name: str) -> np.ndarray:
        return self._rows(key)[name].to_numpy()[:MAX_TOKENS].astype(float)

    def _rows(self, key: _Key) -> Any:
        where = self.slices[key]
        assert self.table is not None, "a slice is of a table"
        return self.table.slice(where.start, where.stop - where.start)


def tokens_of(run: Run) -> TokenLists:
    """The token lists of a run."""
    if run.tokens is None:
        return TokenLists(None, {})
    table = run.tokens.combine_chunks()
    firsts = np.flatnonzero(table["position"].to_numpy() == 0)
    ends = [*firsts[1:].tolist(), len(table)]
    names = ("arm", "seed", "step", "prompt_id", "writer")
    keys = zip(*(table[name].take(pa.array(firsts)).to_pylist() for name in names), strict=True)
    return TokenLists(
        table, {key: slice(first, end) for key, first, end in zip(keys, firsts.tolist(), ends, strict=True)}
    )


def _hundredths(nats: np.ndarray) -> list[int] | None:
    """None where any is unknown: a sum over some of the tokens would mislead."""
    return np.rint(100 * nats).astype(int).tolist() if np.isfinite(nats).all() else None
