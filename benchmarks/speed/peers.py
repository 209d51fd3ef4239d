"""TRL's trainers as a user sets them up for a CPU, without anything that only slows them down."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from measure import World, cpu_seconds
from torch import Tensor
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging
from trl import DistillationConfig, DistillationTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

logging.getLogger("trl").setLevel(logging.ERROR)
transformers_logging.set_verbosity_error()
warnings.filterwarnings("ignore", message=".*gradient_checkpointing` is deprecated", category=FutureWarning)

_NOTHING_IS_SAVED = tempfile.TemporaryDirectory()

BETA = {"forward_kl": 0.0, "reverse_kl": 1.0}
"""TRL's name for these two, in both of its trainers."""


class CountingGKD(GKDTrainer):
    """GKD, and the response tokens that it learned from."""

    num_tokens = 0

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss, after a look at the mask."""
        self.num_tokens += int((inputs["labels"] != -100).sum())
        return super().compute_loss(model, inputs, *args, **kwargs)


class CountingDistillation(DistillationTrainer):
    """Distillation, and the response tokens that it learned from."""

    num_tokens = 0

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss, after a look at the mask."""
        self.num_tokens += int(inputs["completion_mask"].sum())
        return super().compute_loss(model, inputs, *args, **kwargs)


class Trained(NamedTuple):
    """Mean loss per response token, response tokens learned from, and CPU seconds before the first step."""

    loss: float
    num_tokens: int
    setup_seconds: float


Run = Callable[[], Trained]


class SetupClock(TrainerCallback):
    """Notes when training begins, once ``train()`` has set itself up."""

    began: float

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Just before the first batch is loaded."""
        self.began = cpu_seconds()


def offline_gkd(world: World, num_steps: int) -> Run:
    """GKD on the stored pairs: ``lmbda`` 0."""
    rows = [
        {"input_ids": [*prompt.token_ids, *response.token_ids], "labels": _labels(prompt.token_ids, response.token_ids)}
        for prompt, response in zip(world.prompts, world.responses, strict=True)
    ]
    arguments = GKDConfig(**_arguments(world, num_steps), lmbda=0.0, beta=BETA["forward_kl"], temperature=1.0)
    collator = DataCollatorForLanguageModeling(_pad_token_id(world))
    return _run(CountingGKD, world, arguments, Dataset.from_list(rows), data_collator=collator)


def on_policy_gkd(world: World, num_steps: int) -> Run:
    """GKD on the student's own responses: ``lmbda`` 1."""
    arguments = GKDConfig(
        **_arguments(world, num_steps),
        lmbda=1.0,
        beta=BETA["reverse_kl"],
        temperature=1.0,
        max_new_tokens=world.max_response_tokens,
    )
    rows = [{"prompt_ids": list(prompt.token_ids)} for prompt in world.prompts]
    pad_token_id = _pad_token_id(world)

    def collate(examples: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        """The prompts on the right of their rows; labels only tell how many tokens there are before any is written."""
        ids = [torch.tensor(example["prompt_ids"]) for example in examples]
        prompts = torch.nn.utils.rnn.pad_sequence(ids, True, pad_token_id, padding_side="left")
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(i) for i in ids], True, 0, padding_side="left")
        written = torch.full((len(ids), world.max_response_tokens), 0)
        return {
            "prompts": prompts,
            "prompt_attention_mask": mask,
            "input_ids": prompts,
            "attention_mask": mask,
            "labels": written,
        }

    return _run(CountingGKD, world, arguments, Dataset.from_list(rows), data_collator=collate)


def on_policy_distillation(world: World, num_steps: int) -> Run:
    """TRL's DistillationTrainer, which is on-policy only and has the chunked loss."""
    arguments = DistillationConfig(
        **_arguments(world, num_steps),
        beta=BETA["reverse_kl"],
        temperature=1.0,
        max_completion_length=world.max_response_tokens,
    )
    rows = [{"prompt": prompt.text} for prompt in world.prompts]
    return _run(CountingDistillation, world, arguments, Dataset.from_list(rows))


def _run(trainer_class: Any, world: World, arguments: Any, rows: Dataset, **others: Any) -> Run:
    clock = SetupClock()
    with _silence():
        trainer = trainer_class(
            world.fresh_student().module,
            world.teacher.module,
            arguments,
            train_dataset=rows,
            processing_class=world.tokenizer,
            callbacks=[clock],
            **others,
        )

    def run() -> Trained:
        started = cpu_seconds()
        with _silence():
            loss = trainer.train().training_loss
        return Trained(loss, trainer.num_tokens, clock.began - started)

    return run


def _arguments(world: World, num_steps: int) -> dict[str, Any]:
    config = world.training(num_steps)
    return {
        "output_dir": _NOTHING_IS_SAVED.name,
        "max_steps": num_steps,
        "per_device_train_batch_size": world.batch_size,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "constant",
        "adam_beta1": config.betas[0],
        "adam_beta2": config.betas[1],
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def _labels(prompt_ids: tuple[int, ...], response_ids: tuple[int, ...]) -> list[int]:
    return [-100] * len(prompt_ids) + list(response_ids)


def _pad_token_id(world: World) -> int:
    pad_token_id = world.tokenizer.pad_token_id
    return world.tokenizer.eos_token_id if pad_token_id is None else pad_token_id


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """TRL prints a line at the end of training."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
