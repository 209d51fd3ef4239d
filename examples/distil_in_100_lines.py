"""Distillation in less than a hundred lines, with nothing of assay but its divergences: under a minute, no network.

    python examples/distil_in_100_lines.py

Characters of Python's own help pages are the language. A teacher learns them, writes responses, and three small
students learn its next-character laws along these responses, each with another divergence D(p, q): p teacher, q student.
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
    """log-probabilities [response characters, vocabulary]: the law of character i is at position i − 1."""
    return log_softmax(network(text).logits[:, PROMPT - 1 : -1], dim=-1).flatten(0, 1)


def distil(loss_name: str, teacher: GPT2LMHeadModel, stored: torch.Tensor, held_out: torch.Tensor) -> None:
    torch.manual_seed(1)  # all students start alike
    student, loss = model(32, 1), divergence(loss_name)
    yardstick = divergence("forward_kl")
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    shown = []
    for step in range(401):
        if step % 100 == 0:
            with torch.no_grad():
                shown.append(yardstick(laws(teacher, held_out), laws(student, held_out)).mean().item())
        rows = stored[torch.arange(step * BATCH, (step + 1) * BATCH) % len(stored)]
        with torch.no_grad():
            log_p_NV = laws(teacher, rows)
        value = loss(log_p_NV, laws(student, rows)).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    print(f"{loss_name:>16}: " + "  ".join(f"{nats:.3f}" for nats in shown))


if __name__ == "__main__":
    torch.manual_seed(0)
    teacher = pretrain(model(96, 2), 300)
    stored, held_out = respond(teacher, 1024, seed=1), respond(teacher, 128, seed=2)
    print("KL(teacher‖student) on held-out responses, nats per character, at steps 0, 100, 200, 300, 400")
    for name in ("forward_kl", "reverse_kl", "jeffreys"):
        distil(name, teacher, stored, held_out)
