"""Replaying ways to search on a recorded table, and the page that shows how they did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from autopeft import plugins
from autopeft.domain.errors import Problem, UserError, unknown
from autopeft.domain.replayed import Contest, Replay
from autopeft.domain.stopping import FrontStopping, StoppingRule
from autopeft.search import SAMPLERS
from autopeft.search.replay import Truth, replay, sampler_of
from autopeft.store.recorded import read_table

STOPPING = " + stopping"
"""Ends the name of a way to search that stops trials early."""


def contest(
    table: Path,
    samplers: Sequence[str],
    *,
    seeds: int = 20,
    workers: int = 1,
    early_stopping: bool = False,
    trials: int | None = None,
    until: float | None = 0.99,
    told: Callable[[str, Replay], None] = lambda name, replay: None,
) -> Contest:
    """Replay every sampler with every seed.

    Args:
        table: As `autopeft bench record` writes it.
        samplers: Names; the ending `-blind` lets one learn what is known before a training, `autopeft-as-published`
            is the paper's with the mistake of its released code.
        seeds: Searches with each.
        workers: Simulated trials at once.
        early_stopping: Whether each is replayed a second time, stopping trials early.
        trials: Ends a search; None is the whole table.
        until: Share of the reference hypervolume at which a search is ended; None goes on.
        told: Called with every replay.

    Raises:
        UserError: where the table cannot be read or replayed, or a sampler is unknown.
    """
    wrong = [unknown("--samplers", name, SAMPLERS) for name in samplers if sampler_of(name) not in SAMPLERS]
    if wrong:
        raise UserError(*wrong)
    truth = Truth(read_table(table))
    if truth.complete < 2 or truth.reference <= 0:
        raise UserError(
            Problem(
                str(table),
                f"{truth.complete} of its {len(truth.configs)} configurations completed with every seed",
                "two or more that differ in quality and in memory",
                "Let `autopeft bench record` go on.",
            )
        )
    rules: list[tuple[str, StoppingRule | None]] = [("", None)]
    if early_stopping:
        rules.append((STOPPING, FrontStopping()))
    found: dict[str, tuple[Replay, ...]] = {}
    for sampler in samplers:
        for ending, rule in rules:
            replays = []
            for seed in range(seeds):
                one = replay(truth, sampler, seed, workers=workers, rule=rule, trials=trials, until=until)
                told(sampler + ending, one)
                replays.append(one)
            found[sampler + ending] = tuple(replays)
    return Contest(table.stem, len(truth.configs), workers, found)


def write_page(found: Contest, path: Path) -> None:
    """The figure and its table as one HTML file."""
    render: Callable[..., str] = plugins.load(plugins.PAGES, "samplers", "the page of a contest of samplers")
    path.write_text(render(found), encoding="utf-8")
