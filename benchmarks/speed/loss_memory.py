"""Peak memory and time of the loss at a large vocabulary, ours, TRL's and Liger's. The rules are in README.md.

python benchmarks/speed/loss_memory.py [--write [FILE]] [--quick]

Linux only: it forks, and reads the resident set size from /proc.
"""

from __future__ import annotations

import functools
import importlib.util
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import measure
import numpy as np
import peers
import torch
from measure import Row
from numpy import median
from torch import Tensor
from trl.experimental.gkd import GKDTrainer
from trl.trainer.distillation_trainer import _chunked_divergence_loss

from assay.config import TrainingConfig
from assay.models.cached import CachedLogProbs, Kept
from assay.models.pretrained import PretrainedModel
from assay.training import distillation_loss
from assay.types import Batch

VOCAB_SIZE, STUDENT, TEACHER, RESPONSE_TOKENS = 151_936, (1, 64), (1, 128), 128
PAIRED_TOKENS, FULL_TOKENS, WARM_UP_TOKENS = 512, 4096, 8
MEGABYTE = 2**20


@dataclass(frozen=True)
class Problem:
    """Responses, the student, and what is kept of the teacher: its last hidden state at every response token."""

    batch: Batch
    student: PretrainedModel
    teacher: PretrainedModel
    cache: CachedLogProbs
    kept: Sequence[Kept]

    @functools.cached_property
    def teacher_NH(self) -> Tensor:
        """The teacher's states, as the peers take them."""
        return torch.cat([kept["hidden"] for kept in self.kept])


class Measured(NamedTuple):
    """One call: peak of the resident set above what there was before, CPU seconds, and the loss per token."""

    bytes: float
    seconds: float
    loss: float


def rows(repetitions: int, quick: bool) -> Iterator[Row]:
    """Every peer at 512 tokens, paired; then once at 4,096."""
    vocab_size = 8192 if quick else VOCAB_SIZE
    paired_tokens, full_tokens = (32, 64) if quick else (PAIRED_TOKENS, FULL_TOKENS)
    teacher, student = (measure.random_model("llama", *shape, vocab_size) for shape in (TEACHER, STUDENT))
    warm_up = problem_of(student, teacher, WARM_UP_TOKENS)
    sides = {"ours": ours, "TRL dense": trl_dense, "TRL chunked": trl_chunked} | liger_sides()
    paired = in_turn(sides, problem_of(student, teacher, paired_tokens), warm_up, repetitions)
    for peer in list(sides)[1:]:
        yield row(f"{paired_tokens} tokens, {peer}", paired["ours"], paired[peer])
    full = problem_of(student, teacher, full_tokens)
    dense = sides.pop("TRL dense")
    found = in_turn(sides, full, warm_up, 1)
    yield against_dense(full_tokens, found["ours"], paired["TRL dense"], paired_tokens, dense, full, warm_up)
    for peer in list(sides)[1:]:
        yield row(f"{full_tokens} tokens, {peer}", found["ours"], found[peer])
    if importlib.util.find_spec("liger_kernel") is None:
        yield Row("Liger", {}, {}, note="not installed: pip install liger-kernel")


def problem_of(student: PretrainedModel, teacher: PretrainedModel, num_tokens: int) -> Problem:
    """Random pairs with so many response tokens."""
    rng = np.random.default_rng(0)
    length = min(RESPONSE_TOKENS, num_tokens)
    prompts = [prompt.token_ids for prompt in measure.random_prompts(num_tokens // length, student.vocab_size)]
    batch = Batch(prompts, [measure.random_tokens(rng, length, student.vocab_size) for _ in prompts])
    cache = CachedLogProbs(teacher)
    return Problem(batch, student, teacher, cache, cache.compute(batch))


Side = Callable[[Problem], Tensor]
"""The mean forward KL per response token of a problem, to be differentiated."""


def ours(problem: Problem) -> Tensor:
    """As a training step has it."""
    batch = Batch(problem.batch.prompt_ids, problem.batch.response_ids, problem.cache.signal(problem.kept))
    return distillation_loss(problem.student, batch, TrainingConfig()) / batch.num_tokens


def trl_dense(problem: Problem) -> Tensor:
    """GKD's loss on the logits of both models."""
    student_head, teacher_head = heads(problem)
    student_logits = problem.student.hidden(problem.batch) @ student_head.T
    with torch.no_grad():
        teacher_logits = problem.teacher_NH @ teacher_head.T
    return GKDTrainer.generalized_jsd_loss(
        student_logits[None],
        teacher_logits[None],
        labels=torch.zeros(1, problem.batch.num_tokens, dtype=torch.long),
        beta=peers.BETA["forward_kl"],
        num_items_in_batch=problem.batch.num_tokens,
    )


def trl_chunked(problem: Problem) -> Tensor:
    """The loss of DistillationTrainer, from hidden states."""
    mask = torch.ones(1, problem.batch.num_tokens)
    states = problem.student.hidden(problem.batch)[None], problem.teacher_NH[None]
    return _chunked_divergence_loss(*states, *heads(problem), mask, beta=peers.BETA["forward_kl"])[0]


def liger_sides() -> dict[str, Side]:
    """Liger's loss in chunks of its own size and in smaller ones; nothing where it is not installed."""
    if importlib.util.find_spec("liger_kernel") is None or importlib.util.find_spec("triton") is None:
        return {}
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    def side(problem: Problem, chunk_size: int) -> Tensor:
        loss = LigerFusedLinearJSDLoss(
            weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=False, chunk_size=chunk_size
        )
        student_head, teacher_head = heads(problem)
        nothing_N = torch.zeros(problem.batch.num_tokens, dtype=torch.long)
        return loss(problem.student.hidden(problem.batch), student_head, problem.teacher_NH, teacher_head, nothing_N)

    return {f"Liger, {size} at once": functools.partial(side, chunk_size=size) for size in (1024, 128)}


def heads(problem: Problem) -> tuple[Tensor, Tensor]:
    """Output embeddings of student and teacher."""
    modules: tuple[Any, Any] = problem.student.module, problem.teacher.module
    return modules[0].get_output_embeddings().weight, modules[1].get_output_embeddings().weight.detach()


def in_turn(sides: dict[str, Side], problem: Problem, warm_up: Problem, repetitions: int) -> dict[str, list[Measured]]:
    """All sides in every repetition, each in a fresh process; the order turned around each time."""
    found: dict[str, list[Measured]] = {name: [] for name in sides}
    for repetition in range(repetitions):
        for name in list(sides)[:: 1 if repetition % 2 == 0 else -1]:
            found[name].append(in_a_fresh_process(sides[name], problem, warm_up))
    losses = {name: measured[0].loss for name, measured in found.items()}
    if not np.allclose(list(losses.values()), losses["ours"], rtol=1e-3):
        raise SystemExit(f"the sides do not compute the same loss: {losses}")
    return found


_job: Callable[[], Measured]


def in_a_fresh_process(side: Side, problem: Problem, warm_up: Problem) -> Measured:
    """Forked from this one, which has loaded all that is needed and computed nothing with it."""
    global _job  # a forked process has it without a copy
    _job = functools.partial(measured, side, problem, warm_up)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as executor:
        return executor.submit(_run_job).result()


def _run_job() -> Measured:
    return _job()


def measured(side: Side, problem: Problem, warm_up: Problem) -> Measured:
    """The call, forward and backward, after one that is small."""
    _ = problem.teacher_NH
    side(warm_up).backward()
    problem.student.module.zero_grad()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak so far is forgotten
    before, started = resident("VmRSS"), measure.cpu_seconds()
    loss = side(problem)
    loss.backward()
    return Measured(resident("VmHWM") - before, measure.cpu_seconds() - started, loss.item())


def resident(name: str) -> int:
    """Bytes of this process that are in memory: now (VmRSS), or at most (VmHWM)."""
    return 1024 * int(next(words[1] for words in _words("/proc/self/status") if words[0] == f"{name}:"))


def available_bytes() -> int:
    """What the machine could give."""
    return 1024 * int(next(words[1] for words in _words("/proc/meminfo") if words[0] == "MemAvailable:"))


def _words(path: str) -> list[list[str]]:
    return [line.split() for line in Path(path).read_text(encoding="utf-8").splitlines()]


def row(name: str, ours: Sequence[Measured], theirs: Sequence[Measured]) -> Row:
    """Memory and time of both sides, paired by repetition."""
    pairs = list(zip(ours, theirs, strict=True))
    ratios = {
        "memory_over_peer": np.array([our.bytes / their.bytes for our, their in pairs]),
        "speed_over_peer": np.array([their.seconds / our.seconds for our, their in pairs]),
    }
    figures = {
        "mb": float(median([m.bytes for m in ours]) / MEGABYTE),
        "peer_mb": float(median([m.bytes for m in theirs]) / MEGABYTE),
        "cpu_s": float(median([m.seconds for m in ours])),
        "peer_cpu_s": float(median([m.seconds for m in theirs])),
    }
    return Row(name, figures, ratios)


def against_dense(
    num_tokens: int,
    ours: Sequence[Measured],
    paired: Sequence[Measured],
    paired_tokens: int,
    dense: Side,
    problem: Problem,
    warm_up: Problem,
) -> Row:
    """Run once where the machine has the memory; else what fewer tokens need, times as many as they are fewer."""
    needed = num_tokens / paired_tokens * float(median([m.bytes for m in paired]))
    name, aims = f"{num_tokens} tokens, TRL dense", {"memory_over_peer": "≤ 0.1"}
    if available_bytes() > 1.2 * needed:
        found = row(name, ours, [in_a_fresh_process(dense, problem, warm_up)] * len(ours))
        return Row(name, found.figures, found.ratios, aims)
    figures = {"mb": float(median([m.bytes for m in ours]) / MEGABYTE), "peer_mb": needed / MEGABYTE}
    ratios = {"memory_over_peer": np.array([m.bytes / needed for m in ours])}
    return Row(name, figures, ratios, aims, note="extrapolated: the dense loss would not fit into this machine")


if __name__ == "__main__":
    measure.main(__file__, __doc__, rows)
