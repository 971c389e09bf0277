"""`autopeft schema`: the JSON Schema of a spec, or of a search space."""

from __future__ import annotations

from typing import Annotated

import typer

from autopeft.cli.tables import print_json
from autopeft.domain.spec import SearchSpec


def command(
    space: Annotated[bool, typer.Option("--space", help="Of a search space's file, first guesses included.")] = False,
) -> None:
    """Print the JSON Schema of a search spec, for editors and other programs."""
    from autopeft.spaces.file import SearchSpaceFile

    print_json((SearchSpaceFile if space else SearchSpec).model_json_schema())
