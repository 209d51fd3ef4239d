"""A sequential test that a curve has left its law upwards, valid at every look.

Each evaluation is predicted from the law of the evaluations before it. The one-sided p-value of the prediction error
becomes a bet: e = κ p^(κ-1) has mean 1 under the law for every κ [Vovk and Wang 2021]. A bet may start at any
evaluation, with a small κ for sudden departures or a large one for slow ones; all are mixed with weights that sum to 1,
so the mixture is an e-process and

    P(it ever reaches 1/α) <= α  under the law  [Ville 1939; Ramdas, Grünwald, Vovk and Shafer 2023],

provided that the p-values are valid given the past. They are so up to the approximations of a fitted law: residuals
follow Student's t, and neighbouring ones correlate as an autoregression of order 1. What is left of the promise is
measured in benchmarks/detector_simulation.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from assay.diagnostics.law import Law, fit_law

FALSE_ALARM_RATE = 0.05
"""α of the test by default: the share of lawful curves that raise an alarm at any time."""

_KAPPAS = np.array([0.1, 0.3, 0.5, 0.7])

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Departure:
    """Evidence after each evaluation (1 before the first bet), and the first that reached 1/α with what it says.

    ``onset_index`` is the first evaluation of the bet that won: where the curve is thought to have left its law.
    ``num_bets`` counts the evaluations that a law of those before could be asked about.
    """

    evidence: Floats
    alarm_index: int | None
    onset_index: int | None
    num_bets: int

    @property
    def strongest(self) -> float:
        """The largest evidence so far; 1/α raises the alarm."""
        return float(self.evidence.max())


def sequential_test(
    steps: Floats, values: Floats, noise_floor: float = 0.0, false_alarm_rate: float = FALSE_ALARM_RATE
) -> Departure:
    """Bets against the law of a curve, evaluation by evaluation; a part of the curve gives a part of the evidence."""
    evidence = np.ones(len(values))
    bets = np.zeros((len(values), len(_KAPPAS)))  # the running product of each start and κ, with its weight
    unused, num_bets = 1.0, 0
    alarm = onset = None
    for i in range(len(values)):
        law = fit_law(steps[:i], values[:i], noise_floor)
        if isinstance(law, Law):
            num_bets += 1
            weight = 1 / (num_bets * (num_bets + 1))
            bets[i] = weight / len(_KAPPAS)
            unused -= weight
            bets *= _KAPPAS * surprise(law, steps[i], values[i]) ** (_KAPPAS - 1)
        evidence[i] = unused + bets.sum() if num_bets else 1.0
        if alarm is None and evidence[i] >= 1 / false_alarm_rate:
            alarm, onset = i, int(bets.sum(axis=1).argmax())
    return Departure(evidence, alarm, onset, num_bets)


def surprise(law: Law, step: float, value: float) -> float:
    """P(an evaluation at ``step`` is at least this high | the law of those before and the last residual)."""
    residuals = law.relative_residuals
    power = float(residuals @ residuals)
    # the usual estimate leans towards 0 by about (1 + 3ρ)/n [Kendall 1954]
    raw = float(residuals[1:] @ residuals[:-1]) / power if power > 0 else 0.0
    correlation = float(np.clip((raw * len(residuals) + 1) / max(len(residuals) - 3, 1), 0.0, 0.9))
    at = np.array([step])
    error = float(value) / law.scale - float(law.relative_at(at)[0]) - correlation * float(residuals[-1])
    stderr = float(law.relative_stderr(at)[0])
    return max(float(stats.t.sf(error / stderr, law.degrees_of_freedom)), 1e-12)
