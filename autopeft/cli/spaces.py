"""`autopeft spaces`: the search spaces, and one of them in detail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from autopeft.cli.options import Json
from autopeft.cli.tables import output, print_json
from autopeft.domain.errors import Problem, UserError
from autopeft.domain.layout import TaskName

if TYPE_CHECKING:
    from autopeft.app.spaces import SpaceCard


def command(
    name: Annotated[
        str | None, typer.Argument(metavar="[SPACE]", help="Name or YAML file of one space to describe.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Bind it to this model: real layers, modules and size.")
    ] = None,
    task: Annotated[
        TaskName, typer.Option("--task", help="What the model is to be trained for, with --model.")
    ] = TaskName.SEQUENCE_CLASSIFICATION,
    count: Annotated[
        bool, typer.Option("--count", help="Print only how many configurations it has on the model.")
    ] = False,
    json: Json = False,
) -> None:
    """List the search spaces, or describe one."""
    from autopeft.app.spaces import describe, listed

    if count and (name is None or model is None):
        missing = " and ".join(text for text, given in (("a SPACE", name), ("--model", model)) if given is None)
        raise UserError(
            Problem(
                "--count",
                f"needs {missing}: sizes, layers and methods depend on the model",
                "",
                "For example: autopeft spaces autopeft --model DIR --count. A folder with a config.json is enough.",
            )
        )
    console = output()
    if name is not None:
        card = describe(name, model, task)
        if count:
            if json:
                print_json({"space": card.name, "model": card.bound_to, "configurations": card.size})
            else:
                console.print(_count(card.size), highlight=False)
        elif json:
            print_json(card.as_dict())
        else:
            _show(console, card)
        return
    found = listed()
    if json:
        print_json([{"name": one.name, "summary": one.summary, "package": one.package} for one in found])
        return
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("name", no_wrap=True)
    table.add_column("what it searches")
    for one in found:
        table.add_row(one.name, escape(one.summary or one.problem))
    console.print(table)


def _show(console: Console, card: SpaceCard) -> None:
    console.print(f"[bold]{escape(card.name)}[/]  {escape(card.summary)}", soft_wrap=True)
    if card.notes:
        console.print(escape(card.notes.strip()))
    console.print()
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("parameter", "values", "only where", "what it is"):
        table.add_column(column)
    for row in card.parameters:
        table.add_row(*(escape(text) for text in (row.name, row.values, row.when, row.summary)))
    console.print(table)
    console.print()
    if card.bound_to is not None:
        console.print(f"bound to {escape(card.bound_to)}: {_count(card.size)}", soft_wrap=True)
    for text in card.first:
        console.print(f"tried first: {escape(text)}", soft_wrap=True)
    for text in (*card.notices, *card.papers):
        console.print(escape(text), style="dim", soft_wrap=True)


def _count(size: int | None) -> str:
    if size is None:
        return "no count: a parameter is continuous"
    return "1 configuration" if size == 1 else f"{size:,} configurations"
