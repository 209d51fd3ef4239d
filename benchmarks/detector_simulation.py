"""The sequential test of departure: realised false alarms under several kinds of noise, and its power.

    python benchmarks/detector_simulation.py        # about half an hour on one core; writes benchmarks/detector/

Lawful curves ``c + (1 + t/t0)^-b`` with random b, t0, floor and noise are watched to their end; an alarm at any time is
false. Nominal: 5 % per curve; p is that of an exact one-sided binomial test of more than that, to be read at 1 %.
Power: the curve turns at half of its steps and ends k standard deviations of the noise above its law, in a ramp over
log t.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from assay.diagnostics.departure import FALSE_ALARM_RATE, sequential_test
from assay.report.tables import to_markdown

OUT = Path(__file__).parent / "detector"
DEPARTURES = (5, 10, 20, 40)
LOOKS = {
    "14 geometric": np.unique(np.concatenate([[0], np.round(np.geomspace(1, 300, 15))])).astype(float)[:14],
    "20 equidistant": np.linspace(50, 1000, 20),
    "32 geometric": np.unique(np.concatenate([[0], np.round(np.geomspace(1, 20_000, 33))])).astype(float)[:32],
}
Noise = Callable[[np.random.Generator, int], np.ndarray]


def _autoregressive(correlation: float) -> Noise:
    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        shocks = rng.normal(size=n)
        values = np.empty(n)
        values[0] = shocks[0]
        for i in range(1, n):
            values[i] = correlation * values[i - 1] + np.sqrt(1 - correlation**2) * shocks[i]
        return values

    return draw


NOISES: dict[str, Noise] = {
    "independent": lambda rng, n: rng.normal(size=n),
    "heavy tails (t3)": lambda rng, n: rng.standard_t(3, n) / np.sqrt(3),
    "correlated (0.5)": _autoregressive(0.5),
    "correlated (0.8)": _autoregressive(0.8),
    "shrinking": lambda rng, n: rng.normal(size=n) * np.linspace(1.5, 0.5, n),
    "growing": lambda rng, n: rng.normal(size=n) * np.linspace(0.5, 1.5, n),
}


def draw_curve(rng: np.random.Generator, steps: np.ndarray) -> tuple[np.ndarray, float]:
    """A lawful curve, and the standard deviation of its noise (0.2 to 2 % of its first value)."""
    exponent, plateau = rng.uniform(0.1, 1.0), rng.uniform(0.01, 0.2) * steps[-1]
    return rng.choice([0.0, 0.3]) + (1 + steps / plateau) ** -exponent, float(rng.uniform(0.002, 0.02))


def simulate(steps: np.ndarray, noise: Noise, num_curves: int, num_turned: int, seed: int) -> dict[str, Any]:
    """False alarms over lawful curves, and alarms over curves that turn, by the size of the departure."""
    rng = np.random.default_rng(seed)
    alarms = 0
    found = dict.fromkeys(DEPARTURES, 0)
    ramp = np.clip(np.log(np.maximum(steps, 1e-9) / (steps[-1] / 2)) / np.log(2), 0, 1)
    for number in range(num_curves):
        curve, sd = draw_curve(rng, steps)
        values = curve + sd * noise(rng, len(steps))
        alarms += sequential_test(steps, values).alarm_index is not None
        if number < num_turned:
            for k in DEPARTURES:
                found[k] += sequential_test(steps, values + k * sd * ramp).alarm_index is not None
    above = stats.binomtest(alarms, num_curves, FALSE_ALARM_RATE, alternative="greater").pvalue
    return {
        "num_curves": num_curves,
        "false_alarms": alarms / num_curves,
        "p_above_nominal": float(above),
        "power": {str(k): count / num_turned for k, count in found.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--curves", type=int, default=150, help="for each of the 18 combinations")
    parser.add_argument("--turned", type=int, default=40, help="of them also with each departure")
    arguments = parser.parse_args()
    result: dict[str, dict[str, dict[str, Any]]] = {}
    seed = 0
    for looks, steps in LOOKS.items():
        result[looks] = {}
        for kind, noise in NOISES.items():
            result[looks][kind] = simulate(steps, noise, arguments.curves, arguments.turned, seed)
            print(looks, kind, result[looks][kind], flush=True)
            seed += 1
    OUT.mkdir(exist_ok=True)
    (OUT / "simulation.json").write_text(json.dumps(result, indent=1) + "\n")
    lines = [
        "# False alarms and power of the test of departure",
        "",
        "Made by `python benchmarks/detector_simulation.py`. Nominal false alarm rate: 5 % per curve, at any look. "
        "Departure: k standard deviations of the noise above the law at the end, from half of the steps on.",
        "",
        *to_markdown(
            [
                {
                    "looks": looks,
                    "noise": kind,
                    "curves": row["num_curves"],
                    "false alarms": f"{row['false_alarms']:.1%}",
                    "p (above 5 %)": f"{row['p_above_nominal']:.2g}",
                    **{f"power, k = {k}": f"{share:.0%}" for k, share in row["power"].items()},
                }
                for looks, kinds in result.items()
                for kind, row in kinds.items()
            ]
        ),
    ]
    (OUT / "simulation.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
