"""What the stages of one run work with: its paths, prompts and models."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from assay import provenance, runs
from assay.config import Experiment, SourceConfig
from assay.data.augmentation import Text
from assay.data.distillation_set import pool_size
from assay.data.splitting import Survey
from assay.data.store import read_responses, response_text
from assay.data.tasks import Split, corpus_digest, load_prompts
from assay.errors import AssayError
from assay.judges import Judge, open_judge
from assay.models.ensemble import Ensemble
from assay.models.loading import load_framing, load_model, load_tokenizer, num_token_ids, random_model
from assay.models.pretrained import PretrainedModel
from assay.models.served import ServedModel
from assay.types import Prompt, Response, Writer

Teacher = PretrainedModel | Ensemble | ServedModel
"""Whatever writes and scores responses as a teacher."""


class Workspace:
    """Paths, prompts and models of one run, made on demand."""

    def __init__(self, experiment: Experiment, folder: Path) -> None:
        self.experiment = experiment
        self.folder = folder
        models = experiment.models
        home = models.tokenizer_home
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(home, models.trust_remote_code)
        if experiment.task.chat_template and self.tokenizer.chat_template is None and home != models.teacher:
            self._take_the_template_of_the_teacher()
        self.framing = load_framing(home, self.tokenizer, models.trust_remote_code)

    def _take_the_template_of_the_teacher(self) -> None:
        """A base model that learns to be an instructed one has no chat template of its own; it is saved with this."""
        models = self.experiment.models
        if models.teacher is not None and models.teacher_url is None:
            theirs = load_tokenizer(models.teacher, models.trust_remote_code)
            self.tokenizer.chat_template = theirs.chat_template

    @property
    def stage_one(self) -> Path:
        """The folder of stage 1: oracle responses and the two fine-tuned models."""
        return self.folder / "stage1"

    def arm(self, name: str) -> Path:
        """The folder of one arm."""
        return self.folder / "arms" / name

    def prompts(self, split: Split, num_prompts: int | None) -> list[Prompt]:
        """The run's prompts of a split, drawn with the run's seed; all that fit for None."""
        task = self.experiment.task
        corpus = self.text.corpus
        manifest = self.folder / "manifest.json"
        if manifest.exists():  # within a run: its text must not change under it
            provenance.pin_digests(runs.read_json(manifest), {"corpus": corpus_digest(corpus)})
        return load_prompts(
            corpus,
            split,
            self.tokenizer,
            task.max_prompt_tokens,
            task.max_response_tokens,
            num_prompts,
            self.experiment.seed,
            self.framing,
        )

    def source_prompts(self, source: SourceConfig, distillation: Sequence[Prompt]) -> Sequence[Prompt]:
        """The prompts of a source, of those to distil on; AssayError when it needs references and they have none."""
        prompts = distillation
        if source.prompts == "oracle":
            prompts = self.prompts("oracle", self.experiment.stage_one.num_oracle_prompts)
        if source.writer == "dataset" and not all(prompt.reference_ids for prompt in prompts):
            raise AssayError(
                f"writer 'dataset' needs a reference for every prompt of task {self.experiment.task.name!r}: "
                "give the others one, or choose another writer"
            )
        return prompts

    def distillation_pool(self) -> list[Prompt]:
        """The prompts of the distillation split that those of the run are chosen from."""
        return self.prompts("distillation", pool_size(self.experiment.distillation))

    @property
    def text(self) -> Text:
        """How text becomes prompts."""
        return Text(self.experiment.task, self.tokenizer, self.framing, self.experiment.models.oracle is not None)

    def held_out(self) -> list[Prompt]:
        """The probe's prompts."""
        return self.prompts("held_out", self.experiment.probe.num_prompts)

    def text_of_the_teacher(self, prompts: Sequence[Prompt], completion: int = 0) -> list[Response]:
        """Of a teacher that gives text only: one of its responses to each prompt, as the prompts' file has them."""
        eos = self.tokenizer.eos_token_id
        texts = [prompt.response_ids[completion] for prompt in prompts]
        return [Response(p.id, ids, "teacher", ids[-1] != eos) for p, ids in zip(prompts, texts, strict=True)]

    def held_out_responses(self, role: Writer) -> list[Response]:
        """A role's frozen answers to the held-out prompts (the student's as it was after stage 1)."""
        return read_responses(self.stage_one / f"held_out-{role}.parquet")

    def base(self, role: Writer) -> PretrainedModel:
        """A role's model before stage 1; not of a served teacher."""
        models = self.experiment.models
        is_random = role == "student" and models.student_initialisation == "random"
        is_frozen = role == "oracle" or (role == "teacher" and models.oracle is None)
        dtype = torch.bfloat16 if is_frozen and models.frozen_precision == "bfloat16" else torch.float32
        return self._load(models.names[role], is_random, dtype)

    @functools.cached_property
    def served_teacher(self) -> ServedModel | None:
        """The teacher behind a server, which is asked once whether it fits; None where there is none."""
        models = self.experiment.models
        if models.teacher_url is None:
            return None
        if self.framing.after:
            raise AssayError(
                f"a served teacher would see the tokens that close a prompt of {models.student!r}, an encoder-decoder "
                "model: distil from its text instead (models.teacher null, its responses in a column task.responses)"
            )
        return ServedModel(models.teacher_url, self.tokenizer, models.server)

    def tuned(self, role: Writer) -> Teacher:
        """A role's model after stage 1 (the oracle is never trained); several teachers are one ensemble."""
        models = self.experiment.models
        if role == "teacher" and self.served_teacher is not None:
            return self.served_teacher
        if role == "oracle" or (role == "teacher" and models.teacher_is_oracle):
            return self.base("oracle")
        if models.oracle is None:
            return self.base(role)
        members = [self._load(str(self.stage_one / name)) for name in self.tuned_names(role)]
        return members[0] if len(members) == 1 else Ensemble(members, f"{len(members)} teachers")

    def student(self) -> PretrainedModel:
        """The student as it is before distillation."""
        student = self.tuned("student")
        assert isinstance(student, PretrainedModel)
        return student

    def frozen(self) -> dict[Writer, Teacher]:
        """The models that a student is measured against, and learns from: oracle and teacher, as far as they are."""
        return {role: self.tuned(role) for role in self.experiment.models.names if role != "student"}

    def judges(self) -> list[Judge]:
        """Those who score the student's responses beside the truth."""
        decode = functools.partial(response_text, self.tokenizer)
        load = functools.cache(self._load)  # two judges may be one model
        return [open_judge(config, load, decode) for config in self.experiment.probe.judges]

    @property
    def vocab_size(self) -> int | None:
        """To how many tokens the law of every model is cut; None where it is left whole."""
        return num_token_ids(self.tokenizer) if self.experiment.models.vocabulary == "shared" else None

    def _load(self, name: str, is_random: bool = False, dtype: torch.dtype = torch.float32) -> PretrainedModel:
        """All models of a run end responses with its tokenizer's token, and have laws over one vocabulary."""
        models = self.experiment.models
        alike: Any = {
            "eos_token_id": self.tokenizer.eos_token_id,
            "vocab_size": self.vocab_size,
            "trust_remote_code": models.trust_remote_code,
        }
        if is_random:
            return random_model(name, self.experiment.seed, models.device, **alike)
        return load_model(name, models.device, allow_pickle=models.allow_pickle, dtype=dtype, **alike)

    def tuned_names(self, role: Writer) -> list[str]:
        """The folders, in stage 1, of a role's fine-tuned models."""
        number = self.experiment.models.num_teachers
        return [f"teacher-{i}" for i in range(number)] if role == "teacher" and number > 1 else [role]

    def oracle_responses(self, num_shards: int) -> tuple[list[Prompt], list[Response]]:
        """The oracle prompts with the oracle's answers, as stage 1 has written them."""
        prompts = self.prompts("oracle", self.experiment.stage_one.num_oracle_prompts)
        paths = [self.stage_one / f"oracle-{i}.parquet" for i in range(num_shards)]
        stored = {response.prompt_id: response for path in paths for response in read_responses(path)}
        return prompts, [stored[prompt.id] for prompt in prompts]


def survey(experiment: Experiment) -> Survey:
    """What the prompts of a config hold, before it has a run folder."""
    work = Workspace(experiment, Path(os.devnull))
    splits: tuple[Split, ...] = ("distillation", "held_out", *(("oracle",) if work.text.with_oracle else ()))
    found: dict[Split, list[Prompt]] = {split: work.prompts(split, None) for split in splits}
    num_responses = min((len(prompt.response_ids) for prompt in found["distillation"]), default=0)
    num_references = sum(bool(prompt.reference_ids) for prompt in found["held_out"])
    counts: dict[Split, int] = {split: len(prompts) for split, prompts in found.items()}
    return Survey(counts, num_responses, num_references)
