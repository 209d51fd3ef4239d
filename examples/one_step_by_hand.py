"""One training step of distillation by hand, beside the one of `assay.train_step`: some seconds, no network.

    python examples/one_step_by_hand.py

The loss is the forward KL from teacher to student, Σ p (log p − log q), averaged over the tokens of the responses.
Loss and gradient are computed twice, from the formula alone and by assay, and compared.
"""

from __future__ import annotations

import torch

from assay import Batch, Dense, TrainingConfig, load_model, load_tokenizer, train_step

PROMPTS = ["noun: lighthouse:", "verb: distil:", "adjective: golden:"]

tokenizer = load_tokenizer("define-student")
teacher, student = load_model("define-teacher"), load_model("define-student")

# 1. The teacher answers. A response ends with the end-of-sequence token, or is cut.
prompt_ids = [tuple(tokenizer.encode(prompt)) for prompt in PROMPTS]
response_ids = teacher.sample(prompt_ids, seeds=[0, 1, 2], max_response_tokens=12)
for prompt, response in zip(PROMPTS, response_ids, strict=True):
    print(f"{prompt} {tokenizer.decode(response)!r}")

# 2. By hand: one sequence at a time, so that there is no padding to get wrong.
student.module.train()
student.module.zero_grad()
num_tokens = sum(map(len, response_ids))
total = torch.tensor(0.0)
for prompt, response in zip(prompt_ids, response_ids, strict=True):
    text = torch.tensor([prompt + response])
    # the law of token i is at position i − 1: from the last token of the prompt to the last but one of the response
    where = slice(len(prompt) - 1, -1)
    with torch.no_grad():
        log_p = teacher.module(text).logits[0, where].log_softmax(-1)
    log_q = student.module(text).logits[0, where].log_softmax(-1)
    total = total + (log_p.exp() * (log_p - log_q)).sum() / num_tokens
total.backward()
by_hand = {name: weight.grad.clone() for name, weight in student.module.named_parameters()}

# 3. By assay: the same step. A huge max_grad_norm, so that the gradient is not clipped and can be compared.
with torch.no_grad():
    signal = Dense(teacher.log_probs(Batch(prompt_ids, response_ids)))  # [tokens, vocabulary], all sequences in a row
batch = Batch(prompt_ids, response_ids, signal)
optimizer = torch.optim.AdamW(student.module.parameters(), lr=1e-4)
loss = train_step(student, optimizer, batch, step=0, config=TrainingConfig(max_grad_norm=1e9))

largest = max(gradient.abs().max() for gradient in by_hand.values())
apart = max((weight.grad - by_hand[name]).abs().max() for name, weight in student.module.named_parameters())
print(f"loss by hand {total.item():.6f}, by assay {loss:.6f} nats per token ({num_tokens} tokens)")
print(f"largest gradient {largest:.3e}, largest difference of the two {apart:.1e}")
