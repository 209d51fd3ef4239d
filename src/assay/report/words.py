"""Numbers, names and comparisons as people read them, in the page and in the terminal."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

_SYMBOLS = {code: 0x2400 + code for code in range(32)} | {0x7F: 0x2421}
# Terminals may obey the first of these like escapes; no UTF-8 file can hold the second, no XML file the last two.
_SYMBOLS |= dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF], 0xFFFD)


_MEANINGS = {
    "teacher_hacking": (
        "The student moved closer to its teacher, or at least no further away, and away from the truth. "
        "Watching the proxy would not have warned you."
    ),
    "overfitting": (
        "The student learned its distillation set by heart: it moved away from the truth after the held-out proxy "
        "had already turned up. Stopping on the proxy would have been in time."
    ),
    "healthy": "No significant loss of truth: where the student came closer to its teacher, golden did not suffer.",
    "benign_disagreement": "The student ended further from its teacher than it had been, at no cost in truth.",
    "undecided": "The evidence does not settle it: the intervals are too wide, or golden was already recovering.",
    "hacking_suspected": (
        "Nobody told this run what the truth is. The detector finds in its curves what runs have that lose truth, "
        "and cannot say how much was lost: give held-out references to know."
    ),
}
_WITHOUT_TRUTH = {
    "healthy": "The detector finds no sign that truth was lost. Nothing here could measure it: references would.",
    "undecided": "The curves do not settle it for the detector, and nothing here could measure the truth.",
}


def meaning(verdict: str, truth: str | None) -> str:
    """What a verdict says about a student, in a sentence or two."""
    return (_MEANINGS if truth is not None else _MEANINGS | _WITHOUT_TRUTH)[verdict]


def visible(text: str, keep: str = "") -> str:
    """The text with control characters, all but those in ``keep``, as symbols: a model may write any of them.

    What is left can be written as UTF-8 and as XML; halves of surrogate pairs become U+FFFD.
    """
    # XML forbids most of them, even escaped: an SVG with one in a label would not open.
    return text.translate(_symbols_but(keep))


@functools.cache
def _symbols_but(keep: str) -> dict[int, int]:
    return {code: symbol for code, symbol in _SYMBOLS.items() if chr(code) not in keep}


def truth(kind: str | None) -> str:
    """What a run takes for the truth, as summary.json's ``truth`` says it."""
    return {"oracle": "an oracle as the truth", "references": "held-out references as the truth", None: "no truth"}[
        kind
    ]


def proxy(kind: str) -> str:
    """What a run's proxy is, as summary.json's ``proxy_is`` says it."""
    return {
        "exact": "the distance to the teacher",
        "lower_bound": "a lower bound of the distance to the teacher, which lists its most probable tokens",
        "up_to_a_constant": "the distance to the teacher up to a constant: NLL of its held-out responses",
    }[kind]


def proxy_axis(kind: str) -> str:
    """What a run's proxy is, for an axis."""
    return {
        "exact": "proxy: distance from the teacher",
        "lower_bound": "proxy: lower bound of the distance from the teacher",
        "up_to_a_constant": "proxy up to a constant: NLL of the teacher's responses",
    }[kind]


def golden_axis(kind: str | None) -> str:
    """What golden measures where ``kind`` is the truth, for an axis."""
    if kind == "references":
        return "golden up to a constant: NLL of references"
    return "golden: distance from the oracle"


def readable(label: str) -> str:
    """A label as people write it."""
    return label.replace("_", " ")


def comparison(pair: dict[str, Any]) -> str:
    """One entry of summary.json's ``comparisons`` as a sentence."""
    change, bounds = pair["golden_final_minus_online_nats"], pair["ci95_golden_final_minus_online"]
    side = "above"
    if change is not None and change < 0:
        side, change = "below", -change
        bounds = [None if bound is None else -bound for bound in reversed(bounds)]
    sentence = (
        f"{readable(visible(pair['arm']))} ends {nats(change)} nats of golden {side} "
        f"{readable(visible(pair['online_arm']))} (paired 95 % interval {interval(bounds)})"
    )
    if "excess_hacking_nats" not in pair:
        return f"{sentence}."
    excess, bounds = pair["excess_hacking_nats"], pair["ci95_excess_hacking"]
    return f"{sentence}; its hacking in excess of what golden did there: {nats(excess)} {brackets(bounds)}."


def deed(action: dict[str, Any]) -> str:
    """One entry of an arm's ``actions`` in summary.json as a phrase."""
    what = {
        "add_completions": f"{action['completions']} more responses per prompt",
        "regenerate": "all stored responses written anew",
        "set_fresh_fraction": f"{action['fraction'] or 0:.0%} of every batch fresh",
        "roll_back": "went back and on",
        "stop": "stopped",
    }.get(action["kind"], readable(action["kind"]))
    return f"step {action['step']:,}: {visible(what)} ({visible(action['reason'])})"


def nats(value: float | None, signed: bool = False) -> str:
    """A number of nats with two decimals and a true minus sign; a dash when unknown."""
    if value is None or not np.isfinite(value):
        return "–"
    text = f"{value:+.2f}" if signed else f"{value:.2f}"
    if float(text) == 0.0:
        text = "0.00"
    return text.replace("-", "−")


def interval(bounds: Sequence[float | None]) -> str:
    """Two bounds in words, or that they are unknown."""
    return "unknown" if None in bounds else " to ".join(nats(bound) for bound in bounds)


def brackets(bounds: Sequence[float | None]) -> str:
    """Two bounds as [low, high], or that they are unknown."""
    return "[unknown]" if None in bounds else f"[{', '.join(nats(bound) for bound in bounds)}]"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
