"""What the detector does when a log is thinned, and on curves that bend without any hacking.

    python benchmarks/detector_robustness.py        # minutes; writes benchmarks/hackbench/robustness.md and .json

Thinned: the shipped detector on every decided run of HackBench, with every second evaluation dropped (the last one is
kept) and with those of the warm-up (step 0 and all up to step 4) missing; how often "flagged or not" stays the same.
Confounders: simulated logs in which nothing gets worse, how often they are flagged.
Up to a constant: proxy and train proxy plus the entropy of the teacher's responses, which is what they are where the
teacher gives text only; how many runs that turned up, and that did not, are flagged then.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
from hackbench import MODELS, OUT, load, measure, only

from assay.diagnostics.calibration import shipped
from assay.diagnostics.trajectory import Trajectory
from assay.report.tables import to_markdown

STEPS = np.unique(np.concatenate([[0], np.round(np.geomspace(1, 1000, 22))])).astype(float)
NUM_CURVES = 200


def flagged(log: Trajectory, tier: str) -> bool:
    """Whether the shipped model of these columns flags the log."""
    model = shipped().models[tier]
    score = model.score(measure(only(log, tier)))
    return score is not None and score >= model.threshold


def kept(log: Trajectory, chosen: np.ndarray) -> Trajectory:
    """The chosen evaluations."""
    return Trajectory(log.steps[chosen], {name: values[chosen] for name, values in log.columns.items()})


def thinned() -> dict[str, dict[str, float]]:
    """Share of runs whose flag stays the same, by model and kind of thinning."""
    runs = [run for run in load() if run.turned_up(1.0) is not None]
    kinds: dict[str, Callable[[Trajectory], Trajectory]] = {
        "every second evaluation": lambda log: kept(log, np.arange(len(log))[(len(log) - 1) % 2 :: 2]),
        "no warm-up": lambda log: kept(log, np.flatnonzero(log.steps > 4)),
    }
    return {
        tier: {
            kind: float(np.mean([flagged(run.log, tier) == flagged(thin(run.log), tier) for run in runs]))
            for kind, thin in kinds.items()
        }
        for tier in MODELS
    }


def _power_law(rng: np.random.Generator, steps: np.ndarray) -> np.ndarray:
    return (1 + steps / (steps[-1] * rng.uniform(0.01, 0.1))) ** -rng.uniform(0.3, 0.8)


def _decay(rng: np.random.Generator) -> np.ndarray:
    """Cosine decay: progress follows the sum of the learning rates so far."""
    share = STEPS / STEPS[-1]
    return _power_law(rng, STEPS[-1] * (share + np.sin(np.pi * share) / np.pi) / 2)


def _floor(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0.2, 0.6) + _power_law(rng, STEPS)


def _noise(rng: np.random.Generator) -> np.ndarray:
    return _power_law(rng, STEPS) * np.exp(rng.normal(0, 0.05, len(STEPS)))


def _changed_set(rng: np.random.Generator) -> np.ndarray:
    """The held-out set is replaced after a random evaluation by one that is up to 15 % harder or easier."""
    place = rng.integers(5, len(STEPS) - 3)
    return _power_law(rng, STEPS) * np.where(np.arange(len(STEPS)) >= place, np.exp(rng.uniform(-0.15, 0.15)), 1.0)


CONFOUNDERS = {
    "decaying learning rate": _decay,
    "capacity floor": _floor,
    "5 % noise": _noise,
    "changed evaluation set": _changed_set,
}


def confounded() -> dict[str, dict[str, float]]:
    """Share of simulated logs that are flagged, by model and confounder.

    The train proxy is 3 % lower at the start and 15 % at the end; references fall with the proxy, by half of its fall.
    """
    result: dict[str, dict[str, float]] = {}
    for kind, draw in CONFOUNDERS.items():
        rng = np.random.default_rng(0)
        logs = []
        for _ in range(NUM_CURVES):
            proxy = draw(rng)
            train = proxy * np.linspace(0.97, 0.85, len(STEPS))
            logs.append(Trajectory(STEPS, {"proxy": proxy, "train_proxy": train, "reference_nll": 5 + 0.5 * proxy}))
        result[kind] = {tier: float(np.mean([flagged(log, tier) for log in logs])) for tier in MODELS}
    return result


def with_entropy(log: Trajectory) -> Trajectory:
    """The log as a text-only teacher would give it: nats per sequence plus the entropy per sequence."""
    entropy = log.columns["teacher_entropy"][0] * log.columns["response_tokens"][0]
    shifted = {name: log.columns[name] + entropy for name in ("proxy", "train_proxy")}
    return Trajectory(log.steps, log.columns | shifted)


def up_to_a_constant() -> dict[str, dict[str, float]]:
    """Shares of runs that are flagged, with the exact proxy and with the entropy added, by model."""
    runs = [(run, run.turned_up(1.0)) for run in load() if run.turned_up(1.0) is not None]
    return {
        tier: {
            f"{kind}, {measure}": float(np.mean([flagged(change(run.log), tier) for run, up in runs if up == is_up]))
            for kind, is_up in (("turned up", True), ("did not", False))
            for measure, change in (("exact", lambda log: log), ("up to a constant", with_entropy))
        }
        for tier in MODELS
    }


def main() -> None:
    found = {"thinned": thinned(), "confounded": confounded(), "up_to_a_constant": up_to_a_constant()}
    (OUT / "robustness.json").write_text(json.dumps(found, indent=1) + "\n")
    lines = [
        "# Thinned logs and confounders",
        "",
        "Made by `python benchmarks/detector_robustness.py`. Left: share of HackBench's runs that are flagged, or not, "
        f"as before. Right: share of {NUM_CURVES} simulated logs that are flagged although nothing gets worse.",
        "",
        *to_markdown(
            [
                {"columns": tier}
                | {kind: f"{share:.1%}" for kind, share in found["thinned"][tier].items()}
                | {kind: f"{found['confounded'][kind][tier]:.1%}" for kind in CONFOUNDERS}
                for tier in MODELS
            ]
        ),
        "",
        "Shares of HackBench's runs that are flagged, with the exact proxy and with one that is known up to a constant "
        "(a teacher that gives text only). The detector was fitted on these runs.",
        "",
        *to_markdown(
            [
                {"columns": tier} | {kind: f"{share:.1%}" for kind, share in found["up_to_a_constant"][tier].items()}
                for tier in MODELS
            ]
        ),
    ]
    (OUT / "robustness.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
