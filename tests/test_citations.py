"""``assay cite``: every work that the code names has an entry, and a run's config decides which are printed."""

from __future__ import annotations

import dataclasses
import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from assay import run_experiment
from assay.citations import ENTRIES, OF_DIVERGENCE, own_entry, unknown_models, used_by
from assay.config import ArmConfig, Experiment, SourceConfig
from assay.data.tasks import TASKS
from assay.divergences import DIVERGENCES
from assay.models.bases import BASES
from assay.recipes import RECIPES, get_recipe
from command_line import assay_here
from test_experiment import small

ROOT = Path(__file__).parent.parent
BRACKETS = re.compile(r"\[([A-Z][^\[\]]*?\b(?:19|20)\d\d[^\[\]]*)\]")
WORK = re.compile(r"(\w+)[^;]*?\b((?:19|20)\d\d)")
ENTRY = re.compile(r"^@(\w+)\{(\w+),$")
FIELD = re.compile(r"^  (\w+) = \{(.*)\},$")


def keys_in(text: str) -> list[str]:
    """ "Lee 2001; Ko et al. 2024" → lee2001, ko2024; two works may also be apart by a comma."""
    parts = [part for each in text.split(";") for part in re.split(r"(?<=\d\d\d\d), (?=[A-Z])", each)]
    return [_ascii(f"{found[1].lower()}{found[2]}") for part in parts if (found := WORK.search(part))]


def _ascii(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def changed(change: Callable[[Experiment], Experiment]) -> set[str]:
    """The works that a change of the quickstart adds."""
    before = get_recipe("quickstart")
    return set(used_by(change(before))) - set(used_by(before))


def with_training(**fields: object) -> Callable[[Experiment], Experiment]:
    def change(experiment: Experiment) -> Experiment:
        training = dataclasses.replace(experiment.distillation.training, **fields)
        return dataclasses.replace(
            experiment, distillation=dataclasses.replace(experiment.distillation, training=training)
        )

    return change


def with_sources(*sources: SourceConfig) -> Experiment:
    return dataclasses.replace(get_recipe("quickstart"), arms=(ArmConfig("only", sources),))


def parsed(bibtex: str) -> dict[str, dict[str, str]]:
    """BibTeX, read strictly: one field a line, braces balanced in each, every key once."""
    entries: dict[str, dict[str, str]] = {}
    for block in bibtex.strip().split("\n\n"):
        first, *fields, last = block.split("\n")
        head = ENTRY.match(first)
        assert head, first
        assert last == "}"
        assert head[2] not in entries
        read = [FIELD.match(line) for line in fields]
        assert all(read), fields
        entries[head[2]] = {found[1]: found[2] for found in read if found}
        assert len(entries[head[2]]) == len(fields)
        for value in entries[head[2]].values():
            depth = 0
            for sign in re.sub(r"\\.", "", value):
                depth += {"{": 1, "}": -1}.get(sign, 0)
                assert depth >= 0
            assert depth == 0
    return entries


def test_every_entry_is_bibtex_in_ascii_with_author_title_and_year() -> None:
    entries = parsed("\n\n".join(entry.bibtex for entry in ENTRIES.values()))
    assert list(entries) == list(ENTRIES)
    for key, fields in entries.items():
        assert {"author", "title", "year"} <= set(fields)
        assert key.endswith(fields["year"])
        surname = _ascii(ENTRIES[key].authors.split(",")[0].split(" and ")[0])
        assert key.startswith(re.sub(r"\W", "", surname).lower())
        assert " ".join(fields.values()).isascii()
        if "eprint" in fields:
            assert re.fullmatch(r"\d{4}\.\d{4,5}", fields["eprint"])


def test_every_work_that_the_code_names_has_an_entry() -> None:
    named = {
        (path.name, key)
        for path in (ROOT / "src/assay").rglob("*.py")
        if path.name != "citations.py"
        for found in BRACKETS.finditer(" ".join(path.read_text(encoding="utf-8").split()))
        for key in keys_in(found[1])
    }
    assert len(named) > 25
    assert {(name, key) for name, key in named if key not in ENTRIES} == set()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_divergence_brings_the_works_that_its_table_names(name: str) -> None:
    assert list(OF_DIVERGENCE[name]) == keys_in(DIVERGENCES[name].source)
    assert set(OF_DIVERGENCE[name]) <= set(used_by(with_training(divergence=name)(get_recipe("quickstart"))))


def test_every_divergence_has_its_works() -> None:
    assert OF_DIVERGENCE.keys() == DIVERGENCES.keys()


def test_sources_bring_theirs() -> None:
    plain = set(used_by(with_sources(SourceConfig("teacher"))))
    assert set(used_by(with_sources(SourceConfig("student", 1, "steps")))) - plain == {"agarwal2024"}
    text = set(used_by(with_sources(SourceConfig("teacher", learn="text"))))
    assert "kim2016" in text - plain
    assert plain - text == {"kullback1951", "hinton2015"}
    assert set(used_by(with_sources(SourceConfig("dataset", learn="text")))) == plain - {"kullback1951", "hinton2015"}


def test_options_bring_theirs() -> None:
    assert changed(with_training(lora_rank=4)) == {"hu2022"}
    assert changed(with_training(gradient_checkpointing=True)) == {"chen2016"}
    assert changed(with_training(hard_label_weight=0.5)) == {"kim2016"}
    for selection, works in (("k_centre", {"gonzalez1985"}), ("facility_location", {"nemhauser1978", "minoux1978"})):
        assert works == changed(
            lambda e, name=selection: dataclasses.replace(
                e, distillation=dataclasses.replace(e.distillation, selection=name)
            )
        )


@pytest.mark.parametrize(
    ("task", "works"),
    [
        ("define", {"miller1995"}),
        ("translate", set()),
        ("summarize", set()),
        ("debian-synopsis", set()),
        ("debian-de", set()),
        ("xsum", {"narayan2018"}),
        ("wmt14-de-en", {"bojar2014"}),
        ("natural-instructions", {"wang2022"}),
        ("mine.jsonl", {"chaudhuri2006", "bayardo2007"}),
        ("dataset:squad", {"chaudhuri2006", "bayardo2007"}),
    ],
)
def test_a_corpus_brings_its_own(task: str, works: set[str]) -> None:
    experiment = get_recipe("quickstart")
    here = set(used_by(dataclasses.replace(experiment, task=dataclasses.replace(experiment.task, name=task))))
    corpora = {"miller1995", "narayan2018", "bojar2014", "wang2022", "chaudhuri2006", "bayardo2007"}
    assert here & corpora == works


def test_the_list_of_corpora_above_is_whole() -> None:
    listed = {"define", "translate", "summarize", "debian-synopsis", "debian-de", "xsum", "wmt14-de-en"}
    assert set(TASKS) == listed | {"natural-instructions"}


def test_a_teacher_of_text_alone_has_no_divergence_to_estimate() -> None:
    experiment = get_recipe("quickstart")
    models = dataclasses.replace(experiment.models, oracle=None, teacher=None)
    works = used_by(dataclasses.replace(experiment, models=models))
    assert "kim2016" in works
    assert not {"amini2025", "kullback1951"} & set(works)


def test_models_that_nobody_knows_are_named() -> None:
    experiment = get_recipe("quickstart")
    models = dataclasses.replace(
        experiment.models, oracle="google-t5/t5-base", teacher="http://host:1/v1", student="mine"
    )
    changed_models = dataclasses.replace(experiment, models=models)
    assert unknown_models(changed_models) == ["http://host:1/v1", "mine"]
    assert {"raffel2020", "csiszar1967"} <= set(used_by(changed_models))
    assert "radford2019" not in used_by(changed_models)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_its_phenomenon_and_its_bases(name: str) -> None:
    experiment = get_recipe(name)
    works = used_by(experiment)
    assert works[0] == "tiapkin2025"
    families = {BASES[model].family for model in experiment.models.names.values()}
    assert ("liu2020" in works, "radford2019" in works) == ("seq2seq" in families, "causal" in families)


def test_assay_is_what_citation_cff_says() -> None:
    said = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    own = own_entry(said["version"])
    assert own.title == said["title"]
    assert own.authors == "{" + said["authors"][0]["name"] + "}"
    paper = ENTRIES["tiapkin2025"]
    (reference,) = said["references"]
    assert paper.title == reference["title"]
    people = [f"{one['family-names']}, {one['given-names']}" for one in reference["authors"]]
    assert paper.authors == " and ".join(people)


def test_the_command_prints_what_a_real_run_used(tmp_path: Path) -> None:
    experiment = with_training(divergence="skew_reverse_kl", num_steps=2)(small())
    experiment = dataclasses.replace(experiment, arms=experiment.arms[:1])
    run_experiment(experiment, tmp_path / "run")
    ended = assay_here("cite", "run", folder=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    printed = parsed(ended.stdout)
    assert list(printed) == ["assay", *used_by(experiment)]
    assert {"lee2001", "ko2024", "miller1995", "radford2019"} <= set(printed)
    assert not {"agarwal2024", "kullback1951", "student1908"} & set(printed)

    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    manifest["config"]["distillation"]["training"]["divergence"] = "none of ours"
    (tmp_path / "run/manifest.json").write_text(json.dumps(manifest))
    refused = assay_here("cite", "run", folder=tmp_path)
    assert refused.returncode == 2
    assert "none of ours" in refused.stderr


def test_what_is_no_run_is_refused_in_one_sentence(tmp_path: Path) -> None:
    ended = assay_here("cite", "nothing", folder=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "manifest.json" in ended.stderr
    assert ended.stderr.count("\n") == 1
