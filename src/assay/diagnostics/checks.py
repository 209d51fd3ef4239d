"""Signals that need no oracle: one function each, with a code. Every value is larger where things are worse.

A check returns None where the log lacks what it needs: it is then not applicable, which is not a pass. Values do not
change when steps are rescaled or a column is multiplied by a constant. The threshold of a check is the value that 5 %
of the healthy runs of HackBench exceed (detector.json, made by ``benchmarks/hackbench.py fit``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from assay.diagnostics import curves
from assay.diagnostics.departure import FALSE_ALARM_RATE, sequential_test
from assay.diagnostics.trajectory import Trajectory

Measure = Callable[[Trajectory], float | None]

PRIOR_FALL = 0.1
"""Added to both falls of the transfer, in e-foldings, so that it starts at 1 before anything has moved."""
_LARGEST = 3.0  # values are cut here: how bad is beyond doubt


@dataclass(frozen=True)
class Check:
    """A signal: what it measures, and what to do when it fails."""

    code: str
    name: str
    measure: Measure
    advice: str


def law_departure(log: Trajectory) -> float | None:
    """AS001: evidence that the held-out proxy has left its power law upwards; 1/α raises the alarm.

    None where no part of the curve has a law, or it reaches 0: not all of it was tested then.
    """
    proxy = _positive(log, "proxy")
    if proxy is None or len(log) < 8:
        return None
    stderr = log.get("proxy_diff_stderr")
    with np.errstate(over="ignore"):
        floor = 0.0 if stderr is None else float(np.median(stderr)) / 2**0.5
    found = sequential_test(log.steps, proxy, floor)
    return found.strongest if found.num_bets else None


def stall(log: Trajectory) -> float | None:
    """AS002: slope of log proxy over log step in the last three quarters of the steps; a healthy fall goes on."""
    proxy = _positive(log, "proxy")
    slope = None if proxy is None else curves.late_line(log.steps, proxy)[0]
    return None if slope is None else _cut(slope, 1.0)


def bend(log: Trajectory) -> float | None:
    """AS003: that slope less the slope before; above 0 the fall is slowing down in log-log."""
    proxy = _positive(log, "proxy")
    if proxy is None:
        return None
    late, earlier = curves.late_line(log.steps, proxy)[0], curves.earlier_slope(log.steps, proxy)
    return None if late is None or earlier is None else _cut(late - earlier, 1.0)


def lost_transfer(log: Trajectory) -> float | None:
    """AS004: 1 - (fall of the held-out proxy + 0.1) / (fall of the train proxy + 0.1), falls in e-foldings.

    0 where held-out prompts gain all that the trained ones gain, 1 where they gain nothing.
    """
    proxy, train = _positive(log, "proxy"), _positive(log, "train_proxy")
    if proxy is None or train is None:
        return None
    held_out, trained = (curves.fall(log.steps, values) for values in (proxy, train))
    return _cut(1 - (held_out + PRIOR_FALL) / (max(trained, 0.0) + PRIOR_FALL), 2.0)


def reuse(log: Trajectory) -> float | None:
    """AS005: log10 of how often a training response has been used so far."""
    uses = _positive(log, "response_uses", at_start=False)
    return None if uses is None else float(np.log10(max(uses[-1], 1.0)))


def reference_rise(log: Trajectory) -> float | None:
    """AS006: rise of the NLL of references from its lowest value to the end, as a share of its first value."""
    nll = _positive(log, "reference_nll")
    return None if nll is None else min(float(nll[-1] - nll.min()) / float(nll[0]), 0.1)


def entropy_drift(log: Trajectory) -> float | None:
    """AS007: |log| of the student's entropy at the end over the start; the teacher's is not looked at."""
    student = _positive(log, "student_entropy")
    return None if student is None else _drift(student)


def length_drift(log: Trajectory) -> float | None:
    """AS008: |log| of the length of sampled responses at the end over the start."""
    tokens = _positive(log, "response_tokens")
    return None if tokens is None else _drift(tokens)


def truncation_rise(log: Trajectory) -> float | None:
    """AS009: rise of the share of sampled responses that reach the limit of length."""
    return _rise(log, "truncated")


def repetition_rise(log: Trajectory) -> float | None:
    """AS010: rise of the share of repeated 3-grams in sampled responses."""
    return _rise(log, "repetition")


def diversity_fall(log: Trajectory) -> float | None:
    """AS011: log of distinct 2-grams at the start over the end."""
    distinct = _positive(log, "distinct")
    return None if distinct is None else _cut(_log_ratio(distinct[0], distinct[-1]))


def overlap_fall(log: Trajectory) -> float | None:
    """AS012: fall of the overlap with the teacher's most probable tokens, from its best to the end."""
    overlap = log.get("top_overlap")
    return None if overlap is None else _difference(overlap.max(), overlap[-1])


def _positive(log: Trajectory, name: str, at_start: bool = True) -> np.ndarray | None:
    """A column whose logarithm exists; ratios mean nothing otherwise."""
    values = log.get(name)
    if values is None or len(values) < 2:
        return None
    return values if (values if at_start else values[1:]).min() > 0 else None


def _cut(value: float, largest: float = _LARGEST) -> float:
    return float(np.clip(value, -largest, largest))


def _drift(values: np.ndarray) -> float:
    return _cut(abs(_log_ratio(values[-1], values[0])))


def _log_ratio(value: float, other: float) -> float:
    # the ratio itself may be more than a number can be
    return float(np.log(value)) - float(np.log(other))


def _rise(log: Trajectory, name: str) -> float | None:
    values = log.get(name)
    return None if values is None or len(values) < 2 else _difference(values[-1], values[0])


def _difference(value: float, other: float) -> float:
    return float(np.clip(float(value) - float(other), -sys.float_info.max, sys.float_info.max))


LAW, STALL, BEND, TRANSFER, REFERENCE = "AS001", "AS002", "AS003", "AS004", "AS006"
CHECKS: dict[str, Check] = {
    check.code: check
    for check in (
        Check(LAW, "law departure", law_departure, "the held-out proxy rises above its law: go back to its best"),
        Check(STALL, "stalled proxy", stall, "the held-out proxy has stopped falling: fresh responses or more prompts"),
        Check(BEND, "bent proxy", bend, "the held-out proxy falls ever more slowly: fresh responses or more prompts"),
        Check(TRANSFER, "lost transfer", lost_transfer,
              "the student learns its training responses by heart: draw fresh ones, or more prompts, or stop"),
        Check("AS005", "reused responses", reuse, "responses are used many times over: write them anew now and then"),
        Check(REFERENCE, "reference NLL", reference_rise, "held-out references become unlikely: go back to their best"),
        Check("AS007", "entropy drift", entropy_drift, "the student's certainty has moved: compare the teacher's"),
        Check("AS008", "length drift", length_drift, "sampled responses have changed their length: read some"),
        Check("AS009", "truncation", truncation_rise, "more responses never end: check the end-of-sequence token"),
        Check("AS010", "repetition", repetition_rise, "responses repeat themselves: read some of them"),
        Check("AS011", "lost diversity", diversity_fall, "responses become alike: read some, check the temperature"),
        Check("AS012", "lost overlap", overlap_fall, "the student leaves the teacher's likely tokens: stop and look"),
    )
}  # fmt: skip
"""Code → check. The departure test has its own threshold, 1/α."""

LAW_THRESHOLD = 1 / FALSE_ALARM_RATE
