"""`autopeft train`: one recipe from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from autopeft.cli.options import Json
from autopeft.cli.progress import taken_up_text
from autopeft.cli.tables import output, print_json, seconds_text
from autopeft.domain.events import Event, Notice, RungReached, TrialTakenUp


def command(
    recipe: Annotated[Path, typer.Argument(help="recipe.yaml of an exported point.", metavar="RECIPE")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the adapter; must be empty.", metavar="DIR")],
    json: Json = False,
) -> None:
    """Train an exported point again from scratch and compare it with what its search measured."""
    # Imported late, as in every verb: torch takes seconds.
    from autopeft.app.reproducing import train
    from autopeft.export.recipe import Recipe

    wanted = Recipe.load(recipe)
    errors = Console(stderr=True, highlight=False)

    def show(event: Event) -> None:
        match event:
            case Notice(text):
                errors.print(text, markup=False)
            case TrialTakenUp(_, taken_up):
                errors.print(taken_up_text("the training", taken_up), markup=False)
            case RungReached(_, rung):
                scores = ", ".join(f"{name} {value:.3f}" for name, value in rung.quality.items())
                errors.print(f"{rung.fidelity:.0%}  loss {rung.train_loss:.3f}  {scores}", markup=False)
            case _:
                pass

    made = train(wanted, out, show)
    failure, measured = made.outcome.failure, made.outcome.measurements
    quality = dict(measured.quality) if measured else {}
    if json:
        print_json(
            {
                "status": made.outcome.status,
                "folder": str(made.folder),
                "failure": failure.text if failure else None,
                "quality": quality,
                "expected": wanted.expected.validation,
                "test_quality": made.test_quality,
                "expected_test": wanted.expected.test,
                "seconds": made.seconds,
            }
        )
    else:
        console = output()
        if failure is not None:
            console.print(f"[red]{made.outcome.status.value}[/]: {escape(failure.text)}")
        else:
            table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
            for column in ("", "now", "in the search"):
                table.add_column(column, justify="left" if not column else "right")
            for split, now, then in (
                ("validation", quality, wanted.expected.validation),
                ("test", made.test_quality or {}, wanted.expected.test or {}),
            ):
                for name, value in now.items():
                    table.add_row(f"{split} {name}", f"{value:.4f}", f"{then[name]:.4f}" if name in then else "-")
            console.print(table)
            console.print(f"adapter  {escape(str(made.folder))}  ({seconds_text(made.seconds)})", soft_wrap=True)
    if failure is not None:
        raise typer.Exit(1)
