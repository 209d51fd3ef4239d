"""What tests/test_ranks.py has two ranks do: started by torchrun, each leaves what it found in FOLDER/RANK.json."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch.distributed.tensor import DTensor
from torch.optim import AdamW

from assay import ranks, runs
from assay.config import TrainingConfig
from assay.errors import AssayError
from assay.evaluation import write_responses
from assay.frozen_set import FrozenSet
from assay.models.averaging import Learner
from assay.models.language_model import LanguageModel
from assay.models.pretrained import PretrainedModel
from assay.training import FitState, fit, train_step
from assay.types import Action, Batch, Dense, Prompt, Response, Writer
from tiny_models import gpt2, llama, t5

PROMPTS = [(1, 2), (3,), (4, 5, 6), (7, 8), (9,)]
RESPONSES = [(2, 3, 0), (5, 0), (7, 8, 9, 1, 0), (11, 0), (12, 13, 0)]
LENGTHS = [[], [9], [3, 3], [1, 1, 1, 1, 4], [7, 1, 1]]
"""Of rows that two ranks divide so that each has about half of their sum."""
MODELS: dict[str, Callable[[], PretrainedModel]] = {
    "tied causal": lambda: gpt2(seed=1),
    "untied causal": lambda: llama(seed=1),
    "encoder-decoder": lambda: t5(seed=1),
}
SPREAD = [0, 1, 2, 5]
"""Numbers of rows that two ranks share; with one, a rank has none."""


def batch_of(num_rows: int) -> Batch:
    """Sequences of unlike length with a teacher's law."""
    batch = Batch(PROMPTS[:num_rows], RESPONSES[:num_rows])
    with torch.no_grad():
        return Batch(batch.prompt_ids, batch.response_ids, Dense(gpt2(seed=5).log_probs(batch)))


def trained(num_rows: int, student: PretrainedModel, **training: Any) -> tuple[list[float], Learner]:
    """Losses of three steps on the same batch, and what has learned."""
    config = TrainingConfig(learning_rate=1e-2, warmup_steps=0, max_grad_norm=0.5, **training)
    learner = Learner(student, config)
    learner.model.module.train()
    # with AdamW's own eps a gradient that is all rounding would move its weight as far as any other
    parameters = learner.model.module.parameters()
    optimizer = AdamW(parameters, lr=config.learning_rate, weight_decay=0.1, eps=1e-3, foreach=False)
    torch.manual_seed(3)
    losses = []
    for step in range(3):
        losses.append(train_step(learner.model, optimizer, batch_of(num_rows), step, config))
        learner.follow()
    return losses, learner


def steps(parallel: Literal["replicate", "shard"]) -> dict[str, Any]:
    """Losses, and weights at the end, by the model and the numbers of rows and micro-batches."""
    found: dict[str, Any] = {}
    for name, make in MODELS.items():
        for num_rows in SPREAD[1:]:
            size = {"num_micro_batches": min(num_rows, 2), "gradient_checkpointing": num_rows == 5}
            losses, learner = trained(num_rows, make(), parallel=parallel, **size)
            weights = torch.cat([p.detach().flatten() for p in learner.student.module.parameters()])
            found[f"{name}, {num_rows} rows"] = {"losses": losses, "weights": weights.tolist()}
    return found


def measured() -> dict[str, Any]:
    """Training, sampling and scoring, as this process does them alone or in company."""
    prompts = [Prompt(str(i), "", ids) for i, ids in enumerate(PROMPTS)]
    texts = write_responses(gpt2(seed=2), "teacher", prompts, 6, purpose="test", seed=0)
    frozen = FrozenSet("proxy", prompts, [Response(str(i), r, "teacher", False) for i, r in enumerate(RESPONSES)], None)
    walked = FrozenSet("proxy", prompts, texts, gpt2(seed=2), batch_size=2)
    return {
        "steps": steps("replicate"),
        "texts": [list(text.token_ids) for text in texts],
        "nll": frozen.against(gpt2(seed=4))[0].value_nats.tolist(),
        "kl": walked.against(gpt2(seed=4))[0].value_nats.tolist(),
        "monitors": walked.against(gpt2(seed=4))[1] | walked.of_the_walker(),
    }


class OneBatch:
    """A source of the same five rows at every step."""

    def batch(self, step: int, student: LanguageModel) -> Batch:
        return batch_of(5)

    def state(self) -> dict[str, torch.Tensor]:
        return {}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        pass

    def carry_out(self, action: Action) -> None:
        pass

    def last_rows(self) -> list[tuple[Writer, str]]:
        return [("teacher", str(row)) for row in range(5)]


def fitted(folder: Path, until: int | None = None) -> list[float]:
    """Losses of six steps with divided layers; with ``until`` all ends there, and the same call goes on."""

    def end(state: FitState) -> None:
        if state.step == until:
            raise AssayError("as was said")

    config = TrainingConfig(
        num_steps=6, learning_rate=1e-2, warmup_steps=0, checkpoint_every=3, parallel="shard", weight_decay=0.1
    )
    return fit(gpt2(seed=1), OneBatch(), config, before_step=end, checkpoints=folder).losses


def shares() -> dict[str, list[int]]:
    """How many numbers of each weight, its gradient and its moments this rank holds, and how many there are."""
    learner = Learner(gpt2(seed=1), TrainingConfig(parallel="shard"))
    optimizer = AdamW(learner.model.module.parameters(), foreach=False)
    train_step(learner.model, optimizer, batch_of(5), 0, TrainingConfig())

    def held(tensor: Any) -> int:
        return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).numel()

    return {
        name: [p.numel(), *map(held, (p, p.grad, optimizer.state[p]["exp_avg"], optimizer.state[p]["exp_avg_sq"]))]
        for name, p in learner.model.module.named_parameters()
    }


def refused(do: Callable[[], Any]) -> str:
    """The sentence with which ``do`` is refused; empty when it is not."""
    try:
        do()
    except AssayError as error:
        return str(error)
    return ""


def on_a_full_disk(folder: Path) -> None:
    """Writes a file where nothing is left to write to."""
    real = os.replace

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    os.replace = full
    try:
        runs.write_text(folder / "text", "hello")
    finally:
        os.replace = real


def unused_stay_without_a_gradient() -> list[Any]:
    """Gradients of three weights: one that both ranks have, one of rank 1 alone, one of none."""
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
    weights[0].grad = torch.full((2,), 1.0 + ranks.rank())
    if ranks.rank() == 1:
        weights[1].grad = torch.full((2,), 5.0)
    ranks.sum_gradients(weights)
    return [None if w.grad is None else w.grad.tolist() for w in weights]


def main(folder: Path) -> None:
    """Everything, first alone and then in company."""
    alone = measured()
    ranks.start()
    me = ranks.rank()
    found: dict[str, Any] = {"num_ranks": ranks.num_ranks(), "alone": alone, "together": measured()}
    found["divided"] = steps("shard")
    found["shares"] = shares()
    found["ended"] = refused(lambda: fitted(folder / "checkpoints", until=4))
    ranks.by_first("a copy", lambda: str(shutil.copytree(folder / "checkpoints", folder / "kept")))
    found["resumed"] = fitted(folder / "checkpoints")
    found["shared"] = [ranks.shared("rows", n, lambda rows: [10 * row + me for row in rows]) for n in SPREAD]
    found["parts"] = [list(range(len(lengths)))[ranks.part(lengths)] for lengths in LENGTHS]
    found["gradients"] = unused_stay_without_a_gradient()
    with ranks.own_random_numbers(4):
        found["own_numbers"] = torch.rand(3).tolist()
    found["common_numbers"] = torch.rand(3).tolist()
    found["dropout_digest"] = trained(4, gpt2(dropout=0.3))[1].student.digest
    runs.append_record(folder / "log.jsonl", {"rank": me})
    runs.write_text(folder / "who.txt", str(me))
    found["read"] = (folder / "who.txt").read_text()
    found["full"] = refused(lambda: on_a_full_disk(folder))
    found["by_first"] = ranks.by_first("a question", lambda: me + 100)
    found["disagreed"] = refused(lambda: ranks.agree("the weather", f"seen from {me}"))
    found["out_of_step"] = refused(lambda: ranks.shared(f"the work of {me}", 2, copy.copy))
    (folder / f"{me}.json").write_text(json.dumps(found))
    ranks.end(0)


def die(folder: Path, how: str) -> None:
    """Rank 1 ends while rank 0 waits for it; what rank 0 says of it is left in FOLDER."""
    ranks.start()
    if ranks.rank() == 1:
        os._exit(7) if how == "killed" else sys.exit("rank 1 has met an error")
    said = refused(lambda: ranks.totals("the loss", [1.0]))
    (folder / "said.txt").write_text(said)
    sys.exit(2)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1])) if len(sys.argv) == 2 else die(Path(sys.argv[1]), sys.argv[2])
