"""Sampling, ours and generate of transformers. The rules are in README.md.

python benchmarks/speed/sampling.py [--write [FILE]] [--quick]
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import measure
import numpy as np
import torch
from measure import Row
from numpy import median
from torch import Tensor

from assay.models.pretrained import PretrainedModel
from assay.models.sampling import response_seed
from assay.models.seq2seq import Seq2SeqModel

SHAPES = {"GPT-2 2×128": ("gpt2", 2, 128), "T5 2×128": ("t5", 2, 128), "Llama 4×256": ("llama", 4, 256)}
SMALLEST, LIMIT = "GPT-2 2×128", 32
AIMS = {1024: "≥ 3", 32_000: "≥ 5"}


def rows(repetitions: int, quick: bool) -> Iterator[Row]:
    """Every shape at every vocabulary and batch of the rules, and the student that ships with assay."""
    if quick:
        for name, shape in SHAPES.items():
            yield row(name, measure.random_model(*shape, 64), measure.random_prompts(4, 64), 4, repetitions)
        return
    batches = {32: 2 * repetitions + 1, 256: repetitions}
    define = measure.define_world()
    prompts = measure.quickstart_workspace().prompts("held_out", max(batches))
    for batch_size, n in batches.items():
        yield row(f"define, batch {batch_size}", define.student, prompts[:batch_size], define.max_response_tokens, n)
    for vocab_size, (name, shape) in itertools.product(AIMS, SHAPES.items()):
        model = measure.random_model(*shape, vocab_size)
        in_full = vocab_size == 1024 or name == SMALLEST  # others at 32k have one batch, and no aim
        for batch_size, n in batches.items() if in_full else [(32, batches[32])]:
            prompts = measure.random_prompts(batch_size, vocab_size)
            aims = {"speed_over_generate": AIMS[vocab_size]} if in_full else {}
            yield row(f"{name}, V {vocab_size // 1000}k, batch {batch_size}", model, prompts, LIMIT, n, aims)


def row(
    name: str,
    model: PretrainedModel,
    prompts: Sequence[Any],
    limit: int,
    repetitions: int,
    aims: dict[str, str] | None = None,
) -> Row:
    """Both sides on the same prompts; every repetition draws new responses on both."""
    ids = [prompt.token_ids for prompt in prompts]
    module: Any = model.module
    inputs = padded(model, ids)
    generate = functools.partial(module.generate, do_sample=True, top_k=0, top_p=1.0, temperature=1.0)

    def ours(repetition: int) -> list[tuple[int, ...]]:
        return model.sample(ids, [response_seed("speed", repetition, i) for i in range(len(ids))], limit)

    def theirs(repetition: int) -> Tensor:
        torch.manual_seed(repetition)
        written = generate(**inputs, max_new_tokens=limit)
        return written[:, 1 if isinstance(model, Seq2SeqModel) else inputs["input_ids"].shape[1] :]

    measured = measure.alternate(repetitions, measure.plainly(ours), measure.plainly(theirs))
    (seconds, texts), (their_seconds, their_texts) = measured
    rates = np.array([sum(map(len, rows)) for rows in texts]) / seconds
    their_rates = np.array([real_tokens(ids, model.eos_token_id) for ids in their_texts]) / their_seconds
    figures = {
        "tokens_per_s": float(median(rates)),
        "generate_tokens_per_s": float(median(their_rates)),
        "ms_per_step": float(1e3 * median(seconds / [max(map(len, rows)) for rows in texts])),
        "generate_ms_per_step": float(1e3 * median(their_seconds / [ids.shape[1] for ids in their_texts])),
    }
    return Row(name, figures, {"speed_over_generate": rates / their_rates}, aims or {})


def padded(model: PretrainedModel, prompt_ids: Sequence[tuple[int, ...]]) -> dict[str, Tensor]:
    """Prompts as generate takes them: on the right of their rows for a causal model, on the left for T5."""
    side = "right" if isinstance(model, Seq2SeqModel) else "left"
    pad = functools.partial(torch.nn.utils.rnn.pad_sequence, batch_first=True, padding_side=side)
    ids = [torch.tensor(prompt) for prompt in prompt_ids]
    return {"input_ids": pad(ids, padding_value=measure.PAD), "attention_mask": pad([torch.ones_like(i) for i in ids])}


def real_tokens(written_BT: Tensor, eos_token_id: int) -> int:
    """Tokens before which no end of sequence stands."""
    ended_BT = (written_BT == eos_token_id).cumsum(dim=-1)
    return len(written_BT) + int((ended_BT[:, :-1] == 0).sum())


if __name__ == "__main__":
    measure.main(__file__, __doc__, rows)
