"""`autopeft schema`: the JSON Schema of a spec."""

from __future__ import annotations

from autopeft.cli.tables import print_json
from autopeft.domain.spec import SearchSpec


def command() -> None:
    """Print the JSON Schema of a search spec, for editors and other programs."""
    print_json(SearchSpec.model_json_schema())
