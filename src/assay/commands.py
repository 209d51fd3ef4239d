"""The commands that only read, plan, or start many runs: what each takes, and whom it asks.

Their docstrings are the help that ``assay COMMAND --help`` prints. ``cli.py`` has those that start one run,
``catalogue.py`` those that list what ships.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from assay.arguments import Shown
from assay.config import ModelsConfig, ServerConfig
from assay.errors import AssayError
from assay.output import NORMAL
from assay.ray_executor import RayConfig
from assay.recipes.own import NUM_PASSES, Distill

Runs = Annotated[tuple[Path, ...], Positional, arg(metavar="RUN [RUN ...]")]


def sweep(
    target: Annotated[str, Positional, arg(metavar="TARGET")],
    axes: tuple[str, ...] = (),
    seeds: tuple[int, ...] | None = None,
    worlds: tuple[str, ...] = (),
    scale: str = "tiny",
    runs: Path = Path("runs/sweeps"),
    out: Path | None = None,
    workers: int | None = None,
    flops_per_second: float | None = None,
    dry_run: bool = False,
    engine: Literal["local", "ray"] = "local",
    cluster: Annotated[RayConfig, arg(name="")] = RayConfig(),  # noqa: B008
    output: Shown = NORMAL,
) -> None:
    """Run a study, or a recipe or config file at every combination of AXES and seeds, on all cores; resumable.

    Args:
        target: A study or recipe from `assay recipes`, or the path of a config file.
        axes: Fields and their values, such as distillation.num_prompts=64,256 (not for a study).
        seeds: A study has its own; a recipe's is 0.
        worlds: Recipes to run a study on, instead of its own.
        scale: "tiny", or for a study "small" or "paper": plans for a GPU.
        runs: Where the runs go; sweeps of one folder share them.
        out: Where table, figures and report go; RUNS/TARGET by default.
        workers: Processes; one per core by default, on Ray as many as its nodes have room for.
        flops_per_second: What one worker computes, for the forecast of time; else that of the finished runs in RUNS.
        dry_run: Print the plan with its cost, and stop.
        engine: "ray" runs the parts on the nodes of a Ray cluster, which all see RUNS (docs/sweeps.md).
        cluster: Of --engine ray.
    """
    from assay.recipes import sweeps
    from assay.runs import say
    from assay.terminal import print_finding, print_lines

    if engine == "local" and cluster != RayConfig():
        raise AssayError("an address, resources, retries and placement belong to --engine ray: leave them out")
    ray = cluster if engine == "ray" else None
    plan = sweeps.plan(target, axes, seeds, worlds, scale)
    cost = sweeps.cost(plan, runs, workers, flops_per_second)
    if not output.json and not output.quiet:
        print_lines(cost)  # before hours of runs
    if dry_run:
        output.answer(sweeps.document(plan, runs, cost), lambda: None)
        return
    page = sweeps.carry_out(plan, runs, out or runs / plan.name, workers, say, ray)
    found = sweeps.document(plan, runs, cost, page)
    output.answer(found, lambda: print_finding(found["finding"]), page)


def plan(
    target: Annotated[str, Positional, arg(metavar="TARGET")],
    teacher_tokens: int,
    pool: int,
    runs: Path = Path("runs/sweeps"),
    seed: int | None = None,
    metric: Literal["golden", "proxy", "reference_nll"] = "golden",
    tokens: float | None = None,
    price_per_hour: float | None = None,
    workers: int | None = None,
    dry_run: bool = False,
    output: Shown = NORMAL,
) -> None:
    """Say what to spend teacher tokens on: prompts, completions, rewriting, fresh responses, or online distillation.

    Args:
        target: A recipe from `assay recipes`, or the path of a config file.
        teacher_tokens: The budget of one run: what the teacher writes plus what it scores.
        pool: How many prompts there are.
        runs: Where the small runs are, or go; sweeps of one folder share them.
        seed: Of the small runs; the recipe's by default.
        metric: What to plan for: the end of golden, of the held-out proxy, or of the references' NLL.
        tokens: Also plan so many teacher tokens past one machine: files and hours.
        price_per_hour: Of one machine, for the price of that.
        workers: Processes; one per core by default.
        dry_run: Print what the small runs cost at most, and stop.
    """
    from assay import planning
    from assay.plan_table import print_plan
    from assay.runs import say
    from assay.terminal import print_lines

    request = planning.read_request(target, teacher_tokens, pool, metric, seed, tokens, price_per_hour)
    planning.check_pool(request, runs)
    if dry_run:
        cost = planning.cost_lines(request, runs)
        output.answer({"schema": "assay.plan_cost/1", "cost": cost}, lambda: print_lines(cost))
        return
    found = planning.plan(request, runs, workers, say)
    output.answer(found.to_dict(), lambda: print_plan(found))


def report(
    runs: Runs,
    out: Path = Path("report"),
    output: Shown = NORMAL,
) -> None:
    """Write report.html, figures and tables from one or many run folders.

    Args:
        runs: Run folders.
        out: Where the report goes.
    """
    from assay.report.html import write_report

    page = write_report(runs, out)
    output.answer({"schema": "assay.path/1", "path": str(page)}, lambda: None, page)


def compare(
    runs: Runs,
    reference: str | None = None,
    out: Path | None = None,
    output: Shown = NORMAL,
) -> None:
    """Say which arm ends closer to the truth, by how much, how surely, and what differs between the configs.

    Args:
        runs: Run folders.
        reference: What every arm is compared with: an arm, a run, or RUN/ARM; by default the first arm of all.
        out: Where the numbers go in full precision, as CSV; or, for a name that ends in .html, a page with its CSV.
    """
    from assay.comparison import compare_runs, write_csv
    from assay.comparison_report import write_page
    from assay.comparison_table import comparison_document, print_comparison

    comparison = compare_runs(runs, reference)
    if out is not None:
        write = write_page if out.suffix == ".html" else write_csv
        write(comparison, out)
    output.answer(
        comparison_document(comparison, out),
        lambda: print_comparison(comparison),
        None if out is None else out.resolve(),
    )


def diagnose(
    log: Annotated[Path, Positional, arg(metavar="LOG")],
    proxy: str | None = None,
    train: str | None = None,
    reference: str | None = None,
    golden: str | None = None,
    step: str | None = None,
    columns: tuple[str, ...] = (),
    arm: str | None = None,
    figure: Path | None = None,
    output: Shown = NORMAL,
) -> None:
    """Say from a training log alone whether the student still gets better, and which checkpoint to keep.

    Args:
        log: A CSV, JSONL, JSON or parquet file, a trainer_state.json, TensorBoard events, or a run folder of assay.
        proxy: Column with the distance from the teacher (or a loss) on held-out prompts. Columns that are not named are
            guessed, and the guess is said; "none" leaves one out.
        train: The same, or the loss, on the prompts that are trained on.
        reference: NLL of held-out references.
        golden: Distance from the oracle, if there is one.
        step: Optimiser step.
        columns: Others, as name=column; the names are those of docs/detector.md.
        arm: Which arm of a run folder; the first by default.
        figure: An .svg file; diagnosis.svg here by default, or none with --json.
    """
    from assay.diagnosing import diagnose_log

    named = {"proxy": proxy, "train_proxy": train, "reference_nll": reference, "golden": golden, "step": step}
    diagnose_log(log, {name: column for name, column in named.items() if column}, columns, arm, output, figure)


def doctor(
    student: str,
    prompts: str,
    teacher: str | None = None,
    responses: str | None = None,
    held_out: Path | None = None,
    references: str | None = None,
    template: str | None = None,
    chat_template: bool = False,
    max_prompt_tokens: int = Distill.max_prompt_tokens,
    max_response_tokens: int = Distill.max_response_tokens,
    batch_size: int = Distill.batch_size,
    passes: float = NUM_PASSES,
    device: str = "cpu",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    server: Annotated[ServerConfig, arg(name="models.server")] = ModelsConfig.server,
    weights: Literal["auto", "always", "never"] = "auto",
    output: Shown = NORMAL,
) -> None:
    """Say before `assay distill`, in the same words, whether this teacher, student and prompts fit together.

    Exit code: 0 pass, 1 warnings, 3 refuse; 2 for what cannot be read. docs/doctor.md explains the checks.

    Args:
        student: An embedded base, a local checkpoint folder, or a hub id.
        prompts: A .jsonl or .parquet file (docs/tasks.md), with "split" if it says what is held out, or "dataset:ID".
        teacher: The same as for the student, or the URL of a server (docs/served.md).
        responses: Instead of --teacher: the column with the responses of a teacher that gives text only.
        held_out: Another such file, with held-out prompts.
        references: Column with human answers; "reference" by default, if there is one.
        template: How a row becomes a prompt: its columns in braces; "{prompt}" by default.
        chat_template: Render prompts with the tokenizer's chat template; conversations need it.
        max_prompt_tokens: Longer prompts are left out.
        max_response_tokens: Longer responses are cut.
        batch_size: Sequences of an optimiser step, for the forecast of memory.
        passes: Over the prompts, for the forecast of time.
        device: Where the models are tried; models.device of a run.
        allow_pickle: Read pickled weights where there are no safetensors; models.allow_pickle of a run.
        trust_remote_code: Run the Python code of a checkpoint; models.trust_remote_code of a run.
        server: How a served teacher is asked.
        weights: "auto" loads them unless a check of the files refuses.
    """
    from assay.doctor.case import Request
    from assay.doctor.examination import examine
    from assay.doctor_table import print_examination
    from assay.runs import say

    request = Request(teacher, student, prompts, held_out, references, responses, template, chat_template,
                      max_prompt_tokens, max_response_tokens, batch_size, passes, device, allow_pickle,
                      trust_remote_code, server)  # fmt: skip
    found = examine(request, weights, say)
    output.answer(found.to_dict(), lambda: print_examination(found))
    sys.exit(found.exit_code)


def watch(
    target: Annotated[Path, Positional, arg(metavar="TARGET")],
    proxy: str | None = None,
    train: str | None = None,
    reference: str | None = None,
    golden: str | None = None,
    step: str | None = None,
    columns: tuple[str, ...] = (),
    arm: str | None = None,
    interval: float = 2.0,
    once: bool = False,
    trackers: tuple[str, ...] = (),
    logdir: Path = Path("runs/tensorboard"),
) -> None:
    """Look on while a run or any training log grows: curves, verdict so far, time left, last samples. It only reads.

    Args:
        target: A run folder of assay, any log that `assay diagnose` reads, or a folder with a trainer's checkpoints. It
            is waited for where it is not there yet; Ctrl-C ends the watch and nothing else.
        proxy: Column with the distance from the teacher (or a loss) on held-out prompts. Columns that are not named are
            guessed, and the guess is said; "none" leaves one out.
        train: The same, or the loss, on the prompts that are trained on.
        reference: NLL of held-out references.
        golden: Distance from the oracle, if there is one.
        step: Optimiser step.
        columns: Others, as name=column; the names are those of docs/detector.md.
        arm: Only this arm of a run folder; of another log with several runs the first by default.
        interval: Seconds between two looks.
        once: Print one frame and stop.
        trackers: Mirror the metrics to tensorboard, trackio or wandb meanwhile.
        logdir: Where TensorBoard's files go.
    """
    with contextlib.suppress(KeyboardInterrupt):
        from assay import watch as watching

        named = {"proxy": proxy, "train_proxy": train, "reference_nll": reference, "golden": golden, "step": step}
        chosen = {name: column for name, column in named.items() if column}
        watching.watch(target, chosen, columns, arm, interval, once, trackers, logdir)


def answers(
    prompts: Annotated[Path, Positional, arg(metavar="PROMPTS")],
    server: str,
    out: Path,
    model: str | None = None,
    number: int = 1,
    max_tokens: int = 512,
    sampling_temperature: float = 1.0,
    column: str = "responses",
    seed: int = 0,
    concurrency: int = 8,
    output: Shown = NORMAL,
) -> None:
    """Have a model behind an API answer your prompts, for `assay distill --responses`: it need not give log-probs.

    Resumable. The API's key is read from the environment variable ASSAY_SERVER_API_KEY.

    Args:
        prompts: A .jsonl or .parquet file (docs/tasks.md).
        server: The URL of an API with /chat/completions, such as http://127.0.0.1:8000/v1.
        out: A .jsonl file: the prompts with the responses.
        model: Its name there; by default the only one served.
        number: Responses to each prompt.
        max_tokens: In the server's tokens; prompts with a response that is cut there are left out.
        sampling_temperature: 1 is the law of the teacher itself.
        column: Where the responses go.
        seed: Of the seeds that the server is given.
        concurrency: Requests at a time.
    """
    from assay.answering import Asked, write_answers

    config = ServerConfig(model=model, concurrency=concurrency)
    asked = Asked(server, config, number, max_tokens, sampling_temperature, seed)
    path = write_answers(prompts, out, asked, column)
    output.answer({"schema": "assay.path/1", "path": str(path)}, lambda: None, path)


def cite(run: Positional[Path], output: Shown = NORMAL) -> None:
    """Print BibTeX for assay and every method that a run has used.

    Args:
        run: A run folder.
    """
    from assay import citations

    entries, models = citations.cite(run)
    if models:
        print(f"assay: cite the makers of these models, too: {', '.join(models)}", file=sys.stderr)
    output.answer({"schema": "assay.citations/1", "bibtex": entries, "models": models}, lambda: print(entries))


def generate(
    prompts: Annotated[Path, Positional, arg(metavar="PROMPTS")],
    model: str,
    out: Path,
    number: int = 1,
    shard_size: int = 10_000,
    processes: int | None = None,
    max_prompt_tokens: int = Distill.max_prompt_tokens,
    max_response_tokens: int = Distill.max_response_tokens,
    sampling_temperature: float = 1.0,
    seed: int = 0,
    chat_template: bool = False,
    batch_size: int = 64,
    server: ServerConfig = ModelsConfig.server,
    output: Shown = NORMAL,
) -> None:
    """Have a model write responses to any number of prompts, for `assay distill --prompts OUT --responses responses`.

    Streamed into files of SHARD_SIZE prompts; resumable at the file (docs/generation.md).

    Args:
        prompts: A .jsonl or .parquet file (docs/tasks.md).
        model: An embedded base, a checkpoint folder, a hub id, or the URL of an API with /chat/completions.
        out: A folder for the files.
        number: Responses to each prompt.
        shard_size: Prompts of a file; the memory taken grows with it, and with nothing else.
        processes: Each with the model and one thread; one per core by default.
        max_prompt_tokens: Longer prompts are left out.
        max_response_tokens: Prompts with a response that is cut here are left out.
        sampling_temperature: 1 is the law of the model itself.
        seed: Of everything that is drawn.
        chat_template: Render prompts with the tokenizer's chat template; conversations need it.
        batch_size: Sequences that are decoded at once.
        server: How an API is asked.
    """
    from assay.generation import generate as write
    from assay.runs import say
    from assay.text_writers import Generation

    request = Generation(model, number, shard_size, max_prompt_tokens, max_response_tokens, sampling_temperature, seed,
                         chat_template, batch_size, server)  # fmt: skip
    path = write(request, prompts, out, processes, announce=say)
    output.answer({"schema": "assay.path/1", "path": str(path)}, lambda: None, path)
