"""Distillation in less than a hundred lines, with nothing of assay but its divergences: under a minute, no network.

    python examples/distil_in_100_lines.py

Characters of Python's own help pages are the language. A teacher learns them, writes responses, and three small
students learn its laws of the next character along these, each with another divergence D(p, q): p teacher, q student.
What is printed is one yardstick for all, KL(teacher‖student) per character along responses that no student has seen.
"""

from __future__ import annotations

from pydoc_data.topics import topics

import torch
from torch.nn.functional import cross_entropy, log_softmax
from transformers import GPT2Config, GPT2LMHeadModel

from assay import divergence

CONTEXT, BATCH, PROMPT = 64, 32, 16
# what is not ASCII becomes one character, 127
TEXT = torch.tensor([min(ord(character), 127) for character in "".join(topics.values())])


def model(width: int, layers: int) -> GPT2LMHeadModel:
    sizes = {"vocab_size": 128, "n_positions": CONTEXT, "n_embd": width, "n_layer": layers, "n_head": 2}
    no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(GPT2Config(**sizes, **no_dropout, bos_token_id=0, eos_token_id=0))


def windows(count: int, length: int, seed: int) -> torch.Tensor:
    starts = torch.randint(len(TEXT) - length, (count, 1), generator=torch.Generator().manual_seed(seed))
    return TEXT[starts + torch.arange(length)]


def pretrain(network: GPT2LMHeadModel, num_steps: int) -> GPT2LMHeadModel:
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for step in range(num_steps):
        text = windows(BATCH, CONTEXT, step)
        loss = cross_entropy(network(text).logits[:, :-1].flatten(0, 1), text[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"pretrained for {num_steps} steps: {loss.item():.2f} nats per character")
    return network.eval()


@torch.no_grad()
def respond(teacher: GPT2LMHeadModel, count: int, seed: int) -> torch.Tensor:
    """Prompts from the text, each continued by the teacher at temperature 1."""
    return teacher.generate(
        windows(count, PROMPT, seed),
        attention_mask=torch.ones(count, PROMPT, dtype=torch.long),
        do_sample=True,
        top_k=0,
        max_new_tokens=CONTEXT - PROMPT,
        min_new_tokens=CONTEXT - PROMPT,
        pad_token_id=0,
    )


def laws(network: GPT2LMHeadModel, text: torch.Tensor) -> torch.Tensor:
    """log-probabilities [rows, response characters, vocabulary]: the law of character i is at position i − 1."""
    return log_softmax(network(text).logits[:, PROMPT - 1 : -1], dim=-1)


def distil(name: str, stored: torch.Tensor, log_p_stored: torch.Tensor, *held_out: torch.Tensor) -> None:
    torch.manual_seed(1)  # all students start alike
    student, loss, yardstick = model(48, 1), divergence(name), divergence("forward_kl")
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    text, log_p_held_out = held_out
    shown = []
    for step in range(301):
        if step % 100 == 0:
            with torch.no_grad():
                shown.append(yardstick(log_p_held_out, laws(student, text)).mean().item())
        rows = torch.arange(step * BATCH, (step + 1) * BATCH) % len(stored)
        value = loss(log_p_stored[rows], laws(student, stored[rows])).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    print(f"{name:>16}: " + "  ".join(f"{nats:.3f}" for nats in shown))


if __name__ == "__main__":
    torch.manual_seed(0)
    teacher = pretrain(model(96, 2), 200)
    stored, held_out = respond(teacher, 256, seed=1), respond(teacher, 64, seed=2)
    with torch.no_grad():  # the teacher is asked once, not at every step
        signals = laws(teacher, stored), laws(teacher, held_out)
    print("KL(teacher‖student) on held-out responses, nats per character, at steps 0, 100, 200, 300")
    for name in ("forward_kl", "reverse_kl", "jeffreys"):
        distil(name, stored, signals[0], held_out, signals[1])
