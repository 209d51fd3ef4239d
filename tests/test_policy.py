"""What a policy decides, what its actions do to the loop, and that an interrupted arm decides the same again."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import AdamW

from assay import policy, runs, stages
from assay.checkpoints import FitState, save_model
from assay.config import ARMS, ArmConfig, SourceConfig, TrainingConfig, with_policy
from assay.data.sources import Counters, Mixture, ResponseSource
from assay.diagnostics.trajectory import Trajectory
from assay.errors import AssayError
from assay.policy import EVEN_ODDS, Policy, Supply, completions_to_add
from assay.results import merge_arms, write_summary
from assay.training import fit, train_step
from assay.types import Action, Progress, Prompt
from assay.validation import validate
from known_logs import falling, hacked, healthy
from test_experiment import small
from tiny_models import gpt2

SUPPLY = Supply(num_pairs=100, num_prompts=100, uses=10.0, rows_left=6000)


def arm(name: str = "auto", alarm: str = "detector", **named: Any) -> ArmConfig:
    return ArmConfig("arm", (SourceConfig("teacher"),), name, alarm, **named)  # type: ignore[arg-type]


def rows(log: Trajectory) -> list[dict[str, float]]:
    return [
        {"step": float(step), **{name: float(values[i]) for name, values in log.columns.items()}}
        for i, step in enumerate(log.steps)
    ]


def long_hacked() -> Trajectory:
    """Evaluations three times as dense."""
    steps = np.concatenate([[0.0], np.unique(np.round(np.geomspace(1, 3000, 45)))])
    held_out = np.maximum(falling(steps=steps), falling(steps=np.array([40.0])))
    rise = 2 * np.log(np.maximum(steps, 40) / 40)
    columns = {"proxy": held_out, "train_proxy": falling(1.0, steps=steps)}
    return Trajectory(steps, {**columns, "reference_nll": 30 + falling(0.2, steps=steps) + rise})


def watch(
    one: Policy, log: Trajectory, supply: Supply | None = SUPPLY, can_be_fresh: bool = True
) -> list[tuple[float, Action]]:
    """Everything that a policy does along a log that its actions do not change."""
    done = []
    for row in rows(log):
        score = one.update(row)
        action = one.decide(score, supply, can_be_fresh)
        if action is not None:
            one.carried_out(action, score)
            done.append((row["step"], action))
            if action.kind == "stop":
                break
    return done


@pytest.mark.parametrize("name", ["off", "warn", "stop", "auto"])
def test_a_healthy_run_is_left_alone(name: str) -> None:
    one = Policy(arm(name))
    assert watch(one, healthy()) == []
    assert not one.is_alarmed


def test_off_and_warn_never_act_and_the_alarm_rises_all_the_same() -> None:
    for name in ("off", "warn"):
        one = Policy(arm(name))
        assert watch(one, hacked()) == []
        assert one.is_alarmed


def test_stop_keeps_the_step_that_a_diagnosis_recommends() -> None:
    one = Policy(arm("stop"))
    ((step, action),) = watch(one, hacked())
    seen = hacked()
    best = seen.steps[int(np.argmin(seen.columns["reference_nll"]))]
    assert action.kind == "stop"
    assert action.to_step == best < step
    assert step < seen.steps[-1]


def test_auto_climbs_its_ladder_one_evaluation_at_a_time_and_stops_last() -> None:
    """On a log that no action mends; one that goes back starts the log anew from there."""
    done = watch(Policy(arm()), long_hacked())
    ladder = ["add_completions", "regenerate", "set_fresh_fraction", "roll_back", "stop"]
    assert [action.kind for _, action in done] == ladder
    assert len({step for step, _ in done}) == len(done)
    assert all("score" in action.reason for _, action in done)
    assert done[3][1].to_step is not None
    assert done[3][1].to_step < done[3][0]


def test_auto_acts_before_stop_does() -> None:
    first = watch(Policy(arm()), hacked())[0][0]
    assert first < watch(Policy(arm("stop")), hacked())[0][0]


def test_an_arm_without_stored_responses_goes_straight_to_fresh_ones_or_waits_for_the_alarm() -> None:
    kinds = [action.kind for _, action in watch(Policy(arm()), hacked(), supply=None)]
    assert kinds[0] == "set_fresh_fraction"
    kinds = [action.kind for _, action in watch(Policy(arm()), long_hacked(), supply=None, can_be_fresh=False)]
    assert kinds == ["roll_back", "stop"]


def test_a_score_that_does_not_rise_after_an_action_asks_for_nothing() -> None:
    one = Policy(arm())
    mended = hacked()
    (step, _), *_ = watch(one, mended)
    again = Policy(arm())
    for row in rows(mended):
        score = again.update(row)
        action = again.decide(score, SUPPLY, True)
        if action is not None:
            again.carried_out(action, score)
            assert again.decide(score, SUPPLY, True) is None
            assert again.decide((score or 0) + 0.01, SUPPLY, True) is not None
            assert again.decide(EVEN_ODDS - 0.01, SUPPLY, True) is None
            break
    assert row["step"] == step


@pytest.mark.parametrize(("alarm", "column"), [("patience", "proxy"), ("references", "reference_nll")])
def test_the_simple_alarms_rise_two_evaluations_after_the_best(alarm: str, column: str) -> None:
    log = hacked()
    values = np.abs(np.arange(len(log)) - 6.0) + 3.0  # lowest at the seventh evaluation
    log = dataclasses.replace(log, columns={**log.columns, column: values})
    ((step, action),) = watch(Policy(arm("stop", alarm)), log)
    assert step == log.steps[8]
    assert action.to_step == log.steps[6]


def test_references_that_are_not_there_are_refused() -> None:
    with pytest.raises(AssayError, match="its prompts have none"):
        Policy(arm("stop", "references")).update({"step": 0, "proxy": 1.0, "reference_nll": None})


@pytest.mark.parametrize(
    ("supply", "more"),
    [
        (SUPPLY, 11),  # 60 passes left, 5 uses each
        (Supply(100, 100, 7.0, 6000), 17),  # ceil(60 / 3.5) = 18
        (Supply(400, 100, 10.0, 6000), 8),
        (Supply(100, 100, 1.0, 6000), 59),  # never more than one for each pass that is left
        (Supply(100, 100, 10.0, 400), 0),
        (Supply(100, 100, 0.0, 6000), 0),
    ],
)
def test_completions_make_the_rest_use_each_response_half_as_often(supply: Supply, more: int) -> None:
    assert completions_to_add(supply) == more


# --- what actions do

PROMPTS = [Prompt(f"p{i}", "", (5 + i, 2, 3)) for i in range(6)]
CONFIG = TrainingConfig(num_steps=12, batch_size=4, learning_rate=1e-2, warmup_steps=3, checkpoint_every=2)


def mixture() -> Mixture:
    counters = Counters()
    stored, fresh = (
        ResponseSource(config, PROMPTS, {"teacher": gpt2(1)}, max_response_tokens=5, seed=4, index=i, counters=counters)
        for i, config in enumerate((SourceConfig("teacher"), SourceConfig("teacher", 1)))
    )
    return Mixture([stored], 4, fresh)


def test_added_completions_are_all_met_once_in_the_pass_that_follows() -> None:
    drawn, student = mixture(), gpt2(2)
    for step in range(4):
        drawn.batch(step, student)
    before = drawn.epoch
    drawn.carry_out(Action("add_completions", "", completions=3))
    assert drawn.epoch == before == 16 / 6
    met = Counter(ids for step in range(6) for ids in drawn.batch(4 + step, student).prompt_ids)
    assert met == {prompt.token_ids: 4 for prompt in PROMPTS}
    assert drawn.epoch == before + 1
    assert drawn.sources[0].counters.num_responses == 6 + 18


def test_regenerated_responses_are_written_anew_once() -> None:
    drawn, student = mixture(), gpt2(2)
    for step in range(3):
        drawn.batch(step, student)
    drawn.carry_out(Action("regenerate", ""))
    for step in range(3, 9):
        drawn.batch(step, student)
    assert drawn.sources[0].counters.num_responses == 6 + 6


def test_a_fresh_fraction_is_exact_from_the_step_on_where_it_is_set() -> None:
    drawn, student = mixture(), gpt2(2)
    for step in range(5):
        drawn.batch(step, student)
    assert drawn.fresh_fraction == 0.0
    assert [source.rows_drawn for source in drawn.sources] == [20, 0]
    drawn.carry_out(Action("set_fresh_fraction", "", fraction=0.5))
    for step in range(5, 11):
        drawn.batch(step, student)
        assert drawn.sources[1].rows_drawn == 2 * (step - 4)  # no catching up
    assert drawn.fresh_fraction == 0.5


SCRIPT: list[tuple[int, Action]] = [
    (3, Action("add_completions", "", completions=2)),
    (5, Action("regenerate", "")),
    (6, Action("set_fresh_fraction", "", fraction=0.25)),
    (8, Action("roll_back", "", to_step=4)),
    (10, Action("stop", "", to_step=9)),
]


def acting(kept: Path, student: Any, kill_at: int | None = None) -> Callable[[FitState], Action | None]:
    """Keeps the student of every step, and does what the script says, once."""

    def before_step(state: FitState) -> Action | None:
        if state.step == kill_at:
            raise KeyboardInterrupt
        save_model(student, kept / f"step-{state.step:08d}")
        return None if state.step in state.action_steps else dict(SCRIPT).get(state.step)

    return before_step


@pytest.mark.parametrize("averaging_decay", [None, 0.5])
@pytest.mark.parametrize("kill_at", [4, 5, 7, 9])
def test_interrupted_with_actions_equals_uninterrupted(
    tmp_path: Path, kill_at: int, averaging_decay: float | None
) -> None:
    config = dataclasses.replace(CONFIG, averaging_decay=averaging_decay)
    whole = gpt2(2)
    expected = fit(whole, mixture(), config, before_step=acting(tmp_path / "a", whole), kept=tmp_path / "a")
    assert (expected.step, expected.stopped_at, expected.action_steps) == (10, 9, [3, 5, 6, 8, 10])
    kept, points, killed = tmp_path / "b", tmp_path / "points", gpt2(2)
    with pytest.raises(KeyboardInterrupt):
        fit(killed, mixture(), config, before_step=acting(kept, killed, kill_at), checkpoints=points, kept=kept)
    resumed, drawn = gpt2(2), mixture()
    state = fit(resumed, drawn, config, before_step=acting(kept, resumed), checkpoints=points, kept=kept)
    assert state.losses == expected.losses
    assert resumed.digest == whole.digest
    assert state.action_steps == expected.action_steps


def test_going_back_gives_the_very_student_that_was_kept(tmp_path: Path) -> None:
    student, ninth = gpt2(2), gpt2(2)
    fit(student, mixture(), CONFIG, before_step=acting(tmp_path, student), kept=tmp_path)
    ninth.module.load_state_dict(_weights(tmp_path / "step-00000009"), strict=False)
    assert student.digest == ninth.digest


def test_an_average_begins_again_where_it_goes_back_to(tmp_path: Path) -> None:
    """One step after going back, it is the mean of the kept student and of what that step made of it."""
    config = dataclasses.replace(CONFIG, averaging_decay=0.5, num_steps=9)
    student, plain = gpt2(2), gpt2(2)
    fit(student, mixture(), config, before_step=acting(tmp_path, student), kept=tmp_path)
    plain.module.load_state_dict(_weights(tmp_path / "step-00000004"), strict=False)
    before = {name: p.detach().clone() for name, p in plain.module.named_parameters()}
    drawn = mixture()
    for step in range(8):
        drawn.batch(step, student)
        for at, action in SCRIPT:
            if at == step + 1:
                drawn.carry_out(action)
    optimizer = AdamW(plain.module.parameters(), lr=0.0, betas=config.betas, weight_decay=0.0)
    train_step(plain, optimizer, drawn.batch(8, plain), 8, config)
    after = dict(plain.module.named_parameters())
    for name, value in student.module.named_parameters():
        assert torch.allclose(value, (before[name] + after[name]) / 2, atol=1e-6)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


# --- a whole arm


def run_arm(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, kill_at: int | None = None) -> dict[str, Any]:
    """Stage 2 in this process, of a small run whose policy takes every score for an alarm."""
    monkeypatch.setattr(policy, "EVEN_ODDS", 0.0)
    monkeypatch.setattr(Policy, "update", _alarmed)
    experiment = _experiment(name)

    def report(progress: Progress) -> None:
        if progress.stage == name and progress.step == kill_at:
            raise KeyboardInterrupt

    stages.run_arm(experiment, folder, name, report)
    merge_arms(folder, [name])
    write_summary(folder, experiment, [name], 0.0)
    (entry,) = json.loads((folder / "summary.json").read_text())["arms"]
    return entry


def _experiment(name: str) -> Any:
    sources = (SourceConfig("teacher"),)
    # the arm's name is its policy's
    return dataclasses.replace(small(num_steps=20), arms=(ArmConfig(name, sources, name),))  # type: ignore[arg-type]


def _alarmed(self: Policy, record: Any, update: Callable[..., float | None] = Policy.update) -> float | None:
    score = update(self, record)
    self.is_alarmed = len(self.detector.trajectory) == 4
    return score


@pytest.fixture(scope="module")
def stage_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    experiment = _experiment("auto")
    for shard in range(2):
        stages.write_oracle_responses(experiment, folder, shard, 2, lambda progress: None)
    for role in ("teacher", "student"):
        stages.fine_tune(experiment, folder, role, 2, lambda progress: None)
    return folder


@pytest.mark.parametrize("name", ["stop", "auto"])
def test_an_arm_with_a_policy_records_what_it_did_and_resumes(
    stage_one: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = run_arm(stage_one, name, monkeypatch)
    done = [action["kind"] for action in entry["actions"]]
    records = runs.read_records(stage_one / "arms" / name / "metrics.jsonl")
    if name == "stop":
        assert done == ["stop"]
        kept = next(record for record in records if record["step"] == entry["kept_step"])
        assert entry["golden"]["final"] == pytest.approx(kept["golden_nats"])
        assert entry["alarm_step"] == records[-1]["step"] < 20
    else:
        assert done[0] == "add_completions"
        assert entry["kept_step"] == records[-1]["step"]
        assert entry["generated_tokens"] > 2 * records[2]["generated_tokens"]
    assert not (stage_one / "arms" / name / "kept").exists()
    student = (stage_one / "arms" / name / "student" / "model.safetensors").read_bytes()
    runs.remove(stage_one / "arms" / name)
    with pytest.raises(KeyboardInterrupt):
        run_arm(stage_one, name, monkeypatch, kill_at=15 if name == "auto" else 5)
    again = run_arm(stage_one, name, monkeypatch)
    assert again["actions"] == entry["actions"]
    assert again["golden"] == entry["golden"]
    assert (stage_one / "arms" / name / "student" / "model.safetensors").read_bytes() == student


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (ArmConfig("a", (SourceConfig("dataset"),), "auto"), "a data set has none: use 'stop'"),
        (ArmConfig("a", (SourceConfig("teacher"),), "auto", "patience"), "serves policy 'stop' alone"),
        (ArmConfig("a", (SourceConfig("teacher"),), "off", "references"), "serves policy 'stop' alone"),
    ],
)
def test_contradictory_options_are_refused(changed: ArmConfig, message: str) -> None:
    with pytest.raises(AssayError, match=message):
        validate(dataclasses.replace(small(), arms=(changed,)))


def test_a_policy_can_be_set_for_all_arms_at_once() -> None:
    changed = with_policy(small(), "stop")
    assert [arm.policy for arm in changed.arms] == ["stop"] * 3
    assert [arm.sources for arm in changed.arms] == [arm.sources for arm in ARMS.values()]
