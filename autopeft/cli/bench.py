"""`autopeft bench`: recording tables of trainings, and replaying searches on them."""

from __future__ import annotations

import math
import shlex
import sys
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from autopeft.cli.options import Json, StoppingCommand, names_of
from autopeft.cli.search import spec_from
from autopeft.cli.tables import output, print_json, seconds_text
from autopeft.domain.errors import Problem, UserError
from autopeft.domain.recording import RecordedTraining
from autopeft.domain.replayed import MARKS, Contest

app = typer.Typer(
    help="Record trainings of a space once, then replay any search on them in seconds.", no_args_is_help=True
)


@app.command()
def record(
    out: Annotated[Path, typer.Option("--out", metavar="TABLE", help="Parquet file of the table.")],
    spec: Annotated[Path | None, typer.Argument(metavar="[SPEC]", help="YAML file; flags change what it says.")] = None,
    space: Annotated[str | None, typer.Option(help="Name or YAML file; see `autopeft spaces`.")] = None,
    model: Annotated[str | None, typer.Option(help="minilm, a model folder or a hub id.")] = None,
    data: Annotated[str | None, typer.Option(help="python-docs, a `datasets` folder or a hub name.")] = None,
    train: Annotated[str | None, typer.Option(help="JSONL, CSV, TSV or Parquet file.", metavar="FILE")] = None,
    validation: Annotated[str | None, typer.Option(help="What configurations are scored on.", metavar="FILE")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Cut longer texts.")] = None,
    max_train_rows: Annotated[int | None, typer.Option(help="Train on a sample.")] = None,
    max_validation_rows: Annotated[int | None, typer.Option(help="Score on a sample.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps, in place of epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows per forward pass.")] = None,
    rungs: Annotated[
        str, typer.Option(metavar="SHARES", help="Shares of the steps at which quality is kept; ends with 1.")
    ] = "1/9,1/3,1",
    configs: Annotated[int, typer.Option(min=1, help="Configurations of the space.")] = 300,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each configuration.")] = 3,
    seed: Annotated[int | None, typer.Option(help="Of the draws of configurations and of samples.")] = None,
    cpus: Annotated[float, typer.Option("--cpus-per-worker", help="Computing threads.")] = 1.0,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other key of a search spec, as training.warmup=0.1."),
    ] = None,
    json: Json = False,
) -> None:
    """Train configurations of a space at every rung, with several seeds, and keep what was measured.

    The same command again goes on where it was stopped; a larger --configs makes the table grow.
    """
    from autopeft.app.recording import record

    flags = {
        "model": {"source": model},
        "data": {
            "source": data,
            "train": train,
            "validation": validation,
            "max_tokens": max_tokens,
            "max_train_rows": max_train_rows,
            "max_validation_rows": max_validation_rows,
        },
        "space": space,
        "seed": seed,
        "training": {"epochs": epochs, "steps": steps, "batch_size": batch_size, "rungs": shares_of(rungs)},
        "resources": {"runner": "local", "workers": 1, "cpus_per_worker": cpus},
    }
    errors = Console(stderr=True, highlight=False)

    def show(training: RecordedTraining) -> None:
        scores = "  ".join(
            f"{next(iter(rung.quality.values()), float('nan')):.3f} ({rung.cpu_s:.1f} s)" for rung in training.rungs
        )
        why = f" {training.reason}" if training.reason else ""
        errors.print(f"{training.config:4d}.{training.seed} {training.status}{why}  {scores}", markup=False)

    made = record(
        spec_from(spec, flags, settings or []),
        out,
        configs=configs,
        seeds=seeds,
        command=command_text(sys.argv),
        told=show,
    )
    facts: dict[str, Any] = {
        "table": str(made.table),
        "configurations": made.configs,
        "processor_seconds": round(made.seconds, 1),
    }
    if json:
        print_json(facts)
        return
    output().print(
        f"{made.configs} configurations, {seconds_text(made.seconds)} of training: {made.table}", soft_wrap=True
    )
    if made.exhausted:
        output().print("The space has no more.")


@app.command(cls=StoppingCommand)
def samplers(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="Parquet file that `bench record` wrote.")],
    names: Annotated[
        str,
        typer.Option(
            "--samplers",
            metavar="NAMES",
            help="Joined by commas; front-blind must learn what is known before training, autopeft-as-published (and "
            "autopeft-map-as-published) has the mistake of the paper's released code.",
        ),
    ] = "front,tpe,nsga2,random",
    early_stopping: Annotated[
        str | None,
        typer.Option(
            "--early-stopping",
            metavar="RULES",
            help="Replay each once more, stopping trials early: front (without a value), mo-asha or front,mo-asha. "
            "random with mo-asha is MO-ASHA (Schmucker et al. 2021).",
        ),
    ] = None,
    warm_start: Annotated[
        str | None,
        typer.Option(
            metavar="TABLE|shuffled",
            help="Replay each once more after an earlier search that saw all of this table; shuffled: all of the very "
            "table, with its qualities dealt out anew.",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Simulated trials at once.")] = 1,
    seeds: Annotated[int, typer.Option(min=1, help="Searches with each sampler.")] = 20,
    trials: Annotated[int | None, typer.Option(min=1, help="End of a search; default: the whole table.")] = None,
    until: Annotated[
        float, typer.Option(help="End a search at this share of the table's hypervolume; above 1 never.")
    ] = 0.99,
    figure: Annotated[
        Path | None, typer.Option("--figure", metavar="FILE.html", help="Also draw hypervolume against time.")
    ] = None,
    json: Json = False,
) -> None:
    """Replay searches on a recorded table with a simulated clock; trains nothing.

    The truth is the mean over the recorded seeds; a search sees one of them. Trials that completed count.
    """
    from autopeft.app.contest import contest, write_page

    found = contest(
        table,
        names_of(names),
        seeds=seeds,
        workers=workers,
        early_stopping=names_of(early_stopping) or (),
        warm_start=warm_start,
        trials=trials,
        until=until,
    )
    if figure is not None:
        write_page(found, figure)
    rows = {name: _standing(found, name) for name in found.replays}
    if json:
        print_json({"table": found.table, "configurations": found.configs, "workers": workers, "searches": rows})
        return
    shown = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    shown.add_column("search")
    heads = (*(f"s to {mark:.0%}" for mark in MARKS), "trials to 95%", "samples to 95%", "stopped", "s/proposal")
    for head in heads:
        shown.add_column(head, justify="right")
    for name, row in rows.items():
        times = (
            "-" if one["median"] is None else f"{_text(one['median'])} ({_text(one['low'])}-{_text(one['high'])})"
            for one in row["seconds"].values()
        )
        shown.add_row(
            name,
            *times,
            _text(row["trials_to_95"]),
            _text(row["samples_to_95"]),
            f"{row['stopped_share']:.0%}",
            f"{row['sampler_s']:.3f}",
        )
    console = output()
    many = f"{workers} simulated worker{'s' if workers != 1 else ''}"
    console.print(f"{found.configs} configurations, {seeds} seeds, {many}; medians with 95 % bands")
    console.print(shown)
    for text in _costs(found, trials or found.configs):
        console.print(text)


def _costs(found: Contest, budget: int) -> list[str]:
    """What each warm start costs or saves against the cold one, at 95 % of the hypervolume."""
    from autopeft.app.contest import SHUFFLED, WARM

    told = []
    for name in found.replays:
        for ending in (WARM, SHUFFLED):
            if ending in name:
                cold, warm = found.trials_to(name.replace(ending, ""), 0.95), found.trials_to(name, 0.95)
                if math.isfinite(warm - cold):
                    share = (warm - cold) / budget
                    word = "costs" if share > 0 else "saves"
                    told.append(f"{name} {word} {abs(warm - cold):g} trials to 95 %, {abs(share):.1%} of {budget}.")
    return told


def _standing(found: Contest, name: str) -> dict[str, Any]:
    """The numbers of one way to search; None for what was not reached."""

    def finite(value: float) -> float | None:
        return round(value, 3) if math.isfinite(value) else None

    bands = {mark: found.seconds_to(name, mark) for mark in MARKS}
    return {
        "seconds": {
            f"{mark:.2f}": {"median": finite(one.value), "low": finite(one.low), "high": finite(one.high)}
            for mark, one in bands.items()
        },
        "trials_to_95": finite(found.trials_to(name, 0.95)),
        "samples_to_95": finite(found.samples_to(name, 0.95)),
        "stopped_share": round(found.stopped_share(name), 4),
        "sampler_s": round(found.sampler_s(name), 5),
        "final": [[round(one.moments[-1].share, 6), one.moments[-1].samples] for one in found.replays[name]],
    }


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def shares_of(text: str) -> list[float]:
    """`1/9,1/3,1` as numbers.

    Raises:
        UserError: where a part is no number and no fraction.
    """
    try:
        return [float(Fraction(part.strip())) for part in text.split(",")]
    except (ValueError, ZeroDivisionError):
        raise UserError(
            Problem("--rungs", f"'{text}' cannot be read", "shares joined by commas, the last is 1", "As 1/9,1/3,1.")
        ) from None


def command_text(arguments: list[str]) -> str:
    """The command as it was given, every path that is absolute cut to its last two parts."""
    shown = ["/".join(Path(one).parts[-2:]) if Path(one).is_absolute() else one for one in arguments[1:]]
    return shlex.join(["autopeft", *shown])
