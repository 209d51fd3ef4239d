"""Faults, injected for real where that can be: what stops, what is kept, what is said, and that a resume is exact."""

from __future__ import annotations

import dataclasses
import errno
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from assay import runs
from assay.checkpoints import FitState
from assay.config import SourceConfig, TrainingConfig
from assay.data.signal_store import SignalStore
from assay.data.sources import Mixture, ResponseSource
from assay.errors import AssayError, is_out_of_memory
from assay.observation import Observer
from assay.training import FAILED_BATCH, fit
from assay.types import Batch
from test_training import CONFIG, PROMPTS, mixture
from tiny_models import gpt2

End = tuple[list[float], str]
"""What a loop ends in: its losses, and the digest of its student."""


def state_after(folder: Path, config: TrainingConfig = CONFIG, said: list[str] | None = None) -> End:
    """Losses and weights of a loop that ends, from whatever is in ``folder``."""
    student = gpt2(2)
    repaired = runs.say if said is None else said.append
    state = fit(student, mixture(), config, checkpoints=folder, repaired=repaired)
    return state.losses, student.digest


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> End:
    return state_after(tmp_path_factory.mktemp("whole"))


def steps_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- a checkpoint that is damaged


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: flip(f / "model.safetensors"), "model.safetensors is not what was written"),
        (lambda f: flip(f / "training.safetensors"), "training.safetensors is not what was written"),
        (lambda f: os.truncate(f / "training.json", 30), "training.json is not what was written"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda f: (f / "digests.json").write_text("[1]"), "digests.json is not what was written"),
        (lambda f: (f / "digests.json").write_bytes(b"\xff{"), "digests.json is not what was written"),
    ],
)
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    whole: Any, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    state_after(tmp_path, dataclasses.replace(CONFIG, num_steps=7))
    assert steps_in(tmp_path) == ["step-00000006", "step-00000007"]
    damage(tmp_path / "step-00000007")
    said: list[str] = []
    assert state_after(tmp_path, CONFIG, said) == whole
    (sentence,) = said
    assert words in sentence
    assert sentence.endswith("removed; goes on from step-00000006")
    assert steps_in(tmp_path) == ["step-00000008", "step-00000009"]


def test_with_no_whole_checkpoint_left_the_loop_begins_again(whole: Any, tmp_path: Path) -> None:
    state_after(tmp_path, dataclasses.replace(CONFIG, num_steps=7))
    for folder in tmp_path.iterdir():
        flip(folder / "model.safetensors")
    said: list[str] = []
    assert state_after(tmp_path, CONFIG, said) == whole
    assert [sentence.rpartition("goes on from ")[2] for sentence in said] == ["step-00000006", "step 0"]


def test_a_checkpoint_that_cannot_be_read_now_is_not_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state_after(tmp_path, dataclasses.replace(CONFIG, num_steps=7))

    def refuse(self: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(AssayError, match="cannot read"):
        state_after(tmp_path)
    assert steps_in(tmp_path) == ["step-00000006", "step-00000007"]


# --- a loss that is not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_its_batch_and_leaves_the_checkpoint(
    whole: Any, tmp_path: Path, value: float
) -> None:
    student, drawn = gpt2(2), mixture()
    seen: list[Batch] = []

    def poison(state: FitState) -> None:
        if state.step == 5:
            with torch.no_grad():
                next(student.module.parameters()).fill_(value)

    drawn.batch = _noting(drawn.batch, seen)  # type: ignore[method-assign]
    with pytest.raises(AssayError) as caught:
        fit(student, drawn, CONFIG, before_step=poison, checkpoints=tmp_path)
    prompts = {prompt.token_ids: prompt.id for prompt in PROMPTS}
    ids = [prompts[tokens] for tokens in seen[-1].prompt_ids]
    assert "at step 5, in a batch of 4 responses of the teacher (to the prompts " + ", ".join(ids[:3]) in str(
        caught.value
    )
    assert "lower the learning rate" in str(caught.value)
    assert "the last checkpoint is kept" in str(caught.value)
    rows = [{"writer": "teacher", "prompt_id": each} for each in ids]
    assert runs.read_json(tmp_path / FAILED_BATCH) == {"step": 5, "rows": rows}
    assert state_after(tmp_path) == whole  # whatever it was, it is gone
    assert steps_in(tmp_path) == ["step-00000008", "step-00000009"]


def _noting(batch: Callable[..., Batch], seen: list[Batch]) -> Callable[..., Batch]:
    def noting(step: int, student: Any) -> Batch:
        seen.append(batch(step, student))
        return seen[-1]

    return noting


def test_a_batch_of_two_sources_names_both_writers() -> None:
    models = {"teacher": gpt2(1), "oracle": gpt2(3)}
    made = [
        ResponseSource(SourceConfig(writer), PROMPTS, models, max_response_tokens=5, seed=4, index=i)  # type: ignore[arg-type]
        for i, writer in enumerate(("teacher", "oracle"))
    ]
    drawn = Mixture(made, batch_size=4)
    batch = drawn.batch(0, gpt2(2))
    assert [writer for writer, _ in drawn.last_rows()] == ["teacher", "teacher", "oracle", "oracle"]
    tokens = {prompt.id: prompt.token_ids for prompt in PROMPTS}
    assert [tokens[prompt_id] for _, prompt_id in drawn.last_rows()] == list(batch.prompt_ids)


# --- no memory


_HUNGRY = """
import dataclasses, resource, sys
from pathlib import Path
import torch
from assay import provenance, runs, stages, workers
from chaos import without_oracle

experiment, folder = without_oracle(), Path(sys.argv[1])
training = dataclasses.replace(experiment.distillation.training, batch_size=8192, num_steps=2, checkpoint_every=1)
distillation = dataclasses.replace(experiment.distillation, training=training, signal_store=None)
experiment = dataclasses.replace(experiment, distillation=distillation)
runs.prepare_folder(folder)
for role in ("teacher", "student"):
    workers.run_stage(experiment, folder, "answer_held_out", role)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 700_000_000,) * 2)
try:
    workers.run_stage(experiment, folder, "run_arm", "offline")
except runs.AssayError as error:
    print(error)
"""


def python(script: str, *arguments: object, limits: dict[int, int] | None = None) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        for name, value in (limits or {}).items():
            resource.setrlimit(name, (value, value))

    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(runs.__file__).parents[1])])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, preexec_fn=limit)


def test_an_arm_that_runs_out_of_memory_says_what_to_lower(tmp_path: Path) -> None:
    """A real limit of the address space, and torch's own error."""
    result = python(_HUNGRY, tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("arm 'offline': out of memory: lower distillation.training.batch_size")
    for name in ("num_micro_batches", "gradient_checkpointing", "max_prompt_tokens", "max_response_tokens"):
        assert name in result.stdout


def test_what_is_an_error_for_want_of_memory() -> None:
    gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert all(map(is_out_of_memory, [MemoryError(), gpu, RuntimeError("std::bad_alloc")]))
    with pytest.raises(RuntimeError) as caught:  # no machine has an exbibyte
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


# --- a full disk, a folder that is read-only


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_up_costs_the_checkpoint_in_the_making(whole: Any, small_disk: Path) -> None:
    state_after(small_disk, dataclasses.replace(CONFIG, num_steps=3))
    stop = small_disk / "ballast"
    with stop.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    with pytest.raises(AssayError, match="No space left on device: free space; the same command then resumes"):
        state_after(small_disk)
    stop.unlink()
    assert steps_in(small_disk) == ["step-00000002", "step-00000003"]
    assert state_after(small_disk) == whole


def test_a_record_that_finds_the_disk_full_is_a_sentence() -> None:
    with pytest.raises(AssayError, match="cannot write '/dev/full': No space left on device: free space"):
        runs.append_record(Path("/dev/full"), {"step": 1})


def test_a_file_system_that_is_read_only_is_a_sentence_and_stays_as_it_is(small_disk: Path) -> None:
    state_after(small_disk, dataclasses.replace(CONFIG, num_steps=3))
    runs.append_record(small_disk / "metrics.jsonl", {"step": 0})
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for refused in (
        lambda: state_after(small_disk),
        lambda: runs.append_record(small_disk / "metrics.jsonl", {"step": 1}),
        lambda: runs.locked(small_disk).__enter__(),
        lambda: runs.prepare_folder(small_disk / "run"),
        lambda: runs.remove(small_disk / "step-00000002"),
    ):
        with pytest.raises(AssayError, match="Read-only file system: choose another folder"):
            refused()
    assert steps_in(small_disk) == ["metrics.jsonl", "step-00000002", "step-00000003"]


# --- what a kill leaves


class KillError(BaseException):
    """Stands for a kill at a system call of our choosing: nothing of ours runs after it."""


@pytest.mark.parametrize("is_folder", [False, True])
def test_killed_at_any_system_call_a_file_is_the_old_one_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_folder: bool
) -> None:
    def write(text: str) -> Callable[[Path], None]:
        def into(path: Path) -> None:
            if is_folder:
                path.mkdir()
            (path / "weights" if is_folder else path).write_text(text)

        return into

    def read(path: Path) -> str | None:
        path = path / "weights" if is_folder else path
        return path.read_text() if path.exists() else None

    outcomes, calls = [], 0
    for moment in range(100):
        target = tmp_path / str(moment) / "file"
        runs.write_atomically(target, write("old"))
        calls = 0

        def call(original: Callable[..., Any], moment: int = moment) -> Callable[..., Any]:
            def counted(*arguments: Any) -> Any:
                nonlocal calls
                if calls == moment:
                    raise KillError
                calls += 1
                return original(*arguments)

            return counted

        with monkeypatch.context() as patch:
            for name in ("fsync", "replace"):
                patch.setattr(os, name, call(getattr(os, name)))
            patch.setattr(runs.shutil, "rmtree", lambda *_, **__: None)
            try:
                runs.write_atomically(target, write("new"))
            except KillError:
                outcomes.append(read(target))
            else:
                break
        runs.put_in_order(target.parent)
        assert [path.name for path in target.parent.iterdir()] in ([], ["file"])
    # a folder is away for one moment: then the checkpoint before it, or the stage before it, is gone on from
    assert outcomes == (["old"] * 3 + [None] + ["new"] if is_folder else ["old"] * 2 + ["new"])


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    flush, replace = runs._flush, os.replace
    monkeypatch.setattr(runs, "_flush", lambda path: (order.append(f"flush {path.name}"), flush(path)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(f"rename {Path(b).name}"), replace(a, b)))

    def write(path: Path) -> None:
        (path / "inner").mkdir(parents=True)
        (path / "inner" / "weights").write_text("w")

    runs.write_atomically(tmp_path / "new" / "model", write)
    assert order[0] == f"flush {tmp_path.name}"  # that has a new folder
    assert sorted(order[1:4]) == ["flush inner", "flush model", "flush weights"]
    assert order[4:] == ["rename model", "flush new"]


def test_only_our_own_leftovers_are_taken_away(tmp_path: Path) -> None:
    ours = tmp_path / "arms" / "offline" / ".best.ab12_x9z.unfinished"
    kept = [tmp_path / name for name in (".notes.unfinished", ".best.ABCDEFGH.unfinished", "x.ab12cd34.unfinished")]
    for folder in (ours, *kept):
        folder.mkdir(parents=True)
    (tmp_path / ".file.ab12cd34.unfinished").write_text("a file of somebody's")
    (tmp_path / ".link.ab12cd34.unfinished").symlink_to(kept[0])
    (ours / "best").mkdir()
    runs.put_in_order(tmp_path)
    assert not ours.exists()
    assert all(folder.exists() for folder in kept)
    assert len(list(tmp_path.glob(".*.unfinished"))) == 4
    (tmp_path / ".answers.jsonl.ab12cd34.unfinished").mkdir()
    (tmp_path / ".other.jsonl.ab12cd34.unfinished").mkdir()
    runs.remove_leftovers_of(tmp_path / "answers.jsonl")
    assert not (tmp_path / ".answers.jsonl.ab12cd34.unfinished").exists()
    assert (tmp_path / ".other.jsonl.ab12cd34.unfinished").exists()


def test_a_store_is_cleared_up_by_whoever_is_alone_in_it(tmp_path: Path) -> None:
    first = SignalStore(gpt2(1), tmp_path)
    left = first.folder / ".shard-0.ab12cd34.unfinished"
    left.mkdir()
    second = SignalStore(gpt2(1), tmp_path)
    assert left.exists(), "another process may be writing it"
    del first, second
    SignalStore(gpt2(1), tmp_path)
    assert not left.exists()


# --- a log that breaks off


def test_a_torn_line_is_cut_off_and_said(tmp_path: Path) -> None:
    log, said = tmp_path / "metrics.jsonl", list[str]()
    records = [{"step": 0, "text": "one line\u2028still\x85the same"}, {"step": 1, "value": 0.1 + 0.2}]
    for record in records:
        runs.append_record(log, record)
    runs.repair_log(log, said.append)
    assert said == []
    with log.open("ab") as file:
        file.write('{"step": 2, "text": "é'.encode()[:-1])  # within a letter
    assert runs.read_records(log) == records
    runs.repair_log(log, said.append)
    (sentence,) = said
    assert f"the last line of {str(log)!r} was torn (22 bytes, no end)" in sentence
    runs.append_record(log, {"step": 2})
    assert runs.read_records(log) == [*records, {"step": 2}]
    with log.open("ab") as file:
        file.write(bytes(50))  # room that a power failure has left
    runs.repair_log(log, said.append)
    assert len(said) == 2
    assert runs.read_records(log) == [*records, {"step": 2}]
    with log.open("ab") as file:
        file.write(b"nothing of ours")
    with pytest.raises(AssayError, match="a line is no record"):
        runs.repair_log(log, said.append)


def test_a_repair_is_said_on_stderr_and_in_the_runs_own_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs.note_repair(tmp_path, "mended")
    runs.note_repair(tmp_path, "mended again")
    assert capsys.readouterr().err == "assay: mended\nassay: mended again\n"
    assert runs.read_records(tmp_path / runs.REPAIRS) == [{"repair": "mended"}, {"repair": "mended again"}]


# --- clocks, and many runs at once


def test_durations_come_from_a_clock_that_cannot_be_set_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The wall clock loses an hour with every look at it."""
    now = time.time()

    def backwards() -> float:
        nonlocal now
        now -= 3600
        return now

    monkeypatch.setattr(time, "time", backwards)
    drawn = mixture()
    state = fit(gpt2(2), drawn, CONFIG, checkpoints=tmp_path)
    counters = drawn.sources[0].counters
    assert min(state.seconds["student"], counters.sample_seconds, counters.teacher_seconds) > 0


def test_a_log_that_was_written_before_it_was_written_has_no_speed(tmp_path: Path) -> None:
    observer = Observer(tmp_path / "log.jsonl", {}, None)
    assert observer._seconds_per_step(10, 1000.0) is None
    assert observer._seconds_per_step(20, 400.0) is None, "the clock was set back"
    assert observer._seconds_per_step(30, 420.0) == 2.0


def test_no_module_takes_a_duration_from_the_wall_clock() -> None:
    """``assay watch`` alone compares the time of files with now, and never goes below 0."""
    source = Path(runs.__file__).parent
    users = {path.name for path in source.rglob("*.py") if "time.time()" in path.read_text()}
    assert users == {"watch.py"}


_OPEN = """
import sys
from assay import runs
try:
    runs.allow_open_files(int(sys.argv[1]))
except runs.AssayError as error:
    sys.exit(str(error))
files = [open("/dev/null") for _ in range(int(sys.argv[1]))]
"""


def test_a_thousand_locks_are_allowed_or_refused_in_a_sentence() -> None:
    soft_only = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4096))\n"
    assert python(soft_only + _OPEN, 1000).returncode == 0
    refused = python(_OPEN, 1000, limits={resource.RLIMIT_NOFILE: 512})
    assert refused.returncode == 1
    assert "1000 runs at once need 1256 open files, and this system allows 512: raise `ulimit -Hn`" in refused.stderr
