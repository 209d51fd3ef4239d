"""What a run is said to cost, against what the same code then counts, writes and takes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import Embedding
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from assay import evaluation, run_experiment, runs
from assay.checkpoints import save_model
from assay.config import ARMS, ArmConfig, Experiment, SourceConfig, to_dict, with_policy
from assay.data.sources import Counters, Mixture, ResponseSource
from assay.divergences import DIVERGENCES
from assay.errors import AssayError
from assay.footprint import _arm_memory
from assay.forecast import forecast, measured_flops_per_second, plan_lines
from assay.models.bases import BASES
from assay.models.loading import load_model
from assay.models.seq2seq import Seq2SeqModel
from assay.models.sizes import PUBLIC, size_of
from assay.recipes.scales import SCALES
from assay.types import Batch, Prompt, Response
from assay.workload import arm_work, num_evaluations, stage_one_work
from test_experiment import small
from tiny_models import gpt2, llama, t5


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    run_experiment(small(), folder)
    return folder


# --- against a run


def test_no_arm_spends_more_tokens_than_forecast_nor_less_than_half(run: Path) -> None:
    """Responses of this task fill four fifths of their limit; that is all that the bound gives away."""
    arms = runs.read_json(run / "summary.json")["arms"]
    found = forecast(small()).arms
    assert [arm["source"] for arm in arms] == [arm.name for arm in found]
    for arm, bound in zip(arms, found, strict=True):
        for name in ("generated_tokens", "teacher_tokens"):
            assert getattr(bound, name) / 2 < arm[name] <= getattr(bound, name)


def test_what_a_run_keeps_on_disk_is_forecast(run: Path) -> None:
    kept = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    assert kept / 1.1 < forecast(small()).disk_bytes < 1.5 * kept  # type: ignore[operator]


def test_a_finished_run_calibrates_its_own_forecast(run: Path, tmp_path: Path) -> None:
    manifest = runs.read_json(run / "manifest.json")
    speed = measured_flops_per_second([run / "manifest.json"])
    assert speed is not None
    workers = min(manifest["hardware"]["cores"], 3)
    assert forecast(small()).flops / (speed * workers) == pytest.approx(manifest["wall_seconds"])  # type: ignore[operator]
    assert measured_flops_per_second([run / "manifest.json"] * 2) == pytest.approx(speed)
    unfinished, elsewhere = tmp_path / "unfinished.json", tmp_path / "elsewhere.json"
    runs.write_json(unfinished, manifest | {"status": "running"})
    runs.write_json(elsewhere, manifest | {"hardware": manifest["hardware"] | {"processor": "abacus"}})
    assert measured_flops_per_second([unfinished, elsewhere]) is None
    # a sweep notes the seconds of all workers together, and what cost none because it was copied
    swept, sharing = tmp_path / "swept.json", tmp_path / "sharing.json"
    stages = {"wall_seconds": manifest["wall_seconds"] * workers, "stage_seconds": {"stage_one": 1.0}}
    runs.write_json(swept, manifest | stages)
    runs.write_json(sharing, manifest | {"wall_seconds": 1e-3, "copied": ["stage1"]})
    assert measured_flops_per_second([swept]) == pytest.approx(speed)
    assert measured_flops_per_second([sharing]) is None


# --- exact counts


class Longwinded:
    """A model whose responses all have the greatest length: no bound is slack."""

    name, vocab_size, eos_token_id, digest = "longwinded", 8, 0, ""

    def check_lengths(self, num_prompt_tokens: int, num_response_tokens: int) -> None:
        pass

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        yield

    def hidden(self, batch: Batch) -> torch.Tensor:
        return torch.zeros(batch.num_tokens, 2)

    def head(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        return torch.full((len(hidden_NH), self.vocab_size), -math.log(self.vocab_size))

    def log_probs(self, batch: Batch) -> torch.Tensor:
        return self.head(self.hidden(batch))

    def sample(
        self, prompt_ids: Sequence[tuple[int, ...]], seeds: Sequence[int], max_response_tokens: int, temperature: float
    ) -> list[tuple[int, ...]]:
        return [(1,) * max_response_tokens for _ in prompt_ids]


MIXED = ArmConfig("mixed", (SourceConfig("teacher", weight=3.0), SourceConfig("student", 1, "steps", weight=1.0)))
EVERY_OTHER_PASS = ArmConfig("every_other_pass", (SourceConfig("teacher", 2, "epochs"),))
EVERY_FIFTH_STEP = ArmConfig("every_fifth_step", (SourceConfig("oracle", 5, "steps"),))


REPLAY = ArmConfig("replay", (SourceConfig("teacher", 1), SourceConfig("oracle", prompts="oracle")))
TEXT = ArmConfig("text", (SourceConfig("teacher", 1), SourceConfig("dataset", learn="text")))


@pytest.mark.parametrize("completions", [1, 3])
@pytest.mark.parametrize("num_steps", [1, 3, 16])
@pytest.mark.parametrize(
    "arm",
    [*ARMS.values(), MIXED, EVERY_OTHER_PASS, EVERY_FIFTH_STEP, REPLAY, TEXT],
    ids=lambda arm: arm.name,
)
def test_counts_are_those_of_the_sources_when_every_response_is_long(
    arm: ArmConfig, num_steps: int, completions: int
) -> None:
    experiment = small(num_steps=num_steps)
    training = dataclasses.replace(experiment.distillation.training, batch_size=4)
    distillation = dataclasses.replace(
        experiment.distillation, num_prompts=8, completions_per_prompt=completions, training=training
    )
    probe = dataclasses.replace(experiment.probe, num_train_pairs=2)
    stage_one = dataclasses.replace(experiment.stage_one, num_oracle_prompts=11)
    experiment = dataclasses.replace(
        experiment, stage_one=stage_one, distillation=distillation, probe=probe, arms=(arm,)
    )
    model, counters = Longwinded(), Counters()
    prompts = [Prompt(f"p{i}", "", (2, 3), "text", (1,) * 24) for i in range(11)]
    sources = [
        ResponseSource(
            config,
            prompts if config.prompts == "oracle" else prompts[:8],
            {"teacher": model, "oracle": model},
            max_response_tokens=24,
            completions_per_prompt=config.completions(completions),
            index=index,
            counters=counters,
        )
        for index, config in enumerate(arm.sources)
    ]
    for source in sources:
        if (source.config.writer, source.config.refresh_every) == ("teacher", None):
            source.stored_pairs(2)
        if source.config.is_replay:
            source.preload([Response(prompt.id, (1,) * 24, "oracle", True) for prompt in prompts])
    mixture = Mixture(sources, 4)
    for step in range(num_steps):
        mixture.batch(step, model)
    (bound,) = forecast(experiment).arms
    seen = (counters.generated_tokens, counters.teacher_tokens)
    if arm is EVERY_FIFTH_STEP or (arm in (MIXED, ARMS["offline"]) and num_steps < 16):
        # due or not depends on when a pair was drawn, and the train proxy's pairs may be drawn as well
        assert bound.generated_tokens >= seen[0]
        assert bound.teacher_tokens >= seen[1]
    else:
        assert (bound.generated_tokens, bound.teacher_tokens) == seen


def test_more_of_anything_costs_more_and_hard_labels_cost_less() -> None:
    experiment = small()
    before = forecast(experiment)

    def changed(part: str, **values: object) -> Experiment:
        return dataclasses.replace(experiment, **{part: dataclasses.replace(getattr(experiment, part), **values)})

    for after in (
        changed("task", max_response_tokens=48),
        changed("probe", num_prompts=128),
        changed("stage_one", num_oracle_prompts=512),
        changed("distillation", training=dataclasses.replace(experiment.distillation.training, num_steps=99)),
    ):
        found = forecast(after)
        assert found.flops > before.flops  # type: ignore[operator]
        assert found.generated_tokens > before.generated_tokens
        assert found.disk_bytes > before.disk_bytes  # type: ignore[operator]
    hard = dataclasses.replace(experiment.distillation.training, divergence="hard_labels")
    found = forecast(changed("distillation", training=hard))
    assert found.scored_tokens < before.scored_tokens
    assert (
        found.trained_tokens == before.trained_tokens == (6 * 64 + 3 * 64 + 3 * 12 * 64) * 24
    )  # SFT of both, three arms


def test_listed_tokens_and_a_store_are_forecast() -> None:
    """Lists of 8 tokens are kept in 68 bytes a token instead of 4 for each of 512; a store holds what they take."""
    experiment = small(num_steps=64)

    def changed(**values: object) -> Experiment:
        distillation = dataclasses.replace(experiment.distillation, num_prompts=4096, **values)  # type: ignore[arg-type]
        return dataclasses.replace(experiment, distillation=distillation)

    before, listed, stored = (forecast(changed(**v)) for v in ({}, {"teacher_top_k": 8}, {"signal_store": "store"}))
    sizes = {role: size_of(name) for role, name in experiment.models.names.items()}
    memory, of_lists = (
        _arm_memory(changed(**v), experiment.arms[0], sizes)  # type: ignore[arg-type]
        for v in ({}, {"teacher_top_k": 8})
    )
    remembered = 64 + 32 + 4096  # held-out prompts, the train proxy's pairs, those trained on
    in_a_step = 2 * experiment.distillation.training.batch_size
    assert memory - of_lists == (remembered + in_a_step) * 24 * (4 * 512 - 68)
    assert listed.memory_bytes < before.memory_bytes  # type: ignore[operator]
    assert (listed.disk_bytes, listed.arms) == (before.disk_bytes, before.arms)
    both = forecast(changed(teacher_top_k=8, signal_store="store"))
    sequences = [64 + 32 + n for n in (4096, 4096, 0)]  # offline, online teacher, online student
    assert stored.disk_bytes - before.disk_bytes == sum(sequences) * (24 * 4 * 512 + 500)  # type: ignore[operator]
    assert both.disk_bytes - before.disk_bytes == sum(sequences) * (24 * 68 + 500)  # type: ignore[operator]


def test_more_teachers_cost_their_share_of_everything() -> None:
    """SFT of each, and every forward of the teacher by all; the oracle's and the student's work stay."""
    one = small()
    three = dataclasses.replace(one, models=dataclasses.replace(one.models, num_teachers=3))
    size = size_of(one.models.teacher)
    assert size is not None
    before, after = forecast(one), forecast(three)
    sft = round(2 * 192 / 64) * 64
    assert after.trained_tokens - before.trained_tokens == 2 * sft * 24
    assert (after.generated_tokens, after.scored_tokens, after.arms) == (
        before.generated_tokens,
        before.scored_tokens,
        before.arms,
    )
    works = [stage_one_work(one), *(arm_work(one, arm) for arm in one.arms)]
    others = {role: size_of(name) for role, name in one.models.names.items() if role != "teacher"}
    of_teacher = before.flops - sum(work.flops(one, others) for work in works)  # type: ignore[operator, misc, arg-type]
    assert after.flops == before.flops + 2 * of_teacher  # type: ignore[operator]
    weights = 4 * size.num_parameters
    assert after.memory_bytes >= before.memory_bytes + 2 * weights  # type: ignore[operator]
    assert after.disk_bytes >= before.disk_bytes + 2 * weights  # type: ignore[operator]


def test_cures_cost_what_they_add() -> None:
    """An anchor a forward pass and a copy of the student; an average or low-rank updates a copy; replay no tokens."""
    base = small()
    training = dataclasses.replace(base.distillation.training, batch_size=512)  # an arm needs the most memory
    base = dataclasses.replace(base, distillation=dataclasses.replace(base.distillation, training=training))
    before = forecast(base)

    def after(**changes: Any) -> Any:
        training = dataclasses.replace(base.distillation.training, **changes)
        return forecast(
            dataclasses.replace(base, distillation=dataclasses.replace(base.distillation, training=training))
        )

    size = size_of(base.models.student)
    assert size is not None
    anchored, averaged, low_rank = after(anchor_weight=1.0), after(averaging_decay=0.9), after(lora_rank=8)
    assert anchored.scored_tokens == before.scored_tokens + 3 * 12 * 512 * 24
    assert anchored.flops > before.flops
    assert averaged.flops == low_rank.flops == before.flops
    for found in (anchored, averaged, low_rank):
        assert found.memory_bytes == before.memory_bytes + 4 * size.num_parameters
    assert averaged.disk_bytes == before.disk_bytes + 3 * runs.NUM_CHECKPOINTS * 4 * size.num_parameters
    replay, offline = (
        forecast(dataclasses.replace(base, arms=(arm,)))
        for arm in (
            ArmConfig("a", (SourceConfig(), SourceConfig("oracle", prompts="oracle", learn="text"))),
            ARMS["offline"],
        )
    )
    assert replay.arms[0].generated_tokens == offline.arms[0].generated_tokens
    assert replay.arms[0].teacher_tokens == offline.arms[0].teacher_tokens


def test_a_policy_may_turn_every_row_into_a_new_response() -> None:
    base = dataclasses.replace(small(), arms=(ARMS["offline"], ARMS["online_teacher"]))
    offline, online = forecast(base).arms
    watched, same = forecast(with_policy(base, "auto")).arms
    assert offline.generated_tokens < watched.generated_tokens == online.generated_tokens == same.generated_tokens
    stopped, plain = forecast(with_policy(base, "stop")), forecast(base)
    assert dataclasses.replace(stopped, disk_bytes=plain.disk_bytes) == plain
    students = len(base.arms) * num_evaluations(base) * 4 * size_of(base.models.student).num_parameters  # type: ignore[union-attr]
    assert stopped.disk_bytes - plain.disk_bytes == students  # type: ignore[operator]


def test_micro_batches_save_memory_and_no_operations() -> None:
    paper = SCALES["paper"]["xsum"]()
    whole = dataclasses.replace(paper.distillation.training, num_micro_batches=1)
    assert (
        forecast(paper).flops
        == forecast(
            dataclasses.replace(paper, distillation=dataclasses.replace(paper.distillation, training=whole))
        ).flops
    )
    gpt = SCALES["small"]["xsum_gpt2"]()
    huge = dataclasses.replace(gpt.distillation.training, num_micro_batches=1, batch_size=512)
    split = dataclasses.replace(huge, num_micro_batches=64)
    one, many = (
        forecast(dataclasses.replace(gpt, distillation=dataclasses.replace(gpt.distillation, training=training)))
        for training in (huge, split)
    )
    assert one.memory_bytes > many.memory_bytes  # type: ignore[operator]


# --- sizes


def modules() -> dict[str, object]:
    """The architectures of the table, without weights."""
    with torch.device("meta"):
        sizes = {
            "distilbert/distilgpt2": (768, 6, 12),
            "openai-community/gpt2": (768, 12, 12),
            "openai-community/gpt2-medium": (1024, 24, 16),
            "openai-community/gpt2-large": (1280, 36, 20),
        }
        made: dict[str, object] = {
            name: GPT2LMHeadModel(GPT2Config(n_embd=width, n_layer=layers, n_head=heads))
            for name, (width, layers, heads) in sizes.items()
        }
        for name, (width, feed_forward, layers, heads, version) in {
            "google/t5-efficient-tiny": (256, 1024, 4, 4, {}),
            "google-t5/t5-small": (512, 2048, 6, 8, {}),
            "google-t5/t5-base": (768, 3072, 12, 12, {}),
            "google-t5/t5-large": (1024, 4096, 24, 16, {}),
            "google/flan-t5-xl": (2048, 5120, 24, 32, {"feed_forward_proj": "gated-gelu"}),
        }.items():
            shape = {"d_model": width, "d_ff": feed_forward, "num_layers": layers, "num_heads": heads}
            made[name] = T5ForConditionalGeneration(T5Config(vocab_size=32_128, d_kv=64, **shape, **version))
    return made


def test_the_public_table_is_what_transformers_builds() -> None:
    made = modules()
    assert set(made) == set(PUBLIC)
    for name, module in made.items():
        size = PUBLIC[name]
        own_head = size.num_head_parameters if "flan" in name else 0  # in the checkpoint, tied until it is loaded
        assert sum(p.numel() for p in module.parameters()) + own_head == size.num_parameters, name  # type: ignore[attr-defined]


def test_every_scale_uses_models_of_the_table_only() -> None:
    for worlds in SCALES.values():
        for world in worlds.values():
            assert forecast(world()).flops is not None


@pytest.mark.parametrize("name", [name for name in BASES if name.startswith("define")])
def test_embedded_bases_are_measured_from_their_headers(name: str) -> None:
    size, module = size_of(name), load_model(name).module
    assert size is not None
    assert size.num_parameters == sum(value.numel() for value in stored(module).values())
    assert size.family == BASES[name].family
    linear = [part.weight for part in module.modules() if hasattr(part, "weight") and not isinstance(part, Embedding)]
    biases = [part.bias for part in module.modules() if getattr(part, "bias", None) is not None]
    head = module.get_output_embeddings().weight
    body = sum(p.numel() for p in [*linear, *biases] if p is not head)
    passed = size.num_response_parameters + (size.num_prompt_parameters if size.family == "seq2seq" else 0)
    assert passed == body


def stored(module: Any) -> dict[int, torch.Tensor]:
    """What a checkpoint holds: weights and buffers, shared ones once."""
    return {value.data_ptr(): value for value in module.state_dict().values()}


def test_untied_and_relative_checkpoints_are_measured(tmp_path: Path) -> None:
    for model in (gpt2(), llama(), t5(), t5(gated=True)):
        save_model(model, tmp_path / model.name)
        size = size_of(str(tmp_path / model.name))
        assert size is not None
        assert size.num_parameters == sum(p.numel() for p in model.module.parameters())
        assert size.relative_positions == model.name.startswith("t5")
        assert (size.num_head_parameters, size.num_layers) == (23 * 16, 2)


def test_the_formulas_of_the_table_and_of_a_header_agree(tmp_path: Path) -> None:
    """The table's own arithmetic, on checkpoints small enough to write."""
    from assay.models.sizes import _t5

    shape = {"d_model": 16, "d_ff": 32, "num_layers": 2, "num_heads": 2, "d_kv": 64, "vocab_size": 32_128}
    for version_1_1, module in (
        (False, T5ForConditionalGeneration(T5Config(**shape, decoder_start_token_id=0))),
        (True, MT5ForConditionalGeneration(MT5Config(**shape, decoder_start_token_id=0))),
    ):
        if version_1_1:
            module.lm_head.weight = torch.nn.Parameter(torch.randn_like(module.lm_head.weight))
        save_model(Seq2SeqModel(module.eval(), "t5"), tmp_path / str(version_1_1))
        assert size_of(str(tmp_path / str(version_1_1))) == _t5(16, 32, 2, 2, version_1_1=version_1_1)


def test_a_folder_that_cannot_be_read_is_refused_and_an_unknown_hub_id_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(AssayError, match="cannot read the size of model"):
        size_of(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"no header")
    with pytest.raises(AssayError, match="cannot read the size of model"):
        size_of(str(tmp_path))
    models = dataclasses.replace(small().models, teacher="someone/unheard-of")
    found = forecast(dataclasses.replace(small(), models=models))
    assert (found.flops, found.memory_bytes, found.disk_bytes) == (None, None, None)
    assert found.unknown_models == ("someone/unheard-of",)
    assert found.arms == forecast(small()).arms
    lines = plan_lines({"x": dataclasses.replace(small(), models=models)}, 1e9, 2)
    assert "unknown" in lines[0]
    assert "someone/unheard-of" in lines[-1]


# --- the plan


def test_seeds_share_a_line_and_the_total_adds_up() -> None:
    seeds = {f"quickstart-seed{seed}": dataclasses.replace(small(), seed=seed) for seed in range(3)}
    other = dataclasses.replace(small(num_steps=24), recipe="longer")
    lines = plan_lines({**seeds, "longer": other}, 1e9, 2)
    assert [line.split(":")[0] for line in lines] == ["quickstart-seed0", "longer", "total"]
    assert "3 runs" in lines[0]
    assert "4 runs" in lines[2]
    one, longer = forecast(small()), forecast(other)
    minutes = (3 * one.flops + longer.flops) / 2e9 / 60  # type: ignore[operator]
    assert f"{minutes:.3g} min on 2 workers" in lines[2]
    assert f"{(3 * one.flops + longer.flops) / 1e9:.3g} GFLOP" in lines[2] or "TFLOP" in lines[2]  # type: ignore[operator]


def test_without_a_throughput_the_time_is_unknown_and_says_why() -> None:
    lines = plan_lines({"small": small()}, None, 2)
    assert "time unknown" in lines[0]
    assert "until one run is finished on this machine" in lines[-1]


def test_a_plan_needs_no_torch() -> None:
    code = (
        "import sys; from assay.forecast import plan_lines; from assay.recipes import get_recipe\n"
        "print(plan_lines({'a': get_recipe('define_seq2seq')}, None, 1)); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_what_is_repeated_here_is_what_the_other_modules_have() -> None:
    assert [name for name, row in DIVERGENCES.items() if row.needs == "tokens"] == ["hard_labels"]
    for num_steps in (1, 3, 12, 13, 300, 5000):
        for times in (4, 5, 14, 24):
            probe = dataclasses.replace(small().probe, num_evaluations=times)
            experiment = dataclasses.replace(small(num_steps=num_steps), probe=probe)
            assert num_evaluations(experiment) == len(evaluation.evaluation_steps(num_steps, times))


def test_the_config_of_a_manifest_has_the_same_forecast() -> None:
    from assay.config_file import from_dict

    assert forecast(from_dict(json.loads(json.dumps(to_dict(small()))))) == forecast(small())
