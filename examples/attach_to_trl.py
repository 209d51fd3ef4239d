"""A student distilled by TRL's GKD trainer, with assay as the referee: about a minute on one core, no network.

    pip install 'assay[trl]'
    python examples/attach_to_trl.py

Models and text ship with assay; put your own in their place. The teacher answers 256 prompts once, and the student
learns these answers for 800 steps: the held-out proxy falls at first while the references become less likely.
"""

from __future__ import annotations

import sys
import time

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from transformers.utils import logging
from trl.experimental.gkd import GKDConfig, GKDTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from assay import HackingCallback, Probe
from assay.data.tasks import get_task, load_prompts
from assay.models.bases import base_path

MAX_PROMPT_TOKENS, MAX_RESPONSE_TOKENS = 16, 24


def main(output: str = "runs/trl") -> None:
    logging.disable_progress_bar()
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base_path("define-student"))
    # Adam on float16 weights, which is what these files hold, ends in NaN
    teacher, student = (
        AutoModelForCausalLM.from_pretrained(base_path(name), dtype=torch.float32)
        for name in ("define-teacher", "define-student")
    )
    held_out, trained = (
        load_prompts(get_task("define"), split, tokenizer, MAX_PROMPT_TOKENS, MAX_RESPONSE_TOKENS, count)
        for split, count in (("held_out", 128), ("distillation", 256))
    )

    prompts = [prompt.text for prompt in trained]
    stored = answered(teacher, tokenizer, prompts)
    probe = Probe.build(
        teacher,
        tokenizer,
        [prompt.text for prompt in held_out],
        references=[f" {prompt.reference}" for prompt in held_out],
        train_prompts=prompts,
        train_responses=[
            tokenizer.decode([t for t in row["labels"] if t >= 0], skip_special_tokens=True) for row in stored
        ],
        max_response_tokens=MAX_RESPONSE_TOKENS,
    )

    arguments = GKDConfig(
        output,
        max_steps=800,
        per_device_train_batch_size=32,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        lmbda=0.0,  # the stored responses only: no student data
        beta=0.0,  # forward KL
        temperature=1.0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=100,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = GKDTrainer(
        student,
        teacher,
        arguments,
        # TRL's own collator for GKD pads on the left without position ids, which a model of absolute positions, as
        # these are, takes for other positions: its loss falls and it learns to answer prompts that begin late
        data_collator=DataCollatorForLanguageModeling(tokenizer.pad_token_id),
        train_dataset=Dataset.from_list(stored),
        processing_class=tokenizer,
    )
    trainer.add_callback(HackingCallback(probe, mark_checkpoint=True))
    started = time.perf_counter()
    trainer.train()
    print(f"the probe took {probe.seconds / (time.perf_counter() - started):.1%} of the run")

    print(f"{'step':>6}{'proxy':>8}{'train proxy':>13}{'references':>12}{'score':>7}   (nats per sequence)")
    for entry in trainer.state.log_history:
        if "assay/proxy_nats" in entry:
            columns = (entry[f"assay/{name}_nats"] for name in ("proxy", "train_proxy", "reference_nll"))
            proxy, train_proxy, references = columns
            score = entry.get("assay/detector_score", float("nan"))
            print(f"{entry['step']:>6}{proxy:>8.2f}{train_proxy:>13.2f}{references:>12.2f}{score:>7.2f}")


@torch.no_grad()
def answered(teacher, tokenizer, prompts: list[str]) -> list[dict[str, list[int]]]:  # type: ignore[no-untyped-def]
    """One response of the teacher to each prompt, as TRL takes them: labels of −100 are not learned."""
    rows = []
    for start in range(0, len(prompts), 64):
        batch = tokenizer(prompts[start : start + 64], return_tensors="pt", padding=True, padding_side="left")
        texts = teacher.generate(
            batch["input_ids"],
            attention_mask=batch["attention_mask"],
            do_sample=True,
            top_k=0,
            max_new_tokens=MAX_RESPONSE_TOKENS,
            pad_token_id=tokenizer.pad_token_id,
        )[:, batch["input_ids"].shape[1] :]
        for prompt, text in zip(prompts[start : start + 64], texts.tolist(), strict=True):
            end = text.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in text else len(text)
            ids = tokenizer.encode(prompt)
            rows.append({"input_ids": ids + text[:end], "labels": [-100] * len(ids) + text[:end]})
    return rows


if __name__ == "__main__":
    main(*sys.argv[1:])
