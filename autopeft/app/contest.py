"""Replaying ways to search on a recorded table, and the page that shows how they did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from autopeft import plugins
from autopeft.domain.errors import Problem, UserError, unknown
from autopeft.domain.replayed import Contest, Replay
from autopeft.domain.stopping import RULES, StoppingRule
from autopeft.search import SAMPLERS
from autopeft.search.replay import BLIND, Truth, replay
from autopeft.store.recorded import read_table

STOPPING = " + "
"""Stands before the name of the rule in the name of a way to search that stops trials early."""


def contest(
    table: Path,
    samplers: Sequence[str],
    *,
    seeds: int = 20,
    workers: int = 1,
    early_stopping: Sequence[str] = (),
    trials: int | None = None,
    until: float | None = 0.99,
    told: Callable[[str, Replay], None] = lambda name, replay: None,
) -> Contest:
    """Replay every sampler with every seed.

    Args:
        table: As `autopeft bench record` writes it.
        samplers: Names; the ending `-blind` lets one learn what is known before a training.
        seeds: Searches with each.
        workers: Simulated trials at once.
        early_stopping: Names of rules; each sampler is replayed once more with each, stopping trials early.
        trials: Ends a search; None is the whole table.
        until: Share of the reference hypervolume at which a search is ended; None goes on.
        told: Called with every replay.

    Raises:
        UserError: where the table cannot be read or replayed, or a sampler is unknown.
    """
    wrong = [unknown("--samplers", name, SAMPLERS) for name in samplers if name.removesuffix(BLIND) not in SAMPLERS]
    wrong += [unknown("--early-stopping", name, RULES) for name in early_stopping if name not in RULES]
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
    rules += [(STOPPING + name, RULES[name]) for name in early_stopping]
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
