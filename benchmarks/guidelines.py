"""docs/guidelines.md from the committed results: what to do, when, how much it buys, what it costs, how sure.

    python benchmarks/guidelines.py

Every number comes from benchmarks/cures, benchmarks/planner and benchmarks/hackbench; only the words are written here.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cures import CLOSE_NATS, CLOSE_SHARE, DESIGN_WORLD, HELD_OUT, SEEDS, Curve, Key, load, policy_rows, rows_of

from assay import runs
from assay.report.tables import to_markdown
from assay.report.words import brackets, nats

HERE = Path(__file__).parent
OUT = HERE.parent / "docs" / "guidelines.md"
Curves = Mapping[Key, Curve]


@dataclass(frozen=True)
class Advice:
    """A strategy of the table in words: what to do, and when it can be done."""

    strategy: str
    do: str
    when: str


ADVICE = (
    Advice("prompts_x8", "take eight times the prompts, one response each", "there are more prompts of the same kind"),
    Advice("completions_x8", "store eight responses per prompt instead of one", "there are no more prompts"),
    Advice("policy_auto", "watch, and add responses at the first alarm (`--policy auto`)",
           "you do not know whether you need more"),
    Advice("online_teacher", "draw a fresh response of the teacher every time", "tokens are no object"),
    Advice("online_student", "train on the student's own responses, scored by the teacher",
           "the teacher is too slow to sample from"),
    Advice("refresh_10", "write all responses anew every ten passes", "only one response per prompt can be stored"),
    Advice("completions_x8_anchored",
           "store eight responses per prompt, and hold the student near its start (KL anchor)",
           "there are no more prompts, and the start is near the truth"),
    Advice("policy_auto_anchored", "`--policy auto`, and the KL anchor", "you do not know whether you need more"),
    Advice("online_teacher_anchored", "fresh responses every time, and the KL anchor", "tokens are no object"),
    Advice("fresh_50", "make half of every batch fresh", "–"),
    Advice("fresh_10", "make a tenth of every batch fresh", "–"),
    Advice("references_20", "give a fifth of every batch to human references",
           "the references are the truth; here they are not"),
    Advice("replay_20", "give a fifth of every batch to what the student was fine-tuned on", "that data is at hand"),
    Advice("policy_stop", "stop at the alarm and go back (`--policy stop`)", "no new response can be had"),
    Advice("stop_on_references", "stop when references become less likely", "there are references, and nothing else"),
    Advice("stop_on_patience", "stop when the held-out proxy no longer falls", "–"),
    Advice("anchor", "hold the student near its start (KL anchor, weight 1)",
           "no new response can be had, and the start is near the truth"),
    Advice("ema", "average the weights along the run", "no new response can be had"),
    Advice("lora_8", "train low-rank updates instead of all weights", "no new response can be had"),
    Advice("dropout_0.1", "dropout of 0.1", "–"),
    Advice("weight_decay_0.1", "weight decay of 0.1", "–"),
    Advice("softmax_temperature_2", "soften both laws (softmax temperature 2)", "–"),
    Advice("sampling_temperature_0.7", "sample responses at temperature 0.7", "–"),
    Advice("sampling_temperature_1.3", "sample responses at temperature 1.3", "–"),
    Advice("two_teachers", "average two teachers", "you can fine-tune another"),
    Advice("k_centre", "choose the prompts that lie far apart (k-centre)",
           "there is a pool, and no money for all of it"),
    Advice("facility_location", "choose the prompts that cover the pool (facility location)",
           "there is a pool, and no money for all of it"),
    Advice("templates", "show every prompt in other words", "the task has no other prompts"),
)  # fmt: skip


def sureness(row: Mapping[str, Any]) -> str:
    """In words: the interval over the worlds, and in how many runs the paired interval over prompts agrees."""
    count = f"better in {row['better']} of {row['runs']} runs" + (f", worse in {row['worse']}" if row["worse"] else "")
    if row["end"].high < 0:
        return f"sure: {count}"
    if row["end"].low > 0:
        return f"it harms: {count}"
    return f"not shown: {count}"


def advice_rows(curves: Curves) -> list[dict[str, str]]:
    """One row per strategy that is in the table of cures, the best first."""
    words = {advice.strategy: advice for advice in ADVICE}
    found = [row for row in rows_of(curves) if row["strategy"] != "offline"]
    return [
        {
            "do": words[row["strategy"]].do,
            "when": words[row["strategy"]].when,
            "buys (nats of golden)": f"{nats(-row['end'].value)} {brackets([-row['end'].high, -row['end'].low])}",
            "costs (tokens, × offline)": f"{row['tokens']:.1f}",
            "how sure": sureness(row),
        }
        for row in found
        if row["strategy"] in words
    ]


def first_line(curves: Curves) -> str:
    """What to do first, and where it does not help, with the numbers of the table and its controls."""
    rows = {row["strategy"]: row for row in rows_of(curves)}
    both, alone, online = (rows[name] for name in ("completions_x8_anchored", "anchor", "online_teacher"))
    random, (start, offline, anchored) = "a random student", control(curves, "a random student")
    return (
        f"A KL anchor to the student's start costs no token and buys {nats(-alone['end'].value)} nats; with eight "
        f"stored responses per prompt it buys {nats(-both['end'].value)}, more than fresh responses all the time "
        f"without it ({nats(-online['end'].value)}, at {online['tokens'] / both['tokens']:.0f} times the tokens). It "
        f"rests on a start that is near the truth, as a pretrained student is here: {random} ends at "
        f"{nats(anchored)} with it and at {nats(offline)} without, from {nats(start)}."
    )


def control(curves: Curves, name: str) -> tuple[float, float, float]:
    """Golden at the start, and at the end without and with an anchor, in a control."""
    offline, anchored = (curves[name, SEEDS[0], strategy] for strategy in ("offline", "anchor"))
    return float(offline.golden_S[0]), float(offline.end_P.mean()), float(anchored.end_P.mean())


def policy_line(curves: Curves) -> str:
    """The policy against the best fixed strategy, in a sentence."""
    rows = [row for row in policy_rows(curves) if row["world"] != DESIGN_WORLD]
    close, safe = sum(row["close"] for row in rows), sum(row["never_worse"] for row in rows)
    tokens = sorted(row["tokens"] for row in rows)
    return (
        f"`--policy auto` ended no worse than offline in {safe} of {len(rows)} runs. In {close} it ended within "
        f"{CLOSE_SHARE:.0%} of the improvement, or {CLOSE_NATS} nats, of the best fixed strategy without an anchor "
        f"that its tokens would have paid for, chosen with hindsight; it spent {tokens[0]:.0f} to {tokens[-1]:.0f} "
        "times the tokens of offline ([table](../benchmarks/cures/policy.md))."
    )


def planner_line() -> str:
    """The planner in a sentence."""
    with (HERE / "planner" / "problems.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["fitted_to"] == "golden" and row["world"] != DESIGN_WORLD]
    within = sum(row["within_10_percent"] == "True" for row in rows)
    regret, naive = (np.mean([float(row[name]) for row in rows]) for name in ("regret", "all_prompts_once_regret"))
    rule = np.mean([float(row["most_stored_regret"]) for row in rows])
    return (
        f"`assay plan` chose within 10 % of the best option in {within} of {len(rows)} problems and lost {regret:.2f} "
        f"nats on average (all prompts once: {naive:.2f}). A rule of thumb loses {rule:.2f}: store as many responses "
        "as the budget buys, on as many prompts as there are ([table](../benchmarks/planner/table.md))."
    )


def detector_line() -> str:
    """The detector in a sentence."""
    table = json.loads((HERE / "hackbench" / "table.json").read_text(encoding="utf-8"))["table"]
    found = table["train proxy and references"]
    area, alarms, regret = (found[name][0] for name in ("AUROC", "false alarms", "regret, nats"))
    last = table["baseline: last checkpoint"]["regret, nats"][0]
    return (
        f"`assay diagnose` tells runs whose golden has turned up from the others with an AUROC of {area:.2f} at "
        f"{alarms:.0%} false alarms, from the logs alone; the checkpoint that it names loses {regret:.2f} nats against "
        f"the best, the last one {last:.2f} ([table](../benchmarks/hackbench/table.md))."
    )


def write() -> None:
    """Writes docs/guidelines.md."""
    curves = load()
    text = [
        "# Guidelines",
        "",
        "<!-- made by benchmarks/guidelines.py: change that, or the results that it reads -->",
        "",
        "What to do against teacher hacking, by what it bought in this lab: how much lower golden ends, after 300 "
        f"steps, than with offline distillation on one response per prompt; {len(HELD_OUT)} worlds in which no dial "
        f"was chosen, {len(SEEDS)} seeds for the strategies that matter, else one; 95 % t intervals over the worlds. "
        "Tokens are those generated. These are small models that hack a lot: expect the order to carry over before the "
        "size does.",
        "",
        "## In short",
        "",
        f"- **First.** {first_line(curves)}",
        f"- **Watch.** {detector_line()}",
        f"- **Act.** {policy_line(curves)}",
        f"- **Plan.** {planner_line()}",
        "",
        "## All that was tried",
        "",
        *to_markdown(advice_rows(curves)),
        "",
    ]
    runs.write_text(OUT, "\n".join(text))


if __name__ == "__main__":
    write()
