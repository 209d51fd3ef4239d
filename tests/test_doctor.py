"""The doctor is silent on a clean pair and names every planted fault: real checkpoints, tokenizers and files."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from assay.checkpoints import save_model
from assay.cli import main
from assay.config import ProbeConfig, ServerConfig
from assay.data.tasks import corpus_rows, get_task
from assay.doctor import behaviour, cost
from assay.doctor.case import Case, Request, read_case
from assay.doctor.checks import CHECKS
from assay.doctor.examination import examine
from assay.doctor.findings import Examination, Finding
from assay.doctor_table import print_examination
from assay.errors import AssayError
from assay.models import server
from assay.models.bases import base_path
from assay.models.causal import CausalModel
from assay.models.loading import describe, load_model, load_tokenizer
from assay.preconditions import check_models
from assay.recipes.own import NUM_PASSES, Distill, filled
from assay.runs import write_json, write_table
from assay.types import Batch
from assay.workspace import survey
from servers.stub import Reply, Stub, with_choice, word_tokenizer
from tiny_models import VOCAB_SIZE, gpt2

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_2 = "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"
NUM_PROMPTS = 160


def chat_tokenizer(eos: str = "<|im_end|>", template: str | None = CHATML) -> PreTrainedTokenizerBase:
    """The 512 tokens of the embedded bases and two more, for turns."""
    tokenizer = load_tokenizer("define-teacher")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token = eos
    tokenizer.chat_template = template
    return tokenizer


def llama(path: Path, tokenizer: PreTrainedTokenizerBase, noise: float = 0.0, num_rows: int = 514) -> Path:
    """A small Llama that ends a response about every seventh token, with weights a little off those without noise."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=num_rows,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=160,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    module = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        # one feature is the same everywhere, and the head reads the end of the sequence from it
        module.model.embed_tokens.weight[:, 0] = 3.0
        module.lm_head.weight[:, 0] = 0.0
        module.lm_head.weight[513, 0] = 1.1
        generator = torch.Generator().manual_seed(1)
        for parameter in module.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    save_model(CausalModel(module, "tiny"), path, tokenizer)
    return path


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Request:
    """Two Llamas that share a tokenizer and its chat template, and prompts of their own."""
    folder = tmp_path_factory.mktemp("clean")
    rows = [row for row in corpus_rows(get_task("define")) if 20 < len(row["gloss"]) < 60][: 4 * NUM_PROMPTS]
    texts = {row["lemmas"]: row["gloss"] for row in rows if row["gloss"] not in row["lemmas"]}
    lines = [{"prompt": f"define {words}", "reference": gloss} for words, gloss in list(texts.items())[:NUM_PROMPTS]]
    write(folder / "prompts.jsonl", lines)
    return Request(
        teacher=str(llama(folder / "teacher", chat_tokenizer())),
        student=str(llama(folder / "student", chat_tokenizer(), noise=0.02)),
        prompts=folder / "prompts.jsonl",
        chat_template=True,
        max_prompt_tokens=100,
        max_response_tokens=60,
    )


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def finding(examination: Examination, code: str) -> Finding:
    return next(found for found in examination.findings if found.code == code)


def measured_findings(examination: Examination) -> list[Finding]:
    return [found for found in examination.findings if CHECKS[found.code].needs_weights]


def flagged(examination: Examination) -> dict[str, str]:
    return {f.code: f.status for f in examination.findings if f.status in ("warning", "refuse")}


def of_files(request: Request, **changes: Any) -> Examination:
    return examine(dataclasses.replace(request, **changes), weights="never")


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))


def copy_of(folder: str, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def assay(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "assay", "doctor", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_clean_pair_passes_every_check(clean: Request) -> None:
    found = examine(clean)
    assert flagged(found) == {}
    assert (found.verdict, found.exit_code) == ("pass", 0)
    assert [f.code for f in found.findings] == list(CHECKS)
    # nothing is skipped but padding, a column of responses and a server, which are not there
    idle = {f.code for f in found.findings if f.status == "not_applicable"}
    assert idle == {"D017", "D025", "D026", "D027", "D028"}
    assert all(f.advice == "" for f in found.findings)


def test_the_command_prints_lines_or_one_json_object_and_exits_with_the_verdict(clean: Request, tmp_path: Path) -> None:
    student = llama(tmp_path / "student", chat_tokenizer(eos="<|endoftext|>"))
    pair = ["--teacher", clean.teacher, "--prompts", clean.prompts, "--chat-template", "--max-prompt-tokens", 100]
    pair += ["--max-response-tokens", 60]
    silent = assay(*pair, "--student", clean.student, "--json")
    assert silent.returncode == 0, silent.stderr
    content = json.loads(silent.stdout)
    assert (content["schema"], content["verdict"]) == ("assay.doctor/1", "pass")
    assert [entry["code"] for entry in content["findings"]] == list(CHECKS)
    refused = assay(*pair, "--student", student)
    assert refused.returncode == 3, refused.stderr
    assert "D003 refuse end of sequence: the student will never be taught to stop" in refused.stdout
    assert refused.stdout.strip().splitlines()[-1].startswith("refuse: ")


def test_a_base_student_of_an_instructed_teacher_is_never_taught_to_stop(clean: Request, tmp_path: Path) -> None:
    student = llama(tmp_path / "base", chat_tokenizer("<|endoftext|>", template=None))
    found = examine(dataclasses.replace(clean, student=str(student)))
    assert flagged(found) == {"D003": "refuse", "D005": "warning", "D024": "warning"}
    end = finding(found, "D003")
    assert "the teacher ends with <|im_end|> (513), the student's EOS is <|endoftext|> (0)" in end.what
    assert "513" in end.advice
    # the weights were left alone
    assert all(f.status == "not_applicable" and "D003" in f.what for f in measured_findings(found))
    measured = examine(dataclasses.replace(clean, student=str(student)), weights="always")
    # a run refuses the teacher in the same words
    assert "responses would not end" in finding(measured, "D016").what


def test_a_list_of_ends_is_compared_as_a_set(clean: Request, tmp_path: Path) -> None:
    teacher = copy_of(clean.teacher, tmp_path / "teacher")
    student = copy_of(clean.student, tmp_path / "student")
    for folder in (teacher, student):
        change_json(folder / "config.json", eos_token_id=[513, 0])
    pair = {"teacher": str(teacher), "student": str(student)}
    assert finding(of_files(clean, **pair), "D003").status == "pass"
    change_json(student / "config.json", eos_token_id=513)
    only_one = finding(of_files(clean, **pair), "D003")
    assert only_one.status == "warning"
    assert "<|endoftext|> (0), <|im_end|> (513)" in only_one.what
    change_json(teacher / "generation_config.json", eos_token_id=0)
    change_json(student / "generation_config.json", eos_token_id=[0])
    runs_on = finding(of_files(clean, **pair), "D003")
    assert (runs_on.status, "runs on" in runs_on.advice + runs_on.what) == ("warning", True)
    change_json(student / "config.json", eos_token_id=[0])
    assert "the student's tokenizer ends a response with <|im_end|>" in finding(of_files(clean, **pair), "D003").what


def test_a_run_ends_responses_where_the_students_tokenizer_does(clean: Request, tmp_path: Path) -> None:
    teacher = copy_of(clean.teacher, tmp_path / "teacher")
    change_json(teacher / "config.json", eos_token_id=[513, 0])
    student = llama(tmp_path / "student", chat_tokenizer(eos="<|endoftext|>"))
    end = finding(of_files(clean, teacher=str(teacher), student=str(student)), "D003")
    assert end.status == "warning"
    assert "the teacher's tokenizer ends a response with <|im_end|> (513), a run with the student's" in end.what


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_padded_rows_are_told_and_their_mass_is_measured(clean: Request, tmp_path: Path, role: str) -> None:
    padded = llama(tmp_path / "padded", chat_tokenizer(), num_rows=576)
    request = dataclasses.replace(clean, **{role: str(padded)})
    found = examine(request)
    assert found.verdict == "warnings"
    assert flagged(found)["D017"] == "warning"
    rows = finding(found, "D001")
    sizes = {"teacher_rows": 514, "student_rows": 514, "tokenizer_ids": 514}
    assert rows.numbers == sizes | {f"{role}_rows": 576}
    assert (rows.status, f"rows of padding (62 of the {role})" in rows.what) == ("pass", True)
    # the padded model is cut as a run cuts it: scores and divergences stay in order
    assert finding(found, "D018").status == finding(found, "D019").status == "pass"
    case = read_case(request)
    pairs, module = case.teacher_pairs, getattr(case, role).model.module
    mass = []
    for prompt, response in zip(pairs.prompt_ids, pairs.response_ids, strict=True):
        logits = module(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
        mass += logits.softmax(-1)[:, 514:].sum(-1).tolist()
    assert finding(found, "D017").numbers == {role: pytest.approx(sum(mass) / len(mass), rel=1e-4)}


def test_equal_padding_is_cut_too(clean: Request, tmp_path: Path) -> None:
    pair = {role: str(llama(tmp_path / role, chat_tokenizer(), num_rows=576)) for role in ("teacher", "student")}
    case = read_case(dataclasses.replace(clean, **pair))
    assert [side.model.vocab_size for side in case.sides] == [514, 514]
    assert CHECKS["D001"].examine(case).what.count("62 of the") == 2


def test_a_model_with_fewer_rows_than_ids_is_refused(clean: Request, tmp_path: Path) -> None:
    save_model(load_model("define-student"), tmp_path / "student", chat_tokenizer())
    rows = finding(of_files(clean, student=str(tmp_path / "student")), "D001")
    assert (rows.status, "the student lacks 2 of them" in rows.what) == ("refuse", True)


def test_other_token_ids_are_refused_with_an_example(clean: Request, tmp_path: Path) -> None:
    student = copy_of(clean.student, tmp_path / "student")
    content = json.loads((student / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    vocab["e"], vocab["t"] = vocab["t"], vocab["e"]
    (student / "tokenizer.json").write_text(json.dumps(content))
    ids = finding(of_files(clean, student=str(student)), "D002")
    assert ids.status == "refuse"
    assert ids.numbers["differing_ids"] == 2
    assert ids.numbers["unlike_prompts"] > NUM_PROMPTS / 2
    assert "teacher's text alone" in ids.advice


def test_a_tokenizer_that_lacks_tokens_of_its_model_is_told_apart(clean: Request, tmp_path: Path) -> None:
    student = llama(tmp_path / "student", chat_tokenizer())
    load_tokenizer("define-teacher").save_pretrained(student)
    ids = finding(of_files(clean, student=str(student)), "D002")
    assert (ids.status, ids.numbers["differing_ids"]) == ("refuse", 2)
    assert "give it the other's tokenizer files" in ids.advice


def test_a_folder_without_tokenizer_is_refused_as_a_run_refuses_it(clean: Request, tmp_path: Path) -> None:
    folder = copy_of(clean.teacher, tmp_path / "bare")
    for file in [*folder.glob("tokenizer*"), *folder.glob("chat_template*"), *folder.glob("special*")]:
        file.unlink()
    assert flagged(of_files(clean, teacher=str(folder))) == {"D002": "refuse"}
    with pytest.raises(AssayError, match="has no tokenizer: save the one"):
        of_files(clean, student=str(folder))


@pytest.mark.parametrize(
    ("template", "chat", "words"),
    [
        (LLAMA_2, True, "160 of 160 prompts are rendered otherwise"),
        (None, True, "the student's chat template is absent: the student was never shown the teacher's turns"),
        (CHATML, False, "prompts are fed as plain text"),
        ("{% if false %}{% endif %}" + CHATML, True, ""),
    ],
)
def test_a_wrong_template(clean: Request, tmp_path: Path, template: str | None, chat: bool, words: str) -> None:
    student = llama(tmp_path / "student", chat_tokenizer(template=template))
    found = finding(of_files(clean, student=str(student), chat_template=chat), "D005")
    assert found.status == ("warning" if words else "pass")
    assert words in found.what


def test_a_teacher_without_the_students_template(clean: Request, tmp_path: Path) -> None:
    teacher = llama(tmp_path / "teacher", chat_tokenizer(template=None))
    found = of_files(clean, teacher=str(teacher))
    assert flagged(found) == {"D005": "warning"}
    assert "the teacher was never shown the student's turns" in finding(found, "D005").what


def test_prompts_that_a_template_has_already_rendered(clean: Request, tmp_path: Path) -> None:
    rows = read(clean.prompts)
    rows[7]["prompt"] = "<|im_start|>user\nwhat is it<|im_end|>"
    path = write(tmp_path / "rendered.jsonl", rows)
    for chat, words in ((True, "inside the template's own turns"), (False, "spelt out")):
        found = finding(of_files(clean, prompts=path, chat_template=chat), "D006")
        assert (found.status, found.numbers["prompts"]) == ("warning", 1)
        assert "line 8" in found.what
        assert words in found.what


def test_conversations_are_examined_as_the_prompts_that_they_say(clean: Request, tmp_path: Path) -> None:
    rows = read(clean.prompts)
    talks = [
        {"messages": [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["reference"]}]}
        for r in rows
    ]
    path = write(tmp_path / "talks.jsonl", talks)
    plain, conversations = (of_files(clean, prompts=given) for given in (clean.prompts, path))
    assert flagged(conversations) == {}
    # the disk of a machine is others' too
    said, expected = ([re.sub(r"[\d.]+ GiB are free", "", f.what) for f in c.findings] for c in (conversations, plain))
    assert said == expected
    with pytest.raises(AssayError, match=r"give --chat-template|set task.chat_template"):
        of_files(clean, prompts=path, chat_template=False)


def test_a_beginning_that_only_one_tokenizer_adds(clean: Request, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer: Any = chat_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    student = llama(tmp_path / "student", tokenizer)
    found = finding(of_files(clean, student=str(student), chat_template=False), "D004")
    assert found.status == "warning"
    assert "the teacher's tokenizer adds nothing, the student's <|endoftext|> (0)" in found.what


@pytest.mark.parametrize("cap", [None, 30.0])
def test_a_soft_cap_that_is_ignored(clean: Request, tmp_path: Path, cap: float | None) -> None:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=514,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=160,
        final_logit_softcapping=cap,
        eos_token_id=513,
        bos_token_id=0,
        pad_token_id=1,
    )
    save_model(CausalModel(Gemma2ForCausalLM(config).eval(), "gemma"), tmp_path / "gemma", chat_tokenizer())
    found = examine(dataclasses.replace(clean, teacher=str(tmp_path / "gemma"), max_response_tokens=8))
    assert finding(found, "D016").status == "pass"
    assert finding(found, "D007").status == ("warning" if cap is None else "pass")
    assert ("soft cap ignored" if cap is None else "soft cap 30.0") in finding(found, "D007").what


def test_dropout_is_told_with_its_effect(clean: Request, tmp_path: Path) -> None:
    student = copy_of(clean.student, tmp_path / "student")
    change_json(student / "config.json", attention_dropout=0.1)
    found = of_files(clean, student=str(student))
    assert flagged(found) == {"D008": "warning"}
    assert "attention_dropout 0.1" in finding(found, "D008").what


def with_student(request: Request, fault: Callable[[Any], type[CausalModel]]) -> Case:
    """The case with an adapter of the student that has a fault which loading does not see."""
    case = read_case(request)
    module = case.student.model.module
    case.student.__dict__["model"] = fault(CausalModel)(module, "faulty")
    return case


def shifted(by: int) -> Callable[[Any], type[CausalModel]]:
    def fault(base: Any) -> type[CausalModel]:
        class Shifted(base):
            def hidden(self, batch: Batch) -> torch.Tensor:
                rows = super().hidden(batch).split(batch.lengths)
                return torch.cat([part.roll(by, dims=0) for part in rows])

            def _check_decoding(self) -> None:
                pass

        return Shifted

    return fault


@pytest.mark.parametrize(("by", "words"), [(1, "position before"), (-1, "position after"), (2, "or the law is not")])
def test_shifted_labels_are_refused(clean: Request, by: int, words: str) -> None:
    found = behaviour.labels_in_place(with_student(clean, shifted(by)))
    assert found.status == "refuse"
    assert "labels" in found.what
    assert "shifted" in found.what
    assert words in found.what


def test_padding_that_enters_scores_is_refused(clean: Request) -> None:
    def fault(base: Any) -> type[CausalModel]:
        class Padded(base):
            def hidden(self, batch: Batch) -> torch.Tensor:
                return super().hidden(batch) + 0.3 * len(batch)

            def _check_decoding(self) -> None:
                pass

        return Padded

    found = behaviour.student_is_itself(with_student(clean, fault))
    assert (found.status, "one by one" in found.what) == ("refuse", True)


def test_a_law_that_is_no_law_is_refused(clean: Request) -> None:
    def adding(nats: float) -> Callable[[Any], type[CausalModel]]:
        def fault(base: Any) -> type[CausalModel]:
            class Raw(base):
                def head(self, hidden_NH: torch.Tensor) -> torch.Tensor:
                    return super().head(hidden_NH) + nats

                def _check_decoding(self) -> None:
                    pass

            return Raw

        return fault

    assert behaviour.labels_in_place(with_student(clean, adding(1.0))).status == "refuse"
    assert behaviour.labels_in_place(with_student(clean, adding(math.nan))).status == "refuse"
    itself = behaviour.student_is_itself(with_student(clean, adding(math.nan)))
    assert (itself.status, itself.what.endswith("is inf nats, not 0")) == ("refuse", True)


def test_a_model_that_does_not_run_is_refused_and_nothing_is_measured(clean: Request, tmp_path: Path) -> None:
    student = copy_of(clean.student, tmp_path / "student")
    weights = load_file(student / "model.safetensors")
    weights["lm_head.weight"].fill_(math.nan)
    save_file(weights, student / "model.safetensors", metadata={"format": "pt"})
    found = examine(dataclasses.replace(clean, student=str(student)))
    assert flagged(found) == {"D016": "refuse"}
    assert "not finite" in finding(found, "D016").what
    assert all(f.status == "not_applicable" for f in measured_findings(found) if f.code != "D016")


def test_duplicates_in_the_held_out_split_are_refused(clean: Request, tmp_path: Path) -> None:
    rows = read(clean.prompts)
    for i, row in enumerate(rows):
        row["split"] = "held_out" if i < 40 else "distillation"
    assert flagged(of_files(clean, prompts=write(tmp_path / "own.jsonl", rows))) == {}
    rows[50] = rows[3] | {"prompt": f"  {rows[3]['prompt'].upper()}!", "split": "distillation"}
    again = of_files(clean, prompts=write(tmp_path / "twice.jsonl", rows))
    repeated = finding(again, "D011")
    assert (repeated.status, repeated.numbers["across_splits"]) == ("refuse", 1)
    assert "line 4, in distillation and held_out" in repeated.what


def test_a_second_file_of_held_out_prompts(clean: Request, tmp_path: Path) -> None:
    rows = read(clean.prompts)
    train, held_out = write(tmp_path / "train.jsonl", rows[30:]), write(tmp_path / "held_out.jsonl", rows[:30])
    assert flagged(of_files(clean, prompts=train, held_out=held_out)) == {}
    found = finding(of_files(clean, held_out=held_out), "D011")
    assert (found.status, found.numbers["across_splits"]) == ("refuse", 30)


def test_near_duplicates_across_splits(clean: Request, tmp_path: Path) -> None:
    rows = [row | {"split": "held_out" if i < 40 else "train"} for i, row in enumerate(read(clean.prompts))]
    words = "one two three four five six seven eight nine"
    rows += [{"prompt": f"{words} {end}", "split": split} for end, split in (("ten", "train"), ("eleven", "held_out"))]
    rows += [{"prompt": f"x {words} {end}", "split": "held_out"} for end in ("twelve", "thirteen")]
    found = finding(of_files(clean, prompts=write(tmp_path / "near.jsonl", rows)), "D012")
    assert (found.status, found.numbers["near_duplicates"]) == ("warning", 3)


def test_answers_in_prompts(clean: Request, tmp_path: Path) -> None:
    rows = read(clean.prompts)
    rows[5]["prompt"] += f": {rows[5]['reference'].upper()}, is it?"
    found = of_files(clean, prompts=write(tmp_path / "leak.jsonl", rows))
    assert flagged(found) == {"D010": "warning"}
    assert "line 6" in finding(found, "D010").what
    answers = [row | {"answer": row["reference"], "reference": None} for row in rows]
    path = write(tmp_path / "column.jsonl", answers)
    assert finding(of_files(clean, prompts=path), "D010").status == "not_applicable"
    assert finding(of_files(clean, prompts=path, references="answer"), "D010").numbers["leaked"] == 1


def test_lengths_against_the_context(clean: Request) -> None:
    longest = int(finding(of_files(clean), "D009").numbers["longest_prompt_tokens"])
    fits = finding(of_files(clean, max_prompt_tokens=longest, max_response_tokens=160 - longest), "D009")
    assert (fits.status, fits.numbers["dropped"]) == ("pass", 0)
    # a run refuses limits beyond a context even where no prompt is that long
    beyond = of_files(clean, max_prompt_tokens=longest, max_response_tokens=161 - longest)
    assert finding(beyond, "D009").status == "refuse"
    assert finding(beyond, "D009").advice == f"set --max-prompt-tokens to {longest - 1}"
    shorter = of_files(clean, max_prompt_tokens=longest - 1, max_response_tokens=161 - longest)
    assert finding(shorter, "D009").status != "refuse"
    assert finding(of_files(clean, max_response_tokens=160), "D009").advice == "lower --max-response-tokens"
    dropped = finding(of_files(clean, max_prompt_tokens=20), "D009")
    assert dropped.status == "warning"
    assert dropped.numbers["dropped"] > 0
    assert finding(of_files(clean, max_prompt_tokens=3), "D009").status == "refuse"
    assert finding(of_files(clean, max_response_tokens=4), "D009").numbers["cut_references"] > NUM_PROMPTS / 2


def test_too_few_prompts_are_refused_as_a_run_refuses_them(clean: Request, tmp_path: Path) -> None:
    few = write(tmp_path / "few.jsonl", read(clean.prompts)[:12])
    assert flagged(of_files(clean, prompts=few)) == {"D013": "refuse"}
    rows = [row | {"split": "test" if i < 17 else "train"} for i, row in enumerate(read(clean.prompts))]
    rows[0]["prompt"] = rows[1]["prompt"] = "long " * 60
    rows[1]["prompt"] += "one"
    short = finding(of_files(clean, prompts=write(tmp_path / "long.jsonl", rows)), "D013")
    assert (short.status, short.numbers) == ("refuse", {"held_out": 15})


def test_the_forecast_of_memory_against_the_machine(clean: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    found = finding(of_files(clean), "D014")
    numbers = dict(found.numbers)
    weights = sum(p.numel() for p in load_model(clean.teacher).module.parameters()) * 4
    assert numbers["frozen_weights_bytes"] == 2 * weights
    assert numbers["trained_weights_bytes"] == 4 * weights
    assert numbers["logits_bytes"] == 32 * 60 * 514 * 4 * 10
    peak = int(numbers["peak_bytes"])
    for there, status in ((peak - 1, "refuse"), (peak + 1, "warning"), (2 * peak, "pass")):
        monkeypatch.setattr(cost, "memory_bytes", lambda device, there=there: there)
        assert finding(of_files(clean), "D014").status == status
    monkeypatch.setattr(cost, "memory_bytes", lambda device: peak // 2)
    parts = 32 // int(finding(of_files(clean), "D014").advice.split("(")[1].split()[0])
    assert finding(of_files(clean, batch_size=32 // (parts + 1)), "D014").status == "pass"


def test_shapes_are_those_of_the_weights() -> None:
    for name in ("define-teacher", "define-seq2seq-student"):
        parameters = load_model(name).module.named_parameters()
        assert describe(name)[1] == {key: tuple(p.shape) for key, p in parameters}


def test_a_forecast_of_disk_against_what_is_free(clean: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = finding(of_files(clean), "D015").numbers
    weights = sum(p.numel() for p in load_model(clean.student).module.parameters()) * 4
    # best, last, the newest with two moments, and the student of every evaluation
    assert numbers["checkpoints_bytes"] == (5 + ProbeConfig().num_evaluations) * weights
    both = int(numbers["checkpoints_bytes"] + numbers["signal_bytes"])
    for free, status in ((numbers["checkpoints_bytes"] - 1, "refuse"), (both, "warning"), (2 * both, "pass")):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: shutil._ntuple_diskusage(0, 0, int(free)))
        assert finding(of_files(clean), "D015").status == status


@pytest.fixture
def glosses(tmp_path: Path) -> Request:
    """The embedded teacher and student on prompts of their own task."""
    task = get_task("define")
    rows = [row for row in corpus_rows(task) if row["split"] == "held_out"][:200]
    lines = [{"prompt": task.template.format(**row), "reference": row["gloss"]} for row in rows]
    path = write(tmp_path / "glosses.jsonl", lines)
    return Request("define-oracle", "define-small", path, max_prompt_tokens=24, max_response_tokens=40)


def test_a_teacher_that_is_worse_than_its_student(glosses: Request) -> None:
    assert finding(examine(glosses), "D020").status == "pass"
    swapped = examine(dataclasses.replace(glosses, teacher=glosses.student, student=glosses.teacher))
    found = finding(swapped, "D020")
    assert found.status == "warning"
    assert found.numbers["teacher_nats_per_token"] > found.numbers["student_nats_per_token"]


def test_a_vocabulary_in_another_order_is_absurdly_far(glosses: Request, tmp_path: Path) -> None:
    student = copy_of(str(base_path("define-small")), tmp_path / "student")
    weights = load_file(student / "model.safetensors")
    weights["transformer.wte.weight"] = weights["transformer.wte.weight"].flip(0).contiguous()
    save_file(weights, student / "model.safetensors", metadata={"format": "pt"})
    assert finding(examine(glosses), "D021").status == "pass"
    found = finding(examine(dataclasses.replace(glosses, student=str(student))), "D021")
    assert found.status == "warning"
    assert found.numbers["kl_nats_per_token"] > math.log(512) / 2


def test_responses_that_are_cut_or_empty(clean: Request, tmp_path: Path) -> None:
    cut = finding(examine(dataclasses.replace(clean, max_response_tokens=2)), "D022")
    assert (cut.status, cut.numbers["cut_share"] > 0.25) == ("warning", True)
    teacher = copy_of(clean.teacher, tmp_path / "teacher")
    weights = load_file(teacher / "model.safetensors")
    weights["lm_head.weight"][513, 0] = 9.0
    save_file(weights, teacher / "model.safetensors", metadata={"format": "pt"})
    found = finding(examine(dataclasses.replace(clean, teacher=str(teacher))), "D022")
    assert (found.status, found.numbers) == ("warning", {"cut_share": 0.0, "empty_share": 1.0})


def test_both_families_are_examined(glosses: Request) -> None:
    pair = {"teacher": "define-seq2seq-teacher", "student": "define-seq2seq-student"}
    found = examine(dataclasses.replace(glosses, **pair))
    assert found.verdict != "refuse", flagged(found)
    assert finding(found, "D018").status == finding(found, "D019").status == "pass"


def test_the_calibration_leaves_the_student_as_it_is(clean: Request) -> None:
    case = read_case(clean)
    before = case.student.model.digest
    found = cost.run_time(case)
    assert case.student.model.digest == before
    assert all(value > 0 for value in found.numbers.values())
    assert all(parameter.grad is None for parameter in case.student.model.module.parameters())


def test_what_cannot_be_read_ends_in_one_sentence(clean: Request, tmp_path: Path) -> None:
    damaged = copy_of(clean.student, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes((damaged / "model.safetensors").read_bytes()[:500])
    pickled = copy_of(clean.student, tmp_path / "pickled")
    torch.save({}, pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    odd = copy_of(clean.student, tmp_path / "odd")
    (odd / "generation_config.json").write_text("[1")
    plain = copy_of(clean.student, tmp_path / "plain")
    chat_tokenizer(template=None).save_pretrained(plain)
    (plain / "chat_template.jinja").unlink(missing_ok=True)
    broken = llama(tmp_path / "broken", chat_tokenizer(template="{% for %}"))
    rows = read(clean.prompts)
    half = write(tmp_path / "half.jsonl", [rows[0] | {"split": "train"}, rows[1]])
    for changes, words in (
        ({"student": str(damaged)}, "cannot read the weights"),
        ({"student": str(pickled)}, "only pickled weights (pytorch_model.bin)"),
        ({"student": str(odd)}, "cannot read generation_config.json"),
        ({"student": str(tmp_path / "absent")}, "cannot load the tokenizer"),
        ({"teacher": str(tmp_path / "absent")}, "cannot load the model"),
        ({"teacher": str(plain), "student": str(plain)}, "has no chat template"),
        ({"prompts": "define"}, "is a task of assay"),
        ({"teacher": None}, "name the teacher by --teacher, or the column"),
        ({"teacher": None, "responses": "reference"}, "name one column"),
        ({"teacher": str(broken)}, "cannot render"),
        ({"prompts": tmp_path / "absent.jsonl"}, "cannot read"),
        ({"prompts": half}, "line 2 has no 'split'"),
        ({"references": "answr"}, "column of references"),
        ({"template": "{reference}"}, "must not see"),
        ({"max_response_tokens": 0}, "--max-response-tokens"),
        ({"device": "abacus"}, "cannot be used"),
    ):
        with pytest.raises(AssayError) as caught:
            of_files(clean, **changes)
        assert words in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    result = assay("--teacher", pickled, "--student", clean.student, "--prompts", clean.prompts, "--json")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("assay: model ")


def test_the_table_shows_control_characters_and_markup_as_they_are(
    clean: Request, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = llama(tmp_path / "student", chat_tokenizer(template="[bold]\x1b[2J{{ messages[0].content }}"))
    print_examination(of_files(clean, student=str(student)))
    shown = capsys.readouterr().out
    assert "[bold]" in shown
    assert "\x1b" not in shown
    assert "D017 not applicable mass on padded rows: not measured" in shown


# --- the words of assay distill


def test_the_flags_are_those_of_distill() -> None:
    of_the_doctor = {field.name: field.default for field in dataclasses.fields(Request)}
    for field in dataclasses.fields(Distill):
        if field.name not in ("divergence", "learning_rate", "seed", "budget", "source"):  # nothing to examine there
            assert field.name in of_the_doctor
            if field.default is not None and field.default is not dataclasses.MISSING:
                assert of_the_doctor[field.name] == field.default
    assert of_the_doctor["passes"] == NUM_PASSES


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (lambda clean, folder: {}, None),
        (lambda clean, folder: {"student": str(llama(folder / "s", chat_tokenizer(), num_rows=576))}, None),
        (lambda clean, folder: {"max_prompt_tokens": 101}, "D009"),
        (lambda clean, folder: {"prompts": write(folder / "few.jsonl", read(clean.prompts)[:60])}, "D013"),
        (lambda clean, folder: {"teacher": str(llama(folder / "t", chat_tokenizer("<|endoftext|>")))}, "D003"),
        (lambda clean, folder: {"teacher": "define-teacher"}, "D002"),
        (lambda clean, folder: {"teacher": None, "responses": "reference", "references": "group"}, None),
    ],
)
def test_the_doctor_refuses_what_distill_refuses(
    clean: Request, tmp_path: Path, fault: Callable[[Request, Path], dict[str, Any]], code: str | None
) -> None:
    rows = [row | {"group": f"group of {row['prompt']}"} for row in read(clean.prompts)]
    start = dataclasses.replace(clean, prompts=write(tmp_path / "prompts.jsonl", rows))
    request = dataclasses.replace(start, **fault(start, tmp_path))
    found = of_files(request)
    assert (found.verdict == "refuse") == (code is not None), flagged(found)
    assert code is None or flagged(found)[code] == "refuse"
    wish = Distill(
        **{f.name: getattr(request, f.name) for f in dataclasses.fields(Distill) if hasattr(request, f.name)}
    )
    wish = dataclasses.replace(wish, prompts=str(request.prompts))
    with nullcontext() if code is None else pytest.raises(AssayError):
        check_models(filled(wish, request.experiment, survey(request.experiment)), tmp_path, lambda progress: None)


def test_models_are_those_of_a_run(clean: Request, tmp_path: Path) -> None:
    """Of several ends the tokenizer's counts, rows of padding are cut, pickled weights are read where they may be."""
    student = llama(tmp_path / "student", chat_tokenizer(), num_rows=576)
    change_json(student / "config.json", eos_token_id=[0, 513])
    weights = load_file(student / "model.safetensors")
    (student / "model.safetensors").unlink()
    torch.save(weights, student / "pytorch_model.bin")
    with pytest.raises(AssayError, match="give --allow-pickle if you trust it"):
        of_files(clean, student=str(student))
    model = read_case(dataclasses.replace(clean, student=str(student), allow_pickle=True)).student.model
    assert (model.eos_token_id, model.vocab_size) == (513, 514)


def test_foreign_code_runs_only_when_it_is_trusted(
    glosses: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    student, seen = copy_of(str(base_path("define-small")), tmp_path / "student"), tmp_path / "seen"
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    change_json(student / "config.json", model_type="own", auto_map=auto_map)
    (student / "own.py").write_text(
        "import pathlib\nfrom transformers import GPT2Config, GPT2LMHeadModel\n"
        f"pathlib.Path({str(seen)!r}).touch()\n"
        "class OwnConfig(GPT2Config):\n    model_type = 'own'\n"
        "class OwnModel(GPT2LMHeadModel):\n    config_class = OwnConfig\n"
    )
    request = dataclasses.replace(glosses, student=str(student))
    with pytest.raises(AssayError, match="Python code in its own repository"):
        examine(request)
    assert not seen.exists()
    found, plain = examine(dataclasses.replace(request, trust_remote_code=True)), examine(glosses)
    assert finding(found, "D021") == finding(plain, "D021")


def test_a_data_set_is_examined_as_the_file_that_it_becomes(
    clean: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rows = [{"prompt": row["prompt"], "reference": row["reference"]} for row in read(clean.prompts)]
    task = get_task("dataset:org/prompts")
    write_table(tmp_path / "assay" / "tasks" / task.corpus, pa.Table.from_pylist(rows))
    write_json((tmp_path / "assay" / "tasks" / task.corpus).with_suffix(".json"), {})
    found, of_the_file = of_files(clean, prompts="dataset:org/prompts"), of_files(clean)
    assert flagged(found) == {}
    assert finding(found, "D009").what == finding(of_the_file, "D009").what


# --- the end of a turn


def test_a_turn_that_ends_otherwise_than_the_tokenizer_says(clean: Request, tmp_path: Path) -> None:
    """As gemma-it's: <end_of_turn> ends a turn, and is not the tokenizer's end."""
    pair = {role: str(llama(tmp_path / role, chat_tokenizer(eos="<|endoftext|>"))) for role in ("teacher", "student")}
    found = of_files(clean, **pair)
    assert flagged(found) == {"D024": "warning"}
    turn = finding(found, "D024")
    assert "end with <|im_end|>, but the run ends them at <|endoftext|>" in turn.what
    assert "set eos_token in the student's tokenizer_config.json to <|im_end|>" in turn.advice
    assert "513" in turn.advice
    assert finding(of_files(clean), "D024").what == "the chat template ends an answer with <|im_end|>, as a run does"


@pytest.mark.parametrize(
    ("template", "status"),
    [
        (LLAMA_2, "pass"),  # no special token
        (CHATML.replace("<|im_end|>", "<|im_start|>"), "warning"),
        # a token that only begins the next answer
        (
            "{% for m in messages %}{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}",
            "pass",
        ),
        ("{{ messages[0].content }}", "not_applicable"),  # no answer
    ],
)
def test_what_a_template_writes_after_an_answer(clean: Request, tmp_path: Path, template: str, status: str) -> None:
    pair = {role: str(llama(tmp_path / role, chat_tokenizer(template=template))) for role in ("teacher", "student")}
    assert finding(of_files(clean, **pair), "D024").status == status


# --- a teacher that gives text only


def given(
    clean: Request, tmp_path: Path, change: Callable[[list[dict[str, Any]]], object] = lambda rows: None
) -> Request:
    """Two responses to every prompt instead of a teacher."""
    rows = [row | {"said": [row["reference"], f"again {row['reference']}"]} for row in read(clean.prompts)]
    change(rows)
    path = write(tmp_path / "given.jsonl", rows)
    return dataclasses.replace(clean, teacher=None, responses="said", prompts=path)


def test_text_alone_is_examined_without_a_teacher(
    clean: Request, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = given(clean, tmp_path)
    found = examine(request)
    # the student of this world was never trained, and the responses are text of people: that it says
    assert flagged(found) == {"D021": "warning"}
    idle = {f.code for f in found.findings if f.status == "not_applicable"}
    assert idle == {"D002", "D017", "D020", "D022", "D027", "D028"}
    assert finding(found, "D026").status == "note"
    print_examination(found)
    assert "D026 note what text cannot tell: with text alone" in capsys.readouterr().out
    told = finding(found, "D025")
    assert (told.numbers["fewest_responses"], told.numbers["most_responses"], told.numbers["repeating"]) == (2, 2, 0)
    assert found.to_dict()["teacher"] is None

    case = read_case(request)
    pairs, model = case.teacher_pairs, case.student.model
    nll = []
    for prompt, response in zip(pairs.prompt_ids, pairs.response_ids, strict=True):
        logits = model.module(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
        nll += torch.nn.functional.cross_entropy(logits, torch.tensor(response), reduction="none").tolist()
    distance = finding(found, "D021").numbers["nll_nats_per_token"]
    assert distance == pytest.approx(sum(nll) / len(nll), rel=1e-4)
    assert distance > math.log(514) / 2
    # every one of them ends, and is spelt by the student's tokenizer
    row = read(request.prompts)[case.rows[case.measured[3]].line - 1]
    assert pairs.response_ids[3] == (*case.tokenizer.encode(row["said"][0], add_special_tokens=False), 513)


def test_what_a_verdict_from_text_alone_rests_on(clean: Request, tmp_path: Path) -> None:
    found = of_files(given(clean, tmp_path))
    told, held_out = finding(found, "D026"), int(finding(found, "D013").numbers["held_out"])
    assert (told.status, "up to a constant only" in told.what) == ("note", True)
    assert told.what.endswith(f"rest on {held_out} held-out references")
    alone = of_files(given(clean, tmp_path, lambda rows: [row.pop("reference") for row in rows]))
    assert finding(alone, "D026").what.endswith("the verdict is undecided")


def test_a_student_that_wrote_the_text_is_near(glosses: Request, tmp_path: Path) -> None:
    case = read_case(glosses)
    said = [case.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in case.teacher_pairs.response_ids]
    rows = [{"prompt": case.rows[i].text, "said": text} for i, text in zip(case.measured, said, strict=True)]
    path = write(tmp_path / "said.jsonl", rows)
    request = dataclasses.replace(glosses, teacher=None, student=glosses.teacher, responses="said", prompts=path)
    assert behaviour.first_distance(read_case(request)).status == "pass"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: [row.update(said=row["prompt"].upper() + "!") for row in rows[:5]], "5 are their prompt again"),
        (lambda rows: [row.update(said="…") for row in rows[3:9]], "6 hold no letter or digit"),
        (lambda rows: [row.update(said="I cannot help with that.") for row in rows[:80]], "repeat another one"),
        (
            lambda rows: [row.update(said=30 * row["reference"]) for row in rows[:80]],
            "rarely shown how a response ends",
        ),
    ],
)
def test_responses_that_teach_nothing(clean: Request, tmp_path: Path, change: Any, words: str) -> None:
    told = of_files(given(clean, tmp_path, change))
    assert flagged(told) == {"D025": "warning"}
    said = finding(told, "D025")
    assert words in said.what
    assert said.numbers["fewest_responses"] == 1


def test_a_prompt_without_a_response_is_named(clean: Request, tmp_path: Path) -> None:
    with pytest.raises(AssayError, match=r"line 8 'said' holds no response.*line 12 'said' is empty"):
        of_files(given(clean, tmp_path, lambda rows: (rows[7].pop("said"), rows[11].update(said=" "))))


# --- a teacher behind a server


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv(server.API_KEY_VARIABLE, raising=False)
    monkeypatch.setattr(server, "_FIRST_DELAY_SECONDS", 0.0)
    with Stub(gpt2(3), word_tokenizer()) as running:
        yield running


@pytest.fixture
def served(stub: Stub, tmp_path: Path) -> Request:
    """A student of the served model's vocabulary, and prompts of three words."""
    save_model(gpt2(4), tmp_path / "student", word_tokenizer())
    words = "abcdefghijklmnopqrstu"
    prompts = [{"prompt": f"{one} {other} {one}"} for one in words[:14] for other in words[:14]]
    return Request(
        teacher=stub.url,
        student=str(tmp_path / "student"),
        prompts=write(tmp_path / "words.jsonl", prompts),
        max_prompt_tokens=8,
        max_response_tokens=8,
        server=ServerConfig(top_k=VOCAB_SIZE, max_retries=0),
    )


def test_a_served_teacher_is_asked(stub: Stub, served: Request) -> None:
    found = examine(served)
    # random models: short texts that seldom end, and a student that knows nothing
    assert set(flagged(found)) <= {"D012", "D021", "D022"}
    assert "tiny at http://127.0.0.1" in finding(found, "D027").what
    assert "its context: 32 tokens" in finding(found, "D027").what
    assert finding(found, "D028").numbers["captured_mass"] == pytest.approx(1.0, abs=1e-4)
    time = finding(found, "D023")
    assert time.numbers["requests"] == 2 * 14 * 14
    assert "392 requests to the server" in time.what
    assert "trained on in 12 passes" in time.what
    # the responses are the served model's own
    pairs = read_case(served).teacher_pairs
    assert list(pairs.response_ids) == stub.model.sample(pairs.prompt_ids, seeds_of(stub, pairs), 8)


def seeds_of(stub: Stub, pairs: Batch) -> list[int]:
    of_prompt = {tuple(r["prompt"]): r["seed"] for r in stub.requests if r.get("return_token_ids")}
    return [of_prompt[prompt] for prompt in pairs.prompt_ids]


def test_little_of_the_law_is_listed(served: Request, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--teacher", str(served.teacher), "--models.server.top-k", "2"]
    lengths = ["--max-prompt-tokens", "8", "--max-response-tokens", "8"]
    with pytest.raises(SystemExit) as left:
        main(["doctor", *few, "--student", served.student, "--prompts", str(served.prompts), *lengths, "--json"])
    content = json.loads(capsys.readouterr().out)
    assert (left.value.code, content["verdict"]) == (1, "warnings")
    mass = next(entry for entry in content["findings"] if entry["code"] == "D028")
    assert (mass["status"], "models.server.top_k" in mass["advice"]) == ("warning", True)
    assert mass["numbers"]["captured_mass"] < 0.9


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (lambda stub: stub.models.append({"id": "other"}), "D027", "has 2 models (tiny, other)"),
        (lambda stub: stub.models[0].update(max_model_len=16), "D027", "has a context of 16"),
        (
            lambda stub: setattr(stub, "tokenizer", word_tokenizer("bacdefghijklmnopqrstu")),
            "D027",
            "is not the student's",
        ),
        (lambda stub: setattr(stub, "alter", lambda n, asked, reply: Reply(status=500)), "D027", "gave no answer"),
        (lambda stub: setattr(stub, "alter", without_ids), "D028", "samples text without token ids"),
    ],
)
def test_a_server_that_does_not_fit_is_refused_in_a_sentence(
    stub: Stub, served: Request, fault: Callable[[Stub], object], code: str, words: str
) -> None:
    fault(stub)
    found = examine(served)
    assert finding(found, code).status == "refuse"
    assert words in finding(found, code).what
    assert all(f.status == "not_applicable" for f in measured_findings(found) if f.code not in ("D016", "D028"))


def without_ids(n: int, asked: dict[str, Any], reply: Reply) -> Reply:
    sampled = asked.get("return_token_ids", False)
    return with_choice(reply, token_ids=None, logprobs=None) if sampled else reply
