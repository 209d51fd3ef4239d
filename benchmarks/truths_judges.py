"""Two verifiers of the kind that users bring: a Python function, and a program that reads JSON lines.

The program is this file: ``python benchmarks/truths_judges.py`` answers each line with the chrF of its response.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Hashable, Sequence


def token_f1(prompt: str, response: str, reference: str | None) -> float:
    """F1 of the words that response and reference share, counted with their repeats; between 0 and 1."""
    return _f_score(*(re.findall(r"\w+", text.lower()) for text in (response, reference or "")), beta=1.0)


def chrf(response: str, reference: str) -> float:
    """The mean over n = 1 to 6 of the F2 of character n-grams, white space left out [Popović 2015]; 0 to 1."""
    texts = ["".join(text.split()) for text in (response, reference)]
    scores = [
        _f_score(*([text[i : i + n] for i in range(len(text) - n + 1)] for text in texts), beta=2.0)
        for n in range(1, 7)
        if len(texts[1]) >= n
    ]
    return sum(scores) / len(scores) if scores else 0.0


def _f_score(found: Sequence[Hashable], wanted: Sequence[Hashable], beta: float) -> float:
    """(1 + β²)·P·R / (β²·P + R) of two multisets; 0 where nothing is shared."""
    shared = (Counter(found) & Counter(wanted)).total()
    if not shared:
        return 0.0
    precision, recall = shared / len(found), shared / len(wanted)
    return (1 + beta**2) * precision * recall / (beta**2 * precision + recall)


if __name__ == "__main__":
    for line in sys.stdin:
        asked = json.loads(line)
        print(chrf(asked["response"], asked["reference"] or ""))
