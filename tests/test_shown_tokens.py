"""tokens.parquet: each token's log-probability is the models' own, its text is the response's, damage is a sentence."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from assay.config import ProbeConfig
from assay.errors import AssayError
from assay.evaluation import Probe, build_probe, write_responses
from assay.models.causal import CausalModel
from assay.models.exact import MarkovChain
from assay.models.loading import load_tokenizer
from assay.models.pretrained import PretrainedModel
from assay.report.files import read_tokens
from assay.shown_tokens import ShownTokens, token_texts
from assay.token_table import LOG_PROBS, LOWEST_NATS, TOKENS_SCHEMA
from assay.types import Prompt, Response
from tiny_models import bart, gpt2, llama, t5

PROMPTS = [Prompt(f"p{i}", "", (1 + i % 20, 2, 3 + i % 5), "r", (4, 6 + i, 0) if i % 3 else ()) for i in range(12)]
CONFIG = ProbeConfig(num_prompts=12, num_monitored=9, num_shown=7)
TOKENIZER = load_tokenizer("define-oracle")
SHOWN = [f"p{i}" for i in range(6)]


def probe_of(models: dict[Any, Any], config: ProbeConfig = CONFIG) -> Probe:
    """Of models that are all there; who has no model has written his text elsewhere."""
    scribe = models["student"]
    responses: Any = {
        role: write_responses(models.get(role, scribe), role, PROMPTS, 6, purpose=role, seed=0)
        for role in ("oracle", "teacher", "student")
    }
    return build_probe(models, PROMPTS, responses, ([], []), config, max_response_tokens=6, seed=0)


def table_of(probe: Probe, student: Any, step: int = 3) -> pa.Table:
    samples = probe.evaluate(student, step).samples
    return ShownTokens(probe, TOKENIZER).table(student, samples, arm="offline", seed=5, step=step)


def reference(model: PretrainedModel, prompt: tuple[int, ...], response: tuple[int, ...]) -> list[float]:
    """log p of each response token in float64, from the module itself, one sequence at a time."""
    module: Any = copy.deepcopy(model.module).double()
    if isinstance(model, CausalModel):
        logits_TV = module(input_ids=torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    else:
        start = module.config.decoder_start_token_id
        begun = torch.tensor([[start, *response[:-1]]])
        logits_TV = module(input_ids=torch.tensor([prompt]), decoder_input_ids=begun).logits[0]
    log_p_TV = logits_TV.log_softmax(-1)
    return [log_p_TV[i, token].item() for i, token in enumerate(response)]


def responses_of(probe: Probe, student: Any, step: int = 3) -> dict[tuple[str, str], Response]:
    names = {"golden": "oracle", "proxy": "teacher", "reference_nll": "dataset"}
    fixed = {(names[s.metric], r.prompt_id): r for s in probe.sets if s.metric in names for r in s.responses}
    return fixed | {("student", r.prompt_id): r for r in probe.evaluate(student, step).samples}


def of(table: pa.Table, writer: str, prompt_id: str) -> pa.Table:
    return table.filter((pc.field("writer") == writer) & (pc.field("prompt_id") == prompt_id))


@pytest.mark.parametrize("make", [gpt2, llama, t5, functools.partial(t5, gated=True), bart])
def test_log_probs_are_those_of_each_model_in_float64(make: Callable[[int], PretrainedModel]) -> None:
    models = {"oracle": make(3), "teacher": make(1), "student": make(2)}
    probe, student = probe_of(models), make(6)
    table, responses = table_of(probe, student), responses_of(probe, student)
    ids = {prompt.id: prompt.token_ids for prompt in PROMPTS}
    seen = {(row["writer"], row["prompt_id"]) for row in table.to_pylist()}
    assert seen == {key for key in responses if key[1] in SHOWN}
    assert ("dataset", "p1") in seen
    assert ("dataset", "p3") not in seen  # has none
    for writer, prompt_id in seen:
        rows, response = of(table, writer, prompt_id), responses[writer, prompt_id]
        assert rows["position"].to_pylist() == list(range(len(response.token_ids)))
        for name, model in {"student": student, "teacher": models["teacher"], "oracle": models["oracle"]}.items():
            expected = reference(model, ids[prompt_id], response.token_ids)
            assert rows[f"log_prob_{name}"].to_pylist() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert set(table["arm"].to_pylist()) == {"offline"}
    assert set(table["seed"].to_pylist()) == {5}
    assert set(table["step"].to_pylist()) == {3}


def test_they_add_up_to_what_the_probe_says_of_the_references() -> None:
    student = gpt2(6)
    probe = probe_of({"oracle": gpt2(3), "teacher": gpt2(1), "student": gpt2(2)})
    nll = next(v for v in probe.evaluate(student, 0).per_prompt if v.metric == "reference_nll")
    table = table_of(probe, student)
    for prompt_id, value in zip(nll.prompt_ids, nll.value_nats, strict=True):
        if prompt_id in SHOWN:
            assert -sum(of(table, "dataset", prompt_id)["log_prob_student"].to_pylist()) == pytest.approx(value, 1e-5)


def test_the_frozen_models_say_the_same_of_fixed_responses_at_every_step_and_the_student_does_not() -> None:
    probe = probe_of({"oracle": gpt2(3), "teacher": gpt2(1), "student": gpt2(2)})
    shown, samples = ShownTokens(probe, TOKENIZER), probe.evaluate(gpt2(6), 0).samples
    first, second = (shown.table(gpt2(seed), samples, arm="a", seed=0, step=0) for seed in (6, 7))
    fixed = pc.field("writer") != "student"
    for name in ("teacher", "oracle"):
        assert first.filter(fixed)[f"log_prob_{name}"].equals(second.filter(fixed)[f"log_prob_{name}"])
    assert not first.filter(fixed)["log_prob_student"].equals(second.filter(fixed)["log_prob_student"])
    again = ShownTokens(probe, TOKENIZER).table(gpt2(7), samples, arm="a", seed=0, step=0)
    assert again.equals(second)  # bit for bit, as a resumed arm repeats it


class Listing:
    """A teacher of which a server lists the likeliest tokens."""

    name, vocab_size, eos_token_id, num_top, digest = "served", 23, 0, 4, ""

    def top_k(self, batch: Any) -> Any:
        from assay.buckets import top_k

        return top_k(gpt2(1).log_probs(batch).detach(), 4)

    def sample(self, *arguments: Any) -> Any:
        return gpt2(1).sample(*arguments)


@pytest.mark.parametrize("teacher", [None, Listing()], ids=["text only", "served"])
def test_who_is_not_there_or_shows_no_law_has_nulls(teacher: Any) -> None:
    models = {"student": gpt2(2)} if teacher is None else {"teacher": teacher, "student": gpt2(2)}
    table = table_of(probe_of(models), gpt2(6))
    assert set(table["writer"].to_pylist()) == {"student", "teacher", "dataset"}
    assert table["log_prob_teacher"].null_count == table["log_prob_oracle"].null_count == len(table) > 0
    assert table["log_prob_student"].null_count == 0


def test_as_many_prompts_as_have_samples_and_none_where_there_are_none() -> None:
    models = {"oracle": gpt2(3), "teacher": gpt2(1), "student": gpt2(2)}
    for number in (0, 2):
        table = table_of(probe_of(models, dataclasses.replace(CONFIG, num_shown=number)), gpt2(6))
        assert table["prompt_id"].unique().to_pylist() == SHOWN[:number]
        assert table.schema == TOKENS_SCHEMA


def test_what_a_model_excludes_is_written_as_a_number() -> None:
    laws = torch.eye(23).roll(1, 1).double(), torch.full((23, 23), 1 / 23, dtype=torch.float64)
    one, other = (MarkovChain(law, eos_token_id=0) for law in laws)
    probe = probe_of({"oracle": other, "teacher": other, "student": other})
    found = table_of(probe, other)["log_prob_teacher"].to_pylist()
    assert found == pytest.approx([-torch.tensor(23.0).log().item()] * len(found))
    probe.teacher = one
    assert min(table_of(probe, other)["log_prob_teacher"].to_pylist()) == LOWEST_NATS


# --- texts


@pytest.mark.parametrize("text", [" a small dog", "naïve 🙂 漢字, ok", "line\n\ttab  two", "ends so 🙂", ""])
@pytest.mark.parametrize("base", ["define-oracle", "define-seq2seq-oracle", "translate-oracle"])
def test_texts_concatenate_to_the_response_and_the_end_has_a_name(text: str, base: str) -> None:
    tokenizer = load_tokenizer(base)
    ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    *texts, end = token_texts(tokenizer, ids)
    assert "".join(texts) == tokenizer.decode(ids, skip_special_tokens=True) == text
    assert end == tokenizer.eos_token
    assert len(texts) == len(ids) - 1


def test_a_split_character_stands_at_its_last_token_and_half_a_character_is_marked() -> None:
    ids = TOKENIZER.encode("a漢b", add_special_tokens=False)
    texts = token_texts(TOKENIZER, ids)
    assert len(ids) > 3
    assert [text for text in texts if text] == ["a", "漢", "b"]
    assert texts.index("漢") == len(ids) - 2
    cut = [*ids[:-2], TOKENIZER.eos_token_id]
    assert token_texts(TOKENIZER, cut)[-2:] == ["\ufffd", TOKENIZER.eos_token]


# --- reading


@functools.cache
def whole() -> pa.Table:
    return table_of(probe_of({"oracle": gpt2(3), "teacher": gpt2(1), "student": gpt2(2)}), gpt2(6))


def test_what_is_written_is_read_and_older_runs_have_none(tmp_path: Path) -> None:
    table = whole()
    pq.write_table(table, tmp_path / "tokens.parquet")
    found = read_tokens(tmp_path / "tokens.parquet")
    assert found is not None
    assert found.equals(table)
    assert read_tokens(tmp_path / "none.parquet") is None
    pq.write_table(TOKENS_SCHEMA.empty_table(), tmp_path / "tokens.parquet")
    assert read_tokens(tmp_path / "tokens.parquet") is None


def with_column(name: str, value: Any) -> Callable[[pa.Table], pa.Table]:
    return lambda t: t.set_column(t.column_names.index(name), name, pa.array([value] * len(t)))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda t: t.drop_columns(["token"]), "not the table expected"),
        (with_column("position", "first"), "not the table expected"),
        (with_column("log_prob_student", None), "'log_prob_student' .* holds nulls"),
        *[(with_column(name, value), f"'{name}'") for name in LOG_PROBS for value in (float("nan"), -1e30, 0.5)],
        (with_column("writer", "stranger"), "'stranger'"),
        (with_column("position", 1), "all in their order, once"),
        (lambda t: t.slice(1), "all in their order, once"),
        (lambda t: t.take([0, *range(len(t))]), "all in their order, once"),
        (lambda t: pa.concat_tables([t, t]), "all in their order, once"),
        (with_column("prompt_id", "p0"), "all in their order, once"),
        (lambda t: t.filter(pc.field("position") != 1), "all in their order, once"),
    ],
)
def test_damage_of_any_kind_ends_in_one_sentence(
    tmp_path: Path, damage: Callable[[pa.Table], pa.Table], words: str
) -> None:
    pq.write_table(damage(whole()), tmp_path / "tokens.parquet")
    with pytest.raises(AssayError, match=words):
        read_tokens(tmp_path / "tokens.parquet")
