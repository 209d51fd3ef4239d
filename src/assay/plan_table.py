"""What a plan looks like in a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from assay.planner import Ranked, ScaleOut
from assay.planning import Plan
from assay.report.words import brackets, duration, nats, readable
from assay.terminal import open_console, print_rows


def print_plan(plan: Plan) -> None:
    """The plan on stdout: small runs, the options that fit, first choice first, the recommendation."""
    console = open_console()
    metric, percent = readable(plan.request.metric), f"{plan.coverage:.0%}"
    for run in plan.small_runs:
        text = f"small run: {run.option.name}: {metric} {nats(run.value)}, {run.teacher_tokens:,} teacher tokens"
        console.print(escape(text))
    share = plan.small_tokens / plan.request.teacher_tokens
    console.print(f"together {plan.small_tokens:,}, {share:.0%} of the budget, on top of it\n")
    columns = ("option", "teacher tokens", "generated", "time", f"{metric} [{percent}]", f"above the first [{percent}]")
    print_rows(console, tuple(map(escape, columns)), [_cells(row) for row in plan.ranked], _LINES)
    console.print(
        "nats per sequence at the end, lower is better; time: one worker, without stage 1 and the probe; "
        f"{len(plan.beyond)} more options do not fit the budget"
    )
    if plan.scale_out is not None:
        _print_scale_out(console, plan.scale_out)
    console.print(f"\n[bold]{escape(plan.sentence)}[/bold]")


_LINES = "[bold]{0}[/bold]: {4}, above the first {5}\n  {1} teacher tokens, {2} generated, {3}"


def _cells(row: Ranked) -> tuple[str, ...]:
    above = "–"
    if row.difference_margin > 0:
        bounds = [row.difference - row.difference_margin, row.difference + row.difference_margin]
        above = f"{nats(row.difference, signed=True)} {brackets(bounds)}" + (" cannot tell" if row.is_tied else "")
    value = f"{nats(row.value)} {brackets([row.value - row.margin, row.value + row.margin])}"
    spent = row.cost
    cells = (row.option.name, f"{spent.teacher_tokens:,}", f"{spent.generated_tokens:,}", duration(spent.seconds))
    return tuple(map(escape, (*cells, value, above)))


def _print_scale_out(console: Console, found: ScaleOut) -> None:
    signal = "unknown, for want of the model's size"
    if found.bytes_of_signal is not None:
        signal = f"{found.bytes_of_signal / 1e9:,.1f} GB more in {found.shards_of_signal:,} shards"
    console.print(
        f"\n{found.tokens:,} teacher tokens past one machine: {found.responses:,} responses, "
        f"{found.bytes_of_responses / 1e9:,.1f} GB in {found.shards_of_responses:,} shards of 1 GiB; with the "
        f"teacher's full log-probabilities {signal}"
    )
    hours = ", ".join(f"{found.machine_hours / n:,.1f} h on {n}" for n in (1, 8, 64))
    price = "" if found.price is None else f"; {found.price:,.2f} at the given price per hour"
    console.print(f"written and scored at the measured rates: {hours} machines like this one{price}")
