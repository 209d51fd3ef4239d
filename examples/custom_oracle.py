"""Your own truth: an oracle that is no neural network, and a distance to it that is exact; about a minute, no network.

    python examples/custom_oracle.py

The oracle is a Markov chain over letters, the truth by decree; the teacher is the same chain with a third of another
one mixed in. A small GPT-2, which has learned the oracle's language and so is nearer to the truth than its teacher, is
then distilled from a few responses of the teacher: the proxy falls to nothing, and golden rises to what the teacher is
away from the truth. Whatever has assay's `LanguageModel` methods (`sample`, `hidden`, `head`) can take the chains'
places: a grammar, a program, a model behind some other library.
"""

from __future__ import annotations

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from assay import Batch, CausalModel, Dense, LanguageModel, MarkovChain, Probe, TrainingConfig, judge, train_step

LETTERS, LENGTH = ".abcdefghijklmno", 12  # the full stop, token 0, ends a response
NUM_PROMPTS, HELD_OUT = 48, [letter * 2 for letter in LETTERS[1:]] * 4

oracle = MarkovChain.random(len(LETTERS), seed=0, concentration=0.3, name="oracle")
teacher = oracle.mixed_with(MarkovChain.random(len(LETTERS), seed=1), 0.35, name="teacher")


def letters() -> PreTrainedTokenizerFast:
    vocabulary = {letter: number for number, letter in enumerate(LETTERS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="."))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=".", pad_token=".")


def new_student() -> CausalModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": len(LETTERS), "n_positions": 32, "n_embd": 64, "n_layer": 2, "n_head": 2}
    no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return CausalModel(GPT2LMHeadModel(GPT2Config(**sizes, **no_dropout, bos_token_id=0, eos_token_id=0)), "student")


def batch_of(writer: LanguageModel, first_seed: int, count: int) -> Batch:
    """Responses of ``writer`` to prompts of two letters, with its whole law at every token as the signal."""
    seeds = range(first_seed, first_seed + count)
    draw = np.random.default_rng(first_seed)
    prompts = [tuple(map(int, draw.integers(1, len(LETTERS), 2))) for _ in seeds]
    responses = writer.sample(prompts, list(seeds), LENGTH)
    return Batch(prompts, responses, Dense(writer.log_probs(Batch(prompts, responses)).float()))


student = new_student()
optimizer = torch.optim.AdamW(student.module.parameters(), lr=3e-3)
config = TrainingConfig(learning_rate=3e-3, warmup_steps=0)
for step in range(150):
    train_step(student, optimizer, batch_of(oracle, 1_000 * step, 64), step, config)

probe = Probe.build(teacher, letters(), HELD_OUT, oracle=oracle, max_response_tokens=LENGTH, max_prompt_tokens=8)
stored = batch_of(teacher, 10**6, NUM_PROMPTS)  # the same responses again and again: offline
steps, golden, proxy = [], [], []
print("  step  golden   proxy   (nats per response, on held-out prompts)")
optimizer = torch.optim.AdamW(student.module.parameters(), lr=1e-3)
config = TrainingConfig(learning_rate=1e-3, warmup_steps=0)
for step in range(241):
    if step % 20 == 0:
        found = probe.evaluate(student, step)
        values = {column.metric: column.value_nats for column in found.per_prompt}
        steps.append(step)
        golden.append(values["golden"])
        proxy.append(values["proxy"])
        print(f"{step:>6}  {golden[-1].mean():.3f}   {proxy[-1].mean():.3f}")
    train_step(student, optimizer, stored, step, config)

verdict = judge(steps, np.array(golden), np.array(proxy))
print(f"{verdict.name.replace('_', ' ')}: {verdict.reason}")
