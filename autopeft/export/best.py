"""The points that most people want, exported beside one another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from autopeft.domain.results import PICKS, RunResults
from autopeft.export.points import export_point


def export_best(results: RunResults, artefacts: Callable[[int], Path], out: Path) -> dict[str, Path]:
    """Export the knee, the most accurate and the smallest point as `out/knee` and so on; two may be one trial.

    Args:
        results: Of the run; with an empty front nothing is written.
        artefacts: The folder of a trial's adapter, by number.
        out: The run's `best` folder.

    Returns:
        The folders by name of the pick.

    Raises:
        UserError: as `export_point`.
    """
    if not results.front.members:
        return {}
    exported = {}
    for pick in PICKS:
        scored = results.front.pick(pick)
        exported[pick] = export_point(results, scored, artefacts(scored.trial.number), out / pick, pick)
    return exported
