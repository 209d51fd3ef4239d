"""Distillation between Markov chains, where golden and proxy are exact: labelled runs that cost seconds.

Oracle and teacher are transition matrices over 48 states, perturbed from one another. The student is a softmax of a
low-rank matrix, so that learning one state moves the others; it starts near the oracle. It is trained by gradient
descent on KL(teacher‖student) at the states that N teacher responses visit (offline), or eight fresh ones at every step
(online). No noise: golden, proxy and train proxy are sums over states weighted by exact expected visits.
"""

from __future__ import annotations

import itertools

import numpy as np

from assay.diagnostics.trajectory import Trajectory
from assay.evaluation import evaluation_steps

NUM_STATES, RANK, LENGTH, NUM_STEPS, LEARNING_RATE = 48, 10, 10, 400, 1.0
RESPONSES = (1, 2, 4, 8, 40, None)
"""How many stored responses there are; None: eight fresh ones at every step."""
TEACHER_ERRORS, STUDENT_ERRORS, SEEDS = (0.3, 0.6), (0.6, 1.0), (0, 1, 2)


def exact_logs() -> dict[str, tuple[Trajectory, np.ndarray]]:
    """Name → log without golden, and golden."""
    found = {}
    for teacher, student, responses, seed in itertools.product(TEACHER_ERRORS, STUDENT_ERRORS, RESPONSES, SEEDS):
        source = "online" if responses is None else f"{responses} responses"
        found[f"exact-teacher{teacher}-student{student}-seed{seed}/{source}"] = distil(
            seed, responses, teacher, student
        )
    return found


def distil(
    seed: int, num_responses: int | None, teacher_error: float, student_error: float
) -> tuple[Trajectory, np.ndarray]:
    """One run: the errors are standard deviations of the noise in the logits of teacher and student."""
    rng = np.random.default_rng(seed)
    common_SS = rng.normal(size=(NUM_STATES, 16)) @ rng.normal(size=(16, NUM_STATES)) * 0.3
    oracle_SS = _softmax(common_SS + rng.normal(0, 0.3, common_SS.shape))
    teacher_SS = _softmax(common_SS + rng.normal(0, teacher_error, common_SS.shape))
    left, values, right = np.linalg.svd(np.log(oracle_SS) + rng.normal(0, student_error, common_SS.shape))
    left_SR = left[:, :RANK] * values[:RANK] ** 0.5
    right_RS = values[:RANK, None] ** 0.5 * right[:RANK]
    starts_S, other_S = rng.dirichlet(np.ones(NUM_STATES), size=2)  # held-out prompts, and those of the references
    golden_S, proxy_S, reference_S = (
        _visits(chain, start) for chain, start in ((oracle_SS, starts_S), (teacher_SS, starts_S), (oracle_SS, other_S))
    )
    stored_S = None if num_responses is None else _sampled_visits(teacher_SS, num_responses, rng)
    train_S = _visits(teacher_SS, np.full(NUM_STATES, 1 / NUM_STATES)) if stored_S is None else stored_S
    steps, rows, due = [], [], set(evaluation_steps(NUM_STEPS, 14))
    for step in range(NUM_STEPS + 1):
        student_SS = _softmax(left_SR @ right_RS)
        if step in due:
            steps.append(float(step))
            nll = -float((reference_S[:, None] * oracle_SS * np.log(student_SS)).sum())
            rows.append([*(_kl(p, student_SS, w) for p, w in ((oracle_SS, golden_S), (teacher_SS, proxy_S),
                                                              (teacher_SS, train_S))), nll])  # fmt: skip
        seen_S = _sampled_visits(teacher_SS, 8, rng) if stored_S is None else stored_S
        gradient_SS = seen_S[:, None] * (student_SS - teacher_SS) / LENGTH
        left_SR, right_RS = (
            left_SR - LEARNING_RATE * gradient_SS @ right_RS.T,
            right_RS - LEARNING_RATE * left_SR.T @ gradient_SS,
        )
    golden, proxy, train, nll = np.array(rows).T
    return Trajectory(np.array(steps), {"proxy": proxy, "train_proxy": train, "reference_nll": nll}), golden


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _visits(chain_SS: np.ndarray, start_S: np.ndarray) -> np.ndarray:
    """Expected number of visits to every state in ``LENGTH`` steps."""
    total = np.zeros(NUM_STATES)
    for _ in range(LENGTH):
        total += start_S
        start_S = start_S @ chain_SS
    return total


def _sampled_visits(chain_SS: np.ndarray, num_responses: int, rng: np.random.Generator) -> np.ndarray:
    counts = np.zeros(NUM_STATES)
    for _ in range(num_responses):
        state = rng.integers(NUM_STATES)
        for _ in range(LENGTH):
            counts[state] += 1
            state = rng.choice(NUM_STATES, p=chain_SS[state])
    return counts / num_responses


def _kl(p_SS: np.ndarray, q_SS: np.ndarray, visits_S: np.ndarray) -> float:
    return float(visits_S @ (p_SS * (np.log(p_SS) - np.log(q_SS))).sum(axis=1))
