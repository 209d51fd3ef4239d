"""Config files, hashes and refusals."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from assay.config import (
    ArmConfig,
    Experiment,
    ModelsConfig,
    SourceConfig,
    StageOneConfig,
    TrainingConfig,
    config_hash,
    to_dict,
)
from assay.config_file import from_dict, load
from assay.errors import AssayError
from assay.recipes import RECIPES, get_recipe
from assay.recipes.cures import cures
from assay.recipes.worlds import WORLDS
from assay.validation import validate


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_survives_the_trip_through_a_file(name: str, tmp_path: Path) -> None:
    experiment = get_recipe(name)
    validate(experiment)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_dict(experiment)))
    assert load(path) == experiment
    assert config_hash(load(path)) == config_hash(experiment)


def test_a_yaml_file_may_give_a_part(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 3\ndistillation: {num_prompts: 600, training: {learning_rate: 1e-2}}\n")
    experiment = load(path)
    assert (experiment.seed, experiment.distillation.num_prompts) == (3, 600)
    assert experiment.distillation.training.learning_rate == 0.01
    assert experiment.probe == Experiment().probe
    assert experiment.recipe == "mine"


@pytest.mark.parametrize("config", [None, [], "quickstart"])
def test_a_manifest_without_a_config_is_refused(config: object, tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({"schema": "assay.manifest/1", "config": config}))
    with pytest.raises(AssayError, match="holds no config"):
        load(path)


def test_hash_depends_on_every_level() -> None:
    base = Experiment()
    task = dataclasses.replace(base.task, max_prompt_tokens=17)
    assert len({config_hash(e) for e in (base, Experiment(seed=1), dataclasses.replace(base, task=task))}) == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sede": 1}, r"unknown field in the config 'sede': did you mean 'seed'"),
        (
            {"distillation": {"num_promts": 1}},
            r"unknown field in distillation 'num_promts': did you mean 'num_prompts'",
        ),
        ({"distillation": {"training": {"lr": 1}}}, r"unknown field in distillation.training 'lr'"),
        ({"seed": "one"}, r"config field 'seed': expected int, got 'one'"),
        ({"seed": 1.5}, r"config field 'seed': expected int, got 1.5"),
        ({"seed": True}, r"config field 'seed': expected int, got True"),
        ({"probe": 3}, r"config field 'probe'"),
        ({"distillation": {"training": {"schedule": "sudden"}}}, r"config field 'distillation.training.schedule'"),
        (
            {"arms": [{"name": "a", "sources": [{"writer": "nobody"}]}]},
            r"config field 'arms.\[0\].sources.\[0\].writer'",
        ),
    ],
)
def test_bad_values_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(AssayError, match=message):
        from_dict(values)


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "just text", "a: [1,", ""])
def test_a_file_that_is_no_config_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(AssayError, match=r"config\.yaml"):
        load(path)
    with pytest.raises(AssayError, match="No such file"):
        load(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ()}, "'arms'"),
        ({"arms": (ArmConfig("a", (SourceConfig(),)),) * 2}, "same name"),
        ({"arms": (ArmConfig("a", ()),)}, "at least one source"),
        ({"arms": (ArmConfig("a", (SourceConfig(weight=0.0),)),)}, "positive weight"),
        ({"arms": (ArmConfig("a", (SourceConfig(refresh_every=0),)),)}, "refresh_every"),
        ({"arms": (ArmConfig("../a", (SourceConfig(),)),)}, "letters, digits"),
        ({"distillation": dataclasses.replace(Experiment().distillation, num_prompts=0)}, "num_prompts"),
    ],
)
def test_impossible_values_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(AssayError, match=message):
        validate(dataclasses.replace(Experiment(), **change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1),
        ("seed", 2**64),
        ("recipe", "../../x"),
        ("stage_one.learning_rate", -1.0),
        ("stage_one.teacher_epochs", float("nan")),
        ("distillation.sampling_temperature", float("inf")),
        ("distillation.training.max_grad_norm", -1.0),
        ("distillation.training.max_grad_norm", 0.0),
        ("distillation.training.warmup_steps", -5),
        ("distillation.training.betas", (2.0, 0.9)),
        ("distillation.training.weight_decay", -1.0),
        ("distillation.training.num_micro_batches", 65),
        ("distillation.training.anchor_weight", -0.1),
        ("distillation.training.anchor_weight", math.nan),
        ("distillation.training.averaging_decay", 1.0),
        ("distillation.training.averaging_decay", -0.1),
        ("distillation.training.averaging_decay", math.nan),
        ("distillation.training.dropout", 1.0),
        ("distillation.training.dropout", -0.1),
        ("distillation.training.lora_rank", 0),
        ("distillation.training.hard_label_weight", 1.5),
        ("distillation.training.hard_label_weight", -0.1),
        ("distillation.training.hard_label_weight", math.nan),
        ("models.num_teachers", 0),
        ("probe.num_monitored", 10_000),
    ],
)
def test_a_number_out_of_range_is_named(field: str, value: object) -> None:
    def replaced(config: object, path: list[str]) -> object:
        inner = value if len(path) == 1 else replaced(getattr(config, path[0]), path[1:])
        return dataclasses.replace(config, **{path[0]: inner})  # type: ignore[type-var]

    with pytest.raises(AssayError, match=field.split(".")[-1].replace("num_micro_batches", "micro-batches")):
        validate(replaced(Experiment(), field.split(".")))  # type: ignore[arg-type]


@pytest.mark.parametrize("module", ["assay", "assay.config", "assay.recipes", "assay.cli", "assay.results"])
def test_importing_it_does_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 1\nseed: 2\n", "line 2: field 'seed' is there twice"),
        ("task: {name: define, name: other}\n", "'name' is there twice"),
        ("seed:\t- 1\n\t- 2\n", "line 1"),
        ("a: &x [1]\nb: *x\n", "aliases are not supported"),
        ("recipe: 2024-13-45\n", "neither YAML nor JSON"),
        ("seed: !!int abc\n", "neither YAML nor JSON"),
        ("seed: !!bool abc\n", "neither YAML nor JSON"),
    ],
)
def test_a_config_file_that_means_two_things_or_nothing_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(AssayError, match=words):
        load(path)


def test_a_config_that_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path, tmp_path / "pipe.yaml"):
        with pytest.raises(AssayError, match="not a file"):
            load(path)


def test_divergence_parameters_are_finite() -> None:
    training = dataclasses.replace(TrainingConfig(), divergence_parameters={"beta": math.nan})
    distillation = dataclasses.replace(Experiment().distillation, training=training)
    with pytest.raises(AssayError, match="divergence_parameters' must be finite"):
        validate(dataclasses.replace(Experiment(), distillation=distillation))


def offline(source: SourceConfig, **training: Any) -> Experiment:
    base = Experiment()
    distillation = dataclasses.replace(
        base.distillation, training=dataclasses.replace(base.distillation.training, **training)
    )
    return dataclasses.replace(base, distillation=distillation, arms=(ArmConfig("mine", (source,)),))


TEXT = SourceConfig("dataset", learn="text")


@pytest.mark.parametrize(
    ("experiment", "message"),
    [
        (
            dataclasses.replace(Experiment(), models=ModelsConfig(num_teachers=2, teacher_is_oracle=True)),
            "the oracle is the teacher: set it to 1",
        ),
        (
            dataclasses.replace(
                Experiment(), models=ModelsConfig(num_teachers=2), stage_one=StageOneConfig(teacher_epochs=0.0)
            ),
            "2 teachers without SFT are all the same",
        ),
        (offline(SourceConfig("oracle", 1, prompts="oracle")), "replayed responses of stage 1 are kept for good"),
        (
            dataclasses.replace(offline(TEXT, lora_rank=4), arms=(ArmConfig("a", (SourceConfig(),), "auto"),)),
            "policy 'auto' may go back, low-rank updates cannot",
        ),
        (offline(SourceConfig("student", 1, learn="text")), "learns its own text learns nothing"),
        (offline(TEXT, divergence="reverse_kl"), "reverse_kl from the one law that a text gives is infinite"),
        (offline(TEXT, softmax_temperature=2.0), "a text has no softmax temperature, but training has 2"),
    ],
)
def test_cures_that_contradict_the_rest_are_refused(experiment: Experiment, message: str) -> None:
    with pytest.raises(AssayError, match=message):
        validate(experiment)


def test_the_config_of_an_older_manifest_is_the_same_experiment() -> None:
    """One that knows none of the cures: they are off, and its parts are found by the same keys."""
    values = to_dict(Experiment())
    cures = ("anchor_weight", "averaging_decay", "dropout", "lora_rank")
    for name in (*cures, "hard_label_weight", "gradient_checkpointing", "packing"):
        del values["distillation"]["training"][name]
    for name in ("num_teachers", "vocabulary", "allow_pickle", "trust_remote_code"):
        del values["models"][name]
    for arm in values["arms"]:
        for source in arm["sources"]:
            del source["prompts"], source["learn"]
    assert from_dict(values) == Experiment()


def test_every_cure_of_the_table_can_be_run_in_every_world() -> None:
    for world in (get_recipe("quickstart"), *(make() for make in WORLDS)):
        variants = cures(world)
        for experiment in variants.values():
            validate(experiment)
            assert len(experiment.arms) == 1
            assert experiment.seed == world.seed
        assert len(set(map(config_hash, variants.values()))) == len(variants) == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_candidates": 255}, "256 prompts cannot be chosen from 255 candidates"),
        ({"num_candidates": 0}, "cannot be chosen from 0 candidates"),
        ({"selection": "facility_location", "num_candidates": 16_385}, "16385 are too many"),
        ({"selection": "k_centre"}, "needs a pool to choose from"),
        ({"templates": ("{lemmas}:",)}, "templates are given, but distillation.augmentation is 'none'"),
        ({"paraphrase_template": "{prompt}"}, "paraphrase_template is given, but"),
        ({"augmentation": "templates"}, "'templates' has none"),
        ({"augmentation": "templates", "templates": ("{lemmas}:",) * 2}, "a template twice"),
        ({"augmentation": "templates", "templates": ("what?",)}, "shows no column"),
        ({"augmentation": "paraphrases"}, "needs distillation.paraphrase_template"),
        ({"augmentation": "paraphrases", "paraphrase_template": "{prompt} {lemmas}"}, "may show {prompt} alone"),
        ({"augmentation_tolerance": -0.1}, "augmentation_tolerance"),
    ],
)
def test_contradictory_dials_of_diversity_are_refused(change: dict[str, object], message: str) -> None:
    distillation = dataclasses.replace(Experiment().distillation, **change)  # type: ignore[arg-type]
    with pytest.raises(AssayError, match=message):
        validate(dataclasses.replace(Experiment(), distillation=distillation))


def test_a_config_from_before_the_dials_of_diversity_means_what_it_meant() -> None:
    new = ("selection", "num_candidates", "augmentation", "templates", "paraphrase_template", "augmentation_tolerance")
    values = to_dict(Experiment())
    assert {name: values["distillation"].pop(name) for name in new} == {
        "selection": "random",
        "num_candidates": None,
        "augmentation": "none",
        "templates": [],
        "paraphrase_template": None,
        "augmentation_tolerance": 0.1,
    }
    assert from_dict(values) == Experiment()
