"""The `autopeft` command: registers the verbs and turns errors into messages and exit codes."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

import typer
from rich.console import Console
from rich.markup import escape

from autopeft import __version__
from autopeft.cli import (
    bench,
    doctor,
    estimate,
    export,
    extend,
    front,
    list_runs,
    methods,
    objectives,
    report,
    resume,
    schema,
    search,
    spaces,
    status,
    train,
    validate,
)
from autopeft.cli.options import StoppingCommand
from autopeft.domain.errors import AutoPEFTError, UserError

EXIT_BUG = 1
EXIT_USER = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="autopeft",
    help="Search parameter-efficient fine-tuning configurations for the Pareto front of quality against memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
_VERBS: tuple[tuple[str, str, Callable[..., None]], ...] = (
    ("search", "Search", search.command),
    ("resume", "Search", resume.command),
    ("extend", "Search", extend.command),
    ("front", "Results", front.command),
    ("status", "Results", status.command),
    ("list", "Results", list_runs.command),
    ("report", "Results", report.command),
    ("export", "Results", export.command),
    ("train", "Results", train.command),
    ("estimate", "Set-up", estimate.command),
    ("spaces", "Set-up", spaces.command),
    ("methods", "Set-up", methods.command),
    ("objectives", "Set-up", objectives.command),
    ("schema", "Set-up", schema.command),
    ("validate", "Set-up", validate.command),
    ("doctor", "Set-up", doctor.command),
)
for name, panel, command in _VERBS:
    kind = StoppingCommand if command is search.command else None
    app.command(name, rich_help_panel=panel, cls=kind)(command)
app.add_typer(bench.app, name="bench", rich_help_panel="Set-up")


def _version(asked: bool) -> None:
    if asked:
        print(f"autopeft {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main() -> None:
    """Entry point of the console script: exit code 2 for a user's mistake, 1 for a bug, 130 when interrupted."""
    # Progress bars of the libraries would tear the live display; their warnings still come through.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # peft imports bitsandbytes, which misses a kernel for inference on CPUs that nothing here calls, each time anew.
    logging.getLogger("bitsandbytes.backends.cpu").setLevel(logging.ERROR)
    console = Console(stderr=True, highlight=False)
    try:
        app()
    except UserError as error:
        many = len(error.problems) > 1
        if many:
            console.print(f"[bold red]{len(error.problems)} mistakes[/]")
        for problem in error.problems:
            head = "  [red]-[/] " if many else "[bold red]error[/] "
            console.print(f"{head}[bold]{escape(problem.where)}[/]: {escape(problem.found)}", soft_wrap=True)
            indent = "    " if many else "      "
            if problem.allowed:
                console.print(f"{indent}allowed: {escape(problem.allowed)}", soft_wrap=True)
            if problem.next_step:
                console.print(f"{indent}{escape(problem.next_step)}", soft_wrap=True)
        sys.exit(EXIT_USER)
    except AutoPEFTError as error:
        console.print(f"[bold red]error[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(EXIT_USER)
    except KeyboardInterrupt:
        console.print("interrupted")
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
