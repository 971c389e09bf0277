"""`autopeft search`: flags or a file become a spec, the spec becomes a search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape

from autopeft.app.spec_file import anchored, make_spec, merged, read_spec
from autopeft.cli.memory import elsewhere_text, memory_json, memory_text
from autopeft.cli.options import DEFAULT_RUNS, Json, Runs, StoreUrl
from autopeft.cli.progress import progress_for
from autopeft.cli.tables import front_table, output, print_json, saved_text, seconds_text
from autopeft.domain.errors import Problem, UserError
from autopeft.domain.events import OnEvent
from autopeft.domain.fidelity import saved_by_stopping
from autopeft.domain.repetition import believed
from autopeft.domain.spec import SearchSpec
from autopeft.export.tables import front_rows

if TYPE_CHECKING:
    from autopeft.app.searching import SearchResult

DATA, SPACE, TRAIN, RUN = "Model and data", "What is searched", "How each candidate trains", "Running"
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.", rich_help_panel=RUN)]


def command(
    spec: Annotated[Path | None, typer.Argument(metavar="[SPEC]", help="YAML file; flags change what it says.")] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget", "-b", help="64, 64trials, 90s, 30m, 2h, 8gpu-h, or several joined by commas.", metavar="BUDGET"
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="minilm, a model folder or a hub id.", rich_help_panel=DATA, show_default=False)
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision on the hub.", rich_help_panel=DATA)] = None,
    dtype: Annotated[str | None, typer.Option(help="Dtype of the frozen weights.", rich_help_panel=DATA)] = None,
    load_in: Annotated[
        str | None, typer.Option(help="4bit or 8bit: hold the frozen weights in so few bits.", rich_help_panel=DATA)
    ] = None,
    trust_remote_code: Annotated[
        bool | None,
        typer.Option(
            "--trust-remote-code", help="Let code of the model run.", rich_help_panel=DATA, show_default=False
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="python-docs, a `datasets` folder or a hub name.", rich_help_panel=DATA)
    ] = None,
    subset: Annotated[str | None, typer.Option(help="Configuration of a hub data set.", rich_help_panel=DATA)] = None,
    train: Annotated[
        str | None, typer.Option(help="JSONL, CSV, TSV or Parquet file.", rich_help_panel=DATA, metavar="FILE")
    ] = None,
    validation: Annotated[
        str | None, typer.Option(help="What the search chooses by.", rich_help_panel=DATA, metavar="FILE")
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="Scored at the end, front only.", rich_help_panel=DATA, metavar="FILE")
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="Default: text.", rich_help_panel=DATA)] = None,
    pair_column: Annotated[
        str | None, typer.Option(help="Default: text_pair, where there is one.", rich_help_panel=DATA)
    ] = None,
    label_column: Annotated[str | None, typer.Option(help="Default: label.", rich_help_panel=DATA)] = None,
    prompt_column: Annotated[str | None, typer.Option(help="Default: prompt.", rich_help_panel=DATA)] = None,
    completion_column: Annotated[str | None, typer.Option(help="Default: completion.", rich_help_panel=DATA)] = None,
    messages_column: Annotated[
        str | None, typer.Option(help="Chats, in place of prompts; default: messages.", rich_help_panel=DATA)
    ] = None,
    choices_column: Annotated[
        str | None, typer.Option(help="Default: choices, where there is one.", rich_help_panel=DATA)
    ] = None,
    answer_column: Annotated[
        str | None, typer.Option(help="The right choice; default: answer, where there is one.", rich_help_panel=DATA)
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="classification, regression or causal-lm.", rich_help_panel=DATA)
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="accuracy, f1, matthews, spearman; validation_loss, choice_accuracy, exact_match …",
            rich_help_panel=DATA,
        ),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Cut longer texts.", rich_help_panel=DATA)] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest answer for exact_match.", rich_help_panel=DATA)
    ] = None,
    max_train_rows: Annotated[int | None, typer.Option(help="Train on a sample.", rich_help_panel=DATA)] = None,
    max_validation_rows: Annotated[int | None, typer.Option(help="Choose by a sample.", rich_help_panel=DATA)] = None,
    space: Annotated[
        str | None, typer.Option(help="Name or YAML file; see `autopeft spaces`.", rich_help_panel=SPACE)
    ] = None,
    objectives: Annotated[
        str | None,
        typer.Option(help="Names joined by commas; see `autopeft objectives`.", rich_help_panel=SPACE),
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(help="Limit on training memory, as 12GiB.", rich_help_panel=SPACE)
    ] = None,
    predict_for: Annotated[
        str | None,
        typer.Option(
            help="Memory on another model as a further objective, predicted: "
            "model=ID_OR_DIR,seq=768,batch=4,dtype=bf16,device=l40s.",
            rich_help_panel=SPACE,
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="front, tpe, gp, nsga2, nsga3, evolution, autopeft, autopeft-map or random.", rich_help_panel=SPACE
        ),
    ] = None,
    startup_trials: Annotated[
        int | None, typer.Option(help="Trials before its model is used.", rich_help_panel=SPACE)
    ] = None,
    early_stopping: Annotated[
        str | None,
        typer.Option(
            "--early-stopping",
            metavar="[RULE]",
            help="Stop what promises too little: front (without a value) or mo-asha; "
            "--sampler random --early-stopping mo-asha is MO-ASHA.",
            rich_help_panel=SPACE,
            show_default=False,
        ),
    ] = None,
    repeat_share: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Of the budget, at most, to train the promising again with another seed, as 0.2.",
            rich_help_panel=SPACE,
        ),
    ] = None,
    warm_start: Annotated[
        str | None,
        typer.Option(
            metavar="RUN[,RUN…]",
            help="Earlier runs, by name or folder: their fronts are tried first. The sampler front also expects what "
            "they saw, as far as its own results bear it out; others do not.",
            rich_help_panel=SPACE,
        ),
    ] = None,
    start_with: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Try this candidate before all others: a candidate.yaml, or an adapter_config.json of LoRA. May be "
            "given several times.",
            rich_help_panel=SPACE,
        ),
    ] = None,
    first_guesses: Annotated[
        bool | None,
        typer.Option(
            "--first-guesses/--no-first-guesses",
            help="Try the guesses that come with the space, and points of earlier fronts, in up to a third of the "
            "budget.",
            rich_help_panel=SPACE,
            show_default="try them",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of every random draw.", rich_help_panel=SPACE)] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.", rich_help_panel=TRAIN)] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps, in place of epochs.", rich_help_panel=TRAIN)
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows per forward pass.", rich_help_panel=TRAIN)] = None,
    gradient_accumulation: Annotated[
        int | None, typer.Option(help="Forward passes per step.", rich_help_panel=TRAIN)
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None, typer.Option(help="Less memory, a third more time.", rich_help_panel=TRAIN)
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the run; the same name goes on.", rich_help_panel=RUN)] = None,
    runs: Runs = DEFAULT_RUNS,
    store: StoreUrl = None,
    runner: Annotated[str | None, typer.Option(help="ray or local.", rich_help_panel=RUN)] = None,
    workers: Annotated[int | None, typer.Option(help="Trials at once.", rich_help_panel=RUN)] = None,
    cpus_per_worker: Annotated[float | None, typer.Option(rich_help_panel=RUN, help="CPUs of each.")] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(rich_help_panel=RUN, help="GPUs of each, fractions too.")
    ] = None,
    ray_address: Annotated[str | None, typer.Option(help="A running Ray cluster.", rich_help_panel=RUN)] = None,
    keep_adapters: Annotated[str | None, typer.Option(help="front or all.", rich_help_panel=RUN)] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other key of the spec, as training.warmup=0.1."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search PEFT configurations by real fine-tuning, within a budget.

    The same command again goes on with the same run.
    """
    flags = {
        "model": {
            "source": model,
            "revision": revision,
            "dtype": dtype,
            "load_in": load_in,
            "trust_remote_code": trust_remote_code,
        },
        "data": {
            "source": data,
            "subset": subset,
            "train": train,
            "validation": validation,
            "test": test,
            "text": text_column,
            "text_pair": pair_column,
            "label": label_column,
            "prompt": prompt_column,
            "completion": completion_column,
            "messages": messages_column,
            "choices": choices_column,
            "answer": answer_column,
            "task": task,
            "metric": metric,
            "max_tokens": max_tokens,
            "max_new_tokens": max_new_tokens,
            "max_train_rows": max_train_rows,
            "max_validation_rows": max_validation_rows,
        },
        "space": space,
        "objectives": [part.strip() for part in objectives.split(",")] if objectives else None,
        "max_memory": max_memory,
        "predict_for": predict_for,
        "sampler": {"name": sampler, "startup_trials": startup_trials},
        "early_stopping": early_stopping,
        "repeat_share": repeat_share,
        "warm_start": warm_start,
        "start_with": start_with or None,
        "first_guesses": first_guesses,
        "seed": seed,
        "budget": budget,
        "training": {
            "epochs": epochs,
            "steps": steps,
            "batch_size": batch_size,
            "gradient_accumulation": gradient_accumulation,
            "gradient_checkpointing": gradient_checkpointing,
        },
        "name": name,
        "resources": {
            "runner": runner,
            "workers": workers,
            "cpus_per_worker": cpus_per_worker,
            "gpus_per_worker": gpus_per_worker,
            "ray_address": ray_address,
        },
        "keep_adapters": keep_adapters,
    }
    from autopeft.app.searching import search

    wanted = spec_from(spec, flags, settings or [])
    run_and_show(lambda on_event: search(wanted, runs, store_url=store, on_event=on_event), json, quiet)


def spec_from(file: Path | None, flags: dict[str, Any], settings: list[str]) -> SearchSpec:
    """The spec of a file, changed by flags and `--set`.

    Raises:
        UserError: with every mistake.
    """
    over = anchored(merged(_given(flags), _settings(settings)), Path.cwd())
    if file is None:
        return make_spec(over)
    source = read_spec(file)
    return make_spec(merged(anchored(source.values, file.resolve().parent), over), source)


def run_and_show(run: Callable[[OnEvent], SearchResult], json: bool, quiet: bool) -> None:
    """Run a search with progress on standard error, then show what came out on standard output."""
    progress = progress_for(Console(stderr=True), quiet)
    with progress:
        result = run(progress)
    if json:
        print_json(
            {
                "name": result.results.record.name,
                "folder": str(result.folder),
                "interrupted": result.interrupted,
                "why": result.why,
                "seconds": result.results.spent.seconds,
                "trials": {status.value: count for status, count in result.results.counts().items()},
                "memory": memory_json(result.results),
                "front": front_rows(result.results),
                "exported": {name: str(path) for name, path in result.exported.items()},
            }
        )
    elif not quiet:
        _show(result)
    if result.interrupted:
        raise typer.Exit(130)


def _show(result: SearchResult) -> None:
    console = output()
    results = result.results
    task = results.record.task
    counts = ", ".join(f"{count} {status.value.replace('_', ' ')}" for status, count in results.counts().items())
    console.print(f"[bold]{escape(result.why)}[/] {counts}; {seconds_text(results.spent.seconds)}.", soft_wrap=True)
    if results.front.members:
        console.print()
        console.print(
            front_table(
                results.front,
                task.metric,
                with_test=any(one.trial.test_quality for one in results.front.members),
                estimates=believed(results.objectives, results.trials).estimates,
            )
        )
        if there := elsewhere_text(results):
            console.print(f"[dim]{escape(there)}[/]", soft_wrap=True)
        if task.majority_share is not None:
            console.print(f"[dim]Always saying the most frequent class reaches accuracy {task.majority_share:.3f}.[/]")
    console.print()
    if memory := memory_text(results):
        console.print(f"memory   {memory}", soft_wrap=True)
    if saved := saved_by_stopping(results.record, (one.trial for one in results.trials)):
        console.print(f"saved    {saved_text(saved)}", soft_wrap=True)
    console.print(f"report   {escape(str(result.folder / 'report.html'))}", soft_wrap=True)
    for label, path in result.exported.items():
        console.print(f"adapter  {escape(str(path))}  ({label})", soft_wrap=True)
    name = escape(results.record.name)
    if result.interrupted:
        console.print(f"go on    autopeft resume {name}")
    else:
        console.print(f"more     autopeft extend {name} --budget +{results.budget.trials or 16}", soft_wrap=True)


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    """`flags` without what was not said."""
    found = {}
    for key, value in flags.items():
        kept = _given(value) if isinstance(value, dict) else value
        if kept not in (None, {}):
            found[key] = kept
    return found


def _settings(texts: list[str]) -> dict[str, Any]:
    """`["training.warmup=0.1"]` as nested values."""
    found: dict[str, Any] = {}
    problems = []
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            problems.append(
                Problem("--set", f"'{text}' is not KEY=VALUE", "", "For example: --set training.warmup=0.1")
            )
            continue
        nested: Any = yaml.safe_load(value)
        for step in reversed(key.strip().split(".")):
            nested = {step: nested}
        found = merged(found, nested)
    if problems:
        raise UserError(*problems)
    return found
