"""Replaying ways to search on a recorded table, and the page that shows how they did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

from autopeft import plugins
from autopeft.domain.errors import Problem, UserError, unknown
from autopeft.domain.replayed import Contest, Replay
from autopeft.domain.start import Start
from autopeft.domain.stopping import RULES, StoppingRule
from autopeft.search import SAMPLERS
from autopeft.search.replay import Truth, replay, sampler_of, start_from, view_of
from autopeft.search.stopping import rule_of
from autopeft.store.recorded import read_table

STOPPING = " + "
"""Stands before the name of the rule in the name of a way to search that stops trials early."""
WARM, SHUFFLED = " + warm start", " + shuffled start"
"""Ends the name of a way to search that begins with an earlier one's front and results."""
SHUFFLE = "shuffled"
"""Said in place of the table of an earlier search: this very table with its qualities shuffled."""


def contest(
    table: Path,
    samplers: Sequence[str],
    *,
    seeds: int = 20,
    workers: int = 1,
    warm_start: str | None = None,
    early_stopping: Sequence[str] = (),
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
        early_stopping: Names of rules; each sampler is replayed once more with each, stopping trials early.
        warm_start: Replays each once more with a warm start from this table, or, where it is `shuffled`, from the very
            table with its qualities shuffled among the configurations.
        trials: Ends a search; None is the whole table.
        until: Share of the reference hypervolume at which a search is ended; None goes on.
        told: Called with every replay.

    Raises:
        UserError: where the table cannot be read or replayed, or a sampler is unknown.
    """
    wrong = [unknown("--samplers", name, SAMPLERS) for name in samplers if sampler_of(name) not in SAMPLERS]
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
    view = view_of(truth) if early_stopping else None
    rules += [(STOPPING + name, rule_of(name, truth.table.facts.rungs, view)) for name in early_stopping]
    starts: list[tuple[str, Callable[[int], Start | None]]] = [("", lambda seed: None)]
    if warm_start is not None:
        starts.append(_warm(truth, warm_start, trials))
    found: dict[str, tuple[Replay, ...]] = {}
    for sampler, (begun, start), (ending, rule) in product(samplers, starts, rules):
        replays = []
        for seed in range(seeds):
            one = replay(
                truth, sampler, seed, workers=workers, rule=rule, trials=trials, until=until, start=start(seed)
            )
            told(sampler + begun + ending, one)
            replays.append(one)
        found[sampler + begun + ending] = tuple(replays)
    return Contest(table.stem, len(truth.configs), workers, found)


def _warm(truth: Truth, named: str, trials: int | None) -> tuple[str, Callable[[int], Start | None]]:
    """The ending of the names, and the start of every seed."""
    if named == SHUFFLE:
        return SHUFFLED, lambda seed: start_from(truth, truth, seed, trials, shuffled=True)
    earlier = Truth(read_table(Path(named)))
    if not start_from(truth, earlier, 0, trials).points:
        found = "it has no configuration of the table that is searched"
        step = "Record both with one space and one --seed."
        raise UserError(Problem("--warm-start", found, f"a table of the same space, or {SHUFFLE}", step))
    return WARM, lambda seed: start_from(truth, earlier, seed, trials)


def write_page(found: Contest, path: Path) -> None:
    """The figure and its table as one HTML file."""
    render: Callable[..., str] = plugins.load(plugins.PAGES, "samplers", "the page of a contest of samplers")
    path.write_text(render(found), encoding="utf-8")
